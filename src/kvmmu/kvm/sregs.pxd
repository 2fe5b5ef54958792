# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u32, u64, gva_t
from .requests cimport make_request
from .vcpu cimport Vcpu
from .mmu.resync cimport invalidate_addr, is_noncanonical
from .mmu.roots cimport free_roots, new_pgd
from .mmu.setup cimport init_mmu
from .mmu.walker cimport load_pdptrs

cdef int INSN_DONE, INSN_GP, KVM_REQ_LOAD_MMU_PGD, KVM_REQ_MMU_SYNC, KVM_REQ_TLB_FLUSH_CURRENT
cdef int KVM_REQ_TLB_FLUSH_GUEST, PDPTRS_CHANGED
cdef u64 CR0_CD, CR0_DEFINED, CR0_ET, CR0_NW, CR0_PE, CR0_PG, CR0_WP
cdef u64 CR4_DEFINED, CR4_LA57, CR4_PAE, CR4_PCIDE, CR4_PGE, CR4_PKE, CR4_SMEP
cdef u64 EFER_DEFINED, EFER_LMA, EFER_LME, EFER_NX, ONE

cdef u64 _CR0_CD_NW
cdef u64 _CR4_ROLE_BITS
cdef u64 _CR4_PDPTR_BITS
cdef u64 _EFER_ROLE_BITS
cdef u64 _CR3_NOFLUSH
cdef u64 _CR3_PCID_MASK

cpdef bint is_pae_paging(Vcpu vcpu) noexcept
cdef bint is_paging_32(Vcpu vcpu) noexcept
cdef bint is_valid_cr0(Vcpu vcpu, u64 cr0) noexcept
@cython.locals(changed=u64)
cdef bint is_valid_cr4(Vcpu vcpu, u64 cr4) noexcept
@cython.locals(result=int)
cpdef bint reload_pdptrs(Vcpu vcpu, u64 cr3) except -1
cpdef int reset_context(Vcpu vcpu) except -1
@cython.locals(old=u64, changed=u64)
cpdef int set_cr0(Vcpu vcpu, u64 cr0) except -1
@cython.locals(changed=u64)
cpdef int post_set_cr0(Vcpu vcpu, u64 old, u64 cr0) except -1
@cython.locals(old=u64, changed=u64)
cpdef int set_cr4(Vcpu vcpu, u64 cr4) except -1
@cython.locals(changed=u64)
cpdef int set_efer(Vcpu vcpu, u64 efer) except -1
@cython.locals(keep=bint, pcid=u64)
cpdef int set_cr3(Vcpu vcpu, u64 cr3) except -1
cpdef u64 active_pcid(Vcpu vcpu, u64 pgd) noexcept
@cython.locals(roots=u32, i=int)
cpdef int invalidate_pcid(Vcpu vcpu, u64 pcid) except -1
cpdef int invlpg(Vcpu vcpu, gva_t gva) except -1
@cython.locals(roots=u32, i=int)
cpdef int invpcid(Vcpu vcpu, int kind, u64 pcid, gva_t gva) except -1
cpdef int note_cr3(Vcpu vcpu, u64 cr3) except -1
cpdef int note_pkru(Vcpu vcpu, u32 pkru) except -1
