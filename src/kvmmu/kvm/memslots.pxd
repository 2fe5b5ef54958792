# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..sync cimport Gate
from ..addr cimport u16, u32, s32, u64, gfn_t, hva_t, pfn_t
from ..host.frames cimport SmallArrays
from ..intervaltree cimport IntervalTree

cdef int KVM_USER_MEM_SLOTS, LEVEL_BITS
cdef u64 SMALL_ARRAY_WORDS
cdef u64 KVM_HVA_ERR_BAD, KVM_HVA_ERR_RO_BAD, KVM_MEMSLOT_INVALID, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
cdef u64 KVM_PFN_ERR_MASK, KVM_PFN_ERR_NOSLOT_MASK, KVM_PFN_NOSLOT, ONE, PAGE_SHIFT

@cython.final
cdef class Memslot:
    cdef readonly int id
    cdef readonly int as_id
    cdef readonly gfn_t base_gfn
    cdef readonly gfn_t end_gfn     # base_gfn + npages
    cdef readonly u64 npages
    cdef readonly hva_t userspace_addr
    cdef u64 gfn_order[2]           # in the trees of each of the two sets of its address space
    cdef u64 hva_order[2]
    cdef public u32 flags           # KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_MEMSLOT_INVALID
    # Per level arrays, one after the other: 2M, 1G, then 4K (last, so that disallow_lpage needs no room for it).
    # A level's begins at offset[level]: the element of gfn is offset[level] + index(gfn, level).
    cdef u64 offset[4]
    cdef u64 nr_entries[4]          # by level
    # Each array is kept twice: as the Python object that copies of the slot share, and as C words.
    cdef readonly object rmap_array   # None while no rmaps are in use
    cdef u64[::1] rmap              # rmap head words, levels 1 to 3 (mmu/rmap.py)
    cdef s32[::1] disallow_lpage    # levels 2 and 3 only; != 0 forbids a large page
    cdef readonly object write_track_array
    cdef u16[::1] gfn_write_track   # element index(gfn, 1); None while nothing is tracked
    cdef readonly object dirty_array
    cdef u64[::1] dirty_bitmap      # one bit per page, then as many words of scratch; None: not logging

    @cython.locals(count=u64)
    cpdef alloc_lpage_info(self, SmallArrays arrays)
    cpdef share_arch(self, Memslot other)
    cpdef u64 index(self, gfn_t gfn, int level) noexcept
    cpdef u64 nr_lpages(self, int level) noexcept
    cpdef hva_t gfn_to_hva(self, gfn_t gfn) noexcept
    cpdef hva_t gfn_to_hva_prot(self, gfn_t gfn, bint write) noexcept
    cpdef bint contains(self, gfn_t gfn) noexcept
    cpdef bint is_invalid(self) noexcept
    cpdef bint is_readonly(self) noexcept
    cpdef bint is_visible(self) noexcept
    cpdef bint is_dirty_logged(self) noexcept
    cpdef s32 nr_disallowed(self, gfn_t gfn, int level) noexcept
    @cython.locals(at=u64, end=u64)
    cpdef bint is_any_tracked(self, gfn_t gfn, u64 count) except -1
    cpdef u64 rmap_word(self, gfn_t gfn, int level) noexcept
    cpdef u64 nr_dirty_words(self) noexcept
    cdef int _bind(self) except -1
    @cython.locals(level=int, i=u64, block=u64)
    cdef int _forbid_lpages(self) except -1

@cython.final
cdef class Memslots:
    # One of the two sets of an address space; each swap publishes the other.
    cdef readonly int as_id
    cdef readonly u64 generation    # bit 63: an update is in progress
    cdef readonly int node_index    # which of the two it is
    cdef readonly Memslots twin     # None until it is asked for
    cdef readonly IntervalTree gfn_tree
    cdef readonly IntervalTree hva_tree
    cdef readonly dict by_id
    cdef readonly Memslot last_used_slot    # hint of find()

    @cython.locals(which=int, hva=hva_t)
    cpdef int replace(self, Memslot old, Memslot new) except -1
    @cython.locals(slot=Memslot)
    cpdef Memslot find(self, gfn_t gfn)
    cpdef Memslot search(self, gfn_t gfn)
    @cython.locals(slot=Memslot)
    cpdef hva_t gfn_to_hva(self, gfn_t gfn, bint write) noexcept
    @cython.locals(slot=Memslot)
    cpdef bint is_visible_gfn(self, gfn_t gfn) noexcept
    cpdef u64 read_generation(self, Gate gate) except? 0x5A5A5A5A
    cpdef int set_generation(self, Gate gate, u64 generation) except -1


cpdef bint is_error_hva(hva_t hva) noexcept
cpdef bint is_error_pfn(pfn_t pfn) noexcept
cpdef bint is_error_noslot_pfn(pfn_t pfn) noexcept
cpdef bint is_noslot_pfn(pfn_t pfn) noexcept
