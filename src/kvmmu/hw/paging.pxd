# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ..addr cimport u8, u32, u64, gva_t, gpa_t, hpa_t
from .regs cimport Registers, kind_index
from .tdp cimport NestedWalk, translate

cdef int HW_HIT, HW_NESTED_FAULT, HW_PAGE_FAULT, PT_PKEY_SHIFT, PT_PSE36_SHIFT, TR_LEVEL_SHIFT, TR_PIECE_SHIFT
cdef int TR_PKEY_SHIFT
cdef u64 ACCESS_IMPLICIT, ACCESS_USER, INVALID_PAGE, ONE, PAGE_SHIFT, PFERR_PK, PFERR_RSVD, PFERR_WRITE, PT_ACCESSED
cdef u64 PT_DIRTY, PT_FRAME, PT_GLOBAL, PT_NX, PT_PAGE_SIZE, PT_PRESENT, PT_PSE36_LOW, TR_DIRTY, TR_EXECUTABLE
cdef u64 TR_GLOBAL, TR_HOST_WRITABLE, TR_USER, TR_WRITABLE

cdef int _RESTART
cdef u32 _WRITE_USER
cdef u32 _WRITE_FETCH
cdef u64 _TABLE_ACCESS
cdef u64 _FINAL_ACCESS
cdef u64 _TR_BOTH
cdef u64 _TR_HOST_ALL

@cython.final
cdef class Walk:
    # One walk, element by element; filled by page_walk(), reused by its owner.
    cdef readonly int nr            # elements read, top level first
    cdef int levels[6]              # level of each element
    cdef u64 entries[6]             # its value as read
    cdef u64 places[6]              # physical address that it was read from
    # The result.
    cdef readonly gpa_t gpa         # what the first stage made of gva
    cdef readonly hpa_t hpa         # address that gva translates to
    cdef readonly int level         # page size: 1 = 4K, 2 = 2M or 4M, 3 = 1G (without paging: 3)
    cdef readonly int tlb_level     # size that the TLB may keep: the smaller of both stages' pages
    cdef readonly bint large4m      # level 2 of a 32-bit table: 4M
    cdef readonly bint writable     # all levels allow writes
    cdef readonly bint user         # all levels allow user accesses
    cdef readonly bint executable   # no level forbids fetches
    cdef readonly bint dirty        # the leaf's D is set (in both stages)
    cdef readonly bint is_global    # the leaf's G is set, and CR4.PGE
    cdef readonly u8 pkey
    cdef readonly u64 translation   # all of it as one word (TR_* of bits.py): what the TLB keeps
    cdef readonly u32 error_code    # of the #PF, when the walk ended with one
    # A nested page fault on the way (walks under a second stage only).
    cdef readonly gpa_t fault_gpa
    cdef readonly u64 fault_code    # bits 31:0 as a #PF, bit 32 final translation, bit 33 guest table
    cdef readonly NestedWalk nested # the last second-stage walk

cpdef int page_walk(Registers regs, gva_t gva, u32 kind, Walk out) except -1
cdef int _walk_unpaged(Registers regs, gva_t gva, u32 kind, Walk out) except -1
@cython.locals(level=int, table=u64, allowed=u64, nx=u64, status=int, entry=u64, is_large=bint, code=u32)
cdef int _walk_tables(Registers regs, gva_t gva, u32 kind, Walk out) except -1
@cython.locals(index=u64)
cdef u64 _entry_offset(Registers regs, gva_t gva, int level) noexcept
@cython.locals(place=u64)
cdef int _read_entry(Registers regs, gpa_t table, u64 offset, Walk out) except -1
@cython.locals(offset=u64, gpa=u64)
cdef int _decode_leaf(Registers regs, gva_t gva, u64 entry, int level, Walk out) noexcept
@cython.locals(index=u32, code=u32)
cdef u32 _denial(Registers regs, u32 kind, Walk out) noexcept
@cython.locals(last=int, i=int, entry=u64, new=u64)
cdef int _set_accessed_dirty(Registers regs, u32 kind, Walk out) except -1
cdef bint _update_entry(Registers regs, u64 place, u64 entry, u64 new) except -1
@cython.locals(offset=u64, piece=int)
cdef int _finish(Registers regs, u32 kind, Walk out) except -1
@cython.locals(nested=NestedWalk)
cdef int _join_nested(Walk out) noexcept
cdef int _page_fault(Registers regs, u32 kind, u32 code, Walk out) noexcept
cdef int _nested_fault(Walk out) noexcept
