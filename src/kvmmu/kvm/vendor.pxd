# SPDX-License-Identifier: GPL-2.0-only
from ..addr cimport gva_t

cdef class Vendor:
    cpdef int load_mmu_pgd(self, object vcpu) except -1
    cpdef int flush_tlb_current(self, object vcpu) except -1
    cpdef int flush_tlb_gva(self, object vcpu, gva_t gva) except -1
