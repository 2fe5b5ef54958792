# SPDX-License-Identifier: GPL-2.0-only
"""What guest tables map, as ranges: nothing more and nothing less than a walk of its own finds, in every mode."""

from __future__ import annotations

import itertools
import random

import pytest

from kvmmu import GuestTables, World
from kvmmu.addr import Gpa
from kvmmu.guest.ranges import Mapping, size_name
from kvmmu.guest.tables import MODE_NAMES, SIZE_1G, SIZE_2M, SIZE_4K, SIZE_4M
from kvmmu.hw.modes import Limits
from oracle.recording_walker import Machine

P, W, U, A, D, PS, G, NX = 1, 2, 4, 0x20, 0x40, 0x80, 0x100, 1 << 63
MIB = 1 << 20
ROOT = 0x10000
SIZES = {
    "2-level": (SIZE_4K,),
    "2-level-pse": (SIZE_4K, SIZE_4M),
    "pae": (SIZE_4K, SIZE_2M),
    "4-level": (SIZE_4K, SIZE_2M, SIZE_1G),
    "5-level": (SIZE_4K, SIZE_2M, SIZE_1G),
}
#: Regions of the address space, each of 4 GiB and more.
PLACES = {
    "4-level": (0, 0x7FFE_0000_0000, 0xFFFF_8000_0000_0000, 0xFFFF_FFFE_0000_0000),
    "5-level": (0, 0xFF_FFFE_0000_0000, 0xFF00_0000_0000_0000, 0xFFFF_FFFE_0000_0000),
}


