# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u32, u64, gfn_t, gpa_to_gfn

cdef u64 ACC_ALL, ACC_EXEC, ACC_USER, ACC_WRITE, EPT_EXEC, EPT_READ, ONE, PT_ACCESSED, PT_DIRTY, PT_PRESENT
cdef u64 SPTE_BASE_ADDR_MASK, U32, U64
cdef int _NX_SHIFT

@cython.final
cdef class GpteFormat:
    cdef readonly str name
    cdef readonly int size              # bytes of an entry: 4 or 8
    cdef readonly int size_shift
    cdef readonly int index_bits        # of an address, translated by one level
    cdef readonly u64 index_mask
    cdef readonly u64 width_mask        # bits of an entry
    cdef readonly u64 nx_mask           # 0: no such bit
    cdef readonly u64 present_mask      # any of these bits
    cdef readonly u64 accessed_mask     # 0 with dirty_mask: no such bits, nothing to set
    cdef readonly u64 dirty_mask
    cdef readonly bint is_ept           # bits 2:0 are X, W and R
    cdef readonly bint has_pdptrs       # the top level is four entries that were cached when CR3 was loaded

cpdef bint is_present_gpte(GpteFormat fmt, u64 gpte) noexcept
@cython.locals(access=u32)
cpdef u32 gpte_access(GpteFormat fmt, u64 gpte) noexcept
cpdef u32 protect_clean(GpteFormat fmt, u32 access, u64 gpte) noexcept
cpdef gfn_t gpte_to_gfn(u64 gpte) noexcept
