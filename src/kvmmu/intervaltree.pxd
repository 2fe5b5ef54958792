# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from .addr cimport u64

@cython.final
cdef class Interval:
    cdef readonly u64 start
    cdef readonly u64 last          # included
    cdef readonly u64 max_last      # greatest in the subtree below
    cdef readonly u64 order         # among those that begin alike: when it came
    cdef readonly int height        # of the subtree: 1 is a leaf
    cdef readonly object owner
    cdef readonly Interval left
    cdef readonly Interval right

@cython.final
cdef class IntervalTree:
    cdef readonly Interval root
    cdef readonly Py_ssize_t nr     # of intervals
    cdef u64 next_order

    @cython.locals(new=Interval, at=Interval, order=u64, path=list)
    cpdef u64 insert(self, u64 start, u64 last, object owner) except? 0x5A5A5A5A5A
    @cython.locals(at=Interval, top=Interval, parent=Interval, height=int)
    cdef int _rise(self, list path) except -1
    cpdef int remove(self, u64 start, u64 order) except -1
    @cython.locals(node=Interval)
    cpdef object find(self, u64 key)
    @cython.locals(found=list)
    cpdef list overlapping(self, u64 start, u64 last)
    @cython.locals(found=list)
    cpdef list owners(self)


@cython.locals(heir=Interval)
cpdef Interval removed(Interval at, u64 start, u64 order)
@cython.locals(lean=int, left=Interval, right=Interval)
cpdef Interval balanced(Interval at)
@cython.locals(top=Interval)
cpdef Interval rotated_left(Interval at)
@cython.locals(top=Interval)
cpdef Interval rotated_right(Interval at)
@cython.locals(child=Interval)
cpdef int summarise(Interval at) except -1
cpdef int height_of(Interval at) except -1
cpdef int collect(Interval at, u64 start, u64 last, list found) except -1
