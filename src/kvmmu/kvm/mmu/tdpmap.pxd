# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u64
from ..requests cimport flush_remote_tlbs_gfn
from ..vcpu cimport Vcpu
from ..vm cimport Vm
from .fault cimport PageFault
from .hugepage cimport adjust, disallowed_adjust
from .leaf cimport Leaf, make_spte
from .mmio cimport generation
from .mmutrace cimport trace_mark_mmio_spte, trace_set_spte, trace_spte_requested
from .nxpage cimport is_disallowed, set_disallowed, track_possible
from .page cimport ShadowPage
from .pages cimport sptep_to_sp
from .spte cimport is_frozen, is_large, is_last, is_shadow_present, make_mmio
from .tdpchange cimport alloc_table, clear_table, free_table, init_child, link_table, set_spte_atomic
from .tdpiter cimport TdpIter, make_iter
from .tdpsplit cimport split_huge_page

cdef int CAUSE_MAP, CAUSE_PERMISSION, CAUSE_REMAP, CAUSE_UNSYNC, RET_PF_EMULATE, RET_PF_FIXED, RET_PF_RETRY
cdef int RET_PF_SPURIOUS, RET_PF_WRITE_PROTECTED
cdef u64 ACC_ALL, KVM_PFN_NOSLOT, MMIO_SPTE_GEN_MASK

@cython.locals(vm=Vm, it=TdpIter)
cpdef int tdp_map(Vcpu vcpu, PageFault fault, Leaf leaf) except? -99
@cython.locals(vm=Vm, nx_huge_pages=bint)
cpdef bint walk_to_goal(Vcpu vcpu, PageFault fault, TdpIter it) except -1
@cython.locals(sp=ShadowPage, level=int, linked=bint)
cpdef bint add_table(Vm vm, PageFault fault, TdpIter it) except -1
@cython.locals(vm=Vm, old=u64, nr_unsync=u64, spte=u64, verdict=int)
cpdef int install(Vcpu vcpu, PageFault fault, Leaf leaf, TdpIter it) except? -99
@cython.locals(vm=Vm, spte=u64)
cpdef int install_mmio(Vcpu vcpu, PageFault fault, TdpIter it) except? -99
cpdef int fill_leaf(PageFault fault, Leaf leaf, TdpIter it) except -1
cpdef int note_cause(PageFault fault, u64 old_spte, int level, bint unsynced) noexcept
