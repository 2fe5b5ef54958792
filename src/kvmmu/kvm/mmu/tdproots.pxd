# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u32, u64, gfn_t
from ..vcpu cimport Vcpu
from ..vm cimport Vm
from .context cimport Mmu
from .page cimport ShadowPage
from .pages cimport is_invalid_root, mark_invalid, sptep_to_sp
from .role cimport role_level, role_smm
from .spte cimport is_last, is_shadow_present, spte_to_child
from .tdpchange cimport alloc_table, clear_table, free_unlinked, init_table, set_spte, set_spte_atomic
from .tdpiter cimport TdpIter, make_iter, yield_walk

cdef int ENTRIES, KVM_MAX_HUGEPAGE_LEVEL
cdef u64 NOTHING, SHADOW_NONPRESENT_VALUE

cpdef bint hold_root(Vm vm, ShadowPage root) except -1
cpdef int drop_root(Vm vm, ShadowPage root) except -1
@cython.locals(root=ShadowPage)
cpdef ShadowPage next_root(Vm vm, ShadowPage previous, int as_id, bint only_valid)
@cython.locals(root=ShadowPage)
cpdef ShadowPage find_root(Vm vm, u32 role)
@cython.locals(vm=Vm, mmu=Mmu, root=ShadowPage)
cpdef int take_root(Vcpu vcpu) except -1
@cython.locals(root=ShadowPage)
cpdef ShadowPage find_linked(Vm vm, u32 role)
@cython.locals(head=ShadowPage, first=ShadowPage)
cpdef int link_root(Vm vm, ShadowPage root) except -1
@cython.locals(root=ShadowPage)
cpdef int invalidate_all_roots(Vm vm) except -1
@cython.locals(root=ShadowPage)
cpdef int zap_invalidated_roots(Vm vm) except -1
@cython.locals(root=ShadowPage)
cpdef int zap_all_roots(Vm vm) except -1
@cython.locals(level=int)
cpdef int zap_root(Vm vm, ShadowPage root) except -1
@cython.locals(end=gfn_t, it=TdpIter)
cpdef int zap_level(Vm vm, ShadowPage root, int level) except -1
cpdef int uninit(Vm vm) except -1
@cython.locals(root=ShadowPage)
cpdef list all_tables(Vm vm)
@cython.locals(level=int, i=u64, spte=u64)
cpdef int add_tables(Vm vm, ShadowPage sp, list found) except -1
