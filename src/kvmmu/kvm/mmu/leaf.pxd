# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u32, u64, gfn_t, hpa_t, pfn_t, pfn_to_hpa
from ...host.mm cimport Mm
from ...hw.memory cimport PhysicalMemory
from ..dirtylog cimport mark_page_dirty_in_slot
from ..memslots cimport Memslot
from ..requests cimport flush_remote_tlbs_gfn
from ..vcpu cimport Vcpu
from ..vm cimport Vm
from .change cimport update_spte
from .context cimport is_rsvd_spte
from .mmio cimport mark_mmio_spte
from .mmutrace cimport trace_set_spte
from .page cimport ShadowPage
from .pages cimport set_translation, sp_gfn, sptep_index
from .rmap cimport drop_spte, rmap_add
from .role cimport role_access, role_ad_disabled, role_level
from .spte cimport (SpteFormat, is_large, is_last, is_shadow_present, is_writable, mark_for_access_track, spte_to_child,
                    spte_to_pfn)
from .unsync cimport try_to_unsync
from .zap cimport drop_parent_pte
from .pages cimport sptep_to_sp

cdef int CAUSE_PERMISSION, CAUSE_REMAP, CAUSE_MAP, CAUSE_UNSYNC, PTE_PREFETCH_NUM, RET_PF_EMULATE, RET_PF_FIXED
cdef int RET_PF_SPURIOUS
cdef int RET_PF_WRITE_PROTECTED
cdef u64 NOTHING, ACC_EXEC, ACC_USER, ACC_WRITE, KVM_PFN_NOSLOT, NO_PFN, PT_PAGE_SIZE, PT_WRITABLE, SPTE_MMU_PRESENT
cdef u64 SPTE_TDP_AD_DISABLED

@cython.final
cdef class Leaf:
    # What is to be mapped.
    cdef public Memslot slot
    cdef public gfn_t gfn
    cdef public pfn_t pfn
    cdef public u32 access          # triple that the guest allows; make_spte() takes W out when it must
    # How.
    cdef public bint host_writable
    cdef public bint prefetch       # nobody accesses it now: A stays clear, and no page goes out of sync for it
    cdef public bint can_unsync
    cdef public bint write_fault    # a write waits for it
    # What make_spte() found.
    cdef public int cause           # set by set_leaf(): why it was wanted (CAUSE_MAP, REMAP, PERMISSION, UNSYNC)
    cdef public bint wrprot         # W was refused because the gfn holds a mirrored guest table

    cdef int begin(self) except -1

@cython.locals(leaf=Leaf)
cpdef Leaf make_leaf()

@cython.locals(fmt=SpteFormat, spte=u64, level=int, access=u32)
cpdef u64 make_spte(Vcpu vcpu, ShadowPage sp, Leaf leaf, u64 old_spte) except? 0x5A5A5A5A5A
@cython.locals(vm=Vm, level=int, old=u64)
cpdef int replace_present(Vcpu vcpu, ShadowPage sp, hpa_t sptep, Leaf leaf) except -1
@cython.locals(vm=Vm, level=int, found=int, flush=bint, spte=u64, old=u64, nr_unsync=u64, verdict=int)
cpdef int set_leaf(Vcpu vcpu, ShadowPage sp, hpa_t sptep, Leaf leaf) except -1
@cython.locals(slot=Memslot)
cpdef Memslot prefetch_slot(Vcpu vcpu, gfn_t gfn, u32 access)
@cython.locals(mm=Mm, access=u32, gfn=gfn_t, slot=Memslot, nr=u64, i=u64, pfn=pfn_t, leaf=Leaf)
cpdef bint prefetch_run(Vcpu vcpu, ShadowPage sp, hpa_t start, hpa_t end) except -1
@cython.locals(mem=PhysicalMemory, place=hpa_t, end=hpa_t, start=hpa_t)
cpdef int prefetch_direct(Vcpu vcpu, ShadowPage sp, hpa_t sptep) except -1
@cython.locals(pfn=pfn_t)
cpdef bint prefetch_one(Vcpu vcpu, ShadowPage sp, hpa_t sptep, Leaf leaf) except -1
