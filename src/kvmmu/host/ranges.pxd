# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u64, hva_t, pages_per_level
from ..intervaltree cimport IntervalTree
from .frames cimport FrameAllocator
from .notifier cimport NotifierChain
from .pagetable cimport PageTable, hpte_level
from .vma cimport Vma

cdef u64 PAGE_SHIFT

cdef u64 _PMD_MASK

cdef class Ranges:
    cdef readonly FrameAllocator frames
    cdef readonly IntervalTree places   # of the ranges
    cdef Vma last_vma               # of the last lookup
    cdef readonly PageTable table
    cdef readonly NotifierChain chain

    @cython.locals(vma=Vma)
    cpdef Vma find_vma(self, hva_t hva)
    @cython.locals(vma=Vma)
    cdef Vma _search_vma(self, hva_t hva)
    @cython.locals(vma=Vma)
    cpdef u64 hpte(self, hva_t hva) except? 0xFFFFFFFFFFFFFFFF
    cpdef int mapping_level(self, hva_t hva) except -1
