# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u8, u64, gfn_t, hpa_t
from ..sync cimport Gate, RwLock, Mutex
from ..tracepoint cimport Trace
from ..hw.memory cimport PhysicalMemory
from ..host.frames cimport FrameAllocator
from ..host.mm cimport Mm
from .memslots cimport Memslot, Memslots
from .stats cimport VmStat
from .mmu.spte cimport SpteFormat
from .mmu.page cimport ShadowPage

cdef u64 ONE

cdef class Vm:
    # The parties around it.
    cdef readonly PhysicalMemory memory
    cdef readonly FrameAllocator frames
    cdef readonly Mm mm
    cdef readonly Gate gate
    cdef readonly Trace trace
    cdef readonly object params
    # Configuration, fixed at creation.
    cdef readonly bint tdp_enabled          # direct MMU on NPT; else shadow paging
    cdef readonly int tdp_root_level        # host page-table levels
    cdef readonly int host_maxphyaddr
    cdef readonly bint mmio_caching
    cdef readonly bint flush_on_reuse
    cdef readonly SpteFormat fmt
    cdef readonly gfn_t max_gfn             # largest gfn that sptes may map
    # Locks, outer first.
    cdef readonly Mutex slots_lock
    cdef readonly Mutex slots_arch_lock
    cdef readonly RwLock mmu_lock
    cdef readonly Mutex mmu_unsync_pages_lock
    # Memslots: the published set of each address space.
    cdef readonly list memslots
    cdef public u64 nr_memslot_pages
    cdef public int nr_memslots_dirty_logging
    cdef public bint shadow_root_allocated
    # Host invalidations.
    cdef public u64 mmu_invalidate_seq
    cdef public int mmu_invalidate_in_progress
    cdef public gfn_t mmu_invalidate_range_start    # all ones: no range yet
    cdef public gfn_t mmu_invalidate_range_end
    cdef public int mn_active_invalidate_count
    # Shadow pages.
    cdef public u64 n_used_mmu_pages
    cdef public u64 n_requested_mmu_pages   # by the user; 0: computed from the slots
    cdef public u64 n_max_mmu_pages
    cdef public u64 indirect_shadow_pages
    cdef public u8 mmu_valid_gen
    cdef readonly list mmu_page_hash        # 4096 heads, newest page first
    cdef readonly ShadowPage active_mmu_pages   # sentinel of the active list: link_next is the newest
    cdef public hpa_t desc_free             # free pte_list_descs, linked through their first word (rmap.py)
    cdef public u64 nr_desc_frames          # frames that descriptors were cut from
    cdef readonly list vcpus
    cdef readonly VmStat stat

    cpdef bint is_write_tracking_enabled(self) noexcept
    cpdef Memslots slots_of(self, int as_id)
    @cython.locals(slots=Memslots)
    cpdef Memslot gfn_to_memslot(self, gfn_t gfn, int as_id)
