# SPDX-License-Identifier: GPL-2.0-only
from ..addr cimport u64, gfn_t
from .vm cimport Vm
from .vcpu cimport Vcpu
cimport cython

cdef int KVM_REQ_TLB_FLUSH, OUTSIDE_GUEST_MODE
cdef u64 ONE

cpdef void make_request(Vcpu vcpu, int req) noexcept
cpdef bint has_request(Vcpu vcpu, int req) noexcept
cpdef bint check_request(Vcpu vcpu, int req) noexcept
@cython.locals(vcpu=Vcpu, ipi=bint)
cpdef bint make_all_cpus_request(Vm vm, int req) except -1
cpdef int flush_remote_tlbs(Vm vm) except -1
cpdef int flush_remote_tlbs_gfn(Vm vm, gfn_t gfn, int level) except -1
