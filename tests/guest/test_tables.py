# SPDX-License-Identifier: GPL-2.0-only
"""Guest tables: what they map is what a CPU finds, in every mode and size, and what no guest can do is refused."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from kvmmu.errors import GuestMisuse
from kvmmu.guest.tables import (
    MODE_NAMES,
    SIZE_1G,
    SIZE_2M,
    SIZE_4K,
    SIZE_4M,
    ControlRegisters,
    GuestTables,
    TablePages,
)
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.params import Params
from kvmmu.world import Access, World

P, W, U, A, PS = 1, 2, 4, 0x20, 0x80
ROOT = 0x10000
MIB = 1 << 20
WINDOW = 0x9000_0000

SIZES = {
    "2-level": (SIZE_4K,),
    "2-level-pse": (SIZE_4K, SIZE_4M),
    "pae": (SIZE_4K, SIZE_2M),
    "4-level": (SIZE_4K, SIZE_2M, SIZE_1G),
    "5-level": (SIZE_4K, SIZE_2M, SIZE_1G),
}
PAGES = [(mode, size) for mode, sizes in SIZES.items() for size in sizes]
#: A low address, and one that needs the top level's other half.
HIGH = {"4-level": 0xFFFF_8000_4000_0000, "5-level": 0xFF00_0000_4000_0000}


def machine(mode: str, *, npt: bool = False) -> tuple[World, Vcpu, GuestTables]:
    """A guest that pages with empty tables; memory at 0, and the first and last MiB of the GiB at 1 GiB."""
    world = World(Params(npt=npt))
    world.add_slot(0, 0, 32 * MIB)
    world.add_slot(1, SIZE_1G, MIB)
    world.add_slot(2, 2 * SIZE_1G - MIB, MIB)
    vcpu = world.create_vcpu()
    return world, vcpu, world.tables(mode, ROOT)


class Words:
    """Guest memory as words by address, for tests that need no CPU."""

    def __init__(self) -> None:
        self.words: dict[int, int] = {}

    def load(self, gpa: int, size: int) -> int:
        assert gpa % size == 0
        return self.words.get(gpa, 0)

    def store(self, gpa: int, value: int, size: int) -> None:
        assert gpa % size == 0
        assert value >> (8 * size) == 0
        self.words[gpa] = value


def bare(mode: str = "4-level", root: int = ROOT, nr_pages: int = 16) -> GuestTables:
    words = Words()
    return GuestTables(mode, words.load, words.store, root, TablePages(0x20000, 0x20000 + nr_pages * 4096).take)


# ---- what is mapped is found


@pytest.mark.parametrize("npt", [False, True], ids=["shadow", "npt"])
@pytest.mark.parametrize(("mode", "size"), PAGES)
def test_a_page_is_where_it_was_mapped_from_its_first_byte_to_its_last(mode: str, size: int, npt: bool) -> None:
    world, vcpu, tables = machine(mode, npt=npt)
    gpa = SIZE_1G if size == SIZE_1G else 2 * SIZE_4M
    gvas = [0x4000_0000] + ([HIGH[mode]] if mode in HIGH else [])
    world.poke(gpa, b"first by")
    world.poke(gpa + size - 8, b"the last")
    for gva in gvas:
        tables.map(gva, gpa, size)
    world.load_registers(vcpu, tables.registers())
    for gva in gvas:
        assert world.read(vcpu, gva, 8) == Access("done", b"first by")
        assert world.read(vcpu, gva + size - 8, 8) == Access("done", b"the last")
        assert world.write(vcpu, gva + 8, b"stored").kind == "done"
        assert world.peek(gpa + 8, 6) == b"stored"
        assert world.read(vcpu, gva + size, 8) == Access("fault", error_code=0, address=gva + size)
    world.audit()


@pytest.mark.parametrize("npt", [False, True], ids=["shadow", "npt"])
@pytest.mark.parametrize(("mode", "size"), PAGES)
def test_what_is_unmapped_faults_after_invlpg(mode: str, size: int, npt: bool) -> None:
    world, vcpu, tables = machine(mode, npt=npt)
    gpa = SIZE_1G if size == SIZE_1G else 2 * SIZE_4M
    place = tables.map(0x4000_0000, gpa, size)
    # The guest sees its tables, and unmaps with its own store: kvm is not told of the VMM's.
    tables.map_range(WINDOW + ROOT, ROOT, 0x10000)
    world.load_registers(vcpu, tables.registers())
    assert world.read(vcpu, 0x4000_0010).kind == "done"
    assert world.tables(mode, ROOT, vcpu=vcpu, window=WINDOW).unmap(0x4000_0010) == place
    assert world.peek(place, tables.mode.entry_size) == bytes(tables.mode.entry_size)
    assert world.invlpg(vcpu, 0x4000_0000)
    assert world.read(vcpu, 0x4000_0010) == Access("fault", error_code=0, address=0x4000_0010)


@pytest.mark.parametrize(("flags", "code"), [(P, 7), (P | U, 7), (P | W, 7), (P | W | U, None)])
def test_the_flags_of_a_page_are_what_the_cpu_obeys(flags: int, code: int | None) -> None:
    world, vcpu, tables = machine("4-level")
    tables.map(0x400000, 0x200000, flags=flags)
    world.load_registers(vcpu, tables.registers())
    access = world.write(vcpu, 0x400000, b"x", user=True)
    assert access == (Access("done") if code is None else Access("fault", error_code=code, address=0x400000))


def test_the_flags_of_new_tables_bound_what_is_below_them() -> None:
    world, vcpu, tables = machine("4-level")
    tables.map(0x400000, 0x200000, table_flags=P | W)
    world.load_registers(vcpu, tables.registers())
    assert world.read(vcpu, 0x400000, user=True) == Access("fault", error_code=5, address=0x400000)
    assert world.read(vcpu, 0x400000).kind == "done"


def test_a_range_maps_each_of_its_pages() -> None:
    tables = bare()
    tables.map_range(0x40_0000, 0x80_0000, 3 * SIZE_2M, SIZE_2M, P)
    assert [tables.walk(0x40_0000 + i * SIZE_2M)[-1].entry for i in range(3)] == [0x80_0081, 0xA0_0081, 0xC0_0081]
    assert tables.walk(0x40_0000 + 3 * SIZE_2M)[-1].entry == 0


@pytest.mark.parametrize(("mode", "size"), PAGES)
def test_a_range_is_what_its_pages_are_one_by_one(mode: str, size: int) -> None:
    images = []
    start, nr, flags = (3 * SIZE_1G if size == SIZE_1G else 1020 * size), 4 if size == SIZE_1G else 1500, P | W | A
    nr = min(nr, ((1 << 32) - start) // size) if mode[0] in "2p" else nr
    for one_by_one in (False, True):
        world = World()
        world.add_slot(0, 0, 32 * MIB)
        tables = world.tables(mode, ROOT)
        if one_by_one:
            for i in range(nr):
                tables.map(start + i * size, i * size, size, flags)
        else:
            tables.map_range(start, 0, nr * size, size, flags)
        images.append(world.peek(ROOT, 3 * MIB))
    assert images[0] == images[1]
    assert any(images[0])


def test_a_table_is_cleared_and_a_run_stored_in_one_go() -> None:
    world, _, tables = machine("4-level")
    stores: list[int] = []
    assert tables.store_bytes is not None
    real = tables.store_bytes
    tables.store_bytes = lambda gpa, data: (stores.append(len(data)), real(gpa, data))
    world.poke(ROOT + 0x1000, b"\xff" * 0x3000)
    tables.map(0x400000, 0x200000)
    assert stores == [4096, 4096, 4096]
    assert [one.level for one in tables.walk(0x400000)] == [4, 3, 2, 1]
    assert sum(map(bool, world.peek(ROOT, 0x4000))) < 16
    del stores[:]
    tables.map_range(0x40000000, 0, 1024 * 4096)
    assert stores == [4096] * 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 0, -4096), "nr_bytes -0x1000: must be from 0"),
        ((0, 0, 4097), "multiple of the page size"),
        ((0, 0, 4096, 4095), "page size 0xfff"),
        ((1 << 46, 0, 1 << 47), "not canonical"),
        ((0, 0, (1 << 64) - 4096), "holds 52 bits"),
        ((0xFFFF_FFFF_FFFF_F000, 0, 8192), "not canonical"),
        ((0, (1 << 52) - 4096, 8192), "holds 52 bits"),
        ((0, -4096, 8192), "gpa -0x1000: must be from 0"),
        ((0, 0, 8192, SIZE_4K, -1), "flags -0x1"),
        ((0, 0, 8192, SIZE_4K, 1 << 64), "flags 0x10000000000000000"),
    ],
)
def test_a_bad_range_is_refused_before_any_of_it_is_mapped(arguments: tuple[int, ...], words: str) -> None:
    world, _, tables = machine("4-level")
    with pytest.raises(GuestMisuse, match=re.escape(words)):
        tables.map_range(*arguments)
    assert not any(world.peek(ROOT, 0x10000))


# ---- entries, word by word


def test_a_4k_mapping_is_one_entry_per_level() -> None:
    tables = bare()
    gva = (3 << 39) | (5 << 30) | (7 << 21) | (9 << 12)
    assert tables.map(gva, 0x1234_5000, flags=P | W) == 0x22000 + 9 * 8
    assert [(step.level, step.gpa, step.entry) for step in tables.walk(gva)] == [
        (4, ROOT + 3 * 8, 0x20007),
        (3, 0x20000 + 5 * 8, 0x21007),
        (2, 0x21000 + 7 * 8, 0x22007),
        (1, 0x22000 + 9 * 8, 0x1234_5003),
    ]


def test_tables_that_exist_are_used_again() -> None:
    tables = bare(nr_pages=3)
    tables.map(0x400000, 0x1000)
    tables.map(0x401000, 0x2000)
    assert tables.entry_gpa(0x401000, 1) == tables.entry_gpa(0x400000, 1) + 8


def test_a_new_table_is_cleared() -> None:
    words = Words()
    for gpa in range(0x20000, 0x23000, 8):
        words.words[gpa] = 0xDEAD_BEEF
    tables = GuestTables("4-level", words.load, words.store, ROOT, TablePages(0x20000, 0x23000).take)
    tables.map(0x400000, 0x1000)
    assert sum(value != 0 for gpa, value in words.words.items() if gpa >= 0x20000) == 3


def test_pae_pointers_have_neither_writable_nor_user() -> None:
    tables = bare("pae", root=0x10020)
    tables.map(0xC000_0000, 0x1000)
    assert [(step.gpa, step.entry) for step in tables.walk(0xC000_0000)][:2] == [(0x10038, 0x20001), (0x20000, 0x21007)]


def test_a_4m_entry_holds_40_bits_of_address() -> None:
    tables = bare("2-level-pse")
    # Address bits 39-32 lie in bits 20-13 of the entry: PSE-36.
    tables.map(0x80_0000, 0xA5_0040_0000, SIZE_4M, P)
    assert tables.entry(0x80_0000, 2) == 0x0040_0000 | (0xA5 << 13) | PS | P


def test_bits_change_in_the_entry_that_is_named() -> None:
    tables = bare()
    tables.map(0x400000, 0x1000)
    assert tables.set_bits(0x400000, A) == 0x1027
    assert tables.clear_bits(0x400000, W) == 0x1025
    assert tables.clear_bits(0x400000, U, level=3) == 0x21003
    assert [step.entry & 0xFFF for step in tables.walk(0x400000)] == [7, 3, 7, 0x25]
    assert tables.set_entry(0x400000, 2, 0x40_0083) == tables.entry_gpa(0x400000, 2)
    assert [step.level for step in tables.walk(0x400000)] == [4, 3, 2]


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_the_place_of_an_entry_is_what_the_walk_shows(mode: str) -> None:
    tables = bare(mode)
    tables.map(0x1234_5000, 0x9000)
    steps = tables.walk(0x1234_5000)
    assert [step.gpa for step in steps] == [tables.entry_gpa(0x1234_5FFF, step.level) for step in steps]
    assert [step.entry for step in steps] == [tables.entry(0x1234_5000, step.level) for step in steps]
    assert steps[-1].entry == 0x9007


@pytest.mark.parametrize(
    ("mode", "cr4", "efer"),
    [
        ("2-level", 0, 0x800),
        ("2-level-pse", 0x10, 0x800),
        ("pae", 0x20, 0x800),
        ("4-level", 0x20, 0xD00),
        ("5-level", 0x1020, 0xD00),
    ],
)
def test_registers_select_the_mode(mode: str, cr4: int, efer: int) -> None:
    assert bare(mode).registers() == ControlRegisters(0x8001_0011, ROOT, cr4, efer)
    assert bare(mode).registers(cr0=0, cr4=1 << 20, nx=False) == ControlRegisters(
        0x8000_0011, ROOT, cr4 | 1 << 20, efer & ~0x800
    )


def test_tables_and_steps_are_printed_with_what_they_are() -> None:
    tables = bare()
    tables.map(0x400000, 0x1000)
    assert repr(tables) == "<GuestTables 4-level root 0x10000>"
    assert repr(tables.walk(0x400000)[-1]) == "<Element level 1 at 0x22000: 0x1007 P|W|U>"


# ---- what no guest can do


def mapped(mode: str = "4-level") -> GuestTables:
    tables = bare(mode)
    tables.map(0x400000, 0x1000)
    if mode != "2-level":
        tables.map(0x80_0000, 0x80_0000, SIZE_4M if mode == "2-level-pse" else SIZE_2M)
    return tables


MISUSES: list[tuple[str, Callable[[], object], str]] = [
    ("bounds-unaligned", lambda: TablePages(0x1000, 0x2800), "table pages [0x1000, 0x2800): bounds must be multiples"),
    ("bounds-reversed", lambda: TablePages(0x2000, 0x2000), "table pages [0x2000, 0x2000): bounds must be multiples"),
    (
        "no-room",
        lambda: bare(nr_pages=2).map(0, 0),
        "all 2 table pages of [0x20000, 0x22000) are in use; give the tables more room",
    ),
    ("mode", lambda: bare("3-level"), "paging mode '3-level': there are 2-level, 2-level-pse, pae, 4-level, 5-level"),
    ("root-unaligned", lambda: bare(root=0x10020), "root 0x10020: must be a multiple of 0x1000 below 2**52 in mode"),
    (
        "root-wide",
        lambda: bare("2-level", root=1 << 32),
        "root 0x100000000: must be a multiple of 0x1000 below 2**32 in mode 2-level",
    ),
    ("root-pae", lambda: bare("pae", root=0x10010), "root 0x10010: must be a multiple of 0x20 below 2**32 in mode pae"),
    (
        "map-gva-unaligned",
        lambda: bare().map(0x1000, 0, SIZE_2M),
        "map gva 0x1000 to gpa 0x0: both must be multiples of 0x200000 (2M)",
    ),
    (
        "map-gpa-unaligned",
        lambda: bare().map(0x1000, 0x80),
        "map gva 0x1000 to gpa 0x80: both must be multiples of 0x1000 (4K)",
    ),
    (
        "range",
        lambda: bare().map_range(0, 0, 0x1800),
        "map_range of 0x1800 bytes: must be a multiple of the page size 0x1000",
    ),
    (
        "unmap-nothing",
        lambda: bare().unmap(0x5000),
        "unmap gva 0x5000: nothing is mapped there (level 4: 0x0)",
    ),
    (
        "entry-wide",
        lambda: mapped("2-level").set_entry(0x400000, 1, 1 << 32),
        "entry 0x100000000: entries of mode 2-level have 4 bytes",
    ),
    ("level-low", lambda: mapped().entry(0x400000, 0), "level 0: mode 4-level has levels 1 to 4"),
    ("level-high", lambda: mapped("pae").entry_gpa(0x400000, 4), "level 4: mode pae has levels 1 to 3"),
    (
        "no-table",
        lambda: mapped().entry_gpa(0x4000_0000, 1),
        "gva 0x40000000 has no table of level 1: its level 3 entry is not present",
    ),
    (
        "no-table-under-a-page",
        lambda: mapped().set_bits(0x80_0000, A, 1),
        "gva 0x800000 has no table of level 1: its level 2 entry maps a page",
    ),
    (
        "size-4m",
        lambda: bare().map(0, 0, SIZE_4M),
        "page size 0x400000: mode 4-level has 4K (0x1000), 2M (0x200000), 1G",
    ),
    ("size-2m", lambda: bare("2-level").map(0, 0, SIZE_2M), "page size 0x200000: mode 2-level has 4K (0x1000)"),
    ("gva-33-bits", lambda: bare("pae").walk(1 << 32), "gva 0x100000000: addresses of mode pae have 32 bits"),
    ("gva-negative", lambda: bare("2-level").walk(-4096), "gva -0x1000: addresses of mode 2-level have 32 bits"),
    (
        "gva-hole",
        lambda: bare().entry_gpa(1 << 47, 4),
        "gva 0x800000000000: not canonical; bits 63 to 47 must be equal",
    ),
    (
        "gva-hole-5",
        lambda: bare("5-level").map(1 << 56, 0),
        "gva 0x100000000000000: not canonical; bits 63 to 56 must be equal",
    ),
    (
        "larger-page",
        lambda: mapped().map(0x80_1000, 0x1000),
        "gva 0x801000: level 2 maps a larger page (0x800087); unmap() it first",
    ),
    (
        "gpa-52",
        lambda: bare().map(0, 1 << 52),
        "gpa 0x10000000000000: an entry of level 1 in mode 4-level holds 52 bits",
    ),
    (
        "gpa-32",
        lambda: bare("2-level").map(0, 1 << 32),
        "gpa 0x100000000: an entry of level 1 in mode 2-level holds 32",
    ),
    (
        "gpa-40",
        lambda: bare("2-level-pse").map(0, 1 << 40, SIZE_4M),
        "gpa 0x10000000000: an entry of level 2 in mode 2-level-pse holds 40 bits",
    ),
]


@pytest.mark.parametrize(("misuse", "message"), [case[1:] for case in MISUSES], ids=[case[0] for case in MISUSES])
def test_a_misuse_is_told_with_value_and_rule(misuse: Callable[[], object], message: str) -> None:
    with pytest.raises(GuestMisuse, match=re.escape(message)):
        misuse()


def test_a_refused_map_stores_nothing() -> None:
    words = Words()
    tables = GuestTables("2-level-pse", words.load, words.store, ROOT, TablePages(0x20000, 0x30000).take)
    for gva, gpa, size in (
        (0x1000, 1 << 32, SIZE_4K),
        (0x1000, 0, SIZE_2M),
        (1 << 32, 0, SIZE_4K),
        (0x1000, 0, SIZE_4M),
    ):
        with pytest.raises(GuestMisuse):
            tables.map(gva, gpa, size)
    assert words.words == {}