def random_tables(mode: str, seed: int) -> tuple[World, GuestTables]:
    """Tables with pages and runs of every size, rights that differ at each level, and entries that map nothing."""
    rng = random.Random(seed)
    world = World()
    world.add_slot(0, 0, 8 * MIB)
    tables = world.tables(mode, ROOT, nr_bytes=7 * MIB)
    wide = NX if tables.mode.entry_size == 8 else 0
    for _ in range(60):
        size = rng.choice(SIZES[mode])
        place = rng.choice(PLACES.get(mode, (0,)))
        # Few blocks, so that pages meet; few rights, so that neighbours are alike.
        gva = place + rng.choice((0, 1, 2)) * SIZE_1G + rng.randrange(8) * 4 * MIB
        gva = gva // size * size + rng.randrange(4) * size
        gpa = rng.randrange(4) * SIZE_1G + rng.randrange(4) * size
        flags = rng.choice((P, P | W, P | W | U, P | U | A | D, P | W | wide, W | U))
        nr_bytes = min(rng.choice((1, 1, 2, 600)), (SIZE_1G - gva % SIZE_1G) // size or 1) * size
        if size == SIZE_1G:
            nr_bytes = size
        gpa = min(gpa, (1 << (32 if tables.mode.entry_size == 4 and size == SIZE_4K else 40)) - nr_bytes)
        try:
            tables.map_range(gva, gpa // size * size, nr_bytes, size, flags)
        except ValueError as error:
            assert "larger page" in str(error)  # noqa: PT017 - the only refusal that is meant
    for _ in range(20):
        gva = rng.choice(list(tables.ranges())).gva
        level = rng.randrange(1, tables.mode.levels + 1)
        if not (tables.mode.has_pdptrs and level == 3) and any(one.level == level for one in tables.walk(gva)):
            tables.clear_bits(gva, rng.choice((W, U, W | U)), level)
    return world, tables


def oracle_of(world: World, tables: GuestTables) -> Machine:
    """The walker of the tests over all of the guest's memory."""
    machine = Machine()
    for gpa in range(0, 8 * MIB, 4096):
        machine.pages[gpa // 4096] = bytearray(world.peek(gpa, 4096))
    registers = tables.registers()
    machine.regs[0] = (registers.cr0, registers.cr3, registers.cr4, registers.efer, 0)
    return machine


def rights_of(path: list[int], entry_size: int) -> str:
    """What all entries of a walk permit."""
    executable = entry_size == 4 or not any(value >> 63 for value in path)
    signs = [all(value >> 1 & 1 for value in path), all(value >> 2 & 1 for value in path), executable]
    return "".join(sign if given else "-" for sign, given in zip("wux", signs, strict=True))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", MODE_NAMES)
def test_ranges_are_what_a_walk_of_its_own_finds(mode: str, seed: int) -> None:
    world, tables = random_tables(mode, seed)
    oracle, rng = oracle_of(world, tables), random.Random(seed)
    ranges = list(tables.ranges())
    assert len(ranges) >= 8
    assert {one.page_size for one in ranges} == set(SIZES[mode])
    for one in ranges:
        pages = {0, 4096, one.nr_bytes - 4096, *(rng.randrange(one.nr_bytes) // 4096 * 4096 for _ in range(20))}
        for offset in sorted(page for page in pages if page < one.nr_bytes):
            gpa, path, missing = oracle.walk(0, one.gva + offset)
            assert not missing
            assert gpa == one.gpa + offset
            assert rights_of(path, tables.mode.entry_size) == one.rights
    # What lies between two ranges, and around them, is not mapped.
    covered = [(one.gva, one.gva + one.nr_bytes) for one in ranges]
    assert covered == sorted(covered)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(covered))
    edges = {end for _, end in covered} | {start - 4096 for start, _ in covered}
    limit = 1 << (64 if tables.mode.levels >= 4 else 32)
    for gva in edges:
        if 0 <= gva < limit and not any(start <= gva < end for start, end in covered):
            assert oracle.walk(0, gva)[0] is None
    # Nothing that could be one range is two.
    assert not any(one.is_followed_by(after) for one, after in itertools.pairwise(ranges))


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_every_page_that_is_mapped_is_in_one_range(mode: str) -> None:
    world, tables = random_tables(mode, 7)
    oracle = oracle_of(world, tables)
    ranges = list(tables.ranges())
    for gva in range(0, 8 * MIB, 4096):
        held = [one for one in ranges if one.gva <= gva < one.gva + one.nr_bytes]
        gpa, _, _ = oracle.walk(0, gva)
        assert [one.gpa + gva - one.gva for one in held] == ([] if gpa is None else [gpa])


def test_tables_that_are_read_word_by_word_list_the_same() -> None:
    world, tables = random_tables("4-level", 1)
    by_words = GuestTables("4-level", tables.load, tables.store, ROOT, tables.new_table)
    assert list(by_words.ranges()) == list(tables.ranges())
    assert world.peek(ROOT, 8)


def test_reserved_bits_are_named_and_what_is_below_them_is_not_looked_at() -> None:
    world = World()
    world.add_slot(0, 0, 4 * MIB)
    tables = world.tables("4-level", ROOT)
    tables.map_range(0x40_0000, 0, 0x4000)
    tables.set_bits(0x40_1000, 1 << 45)
    assert [one.reserved for one in tables.ranges()] == [0, 0, 0]
    narrow = Limits(40, has_nx=True, has_gbpages=True)
    assert list(tables.ranges(narrow)) == [
        Mapping(0x40_0000, Gpa(0), 0x1000, 4096, "wux"),
        Mapping(0x40_1000, Gpa(0), 0x1000, 4096, "wux", 1 << 45),
        Mapping(0x40_2000, Gpa(0x2000), 0x2000, 4096, "wux"),
    ]
    tables.set_bits(0x40_0000, NX, 2)
    assert [one.rights for one in tables.ranges(narrow)] == ["wu-"] * 3
    without_nx = list(tables.ranges(Limits(52, has_nx=False, has_gbpages=True)))
    assert [(one.gva, one.nr_bytes, one.reserved) for one in without_nx] == [(0x40_0000, SIZE_2M, NX)]
    tables.map(SIZE_1G, 0, SIZE_1G)
    small = list(tables.ranges(Limits(52, has_nx=True, has_gbpages=False)))
    assert (small[-1].gva, small[-1].reserved, small[-1].page_size) == (SIZE_1G, PS, SIZE_1G)
    assert repr(small[-1]) == "<Mapping 0x40000000 + 0x40000000: reserved 0x80 1G wux>"
    assert size_name(1 << 39) == "512G"


def test_empty_tables_have_no_ranges() -> None:
    world = World()
    world.add_slot(0, 0, MIB)
    for mode in MODE_NAMES:
        assert list(world.tables(mode, ROOT).ranges()) == []
