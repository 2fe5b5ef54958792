# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u64, gfn_t, hpa_t, pages_per_level, round_gfn
from ...hw.memory cimport PhysicalMemory
from ..requests cimport flush_remote_tlbs
from ..vm cimport Vm
from .page cimport ShadowPage
from .role cimport role_level, role_smm
from .spte cimport is_last, is_shadow_present

cdef int LEVEL_BITS, PT64_ROOT_5LEVEL
cdef u64 INVALID_PAGE, NOTHING, SPTE_BASE_ADDR_MASK

cdef u64 _INDEX_MASK

@cython.final
@cython.freelist(8)
cdef class TdpIter:
    # The entry in hand.
    cdef readonly hpa_t sptep
    cdef readonly gfn_t gfn         # first one that it maps
    cdef readonly int level
    cdef public u64 old_spte        # as last read; a lost race puts today's word here
    # The walk.
    cdef readonly gfn_t next_last_level_gfn     # goal: where the walk is on its way to
    cdef readonly gfn_t yielded_gfn # goal when the walk began or last yielded
    cdef hpa_t pt_path[6]           # by level: the tables on the way
    cdef readonly int root_level
    cdef readonly int min_level
    cdef readonly int as_id         # address space of the root
    cdef readonly bint valid        # False: past the end
    cdef public bint yielded        # the lock was dropped: go on to next(), which begins again at the root

    cdef int begin(self) except -1
    @cython.locals(level=int)
    cpdef int start(self, PhysicalMemory mem, ShadowPage root, int min_level, gfn_t start_gfn) except -1
    cpdef int restart(self, PhysicalMemory mem) except -1
    @cython.locals(index=u64)
    cdef int refresh(self, PhysicalMemory mem) except -1
    cpdef int next(self, PhysicalMemory mem) except -1
    @cython.locals(table=hpa_t, shift=int, index=u64)
    cdef bint step_down(self, PhysicalMemory mem) except -1
    cdef bint step_side(self, PhysicalMemory mem) except -1
    cdef bint step_up(self, PhysicalMemory mem) except -1

@cython.locals(it=TdpIter)
cpdef TdpIter make_iter()
cpdef bint yield_walk(Vm vm, TdpIter it, bint flush) except -1
