# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ...addr cimport u32, u64

cdef u32 _LEVEL_MASK
cdef u32 _HAS_4_BYTE_GPTE
cdef int _QUADRANT_SHIFT
cdef u32 _QUADRANT_MASK
cdef u32 _DIRECT
cdef int _ACCESS_SHIFT
cdef u32 _ACCESS_MASK
cdef u32 _INVALID
cdef u32 _EFER_NX
cdef u32 _CR0_WP
cdef u32 _SMEP_ANDNOT_WP
cdef u32 _SMAP_ANDNOT_WP
cdef u32 _AD_DISABLED
cdef u32 _GUEST_MODE
cdef u32 _PASSTHROUGH
cdef int _SMM_SHIFT
cdef u32 _SMM_MASK
cdef u64 _BASE_MASK
cdef u64 _EXT_VALID
cdef u64 _EXT_CR4_PSE
cdef u64 _EXT_CR4_PKE
cdef u64 _EXT_CR4_SMAP
cdef u64 _EXT_CR4_SMEP
cdef u64 _EXT_CR4_LA57
cdef u64 _EXT_EFER_LMA
cdef u64 _X86_CR0_WP
cdef u64 _X86_CR0_PG
cdef u64 _X86_CR4_PSE
cdef u64 _X86_CR4_PAE
cdef u64 _X86_CR4_LA57
cdef u64 _X86_CR4_SMEP
cdef u64 _X86_CR4_SMAP
cdef u64 _X86_CR4_PKE
cdef u64 _X86_EFER_LMA
cdef u64 _X86_EFER_NX
cdef u32 _PT32_ROOT_LEVEL
cdef u32 _PT32E_ROOT_LEVEL
cdef u32 _PT64_ROOT_4LEVEL
cdef u32 _PT64_ROOT_5LEVEL
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
cpdef u32 role_with_access(u32 role, u32 access) noexcept
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
cpdef int cpu_role_level(u64 cpu_role) noexcept
cpdef bint cpu_role_paging(u64 cpu_role) noexcept
cpdef bint cpu_role_has_4_byte_gpte(u64 cpu_role) noexcept
cpdef bint cpu_role_efer_nx(u64 cpu_role) noexcept
cpdef bint cpu_role_cr0_wp(u64 cpu_role) noexcept
cpdef bint cpu_role_smep(u64 cpu_role) noexcept
cpdef bint cpu_role_smap(u64 cpu_role) noexcept
cpdef bint cpu_role_pse(u64 cpu_role) noexcept
cpdef bint cpu_role_pke(u64 cpu_role) noexcept
cpdef bint cpu_role_lma(u64 cpu_role) noexcept
