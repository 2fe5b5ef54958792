# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ..addr cimport u64, gpa_t, hpa_t
from .memory cimport PhysicalMemory
from .regs cimport Registers

cdef int _RESTART
cdef int _HIT
cdef int _NESTED_FAULT
cdef u64 _PRESENT
cdef u64 _WRITABLE
cdef u64 _USER
cdef u64 _ACCESSED
cdef u64 _DIRTY
cdef u64 _PAGE_SIZE
cdef u64 _NX
cdef u64 _FRAME
cdef u64 _PFERR_PRESENT
cdef u64 _PFERR_WRITE
cdef u64 _PFERR_RSVD
cdef u64 _PFERR_FETCH
cdef int _SHIFT
cdef int _BITS
cdef u64 _ONE

@cython.final
cdef class NestedWalk:
    cdef readonly int nr            # elements read, top level first
    cdef int levels[6]              # level of each element
    cdef u64 entries[6]             # its value as read
    cdef u64 places[6]              # hpa that it was read from
    # The result of a HIT.
    cdef readonly hpa_t hpa
    cdef readonly int level         # page size: 1 = 4K, 2 = 2M, 3 = 1G
    cdef readonly bint writable
    cdef readonly bint executable
    cdef readonly bint dirty        # the leaf's D is set
    # Of a NESTED_FAULT.
    cdef readonly gpa_t fault_gpa
    cdef readonly u64 fault_code

cpdef int translate(Registers regs, gpa_t gpa, u64 access, NestedWalk out) except -1
@cython.locals(level=int, table=u64, allowed=u64, is_nx=bint, is_large=bint, place=u64, entry=u64, offset=u64)
cdef int _walk(Registers regs, gpa_t gpa, u64 access, NestedWalk out) except -1
cdef int _fault(NestedWalk out, gpa_t gpa, u64 code) noexcept
@cython.locals(last=int, i=int, entry=u64, new=u64)
cdef int _set_accessed_dirty(Registers regs, u64 access, NestedWalk out) except -1
