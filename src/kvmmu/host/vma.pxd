# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u64, hva_t, pages_per_level
from .frames cimport SmallArrays

cdef u64 PAGE_SHIFT, SMALL_ARRAY_WORDS

@cython.final
cdef class Vma:
    cdef readonly hva_t start       # [start, end), page aligned
    cdef readonly hva_t end
    cdef public bint writable       # VM_WRITE
    cdef readonly str backing       # "anonymous" (zero page, COW), "shared" (file pages, no COW)
    cdef public int page_level      # largest page that a fault may install: 1, 2 or 3
    cdef u64[::1] hptes             # of [start, end), per 4K page: see pagetable.py
    cdef readonly hva_t area_start  # of the mmap() that this range is a piece of
    cdef public u64 order           # in the process's tree
    cdef u64[::1] table             # hptes of that whole mmap; pieces share it, so cutting copies nothing

    @cython.locals(nr=u64)
    cdef int make_table(self, SmallArrays arrays) except -1
    @cython.locals(first=u64, vma=Vma)
    cpdef Vma piece(self, hva_t start, hva_t end)
    cdef int belong_to(self, Vma other) except -1
    cpdef bint is_anonymous(self) noexcept
    @cython.locals(mask=u64)
    cpdef bint covers_block(self, hva_t hva, int level) noexcept
