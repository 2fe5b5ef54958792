# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ..addr cimport u32, u64, gfn_t, gva_t, gpa_t, hpa_t
from .paging cimport Walk, page_walk
from .regs cimport Registers
from .runner cimport Runner
from .tlb cimport Tlb

cdef int HW_HIT, HW_PAGE_FAULT, INSN_DONE, INSN_GP, MODE_PAE, TR_LEVEL_SHIFT
cdef u64 CR3_NOFLUSH, CR3_PCID, PAGE_SHIFT, PT_FRAME

cdef u64 _PDPTES

# cr0, cr3, cr4, efer, pkru, pdptrs, maxphyaddr, nested, ncr3, nested_levels: see Registers. The load_* and write_*
# methods alone change them, which also keep the TLB honest.
@cython.final
cdef class Cpu(Registers):
    cdef readonly int number
    cdef readonly Tlb tlb
    cdef readonly Walk last_walk    # elements and result of the last walk; meaningful after a TLB miss
    cdef u64 offset_mask[4]         # by level: address bits inside a page
    # The last access.
    cdef readonly hpa_t hpa         # where it went, on a HW_HIT
    cdef readonly u32 error_code    # of the #PF, on a HW_PAGE_FAULT
    cdef readonly gpa_t fault_gpa   # on a HW_NESTED_FAULT
    cdef readonly u64 fault_code    # on a HW_NESTED_FAULT: #PF bits, bit 32 or 33

    @cython.locals(translation=u64, offset=u64, index=u32)
    cpdef int access(self, gva_t gva, u32 kind) except -1
    @cython.locals(out=Walk, status=int)
    cdef int _access_missed(self, gva_t gva, u32 kind) except -1
    @cython.locals(changed=u64, efer=u64)
    cpdef int write_cr0(self, u64 value) except -1
    @cython.locals(is_kept=bint, pcid=u32)
    cpdef int write_cr3(self, u64 value) except -1
    @cython.locals(changed=u64, is_long=bint)
    cpdef int write_cr4(self, u64 value) except -1
    cpdef int write_efer(self, u64 value) except -1
    cpdef int write_pkru(self, u32 value) except -1
    cpdef int invlpg(self, gva_t gva) except -1
    @cython.locals(is_by_pcid=bint)
    cpdef int invpcid(self, int kind, u32 pcid, gva_t gva) except -1
    @cython.locals(top=u64)
    cpdef bint is_canonical(self, gva_t gva) except -1
    cpdef bint load_pdptrs(self) except -1
    @cython.locals(table=u64, pdpte=u64)
    cdef bint _load_pdptrs_from(self, u64 cr3) except -1
    @cython.locals(old_cr0=u64, old_cr4=u64, old_efer=u64)
    cdef bint _load_checked(self, u64 cr0, u64 cr4, u64 efer, u64 reloads) except -1
    @cython.locals(pcid=u32)
    cpdef int load_guest(self, u64 cr0, u64 cr3, u64 cr4, u64 efer) except -1
    cpdef int set_nested(self, hpa_t ncr3, int levels) except -1
    cpdef int set_space(self, u32 space) except -1
    cpdef int flush_asid(self) except -1
    cpdef int flush_gva(self, gva_t gva) except -1
    cpdef int flush_gfns(self, gfn_t gfn, u64 nr_pages) except -1
    cpdef int flush_all(self) except -1

cdef class CpuRunner(Runner):
    cdef readonly Cpu cpu
    cpdef int load_guest(self, u64 cr0, u64 cr3, u64 cr4, u64 efer) except -1
    cpdef int set_nested(self, hpa_t ncr3, int levels) except -1
    cpdef int flush_asid(self) except -1
    cpdef int flush_gva(self, gva_t gva) except -1
    cpdef int flush_gfns(self, gfn_t gfn, u64 nr_pages) except -1
