# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u64, gfn_t, hva_t, pfn_t, pages_per_level
from ..memslots cimport Memslot

cdef int CAUSE_ERROR, CAUSE_FAST, CAUSE_MAP, CAUSE_MMIO_INSTALL, CAUSE_MMIO_UNCACHED, CAUSE_NONE, CAUSE_RETRY
cdef int CAUSE_SPURIOUS, CAUSE_TABLE, CAUSE_WRITE_PROTECTED, KVM_MAX_HUGEPAGE_LEVEL, RET_PF_EMULATE, RET_PF_RETRY
cdef int RET_PF_SPURIOUS, RET_PF_WRITE_PROTECTED, LIMIT_HOST, LIMIT_MAPPING, LIMIT_MISALIGNED, LIMIT_NONE
cdef int LIMIT_SLOT_END, LIMIT_SYNCED_TABLE, LIMIT_WRITE_TRACKED
cdef u64 NOTHING, PAGE_SHIFT, KVM_HVA_ERR_BAD, KVM_PFN_ERR_FAULT, PFERR_FETCH, PFERR_PRESENT, PFERR_RSVD, PFERR_USER
cdef u64 PFERR_WRITE

@cython.final
cdef class PageFault:
    # Given by the exit; fixed afterwards.
    cdef readonly u64 addr          # gva, or gpa for a direct MMU
    cdef readonly u64 error_code
    cdef readonly bint prefetch     # no guest waits for it
    # Derived from the error code.
    cdef readonly bint exec
    cdef readonly bint write
    cdef readonly bint present
    cdef readonly bint rsvd
    cdef readonly bint user
    # Levels: what the guest and the MMU allow, what host and slot allow, what will be installed.
    cdef public int max_level
    cdef public int req_level
    cdef public int goal_level
    cdef public bint huge_page_disallowed   # a fetch, and huge pages are never executable (NX mitigation)
    # Set at construction for a direct MMU, else by the guest walk.
    cdef public gfn_t gfn
    cdef public Memslot slot        # None: no memslot, so MMIO
    # Set by faultin.
    cdef public u64 mmu_seq         # sampled before the pfn lookup
    cdef public hva_t hva
    cdef public pfn_t pfn
    cdef public bint map_writable
    # Set by fetch: the write goes to a table that the walk of its own address used.
    cdef public bint write_fault_to_shadow_pgtable
    cdef public bint validate_direct    # direct children below hang off a guest's huge page, whose rights may change
    cdef public int nr_linked       # shadow pages that had to be linked
    cdef public int cause           # CAUSE_*, as far as a stage knows it
    cdef public int limit           # LIMIT_*: why goal_level is no higher; LIMIT_MAPPING: limit_of() finds out

    cdef int begin(self, u64 addr, u64 error_code, bint prefetch) except -1

@cython.locals(fault=PageFault)
cpdef PageFault make_fault(u64 addr, u64 error_code)
cpdef int cause_of(PageFault fault, int verdict) noexcept
@cython.locals(slot=Memslot, level=int, size=u64, first=gfn_t)
cpdef int limit_of(PageFault fault) except -1
