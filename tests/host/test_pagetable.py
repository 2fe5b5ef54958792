# SPDX-License-Identifier: GPL-2.0-only
"""The process's page table: huge pages that a border cuts, references, protection."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Self

import pytest

from host.spaces import G1, M2, make, pfn_of
from kvmmu.host.bits import VM_FAULT_OK
from kvmmu.host.mm import Mm
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


class Watcher:
    """Hears of every access to the page table, and looks at it each time."""

    def __init__(self, mm: Mm, look: Callable[[], object]) -> None:
        self.mm = mm
        self.look = look
        self.heard: list[tuple[str, int]] = []
        self.seen: list[object] = []

    def point(self, kind: str, where: Any, key: Any) -> None:
        if where is self.mm.table:
            assert key[0] == "hptes"
            self.heard.append((kind, key[1]))
            self.seen.append(self.look())

    def __enter__(self) -> Self:
        self.mm.memory.gate.arm(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.mm.memory.gate.disarm()


def levels_of(mm: Mm, hva: int, nr_bytes: int) -> set[int]:
    """Sizes of the mappings in a range, 0 for none, read past the gate."""
    vma = mm.find_vma(hva)
    assert vma is not None
    first = hva - vma.area_start >> 12
    return {word >> 3 & 3 for word in vma.area[first : first + (nr_bytes >> 12)]}


def test_a_huge_page_comes_and_goes_at_once() -> None:
    mm, _ = make()
    hva = mm.mmap(2 * M2, page_level=2)
    with Watcher(mm, lambda: levels_of(mm, hva, M2)) as watcher:
        mm.fault_in(hva, True)
        mm.dontneed(hva, M2)
    assert levels_of(mm, hva, M2) == {0}
    # Never a part of it.
    assert [seen for i, seen in enumerate(watcher.seen) if i == 0 or seen != watcher.seen[i - 1]] == [{0}, {2}]
    # The end of the range is looked at: does it cut a page there?
    assert set(watcher.heard) == {("read", hva >> 21), ("write", hva >> 21), ("read", (hva >> 21) + 1)}


def test_a_split_changes_all_pieces_at_once() -> None:
    mm, _ = make()
    hva = mm.mmap(M2, page_level=2, populate=True)
    with Watcher(mm, lambda: levels_of(mm, hva, M2)) as watcher:
        mm.mprotect(hva, 0x1000, False)
    assert {frozenset(seen) for seen in watcher.seen} == {frozenset({2}), frozenset({1})}  # type: ignore[call-overload]


def test_a_1g_page_is_announced_whole_before_it_is_touched() -> None:
    mm, _ = make(2 * 512 * 512)
    hva = mm.mmap(G1, page_level=3)
    for act in (lambda: mm.fault_in(hva, True), lambda: mm.dontneed(hva, G1)):
        with Watcher(mm, lambda: None) as watcher:
            act()
        assert {block for kind, block in watcher.heard if kind == "write"} >= set(range(hva >> 21, hva + G1 >> 21))


@pytest.mark.parametrize("call", [
    lambda mm, hva: mm.hpte(hva),
    lambda mm, hva: mm.gup_fast(hva, False),
    lambda mm, hva: mm.user_access(hva, False),
    lambda mm, hva: mm.mapping_level(hva),
])  # fmt: skip
def test_a_lookup_is_one_announced_read(call: Callable[[Mm, int], object]) -> None:
    mm, _ = make()
    hva = mm.mmap(0x2000, populate=True)
    with Watcher(mm, lambda: None) as watcher:
        call(mm, hva + 0x1000)
    assert watcher.heard == [("read", hva >> 21)]


@pytest.mark.parametrize("call", [
    lambda mm, hva: mm.fault_in(hva + 0x3000, True),
    lambda mm, hva: mm.gup(hva + 0x3000, False),
    lambda mm, hva: mm.mprotect(hva, 0x4000, False),
    lambda mm, hva: mm.munmap(hva, 0x4000),
    lambda mm, hva: mm.dontneed(hva, 0x1000),
])  # fmt: skip
def test_a_change_is_announced_as_a_write(call: Callable[[Mm, int], object]) -> None:
    mm, _ = make()
    hva = mm.mmap(0x4000)
    mm.fault_in(hva, True)
    with Watcher(mm, lambda: None) as watcher:
        call(mm, hva)
    assert ("write", hva >> 21) in watcher.heard
