# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u64, gfn_t, pages_per_level
from ..memslots cimport Memslot, is_error_noslot_pfn
from ..vm cimport Vm
from ..vcpu cimport Vcpu
from .fault cimport PageFault
from .nxpage cimport is_disallowed
from .pages cimport sptep_to_sp
from .spte cimport is_large, is_shadow_present, spte_to_child

cdef int KVM_MAX_HUGEPAGE_LEVEL, LIMIT_CPU, LIMIT_DIRTY_LOG, LIMIT_GUEST_PAGE, LIMIT_MAPPING, LIMIT_NO_SLOT, LIMIT_NONE
cdef int LIMIT_NX, LIMIT_NX_TABLE

@cython.locals(level=int)
cpdef int max_mapping_level(Vm vm, Memslot slot, gfn_t gfn, int max_level) except -1
@cython.locals(slot=Memslot, mask=u64)
cpdef int adjust(Vcpu vcpu, PageFault fault) except -1
cpdef int disallowed_adjust(Vm vm, PageFault fault, u64 spte, int level) except -1
