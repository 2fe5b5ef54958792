# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u64, gfn_t
from ..sync cimport Gate, Mutex, RwLock

cdef u64 INVALID_PAGE

@cython.final
cdef class Invalidation:
    cdef readonly Gate gate
    cdef readonly RwLock mmu_lock
    cdef readonly Mutex mn_invalidate_lock
    cdef readonly u64 seq               # moves with every end
    cdef readonly int in_progress       # begun and not ended
    cdef readonly gfn_t range_start     # what those cover; all ones: no range yet
    cdef readonly gfn_t range_end
    cdef readonly int active            # notifiers between start and end, whether they met a slot or not

    @cython.locals(seq=u64)
    cpdef u64 sample(self) except? 0x5A5A5A5A5A
    cpdef bint covers(self, gfn_t gfn, u64 seq) except -1
    cpdef bint covers_unlocked(self, gfn_t gfn, u64 seq) except -1
    cpdef bint is_in_progress(self) except -1
    cpdef int begin(self) except -1
    cpdef int add_range(self, gfn_t start_gfn, gfn_t end_gfn) except -1
    cpdef int end(self) except -1
    cpdef int enter(self) except -1
    cpdef int leave(self) except -1
    cpdef bint is_idle(self) except -1
    cpdef int lock_idle(self) except -1
    cpdef int unlock_idle(self) except -1
