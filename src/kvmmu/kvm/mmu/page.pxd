# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u8, u32, u64, gfn_t, hpa_t

cdef object NO_PAGE
cdef u64 NOTHING, ONE

@cython.final
cdef class ShadowPage:
    # Identity: the hash key.
    cdef public gfn_t gfn           # indirect: the guest table's; direct: first gfn mapped
    cdef public u32 role            # compared as one word
    # The table.
    cdef readonly hpa_t spt         # 512 sptes
    cdef public hpa_t shadowed_translation  # indirect, level <= 3: per entry gfn << 12 | access; else 0
    cdef public u8 mmu_valid_gen
    # Users.
    cdef public int root_count
    cdef readonly u64 parent_ptes   # rmap head of the sptes that point here
    cdef public u32 write_flooding_count
    # The TDP MMU's.
    cdef public bint is_tdp         # owned by the TDP MMU (tdp_mmu_page)
    cdef public hpa_t ptep          # the one entry that links it; 0: a root
    cdef public bint scheduled_to_zap   # an invalidated root whose entries are still to go
    # Huge pages that the NX mitigation forbade.
    cdef public bint nx_huge_page_disallowed    # why this table exists
    cdef public ShadowPage nx_next  # list of those that nothing else forbids, oldest first; None: not on it
    cdef public ShadowPage nx_prev
    # Unsync state: level 1 pages are unsync themselves, tables above count the children that lead to one.
    cdef public bint unsync
    cdef public u32 unsync_children
    cdef u64 unsync_child_bitmap[8]
    # Lists: bucket of the hash (newest first), active list of the VM or its TDP roots (newest first).
    cdef readonly ShadowPage hash_next
    cdef readonly ShadowPage hash_prev
    cdef readonly ShadowPage link_next
    cdef readonly ShadowPage link_prev

    cdef int begin(self, gfn_t gfn, u32 role, hpa_t spt) except -1
    cpdef bint is_unsync_child(self, int index) noexcept
    cdef void set_unsync_child(self, int index) noexcept
    cdef void clear_unsync_child(self, int index) noexcept
    @cython.locals(word=u64)
    cdef int next_unsync_child(self, int index) noexcept

@cython.locals(sp=ShadowPage)
cpdef ShadowPage make_page(gfn_t gfn, u32 role, hpa_t spt)
