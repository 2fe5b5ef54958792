# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ..addr cimport u8, u64

cdef int BLOCK_RECORDS, CACHE_SHIFT, CACHE_SLOTS
cdef u64 CACHE_MIX, U64

cdef Py_ssize_t _SPARE
cdef Py_ssize_t _CONTENT
cdef Py_ssize_t _DATA
cdef Py_ssize_t _CAPACITY

cdef u64 _zigzag(u64 value) noexcept

@cython.final
cdef class Columns:
    cdef u8[::1] token
    cdef u8[::1] page
    cdef u8[::1] offset
    cdef u8[::1] frame
    cdef u8[::1] number
    cdef u8[::1] data
    cdef u8[::1] content
    cdef Py_ssize_t at_token
    cdef Py_ssize_t at_page
    cdef Py_ssize_t at_offset
    cdef Py_ssize_t at_frame
    cdef Py_ssize_t at_number
    cdef Py_ssize_t at_data
    cdef Py_ssize_t at_content
    # What the block's records are relative to; empty at its start.
    cdef u64 last_page
    cdef u64 last_frame
    cdef int state                  # CPU and rare access bits, as the token column has them
    cdef u64[::1] predicted_page
    cdef u64[::1] predicted_frame

    @cython.locals(index=int)
    cpdef int reset(self) except -1
    cpdef bint is_nearly_full(self) noexcept
    cpdef bytes take(self)
    @cython.locals(at=Py_ssize_t)
    cpdef int put_token(self, int token, int state) except -1
    @cython.locals(at=Py_ssize_t)
    cpdef int put_placed_token(self, int token, int state, u64 gva, u64 gpa) except -1
    cdef int _put_state(self, int state) except -1
    @cython.locals(page=u64, frame=u64, slot=u64)
    cdef int _put_place(self, u64 gva, u64 gpa) except -1
    @cython.locals(page=u64, value=u64)
    cpdef int put_gva(self, u64 gva) except -1
    @cython.locals(value=u64)
    cpdef int put_frame(self, u64 frame) except -1
    cpdef int put_number(self, u64 value) except -1
    cpdef int put_byte(self, int value) except -1
    @cython.locals(index=Py_ssize_t)
    cpdef int put_data(self, const u8[::1] data, Py_ssize_t start, Py_ssize_t size) except -1
    @cython.locals(index=Py_ssize_t)
    cpdef int put_page(self, const u8[::1] data, Py_ssize_t start) except -1
