# SPDX-License-Identifier: GPL-2.0-only
"""What kvm's tables map, as ranges: each page once, as a reading of the bits by another hand finds it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from kvmmu import Params, World
from kvmmu.guest.tables import MODE_NAMES
from kvmmu.kvm.guestmem import gpa_to_hpa
from kvmmu.kvm.mmu.mappings import SpteRange, current_ranges, find_root
from kvmmu.kvm.mmu.role import describe_role
from kvmmu.kvm.vcpu import Vcpu

MIB = 1 << 20
ROOT = 0x10000
DATA = 0x40_0000
P, W, U = 1, 2, 4
#: Signs of the rights and words of the flags by bit, as docs/formats.md has them.
WORDS = {5: "accessed", 6: "dirty", 9: "host-writable", 10: "mmu-writable"}


def entries(world: World, table: int, level: int, address: int) -> Iterator[tuple[int, int, int]]:
    """(address, level, word) of each present leaf below a table."""
    words = memoryview(world.memory.read(table, 4096)).cast("Q")
    for index, word in enumerate(words):
        here = address + (index << (3 + 9 * level))
        if not word >> 11 & 1:
            continue
        if level == 1 or word >> 7 & 1:
            yield here, level, word
        else:
            yield from entries(world, word % 2**52 // 4096 * 4096, level - 1, here)


def leaves_of(world: World, vcpu: Vcpu) -> Iterator[tuple[int, int, int]]:
    """:func:`entries` of the root that the CPU walks."""
    level = vcpu.mmu.root_role % 16
    if level != 3:
        return entries(world, vcpu.mmu.root_hpa, level, 0)
    words = memoryview(world.memory.read(vcpu.mmu.root_hpa, 32)).cast("Q")
    parts = [entries(world, w % 2**52 // 4096 * 4096, 2, i << 30) for i, w in enumerate(words) if w & 1]
    return (leaf for part in parts for leaf in part)


def used_machine(mode: str, npt: bool) -> tuple[World, Vcpu]:
    """A guest that has read, written and fetched here and there, also where nothing is."""
    world = World(Params(npt=npt, host_levels=5, host_page="2m"))
    world.add_slot(0, 0, 16 * MIB)
    vcpu = world.create_vcpu()
    rng = random.Random(mode)
    if mode != "none":
        tables = world.tables(mode, ROOT)
        tables.map_range(DATA, DATA, 2 * MIB)
        tables.map_range(DATA + 2 * MIB, DATA + 2 * MIB, MIB, flags=P | U)
        tables.map(0x4000_0000, 0x8000_0000)
        if tables.mode.levels >= 4:
            tables.map_range(0xFFFF_FFFF_8000_0000, DATA, 64 * 4096)
        world.load_registers(vcpu, tables.registers())
    for _ in range(200):
        gva = DATA + rng.randrange(3 * MIB) // 8 * 8
        rng.choice((world.read, world.fetch))(vcpu, gva)
        if mode != "none" or rng.random() < 0.5:
            world.write(vcpu, DATA + rng.randrange(2 * MIB) // 8 * 8, b"x")
    if mode.endswith("-level") and mode[0] in "45":
        world.read(vcpu, 0xFFFF_FFFF_8000_1000)
    world.read(vcpu, 0x4000_0000 if mode != "none" else 0x8000_0000)
    return world, vcpu


@pytest.mark.parametrize("npt", [False, True], ids=["shadow", "npt"])
@pytest.mark.parametrize("mode", ["none", *MODE_NAMES])
def test_each_leaf_is_in_one_range_with_its_bits_in_words(mode: str, npt: bool) -> None:
    world, vcpu = used_machine(mode, npt)
    ranges = list(current_ranges(world.vm, vcpu.mmu))
    memory = [one for one in ranges if one.hpa is not None]
    expected = {address % 2**48: (level, word) for address, level, word in leaves_of(world, vcpu)}
    assert len(expected) > (3 if npt or mode == "none" else 100)
    found = set()
    for one in memory:
        assert one.hpa is not None
        for offset in range(0, one.nr_bytes, one.page_size):
            address = (one.start + offset) % 2**48
            level, word = expected[address]
            found.add(address)
            assert word % 2**52 // 4096 * 4096 == one.hpa + offset
            assert gpa_to_hpa(world.vm.slots_of(0), world.vm.mm, one.gpa + offset, False) == one.hpa + offset
            assert one.page_size == 1 << (3 + 9 * level)
            signs = [word >> 1 & 1, word >> 2 & 1, not word >> 63]
            assert one.rights == "".join(s if on else "-" for s, on in zip("wux", signs, strict=True))
            assert [flag for flag in one.flags if flag in WORDS.values()] == [
                name for bit, name in WORDS.items() if word >> bit & 1
            ]
            if npt or mode == "none":
                assert one.gpa == one.start
    assert found == set(expected)
    starts = [one.start for one in ranges]
    assert starts == sorted(starts)
    devices = [(one.start, one.gpa, one.flags[0]) for one in ranges if one.hpa is None]
    start = 0x8000_0000 if npt or mode == "none" else 0x4000_0000
    assert devices == [(start, 0x8000_0000, "mmio")]


def test_the_role_is_that_of_the_table_and_the_repr_says_it() -> None:
    world, vcpu = used_machine("4-level", False)
    first = next(iter(current_ranges(world.vm, vcpu.mmu)))
    assert describe_role(first.role).startswith("level 1 ")
    assert "accessed" in repr(first)
    assert describe_role(first.role) in repr(first)
    device = next(one for one in current_ranges(world.vm, vcpu.mmu) if one.hpa is None)
    assert " mmio " in repr(device)


def test_gvas_of_shadow_paging_are_canonical() -> None:
    world, vcpu = used_machine("5-level", False)
    assert max(one.start for one in current_ranges(world.vm, vcpu.mmu)) >= 0xFFFF_FFFF_8000_0000


def test_neighbours_join_only_where_everything_goes_on() -> None:
    base = SpteRange(0x1000, 0x2000, 0x3000, 0x1000, 0x1000, "wux", ("accessed",), 1)  # type: ignore[arg-type]
    after = SpteRange(0x2000, 0x3000, 0x4000, 0x1000, 0x1000, "wux", ("accessed",), 1)  # type: ignore[arg-type]
    assert base.is_followed_by(after)
    for field, value in (
        ("start", 0x3000),
        ("gpa", 0x9000),
        ("hpa", None),
        ("page_size", 0x20_0000),
        ("rights", "-ux"),
        ("flags", ()),
        ("role", 2),
    ):
        facts = {name: getattr(after, name) for name in SpteRange.__slots__} | {field: value}
        assert not base.is_followed_by(SpteRange(**facts)), field


def test_a_root_is_found_by_its_cr3_now_and_before() -> None:
    world, vcpu = used_machine("4-level", False)
    mask = (1 << 52) - 4096
    current = vcpu.mmu.root_hpa
    assert find_root(world.vm, [vcpu.mmu], ROOT, mask) == (current, 4)
    other = world.tables("4-level", 0x30_0000)
    other.map(DATA, DATA)
    world.mov_cr3(vcpu, 0x30_0000)
    world.read(vcpu, DATA)
    assert vcpu.mmu.root_hpa != current
    assert find_root(world.vm, [vcpu.mmu], ROOT | 7, mask) == (current, 4)
    assert find_root(world.vm, [vcpu.mmu], 0x50_0000, mask) is None


def test_without_a_root_there_are_no_ranges() -> None:
    world = World()
    world.add_slot(0, 0, MIB)
    vcpu = world.create_vcpu()
    assert list(current_ranges(world.vm, vcpu.mmu)) == []


@pytest.mark.parametrize("npt", [False, True], ids=["shadow", "npt"])
def test_unmapping_finds_the_same_leaves_in_a_large_sparse_range(npt: bool) -> None:
    """The whole of a large slot goes by its leaves, a part that is as long as the tables by its rmaps."""
    for nr_bytes in (64 << 30, 4 * MIB):
        world = World(Params(npt=npt))
        hva = world.add_slot(0, 0, 64 << 30)
        vcpu = world.create_vcpu()
        for gpa in (0, 0x1000, 0x3F_F000, 0x40_0000, 0xC000_0000):
            world.write(vcpu, gpa, b"x")
        before = {one.gpa for one in current_ranges(world.vm, vcpu.mmu)}
        assert before == {0, 0x1000, 0x3F_F000, 0x40_0000, 0xC000_0000}
        world.mm.munmap(hva, nr_bytes)
        after = [(one.gpa, one.nr_bytes) for one in current_ranges(world.vm, vcpu.mmu)]
        assert after == ([] if nr_bytes > 4 * MIB else [(0x40_0000, 0x1000), (0xC000_0000, 0x1000)])
        world.audit()
