# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u64, hpa_t
from ..vcpu cimport Vcpu
from ..vm cimport Vm
from .fault cimport PageFault
from .hugepage cimport adjust
from .leaf cimport Leaf, prefetch_direct
from .mmutrace cimport trace_spte_requested
from .page cimport ShadowPage
from .pages cimport sptep_to_sp
from .role cimport role_ad_disabled, role_level
from .shadow cimport fetch_direct_tables, install
from .shadowwalk cimport walk_sptep, walk_start

cdef int RET_PF_RETRY, RET_PF_SPURIOUS
cdef u64 ACC_ALL

@cython.locals(vm=Vm, step=u64, verdict=int, sptep=hpa_t, sp=ShadowPage)
cpdef int direct_map(Vcpu vcpu, PageFault fault, Leaf leaf) except? -99
