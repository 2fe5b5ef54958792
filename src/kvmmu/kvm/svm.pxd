# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u32, u64, gva_t, hpa_t
from ..hw.cpu cimport Cpu
from .vcpu cimport Vcpu
from .vm cimport Vm
from .mmu.context cimport Mmu
from .mmu.role cimport role_level

cdef u64 _CR0_PG
cdef u64 _CR0_WP
cdef u64 _CR0_PE
cdef u64 _CR3_PCID
cdef u64 _CR4_PAE
cdef u64 _CR4_LA57
cdef u64 _CR4_PCIDE
cdef u64 _CR4_PKE
cdef u64 _CR4_PGE
cdef u64 _CR4_SMEP_SMAP
cdef u64 _EFER_NX
cdef u64 _EFER_LMA
cdef u64 _EFER_LME

@cython.locals(cr0=u64, cr3=u64, cr4=u64, efer=u64, mmu=Mmu)
cpdef int load_shadow(Vcpu vcpu) except -1
cpdef int load_mmu_pgd(Vcpu vcpu) except -1
cpdef int flush_tlb_current(Vcpu vcpu) except -1
cpdef int flush_tlb_gva(Vcpu vcpu, gva_t gva) except -1
