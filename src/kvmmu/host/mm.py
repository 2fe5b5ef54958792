# SPDX-License-Identifier: GPL-2.0-only
"""The address space of the process that owns the VM: its ranges, its page table, its faults.

An address is backed when it is first used (or at once, ``populate``), by 4K, 2M or 1G pages as the range allows. The
host's own page table is kept as one word per 4K page of each range, whatever the size of the mapping that covers it:

======  ====================================================================================
bits    meaning of an hpte (0: nothing is mapped)
======  ====================================================================================
0       ``HPTE_PRESENT``
1       ``HPTE_WRITABLE``: a write needs no fault
3-4     level of the mapping: 1 = 4K, 2 = 2M, 3 = 1G
12-51   pfn of this 4K page (of a huge page: of the 4K piece of it that lies here)
======  ====================================================================================

Anonymous memory that is read before it is written maps the shared zero page, read-only; the first write replaces it
by a frame of its own (copy on write) between ``invalidate_range_start`` and ``invalidate_range_end`` of everyone on
the notifier chain. Filling a hole tells nobody. Shared (file) memory has neither zero page nor copy on write.

Each mapping holds one reference to its page, except mappings of the zero page. Sources: reference sections
"MMU notifiers" and "What a model must supply around KVM".
"""

from __future__ import annotations

from typing import Protocol

from ..addr import Hpa, Hva, Pfn, page_offset, pages_per_level
from ..errors import OutOfFrames, UserError
from ..page_types import LEVEL_BITS, PAGE_SHIFT, PAGE_SIZE
from .bits import (
    GUP_NO_VMA,
    GUP_READ_ONLY,
    HPTE_LEVEL_SHIFT,
    HPTE_PFN_MASK,
    HPTE_PRESENT,
    HPTE_WRITABLE,
    MMAP_BASE,
    NO_HPA,
    NO_PFN,
    USER_END,
    VM_FAULT_NO_VMA,
    VM_FAULT_READ_ONLY,
)
from .frames import FrameAllocator, zeroed_array

_HPTE_LEVEL_ONE = 1 << HPTE_LEVEL_SHIFT
# Address bits below a 2M and a 1G block.
_PMD_SHIFT = PAGE_SHIFT + LEVEL_BITS
_PUD_SHIFT = PAGE_SHIFT + 2 * LEVEL_BITS
_PMD_MASK = (1 << _PMD_SHIFT) - 1


class Notifier(Protocol):
    """Who wants to hear before and after the host changes what is mapped in ``[start, end)``."""

    def invalidate_range_start(self, start: Hva, end: Hva) -> object:
        """Stop using every frame found through the range."""

    def invalidate_range_end(self, start: Hva, end: Hva) -> object:
        """The change is made; the range may be looked up again."""


class Vma:
    """One range of the address space with one protection and one kind of backing."""

    __slots__ = ("area", "area_start", "backing", "end", "hptes", "page_level", "start", "writable")

    def __init__(self, start: Hva, end: Hva, backing: str, page_level: int, hptes: memoryview | None = None) -> None:
        self.start = start
        self.end = end
        self.backing = backing
        self.page_level = page_level
        self.writable = True
        self.area_start = start
        self.area = zeroed_array("Q", (end - start) >> PAGE_SHIFT) if hptes is None else hptes
        self.hptes = self.area

    def piece(self, start: Hva, end: Hva) -> Vma:
        """A range of the same mmap() with this one's attributes and the page table of ``[start, end)``."""
        first = (start - self.area_start) >> PAGE_SHIFT
        hptes = self.area[first : first + ((end - start) >> PAGE_SHIFT)]
        vma = Vma(start, end, self.backing, self.page_level, hptes)
        vma.writable = self.writable
        vma.belong_to(self)
        return vma

    def belong_to(self, other: Vma) -> int:
        """Share the page table of the whole mmap() that ``other`` is a piece of."""
        self.area_start = other.area_start
        self.area = other.area
        return 0

    def is_anonymous(self) -> bool:
        """Whether reads may see the zero page and writes may copy."""
        return self.backing == "anonymous"

    def covers_block(self, hva: Hva, level: int) -> bool:
        """Whether the naturally aligned block of ``level`` around ``hva`` lies inside."""
        mask = (pages_per_level(level) << PAGE_SHIFT) - 1
        return self.start <= hva & ~mask and (hva | mask) < self.end

    def __repr__(self) -> str:
        access = "rw" if self.writable else "r-"
        return f"<Vma {self.start:#x}-{self.end:#x} {access} {self.backing} level {self.page_level}>"


