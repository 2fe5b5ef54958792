# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ...addr cimport u8, u32, u64, gpa_t, hpa_t
from .gpte cimport GpteFormat
from .role cimport cpu_role_cr0_wp, cpu_role_efer_nx, cpu_role_pke, cpu_role_smap, cpu_role_smep

cdef u64 NOTHING, ACC_USER, INVALID_PAGE, ONE, PFERR_FETCH, PFERR_IMPLICIT_ACCESS, PFERR_PK, PFERR_PRESENT, PFERR_RSVD
cdef u64 PFERR_USER, PFERR_WRITE, X86_EFLAGS_AC

cdef u64 _PFERR_INDEX
cdef u64 _BIT_7
cdef u64 _BIT_8
cdef u64 _BIT_63
cdef u64 _BITS_51_0
cdef u64 _BITS_62_0

@cython.final
cdef class Mmu:
    # struct kvm_mmu: what one vCPU's MMU is now.
    cdef public hpa_t root_hpa          # INVALID_PAGE: none
    cdef public gpa_t root_pgd          # the guest CR3 that it was built for; 0 for direct roots
    cdef u64 prev_hpa[3]                # previous roots, most recent first
    cdef u64 prev_pgd[3]
    cdef public u64 cpu_role            # the guest's CPU mode: base role low, extended role high
    cdef public u32 root_role           # kvm's page tables
    cdef public int fault_op            # FAULT_OP_TDP, FAULT_OP_NONPAGING, FAULT_OP_PAGING
    cdef readonly GpteFormat gpte       # layout of the entries of the guest's tables
    cdef public bint can_sync           # the sync_spte op exists: entries can be out of sync
    cdef u8 permissions[16]             # indexed by PFEC bits 4:1, a bit per access triple: 1 = fault
    cdef public u32 pkru_mask           # 0: protection keys are off; else AD and WD by PFEC, RSVD = user page
    cdef public u64 eptp                # root of the guest's tables if these are EPT; else it is CR3
    cdef u64 bad_mt_xwr                 # EPT: bit n is set if a gpte may not have n in bits 5:0; else 0
    cdef u64 guest_rsvd[10]             # reserved bits of gptes: [5 * bit 7 of the entry + level - 1]
    cdef u64 shadow_rsvd[10]            # reserved bits of sptes, likewise
    cdef u64 pdptrs[4]                  # the guest's, as cached when CR3 was loaded
    # Tables without a shadow page.
    cdef public hpa_t pae_root          # 0: not allocated

@cython.final
cdef class EntryRules:
    # What decides the reserved bits of the entries of one set of page tables.
    cdef public int level               # 2 to 5
    cdef public u64 reserved_bits       # address bits that do not exist
    cdef public bint nx
    cdef public bint gbpages
    cdef public bint pse                # 2-level tables only
    cdef public bint amd_compatible

cpdef int _rsvd_index(u64 entry, int level) noexcept
cpdef bint is_rsvd_bits_set(Mmu mmu, u64 gpte, int level) noexcept
cpdef bint is_rsvd_spte(Mmu mmu, u64 spte, int level) noexcept
@cython.locals(pfec=u32, index=u32, fault=u32, errcode=u32)
cpdef u32 permission_fault(Mmu mmu, u32 pte_access, u32 pkey, u64 access, u64 rflags, u32 pkru) noexcept
@cython.locals(index=u32, acc=u32, byte=u32, refused=bint)
cpdef int update_permission_bitmask(Mmu mmu) except -1
@cython.locals(is_user=bint)
cpdef bint _is_refused(u64 cpu_role, u32 pfec, u32 acc) except -1
cpdef bint _is_refused_by_ept(u32 pfec, u32 acc) except -1
@cython.locals(index=u32, pfec=u32, bits=u32)
cpdef int update_pkru_mask(Mmu mmu) except -1
@cython.locals(high=u64, no_gbpages=u64, upper=u64, is_pae=bint)
cpdef list rsvd_bits_table(EntryRules rules)
@cython.locals(high=u64, no_2m=u64, no_1g=u64, upper=u64)
cpdef list ept_rsvd_table(u64 reserved_bits, int huge_page_level)
cpdef u64 _bits(int low, int high) noexcept
@cython.locals(i=int, table=list)
cpdef int reset_guest_rsvd(Mmu mmu, EntryRules rules) except -1
@cython.locals(i=int, table=list)
cpdef int reset_ept_rsvd(Mmu mmu, u64 reserved_bits, bint has_execonly, int huge_page_level) except -1
@cython.locals(i=int, table=list)
cpdef int reset_shadow_rsvd(Mmu mmu, EntryRules rules) except -1
