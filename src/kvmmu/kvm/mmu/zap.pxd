# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u64, hpa_t
from ...hw.memory cimport PhysicalMemory
from ..requests cimport flush_remote_tlbs, make_all_cpus_request
from ..vm cimport Vm
from .change cimport clear_no_track
from .mmutrace cimport trace_prepare_zap_page, trace_zap_all_fast
from .nxpage cimport forget, is_disallowed
from .page cimport ShadowPage
from .pages cimport free_page, has_gptes, is_obsolete, list_del, mark_invalid, next_valid_gen, sptep_to_sp
from .rmap cimport drop_spte, pte_list_add, pte_list_first, pte_list_remove, pte_list_sptep
from .role cimport role_invalid, role_level
from .spte cimport is_last, is_mmio, is_shadow_present, spte_to_child
from .tdproots cimport invalidate_all_roots, zap_all_roots, zap_invalidated_roots
from .track cimport unaccount_shadowed
from .unsync cimport UnsyncWalk, is_unsync, unlink_unsync_page, unsync_walk

cdef int ENOSPC, KVM_REQ_MMU_FREE_OBSOLETE_ROOTS
cdef u64 KVM_MIN_FREE_MMU_PAGES, KVM_REFILL_PAGES, PAGE_SIZE, SHADOW_NONPRESENT_VALUE

cpdef int add_parent_pte(Vm vm, ShadowPage sp, hpa_t sptep) except -1
cpdef int drop_parent_pte(Vm vm, ShadowPage sp, hpa_t sptep) except -1
@cython.locals(spte=u64)
cpdef int zap_pte(Vm vm, ShadowPage sp, hpa_t sptep) except -1
@cython.locals(walk=UnsyncWalk, child=ShadowPage, i=int, nr=int)
cpdef int zap_unsync_children(Vm vm, ShadowPage sp, list invalid_list) except -1
@cython.locals(mem=PhysicalMemory, sptep=hpa_t, end=hpa_t)
cpdef int unlink_children(Vm vm, ShadowPage sp) except -1
cpdef int unlink_parents(Vm vm, ShadowPage sp) except -1
@cython.locals(nr=int, zapped_root=bint)
cpdef int prepare_zap(Vm vm, ShadowPage sp, list invalid_list) except -1
@cython.locals(i=int, sp=ShadowPage)
cpdef int commit_zap(Vm vm, list invalid_list) except -1
cpdef int flush_or_zap(Vm vm, list invalid_list, bint flush) except -1
cpdef u64 available_pages(Vm vm) noexcept
@cython.locals(sp=ShadowPage, older=ShadowPage, total=u64, nr=int)
cpdef u64 zap_oldest(Vm vm, u64 nr_to_zap) except? 0x5A5A5A
@cython.locals(available=u64)
cpdef int make_pages_available(Vm vm) except? -99
