# SPDX-License-Identifier: GPL-2.0-only
"""The first-stage walk: translations, what is read, A and D, and what silicon leaves to chance elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.machines import FETCH, FULL, LEVELS, PGE, PKE, PS, SMAP, SMEP, USER, WP, WRITE, XD, A, Box, D, G, P, U, W
from kvmmu.hw.bits import HW_HIT, HW_PAGE_FAULT
from kvmmu.hw.cpumodel import CpuModel
from kvmmu.hw.paging import Walk, page_walk
from kvmmu.page_types import INVALID_PAGE
from kvmmu.sync import Gate
from oracle.access_oracle import Access, Machine, Ram, predict

PAGED = ("32", "32pse", "pae", "4", "5")
GVA = 0x4060_7123


def go(box: Box, gva: int = GVA, kind: int = 0) -> Walk:
    out = Walk()
    out_status = page_walk(box.cpu, gva, kind, out)
    assert out_status == HW_HIT, hex(out.error_code)
    return out


def fault(box: Box, gva: int = GVA, kind: int = 0) -> int:
    out = Walk()
    assert page_walk(box.cpu, gva, kind, out) == HW_PAGE_FAULT
    return out.error_code


@pytest.mark.parametrize("mode", PAGED)
def test_a_4k_page_translates_in_every_mode(mode: str) -> None:
    box = Box(mode)
    place = box.map(GVA, 0x123000 | FULL)
    out = go(box)
    assert (out.hpa, out.level, out.tlb_level, out.large4m) == (0x123123, 1, 1, False)
    assert [level for level, _, _ in out.elements()] == list(range(LEVELS[mode], 0, -1))
    assert out.elements()[-1] == (1, 0x123000 | FULL, place)


@pytest.mark.parametrize("mode", ["32", "pae", "off"])
def test_addresses_have_32_bits_outside_long_mode(mode: str) -> None:
    box = Box(mode)
    if mode != "off":
        box.map(GVA, (GVA & ~0xFFF) | FULL)
    assert go(box, GVA | 0xFFFF_FFFF_0000_0000).hpa == GVA


def test_without_paging_everything_is_allowed_where_it_is() -> None:
    box = Box("off")
    for kind in (0, WRITE, FETCH, USER | WRITE):
        out = go(box, 0xFFFF_F123, kind)
        assert (out.hpa, out.nr, out.writable, out.user, out.executable) == (0xFFFF_F123, 0, True, True, True)


@pytest.mark.parametrize(
    ("mode", "level", "base"),
    [
        ("32pse", 2, 0x00C0_0000),
        ("pae", 2, 0x0060_0000),
        ("4", 2, 0x0060_0000),
        ("4", 3, 0x1_4000_0000),
        ("5", 3, 0x1_4000_0000),
    ],
)
def test_large_pages_keep_the_low_bits_of_the_address(mode: str, level: int, base: int) -> None:
    box = Box(mode)
    box.map(GVA, base | FULL | PS | 0x1000, level)  # bit 12 is PAT
    out = go(box)
    size = 2 ** (12 + box.index_bits * (level - 1))
    assert (out.hpa, out.level, out.large4m) == (base + GVA % size, level, mode == "32pse")


def test_pse36_moves_eight_address_bits() -> None:
    box = Box("32pse")
    box.map(GVA, 0x0040_0000 | (0xA5 << 13) | FULL | PS, 2)
    assert go(box).hpa == 0xA5_0040_0000 + GVA % 0x40_0000


def test_pse36_stops_at_maxphyaddr() -> None:
    box = Box("32pse", CpuModel(maxphyaddr=36))
    box.map(GVA, (0x0F << 13) | FULL | PS, 2)
    assert go(box).hpa == 0xF_0000_0000 + GVA % 0x40_0000
    box.map(GVA, (0x1F << 13) | FULL | PS, 2)
    assert fault(box) == 9


def test_without_pse_bit_7_of_a_directory_is_ignored() -> None:
    box = Box("32")
    box.map(GVA, 0x5000 | FULL)
    box.put(box.place(GVA, 2), box.get(box.place(GVA, 2)) | PS)
    assert go(box).hpa == 0x5123


def test_1g_pages_are_reserved_on_a_cpu_without_them() -> None:
    box = Box("4", CpuModel(has_gbpages=False))
    box.map(GVA, 0x4000_0000 | FULL | PS, 3)
    assert fault(box) == 9


@pytest.mark.parametrize("level", [4, 5])
def test_ps_is_reserved_in_upper_directories(level: int) -> None:
    box = Box("5")
    box.map(GVA, 0x5000 | FULL)
    box.put(box.place(GVA, level), box.get(box.place(GVA, level)) | PS)
    assert fault(box) == 9


@pytest.mark.parametrize("width", [32, 36, 46, 51, 52])
def test_address_bits_from_maxphyaddr_on_are_reserved(width: int) -> None:
    box = Box("4", CpuModel(maxphyaddr=width))
    for bit in range(32, 52):
        box.map(GVA, 1 << bit | FULL)
        if bit < width:
            assert go(box).hpa == (1 << bit) + GVA % 4096
        else:
            assert fault(box) == 9
    for bit in range(52, 63):
        box.map(GVA, 1 << bit | FULL)
        assert go(box).hpa == GVA % 4096


def test_global_bit_counts_in_leaves_while_pge_is_set() -> None:
    box = Box("4")
    box.map(GVA, 0x5000 | FULL | G)
    assert not go(box).is_global
    box.load(PGE)
    assert go(box).is_global
    box.map(GVA, 0x5000 | FULL)
    box.put(box.place(GVA, 2), box.get(box.place(GVA, 2)) | G)
    assert not go(box).is_global


def test_pae_reads_pdptes_from_registers_not_from_memory() -> None:
    box = Box("pae")
    box.map(GVA, 0x5000 | FULL)
    box.put(box.root + 8, 0)
    out = go(box)
    assert out.hpa == 0x5123
    assert out.elements()[0][2] == INVALID_PAGE
    assert box.cpu.load_pdptrs()
    assert fault(box) == 0


@pytest.mark.parametrize("bit", [1, 2, 5, 6, 7, 8, 46, 62, 63])
def test_pdptes_with_reserved_bits_do_not_load(bit: int) -> None:
    box = Box("pae")
    box.map(GVA, 0x5000 | FULL)
    old = [box.cpu.pdptr(i) for i in range(4)]
    box.put(box.root + 24, 1 << bit)  # not present: nobody looks
    assert box.cpu.load_pdptrs()
    old[3] = 1 << bit
    box.put(box.root + 24, 1 << bit | P)
    assert not box.cpu.load_pdptrs()
    assert [box.cpu.pdptr(i) for i in range(4)] == old


def test_accessed_is_set_at_every_level_and_dirty_in_the_written_leaf() -> None:
    for mode in PAGED:
        box = Box(mode)
        place = box.map(GVA, 0x5000 | FULL)
        assert not go(box).dirty
        assert box.get(place) == 0x5000 | FULL | A
        assert go(box, kind=WRITE).dirty
        assert box.get(place) == 0x5000 | FULL | A | D
        directory = box.get(box.place(GVA, 2))
        assert directory & (A | D) == A
        if mode == "pae":
            assert box.get(box.root + 8) & A == 0


def test_a_faulting_walk_leaves_no_mark() -> None:
    box = Box("4")
    box.map(GVA, 0x5000 | P)
    before = box.memory.read(0x10000, 0x10000)
    assert fault(box, kind=USER) == 5
    assert fault(box, kind=WRITE) == 3
    assert box.memory.read(0x10000, 0x10000) == before


def test_a_missing_page_outranks_a_forbidden_directory() -> None:
    box = Box("4")
    box.map(GVA, 0, upper=P)
    assert fault(box, kind=USER | WRITE) == 6


def test_reserved_bits_outrank_permissions() -> None:
    box = Box("4")
    box.map(GVA, 0x5000 | P | 1 << 50, upper=P)
    assert fault(box, kind=USER | WRITE) == 0xF


@pytest.mark.parametrize(
    ("mode", "nx", "cr4", "code"),
    [
        ("4", False, 0, 0),
        ("4", True, 0, 16),
        ("4", False, SMEP, 16),
        ("pae", True, 0, 16),
        ("pae", False, 0, 0),
        ("32", True, 0, 0),
        ("32", False, SMEP, 16),
    ],
)
def test_the_error_code_tells_fetches_apart_where_they_can_fail(mode: str, nx: bool, cr4: int, code: int) -> None:
    box = Box(mode)
    box.load(cr4, nx=nx)
    assert fault(box, kind=FETCH) == code


def test_smap_yields_to_ac_but_not_for_implicit_accesses() -> None:
    box = Box("4")
    box.map(GVA, 0x5000 | FULL)
    box.load(SMAP)
    assert fault(box) == 1
    assert go(box, kind=256).hpa == 0x5123
    assert fault(box, kind=512 | 256 | WRITE) == 3
    assert go(box, kind=USER).hpa == 0x5123


def test_an_implicit_access_is_a_supervisors() -> None:
    box = Box("4")
    box.map(GVA, 0x5000 | P | W)
    assert go(box, kind=512 | USER).hpa == 0x5123
    box.put(box.place(GVA, 1), 0)
    assert fault(box, kind=512 | USER | WRITE) == 2


def test_protection_keys_come_from_the_leaf_and_say_so() -> None:
    box = Box("4")
    box.map(GVA, 0x5000 | FULL | 9 << 59)
    box.load(PKE)
    box.cpu.write_pkru(2 << 18)
    assert go(box, kind=USER).pkey == 9
    assert fault(box, kind=USER | WRITE) == 0x27
    assert fault(box, kind=WRITE) == 0x23
    box.load(PKE, cr0=0)
    assert go(box, kind=WRITE).hpa == 0x5123
    box.cpu.write_pkru(1 << 18)
    assert go(box, kind=USER | FETCH).hpa == 0x5123
    box.load(0)
    assert go(box, kind=USER | WRITE).pkey == 0


def test_nx_of_any_level_forbids_fetches() -> None:
    box = Box("4")
    box.map(GVA, 0x5000 | FULL, upper=FULL | XD)
    assert fault(box, kind=FETCH | USER) == 0x15
    assert not go(box).executable
    box.load(nx=False)
    assert fault(box) == 9


def test_a_kind_of_access_that_no_cpu_makes_never_passes() -> None:
    box = Box("4")
    box.map(GVA, 0x5000 | FULL)
    assert fault(box, kind=WRITE | FETCH) & 1


@pytest.mark.parametrize("mode", PAGED)
def test_tables_outside_memory_read_as_ones(mode: str) -> None:
    box = Box(mode)
    box.map(GVA, 0x5000 | FULL)
    box.put(box.place(GVA, 2), 0x3F_F000_0000 | FULL if box.size == 8 else 0xFFF0_0000 | FULL)
    if box.size == 8:
        assert fault(box) == 9
    else:
        assert go(box, kind=WRITE).hpa == 0xFFFF_F000 + GVA % 4096


@pytest.mark.parametrize("mode", PAGED)
def test_a_changed_entry_makes_the_walk_start_again(mode: str) -> None:
    gate = Gate()
    box = Box(mode, gate=gate)
    place = box.map(GVA, 0x5000 | FULL)
    box.cpu.load_pdptrs()

    class Other:
        """Another CPU that remaps the page between the walk's read and its update."""

        def __init__(self) -> None:
            self.heard: list[tuple[str, int]] = []

        def point(self, kind: str, where: Any, key: int) -> None:
            self.heard.append((kind, key))
            if kind == "cmpxchg" and key == place:
                gate.disarm()
                box.put(place, 0x6000 | FULL)

    other = Other()
    gate.arm(other)
    assert go(box, kind=WRITE).hpa == 0x6123
    assert box.get(place) == 0x6000 | FULL | A | D
    assert ("read", place) in other.heard


