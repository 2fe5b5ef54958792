# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u32, u64, gfn_t, hpa_t, hpa_to_pfn, pfn_to_hpa
from ...hw.memory cimport PhysicalMemory
from ..memslots cimport Memslots
from ..requests cimport make_request
from ..vcpu cimport Vcpu
from ..vm cimport Vm
from .context cimport Mmu
from .gpte cimport gpte_to_gfn
from .mmio cimport clear_any_gva
from .page cimport ShadowPage
from .pages cimport clear_flood_count, is_obsolete, root_to_sp
from .resync cimport is_unsync_root, sync_roots
from .role cimport cpu_role_level, role_direct, role_invalid, role_level, role_with_level, role_with_quadrant
from .shadow cimport get_page
from .shadowwalk cimport is_dummy_root, is_tdp_mmu_active
from .spte cimport spte_to_child
from .tdproots cimport drop_root, take_root
from .zap cimport commit_zap, make_pages_available, prepare_zap
from .pagefault cimport topup_caches
from .walker cimport guest_pgd, read_pdptr

cdef int KVM_MMU_NUM_PREV_ROOTS, KVM_MMU_ROOT_CURRENT, KVM_REQ_LOAD_MMU_PGD, KVM_REQ_MMU_SYNC, KVM_REQ_TLB_FLUSH_CURRENT
cdef u64 NOTHING, INVALID_PAGE, ONE, PT_PRESENT

@cython.locals(role=u32, sp=ShadowPage)
cpdef hpa_t alloc_root(Vcpu vcpu, gfn_t gfn, int quadrant, int level) except? 0x5A5A5A5A5A
@cython.locals(mmu=Mmu, vm=Vm, level=int, i=int, root=hpa_t, entry=u64)
cpdef int alloc_direct_roots(Vcpu vcpu) except -1
@cython.locals(mmu=Mmu, vm=Vm, slots=Memslots, pgd=u64, entries=list, ret=int)
cpdef int alloc_shadow_roots(Vcpu vcpu) except? -99
@cython.locals(mmu=Mmu, vm=Vm, i=int, entry=u64, gfn=gfn_t, root=hpa_t)
cpdef int alloc_pae_roots(Vcpu vcpu, gfn_t root_gfn, list pdptrs) except -1
@cython.locals(ret=int)
cpdef int load(Vcpu vcpu) except? -99
@cython.locals(sp=ShadowPage)
cpdef int put_root(Vm vm, hpa_t root, list invalid_list) except -1
@cython.locals(i=int, mem=PhysicalMemory, entry=u64, invalid_list=list)
cpdef int free_current(Vm vm, Mmu mmu, list invalid_list) except -1
@cython.locals(i=int, invalid_list=list, wanted=bint, is_tdp=bint)
cpdef int free_roots(Vm vm, Mmu mmu, u32 roots) except -1
@cython.locals(sp=ShadowPage)
cpdef bint is_usable(Vm vm, Mmu mmu, u64 pgd) except -1
@cython.locals(i=int, hpa=u64, pgd=u64)
cpdef int swap_prev(Mmu mmu, int i) noexcept
@cython.locals(i=int, j=int)
cpdef bint find_cached_root(Vm vm, Mmu mmu, u64 pgd) except -1
@cython.locals(vm=Vm, mmu=Mmu, sp=ShadowPage)
cpdef int new_pgd(Vcpu vcpu, u64 pgd) except -1
@cython.locals(sp=ShadowPage)
cpdef bint is_obsolete_root(Vm vm, hpa_t root) except -1
cpdef int free_obsolete_roots(Vcpu vcpu) except -1
@cython.locals(roots=u32, i=int)
cpdef int free_obsolete_of(Vm vm, Mmu mmu) except -1
@cython.locals(roots=u32, i=int)
cpdef int sync_prev_roots(Vcpu vcpu) except -1
