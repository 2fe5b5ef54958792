# SPDX-License-Identifier: GPL-2.0-only
"""A page fault of the process: how a page of a range is backed when it is first used.

Anonymous memory that is read before it is written maps the shared zero page, read-only; the first write replaces it
by a frame of its own (copy on write) between ``invalidate_range_start`` and ``invalidate_range_end`` of everyone on
the notifier chain. Where ``PageTable.has_huge_zero`` says so, a huge zero page comes first, which the first write
splits into small ones. Filling a hole tells nobody. Shared (file) memory has neither zero page nor copy on write.
Source: reference section "What a model must supply around KVM".
"""

from __future__ import annotations

from ..addr import Hva, pages_per_level
from ..errors import OutOfFrames
from ..page_types import PAGE_SHIFT, PAGE_SIZE
from .bits import HPTE_PFN_MASK, HPTE_PRESENT, HPTE_WRITABLE, NO_PFN, VM_FAULT_READ_ONLY
from .notifier import NotifierChain
from .pagetable import PageTable
from .vma import Vma


def handle_mm_fault(table: PageTable, chain: NotifierChain, vma: Vma, hva: Hva, write: bool) -> int:
    """Back the page of ``hva`` in ``vma`` for a read or a ``write``: ``VM_FAULT_OK`` or ``VM_FAULT_READ_ONLY``.

    :class:`OutOfFrames` when memory ends.
    """
    if write and not vma.writable:
        return VM_FAULT_READ_ONLY
    hpte = table.load(vma, hva)
    if hpte & HPTE_PRESENT == 0:
        return _fill_hole(table, vma, hva, write)
    if write and hpte & HPTE_WRITABLE == 0:
        return _break_cow(table, chain, vma, hva)
    return 0


# Back a page that nothing backs yet, as large as allowed.
def _fill_hole(table: PageTable, vma: Vma, hva: Hva, write: bool) -> int:
    if vma.is_anonymous() and not write:
        if table.has_huge_zero and vma.page_level > 1 and _try_map_huge_zero(table, vma, hva):
            return 0
        return table.map_pages(vma, hva, (table.frames.zero_pfn << PAGE_SHIFT) | HPTE_PRESENT, 1)
    level = vma.page_level
    while level > 1:
        if _try_map_block(table, vma, hva, level):
            return 0
        level -= 1
    hpte = (table.frames.alloc_zeroed() << PAGE_SHIFT) | HPTE_PRESENT
    return table.map_pages(vma, hva, hpte | (HPTE_WRITABLE if vma.writable else 0), 1)


# A huge page, if its whole block is free of smaller ones and lies in the range; declines when no block is left.
def _try_map_block(table: PageTable, vma: Vma, hva: Hva, level: int) -> bool:
    if not vma.covers_block(hva, level) or not table.may_map_block(hva, level):
        return False
    try:
        first = table.frames.alloc_block_zeroed(level)
    except OutOfFrames:
        return False
    hpte = (first << PAGE_SHIFT) | HPTE_PRESENT | (HPTE_WRITABLE if vma.writable else 0)
    table.map_pages(vma, hva & ~((pages_per_level(level) << PAGE_SHIFT) - 1), hpte, level)
    return True


# The huge zero page, under the conditions of a huge page.
def _try_map_huge_zero(table: PageTable, vma: Vma, hva: Hva) -> bool:
    if not vma.covers_block(hva, 2) or not table.may_map_block(hva, 2):
        return False
    if table.huge_zero_pfn == NO_PFN:
        try:
            table.huge_zero_pfn = table.frames.alloc_block_zeroed(2)
        except OutOfFrames:
            return False
    hpte = (table.huge_zero_pfn << PAGE_SHIFT) | HPTE_PRESENT
    table.map_pages(vma, hva & ~((pages_per_level(2) << PAGE_SHIFT) - 1), hpte, 2)
    return True


# A write to a page that is mapped read-only in a writable range: only the zero page is. Give it a frame of its own.
def _break_cow(table: PageTable, chain: NotifierChain, vma: Vma, hva: Hva) -> int:
    page = hva & HPTE_PFN_MASK
    if table.is_huge_zero(table.load(vma, hva)):
        nr_bytes = pages_per_level(2) << PAGE_SHIFT
        block = hva & ~(nr_bytes - 1)
        chain.range_start(block, block + nr_bytes)
        table.split(vma, block + PAGE_SIZE)
        chain.range_end(block, block + nr_bytes)
    new = table.frames.alloc_zeroed()
    chain.range_start(page, page + PAGE_SIZE)
    table.map_pages(vma, page, (new << PAGE_SHIFT) | HPTE_PRESENT | HPTE_WRITABLE, 1)
    chain.range_end(page, page + PAGE_SIZE)
    return 0
