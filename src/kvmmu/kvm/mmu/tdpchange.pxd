# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u32, u64, gfn_t, hpa_t, hpa_to_pfn, pages_per_level, pfn_to_hpa
from ...hw.memory cimport PhysicalMemory
from ..requests cimport flush_remote_tlbs_gfn
from ..vm cimport Vm
from .change cimport count_pages
from .mmutrace cimport trace_get_page, trace_prepare_zap_page, trace_tdp_mmu_spte_changed
from .nxpage cimport forget, is_disallowed
from .page cimport ShadowPage, make_page
from .pages cimport sptep_to_sp
from .role cimport role_level, role_smm, role_with_level
from .spte cimport (SpteFormat, check_writable_triple, is_accessed, is_dirty, is_frozen, is_last, is_legal_triple,
                    is_mmio, is_shadow_present, is_volatile, make_nonleaf, spte_to_child, spte_to_pfn)
from .tdpiter cimport TdpIter

cdef int ENTRIES
cdef u64 FROZEN_SPTE, NOTHING, SHADOW_NONPRESENT_VALUE, U64

cpdef bint needs_xchg(Vm vm, u64 old_spte, int level) noexcept
cpdef u64 write_spte(Vm vm, hpa_t sptep, u64 old_spte, u64 new_spte, int level) except? 0x5A5A5A5A5A
cpdef u64 clear_bits(Vm vm, TdpIter it, u64 mask) except? 0x5A5A5A5A5A
cpdef bint try_exchange(Vm vm, TdpIter it, u64 new_spte) except -1
cpdef bint set_spte_atomic(Vm vm, TdpIter it, u64 new_spte) except -1
cpdef int set_spte(Vm vm, TdpIter it, u64 new_spte) except -1
cpdef u64 set_spte_at(
    Vm vm, int as_id, hpa_t sptep, u64 old_spte, u64 new_spte, gfn_t gfn, int level
) except? 0x5A5A5A5A5A
cpdef bint zap_spte_atomic(Vm vm, TdpIter it) except -1
@cython.locals(fmt=SpteFormat, was_present=bint, is_present=bint, was_leaf=bint, is_leaf=bint, same_pfn=bint)
cpdef int handle_changed(Vm vm, int as_id, gfn_t gfn, u64 old_spte, u64 new_spte, int level) except -1
@cython.locals(mem=PhysicalMemory, level=int, sptep=hpa_t, gfn=gfn_t, old=u64, _=int)
cpdef int remove_table(Vm vm, ShadowPage sp) except -1
@cython.locals(old=u64)
cpdef u64 freeze(Vm vm, hpa_t sptep) except? 0x5A5A5A5A5A
cpdef ShadowPage alloc_table(Vm vm)
cpdef int init_table(Vm vm, ShadowPage sp, gfn_t gfn, u32 role, hpa_t ptep) except -1
@cython.locals(parent=ShadowPage)
cpdef int init_child(Vm vm, ShadowPage sp, TdpIter it) except -1
cpdef int clear_table(Vm vm, ShadowPage sp) except -1
@cython.locals(spte=u64)
cpdef bint link_table(Vm vm, TdpIter it, ShadowPage sp) except -1
cpdef bint account_tables(Vm vm, int nr) except -1
cpdef int unaccount_table(Vm vm, ShadowPage sp) except -1
cpdef int free_table(Vm vm, ShadowPage sp) except -1
@cython.locals(vm=Vm, sp=ShadowPage)
cpdef object free_unlinked(object what)
