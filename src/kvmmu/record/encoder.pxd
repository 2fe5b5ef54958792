# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ..addr cimport u8, u64
from .columns cimport Columns

cdef int BLOCK_RECORDS, K_ACCESS, K_INVLPG, K_INVPCID, K_MAP, K_MMIO, K_PAGE, K_REGS
cdef int K_STORE, RAW_CONTROL, RAW_HEAD, STATE_SMM
cdef u64 ACCESS_BITS, ONE, U64

@cython.locals(value=u64, index=int)
cdef u64 _word(const u8[::1] raw, Py_ssize_t at) noexcept

@cython.final
cdef class Encoder:
    cdef readonly int cpus
    cdef readonly u64 records       # in the block being filled
    cdef readonly bint full         # the block must be taken first
    cdef public int smm             # the records from here on are made in system management mode
    cdef readonly int stopped       # why feed() came back: FED_*
    cdef u64[::1] counts            # by kind, over all blocks

    cdef Columns columns
    cdef u64[::1] regs              # five words a CPU: cr0 cr3 cr4 efer pkru
    cdef u64[::1] words             # the five words of the REGS record being written

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
    @cython.locals(placed=bint, token=int, state=int)
    cdef int _put_token(self, int kind, int cpu, int access, u64 gva, u64 gpa) except -1
    cdef int _check_data(self, Py_ssize_t size, u64 gpa) except -1
    cdef int _put_data(self, int kind, const u8[::1] data, Py_ssize_t start, Py_ssize_t size) except -1
    cdef int _put_page(self, int cpu, u64 gpa, const u8[::1] data, Py_ssize_t start) except -1
    @cython.locals(changed=u64, index=int)
    cdef int _put_regs(self, int cpu, int what) except -1
    cdef int _close_record(self, int kind) except -1
    cdef int _refuse(self, object what) except -1
