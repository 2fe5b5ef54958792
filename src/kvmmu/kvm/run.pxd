# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u32, u64, gva_t
from ..hw.cpu cimport Cpu
from .kvmtrace cimport trace_inj_exception, trace_kvm_page_fault
from .requests cimport check_request, has_requests, must_be_known
from .mode cimport enter_guest_mode, is_kicked, leave_guest_mode, vcpu_load, vcpu_put
from .vcpu cimport Vcpu
from .vm cimport Vm
from .mmu.pagefault cimport page_fault
from .mmu.resync cimport sync_roots
from .mmu.roots cimport free_obsolete_roots, load, sync_prev_roots

cdef int HW_HIT, HW_PAGE_FAULT, IN_GUEST_MODE, KVM_REQ_LOAD_MMU_PGD
cdef int KVM_REQ_MMU_FREE_OBSOLETE_ROOTS
cdef int KVM_REQ_MMU_SYNC, KVM_REQ_TLB_FLUSH, KVM_REQ_TLB_FLUSH_CURRENT, KVM_REQ_TLB_FLUSH_GUEST
cdef int KVM_REQ_TRIPLE_FAULT, MAX_TRIES, RUN_EMULATE, RUN_ERROR, RUN_FAULT, RUN_HIT
cdef int RUN_SHUTDOWN
cdef u64 INVALID_PAGE

cpdef int serve_requests(Vcpu vcpu) except -1
cpdef int flush_tlb_guest(Vcpu vcpu) except -1
@cython.locals(vm=Vm, status=int, is_announced=bint)
cpdef int enter(Vcpu vcpu) except -1
@cython.locals(is_shutdown=bint)
cpdef int prepare_entry(Vcpu vcpu, bint is_announced) except -1
cpdef int resume(Vcpu vcpu) except -1
cpdef bint must_exit(Vcpu vcpu) except -1
cpdef int leave(Vcpu vcpu) except -1
@cython.locals(cpu=Cpu)
cpdef int exit_page_fault(Vcpu vcpu, gva_t gva, int status) except? -99
@cython.locals(ret=int)
cpdef int handle_page_fault(Vcpu vcpu, u64 address, u64 code) except? -99
@cython.locals(status=int, ret=int)
cpdef int access(Vcpu vcpu, gva_t gva, u32 kind) except -1
@cython.locals(ret=int, tries=int)
cpdef int access_missed(Vcpu vcpu, gva_t gva, u32 kind, int status) except -1