def test_a_vanished_entry_faults_after_the_restart() -> None:
    gate = Gate()
    box = Box("4", gate=gate)
    place = box.map(GVA, 0x5000 | FULL)

    class Other:
        def point(self, kind: str, where: Any, key: int) -> None:
            if kind == "cmpxchg" and key == place:
                gate.disarm()
                box.put(place, 0)

    gate.arm(Other())
    assert fault(box, kind=WRITE) == 2
    assert box.get(place) == 0


def test_a_table_that_maps_itself_ends() -> None:
    box = Box("4")
    box.put(box.root, box.root | FULL)
    out = go(box, 0x123, WRITE)
    assert out.hpa == box.root + 0x123
    assert box.get(box.root) == box.root | FULL | A | D


# What an entry differs in from a plain one: most walks get somewhere, and most of them meet something.
FLAGS = st.lists(st.sampled_from([P, W, W, U, U, A, D, D, PS, G, XD, XD, 1 << 13, 1 << 21, 1 << 50]), max_size=4)
MACHINES = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(PAGED),
        "cr4": st.lists(st.sampled_from([SMEP, SMAP, PKE]), max_size=3),
        "wp": st.booleans(),
        "nx": st.booleans(),
        "pkru": st.integers(0, 2**32 - 1),
        "width": st.sampled_from([32, 36, 40, 46, 52]),
        "gb": st.booleans(),
    }
)
ENTRIES = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 3), FLAGS, st.integers(0, 5), st.integers(0, 15)), max_size=20
)
ACCESSES = st.lists(
    st.tuples(
        st.lists(st.integers(0, 3), min_size=5, max_size=5),
        st.integers(0, 4095),
        st.sampled_from([(0, 0), (1, 0), (0, 1)]),
        st.integers(0, 7),
    ),
    min_size=1,
    max_size=12,
)


