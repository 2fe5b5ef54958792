# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u32, u64, gfn_t, hpa_t, pfn_to_hpa
from ...hw.memory cimport PhysicalMemory
from ..memslots cimport Memslot
from ..requests cimport flush_remote_tlbs_gfn
from ..vm cimport Vm
from .change cimport age_spte, clear_track_bits, count_pages, update_spte
from .page cimport ShadowPage
from .pages cimport set_translation, slot_of_sp, sp_gfn, sptep_index, sptep_to_sp
from .role cimport role_level
from .spte cimport is_accessed, is_mmu_writable, is_shadow_present, is_writable

cdef u64 ONE, PAGE_SIZE, PTE_LIST_DESC_SIZE, PTE_LIST_EXT, PT_WRITABLE, RMAP_RECYCLE_THRESHOLD

cdef u64 _DESC_MASK
cdef u64 _COUNT_MASK
cdef u64 _POINTER_MASK

@cython.locals(frame=hpa_t, desc=hpa_t, offset=u64)
cpdef hpa_t alloc_desc(Vm vm) except? 0x5A5A5A5A5A
cpdef int free_desc(Vm vm, hpa_t desc) except -1
@cython.locals(word=u64)
cpdef u64 pte_list_count(Vm vm, u64 head) except? 0x5A5A5A5A5A
@cython.locals(mem=PhysicalMemory, desc=hpa_t, word=u64, count=u64, new=hpa_t, total=u64)
cpdef u64 pte_list_add(Vm vm, u64 head, hpa_t sptep) except? 0x5A5A5A5A5A
@cython.locals(mem=PhysicalMemory, first=hpa_t, desc=hpa_t, count=u64, i=u64)
cpdef u64 pte_list_remove(Vm vm, u64 head, hpa_t sptep) except? 0x5A5A5A5A5A
@cython.locals(mem=PhysicalMemory, last=u64, word=u64, more=hpa_t)
cpdef u64 remove_from_desc(Vm vm, hpa_t first, hpa_t desc, u64 i) except? 0x5A5A5A5A5A
cpdef u64 pte_list_first(u64 head) noexcept
cpdef hpa_t pte_list_sptep(Vm vm, u64 place) except? 0x5A5A5A5A5A
@cython.locals(desc=hpa_t, more=hpa_t, count=u64)
cpdef u64 pte_list_next(Vm vm, u64 place) except? 0x5A5A5A5A5A
@cython.locals(sp=ShadowPage, level=int, at=u64, head=u64, count=u64)
cpdef int rmap_add(Vm vm, Memslot slot, hpa_t sptep, gfn_t gfn, u32 access) except -1
@cython.locals(sp=ShadowPage, gfn=gfn_t, slot=Memslot, at=u64)
cpdef int rmap_remove(Vm vm, hpa_t sptep) except -1
@cython.locals(old=u64)
cpdef int drop_spte(Vm vm, hpa_t sptep) except -1
@cython.locals(place=u64, head=u64, desc=hpa_t, more=hpa_t)
cpdef bint zap_rmap(Vm vm, Memslot slot, u64 at) except -1
@cython.locals(spte=u64)
cpdef bint spte_write_protect(Vm vm, hpa_t sptep, bint pt_protect) except -1
@cython.locals(place=u64, flush=bint)
cpdef bint rmap_write_protect(Vm vm, u64 head, bint pt_protect) except -1
@cython.locals(young=bint, place=u64, sptep=hpa_t, spte=u64)
cpdef bint rmap_age(Vm vm, u64 head, bint only_test) except -1
@cython.locals(level=int, done=bint)
cpdef bint write_protect_gfn(Vm vm, Memslot slot, gfn_t gfn, int min_level) except -1
