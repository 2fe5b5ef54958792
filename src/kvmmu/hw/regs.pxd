# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ..addr cimport u32, u64, hpa_t
from .memory cimport PhysicalMemory
from .stage2 cimport SecondStage

cdef int TR_PKEY_SHIFT
cdef u64 ONE, TR_USER

cdef u64 _CR0_SHAPE
cdef u64 _CR4_SHAPE
cdef u64 _EFER_SHAPE
cdef u64 _NO_SHAPE

cpdef u32 kind_index(u32 kind) noexcept

cdef class Registers:
    cdef readonly PhysicalMemory memory
    cdef readonly u64 cr0
    cdef readonly u64 cr3           # as the walker uses it: bit 63 of the operand is never stored
    cdef readonly u64 cr4
    cdef readonly u64 efer
    cdef readonly u32 pkru
    cdef u64 pdptrs[4]              # PAE: loaded with CR3, not reread from memory
    cdef readonly int maxphyaddr
    cdef readonly bint has_gbpages
    # Second stage (nested paging): the table that translates every gpa.
    cdef readonly bint nested
    cdef readonly hpa_t ncr3
    cdef readonly int nested_levels
    cdef readonly SecondStage second_stage  # the format of its entries
    # Derived: the shape of the walk.
    cdef u64 shape                  # the register bits that the fields below were derived from
    cdef readonly int mode          # MODE_* of modes.py
    cdef readonly int levels        # 0: no paging
    cdef int index_bits
    cdef int entry_size
    cdef bint has_pdptrs
    cdef readonly bint has_pkeys    # CR4.PKE in long mode
    cdef readonly bint has_pcid     # CR4.PCIDE
    cdef readonly bint has_global   # CR4.PGE
    cdef bint pkru_active           # PKRU can deny something
    cdef readonly u64 gva_mask
    cdef u64 root_mask              # of CR3
    cdef u32 large_levels           # bit n: PS at level n makes a large page
    cdef u32 fetch_bit              # ACCESS_FETCH if the error code tells fetches apart, else 0
    cdef u64 rsvd[6]                # by level: bits that must be 0 in a directory or a 4K leaf
    cdef u64 rsvd_large[6]          # and in an entry that maps a large page
    cdef u32 nested_large_levels
    cdef u64 nested_rsvd[6]
    cdef u64 nested_rsvd_large[6]
    # Derived: permissions by kind_index().
    cdef u64 mask[64]
    cdef u64 want[64]
    cdef u32 pkru_deny[64]          # PKRU_AD, PKRU_WD that count for this kind

    cpdef u64 pdptr(self, int index) except? 0x5A5A5A5A
    cpdef int load_registers(self, u64 cr0, u64 cr3, u64 cr4, u64 efer) except -1
    cpdef int load_pkru(self, u32 pkru) except -1
    cpdef int load_nested(self, hpa_t ncr3, int levels, SecondStage fmt=*) except -1
    @cython.locals(shape=u64)
    cpdef int derive(self) except -1
    @cython.locals(level=int)
    cdef int _derive_walk(self, object mode) except -1
    @cython.locals(level=int)
    cdef int _derive_nested(self, object mode) except -1
    @cython.locals(index=int, kind=u32, mask=u64, want=u64, paged=bint, is_user=bint)
    cdef int _derive_permissions(self) except -1
    cdef bint _keeps_off_user_pages(self, u32 kind) except -1
    @cython.locals(is_user=bint)
    cdef u32 _pkru_bits(self, u32 kind) except? 0x5A5A5A5A
    @cython.locals(pkey=u64)
    cdef bint is_pkru_denied(self, u64 translation, u32 index) noexcept
