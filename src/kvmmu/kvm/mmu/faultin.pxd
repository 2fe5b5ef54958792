# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u32, u64, gfn_t, hva_t, pfn_t
from ...host.mm cimport Mm
from ..memslots cimport Memslot, is_error_pfn, is_noslot_pfn
from ..requests cimport has_request
from ..vcpu cimport Vcpu
from ..vm cimport Vm
from .fault cimport PageFault
from .mmio cimport cache_record
from .page cimport ShadowPage
from .pages cimport is_obsolete, root_to_sp

cdef u64 _NO_PFN
cdef u64 _GUP_ERRORS
cdef u64 _KVM_PFN_ERR_FAULT
cdef u64 _KVM_PFN_ERR_RO_FAULT
cdef u64 _KVM_PFN_NOSLOT
cdef u64 _KVM_HVA_ERR_BAD
cdef u64 _INVALID_PAGE
cdef int _CONTINUE
cdef int _RETRY
cdef int _EMULATE
cdef int _EFAULT
cdef int _FAULT_TDP
cdef int _REQ_FREE_OBSOLETE_ROOTS

cpdef bint is_invalidated(Vm vm, u64 mmu_seq, gfn_t gfn) noexcept
@cython.locals(mm=Mm, slot=Memslot, pfn=pfn_t, readonly=bint)
cpdef int find_pfn(Vm vm, PageFault fault) except -1
cpdef int handle_noslot(Vcpu vcpu, PageFault fault, u32 access) except? -99
@cython.locals(vm=Vm)
cpdef int faultin(Vcpu vcpu, PageFault fault, u32 access) except? -99
@cython.locals(sp=ShadowPage)
cpdef bint is_stale(Vcpu vcpu, PageFault fault) except -1
cpdef int release_pfn(Vm vm, pfn_t pfn) except -1
