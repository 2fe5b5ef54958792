# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u64, hva_t, hpa_t, pfn_t, pages_per_level, page_offset
from ..hw.memory cimport PhysicalMemory
from .frames cimport SmallArrays
from .mmfault cimport handle_mm_fault
from .pagetable cimport hpte_to_pfn
from .ranges cimport Ranges
from .vma cimport Vma

cdef int VM_FAULT_NO_VMA, VM_FAULT_READ_ONLY
cdef u64 GUP_NO_VMA, GUP_READ_ONLY, HPTE_PFN_MASK, HPTE_PRESENT, HPTE_WRITABLE, NO_HPA, NO_PFN, PAGE_SHIFT

cdef u64 _PMD_MASK

@cython.final
cdef class Mm(Ranges):
    cdef readonly PhysicalMemory memory
    cdef SmallArrays arrays         # page tables of small mappings
    cdef hva_t next_hva             # where the next mmap() begins, before alignment

    @cython.locals(hpte=u64, pfn=pfn_t)
    cpdef pfn_t gup_fast(self, hva_t hva, bint write) except? 0xFFFFFFFFFFFF0000
    @cython.locals(pfn=pfn_t, fault=int)
    cpdef pfn_t gup(self, hva_t hva, bint write) except? 0xFFFFFFFFFFFF0000
    @cython.locals(vma=Vma, hpte=u64)
    cpdef hpa_t user_access(self, hva_t hva, bint write) except? 0xFFFFFFFFFFFF0000
    @cython.locals(vma=Vma)
    cpdef int fault_in(self, hva_t hva, bint write) except -1
