# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u32, u64, gfn_t, hpa_t, pfn_t, gfn_to_gpa, gpa_to_gfn, hpa_to_pfn, pfn_to_hpa
from ..memslots cimport Memslot
from ..vm cimport Vm
from .page cimport ShadowPage, make_page
from .role cimport (role_access, role_direct, role_invalid, role_level, role_passthrough, role_smm)

cdef int ENTRIES
cdef object NO_PAGE
cdef u64 NOTHING, ROLE_INVALID, ACC_ALL, INVALID_PAGE, SHADOW_NONPRESENT_VALUE, U64

cdef u64 _GOLDEN_RATIO_64

cpdef int hash_bucket(gfn_t gfn) noexcept
@cython.locals(sp=ShadowPage)
cpdef ShadowPage sptep_to_sp(Vm vm, hpa_t sptep)
cpdef int sptep_index(hpa_t sptep) noexcept
@cython.locals(sp=ShadowPage)
cpdef ShadowPage root_to_sp(Vm vm, hpa_t root)
cpdef bint is_obsolete(Vm vm, ShadowPage sp) except -1
cpdef bint is_invalid_root(Vm vm, ShadowPage root) except -1
cpdef int mark_invalid(Vm vm, ShadowPage sp) except -1
cpdef int next_valid_gen(Vm vm) except -1
cpdef int clear_flood_count(Vm vm, ShadowPage sp) except -1
cpdef int count_flood(Vm vm, ShadowPage sp) except -1
cpdef bint has_gptes(ShadowPage sp) noexcept
@cython.locals(word=u64)
cpdef gfn_t sp_gfn(Vm vm, ShadowPage sp, u64 index) except? 0x5A5A5A5A5A
cpdef u32 sp_access(Vm vm, ShadowPage sp, int index) except? 0x5A5A
cpdef int set_translation(Vm vm, ShadowPage sp, int index, gfn_t gfn, u32 access) except -1
cpdef ShadowPage bucket_head(Vm vm, gfn_t gfn)
cpdef ShadowPage next_gfn_sp(Vm vm, ShadowPage sp, gfn_t gfn)
cpdef ShadowPage first_gfn_sp(Vm vm, gfn_t gfn)
@cython.locals(sp=ShadowPage, head=ShadowPage, first=ShadowPage, newest=ShadowPage, spt=hpa_t, pfn=pfn_t, bucket=int)
cpdef ShadowPage alloc_page(Vm vm, gfn_t gfn, u32 role)
@cython.locals(bucket=int)
cpdef int free_page(Vm vm, ShadowPage sp) except -1
cpdef int list_del(ShadowPage sp) except -1
cpdef Memslot slot_of_sp(Vm vm, ShadowPage sp, gfn_t gfn)
