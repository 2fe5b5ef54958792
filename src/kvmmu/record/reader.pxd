# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ..addr cimport u32, u64, gva_t, gpa_t
from .cursors cimport Cursors
from .known cimport KnownFrames

cdef int CACHE_SHIFT, CACHE_SLOTS, K_ACCESS, K_INVLPG, K_INVPCID, K_MMIO, K_PAGE, K_REGS, K_STORE, MAP_IO
cdef int MAX_RANGES, MEMORY_UNKNOWN, STATE_SMM, W_INIT
cdef u64 CACHE_MIX, END_FRAME, MAX_MEMORY_FRAMES, U32, U64

cdef int _NUMBERS

@cython.final
cdef class Reader(Cursors):
    # Known when the file is open.
    cdef readonly object header     # format.Header
    cdef readonly object trailer    # format.Trailer, or None
    cdef readonly u64 total         # records in the file
    cdef readonly bint cut          # the file says, or shows by having no trailer, that recording was cut
    cdef object blocks              # BlockFile
    cdef int cpus
    cdef int memories               # number of the header's backing memories

    # The current record.
    cdef readonly int kind          # 0: none
    cdef readonly int cpu
    cdef readonly bint smm          # made in system management mode: another view of memory, tables of its own
    cdef readonly u32 access        # ACCESS, STORE, MMIO
    cdef readonly gva_t gva         # ACCESS, STORE, MMIO, INVLPG, INVPCID
    cdef readonly gpa_t gpa         # ACCESS, STORE, MMIO, PAGE, MAP
    cdef readonly int size          # STORE, MMIO: bytes; PAGE: 4096
    cdef readonly u64 value         # STORE, MMIO: the first 8 bytes, little endian; REGS: cr3
    cdef readonly int what          # REGS: the cause
    cdef readonly u64 cr0
    cdef readonly u64 cr3
    cdef readonly u64 cr4
    cdef readonly u64 efer
    cdef readonly u32 pkru
    cdef readonly int invpcid_type
    cdef readonly u64 pcid
    cdef readonly u64 map_size      # MAP: bytes
    cdef readonly int map_kind      # MAP: MAP_IO, MAP_RAM, MAP_ROM
    cdef readonly int map_memory    # MAP: index into header.memories, MEMORY_UNKNOWN
    cdef readonly u64 map_offset    # MAP: offset in that memory
    cdef Py_ssize_t content         # where in raw the record's bytes are
    cdef Py_ssize_t content_size

    # The block that is being decoded: what its records are relative to; empty at its start.
    cdef u64 left                   # records of the block not yet delivered
    cdef int state_cpu
    cdef u32 state_access
    cdef u64[::1] regs              # five words a CPU: cr0 cr3 cr4 efer pkru
    cdef u64[::1] predicted_page
    cdef u64[::1] predicted_frame

    # What the whole recording has said so far.
    cdef KnownFrames known

    cpdef int next(self) except -1
    @cython.locals(done=u64)
    cpdef u64 skip(self, u64 count) except? 0x5A5A5A5A
    cpdef bytes payload(self)
    cdef bint _load_block(self) except -1
    @cython.locals(state=u32, shift=int, byte=u32)
    cdef int _read_state(self) except -1
    @cython.locals(page=u64, slot=u64, frame=u64)
    cdef int _read_place(self, u32 token) except -1
    @cython.locals(size=int, value=u64, frame=u64, index=int)
    cdef int _read_value(self, int kind) except -1
    cdef int _check_memory(self, u64 frame) except -1
    @cython.locals(base=int, what=int, changed=int, index=int)
    cdef int _read_regs(self) except -1
    @cython.locals(frame=u64)
    cdef int _read_page(self) except -1
    @cython.locals(frame=u64, count=u64, page=u64)
    cdef int _read_map(self) except -1
