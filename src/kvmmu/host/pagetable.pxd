# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u64, hva_t, pfn_t, hpa_to_pfn, pages_per_level
from ..sync cimport Gate
from .frames cimport FrameAllocator
from .vma cimport Vma

cdef int HPTE_LEVEL_SHIFT
cdef u64 HPTE_PFN_MASK, HPTE_PRESENT, HPTE_WRITABLE, NO_PFN, PAGE_SHIFT

cdef u64 _HPTE_LEVEL_ONE
cdef int _PMD_SHIFT
cdef int _PUD_SHIFT
cdef u64 _PMD_MASK

cpdef int hpte_level(u64 hpte) noexcept
cpdef pfn_t hpte_to_pfn(u64 hpte) noexcept

@cython.final
cdef class PageTable:
    cdef readonly FrameAllocator frames
    cdef Gate gate
    cdef readonly set pmd_tables    # hva >> 30 of each 1G block with anything mapped since it was last unmapped whole
    cdef readonly set pte_tables    # hva >> 21 of each 2M block that a table of 4K entries maps
    cdef public bint has_huge_zero
    cdef public pfn_t huge_zero_pfn # first frame of the huge zero page, or NO_PFN

    cpdef u64 load(self, Vma vma, hva_t hva) except? 0xFFFFFFFFFFFFFFFF
    cpdef int announce(self, str kind, hva_t first, hva_t last) except -1
    @cython.locals(pfn=u64)
    cpdef bint is_zero_page(self, u64 hpte) except -1
    @cython.locals(pfn=u64, first=u64)
    cpdef bint is_huge_zero(self, u64 hpte) except -1
    cpdef bint has_pmd_table(self, hva_t hva) except -1
    cpdef bint may_map_block(self, hva_t hva, int level) except -1
    cpdef hva_t first_mapped(self, hva_t start, hva_t end) except? 0xFFFFFFFFFFFF0000
    @cython.locals(i=u64, index=u64)
    cpdef int map_pages(self, Vma vma, hva_t hva, u64 hpte, int level) except -1
    @cython.locals(first=hva_t, i=u64, index=u64, hpte=u64, child=int, nr=u64)
    cpdef int split(self, Vma vma, hva_t hva) except -1
    @cython.locals(hva=hva_t, stop=hva_t, i=u64, hpte=u64)
    cpdef int change_protection(self, Vma vma) except -1
    @cython.locals(hva=hva_t, stop=hva_t, first=u64, i=u64, j=u64, nr=u64, hpte=u64, level=int)
    cpdef int unmap(self, Vma vma, hva_t start, hva_t end) except -1
    cdef hva_t _last_with(self, Vma vma, hva_t hva) except? 0xFFFFFFFFFFFF0000
    @cython.locals(hva=hva_t)
    cpdef hva_t next_block(self, Vma vma, hva_t start, hva_t end) except? 0xFFFFFFFFFFFF0000
