# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u64, gfn_t, hpa_t
from ..memslots cimport Memslot
from ..requests cimport flush_remote_tlbs_memslot, flush_remote_tlbs_range
from ..vm cimport Vm
from .hugepage cimport max_mapping_level
from .page cimport ShadowPage
from .pages cimport first_gfn_sp, next_gfn_sp, sp_gfn, sptep_to_sp
from .rmap cimport (drop_spte, pte_list_first, pte_list_next, pte_list_sptep, rmap_age, rmap_write_protect, zap_rmap)
from .role cimport role_direct, role_level, role_smm
from .spte cimport is_last, is_shadow_present
from .tdppass cimport (age_leafs, collapse_tables, is_any_young, unmap_leafs, write_protect_leafs, write_protect_mask,
                       zap_leafs)
from .tdpsplit cimport split_leafs
from .zap cimport flush_or_zap, prepare_zap

cdef int ENTRIES, KVM_ADDRESS_SPACE_NUM, KVM_MAX_HUGEPAGE_LEVEL, LEVEL_BITS
cdef u64 ONE

@cython.locals(flush=bint)
cpdef bint unmap_gfn_range(Vm vm, Memslot slot, gfn_t start_gfn, gfn_t end_gfn) except -1
@cython.locals(young=bint)
cpdef bint age_gfn_range(Vm vm, Memslot slot, gfn_t start_gfn, gfn_t end_gfn) except -1
cpdef bint is_young_gfn_range(Vm vm, Memslot slot, gfn_t start_gfn, gfn_t end_gfn) except -1
@cython.locals(level=int, at=u64, last=u64, flush=bint, is_sparse=bint)
cpdef bint unmap_rmaps(Vm vm, Memslot slot, gfn_t start_gfn, gfn_t end_gfn) except -1
@cython.locals(shift=int, end_gfn=gfn_t)
cpdef bint yield_pass(Vm vm, Memslot slot, gfn_t start_gfn, int level, u64 at, bint flush) except -1
@cython.locals(flush=bint, as_id=int, slot=Memslot, first=gfn_t, end=gfn_t)
cpdef int zap_gfn_range(Vm vm, gfn_t start_gfn, gfn_t end_gfn) except -1
@cython.locals(flush=bint, gfn=gfn_t, sp=ShadowPage, following=ShadowPage)
cpdef int zap_memslot(Vm vm, Memslot slot) except -1
@cython.locals(found=set, sp=ShadowPage, index=u64, spte=u64, gfn=gfn_t, at=u64)
cpdef list mapped_rmaps(Vm vm, Memslot slot, int level, u64 first, u64 last)
@cython.locals(flush=bint)
cpdef bint write_protect_slot(Vm vm, Memslot slot) except -1
cpdef int split_slot(Vm vm, Memslot slot) except -1
cpdef int split_gfn_range(Vm vm, Memslot slot, gfn_t start_gfn, gfn_t end_gfn) except -1
@cython.locals(changed=bint)
cpdef bint collapse_slot(Vm vm, Memslot slot) except -1
@cython.locals(i=int, gfn=gfn_t)
cpdef int write_protect_masked(Vm vm, Memslot slot, gfn_t base_gfn, u64 mask) except -1
@cython.locals(young=bint, level=int, at=u64, last=u64)
cpdef bint age_rmaps(Vm vm, Memslot slot, gfn_t start_gfn, gfn_t end_gfn, bint only_test) except -1
@cython.locals(level=int, at=u64, end=u64, flush=bint)
cpdef bint write_protect_rmaps(Vm vm, Memslot slot) except -1
@cython.locals(place=u64, sptep=hpa_t, sp=ShadowPage)
cpdef bint zap_one_collapsible(Vm vm, Memslot slot, u64 at) except -1
@cython.locals(level=int, at=u64, end=u64, flush=bint)
cpdef bint zap_collapsible(Vm vm, Memslot slot) except -1
