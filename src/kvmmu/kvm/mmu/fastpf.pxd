# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u64, hpa_t
from ..dirtylog cimport mark_page_dirty_in_slot
from ..vcpu cimport Vcpu
from ..vm cimport Vm
from .fault cimport PageFault
from .mmutrace cimport trace_fast_page_fault
from .pages cimport sptep_to_sp
from .role cimport role_level
from .shadowwalk cimport begin_lockless_walk, end_lockless_walk, find_last_sptep
from .spte cimport (SpteFormat, ad_enabled, is_access_tracked, is_executable, is_last, is_mmu_writable,
                    is_shadow_present, is_writable, restore_access_track)

cdef int RET_PF_FIXED, RET_PF_INVALID, RET_PF_SPURIOUS
cdef u64 NOTHING, PT_PRESENT, PT_WRITABLE

cdef int _MOST_TRIES

cpdef bint may_be_fast(Vm vm, PageFault fault) noexcept
cpdef bint is_access_allowed(SpteFormat fmt, PageFault fault, u64 spte) noexcept
@cython.locals(fmt=SpteFormat, new=u64)
cpdef u64 fixed_spte(Vm vm, PageFault fault, u64 spte, int level) except? 0x5A5A5A5A5A
@cython.locals(vm=Vm, level=int)
cpdef int try_fix(Vcpu vcpu, PageFault fault, hpa_t sptep, u64 spte) except? -99
@cython.locals(ret=int)
cpdef int fast_page_fault(Vcpu vcpu, PageFault fault) except? -99
@cython.locals(vm=Vm, sptep=hpa_t, spte=u64, ret=int, tries=int)
cpdef int fix_lockless(Vcpu vcpu, PageFault fault) except? -99
