# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u64, hva_t, pfn_t, pages_per_level
from .notifier cimport NotifierChain
from .pagetable cimport PageTable
from .vma cimport Vma

cdef int VM_FAULT_READ_ONLY
cdef u64 HPTE_PFN_MASK, HPTE_PRESENT, HPTE_WRITABLE, NO_PFN, PAGE_SHIFT, PAGE_SIZE

@cython.locals(hpte=u64)
cpdef int handle_mm_fault(PageTable table, NotifierChain chain, Vma vma, hva_t hva, bint write) except -1
@cython.locals(hpte=u64, level=int)
cdef int _fill_hole(PageTable table, Vma vma, hva_t hva, bint write) except -1
@cython.locals(first=pfn_t, hpte=u64)
cdef bint _try_map_block(PageTable table, Vma vma, hva_t hva, int level) except -1
@cython.locals(hpte=u64)
cdef bint _try_map_huge_zero(PageTable table, Vma vma, hva_t hva) except -1
@cython.locals(new=pfn_t, page=hva_t, block=hva_t, nr_bytes=u64)
cdef int _break_cow(PageTable table, NotifierChain chain, Vma vma, hva_t hva) except -1
