# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ..addr cimport u64, gva_t

cdef int TR_LEVEL_SHIFT, TR_PIECE_SHIFT

@cython.final
cdef class KeptEntries:
    cdef dict entries               # (level, page number, owner) -> (stamp, translation)
    cdef set owners                 # that `entries` ever had
    cdef dict pieces                # (piece, guest page number, owner) -> keys of its pieces in `entries`
    cdef Py_ssize_t sweep_at        # size of `entries` at which dead ones are swept out
    cdef object hit_key             # key of the last hit

    @cython.locals(found=tuple)
    cdef u64 find(self, int level, gva_t gva, u64 owner, u64 floor) except? 0x5A5A5A5A
    cdef int drop(self) except -1
    @cython.locals(level=int, piece=int)
    cdef int keep(self, gva_t gva, u64 owner, u64 translation, u64 stamp) except -1
    cdef bint is_full(self) except -1
    cdef int sweep(self, dict floors) except -1
    @cython.locals(level=int, piece=int)
    cdef int forget(self, gva_t gva, u64 owner) except -1
    cdef int clear(self) except -1

cpdef int piece_shift(int piece) noexcept
