# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u64, hpa_t, hpa_to_pfn
from ..vm cimport Vm
from .role cimport role_level
from .page cimport ShadowPage
from .spte cimport (
    SpteFormat, ad_enabled, check_writable_triple, is_accessed, is_dirty, is_legal_triple, is_mmu_writable,
    is_shadow_present, is_volatile, is_writable, mark_for_access_track, spte_to_pfn
)

cdef u64 SHADOW_NONPRESENT_VALUE, U64

cpdef int count_pages(Vm vm, int level, int nr) except -1
@cython.locals(old=u64)
cpdef int set_spte(Vm vm, hpa_t sptep, u64 new_spte) except -1
@cython.locals(old=u64)
cpdef u64 update_spte_no_track(Vm vm, hpa_t sptep, u64 new_spte) except? 0x5A5A5A5A5A
@cython.locals(old=u64, flush=bint, fmt=SpteFormat)
cpdef bint update_spte(Vm vm, hpa_t sptep, u64 new_spte) except -1
@cython.locals(fmt=SpteFormat)
cpdef int age_spte(Vm vm, hpa_t sptep, u64 spte) except -1
@cython.locals(old=u64, fmt=SpteFormat, sp=ShadowPage)
cpdef u64 clear_track_bits(Vm vm, hpa_t sptep) except? 0x5A5A5A5A5A
cpdef int clear_no_track(Vm vm, hpa_t sptep) except -1
