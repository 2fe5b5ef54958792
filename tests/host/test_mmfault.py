# SPDX-License-Identifier: GPL-2.0-only
"""A page fault of the process: what backs a page, how large, and who hears of it."""

from __future__ import annotations

import pytest

from host.spaces import G1, M2, make, pfn_of
from kvmmu.errors import OutOfFrames
from kvmmu.host.bits import NO_PFN


def test_a_read_of_an_anonymous_hole_maps_the_zero_page_read_only_and_tells_nobody() -> None:
    mm, chain = make()
    hva = mm.mmap(0x2000)
    free = mm.frames.nr_free
    pfn = mm.gup(hva, False)
    assert pfn == mm.frames.zero_pfn
    assert mm.hpte(hva) == pfn << 12 | 1 << 3 | 1
    assert mm.frames.nr_refs(pfn) == 2
    assert mm.frames.nr_free == free
    assert mm.gup_fast(hva, True) == NO_PFN
    assert not chain.events


def test_a_write_to_the_zero_page_breaks_cow_between_start_and_end() -> None:
    mm, chain = make()
    hva = mm.mmap(0x2000)
    mm.fault_in(hva, False)
    pfn = mm.gup(hva + 0x123, True)
    assert pfn not in (mm.frames.zero_pfn, NO_PFN)
    assert mm.hpte(hva) == pfn << 12 | 1 << 3 | 3
    assert chain.ranges() == [(hva, hva + 0x1000)]
    assert mm.frames.nr_refs(pfn) == 2
    assert mm.memory.read(pfn << 12, 4096) == bytes(4096)


def test_the_old_page_is_still_mapped_at_start_and_the_new_one_at_end() -> None:
    mm, _ = make()
    hva = mm.mmap(0x1000)
    mm.fault_in(hva, False)
    seen = []

    class Looker:
        def invalidate_range_start(self, start: int, end: int) -> None:
            seen.append(pfn_of(mm, start))

        def invalidate_range_end(self, start: int, end: int) -> None:
            seen.append(pfn_of(mm, start))

    mm.chain.register(Looker())
    new = mm.gup(hva, True)
    assert seen == [mm.frames.zero_pfn, new]


def test_a_write_to_a_hole_maps_a_frame_at_once_and_tells_nobody() -> None:
    mm, chain = make()
    hva = mm.mmap(0x2000)
    pfn = mm.gup(hva + 0x1000, True)
    assert mm.hpte(hva + 0x1FFF) == pfn << 12 | 1 << 3 | 3
    assert mm.hpte(hva) == 0
    assert not chain.events


def test_shared_memory_knows_neither_zero_page_nor_cow() -> None:
    mm, chain = make()
    hva = mm.mmap(0x1000, "shared")
    pfn = mm.gup(hva, False)
    assert pfn != mm.frames.zero_pfn
    assert mm.gup(hva, True) == pfn
    assert not chain.events


def test_a_2m_page_is_installed_where_the_block_lies_in_the_range_and_only_there() -> None:
    mm, _ = make()
    hva = mm.mmap(2 * M2, page_level=2, align=0x1000)
    assert hva % M2 == 0
    odd = mm.mmap(2 * M2, page_level=2, align=0x1000)
    assert odd % M2
    mm.fault_in(hva + 0x12345, True)
    assert mm.mapping_level(hva) == mm.mapping_level(hva + M2 - 1) == 2
    assert mm.mapping_level(hva + M2) == 1
    first = pfn_of(mm, hva)
    assert first % 512 == 0
    assert mm.hpte(hva + 5 * 0x1000) == (first + 5) << 12 | 2 << 3 | 3
    mm.fault_in(odd, True)
    assert mm.mapping_level(odd) == 1
    mm.fault_in(odd - odd % M2 + M2, True)
    assert mm.mapping_level(odd - odd % M2 + M2) == 2


def test_no_huge_page_where_something_smaller_is_mapped() -> None:
    mm, _ = make()
    hva = mm.mmap(M2, page_level=2)
    mm.fault_in(hva + 0x5000, False)
    mm.fault_in(hva, True)
    assert mm.mapping_level(hva) == 1
    assert mm.mapping_level(hva + 0x5000) == 1


def test_a_4k_range_never_gets_huge_pages_and_a_huge_range_falls_back_when_no_block_is_left() -> None:
    mm, _ = make(1030)
    small = mm.mmap(M2, page_level=1, align=M2)
    mm.fault_in(small, True)
    assert mm.mapping_level(small) == 1
    big = mm.mmap(2 * M2, page_level=2)
    mm.fault_in(big, True)
    assert mm.mapping_level(big) == 2
    mm.fault_in(big + M2, True)
    assert mm.mapping_level(big + M2) == 1


def test_a_1g_page_is_installed_and_falls_back_to_2m() -> None:
    mm, _ = make(3 * 512 * 512)
    hva = mm.mmap(3 * G1, "shared", page_level=3)
    mm.fault_in(hva + 0x1234_5678, True)
    assert mm.mapping_level(hva + G1 - 1) == 3
    assert pfn_of(mm, hva) % (512 * 512) == 0
    assert pfn_of(mm, hva + 0x1234_5000) == pfn_of(mm, hva) + 0x12345
    mm.fault_in(hva + G1, True)
    mm.fault_in(hva + 2 * G1, True)
    assert [mm.mapping_level(hva + n * G1) for n in range(3)] == [3, 3, 2]


def test_a_failed_fault_leaves_nothing_behind() -> None:
    mm, _ = make(4)
    hva = mm.mmap(0x4000)
    mm.fault_in(hva, True)
    mm.fault_in(hva + 0x1000, True)
    mm.fault_in(hva + 0x2000, False)
    with pytest.raises(OutOfFrames):
        mm.fault_in(hva + 0x2000, True)
    assert pfn_of(mm, hva + 0x2000) == mm.frames.zero_pfn
    with pytest.raises(OutOfFrames):
        mm.user_access(hva + 0x3000, True)
    assert mm.hpte(hva + 0x3000) == 0
