# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ..addr cimport u8, u64

cdef int MAX_PHYSICAL_BITS
cdef u64 END_FRAME, U64

cdef class Cursors:
    cdef readonly str path
    cdef readonly u64 position      # records delivered so far
    cdef const u8[::1] raw          # the block
    # A cursor and an end for each column.
    cdef Py_ssize_t at_token
    cdef Py_ssize_t at_page
    cdef Py_ssize_t at_offset
    cdef Py_ssize_t at_frame
    cdef Py_ssize_t at_number
    cdef Py_ssize_t at_data
    cdef Py_ssize_t at_content
    cdef Py_ssize_t end_token
    cdef Py_ssize_t end_page
    cdef Py_ssize_t end_offset
    cdef Py_ssize_t end_frame
    cdef Py_ssize_t end_number
    cdef Py_ssize_t end_data
    cdef Py_ssize_t end_content
    # What the next page and frame are relative to.
    cdef u64 last_page
    cdef u64 last_frame

    cdef int load(self, raw) except -1
    @cython.locals(at=Py_ssize_t, byte=u64, value=u64, shift=int)
    cdef u64 read_number(self) noexcept
    @cython.locals(at=Py_ssize_t, byte=u64, value=u64, shift=int, half=u64, page=u64, low=u64)
    cdef u64 read_gva(self) except? 0x5A5A5A5A
    @cython.locals(at=Py_ssize_t, byte=u64, value=u64, shift=int, half=u64, frame=u64)
    cdef u64 read_frame(self) except? 0x5A5A5A5A
    cdef int overrun(self) except -1
    cdef int contradict(self, object what) except -1
