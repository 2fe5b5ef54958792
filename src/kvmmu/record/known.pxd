# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ..addr cimport u64

cdef int MAP_IO, MAP_RAM, MAP_ROM
cdef u64 U64

cdef u64 _SEEN_MASK
cdef int _SEEN_SLOTS

@cython.final
cdef class KnownFrames:
    cdef list starts                # frames at which the map's meaning changes, ascending, from 0 on
    cdef list kinds                 # MAP_IO, MAP_RAM or MAP_ROM from there on
    cdef u64 near_start             # the range that was asked for last: [near_start, near_end) is near_kind
    cdef u64 near_end
    cdef int near_kind
    cdef u64 device_start           # the range without RAM that a device access found last
    cdef u64 device_end
    cdef set tables                 # frames that were recorded as tables
    cdef u64[::1] seen              # some of them, by their low bits

    cpdef int meaning(self, u64 frame) except -1
    cpdef bint is_ram(self, u64 frame) except -1
    @cython.locals(index=Py_ssize_t)
    cpdef int find_range(self, u64 frame) except -1
    @cython.locals(starts=list, kinds=list, low=Py_ssize_t, high=Py_ssize_t)
    cpdef int change(self, u64 first, u64 end, int kind) except -1
    cpdef bint is_table(self, u64 frame) except -1
    cpdef int add_table(self, u64 frame) except -1
