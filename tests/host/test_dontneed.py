# SPDX-License-Identifier: GPL-2.0-only
"""MADV_DONTNEED: pages go, the range stays, the chain hears of it."""

from __future__ import annotations

import pytest

from kvmmu.errors import UserError
from kvmmu.host.frames import FrameAllocator
from kvmmu.host.mm import Mm
from kvmmu.hw.memory import PhysicalMemory

PAGE = 0x1000
HUGE = 0x200_000


class Listener:
    """Notes what the chain is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int, int]] = []

    def invalidate_range_start(self, start: int, end: int) -> None:
        """Note the start."""
        self.heard.append(("start", start, end))

    def invalidate_range_end(self, start: int, end: int) -> None:
        """Note the end."""
        self.heard.append(("end", start, end))


def test_pages_come_back_fresh_and_their_frames_are_free() -> None:
    mm = Mm(FrameAllocator(PhysicalMemory(256)))
    hva = mm.mmap(4 * PAGE, populate=True)
    place = mm.user_access(hva + PAGE, True)
    mm.memory.write(place, b"old")
    free = mm.frames.nr_free
    mm.dontneed(hva + PAGE, 2 * PAGE)
    assert mm.frames.nr_free == free + 2
    assert [mm.hpte(hva + i * PAGE) != 0 for i in range(4)] == [True, False, False, True]
    assert mm.memory.read(mm.user_access(hva + PAGE, False), 3) == bytes(3)
    assert len(mm.vmas) == 1


def test_the_chain_hears_of_the_range_once() -> None:
    mm = Mm(FrameAllocator(PhysicalMemory(256)))
    hva = mm.mmap(4 * PAGE, populate=True)
    listener = Listener()
    mm.chain.register(listener)
    mm.dontneed(hva, PAGE)
    assert listener.heard == [("start", hva, hva + PAGE), ("end", hva, hva + PAGE)]


def test_a_huge_page_is_split_where_the_range_ends_in_it() -> None:
    mm = Mm(FrameAllocator(PhysicalMemory(2048)))
    hva = mm.mmap(HUGE, page_level=2, populate=True)
    kept = mm.user_access(hva + 8 * PAGE, False)
    listener = Listener()
    mm.chain.register(listener)
    mm.dontneed(hva + 4 * PAGE, 2 * PAGE)
    assert listener.heard[0] == ("start", hva + 4 * PAGE, hva + 6 * PAGE)
    assert ("start", hva, hva + HUGE) in listener.heard
    assert mm.mapping_level(hva) == 1
    assert mm.hpte(hva + 4 * PAGE) == 0
    assert mm.user_access(hva + 8 * PAGE, False) == kept


def test_a_whole_huge_page_goes_without_a_split() -> None:
    mm = Mm(FrameAllocator(PhysicalMemory(2048)))
    hva = mm.mmap(2 * HUGE, page_level=2, populate=True)
    free = mm.frames.nr_free
    listener = Listener()
    mm.chain.register(listener)
    mm.dontneed(hva, HUGE)
    assert listener.heard == [("start", hva, hva + HUGE), ("end", hva, hva + HUGE)]
    assert mm.frames.nr_free == free + 512
    assert mm.mapping_level(hva + HUGE) == 2


def test_a_range_with_a_hole_is_refused() -> None:
    mm = Mm(FrameAllocator(PhysicalMemory(256)))
    hva = mm.mmap(2 * PAGE)
    with pytest.raises(UserError, match="is not mapped"):
        mm.dontneed(hva, 3 * PAGE)
