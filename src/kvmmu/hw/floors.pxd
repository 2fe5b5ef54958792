# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ..addr cimport u32, u64

cdef int TLB_PCID_SHIFT, TLB_SPACE_SHIFT
cdef u64 ONE, TLB_GLOBAL_OWNER

cdef class Floors:
    cdef readonly u64 clock         # moves with each flush
    cdef u64 all_floor              # entries with a lower stamp are dead, whoever owns them
    cdef dict global_floors         # space -> floor of its global entries
    cdef dict local_floors          # space -> floor of its other entries
    cdef dict pcid_floors           # owner -> floor of one PCID
    # The current context.
    cdef readonly u32 space         # ASID, VPID: 0 for the host's own
    cdef readonly u32 pcid
    cdef u64 owner                  # of its entries, and
    cdef u64 global_owner           # of its global ones
    cdef u64 floor                  # of `owner`
    cdef u64 global_floor           # of `global_owner`
    cdef readonly u64 flushes

    cpdef int switch(self, u32 space, u32 pcid) except -1
    @cython.locals(space=u64)
    cdef u64 floor_of(self, u64 owner) except? 0x5A5A5A5A
    cdef int raise_all(self) except -1
    cpdef int flush_space(self, u32 space) except -1
    cpdef int flush_non_global(self) except -1
    cpdef int flush_pcid(self, u32 pcid) except -1
    cpdef int flush_current(self) except -1
    cdef int tick(self) noexcept
    cdef int _refresh(self) except -1
