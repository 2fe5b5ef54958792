# SPDX-License-Identifier: GPL-2.0-only
from ..addr cimport u64

cdef class VmStat:
    cdef public u64 remote_tlb_flush
    cdef public u64 remote_tlb_flush_requests
    cdef public u64 mmu_shadow_zapped
    cdef public u64 mmu_pte_write
    cdef public u64 mmu_pde_zapped
    cdef public u64 mmu_flooded
    cdef public u64 mmu_recycled
    cdef public u64 mmu_cache_miss
    cdef public u64 mmu_unsync              # instant
    cdef public u64 pages_4k                # instant
    cdef public u64 pages_2m                # instant
    cdef public u64 pages_1g                # instant
    cdef public u64 nx_lpage_splits         # instant
    cdef public u64 max_mmu_rmap_size       # peak
    cdef public u64 max_mmu_page_hash_collisions    # peak

cdef class VcpuStat:
    cdef public u64 pf_taken
    cdef public u64 pf_fixed
    cdef public u64 pf_emulate
    cdef public u64 pf_spurious
    cdef public u64 pf_fast
    cdef public u64 pf_mmio_spte_created
    cdef public u64 pf_guest
    cdef public u64 tlb_flush
    cdef public u64 invlpg
    cdef public u64 exits
    cdef public u64 mmio_exits
    cdef public u64 insn_emulation
    cdef public u64 insn_emulation_fail
