# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u32
from .requests cimport make_request
from .vcpu cimport Vcpu

cdef int DF_VECTOR, GP_VECTOR, KVM_REQ_TRIPLE_FAULT, PF_VECTOR, TS_VECTOR

cpdef bint is_contributory(int vector) noexcept
@cython.locals(before=int)
cpdef int queue_exception(Vcpu vcpu, int vector, bint has_error, u32 error_code) except -1
