# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from .addr cimport u64

cdef u64 ONE
cdef int MAX_ACTORS, _NOBODY

@cython.final
cdef class Gate:
    cdef public bint armed          # a checker wants to hear of every access
    cdef public object checker      # its point(), barrier() and wait() are called when armed
    cdef readonly int actor         # who runs now
    cdef u64 held[64]               # by actor: ranks of the locks that it holds, a bit each
    cpdef int run(self, int actor) except -1
    cpdef int announce(self, str kind, object where, object key) except -1
    cpdef int wait(self, str kind, object where, object condition) except -1
    cpdef bint must_yield(self, object where) except -1
    cpdef int smp_mb(self) except -1
    cpdef int smp_rmb(self) except -1
    cpdef int smp_wmb(self) except -1
    cpdef int smp_store_release(self) except -1
    cpdef int smp_load_acquire(self) except -1
    @cython.locals(held=u64)
    cdef int hold(self, int rank, str name) except -1
    cdef int release(self, int rank) except -1
    @cython.locals(actor=int, count=int)
    cpdef bint holds_any(self) except -1

@cython.final
cdef class RwLock:
    cdef readonly str name
    cdef readonly Gate gate
    cdef readonly int rank          # RANK_*
    cdef readonly int writer        # the actor that holds it for writing; -1: none
    cdef readonly u64 readers       # actors that hold it for reading, a bit each
    @cython.locals(gate=Gate)
    cpdef int write_lock(self) except -1
    cpdef int write_unlock(self) except -1
    @cython.locals(gate=Gate)
    cpdef int read_lock(self) except -1
    cpdef int read_unlock(self) except -1
    cpdef int relax(self) except -1
    cpdef bint is_exclusive(self) except -1
    cpdef bint is_free(self) except -1
    cpdef bint has_no_writer(self) except -1
    cdef int _must_be_others(self, str what) except -1
    cpdef int assert_exclusive(self) except -1
    cpdef int assert_shared(self) except -1
    cpdef int assert_held(self) except -1

@cython.final
cdef class Mutex:
    cdef readonly str name
    cdef readonly Gate gate
    cdef readonly int rank          # RANK_*
    cdef readonly int owner         # the actor that holds it; -1: none
    @cython.locals(gate=Gate)
    cpdef int lock(self) except -1
    cpdef int unlock(self) except -1
    cpdef bint is_free(self) except -1
    cpdef int assert_held(self) except -1

@cython.final
cdef class Srcu:
    cdef readonly str name
    cdef readonly Gate gate
    cdef readonly u64 readers       # actors in a section, a bit each
    cdef int depth[64]              # by actor: sections that it is in
    @cython.locals(gate=Gate)
    cpdef int read_lock(self) except -1
    @cython.locals(gate=Gate)
    cpdef int read_unlock(self) except -1
    cpdef bint has_no_readers(self) except -1
    cpdef int synchronize(self) except -1

@cython.final
cdef class Rcu:
    cdef readonly str name
    cdef readonly Gate gate
    cdef readonly u64 readers       # actors in a section, a bit each
    cdef int depth[64]              # by actor: sections that it is in
    cdef readonly list pending      # what is to be freed: (function, argument, actors that it waits for, a bit each)
    @cython.locals(gate=Gate)
    cpdef int read_lock(self) except -1
    @cython.locals(gate=Gate)
    cpdef int read_unlock(self) except -1
    cpdef int call(self, object free, object what) except -1
    cpdef int assert_reading(self) except -1
    @cython.locals(pending=list, waits_for=u64, left=u64)
    cdef int _end_of(self, int actor) except -1
