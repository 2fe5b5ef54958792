# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u32, u64, gfn_t, hpa_t, round_gfn
from ...hw.memory cimport PhysicalMemory
from ..requests cimport flush_remote_tlbs, make_request
from ..vcpu cimport Vcpu
from ..vm cimport Vm
from .change cimport set_spte
from .context cimport Mmu
from .fault cimport PageFault
from .leaf cimport Leaf, prefetch_direct, prefetch_one, set_leaf
from .mmutrace cimport trace_get_page, trace_spte_requested
from .page cimport ShadowPage
from .pages cimport alloc_page, bucket_head, clear_flood_count, has_gptes, is_obsolete, sptep_index, sptep_to_sp
from .resync cimport is_invalid_gpte, sync_children, sync_page
from .role cimport (child_role, cpu_role_level, role_access, role_ad_disabled, role_direct, role_invalid, role_level)
from .gpte cimport GpteFormat, gpte_access, gpte_to_gfn, protect_clean
from .hugepage cimport adjust, disallowed_adjust
from .nxpage cimport set_disallowed, track_possible
from .shadowwalk cimport is_dummy_root, walk_level, walk_next, walk_sptep, walk_start
from .spte cimport is_large, is_shadow_present, make_nonleaf, spte_to_child
from .track cimport account_shadowed
from .unsync cimport is_unsync, leads_to_unsync, mark_unsync
from .walker cimport GuestWalk, is_gpte_changed
from .zap cimport add_parent_pte, commit_zap, drop_parent_pte, prepare_zap, zap_pte

cdef int KVM_REQ_MMU_FREE_OBSOLETE_ROOTS, PTE_PREFETCH_NUM, RET_PF_RETRY, RET_PF_SPURIOUS
cdef u64 INVALID_PAGE

@cython.locals(sp=ShadowPage, found=ShadowPage, invalid_list=list, collisions=u64, ret=int)
cpdef ShadowPage find_page(Vcpu vcpu, gfn_t gfn, u32 role)
@cython.locals(vm=Vm, sp=ShadowPage, created=bint)
cpdef ShadowPage get_page(Vcpu vcpu, gfn_t gfn, u32 role)
@cython.locals(vm=Vm, parent=ShadowPage, child=ShadowPage, spte=u64, role=u32)
cpdef ShadowPage get_child(Vcpu vcpu, hpa_t sptep, gfn_t gfn, bint direct, u32 access)
cpdef int link_page(Vcpu vcpu, hpa_t sptep, ShadowPage sp) except -1
@cython.locals(vm=Vm, spte=u64, child=ShadowPage)
cpdef int validate_direct(Vcpu vcpu, hpa_t sptep, u32 access) except -1
@cython.locals(mem=PhysicalMemory, sptep=hpa_t, sp=ShadowPage, level=int)
cpdef u64 fetch_tables(Vcpu vcpu, PageFault fault, GuestWalk gw, u64 step) except? 0x5A5A5A5A5A
@cython.locals(vm=Vm, mem=PhysicalMemory, sptep=hpa_t, sp=ShadowPage, gfn=gfn_t)
cpdef u64 fetch_direct_tables(Vcpu vcpu, PageFault fault, u32 access, u64 step) except? 0x5A5A5A5A5A
@cython.locals(vm=Vm, mmu=Mmu, step=u64, top=int, verdict=int)
cpdef int fetch(Vcpu vcpu, PageFault fault, GuestWalk gw, Leaf leaf) except? -99
@cython.locals(sptep=hpa_t, verdict=int)
cpdef int install(Vcpu vcpu, PageFault fault, Leaf leaf, u64 step) except? -99
@cython.locals(mem=PhysicalMemory, fmt=GpteFormat, sp=ShadowPage, place=hpa_t, i=int, gpte=u64)
cpdef int prefetch_gptes(Vcpu vcpu, GuestWalk gw, hpa_t sptep, Leaf leaf) except -1
