# SPDX-License-Identifier: GPL-2.0-only
"""The process's page table: one word per 4K page of each range, whatever the size of the mapping that covers it.

======  ====================================================================================
bits    meaning of an hpte (0: nothing is mapped)
======  ====================================================================================
0       ``HPTE_PRESENT``
1       ``HPTE_WRITABLE``: a write needs no fault
3-4     level of the mapping: 1 = 4K, 2 = 2M, 3 = 1G
12-51   pfn of this 4K page (of a huge page: of the 4K piece of it that lies here)
======  ====================================================================================

Each mapping holds one reference to its page, except mappings of the zero page and of the huge zero page. The words
lie in the ranges (``vma``); which tables a real host would have allocated above them is kept here, because the
notifier chain hears of some changes only where there are tables. Both are shared, and touched here alone, past the
gate: an operation announces every 2M block that it is about to touch, then touches, so that a huge page comes and goes
at once. Source: reference section "What a model must supply around KVM".
"""

from __future__ import annotations

from collections.abc import Sequence

from ..addr import Address, Hva, Pfn, hpa_to_pfn, pages_per_level
from ..page_types import LEVEL_BITS, PAGE_SHIFT
from .bits import HPTE_LEVEL_SHIFT, HPTE_PFN_MASK, HPTE_PRESENT, HPTE_WRITABLE, NO_PFN
from .frames import FrameAllocator
from .vma import Vma

_HPTE_LEVEL_ONE = 1 << HPTE_LEVEL_SHIFT
# Address bits below a 2M and a 1G block.
_PMD_SHIFT = PAGE_SHIFT + LEVEL_BITS
_PUD_SHIFT = PAGE_SHIFT + 2 * LEVEL_BITS
_PMD_MASK = (1 << _PMD_SHIFT) - 1


def hpte_level(hpte: int) -> int:
    """Size of the mapping that ``hpte`` belongs to: 1 = 4K, 2 = 2M, 3 = 1G; 1 also when nothing is mapped."""
    if hpte == 0:
        return 1
    return (hpte >> HPTE_LEVEL_SHIFT) & 3


def hpte_to_pfn(hpte: Address) -> Pfn:
    """The frame of the 4K page that ``hpte`` maps."""
    return hpa_to_pfn(hpte & HPTE_PFN_MASK)


