# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ..addr cimport u8, u64

cdef int BLOCK_RECORDS, CACHE_SHIFT, CACHE_SLOTS, K_ACCESS, K_INVLPG, K_INVPCID, K_MAP, K_MMIO, K_PAGE, K_REGS
cdef int K_STORE, RAW_CONTROL, RAW_HEAD, STATE_SMM
cdef u64 ACCESS_BITS, CACHE_MIX, ONE, U64

cdef Py_ssize_t _SPARE
cdef Py_ssize_t _CONTENT
cdef Py_ssize_t _DATA
cdef Py_ssize_t _CAPACITY

@cython.locals(value=u64, index=int)
cdef u64 _word(const u8[::1] raw, Py_ssize_t at) noexcept
cdef u64 _zigzag(u64 value) noexcept

@cython.final
cdef class Encoder:
    cdef readonly int cpus
    cdef readonly u64 records       # in the block being filled
    cdef readonly bint full         # the block must be taken first
    cdef public int smm             # the records from here on are made in system management mode
    cdef readonly int stopped       # why feed() came back: FED_*
    cdef u64[::1] counts            # by kind, over all blocks

    # The block's columns, and how much of each is filled.
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
    # What a block's records are relative to; empty at its start.
    cdef u64 last_page
    cdef u64 last_frame
    cdef int state                  # CPU and rare access bits, as the token column has them
    cdef u64[::1] regs              # five words a CPU: cr0 cr3 cr4 efer pkru
    cdef u64[::1] words             # the five words of the REGS record being written
    cdef u64[::1] predicted_page
    cdef u64[::1] predicted_frame

    cpdef int access(self, int cpu, int access, u64 gva, u64 gpa) except -1
    cpdef int store(self, int cpu, int access, u64 gva, u64 gpa, const u8[::1] data) except -1
    cpdef int mmio(self, int cpu, int access, u64 gva, u64 gpa, const u8[::1] data) except -1
    cpdef int snapshot(self, int cpu, u64 gpa, const u8[::1] data) except -1
    @cython.locals(index=int)
    cpdef int set_regs(self, int cpu, int what, object registers) except -1
    cpdef int invlpg(self, int cpu, u64 gva) except -1
    cpdef int invpcid(self, int cpu, int invpcid_type, u64 pcid, u64 gva) except -1
    cpdef int remap(self, int cpu, u64 gpa, u64 size, int kind, object backing) except -1
    @cython.locals(at=Py_ssize_t, kind=int, length=Py_ssize_t)
    cpdef Py_ssize_t feed(self, const u8[::1] stream, Py_ssize_t start, Py_ssize_t end) except -1
    cpdef bytes take(self)
    cpdef u64 count(self, int kind) except? 0x5A5A5A5A
    cpdef dict counted(self)
    @cython.locals(index=int)
    cdef int _reset(self) except -1
    @cython.locals(what=int, cpu=int, access=int, gva=u64, gpa=u64, value=u64, body=Py_ssize_t, index=int)
    cdef int _feed_one(self, const u8[::1] raw, Py_ssize_t at, int kind, Py_ssize_t length) except -1
    @cython.locals(placed=bint, token=int, state=int, at=Py_ssize_t)
    cdef int _put_token(self, int kind, int cpu, int access, u64 gva, u64 gpa) except -1
    cdef int _put_state(self, int state) except -1
    @cython.locals(page=u64, frame=u64, slot=u64)
    cdef int _put_place(self, u64 gva, u64 gpa) except -1
    @cython.locals(page=u64, value=u64)
    cdef int _put_gva(self, u64 gva) except -1
    @cython.locals(value=u64)
    cdef int _put_frame(self, u64 frame) except -1
    cdef int _put_number(self, u64 value) except -1
    cdef int _check_data(self, Py_ssize_t size, u64 gpa) except -1
    @cython.locals(index=Py_ssize_t)
    cdef int _put_data(self, int kind, const u8[::1] data, Py_ssize_t start, Py_ssize_t size) except -1
    @cython.locals(index=Py_ssize_t)
    cdef int _put_page(self, int cpu, u64 gpa, const u8[::1] data, Py_ssize_t start) except -1
    @cython.locals(changed=u64, at=Py_ssize_t, index=int)
    cdef int _put_regs(self, int cpu, int what) except -1
    cdef int _close_record(self, int kind) except -1
    cdef int _refuse(self, object what) except -1
