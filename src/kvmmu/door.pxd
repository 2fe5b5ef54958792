# SPDX-License-Identifier: GPL-2.0-only

cdef long long _CLOSED, _NOBODY

cdef class Door:
    cdef object acquire
    cdef readonly object failure        # what a sink raised during the call that works now
    cdef object locked
    cdef readonly long long owner       # the thread that works, or worked last
    cdef object release

    cpdef int enter(self) except -1
    cpdef bint look(self) except -1
    cpdef int leave(self) except -1
    cpdef bint is_mine(self) except -1
    cpdef bint is_closed(self) except -1