class PageTable:
    """The mappings of one address space over the frames of ``frames``. Who maps and unmaps tells the chain.

    ``has_huge_zero``: what is only read of a huge page is backed by the huge zero page (Linux's
    ``transparent_hugepage/use_zero_page``; off unless set), whose first frame is ``huge_zero_pfn``, NO_PFN until the
    first is wanted.
    """

    __slots__ = ("frames", "gate", "has_huge_zero", "huge_zero_pfn", "pmd_tables", "pte_tables")

    def __init__(self, frames: FrameAllocator) -> None:
        self.frames = frames
        self.gate = frames.memory.gate
        self.has_huge_zero = False
        self.huge_zero_pfn = NO_PFN
        self.pte_tables: set[int] = set()
        self.pmd_tables: set[int] = set()

    def is_zero_page(self, hpte: int) -> bool:
        """Whether a present ``hpte`` maps the zero page, or a piece of the huge one."""
        pfn = hpte_to_pfn(hpte)
        return pfn == self.frames.zero_pfn or self.is_huge_zero(hpte)

    def is_huge_zero(self, hpte: int) -> bool:
        """Whether a present ``hpte`` maps a piece of the huge zero page."""
        pfn = hpte_to_pfn(hpte)
        first = self.huge_zero_pfn
        return first != NO_PFN and first <= pfn < first + 512

    def load(self, vma: Vma, hva: Hva) -> int:
        """The word of the 4K page at ``hva``, which lies in ``vma``."""
        if self.gate.armed:
            self.announce("read", hva, hva)
        return vma.hptes[(hva - vma.start) >> PAGE_SHIFT]  # type: ignore[no-any-return]  # words of an array made on demand

    def announce(self, kind: str, first: int, last: int) -> int:
        """Tell the checker of the words of each 2M block from ``first`` to ``last``; the gate is armed. Return 0."""
        for block in range(first >> _PMD_SHIFT, (last >> _PMD_SHIFT) + 1):
            self.gate.announce(kind, self, ("hptes", block))
        return 0

    def has_pmd_table(self, hva: Hva) -> bool:
        """Whether the 1G block around ``hva`` has a table: anything was mapped there since it was unmapped whole."""
        if self.gate.armed:
            self.announce("read", hva, hva)
        return hva >> _PUD_SHIFT in self.pmd_tables

    def may_map_block(self, hva: Hva, level: int) -> bool:
        """Whether nothing smaller than ``level`` (2 or 3) is or was mapped in the block of that level."""
        if self.gate.armed:
            self.announce("read", hva, hva)
        if level == 3:
            return hva >> _PUD_SHIFT not in self.pmd_tables
        return hva >> _PMD_SHIFT not in self.pte_tables

    def first_mapped(self, start: Hva, end: Hva) -> Hva:
        """The first address in ``[start, end)`` whose 1G block has a table; ``end`` or more when there is none."""
        while start < end and not self.has_pmd_table(start):
            start = Hva(((start >> _PUD_SHIFT) + 1) << _PUD_SHIFT)
        return start

    def map_pages(self, vma: Vma, hva: Hva, hpte: int, level: int) -> int:
        """Write the words of one mapping of ``level``; the block at ``hva`` is aligned to its size."""
        if self.gate.armed:
            self.announce("write", hva, hva + (pages_per_level(level) << PAGE_SHIFT) - 1)
        self.pmd_tables.add(hva >> _PUD_SHIFT)
        if level == 1:
            self.pte_tables.add(hva >> _PMD_SHIFT)
        index = (hva - vma.start) >> PAGE_SHIFT
        hpte |= level << HPTE_LEVEL_SHIFT
        for i in range(pages_per_level(level)):
            vma.hptes[index + i] = hpte + (i << PAGE_SHIFT)
        return 0

    def split(self, vma: Vma, hva: Hva) -> int:
        """Let 512 mappings of the next smaller size take the place of each huge one that a border at ``hva`` cuts.

        ``hva`` lies in ``vma``. Each piece holds a reference to the block, which so stays until the last is gone.
        """
        while True:
            child = hpte_level(self.load(vma, hva)) - 1
            if child == 0 or hva & ((pages_per_level(child + 1) << PAGE_SHIFT) - 1) == 0:
                return 0
            nr = pages_per_level(child + 1)
            first = hva & ~((nr << PAGE_SHIFT) - 1)
            if self.gate.armed:
                self.announce("write", first, first + (nr << PAGE_SHIFT) - 1)
            index = (first - vma.start) >> PAGE_SHIFT
            hpte = vma.hptes[index]
            if child == 1:
                self.pte_tables.add(hva >> _PMD_SHIFT)
            if self.is_huge_zero(hpte):
                # Its pieces are no pages of their own: the small zero page takes their place.
                hpte = (self.frames.zero_pfn << PAGE_SHIFT) | HPTE_PRESENT | _HPTE_LEVEL_ONE
                for i in range(nr):
                    vma.hptes[index + i] = hpte
                return 0
            self.frames.get_many(hpte_to_pfn(hpte), 511)
            # The level field of a huge mapping is one more than that of its pieces.
            for i in range(nr):
                vma.hptes[index + i] -= _HPTE_LEVEL_ONE

    def change_protection(self, vma: Vma) -> int:
        """Bring the words of ``vma`` in line with its protection.

        Every page but the zero page belongs to this address space alone, and so becomes writable without a fault.
        """
        hva = self.next_block(vma, vma.start, vma.end)
        while hva < vma.end:
            stop = min(vma.end, (hva | _PMD_MASK) + 1)
            if self.gate.armed:
                self.announce("write", hva, hva)
            for i in range((hva - vma.start) >> PAGE_SHIFT, (stop - vma.start) >> PAGE_SHIFT):
                hpte = vma.hptes[i]
                if hpte & HPTE_PRESENT and not self.is_zero_page(hpte):
                    vma.hptes[i] = hpte | HPTE_WRITABLE if vma.writable else hpte & ~HPTE_WRITABLE
            hva = self.next_block(vma, stop, vma.end)
        return 0

    def unmap(self, vma: Vma, start: Hva, end: Hva) -> int:
        """Forget the mappings of ``[start, end)``, whose borders cut no huge page, and drop their references.

        Looks only into blocks that have tables: the cost is that of what is or was mapped.
        """
        hva = self.next_block(vma, start, end)
        while hva < end:
            stop = min(end, (hva | _PMD_MASK) + 1)
            if self.gate.armed:
                self.announce("write", hva, self._last_with(vma, hva))
            first = (hva - vma.start) >> PAGE_SHIFT
            nr = (stop - vma.start) >> PAGE_SHIFT
            i = first
            while i < nr:
                hpte = vma.hptes[i]
                level = 1
                if hpte & HPTE_PRESENT:
                    level = (hpte >> HPTE_LEVEL_SHIFT) & 3
                    if not self.is_zero_page(hpte):
                        self.frames.put(hpte_to_pfn(hpte))
                i += pages_per_level(level)
            # A 1G page reaches beyond its first 2M block.
            for j in range(first, i):
                vma.hptes[j] = 0
            hva = self.next_block(vma, vma.start + (i << PAGE_SHIFT), end)
        return 0

    # The last address whose word goes together with that of hva: of the same block, or of the 1G page that begins here.
    def _last_with(self, vma: Vma, hva: int) -> int:
        if hpte_level(vma.hptes[(hva - vma.start) >> PAGE_SHIFT]) < 3:
            return hva
        return hva + (pages_per_level(3) << PAGE_SHIFT) - 1

    def next_block(self, vma: Vma, start: int, end: int) -> int:
        """The first hva in ``[start, end)`` whose 2M block may have mappings of ``vma``; ``end`` or more: none has.

        It is ``start`` or the beginning of a block. What has no table costs a step for each GiB.
        """
        hva = start
        while hva < end:
            if self.gate.armed:
                self.announce("read", hva, hva)
            if hva >> _PUD_SHIFT not in self.pmd_tables:
                hva = ((hva >> _PUD_SHIFT) + 1) << _PUD_SHIFT
            elif hva >> _PMD_SHIFT in self.pte_tables or vma.hptes[(hva - vma.start) >> PAGE_SHIFT] & HPTE_PRESENT:
                return hva
            else:
                hva = ((hva >> _PMD_SHIFT) + 1) << _PMD_SHIFT
        return hva

    def free_tables(self, gone: Sequence[Vma], kept: Sequence[Vma]) -> None:
        """Drop the tables under the ranges ``gone`` whose whole block none of the ranges ``kept`` uses any more."""
        for tables, shift in ((self.pte_tables, _PMD_SHIFT), (self.pmd_tables, _PUD_SHIFT)):
            for vma in gone:
                blocks = range(vma.start >> shift, (vma.end - 1 >> shift) + 1)
                # Whichever is shorter: the blocks of the range, or the tables that there are.
                few, many = (blocks, tables) if len(blocks) < len(tables) else (tables, blocks)
                for block in [block for block in few if block in many]:
                    is_whole = vma.start <= block << shift and (block + 1) << shift <= vma.end
                    if is_whole or not _is_block_used(block, shift, kept):
                        if self.gate.armed:
                            self.announce("write", block << shift, block << shift)
                        tables.discard(block)


# Whether any range overlaps the block.
def _is_block_used(block: int, shift: int, vmas: Sequence[Vma]) -> bool:
    return any(vma.start < (block + 1) << shift and block << shift < vma.end for vma in vmas)
