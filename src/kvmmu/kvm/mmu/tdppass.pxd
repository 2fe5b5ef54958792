# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u64, gfn_t
from ..memslots cimport Memslot
from ..vm cimport Vm
from .hugepage cimport max_mapping_level
from .mmutrace cimport trace_tdp_mmu_spte_changed
from .page cimport ShadowPage
from .pages cimport is_invalid_root
from .role cimport role_smm
from .spte cimport (ad_enabled, is_accessed, is_last, is_shadow_present, is_writable, mark_for_access_track,
                    spte_to_pfn)
from .tdpchange cimport clear_bits, set_spte, set_spte_atomic, write_spte, zap_spte_atomic
from .tdpiter cimport TdpIter, make_iter, yield_walk
from .tdproots cimport next_root

cdef int KVM_MAX_HUGEPAGE_LEVEL
cdef u64 ONE, PT_WRITABLE, SHADOW_NONPRESENT_VALUE

cdef int _ANY_SPACE

cpdef bint is_leaf(TdpIter it) noexcept
@cython.locals(end=gfn_t, it=TdpIter)
cpdef bint zap_leafs_below(Vm vm, ShadowPage root, gfn_t start_gfn, gfn_t end_gfn, bint flush) except -1
@cython.locals(root=ShadowPage)
cpdef bint zap_leafs(Vm vm, gfn_t start_gfn, gfn_t end_gfn, bint flush) except -1
@cython.locals(root=ShadowPage)
cpdef bint unmap_leafs(Vm vm, Memslot slot, gfn_t start_gfn, gfn_t end_gfn, bint flush) except -1
cpdef bint age_leafs(Vm vm, Memslot slot, gfn_t start_gfn, gfn_t end_gfn) except -1
cpdef bint is_any_young(Vm vm, Memslot slot, gfn_t start_gfn, gfn_t end_gfn) except -1
@cython.locals(young=bint, root=ShadowPage)
cpdef bint age_roots(Vm vm, Memslot slot, gfn_t start_gfn, gfn_t end_gfn, bint only_test) except -1
@cython.locals(young=bint, it=TdpIter)
cpdef bint age_below(Vm vm, ShadowPage root, gfn_t start_gfn, gfn_t end_gfn, bint only_test) except -1
@cython.locals(new_spte=u64)
cpdef int age_leaf(Vm vm, TdpIter it) except -1
@cython.locals(changed=bint, root=ShadowPage)
cpdef bint write_protect_leafs(Vm vm, Memslot slot, int min_level) except -1
@cython.locals(changed=bint, it=TdpIter)
cpdef bint write_protect_below(Vm vm, ShadowPage root, gfn_t start_gfn, gfn_t end_gfn, int min_level) except -1
@cython.locals(root=ShadowPage)
cpdef int write_protect_mask(Vm vm, Memslot slot, gfn_t base_gfn, u64 mask) except -1
@cython.locals(first=int, it=TdpIter)
cpdef int write_protect_mask_below(Vm vm, ShadowPage root, gfn_t base_gfn, u64 mask) except -1
@cython.locals(changed=bint, root=ShadowPage)
cpdef bint write_protect_leaf(Vm vm, Memslot slot, gfn_t gfn, int min_level) except -1
@cython.locals(changed=bint, it=TdpIter, new_spte=u64)
cpdef bint write_protect_leaf_below(Vm vm, ShadowPage root, gfn_t gfn, int min_level) except -1
@cython.locals(root=ShadowPage)
cpdef int collapse_tables(Vm vm, Memslot slot) except -1
@cython.locals(it=TdpIter)
cpdef int collapse_below(Vm vm, ShadowPage root, Memslot slot) except -1
cpdef bint is_collapsible(Vm vm, TdpIter it, Memslot slot) except -1