class Mm:
    """One process's address space over the frames of ``frames``."""

    __slots__ = (
        "frames",
        "last_vma",
        "memory",
        "next_hva",
        "notifiers",
        "pmd_tables",
        "pte_tables",
        "vmas",
    )

    def __init__(self, frames: FrameAllocator) -> None:
        self.frames = frames
        self.memory = frames.memory
        self.vmas: list[Vma] = []
        self.last_vma: Vma | None = None
        self.notifiers: list[Notifier] = []
        self.next_hva = MMAP_BASE
        self.pte_tables: set[int] = set()
        self.pmd_tables: set[int] = set()

    # ------------------------------------------------------------------------------------------- the ranges

    def mmap(
        self, nr_bytes: int, backing: str = "anonymous", page_level: int = 1, populate: bool = False, align: int = 0
    ) -> Hva:
        """Reserve ``nr_bytes`` of writable address space and return its first address.

        ``backing`` is ``anonymous`` or ``shared``; ``page_level`` the largest page that a fault may install (1 = 4K,
        2 = 2M, 3 = 1G); ``populate`` backs everything at once; ``align`` is a power of two, by default the size of
        the largest page. :class:`UserError` names what no mmap() accepts; :class:`OutOfFrames` while populating.
        """
        if backing not in ("anonymous", "shared"):
            raise UserError(f"backing {backing!r}: use 'anonymous' or 'shared'")
        if page_level not in (1, 2, 3):
            raise UserError(f"page_level {page_level}: use 1 (4K), 2 (2M) or 3 (1G)")
        if nr_bytes <= 0 or nr_bytes % PAGE_SIZE:
            raise UserError(f"mmap of {nr_bytes:#x} bytes: the length must be a positive multiple of 0x1000")
        align = align or pages_per_level(page_level) * PAGE_SIZE
        if align < PAGE_SIZE or align & (align - 1):
            raise UserError(f"align {align:#x}: use a power of two of at least 0x1000")
        start = Hva((self.next_hva + align - 1) // align * align)
        end = Hva(start + nr_bytes)
        if end > USER_END:
            raise UserError(f"mmap of {nr_bytes:#x} bytes at {start:#x}: user addresses end at {USER_END:#x}")
        vma = Vma(start, end, backing, page_level)
        self.vmas.append(vma)
        # A page between two mappings, so that running off the end of one is seen.
        self.next_hva = Hva(end + PAGE_SIZE)
        if populate:
            self.populate(start, nr_bytes)
        return start

    def populate(self, start: Hva, nr_bytes: int) -> None:
        """Back ``[start, start + nr_bytes)`` as a write (in a read-only range: a read) of each page would.

        :class:`UserError` where nothing is mapped, :class:`OutOfFrames` when memory ends.
        """
        hva = start
        while hva < start + nr_bytes:
            vma = self._checked_vma(hva)
            self.fault_in(hva, vma.writable)
            size = pages_per_level(self.mapping_level(hva)) * PAGE_SIZE
            hva = Hva(hva // size * size + size)

    def munmap(self, start: Hva, nr_bytes: int) -> None:
        """Take ``[start, start + nr_bytes)`` out of the address space; the chain hears of it first.

        :class:`UserError` unless the range is page aligned and holds something.
        """
        end = self._checked_end(start, nr_bytes)
        if not any(vma.start < end and start < vma.end for vma in self.vmas):
            raise UserError(f"munmap of {start:#x}-{end:#x}: nothing is mapped there")
        self._cut(start)
        self._cut(end)
        gone = [vma for vma in self.vmas if start <= vma.start and vma.end <= end]
        self.range_start(start, end)
        for vma in gone:
            self._unmap(vma)
        self.vmas[:] = [vma for vma in self.vmas if not (start <= vma.start and vma.end <= end)]
        self.last_vma = None
        self._free_tables(gone)
        self.range_end(start, end)

    def dontneed(self, start: Hva, nr_bytes: int) -> None:
        """Forget what ``[start, start + nr_bytes)`` holds (``MADV_DONTNEED``): the next access finds it fresh.

        The chain hears of the part in each range of the address space, and within that of each huge page that a
        border splits. :class:`UserError` unless all of the page-aligned range is mapped.
        """
        end = self._checked_end(start, nr_bytes)
        hva = start
        while hva < end:
            hva = self._checked_vma(hva).end
        for vma in self.vmas:
            first, last = max(start, vma.start), min(end, vma.end)
            if first >= last:
                continue
            self.range_start(first, last)
            self._split_huge(vma, first)
            self._split_huge(vma, last)
            self._unmap_pages(vma, first, last)
            self.range_end(first, last)

    def mprotect(self, start: Hva, nr_bytes: int, writable: bool) -> None:
        """Allow or forbid writes to ``[start, start + nr_bytes)``.

        The chain hears of each 2M block that a new border cuts (where the host has tables), then of the part of each
        range from the first 1G block with anything mapped. Pages that became writable need no fault for a write,
        except the zero page. Neighbouring pieces of one mmap() with the same protection become one range again.
        :class:`UserError` unless all of the page-aligned range is mapped.
        """
        end = self._checked_end(start, nr_bytes)
        hva = start
        while hva < end:
            hva = self._checked_vma(hva).end
        self._cut_changed(start, end, writable)
        for vma in self.vmas:
            if start <= vma.start and vma.end <= end and vma.writable != writable:
                vma.writable = writable
                self._protect(vma)
        self._merge()

    def find_vma(self, hva: Hva) -> Vma | None:
        """The range that holds ``hva``, or None (unlike the kernel's, which gives the next one instead)."""
        vma = self.last_vma
        if vma is not None and vma.start <= hva < vma.end:
            return vma
        return self._search_vma(hva)

    # By bisection; what was found is tried first next time.
    def _search_vma(self, hva: Hva) -> Vma | None:
        low = 0
        high = len(self.vmas)
        while low < high:
            middle = (low + high) >> 1
            vma = self.vmas[middle]
            if hva < vma.start:
                high = middle
            elif hva >= vma.end:
                low = middle + 1
            else:
                self.last_vma = vma
                return vma
        return None

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
        return Hva(start + nr_bytes)

    # Make hva a border between ranges (__split_vma). A page table block that the border falls into is split first,
    # and the chain hears of the whole block, huge or not, where the range covers it and the host has a table for it.
    def _cut(self, hva: Hva) -> None:
        vma = self.find_vma(hva)
        if vma is None or vma.start == hva:
            return
        if hva & _PMD_MASK and vma.covers_block(hva, 2) and hva >> _PUD_SHIFT in self.pmd_tables:
            block = Hva(hva & ~_PMD_MASK)
            self.range_start(block, Hva(block + _PMD_MASK + 1))
            self._split_mapping(vma, hva)
            self.range_end(block, Hva(block + _PMD_MASK + 1))
        self._split_mapping(vma, hva)
        index = self.vmas.index(vma)
        self.vmas[index : index + 1] = [vma.piece(vma.start, hva), vma.piece(hva, vma.end)]
        self.last_vma = None

    # Let hva, which stays inside its range, no longer lie inside a huge page; the chain hears of its whole block.
    def _split_huge(self, vma: Vma, hva: Hva) -> None:
        if hva == vma.end:
            return
        level = self.mapping_level(hva)
        size = pages_per_level(level) << PAGE_SHIFT
        if hva % size == 0:
            return
        block = Hva(hva - hva % size)
        self.range_start(block, Hva(block + size))
        self._split_mapping(vma, hva)
        self.range_end(block, Hva(block + size))

    # Cut only the ranges whose protection changes.
    def _cut_changed(self, start: Hva, end: Hva, writable: bool) -> None:
        for hva in (start, end):
            vma = self.find_vma(hva)
            if vma is not None and vma.writable != writable:
                self._cut(hva)

    # Join neighbours that are alike and pieces of one mmap().
    def _merge(self) -> None:
        merged: list[Vma] = []
        last: Vma | None = None
        for vma in self.vmas:
            if (
                last is not None
                and last.end == vma.start
                and last.area_start == vma.area_start
                and last.writable == vma.writable
            ):
                merged.pop()
                last = last.piece(last.start, vma.end)
            else:
                last = vma
            merged.append(last)
        self.vmas[:] = merged
        self.last_vma = None

    # ------------------------------------------------------------------------------------- the notifier chain

    def register(self, notifier: Notifier) -> None:
        """Add ``notifier`` to the chain."""
        self.notifiers.append(notifier)

    def unregister(self, notifier: Notifier) -> None:
        """Take ``notifier`` off the chain; :class:`UserError` if it is not on it."""
        if notifier not in self.notifiers:
            raise UserError(f"{notifier!r} is not registered with this address space")
        self.notifiers.remove(notifier)

    def range_start(self, start: Hva, end: Hva) -> None:
        """Tell the chain that what is mapped in ``[start, end)`` is about to change."""
        for notifier in self.notifiers:
            notifier.invalidate_range_start(start, end)

    def range_end(self, start: Hva, end: Hva) -> None:
        """Tell the chain that the change announced by :meth:`range_start` is made."""
        for notifier in self.notifiers:
            notifier.invalidate_range_end(start, end)

    # ------------------------------------------------------------------------------------------- lookups

    def hpte(self, hva: Hva) -> int:
        """The page table word of ``hva``'s 4K page; 0 when nothing is mapped."""
        vma = self.find_vma(hva)
        if vma is None:
            return 0
        return vma.hptes[(hva - vma.start) >> PAGE_SHIFT]

    def mapping_level(self, hva: Hva) -> int:
        """Size of the mapping that covers ``hva``: 1 = 4K, 2 = 2M, 3 = 1G; 1 also when there is none."""
        hpte = self.hpte(hva)
        if hpte == 0:
            return 1
        return (hpte >> HPTE_LEVEL_SHIFT) & 3

    def gup_fast(self, hva: Hva, write: bool) -> Pfn:
        """The frame behind ``hva`` with a reference taken, if it is mapped and permits the access; else ``NO_PFN``."""
        hpte = self.hpte(hva)
        if hpte & HPTE_PRESENT == 0 or (write and hpte & HPTE_WRITABLE == 0):
            return NO_PFN  # type: ignore[return-value]
        pfn = (hpte & HPTE_PFN_MASK) >> PAGE_SHIFT
        self.frames.get(pfn)  # type: ignore[arg-type]
        return pfn  # type: ignore[return-value]

    def gup(self, hva: Hva, write: bool) -> Pfn:
        """The frame behind ``hva`` with a reference taken; faults it in, and breaks copy on write for a write.

        ``GUP_NO_VMA`` or ``GUP_READ_ONLY`` (both at least ``GUP_ERRORS``) when that is impossible;
        :class:`OutOfFrames` when memory ends. The chain may be called.
        """
        pfn = self.gup_fast(hva, write)
        if pfn != NO_PFN:
            return pfn
        fault = self.fault_in(hva, write)
        if fault == VM_FAULT_NO_VMA:
            return GUP_NO_VMA  # type: ignore[return-value]
        if fault == VM_FAULT_READ_ONLY:
            return GUP_READ_ONLY  # type: ignore[return-value]
        return self.gup_fast(hva, write)

    def user_access(self, hva: Hva, write: bool) -> Hpa:
        """Physical address of the byte at ``hva`` for a copy from or to user memory; faults it in.

        ``NO_HPA`` when the process itself could not make that access. No reference is taken.
        """
        vma = self.find_vma(hva)
        if vma is None:
            return NO_HPA  # type: ignore[return-value]
        hpte = vma.hptes[(hva - vma.start) >> PAGE_SHIFT]
        if hpte & HPTE_PRESENT == 0 or (write and hpte & HPTE_WRITABLE == 0):
            if self.fault_in(hva, write) != 0:
                return NO_HPA  # type: ignore[return-value]
            hpte = self.hpte(hva)
        return (hpte & HPTE_PFN_MASK) | page_offset(hva)  # type: ignore[return-value]

    # ------------------------------------------------------------------------------------------- faults

    def fault_in(self, hva: Hva, write: bool) -> int:
        """Do what a page fault of the process does: ``VM_FAULT_OK``, ``VM_FAULT_NO_VMA`` or ``VM_FAULT_READ_ONLY``.

        :class:`OutOfFrames` when memory ends.
        """
        vma = self.find_vma(hva)
        if vma is None:
            return VM_FAULT_NO_VMA
        if write and not vma.writable:
            return VM_FAULT_READ_ONLY
        hpte = vma.hptes[(hva - vma.start) >> PAGE_SHIFT]
        if hpte & HPTE_PRESENT == 0:
            return self._fill_hole(vma, hva, write)
        if write and hpte & HPTE_WRITABLE == 0:
            return self._break_cow(vma, hva)
        return 0

    # Back a page that nothing backs yet, as large as allowed.
    def _fill_hole(self, vma: Vma, hva: Hva, write: bool) -> int:
        if vma.is_anonymous() and not write:
            return self._map(vma, hva, (self.frames.zero_pfn << PAGE_SHIFT) | HPTE_PRESENT, 1)
        level = vma.page_level
        while level > 1:
            if self._try_map_block(vma, hva, level):
                return 0
            level -= 1
        hpte = (self.frames.alloc_zeroed() << PAGE_SHIFT) | HPTE_PRESENT
        return self._map(vma, hva, hpte | (HPTE_WRITABLE if vma.writable else 0), 1)

    # A huge page, if its whole block is free of smaller ones and lies in the range; declines when no block is left.
    def _try_map_block(self, vma: Vma, hva: Hva, level: int) -> bool:
        if not vma.covers_block(hva, level):
            return False
        if level == 3 and hva >> _PUD_SHIFT in self.pmd_tables:
            return False
        if level == 2 and hva >> _PMD_SHIFT in self.pte_tables:
            return False
        try:
            first = self.frames.alloc_block_zeroed(level)
        except OutOfFrames:
            return False
        hpte = (first << PAGE_SHIFT) | HPTE_PRESENT | (HPTE_WRITABLE if vma.writable else 0)
        self._map(vma, hva & ~((pages_per_level(level) << PAGE_SHIFT) - 1), hpte, level)  # type: ignore[arg-type]
        return True

    # Write the words of one mapping; the block at hva is aligned to its size.
    def _map(self, vma: Vma, hva: Hva, hpte: int, level: int) -> int:
        self.pmd_tables.add(hva >> _PUD_SHIFT)
        if level == 1:
            self.pte_tables.add(hva >> _PMD_SHIFT)
        index = (hva - vma.start) >> PAGE_SHIFT
        hpte |= level << HPTE_LEVEL_SHIFT
        for i in range(pages_per_level(level)):
            vma.hptes[index + i] = hpte + (i << PAGE_SHIFT)
        return 0

    # A write to a page that is mapped read-only in a writable range: only the zero page is. Give it a frame of its own.
    def _break_cow(self, vma: Vma, hva: Hva) -> int:
        page = hva & HPTE_PFN_MASK
        new = self.frames.alloc_zeroed()
        self.range_start(page, page + PAGE_SIZE)  # type: ignore[arg-type]
        self._map(vma, page, (new << PAGE_SHIFT) | HPTE_PRESENT | HPTE_WRITABLE, 1)  # type: ignore[arg-type]
        self.range_end(page, page + PAGE_SIZE)  # type: ignore[arg-type]
        return 0

    # Let 512 mappings of the next smaller size take the place of each huge one that a border at hva falls into. Each
    # of them holds a reference to the block, so that it stays until the last is gone.
    def _split_mapping(self, vma: Vma, hva: Hva) -> int:
        while True:
            child = self.mapping_level(hva) - 1
            if child == 0 or hva & ((pages_per_level(child + 1) << PAGE_SHIFT) - 1) == 0:
                return 0
            nr = pages_per_level(child + 1)
            first = hva & ~((nr << PAGE_SHIFT) - 1)
            index = (first - vma.start) >> PAGE_SHIFT
            hpte = vma.hptes[index]
            self.frames.get_many((hpte & HPTE_PFN_MASK) >> PAGE_SHIFT, 511)  # type: ignore[arg-type]
            # The level field of a huge mapping is one more than that of its pieces.
            for i in range(nr):
                vma.hptes[index + i] -= _HPTE_LEVEL_ONE
            if child == 1:
                self.pte_tables.add(hva >> _PMD_SHIFT)

    # Bring the words of a range in line with its new protection, between start and end of the chain.
    def _protect(self, vma: Vma) -> None:
        start = vma.start
        while start < vma.end and start >> _PUD_SHIFT not in self.pmd_tables:
            start = Hva(((start >> _PUD_SHIFT) + 1) << _PUD_SHIFT)
        if start >= vma.end:
            return
        self.range_start(start, vma.end)
        self._change_protection(vma)
        self.range_end(start, vma.end)

    # Every page but the zero page belongs to this address space alone, and so becomes writable without a fault.
    def _change_protection(self, vma: Vma) -> int:
        nr = (vma.end - vma.start) >> PAGE_SHIFT
        for i in range(nr):
            hpte = vma.hptes[i]
            if hpte & HPTE_PRESENT and (hpte & HPTE_PFN_MASK) >> PAGE_SHIFT != self.frames.zero_pfn:
                vma.hptes[i] = hpte | HPTE_WRITABLE if vma.writable else hpte & ~HPTE_WRITABLE
        return 0

    # Forget every mapping of a range.
    def _unmap(self, vma: Vma) -> int:
        return self._unmap_pages(vma, vma.start, vma.end)

    # Forget the mappings of [start, end), whose borders split no huge page, and drop their references.
    def _unmap_pages(self, vma: Vma, start: Hva, end: Hva) -> int:
        first = (start - vma.start) >> PAGE_SHIFT
        nr = (end - vma.start) >> PAGE_SHIFT
        i = first
        while i < nr:
            hpte = vma.hptes[i]
            level = 1
            if hpte & HPTE_PRESENT:
                level = (hpte >> HPTE_LEVEL_SHIFT) & 3
                if (hpte & HPTE_PFN_MASK) >> PAGE_SHIFT != self.frames.zero_pfn:
                    self.frames.put((hpte & HPTE_PFN_MASK) >> PAGE_SHIFT)  # type: ignore[arg-type]
            i += pages_per_level(level)
        for i in range(first, nr):
            vma.hptes[i] = 0
        return 0

    # Tables whose whole block no range uses any more go with the ranges that were unmapped.
    def _free_tables(self, gone: list[Vma]) -> None:
        for tables, shift in ((self.pte_tables, _PMD_SHIFT), (self.pmd_tables, _PUD_SHIFT)):
            for vma in gone:
                for block in range(vma.start >> shift, (vma.end - 1 >> shift) + 1):
                    if block in tables and not self._is_block_used(block, shift):
                        tables.discard(block)

    # Whether any range overlaps the block.
    def _is_block_used(self, block: int, shift: int) -> bool:
        return any(vma.start < (block + 1) << shift and block << shift < vma.end for vma in self.vmas)
