# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u64, gfn_t, hpa_t
from ..memslots cimport Memslot
from ..vm cimport Vm
from .mmutrace cimport trace_sync_page, trace_unsync_page
from .page cimport ShadowPage
from .pages cimport first_gfn_sp, next_gfn_sp, sptep_index, sptep_to_sp
from .rmap cimport pte_list_first, pte_list_next, pte_list_sptep
from .role cimport role_level
from .spte cimport is_large, is_shadow_present, spte_to_child
from .track cimport is_write_tracked

cdef int EEXIST, EPERM, KVM_PAGE_ARRAY_NR

cdef int _WALK_FULL

cdef class UnsyncWalk:
    # Pages that lead to unsync ones, depth first, and the way from the one in hand back to the start.
    cdef list pages                 # of ShadowPage
    cdef list indices               # index in its parent, -1 for the start
    cdef list parents               # [level - 1] the parent of the page at that level, None above the start
    cdef int parent_indices[6]      # [level - 1] its index there
    @cython.locals(known=ShadowPage)
    cdef bint add(self, ShadowPage sp, int index) except -1
    @cython.locals(sp=ShadowPage, level=int)
    cdef int next(self, int i) except -1
    @cython.locals(sp=ShadowPage, level=int)
    cdef int first(self) except -1
    @cython.locals(level=int, sp=ShadowPage)
    cdef int clear_parents(self, Vm vm) except -1

cpdef int clear_unsync_child_bit(Vm vm, ShadowPage sp, int index) except -1
@cython.locals(sp=ShadowPage)
cpdef int mark_unsync(Vm vm, hpa_t sptep) except -1
@cython.locals(place=u64)
cpdef int mark_parents_unsync(Vm vm, ShadowPage sp) except -1
cpdef bint is_unsync(Vm vm, ShadowPage sp) except -1
cpdef bint leads_to_unsync(Vm vm, ShadowPage sp) except -1
@cython.locals(sp=ShadowPage, locked=bint)
cpdef int try_to_unsync(Vm vm, Memslot slot, gfn_t gfn, bint can_unsync, bint prefetch) except? -99
cpdef int unsync_page(Vm vm, ShadowPage sp) except -1
cpdef int unlink_unsync_page(Vm vm, ShadowPage sp) except -1
cpdef int unsync_walk(Vm vm, ShadowPage sp, UnsyncWalk walk) except? -99
@cython.locals(index=int, ret=int, nr=int, spte=u64, child=ShadowPage)
cpdef int unsync_walk_below(Vm vm, ShadowPage sp, UnsyncWalk walk) except? -99
