# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u64, gfn_t, pages_per_level
from ..sync cimport Gate
from .memslots cimport Memslot
from .mode cimport kick, wait_for_reading
from .vcpu cimport Vcpu
from .vm cimport Vm

cdef int IN_GUEST_MODE, KVM_REQ_TLB_FLUSH, OUTSIDE_GUEST_MODE
cdef u64 KVM_REQ_ALL, KVM_REQ_WAIT, ONE

@cython.locals(gate=Gate)
cpdef int make_request(Vcpu vcpu, int req) except -1
cpdef bint has_request(Vcpu vcpu, int req) except -1
cpdef bint has_requests(Vcpu vcpu) except -1
cpdef int must_be_known(Vcpu vcpu) except -1
@cython.locals(gate=Gate)
cpdef bint check_request(Vcpu vcpu, int req) except -1
@cython.locals(vcpu=Vcpu, ipi=bint, waits=bint, mode=int)
cpdef bint make_all_cpus_request(Vm vm, int req) except -1
@cython.locals(vcpu=Vcpu)
cpdef int kick_all(Vm vm) except -1
cpdef int flush_remote_tlbs(Vm vm) except -1
cpdef int flush_remote_tlbs_range(Vm vm, gfn_t gfn, u64 nr_pages) except -1
@cython.locals(size=u64)
cpdef int flush_remote_tlbs_gfn(Vm vm, gfn_t gfn, int level) except -1
cpdef int flush_remote_tlbs_memslot(Vm vm, Memslot slot) except -1
