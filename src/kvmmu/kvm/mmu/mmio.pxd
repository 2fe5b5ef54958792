# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u32, u64, gfn_t, gpa_t, gva_t, hpa_t, gpa_to_gfn
from ..vcpu cimport Vcpu
from .change cimport set_spte
from .mmutrace cimport trace_mark_mmio_spte
from .spte cimport make_mmio

cdef u64 NOTHING, KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS, MMIO_SPTE_GEN_MASK, PAGE_MASK

cpdef u64 generation(Vcpu vcpu) except? 0x5A5A5A5A
@cython.locals(spte=u64)
cpdef int mark_mmio_spte(Vcpu vcpu, hpa_t sptep, gfn_t gfn, u32 access) except -1
@cython.locals(gen=u64)
cpdef int cache_record(Vcpu vcpu, gva_t gva, gfn_t gfn, u32 access) except -1
cpdef bint match_gva(Vcpu vcpu, gva_t gva) except -1
cpdef bint match_gpa(Vcpu vcpu, gpa_t gpa) except -1
cpdef int clear_gva(Vcpu vcpu, gva_t gva) except -1
cpdef int clear_any_gva(Vcpu vcpu) except -1
