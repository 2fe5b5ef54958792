# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u32, u64, gfn_t, hpa_t, gva_t, gfn_to_gpa
from ...hw.memory cimport PhysicalMemory
from ..memslots cimport Memslot
from ..requests cimport flush_remote_tlbs_gfn
from ..vcpu cimport Vcpu
from ..vm cimport Vm
from .change cimport clear_no_track, update_spte
from .context cimport Mmu, is_rsvd_bits_set
from .gpte cimport GpteFormat, gpte_access, gpte_to_gfn, is_present_gpte, protect_clean
from .leaf cimport Leaf, make_leaf, make_spte
from .mmio cimport clear_any_gva, clear_gva, mark_mmio_spte
from .page cimport ShadowPage
from .pages cimport root_to_sp, set_translation, sp_access, sp_gfn, sptep_to_sp
from .rmap cimport drop_spte
from .role cimport cpu_role_level, role_access, role_direct, role_has_4_byte_gpte, role_quadrant
from .shadowwalk cimport walk_level, walk_next, walk_sptep, walk_start
from .spte cimport is_host_writable, is_mmio, mmio_gfn, spte_to_child, spte_to_pfn
from .track cimport protect_gfn
from .unsync cimport UnsyncWalk, is_unsync, leads_to_unsync, unlink_unsync_page, unsync_walk
from .walker cimport gpte_place, read_gpte
from .zap cimport flush_or_zap, prepare_zap, zap_pte

cdef u64 INVALID_PAGE, SHADOW_NONPRESENT_VALUE, U64

cdef u32 _SYNC_ROLE_IGNORED
cdef int _FAILED

cpdef bint is_syncable(Vcpu vcpu, ShadowPage sp) except -1
cpdef bint is_invalid_gpte(Vcpu vcpu, u64 gpte) except -1
@cython.locals(offset=u64)
cpdef hpa_t gpte_table(Vcpu vcpu, ShadowPage sp) except? 0x5A5A5A5A5A
@cython.locals(vm=Vm, fmt=GpteFormat, sptep=hpa_t, gpte=u64, gfn=gfn_t, access=u32, spte=u64, size=int)
cpdef int sync_spte(Vcpu vcpu, ShadowPage sp, int index, hpa_t table) except -99
@cython.locals(leaf=Leaf)
cpdef int sync_access(Vcpu vcpu, ShadowPage sp, hpa_t sptep, gfn_t gfn, u32 access) except -99
@cython.locals(mem=PhysicalMemory, table=hpa_t, index=int, ret=int, flush=int, failed=bint)
cpdef int sync_page(Vcpu vcpu, ShadowPage sp, list invalid_list) except -99
@cython.locals(vm=Vm, walk=UnsyncWalk, flush=bint, i=int, sp=ShadowPage)
cpdef int sync_children(Vcpu vcpu, ShadowPage parent, bint may_yield) except -1
@cython.locals(i=int, slot=Memslot, sp=ShadowPage, done=bint)
cpdef bint protect_walked(Vcpu vcpu, UnsyncWalk walk) except -1
@cython.locals(sp=ShadowPage)
cpdef bint is_unsync_root(Vm vm, hpa_t root) except -1
@cython.locals(mmu=Mmu, vm=Vm, i=int, entry=u64)
cpdef int sync_roots(Vcpu vcpu) except -1
@cython.locals(vm=Vm, step=u64, sptep=hpa_t, sp=ShadowPage, ret=int)
cpdef int invalidate_root(Vcpu vcpu, gva_t addr, hpa_t root) except -1
@cython.locals(top=u64)
cpdef bint is_noncanonical(Vm vm, gva_t addr) noexcept
@cython.locals(i=int)
cpdef int invalidate_addr(Vcpu vcpu, gva_t addr, u32 roots) except -1
