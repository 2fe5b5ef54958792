# SPDX-License-Identifier: GPL-2.0-only
"""The ranges of a process's address space: found, cut where something changes, joined again.

Where a border falls into a huge page, the page is split first, between start and end of the notifier chain. Source:
reference section "What a model must supply around KVM".
"""

from __future__ import annotations

from ..addr import Hva, pages_per_level
from ..errors import UserError
from ..intervaltree import IntervalTree
from ..page_types import LEVEL_BITS, PAGE_SHIFT, PAGE_SIZE
from .bits import USER_END
from .frames import FrameAllocator
from .notifier import NotifierChain
from .pagetable import PageTable, hpte_level
from .vma import Vma

# Address bits below a 2M block.
_PMD_MASK = (1 << (PAGE_SHIFT + LEVEL_BITS)) - 1


class Ranges:
    """Ranges (:class:`~kvmmu.host.vma.Vma`) over the frames of ``frames``, with their page table and its notifiers."""

    __slots__ = ("chain", "frames", "last_vma", "places", "table")

    def __init__(self, frames: FrameAllocator) -> None:
        self.frames = frames
        self.places = IntervalTree()
        self.last_vma: Vma | None = None
        self.table = PageTable(frames)
        self.chain = NotifierChain()

    @property
    def vmas(self) -> list[Vma]:
        """All ranges by ascending address."""
        return self.places.owners()

    def find_vma(self, hva: Hva) -> Vma | None:
        """The range that holds ``hva``, or None (unlike the kernel's, which gives the next one instead)."""
        vma = self.last_vma
        if vma is not None and vma.start <= hva < vma.end:
            return vma
        return self._search_vma(hva)

    # What was found is tried first next time.
    def _search_vma(self, hva: Hva) -> Vma | None:
        vma: Vma | None = self.places.find(hva)
        if vma is not None:
            self.last_vma = vma
        return vma

    # The two places where the ranges change.

    def _add_vma(self, vma: Vma) -> None:
        vma.order = self.places.insert(vma.start, vma.end - 1, vma)

    def _remove_vma(self, vma: Vma) -> None:
        self.places.remove(vma.start, vma.order)
        self.last_vma = None

    # The range that holds hva, for calls where a missing one is the caller's mistake.
    def _checked_vma(self, hva: Hva) -> Vma:
        vma = self.find_vma(hva)
        if vma is None:
            raise UserError(f"hva {hva:#x} is not mapped: use addresses that mmap() returned")
        return vma

    # End of a range given by a caller.
    def _checked_end(self, start: Hva, nr_bytes: int) -> Hva:
        if start % PAGE_SIZE or nr_bytes <= 0 or nr_bytes % PAGE_SIZE:
            raise UserError(f"range {start:#x} + {nr_bytes:#x}: start and length must be multiples of 0x1000")
        if start < 0 or start + nr_bytes > USER_END:
            raise UserError(f"range {start:#x} + {nr_bytes:#x}: user addresses end at {USER_END:#x}")
        return Hva(start + nr_bytes)

    # The same of a range that must be mapped from start to end.
    def _mapped_end(self, start: Hva, nr_bytes: int) -> Hva:
        end = self._checked_end(start, nr_bytes)
        hva = start
        while hva < end:
            hva = self._checked_vma(hva).end
        return end

    # Make hva a border between ranges (__split_vma). A page table block that the border falls into is split first,
    # and the chain hears of the whole block, huge or not, where the range covers it and the host has a table for it.
    def _cut(self, hva: Hva) -> None:
        vma = self.find_vma(hva)
        if vma is None or vma.start == hva:
            return
        if hva & _PMD_MASK and vma.covers_block(hva, 2) and self.table.has_pmd_table(hva):
            block = Hva(hva & ~_PMD_MASK)
            self.chain.range_start(block, Hva(block + _PMD_MASK + 1))
            self.table.split(vma, hva)
            self.chain.range_end(block, Hva(block + _PMD_MASK + 1))
        self.table.split(vma, hva)
        pieces = (vma.piece(vma.start, hva), vma.piece(hva, vma.end))
        self._remove_vma(vma)
        for piece in pieces:
            self._add_vma(piece)

    # Let hva, which stays inside its range, no longer lie inside a huge page; the chain hears of its whole block.
    def _split_huge(self, vma: Vma, hva: Hva) -> None:
        if hva == vma.end:
            return
        level = self.mapping_level(hva)
        size = pages_per_level(level) << PAGE_SHIFT
        if hva % size == 0:
            return
        block = Hva(hva - hva % size)
        self.chain.range_start(block, Hva(block + size))
        self.table.split(vma, hva)
        self.chain.range_end(block, Hva(block + size))

    # Cut only the ranges whose protection changes.
    def _cut_changed(self, start: Hva, end: Hva, writable: bool) -> None:
        for hva in (start, end):
            vma = self.find_vma(hva)
            if vma is not None and vma.writable != writable:
                self._cut(hva)

    # Bring the words of a range in line with its new protection, between start and end of the chain.
    def _protect(self, vma: Vma) -> None:
        start = self.table.first_mapped(vma.start, vma.end)
        if start >= vma.end:
            return
        self.chain.range_start(start, vma.end)
        self.table.change_protection(vma)
        self.chain.range_end(start, vma.end)

    # Join those in and beside [start, end) that are neighbours, alike and pieces of one mmap().
    def _merge(self, start: Hva, end: Hva) -> None:
        last: Vma | None = None
        for vma in self.places.overlapping(start - 1, end):
            if (
                last is not None
                and last.end == vma.start
                and last.area_start == vma.area_start
                and last.writable == vma.writable
            ):
                joined = last.piece(last.start, vma.end)
                self._remove_vma(last)
                self._remove_vma(vma)
                self._add_vma(joined)
                last = joined
            else:
                last = vma

    def hpte(self, hva: Hva) -> int:
        """The page table word of ``hva``'s 4K page; 0 when nothing is mapped."""
        vma = self.find_vma(hva)
        if vma is None:
            return 0
        return self.table.load(vma, hva)

    def mapping_level(self, hva: Hva) -> int:
        """Size of the mapping that covers ``hva``: 1 = 4K, 2 = 2M, 3 = 1G; 1 also when there is none."""
        return hpte_level(self.hpte(hva))
