# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u32, u64, gfn_t, pfn_t, gpa_to_gfn
from ..exception cimport queue_exception
from ..vcpu cimport Vcpu
from ..vm cimport Vm
from .context cimport Mmu, is_rsvd_spte
from .direct cimport direct_map
from .fastpf cimport fast_page_fault
from .fault cimport PageFault, cause_of, limit_of, make_fault
from .faultin cimport faultin, is_stale, release_pfn
from .gptewrite cimport unprotect_and_retry
from .leaf cimport Leaf, make_leaf
from .mmio cimport cache_record, generation, match_gpa, match_gva
from .mmutrace cimport trace_check_mmio_spte, trace_handle_mmio_page_fault
from .resync cimport invalidate_addr
from .role cimport cpu_role_cr0_wp, cpu_role_smep, role_direct
from .shadow cimport fetch
from .shadowwalk cimport begin_lockless_walk, clear_flood_counts, end_lockless_walk, is_dummy_root
from .shadowwalk cimport walk_level, walk_next, walk_sptep, walk_start
from .spte cimport is_mmio, is_shadow_present, mmio_access, mmio_generation, mmio_gfn
from .tdpmap cimport tdp_map
from .track cimport is_write_tracked
from .walker cimport GuestWalk, walk_addr
from .zap cimport make_pages_available

cdef int CAUSE_GUEST, CAUSE_MMIO_CACHED, CAUSE_RETRY, EMULTYPE_ALLOW_RETRY_PF, EMULTYPE_PF, EMULTYPE_WRITE_PF_TO_SP
cdef int ENOMEM, FAULT_OP_NONPAGING, FAULT_OP_PAGING, KVM_MMU_ROOT_CURRENT, PF_VECTOR
cdef int RET_PF_CONTINUE, RET_PF_EMULATE, RET_PF_FIXED, RET_PF_INVALID, RET_PF_RETRY, RET_PF_SPURIOUS
cdef int LIMIT_NONE, LIMIT_UNPAGED, RET_PF_WRITE_PROTECTED
cdef u64 ACC_ALL, ACC_EXEC, ACC_USER, ACC_WRITE, INVALID_PAGE, KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS, MIN_FREE_FRAMES
cdef u64 MMIO_SPTE_GEN_MASK, PFERR_PRESENT, PFERR_RSVD

cdef u64 _PFERR_PT_WRITE

@cython.locals(verdict=int)
cpdef int page_fault(Vcpu vcpu, u64 addr, u64 error_code) except? -99
@cython.locals(fault=PageFault, verdict=int)
cpdef int do_page_fault(Vcpu vcpu, u64 addr, u64 error_code) except? -99
@cython.locals(gw=GuestWalk, leaf=Leaf, verdict=int)
cpdef int paging_page_fault(Vcpu vcpu, PageFault fault) except? -99
@cython.locals(verdict=int)
cpdef int direct_page_fault(Vcpu vcpu, PageFault fault) except? -99
@cython.locals(vm=Vm, verdict=int, pfn=pfn_t)
cpdef int map_fault(Vcpu vcpu, PageFault fault, GuestWalk gw, Leaf leaf) except? -99
@cython.locals(vm=Vm, verdict=int, pfn=pfn_t)
cpdef int map_fault_shared(Vcpu vcpu, PageFault fault) except? -99
cpdef int topup_caches(Vm vm) noexcept
cpdef int inject_page_fault(Vcpu vcpu, GuestWalk gw) except -1
cpdef bint is_tracked_write(Vcpu vcpu, PageFault fault) except -1
@cython.locals(mmu=Mmu, access=u32)
cpdef u32 effective_access(Vcpu vcpu, PageFault fault, GuestWalk gw) noexcept
@cython.locals(spte=u64, step=u64)
cpdef u64 walk_for_mmio(Vcpu vcpu, u64 addr) except? 0x5A5A5A5A5A
@cython.locals(vm=Vm, spte=u64, gen=u64, gfn=gfn_t, access=u32)
cpdef int handle_mmio_page_fault(Vcpu vcpu, u64 addr, bint direct) except? -99
cpdef int count_verdict(Vcpu vcpu, int verdict) except -1
@cython.locals(direct=bint)
cpdef int handle_write_protected(Vcpu vcpu, u64 addr, u64 error_code) except? -99
