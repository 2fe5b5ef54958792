# SPDX-License-Identifier: GPL-2.0-only
from ..addr cimport u64, gfn_t, gva_t

cdef class Vendor:
    cpdef int load_mmu_pgd(self, object vcpu) except -1
    cpdef int flush_tlb_current(self, object vcpu) except -1
    cpdef int flush_tlb_gva(self, object vcpu, gva_t gva) except -1
    cpdef int flush_remote_tlbs_range(self, object vm, gfn_t gfn, u64 nr_pages) except? -1
