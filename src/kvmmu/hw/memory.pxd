# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ..addr cimport u8, u32, u64, hpa_t
from ..sync cimport Gate

cdef u64 U32, U64

@cython.final
cdef class PhysicalMemory:
    cdef readonly u64 nr_frames
    cdef readonly u64 size          # bytes
    cdef readonly object arena      # the mmap that holds every frame; a CPU emulator may map the same pages
    cdef u64[::1] words             # the arena as 64-bit words
    cdef u32[::1] halves            # the same bytes as 32-bit words (2-level guest tables)
    cdef u8[::1] bytes_             # the same bytes
    cdef readonly Gate gate

    cpdef u64 read_once(self, hpa_t hpa) except? 0x5A5A5A5A
    cpdef int write_once(self, hpa_t hpa, u64 value) except -1
    @cython.locals(old=u64)
    cpdef u64 xchg(self, hpa_t hpa, u64 value) except? 0x5A5A5A5A
    cpdef bint cmpxchg(self, hpa_t hpa, u64 old, u64 new) except -1
    @cython.locals(old=u64)
    cpdef u64 fetch_and(self, hpa_t hpa, u64 mask) except? 0x5A5A5A5A
    cpdef u32 read_once32(self, hpa_t hpa) except? 0x5A5A5A5A
    cpdef int write_once32(self, hpa_t hpa, u32 value) except -1
    cpdef bint cmpxchg32(self, hpa_t hpa, u32 old, u32 new) except -1
    @cython.locals(index=u64, end=u64)
    cpdef int fill_words(self, hpa_t hpa, u64 value, int count) except -1
    cpdef bytes read(self, hpa_t hpa, u64 length)
    @cython.locals(length=u64)
    cpdef int write(self, hpa_t hpa, const u8[::1] data) except -1
