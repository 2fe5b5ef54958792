# SPDX-License-Identifier: GPL-2.0-only
from ...addr cimport u32, u64, gpa_t, gfn_t, hpa_t, pfn_t
from ...tracepoint cimport Trace
from .page cimport ShadowPage
from .spte cimport SpteFormat, is_executable, mmio_generation, mmio_gfn

cdef u64 ACC_ALL, MMIO_SPTE_GEN_MASK

# Each builds one event and hands it to trace.sink; callers test trace.on first.
cpdef int trace_pagetable_walk(Trace trace, u64 addr, u32 pferr) except -1
cpdef int trace_paging_element(Trace trace, u64 pte, int level) except -1
cpdef int trace_set_accessed_bit(Trace trace, gpa_t gpa) except -1
cpdef int trace_set_dirty_bit(Trace trace, gpa_t gpa) except -1
cpdef int trace_walker_error(Trace trace, u32 pferr) except -1
cpdef int trace_get_page(Trace trace, ShadowPage sp, bint created) except -1
cpdef int trace_sync_page(Trace trace, ShadowPage sp) except -1
cpdef int trace_unsync_page(Trace trace, ShadowPage sp) except -1
cpdef int trace_prepare_zap_page(Trace trace, ShadowPage sp) except -1
cpdef int trace_mark_mmio_spte(Trace trace, SpteFormat fmt, hpa_t sptep, u64 spte) except -1
cpdef int trace_handle_mmio_page_fault(Trace trace, u64 addr, gfn_t gfn, u32 access) except -1
cpdef int trace_fast_page_fault(
    Trace trace, int vcpu_id, u64 addr, u64 error_code, hpa_t sptep, u64 old_spte, u64 new_spte, int ret
) except -1
cpdef int trace_zap_all_fast(Trace trace, int mmu_valid_gen, u64 used_pages) except -1
cpdef int trace_check_mmio_spte(Trace trace, u64 kvm_gen, u64 spte_gen, u64 spte) except -1
cpdef int trace_set_spte(Trace trace, SpteFormat fmt, int level, gfn_t gfn, hpa_t sptep, u64 spte) except -1
cpdef int trace_spte_requested(Trace trace, gfn_t gfn, pfn_t pfn, int level) except -1
cpdef int trace_tdp_mmu_spte_changed(
    Trace trace, int as_id, gfn_t gfn, int level, u64 old_spte, u64 new_spte
) except -1
cpdef int trace_split_huge_page(Trace trace, gfn_t gfn, u64 spte, int level, int errno) except -1

cpdef int _sp_event(Trace trace, object name, ShadowPage sp) except -1
cpdef int _emit(Trace trace, object event) except -1
