# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ...addr cimport u32, u64
from ..vcpu cimport Vcpu
from .context cimport EntryRules, Mmu, reset_ept_rsvd, reset_guest_rsvd, reset_shadow_rsvd
from .context cimport update_permission_bitmask, update_pkru_mask
from .role cimport calc_cpu_role, calc_ept_role, calc_shadow_root_role, calc_tdp_root_role, role_level
from .gpte cimport GpteFormat
from .role cimport cpu_role_efer_nx, cpu_role_has_4_byte_gpte, cpu_role_level, cpu_role_paging, cpu_role_pse

cdef int EPTP_LEVELS_SHIFT, PT32E_ROOT_LEVEL
cdef u64 CR0_PG, CR4_PAE, EFER_LMA, EPTP_AD, EXT_VALID, ONE, ROLE_INVALID, U32

cdef int _U64_BITS

@cython.locals(mmu=Mmu, cpu_role=u64, root_role=u32)
cpdef bint init_mmu(Vcpu vcpu) except -1
@cython.locals(has_ad=bint, cpu_role=u64)
cpdef bint init_ept_mmu(Vcpu vcpu, Mmu mmu, u64 eptp, bint has_execonly, int huge_page_level) except -1
@cython.locals(mmu=Mmu)
cpdef int forget_roles(Vcpu vcpu) except -1
cpdef u32 _calc_root_role(Vcpu vcpu, u64 cpu_role) except? 0x5A5A5A5A
cpdef int _choose_ops(Vcpu vcpu, Mmu mmu) except -1
cpdef GpteFormat choose_gpte(u64 cpu_role)
@cython.locals(rules=EntryRules)
cpdef EntryRules guest_rules(Vcpu vcpu, u64 cpu_role)
@cython.locals(rules=EntryRules)
cpdef EntryRules shadow_rules(Vcpu vcpu, u32 root_role)
@cython.locals(bits=u64, bit=int)
cpdef u64 _reserved_hpa_bits(int maxphyaddr) noexcept
