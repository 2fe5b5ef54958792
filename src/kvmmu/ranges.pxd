# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from .addr cimport u64

@cython.final
cdef class Ranges:
    cdef u64[::1] bounds            # start and end of the first range, start and end of the second ...
    cdef readonly Py_ssize_t nr     # of ranges

    @cython.locals(low=Py_ssize_t, high=Py_ssize_t, middle=Py_ssize_t)
    cpdef Py_ssize_t search(self, u64 key) noexcept
