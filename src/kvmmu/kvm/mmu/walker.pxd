# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ...addr cimport u8, u32, u64, gva_t, gpa_t, gfn_t, hva_t, hpa_t, gpa_to_gfn, page_offset
from ...host.mm cimport Mm
from ...hw.memory cimport PhysicalMemory
from ..dirtylog cimport mark_page_dirty_in_slot
from ..guestmem cimport gpa_to_hpa
from ..memslots cimport Memslot, Memslots, is_error_hva
from ..vcpu cimport Vcpu
from ..vm cimport Vm
from .context cimport Mmu, is_rsvd_bits_set, permission_fault
from .gpte cimport GpteFormat, gpte_access, is_present_gpte, protect_clean
from .mmutrace cimport trace_pagetable_walk, trace_paging_element, trace_set_accessed_bit, trace_set_dirty_bit
from .mmutrace cimport trace_walker_error
from .role cimport cpu_role_efer_nx, cpu_role_level, cpu_role_paging, cpu_role_pse
from .role cimport cpu_role_smep

cdef int EPT_VIOLATION_RWX_SHIFT, PDPTRS_BAD, PDPTRS_CHANGED, PDPTRS_SAME, PTE_PREFETCH_NUM, PT_PKEY_SHIFT
cdef u64 EPT_RWX, EPT_VIOLATION_ACC_INSTR, EPT_VIOLATION_ACC_READ, EPT_VIOLATION_ACC_WRITE, EPT_VIOLATION_GVA_IS_VALID
cdef u64 EPT_VIOLATION_GVA_TRANSLATED, PFERR_GUEST_PAGE
cdef u64 CR4_PAE, EFER_LMA, HPTE_PFN_MASK, HPTE_PRESENT, INVALID_GPA, NOTHING, NO_HPA, ONE, PAGE_SHIFT, PFERR_FETCH
cdef u64 PFERR_PRESENT, PFERR_RSVD, PFERR_USER, PFERR_WRITE, PT_PAGE_SIZE, PT_PRESENT
cdef u64 SPTE_BASE_ADDR_MASK, U32, U64

cdef int _FAILED
cdef int _DONE
cdef int _RESTART
cdef u64 _PSE36_MASK
cdef int _PSE36_SHIFT
cdef u64 _PDPTE_RSVD
cdef u64 _PDPT_MASK

@cython.final
cdef class GuestWalk:
    # One software walk of the guest's tables; arrays are indexed by level, 1 to 5.
    cdef readonly int level             # level of the leaf, or of the entry that ended the walk
    cdef readonly int max_level         # level where the loop began (PAE: 2)
    cdef u64 table_gfn[6]               # guest table that holds the level's gpte
    cdef u64 ptes[6]                    # the gpte; 4-byte ones zero-extended
    cdef u64 pte_gpa[6]
    cdef u64 pte_hva[6]
    cdef u8 pte_writable[6]             # the table's slot may be written
    cdef u32 pt_access[6]               # access triple that the levels above this one allow
    cdef u64 rights                     # the entries so far, ANDed, NX turned around
    cdef bint all_accessed              # A is set at every level
    cdef readonly u32 pte_access        # access triple of the whole walk, leaf included
    cdef readonly gfn_t gfn             # translated frame
    cdef readonly gpa_t gpa             # translated address
    cdef u64 prefetch_ptes[8]           # aligned group around the level-1 gpte, as re-read by fetch
    # The #PF, when the walk failed.
    cdef readonly u32 error_code
    cdef readonly u64 qualification     # of EPT: the exit qualification; 0 for a misconfiguration
    cdef readonly u64 fault_address

    cpdef u64 gpte(self, int level) noexcept
    cpdef gpa_t gpte_gpa(self, int level) noexcept

@cython.locals(outcome=int)
cpdef bint walk_addr(Vcpu vcpu, Mmu mmu, GuestWalk gw, gva_t addr, u64 access) except -1
@cython.locals(gpte=u64, pkey=u32, is_write=bint)
cpdef int _try_walk(Vcpu vcpu, Mmu mmu, GuestWalk gw, gva_t addr, u64 access) except -1
@cython.locals(vm=Vm, fmt=GpteFormat, mm=Mm, memory=PhysicalMemory, slots=Memslots, slot=Memslot, level=int,
               may_be_large=bint, pte=u64, rights=u64, table=u64, index=u64, gpa=gpa_t, gfn=gfn_t, hva=hva_t, hpa=hpa_t)
cpdef bint _descend(Vcpu vcpu, Mmu mmu, GuestWalk gw, gva_t addr) except -1
cpdef u64 guest_pgd(Vcpu vcpu, Mmu mmu) noexcept
cpdef gpa_t translate_table_gpa(Vcpu vcpu, Mmu mmu, gpa_t gpa) except? 0x5A5A5A5A5A
cpdef u64 read_pdptr(Vcpu vcpu, Mmu mmu, int index) except? 0x5A5A5A5A5A
@cython.locals(gpte=u64, below=u64, gpa=gpa_t)
cpdef int _translate(Mmu mmu, GuestWalk gw, gva_t addr) except -1
@cython.locals(vm=Vm, fmt=GpteFormat, level=int, old=u64, new=u64, outcome=int)
cpdef int _update_accessed_dirty(Vcpu vcpu, Mmu mmu, GuestWalk gw, bint is_write) except -1
@cython.locals(vm=Vm, gfn=gfn_t, hpa=hpa_t, is_stored=bint)
cpdef int _store_gpte(Vcpu vcpu, Mmu mmu, GuestWalk gw, int level, u64 new) except -1
@cython.locals(told=u64)
cpdef u64 _ept_qualification(GuestWalk gw, u64 access) noexcept
cpdef int _make_fault(Vcpu vcpu, Mmu mmu, GuestWalk gw, gva_t addr, u64 access) except -1

# Where the gpte at gpa lies in host memory; NO_HPA when it cannot be read without a fault of the host's.
@cython.locals(gfn=gfn_t, slot=Memslot, hva=hva_t, hpte=u64)
cpdef hpa_t gpte_place(Vcpu vcpu, gpa_t gpa) except? 0x5A5A5A5A5A
cpdef u64 read_gpte(Vcpu vcpu, hpa_t place, int size) except? 0x5A5A5A5A5A
@cython.locals(size=int, gpa=gpa_t, base=gpa_t, place=hpa_t, i=int)
cpdef bint is_gpte_changed(Vcpu vcpu, Mmu mmu, GuestWalk gw, int level) except -1
cpdef gpa_t gva_to_gpa_walk(Vcpu vcpu, Mmu mmu, GuestWalk gw, gva_t gva, u64 access) except? 0x5A5A5A5A5A
cpdef gpa_t gva_to_gpa(Vcpu vcpu, Mmu mmu, gva_t gva, u64 access) except? 0x5A5A5A5A5A
# PDPTRS_BAD (0), PDPTRS_SAME or PDPTRS_CHANGED.
@cython.locals(memory=PhysicalMemory, table=gpa_t, place=hpa_t, reserved=u64, entry=u64, entries=list, i=int,
               result=int)
cpdef int load_pdptrs(Vcpu vcpu, Mmu mmu, u64 cr3) except -1
