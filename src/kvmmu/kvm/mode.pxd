# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..sync cimport Gate
from .vcpu cimport Vcpu

cdef int NO_VCPU, EXITING_GUEST_MODE, IN_GUEST_MODE, OUTSIDE_GUEST_MODE, READING_SHADOW_PAGE_TABLES

cpdef int vcpu_load(Vcpu vcpu) except -1
cpdef int vcpu_put(Vcpu vcpu) except -1
cdef int _set_mode(Vcpu vcpu, int mode) except -1
cpdef int enter_guest_mode(Vcpu vcpu) except -1
cpdef int leave_guest_mode(Vcpu vcpu) except -1
cpdef int begin_reading(Vcpu vcpu) except -1
cpdef int end_reading(Vcpu vcpu) except -1
@cython.locals(gate=Gate, old=int)
cpdef int kick(Vcpu vcpu) except -1
cpdef bint is_kicked(Vcpu vcpu) except -1
cpdef int wait_for_reading(Vcpu vcpu) except -1
