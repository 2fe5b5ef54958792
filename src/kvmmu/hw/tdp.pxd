# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ..addr cimport u64, gpa_t, hpa_t
from .regs cimport Registers
from .stage2 cimport SecondStage

cdef int EPT_VIOLATION_RWX_SHIFT, HW_HIT, HW_NESTED_FAULT, HW_NESTED_MISCONFIG, LEVEL_BITS
cdef u64 EPT_RWX, EPT_VIOLATION_ACC_INSTR, EPT_VIOLATION_ACC_READ, EPT_VIOLATION_ACC_WRITE, EPT_VIOLATION_GVA_IS_VALID
cdef u64 EPT_VIOLATION_GVA_TRANSLATED, ONE, PAGE_SHIFT, PFERR_FETCH, PFERR_GUEST_FINAL, PFERR_GUEST_PAGE
cdef u64 PFERR_PRESENT, PFERR_RSVD, PFERR_WRITE, PT_FRAME, PT_PAGE_SIZE

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
    cdef readonly bint readable     # always, but for EPT entries that are executable alone
    cdef readonly bint writable
    cdef readonly bint executable
    cdef readonly bint dirty        # the leaf's D is set, or there is none
    # Of a HW_NESTED_FAULT or HW_NESTED_MISCONFIG.
    cdef readonly gpa_t fault_gpa
    cdef readonly u64 fault_code

cpdef int translate(Registers regs, gpa_t gpa, u64 access, NestedWalk out) except -1
@cython.locals(level=int, table=u64, allowed=u64, needed=u64, is_large=bint, place=u64, entry=u64, offset=u64)
cdef int _walk(Registers regs, SecondStage fmt, gpa_t gpa, u64 access, NestedWalk out) except -1
@cython.locals(told=u64)
cdef int _fault(SecondStage fmt, NestedWalk out, gpa_t gpa, u64 code, u64 allowed) noexcept
@cython.locals(last=int, i=int, entry=u64, new=u64)
cdef int _set_accessed_dirty(Registers regs, SecondStage fmt, u64 access, NestedWalk out) except -1
