# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u64, hpa_t, pfn_to_hpa
from ..mode cimport begin_reading, end_reading
from ..vcpu cimport Vcpu
from ..vm cimport Vm
from .context cimport Mmu
from .pages cimport clear_flood_count, sptep_to_sp
from .role cimport role_direct, role_level
from .spte cimport is_last, is_shadow_present

cdef u64 NOTHING, INVALID_PAGE, SPTE_BASE_ADDR_MASK

cdef u64 _LEVEL_MASK
cdef u64 _INDEX_MASK

cpdef bint is_dummy_root(Vm vm, hpa_t root) noexcept
@cython.locals(mmu=Mmu, level=int, entry=u64)
cpdef u64 walk_start(Vcpu vcpu, hpa_t root, u64 addr) except? 0x5A5A5A5A5A
cpdef int walk_level(u64 step) noexcept
@cython.locals(index=u64)
cpdef hpa_t walk_sptep(u64 step, u64 addr) noexcept
cpdef u64 walk_next(u64 step, u64 spte) noexcept
cpdef int begin_lockless_walk(Vcpu vcpu) except -1
cpdef int end_lockless_walk(Vcpu vcpu) except -1
cpdef bint is_tdp_mmu_active(Vcpu vcpu) noexcept
@cython.locals(step=u64, sptep=hpa_t)
cpdef hpa_t find_last_sptep(Vcpu vcpu, u64 addr) except? 0x5A5A5A5A5A
@cython.locals(step=u64, sptep=hpa_t)
cpdef int clear_flood_counts(Vcpu vcpu, u64 addr) except -1
