# SPDX-License-Identifier: GPL-2.0-only
"""The process's page table: huge pages that a border cuts, references, protection."""

from __future__ import annotations

import time

import pytest

from host.spaces import G1, M2, make, pfn_of
from kvmmu.host.bits import VM_FAULT_OK
from kvmmu.host.pagetable import hpte_level


def test_a_border_inside_a_1g_page_leaves_2m_pages_around_it() -> None:
    mm, _ = make(2 * 512 * 512)
    hva = mm.mmap(G1, page_level=3, populate=True)
    first = pfn_of(mm, hva)
    mm.mprotect(hva, M2 + 0x1000, False)
    assert [mm.mapping_level(hva + n) for n in (0, M2, 2 * M2 - 1, 2 * M2)] == [2, 1, 1, 2]
    assert pfn_of(mm, hva + M2 + 0x3000) == first + 512 + 3
    assert mm.frames.nr_refs(first) == 511 + 512
    mm.munmap(hva, G1)
    assert mm.frames.nr_refs(first) == 0


def test_munmap_of_a_part_cuts_the_huge_page_and_keeps_the_rest() -> None:
    mm, chain = make()
    hva = mm.mmap(2 * M2, page_level=2, populate=True)
    first, free = pfn_of(mm, hva), mm.frames.nr_free
    mm.munmap(hva + 0x10_0000, 0x1000)
    # Both borders lie in the block: it is announced for the first; for the second the range no longer covers it.
    assert chain.ranges() == [(hva, hva + M2), (hva + 0x10_0000, hva + 0x10_1000)]
    assert mm.find_vma(hva + 0x10_0000) is None
    assert pfn_of(mm, hva + 0x10_1000) == first + 0x101
    assert [mm.mapping_level(hva + n) for n in (0, 0x10_1000, M2)] == [1, 1, 2]
    assert mm.frames.nr_refs(first) == 511
    assert mm.frames.nr_free == free
    assert mm.table.pte_tables == {hva >> 21}
    mm.munmap(hva, 2 * M2)
    assert mm.frames.nr_refs(first) == 0
    assert mm.frames.nr_free == free + 1024


def test_a_page_made_writable_again_needs_no_fault_but_the_zero_page_does() -> None:
    mm, chain = make()
    hva = mm.mmap(0x2000)
    mm.fault_in(hva, True)
    mm.mprotect(hva, 0x2000, False)
    mm.fault_in(hva + 0x1000, False)
    mm.mprotect(hva, 0x2000, True)
    assert [mm.hpte(hva) & 3, mm.hpte(hva + 0x1000) & 3] == [3, 1]
    chain.events.clear()
    mm.gup(hva + 0x1000, True)
    assert chain.ranges() == [(hva + 0x1000, hva + 0x2000)]


def test_a_frame_that_somebody_holds_survives_munmap() -> None:
    mm, _ = make()
    hva = mm.mmap(0x1000)
    pfn = mm.gup(hva, True)
    mm.munmap(hva, 0x1000)
    assert mm.frames.nr_refs(pfn) == 1
    mm.frames.put(pfn)
    assert mm.frames.nr_refs(pfn) == 0


@pytest.mark.parametrize(
    ("hpte", "level"), [(0, 1), (0x1000 | 1 << 3 | 1, 1), (2 << 3 | 3, 2), (0x4000_0000 | 3 << 3 | 1, 3)]
)
def test_an_entry_knows_the_size_of_its_mapping(hpte: int, level: int) -> None:
    assert hpte_level(hpte) == level


def test_tables_are_known_by_the_blocks_that_they_map_until_nothing_uses_them() -> None:
    mm, _ = make(3 * 512 * 512)
    hva = mm.mmap(2 * G1, page_level=3)
    table = mm.table
    assert (table.has_pmd_table(hva), table.may_map_block(hva, 3), table.first_mapped(hva, hva + 2 * G1)) == (
        False, True, hva + 2 * G1,
    )  # fmt: skip
    assert mm.fault_in(hva + G1 + M2, True) == VM_FAULT_OK
    assert table.first_mapped(hva, hva + 2 * G1) == hva + G1
    assert (table.has_pmd_table(hva + G1), table.may_map_block(hva + G1, 3)) == (True, False)
    # A 1G page has no table of 4K entries below it.
    assert table.may_map_block(hva + G1, 2)
    mm.munmap(hva, 2 * G1)
    assert (table.pmd_tables, table.pte_tables) == (set(), set())


def test_munmap_of_a_sparse_range_costs_what_is_mapped() -> None:
    mm, _ = make()
    free = mm.frames.nr_free
    nr_bytes = 1 << 40
    hva = mm.mmap(nr_bytes)
    for place in (0, 7 * G1 + M2 - 0x1000, 7 * G1 + M2, nr_bytes - 0x1000):
        mm.fault_in(hva + place, True)
    assert mm.frames.nr_free == free - 4
    started = time.process_time()
    mm.munmap(hva, nr_bytes)
    # A step for each page would be 268 million.
    assert time.process_time() - started < 1
    assert mm.frames.nr_free == free
    assert not mm.table.pte_tables
    assert not mm.table.pmd_tables


def test_ranges_that_do_not_fit_above_go_below_and_all_stay_in_order() -> None:
    mm, _ = make()
    first = mm.mmap(0x1000)
    big = [mm.mmap(1 << 40) for _ in range(3)]
    assert big[0] < big[1] < big[2] < first
    assert [vma.start for vma in mm.vmas] == sorted(vma.start for vma in mm.vmas)
    assert mm.mmap(0x1000) > first
    for hva in big:
        mm.fault_in(hva + (1 << 40) - 0x1000, True)
        assert mm.hpte(hva + (1 << 40) - 0x1000)
        mm.munmap(hva, 1 << 40)
    assert mm.find_vma(big[1]) is None
