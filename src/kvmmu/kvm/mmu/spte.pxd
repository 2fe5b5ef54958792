# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ...addr cimport u32, u64, gfn_t, gpa_t, hpa_t, pfn_t, gfn_to_gpa, gpa_to_gfn, hpa_to_pfn

cdef int MMIO_SPTE_GEN_HIGH_SHIFT, MMIO_SPTE_GEN_LOW_SHIFT, SHADOW_ACC_TRACK_SAVED_BITS_SHIFT
cdef int SHADOW_NONPRESENT_OR_RSVD_MASK_LEN
cdef u64 FROZEN_SPTE, MMIO_SPTE_GEN_HIGH_MASK, MMIO_SPTE_GEN_LOW_MASK, ONE, PT_PAGE_SIZE, PT_WRITABLE
cdef u64 SHADOW_ACC_TRACK_SAVED_BITS_MASK, SHADOW_NONPRESENT_VALUE, SPTE_BASE_ADDR_MASK, SPTE_MMU_PRESENT
cdef u64 SPTE_TDP_AD_DISABLED, SPTE_TDP_AD_MASK

# Typed aliases of the public constants of spte.py, for hot functions of this room; other rooms make their own.
cdef u64 _SAVED_HIGH_MASK

cdef class SpteFormat:
    # Which bits mean what in the tables of one VM.
    cdef readonly str name                  # "shadow" or "npt"
    cdef readonly u64 present_mask
    cdef readonly u64 user_mask
    cdef readonly u64 nx_mask
    cdef readonly u64 x_mask                # 0: the format says "executable" by NX clear
    cdef readonly u64 accessed_mask
    cdef readonly u64 dirty_mask
    cdef readonly u64 acc_track_mask        # taken from an access-tracked spte; 0: A bits do that job
    cdef readonly u64 host_writable_mask
    cdef readonly u64 mmu_writable_mask
    cdef readonly u64 me_value              # memory encryption; 0: none
    cdef readonly u64 mmio_value
    cdef readonly u64 mmio_mask
    cdef readonly u64 mmio_access_mask
    cdef readonly bint mmio_caching         # the effective value: off when no reserved address bit is free
    cdef readonly u64 l1tf_mask             # low bits moved up by 5; 0: the CPU has no such bug
    cdef readonly u64 lower_gfn_mask

cpdef bint is_shadow_present(u64 spte) noexcept
cpdef bint is_large(u64 spte) noexcept
cpdef bint is_last(u64 spte, int level) noexcept
cpdef bint is_writable(u64 spte) noexcept
cpdef bint is_frozen(u64 spte) noexcept
cpdef hpa_t spte_to_child(u64 spte) noexcept
cpdef pfn_t spte_to_pfn(u64 spte) noexcept
cpdef bint is_mmu_writable(SpteFormat fmt, u64 spte) noexcept
cpdef bint is_host_writable(SpteFormat fmt, u64 spte) noexcept
cpdef bint is_legal_triple(SpteFormat fmt, u64 spte) noexcept
cpdef bint ad_enabled(u64 spte) noexcept
cpdef bint ad_need_write_protect(u64 spte) noexcept
cpdef bint is_accessed(SpteFormat fmt, u64 spte) noexcept
cpdef bint is_dirty(SpteFormat fmt, u64 spte) noexcept
cpdef bint is_executable(SpteFormat fmt, u64 spte) noexcept
cpdef bint is_access_tracked(SpteFormat fmt, u64 spte) noexcept
cpdef bint is_volatile(SpteFormat fmt, u64 spte) noexcept
cpdef u64 mark_for_access_track(SpteFormat fmt, u64 spte) except? 0x5A5A5A5A5A
cpdef u64 restore_access_track(SpteFormat fmt, u64 spte) noexcept
@cython.locals(spte=u64)
cpdef u64 make_nonleaf(SpteFormat fmt, hpa_t child, bint ad_disabled) noexcept
cpdef bint is_mmio(SpteFormat fmt, u64 spte) noexcept
@cython.locals(gpa=gpa_t, spte=u64)
cpdef u64 make_mmio(SpteFormat fmt, gfn_t gfn, u32 access, u64 generation) noexcept
cpdef gfn_t mmio_gfn(SpteFormat fmt, u64 spte) noexcept
cpdef u32 mmio_access(SpteFormat fmt, u64 spte) noexcept
cpdef u64 mmio_generation(u64 spte) noexcept
# Raises KvmBug when host-writable, MMU-writable and W contradict each other.
cpdef int check_writable_triple(SpteFormat fmt, u64 spte) except -1
