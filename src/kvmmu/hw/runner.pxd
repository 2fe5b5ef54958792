# SPDX-License-Identifier: GPL-2.0-only
from ..addr cimport u64, gfn_t, gva_t, hpa_t

cdef class Runner:
    cpdef int load_guest(self, u64 cr0, u64 cr3, u64 cr4, u64 efer) except -1
    cpdef int set_nested(self, hpa_t ncr3, int levels) except -1
    cpdef int flush_asid(self) except -1
    cpdef int flush_gva(self, gva_t gva) except -1
    cpdef int flush_gfns(self, gfn_t gfn, u64 nr_pages) except -1
