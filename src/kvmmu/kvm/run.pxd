# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u32, u64, gva_t
from ..hw.cpu cimport Cpu
from .kvmtrace cimport trace_inj_exception, trace_kvm_page_fault
from .requests cimport check_request
from .svm cimport flush_tlb_current, load_mmu_pgd
from .vcpu cimport Vcpu
from .vm cimport Vm
from .mmu.context cimport Mmu
from .mmu.pagefault cimport page_fault
from .mmu.resync cimport sync_roots
from .mmu.roots cimport free_obsolete_roots, load, sync_prev_roots

cdef u64 _INVALID_PAGE
cdef int _HW_HIT
cdef int _HW_PAGE_FAULT
cdef int _IN_GUEST_MODE
cdef int _OUTSIDE_GUEST_MODE
cdef int _RESUME
cdef int _HIT
cdef int _FAULT
cdef int _EMULATE
cdef int _ERROR
cdef int _SHUTDOWN
cdef int _REQ_TRIPLE_FAULT
cdef int _REQ_TLB_FLUSH
cdef int _REQ_MMU_SYNC
cdef int _REQ_LOAD_MMU_PGD
cdef int _REQ_TLB_FLUSH_CURRENT
cdef int _REQ_TLB_FLUSH_GUEST
cdef int _REQ_FREE_OBSOLETE_ROOTS
cdef int _MAX_TRIES

cpdef int serve_requests(Vcpu vcpu) except -1
cpdef int flush_tlb_guest(Vcpu vcpu) except -1
@cython.locals(ret=int, is_shutdown=bint)
cpdef int enter(Vcpu vcpu) except? -99
cpdef int leave(Vcpu vcpu) except -1
@cython.locals(cpu=Cpu)
cpdef int exit_page_fault(Vcpu vcpu, gva_t gva, int status) except? -99
cpdef int handle_page_fault(Vcpu vcpu, u64 address, u64 code) except? -99
@cython.locals(cpu=Cpu, status=int, ret=int, tries=int)
cpdef int access(Vcpu vcpu, gva_t gva, u32 kind) except -1
@cython.locals(ret=int, tries=int)
cpdef int access_missed(Vcpu vcpu, gva_t gva, u32 kind, int status) except -1
