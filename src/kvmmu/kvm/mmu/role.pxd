# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ...addr cimport u32, u64

cdef int PT32E_ROOT_LEVEL, PT32_ROOT_LEVEL, PT64_ROOT_4LEVEL, PT64_ROOT_5LEVEL, ROLE_ACCESS_SHIFT
cdef int ROLE_QUADRANT_SHIFT, ROLE_SMM_SHIFT
cdef u64 CPU_ROLE_BASE_MASK, CR0_PG, CR0_WP, CR4_LA57, CR4_PAE, CR4_PKE, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_LMA
cdef u64 EFER_NX, EXT_CR4_LA57, EXT_CR4_PKE, EXT_CR4_PSE, EXT_CR4_SMAP, EXT_CR4_SMEP, EXT_EFER_LMA
cdef u64 EXT_EXECONLY, EXT_VALID
cdef u64 ROLE_ACCESS_MASK, ROLE_AD_DISABLED, ROLE_CR0_WP, ROLE_DIRECT, ROLE_EFER_NX, ROLE_GUEST_MODE
cdef u64 ROLE_HAS_4_BYTE_GPTE, ROLE_INVALID, ROLE_LEVEL_MASK, ROLE_PASSTHROUGH, ROLE_QUADRANT_MASK
cdef u64 ROLE_SMAP_ANDNOT_WP, ROLE_SMEP_ANDNOT_WP, ROLE_SMM_MASK

cdef u32 _SMM_ONE
cdef u64 _ZERO

cpdef int role_level(u32 role) noexcept
cpdef u32 role_access(u32 role) noexcept
cpdef int role_quadrant(u32 role) noexcept
cpdef int role_smm(u32 role) noexcept
cpdef bint role_direct(u32 role) noexcept
cpdef bint role_invalid(u32 role) noexcept
cpdef bint role_has_4_byte_gpte(u32 role) noexcept
cpdef bint role_ad_disabled(u32 role) noexcept
cpdef bint role_guest_mode(u32 role) noexcept
cpdef bint role_passthrough(u32 role) noexcept
cpdef u32 role_with_level(u32 role, int level) noexcept
cpdef u32 role_with_quadrant(u32 role, int quadrant) noexcept
@cython.locals(role=u32)
cpdef u32 child_role(u32 parent_role, int parent_index, bint direct, u32 access) noexcept
@cython.locals(role=u64)
cpdef u64 calc_cpu_role(u64 cr0, u64 cr4, u64 efer, bint smm) noexcept
@cython.locals(role=u64)
cpdef u64 _supervisor_role(u64 cr0, u64 cr4) noexcept
@cython.locals(role=u64)
cpdef u64 _level_role(u64 cr4, u64 efer) noexcept
@cython.locals(role=u32)
cpdef u32 calc_shadow_root_role(u64 cpu_role) noexcept
@cython.locals(role=u32)
cpdef u32 calc_tdp_root_role(u64 cpu_role, int root_level, bint ad_disabled) noexcept
# What the cpu_role says of the guest.
@cython.locals(role=u64)
cpdef u64 calc_ept_role(int levels, bint has_ad, bint has_execonly) noexcept
cpdef int cpu_role_level(u64 cpu_role) noexcept
cpdef bint cpu_role_paging(u64 cpu_role) noexcept
cpdef bint cpu_role_has_4_byte_gpte(u64 cpu_role) noexcept
cpdef bint cpu_role_efer_nx(u64 cpu_role) noexcept
cpdef bint cpu_role_cr0_wp(u64 cpu_role) noexcept
cpdef bint cpu_role_smep(u64 cpu_role) noexcept
cpdef bint cpu_role_smap(u64 cpu_role) noexcept
cpdef bint cpu_role_pse(u64 cpu_role) noexcept
cpdef bint cpu_role_pke(u64 cpu_role) noexcept
