# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u8, u64, gfn_t, hpa_t
from ..sync cimport Gate, Mutex, Rcu, RwLock, Srcu
from ..tracepoint cimport Trace
from ..hw.memory cimport PhysicalMemory
from ..host.frames cimport FrameAllocator, SmallArrays
from ..host.mm cimport Mm
from .invalidation cimport Invalidation
from .memslots cimport Memslot, Memslots
from .policy cimport Policy
from .stats cimport VmStat
from .vendor cimport Vendor
from .mmu.spte cimport SpteFormat
from .mmu.page cimport ShadowPage

cdef u64 KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, ONE

cdef class Vm:
    # The parties around it.
    cdef readonly PhysicalMemory memory
    cdef readonly FrameAllocator frames
    cdef readonly Mm mm
    cdef readonly Gate gate
    cdef readonly Trace trace
    cdef readonly object params
    cdef readonly Vendor vendor
    # Configuration, fixed at creation.
    cdef readonly bint tdp_enabled          # direct MMU on NPT; else shadow paging
    cdef readonly int tdp_root_level        # host page-table levels
    cdef readonly int host_maxphyaddr
    cdef readonly Policy policy             # what parameters decide
    cdef readonly SpteFormat fmt
    cdef readonly gfn_t max_gfn             # largest gfn that sptes may map
    # Locks, outer first.
    cdef readonly Mutex slots_lock
    cdef readonly Mutex slots_arch_lock
    cdef readonly SmallArrays small_arrays  # of small slots; slots_lock
    cdef readonly RwLock mmu_lock
    cdef readonly Mutex mmu_unsync_pages_lock
    cdef readonly Mutex tdp_mmu_pages_lock
    cdef readonly Srcu srcu                 # readers of the memslots
    cdef readonly Rcu rcu                   # readers of the TDP MMU's tables
    # Memslots: the published set of each address space.
    cdef readonly tuple memslots
    cdef public u64 nr_memslot_pages
    cdef public int nr_memslots_dirty_logging
    cdef public u64 manual_dirty_log_protect    # KVM_DIRTY_LOG_* bits that the process asked for
    cdef bint has_shadow_roots              # a shadow root was made: every slot has its arrays
    cdef readonly Invalidation invalidation # by the host
    # Shadow pages.
    cdef public u64 n_used_mmu_pages
    cdef public u64 n_requested_mmu_pages   # by the user; 0: computed from the slots
    cdef public u64 n_max_mmu_pages
    cdef public u64 indirect_shadow_pages
    cdef public u8 mmu_valid_gen
    cdef list mmu_page_hash                 # 4096 heads, newest page first
    cdef readonly ShadowPage active_mmu_pages   # sentinel of the active list: link_next is the newest
    # Pages of the TDP MMU.
    cdef readonly ShadowPage tdp_mmu_roots  # sentinel of the list of roots: link_next is the newest
    cdef public u64 tdp_mmu_pages           # tables that some entry links; roots are not among them
    # Pages of either that nothing but the NX mitigation keeps from being huge: nx_next is the oldest.
    cdef readonly ShadowPage possible_nx_huge_pages
    cdef public hpa_t desc_free             # free pte_list_descs, linked through their first word (rmap.py)
    cdef public u64 nr_desc_frames          # frames that descriptors were cut from
    cdef readonly tuple vcpus
    cdef readonly VmStat stat

    cpdef bint is_write_tracking_enabled(self) except -1
    cpdef bint is_log_manual(self) noexcept
    cpdef bint is_log_initially_set(self) noexcept
    cpdef bint has_rmaps(self) except -1
    @cython.locals(allocated=bint)
    cpdef bint is_shadow_root_allocated(self) except -1
    cpdef int set_shadow_root_allocated(self) except -1
    @cython.locals(sets=list)
    cpdef int publish_slots(self, Memslots slots) except -1
    cpdef Memslots slots_of(self, int as_id)
    @cython.locals(slots=Memslots)
    cpdef Memslot gfn_to_memslot(self, gfn_t gfn, int as_id)
