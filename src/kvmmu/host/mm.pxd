# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u64, hva_t, hpa_t, pfn_t, pages_per_level, page_offset
from ..hw.memory cimport PhysicalMemory
from .frames cimport FrameAllocator

cdef int HPTE_LEVEL_SHIFT, VM_FAULT_NO_VMA, VM_FAULT_READ_ONLY
cdef u64 GUP_NO_VMA, GUP_READ_ONLY, HPTE_PFN_MASK, HPTE_PRESENT, HPTE_WRITABLE, NO_HPA, NO_PFN, PAGE_SHIFT

cdef u64 _HPTE_LEVEL_ONE
cdef int _PMD_SHIFT
cdef int _PUD_SHIFT
cdef u64 _PMD_MASK

@cython.final
cdef class Vma:
    cdef readonly hva_t start       # [start, end), page aligned
    cdef readonly hva_t end
    cdef public bint writable       # VM_WRITE
    cdef readonly str backing       # "anonymous" (zero page, COW), "shared" (file pages, no COW)
    cdef readonly int page_level    # largest page that a fault may install: 1, 2 or 3
    cdef u64[::1] hptes             # of [start, end), per 4K page: see mm.py HPTE_*
    cdef readonly hva_t area_start  # of the mmap() that this range is a piece of
    cdef readonly object area       # hptes of that whole mmap; pieces share it, so cutting copies nothing

    cdef int belong_to(self, Vma other) except -1
    cpdef bint is_anonymous(self) noexcept
    @cython.locals(mask=u64)
    cdef bint covers_block(self, hva_t hva, int level) noexcept

@cython.final
cdef class Mm:
    cdef readonly FrameAllocator frames
    cdef readonly PhysicalMemory memory
    cdef readonly list vmas         # sorted by start
    cdef Vma last_vma               # of the last lookup
    cdef readonly list notifiers    # the chain: objects with invalidate_range_start/end(start_hva, end_hva)
    cdef hva_t next_hva             # where the next mmap() begins, before alignment
    cdef readonly set pte_tables    # hva >> 21 of each 2M block that a table of 4K entries maps
    cdef readonly set pmd_tables    # hva >> 30 of each 1G block with anything mapped since it was last unmapped whole

    @cython.locals(vma=Vma)
    cpdef Vma find_vma(self, hva_t hva)
    @cython.locals(vma=Vma, low=Py_ssize_t, high=Py_ssize_t, middle=Py_ssize_t)
    cdef Vma _search_vma(self, hva_t hva)
    @cython.locals(vma=Vma)
    cpdef u64 hpte(self, hva_t hva) except? 0xFFFFFFFFFFFFFFFF
    @cython.locals(hpte=u64)
    cpdef int mapping_level(self, hva_t hva) except -1
    @cython.locals(hpte=u64, pfn=pfn_t)
    cpdef pfn_t gup_fast(self, hva_t hva, bint write) except? 0xFFFFFFFFFFFF0000
    @cython.locals(pfn=pfn_t, fault=int)
    cpdef pfn_t gup(self, hva_t hva, bint write) except? 0xFFFFFFFFFFFF0000
    @cython.locals(vma=Vma, hpte=u64)
    cpdef hpa_t user_access(self, hva_t hva, bint write) except? 0xFFFFFFFFFFFF0000
    @cython.locals(vma=Vma, hpte=u64)
    cpdef int fault_in(self, hva_t hva, bint write) except -1
    @cython.locals(level=int)
    cdef int _fill_hole(self, Vma vma, hva_t hva, bint write) except -1
    @cython.locals(first=hva_t)
    cdef bint _try_map_block(self, Vma vma, hva_t hva, int level) except -1
    @cython.locals(hpte=u64, i=u64, index=u64)
    cdef int _map(self, Vma vma, hva_t hva, u64 hpte, int level) except -1
    @cython.locals(new=pfn_t, page=hva_t)
    cdef int _break_cow(self, Vma vma, hva_t hva) except -1
    @cython.locals(first=hva_t, i=u64, index=u64, hpte=u64, child=int, nr=u64)
    cdef int _split_mapping(self, Vma vma, hva_t hva) except -1
    @cython.locals(i=u64, nr=u64, hpte=u64)
    cdef int _change_protection(self, Vma vma) except -1
    cdef int _unmap(self, Vma vma) except -1
    @cython.locals(first=u64, i=u64, nr=u64, hpte=u64, level=int)
    cdef int _unmap_pages(self, Vma vma, hva_t start, hva_t end) except -1
