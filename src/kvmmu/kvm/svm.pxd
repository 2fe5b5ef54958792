# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u64, gfn_t, gva_t
from .vcpu cimport Vcpu
from .vendor cimport Vendor
from .vm cimport Vm
from .mmu.context cimport Mmu
from .mmu.role cimport role_level

cdef int EOPNOTSUPP
cdef u64 CR0_PE, CR0_PG, CR0_WP, CR3_PCID, CR4_LA57, CR4_PAE, CR4_PCIDE, CR4_PGE, CR4_PKE, EFER_LMA, EFER_LME
cdef u64 EFER_NX

cdef u64 _CR4_SMEP_SMAP

@cython.locals(cr0=u64, cr3=u64, cr4=u64, efer=u64, mmu=Mmu)
cpdef int load_shadow(Vcpu vcpu) except -1
cdef class Svm(Vendor):
    @cython.locals(target=Vcpu)
    cpdef int load_mmu_pgd(self, object vcpu) except -1
    @cython.locals(target=Vcpu)
    cpdef int flush_tlb_current(self, object vcpu) except -1
    @cython.locals(target=Vcpu)
    cpdef int flush_tlb_gva(self, object vcpu, gva_t gva) except -1
    @cython.locals(target=Vm, vcpu=Vcpu)
    cpdef int flush_remote_tlbs_range(self, object vm, gfn_t gfn, u64 nr_pages) except? -1
