# SPDX-License-Identifier: GPL-2.0-only
"""The address space of the process that owns the VM: what the process does to it, and what is behind an address.

An address is backed when it is first used (or at once, ``populate``), by 4K, 2M or 1G pages as the range allows:
``mmfault`` does that, ``pagetable`` keeps what is mapped, ``ranges`` which ranges there are, ``notifier`` tells who is
interested. Here are the system calls, and kvm asks for frames. Sources: reference sections "MMU notifiers" and "What a
model must supply around KVM".
"""

from __future__ import annotations

from ..addr import Hpa, Hva, Pfn, page_offset, pages_per_level
from ..errors import OutOfFrames, UserError
from ..page_types import LEVEL_BITS, PAGE_SHIFT, PAGE_SIZE
from .bits import (
    GUP_NO_VMA,
    GUP_READ_ONLY,
    HPTE_PFN_MASK,
    HPTE_PRESENT,
    HPTE_WRITABLE,
    MMAP_BASE,
    MMAP_LOW_BASE,
    NO_HPA,
    NO_PFN,
    USER_END,
    VM_FAULT_NO_VMA,
    VM_FAULT_READ_ONLY,
)
from .frames import FrameAllocator, SmallArrays
from .mmfault import handle_mm_fault
from .pagetable import hpte_to_pfn
from .ranges import Ranges
from .vma import Vma

# Address bits below a 2M block.
_PMD_MASK = (1 << (PAGE_SHIFT + LEVEL_BITS)) - 1


