# SPDX-License-Identifier: GPL-2.0-only

cdef class Gate:
    cdef public bint armed          # a checker wants to hear of every access
    cdef public object checker      # its point(kind, where, key) is called when armed

cdef class RwLock:
    cdef readonly str name
    cdef readonly Gate gate
    cdef readonly int readers       # holders for read
    cdef readonly bint exclusive    # held for write
    cpdef int write_lock(self) except -1
    cpdef int write_unlock(self) except -1
    cpdef int read_lock(self) except -1
    cpdef int read_unlock(self) except -1
    cpdef int assert_exclusive(self) except -1
    cpdef int assert_held(self) except -1

cdef class Mutex:
    cdef readonly str name
    cdef readonly Gate gate
    cdef readonly bint locked
    cpdef int lock(self) except -1
    cpdef int unlock(self) except -1
    cpdef int assert_held(self) except -1