@given(MACHINES, ENTRIES, ACCESSES)
def test_random_tables_translate_as_the_oracle_says(
    machine: dict[str, Any], entries: list[Any], accesses: list[Any]
) -> None:
    """Five tables, each entry pointing at any of them or at a page: shared tables, loops and large pages included."""
    box = Box(machine["mode"], CpuModel(maxphyaddr=machine["width"], has_gbpages=machine["gb"]), frames=64)
    ram = Ram(box.memory.size)
    plain = [(table, index, [], table + 1, 0) for table in range(5) for index in range(4)]
    for table, index, flags, target, key in plain + entries:
        value = (0x10000 + 0x1000 * target) | (FULL ^ sum(set(flags))) | key << 59
        place = 0x10000 + 0x1000 * table + index * box.size
        value %= 2 ** (8 * box.size)
        if box.mode == "pae" and table == 0:
            value &= ~0x1E6 & 0xFFFF_FFFF
        box.put(place, value)
        ram.store(place, box.size, value)
    loaded = box.load(sum(set(machine["cr4"])), WP if machine["wp"] else 0, machine["nx"]) == 0
    box.cpu.write_pkru(machine["pkru"])
    pdptes = tuple(box.cpu.pdptr(i) for i in range(4)) if loaded else (0, 0, 0, 0)
    cr4 = set(machine["cr4"])
    model = Machine(
        ram,
        box.mode.removesuffix("pse"),
        0x10000,
        pdptes,
        machine["wp"],
        box.mode == "32pse",
        SMEP in cr4,
        SMAP in cr4,
        PKE in cr4,
        machine["nx"],
        machine["pkru"],
        machine["width"],
        machine["gb"],
    )
    for indices, offset, (write, fetch), who in accesses:
        gva = offset
        for level, index in enumerate(indices[: LEVELS[box.mode]]):
            gva += index << (12 + box.index_bits * level)
        user, ac, implicit = who & 1, who & 2, who & 4
        access = Access(bool(write), bool(user), bool(fetch), bool(ac), bool(implicit))
        kind = 2 * write + 4 * user + 16 * fetch + (256 if ac else 0) + (512 if implicit else 0)
        out = Walk()
        status = page_walk(box.cpu, gva, kind, out)
        got = ("ok", out.hpa) if status == HW_HIT else ("pf", out.error_code)
        assert got == predict(model, gva, access)
        assert box.memory.read(0x10000, 0x6000) == b"".join(
            ram.load(place, 4).to_bytes(4, "little") for place in range(0x10000, 0x16000, 4)
        )