class Mm(Ranges):
    """One process's address space over the frames of ``frames``."""

    __slots__ = ("arrays", "memory", "next_hva")

    def __init__(self, frames: FrameAllocator) -> None:
        super().__init__(frames)
        self.memory = frames.memory
        self.arrays = SmallArrays()
        self.next_hva = MMAP_BASE

    # ------------------------------------------------------------------------------------------- system calls

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
        # A page between two mappings, so that running off the end of one is seen.
        if end <= USER_END:
            self.next_hva = Hva(end + PAGE_SIZE)
        else:
            start = self._low_start(nr_bytes, align)
            end = Hva(start + nr_bytes)
        vma = Vma(start, end, backing, page_level, self.arrays)
        self._add_vma(vma)
        if populate:
            self._populate_new(start, nr_bytes)
        return start

    # Back what was just mapped, or map nothing.
    def _populate_new(self, start: Hva, nr_bytes: int) -> None:
        try:
            self.populate(start, nr_bytes)
        except OutOfFrames:
            self.munmap(start, nr_bytes)
            raise

    # Where what does not fit above MMAP_BASE begins: behind all that lies below it.
    def _low_start(self, nr_bytes: int, align: int) -> Hva:
        ends = [vma.end + PAGE_SIZE for vma in self.vmas if vma.start < MMAP_BASE]
        start = (max(ends, default=MMAP_LOW_BASE) + align - 1) // align * align
        if start + nr_bytes > MMAP_BASE:
            raise UserError(f"mmap of {nr_bytes:#x} bytes at {start:#x}: there is no such gap below {USER_END:#x}")
        return Hva(start)

    def mmap_fixed(self, start: Hva, nr_bytes: int) -> None:
        """``mmap(MAP_FIXED)`` of fresh anonymous memory in small pages at ``start``, over what is there.

        :class:`UserError` unless the range is page aligned.
        """
        end = self._checked_end(start, nr_bytes)
        if any(vma.start < end and start < vma.end for vma in self.vmas):
            self.munmap(start, nr_bytes)
        next_hva, self.next_hva = self.next_hva, start
        try:
            self.mmap(nr_bytes, align=PAGE_SIZE)
        finally:
            self.next_hva = next_hva

    def allow_huge(self, start: Hva, nr_bytes: int, page_level: int) -> None:
        """``MADV_HUGEPAGE`` (``page_level`` 2) or ``MADV_NOHUGEPAGE`` (1): the largest page of later faults there.

        Huge pages that are there stay, but those that the range's ends cut. :class:`UserError` unless the range is
        page aligned.
        """
        end = self._checked_end(start, nr_bytes)
        for hva in (start, end):
            vma = self.find_vma(hva)
            if vma is not None and vma.page_level != page_level:
                self._cut(hva)
        for vma in self.vmas:
            if start <= vma.start and vma.end <= end:
                vma.page_level = page_level

    def populate(self, start: Hva, nr_bytes: int) -> None:
        """Back ``[start, start + nr_bytes)`` as a write (in a read-only range: a read) of each page would.

        :class:`UserError` unless all of the page-aligned range is mapped, :class:`OutOfFrames` when memory ends.
        """
        end = self._mapped_end(start, nr_bytes)
        hva = start
        while hva < end:
            vma = self._checked_vma(hva)
            self.fault_in(hva, vma.writable)
            size = pages_per_level(self.mapping_level(hva)) * PAGE_SIZE
            hva = Hva(hva // size * size + size)

    def munmap(self, start: Hva, nr_bytes: int) -> None:
        """Take ``[start, start + nr_bytes)`` out of the address space; the chain hears of it first.

        :class:`UserError` unless the range is page aligned and holds something.
        """
        end = self._checked_end(start, nr_bytes)
        if not self.places.overlapping(start, end - 1):
            raise UserError(f"munmap of {start:#x}-{end:#x}: nothing is mapped there")
        self._cut(start)
        self._cut(end)
        gone = self.places.overlapping(start, end - 1)
        self.chain.range_start(start, end)
        for vma in gone:
            self.table.unmap(vma, vma.start, vma.end)
        for vma in gone:
            self._remove_vma(vma)
        self.table.free_tables(gone, self.vmas)
        self.chain.range_end(start, end)

    def dontneed(self, start: Hva, nr_bytes: int) -> None:
        """Forget what ``[start, start + nr_bytes)`` holds (``MADV_DONTNEED``): the next access finds it fresh.

        The chain hears of the part in each range of the address space, and within that of each huge page that a
        border splits. :class:`UserError` unless all of the page-aligned range is mapped.
        """
        end = self._mapped_end(start, nr_bytes)
        for vma in self.places.overlapping(start, end - 1):
            first, last = max(start, vma.start), min(end, vma.end)
            if first >= last:
                continue
            self.chain.range_start(first, last)
            self._split_huge(vma, first)
            self._split_huge(vma, last)
            self.table.unmap(vma, first, last)
            self.chain.range_end(first, last)

    def clear_flush_young(self, start: Hva, nr_bytes: int) -> bool:
        """Whether the guest used ``[start, start + nr_bytes)`` since this was last asked; it is forgotten, in TLBs too.

        :class:`UserError` unless all of the page-aligned range is mapped. What the process itself did is not known.
        """
        return self.chain.clear_flush_young(start, self._mapped_end(start, nr_bytes))

    def clear_young(self, start: Hva, nr_bytes: int) -> bool:
        """:meth:`clear_flush_young` without a flush: what a TLB still translates may go unnoticed the next time."""
        return self.chain.clear_young(start, self._mapped_end(start, nr_bytes))

    def test_young(self, hva: Hva) -> bool:
        """Whether the guest used the page at ``hva``; nothing is forgotten."""
        return self.chain.test_young(Hva(hva & ~(PAGE_SIZE - 1)))

    def mprotect(self, start: Hva, nr_bytes: int, writable: bool) -> None:
        """Allow or forbid writes to ``[start, start + nr_bytes)``.

        The chain hears of each 2M block that a new border cuts (where the host has tables), then of the part of each
        range from the first 1G block with anything mapped. Pages that became writable need no fault for a write,
        except the zero page. Neighbouring pieces of one mmap() with the same protection become one range again.
        :class:`UserError` unless all of the page-aligned range is mapped.
        """
        end = self._mapped_end(start, nr_bytes)
        self._cut_changed(start, end, writable)
        for vma in self.places.overlapping(start, end - 1):
            if vma.writable != writable:
                vma.writable = writable
                self._protect(vma)
        self._merge(start, end)

    # ------------------------------------------------------------------------------------------- lookups

    def gup_fast(self, hva: Hva, write: bool) -> Pfn:
        """The frame behind ``hva`` with a reference taken, if it is mapped and permits the access; else ``NO_PFN``."""
        hpte = self.hpte(hva)
        if hpte & HPTE_PRESENT == 0 or (write and hpte & HPTE_WRITABLE == 0):
            return NO_PFN
        pfn = hpte_to_pfn(hpte)
        self.frames.get(pfn)
        return pfn

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
            return GUP_NO_VMA
        if fault == VM_FAULT_READ_ONLY:
            return GUP_READ_ONLY
        return self.gup_fast(hva, write)

    def user_access(self, hva: Hva, write: bool) -> Hpa:
        """Physical address of the byte at ``hva`` for a copy from or to user memory; faults it in.

        ``NO_HPA`` when the process itself could not make that access. No reference is taken.
        """
        vma = self.find_vma(hva)
        if vma is None:
            return NO_HPA
        hpte = self.table.load(vma, hva)
        if hpte & HPTE_PRESENT == 0 or (write and hpte & HPTE_WRITABLE == 0):
            if self.fault_in(hva, write) != 0:
                return NO_HPA
            hpte = self.hpte(hva)
        return (hpte & HPTE_PFN_MASK) | page_offset(hva)  # type: ignore[return-value]  # the frame is an hpa's

    # ------------------------------------------------------------------------------------------- faults

    def fault_in(self, hva: Hva, write: bool) -> int:
        """Do what a page fault of the process does: ``VM_FAULT_OK``, ``VM_FAULT_NO_VMA`` or ``VM_FAULT_READ_ONLY``.

        :class:`OutOfFrames` when memory ends.
        """
        vma = self.find_vma(hva)
        if vma is None:
            return VM_FAULT_NO_VMA
        return handle_mm_fault(self.table, self.chain, vma, hva, write)
