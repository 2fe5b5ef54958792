# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u32, u64, pfn_t
from ...host.mm cimport Mm
from ..memslots cimport Memslot, is_error_pfn, is_noslot_pfn
from ..requests cimport has_request
from ..vcpu cimport Vcpu
from ..vm cimport Vm
from .fault cimport PageFault
from .mmio cimport cache_record
from .page cimport ShadowPage
from .pages cimport is_obsolete, root_to_sp

cdef int EFAULT, FAULT_OP_TDP, KVM_REQ_MMU_FREE_OBSOLETE_ROOTS, RET_PF_CONTINUE, RET_PF_EMULATE, RET_PF_RETRY
cdef u64 GUP_ERRORS, KVM_HVA_ERR_BAD, KVM_PFN_ERR_FAULT, KVM_PFN_ERR_RO_FAULT, KVM_PFN_NOSLOT, NO_PFN

@cython.locals(mm=Mm, slot=Memslot, pfn=pfn_t, readonly=bint)
cpdef int find_pfn(Vm vm, PageFault fault) except -1
cpdef int handle_noslot(Vcpu vcpu, PageFault fault, u32 access) except? -99
@cython.locals(vm=Vm)
cpdef int faultin(Vcpu vcpu, PageFault fault, u32 access) except? -99
@cython.locals(sp=ShadowPage)
cpdef bint is_stale(Vcpu vcpu, PageFault fault) except -1
cpdef int release_pfn(Vm vm, pfn_t pfn) except -1
