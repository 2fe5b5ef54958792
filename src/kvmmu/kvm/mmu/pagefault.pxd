# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u32, u64, gfn_t, gpa_t, gva_t, hpa_t, pfn_t, gpa_to_gfn
from ...hw.memory cimport PhysicalMemory
from ..exception cimport queue_exception
from ..memslots cimport Memslot
from ..vcpu cimport Vcpu
from ..vm cimport Vm
from .context cimport Mmu, is_rsvd_spte
from .direct cimport direct_map
from .fastpf cimport fast_page_fault
from .fault cimport PageFault, cause_of, make_fault
from .faultin cimport faultin, is_stale, release_pfn
from .gptewrite cimport unprotect_and_retry
from .leaf cimport Leaf, make_leaf
from .mmio cimport cache_record, generation, match_gpa, match_gva
from .mmutrace cimport trace_check_mmio_spte, trace_handle_mmio_page_fault
from .resync cimport invalidate_addr
from .role cimport cpu_role_cr0_wp, cpu_role_smep, role_direct
from .shadow cimport fetch
from .shadowwalk cimport clear_flood_counts, is_dummy_root, walk_level, walk_next, walk_sptep, walk_start
from .spte cimport is_mmio, is_shadow_present, mmio_access, mmio_generation, mmio_gfn
from .track cimport is_write_tracked
from .walker cimport GuestWalk, walk
from .zap cimport make_pages_available

cdef u64 _PFERR_RSVD
cdef u32 _PFERR_PRESENT
cdef u64 _PFERR_PT_WRITE
cdef u32 _ACC_WRITE
cdef u32 _ACC_USER
cdef u32 _ACC_EXEC
cdef u64 _ACC_ALL
cdef u64 _GEN_IN_PROGRESS
cdef u64 _MMIO_SPTE_GEN_MASK
cdef u64 _INVALID_PAGE
cdef int _READING
cdef int _OUTSIDE
cdef int _CONTINUE
cdef int _RETRY
cdef int _EMULATE
cdef int _WRITE_PROTECTED
cdef int _INVALID
cdef int _FIXED
cdef int _SPURIOUS
cdef int _FAULT_PAGING
cdef int _FAULT_NONPAGING
cdef int _ENOMEM
cdef u64 _MIN_FREE_FRAMES
cdef int _RESUME
cdef int _EMULTYPE_PF
cdef int _EMULTYPE_ALLOW_RETRY_PF
cdef int _EMULTYPE_WRITE_PF_TO_SP
cdef int _PF_VECTOR
cdef int _CAUSE_GUEST
cdef int _CAUSE_MMIO_CACHED
cdef int _CAUSE_RETRY

cpdef int topup_caches(Vm vm) noexcept
cpdef int inject_page_fault(Vcpu vcpu, GuestWalk gw) except -1
cpdef bint is_tracked_write(Vcpu vcpu, PageFault fault) except -1
@cython.locals(mmu=Mmu, access=u32)
cpdef u32 effective_access(Vcpu vcpu, PageFault fault, GuestWalk gw) noexcept
@cython.locals(vm=Vm, gw=GuestWalk, leaf=Leaf, verdict=int, pfn=pfn_t)
cpdef int paging_page_fault(Vcpu vcpu, PageFault fault) except? -99
@cython.locals(vm=Vm, leaf=Leaf, verdict=int, pfn=pfn_t)
cpdef int direct_page_fault(Vcpu vcpu, PageFault fault) except? -99
@cython.locals(leaf_spte=u64, step=u64, sptep=hpa_t)
cpdef u64 walk_for_mmio(Vcpu vcpu, u64 addr) except? 0x5A5A5A5A5A
@cython.locals(vm=Vm, spte=u64, gen=u64, gfn=gfn_t, access=u32)
cpdef int handle_mmio_page_fault(Vcpu vcpu, u64 addr, bint direct) except? -99
cpdef int count_verdict(Vcpu vcpu, int verdict) except -1
@cython.locals(fault=PageFault, verdict=int)
cpdef int do_page_fault(Vcpu vcpu, u64 addr, u64 error_code) except? -99
@cython.locals(direct=bint)
cpdef int handle_write_protected(Vcpu vcpu, u64 addr, u64 error_code) except? -99
@cython.locals(direct=bint, verdict=int, flags=int)
cpdef int page_fault(Vcpu vcpu, u64 addr, u64 error_code) except? -99
