# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ..addr cimport u64, gpa_t, hpa_t
from .regs cimport Registers

cdef int HW_HIT, HW_NESTED_FAULT, LEVEL_BITS
cdef u64 ONE, PAGE_SHIFT, PFERR_FETCH, PFERR_PRESENT, PFERR_RSVD, PFERR_WRITE, PT_ACCESSED, PT_DIRTY, PT_FRAME
cdef u64 PT_NX, PT_PAGE_SIZE, PT_PRESENT, PT_USER, PT_WRITABLE

cdef int _RESTART

@cython.final
cdef class NestedWalk:
    cdef readonly int nr            # elements read, top level first
    cdef int levels[6]              # level of each element
    cdef u64 entries[6]             # its value as read
    cdef u64 places[6]              # hpa that it was read from
    # The result of a HW_HIT.
    cdef readonly hpa_t hpa
    cdef readonly int level         # page size: 1 = 4K, 2 = 2M, 3 = 1G
    cdef readonly bint writable
    cdef readonly bint executable
    cdef readonly bint dirty        # the leaf's D is set
    # Of a HW_NESTED_FAULT.
    cdef readonly gpa_t fault_gpa
    cdef readonly u64 fault_code

cpdef int translate(Registers regs, gpa_t gpa, u64 access, NestedWalk out) except -1
@cython.locals(level=int, table=u64, allowed=u64, is_nx=bint, is_large=bint, place=u64, entry=u64, offset=u64)
cdef int _walk(Registers regs, gpa_t gpa, u64 access, NestedWalk out) except -1
cdef int _fault(NestedWalk out, gpa_t gpa, u64 code) noexcept
@cython.locals(last=int, i=int, entry=u64, new=u64)
cdef int _set_accessed_dirty(Registers regs, u64 access, NestedWalk out) except -1
