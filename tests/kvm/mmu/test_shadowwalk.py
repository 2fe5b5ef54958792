# SPDX-License-Identifier: GPL-2.0-only
"""Walks of kvm's own tables: where each kind of root starts, which entry an address has, what ends a walk."""

from __future__ import annotations

import itertools

import pytest

from kvm.mmu.machines import DATA, EMPTY, HOLE, NONE, SHADOW, VA, VB, Guest, page_of
from kvmmu.kvm.mmu import shadowwalk

PS, P, FROZEN = 0x80, 1, 1 << 63 | 0x5A0
TABLE, CHILD = 0x7_3000, 0x9_A000
#: Index 0x12, 0x123, 0x45, 0x178, 0x09 from level 5 down.
ADDRESS = (0x12 << 48) | (0x123 << 39) | (0x45 << 30) | (0x178 << 21) | (0x09 << 12) | 0x678
INDICES = {5: 0x12, 4: 0x123, 3: 0x45, 2: 0x178, 1: 0x09}


@pytest.mark.parametrize("level", range(1, 6))
def test_the_entry_of_an_address_is_at_the_index_of_its_level(level: int) -> None:
    assert shadowwalk.walk_level(TABLE | level) == level
    assert shadowwalk.walk_sptep(TABLE | level, ADDRESS) == TABLE + 8 * INDICES[level]


@pytest.mark.parametrize("level", range(1, 6))
def test_neither_the_first_nor_the_last_entry_is_outside_the_table(level: int) -> None:
    assert shadowwalk.walk_sptep(TABLE | level, 0) == TABLE
    assert shadowwalk.walk_sptep(TABLE | level, 2**64 - 1) == TABLE + 4088


def test_a_walk_goes_down_through_present_links_only() -> None:
    cases = 0
    for level, present, large in itertools.product(range(1, 6), (0, SHADOW), (0, PS)):
        spte = CHILD | P | present | large
        below = shadowwalk.walk_next(TABLE | level, spte)
        # Bit 7 means a large page above level 1; at level 1 every present entry is the last.
        if present and level > 1 and not large:
            assert below == CHILD | level - 1
        else:
            assert below == 0, (level, present, large)
        cases += 1
    assert cases == 20


@pytest.mark.parametrize("spte", [0, EMPTY, FROZEN, 1 << 51 | P | CHILD])
def test_what_is_no_link_ends_a_walk(spte: int) -> None:
    assert [shadowwalk.walk_next(TABLE | level, spte) for level in range(1, 6)] == [0] * 5


def test_the_address_bits_of_a_link_are_taken_and_no_other() -> None:
    child = 0x000F_FFFF_FFFF_F000
    assert shadowwalk.walk_next(TABLE | 3, 2**64 - 1 & ~PS) == child | 2


@pytest.mark.parametrize("mode", ["4-level", "5-level"])
def test_a_root_with_a_page_starts_at_its_own_level(mode: str) -> None:
    guest = Guest(mode)
    guest.tables.map(VA, DATA)
    guest.read(VA)
    root = guest.vcpu.mmu.root_hpa
    assert shadowwalk.walk_start(guest.vcpu, root, VA) == root | int(mode[0])


def test_no_root_and_the_dummy_root_start_nowhere() -> None:
    guest = Guest()
    dummy = guest.world.frames.zero_pfn << 12
    assert shadowwalk.walk_start(guest.vcpu, NONE, VA) == 0
    assert shadowwalk.walk_start(guest.vcpu, dummy, VA) == 0
    assert shadowwalk.is_dummy_root(guest.world.vm, dummy)
    assert not shadowwalk.is_dummy_root(guest.world.vm, dummy + 0x1000)
    assert not shadowwalk.is_dummy_root(guest.world.vm, NONE)


@pytest.mark.parametrize("quarter", range(4))
def test_a_pae_root_starts_at_the_level_2_page_of_the_quarter(quarter: int) -> None:
    guest = Guest("pae")
    mmu, memory = guest.vcpu.mmu, guest.world.memory
    for i in range(4):
        memory.write_once(mmu.pae_root + 8 * i, (CHILD + 0x1000 * i) | P)
    address = quarter << 30 | 0x1234_5678 & 0x3FFF_FFFF
    assert shadowwalk.walk_start(guest.vcpu, mmu.pae_root, address) == CHILD + 0x1000 * quarter | 2
    memory.write_once(mmu.pae_root + 8 * quarter, 0)
    assert shadowwalk.walk_start(guest.vcpu, mmu.pae_root, address) == 0
    for i in range(4):
        memory.write_once(mmu.pae_root + 8 * i, 0)


def test_the_last_entry_is_the_leaf_or_the_hole_or_the_device() -> None:
    guest = Guest()
    place = guest.tables.map(VA, DATA)
    guest.tables.map(VA + 0x20000, HOLE)
    guest.read(VA)
    guest.read(VA + 0x20000)
    table = page_of(guest.world, place >> 12, 1)
    index = VA >> 12 & 511
    assert shadowwalk.find_last_sptep(guest.vcpu, VA) == table.spt + 8 * index
    assert shadowwalk.find_last_sptep(guest.vcpu, VA + 0x1000) == table.spt + 8 * (index + 1)
    assert shadowwalk.find_last_sptep(guest.vcpu, VA + 0x20000) == table.spt + 8 * (index + 0x20)
    # Nothing of VB's has been mirrored: the walk ends in the directory.
    directory = page_of(guest.world, guest.tables.entry(VA, 3) >> 12 & 0xFFFFF, 2)
    assert shadowwalk.find_last_sptep(guest.vcpu, VB) == directory.spt + 8 * (VB >> 21 & 511)


def test_without_a_root_there_is_no_last_entry() -> None:
    assert shadowwalk.find_last_sptep(Guest().vcpu, VA) == 0


def test_flood_counts_are_cleared_on_the_way_and_nowhere_else() -> None:
    guest = Guest()
    guest.tables.map(VA, DATA)
    guest.tables.map(VB, DATA)
    guest.read(VA)
    guest.read(VB)
    pages = guest.world.shadow_pages()
    for sp in pages:
        sp.write_flooding_count = 2
    owner = guest.world.frames.owner
    way = [owner(element.hpa >> 12) for element in guest.world.walk(guest.vcpu, VA)]
    assert len(way) == 4
    shadowwalk.clear_flood_counts(guest.vcpu, VA)
    assert all(sp.write_flooding_count == (0 if sp in way else 2) for sp in pages)
    assert len(pages) > 4
    assert guest.vcpu.mode == 0
