# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u64, gfn_t, hpa_t
from ..memslots cimport Memslot
from ..vm cimport Vm
from .hugepage cimport max_mapping_level
from .page cimport ShadowPage
from .pages cimport sptep_to_sp
from .rmap cimport (drop_spte, pte_list_first, pte_list_next, pte_list_sptep, rmap_write_protect)
from .role cimport role_direct, role_level

cdef u64 ONE

@cython.locals(level=int, at=u64, end=u64, flush=bint)
cpdef bint write_protect_slot(Vm vm, Memslot slot) except -1
@cython.locals(place=u64, sptep=hpa_t, sp=ShadowPage)
cpdef bint zap_one_collapsible(Vm vm, Memslot slot, u64 at) except -1
@cython.locals(level=int, at=u64, end=u64, flush=bint)
cpdef bint zap_collapsible(Vm vm, Memslot slot) except -1
@cython.locals(i=int, gfn=gfn_t)
cpdef int protect_masked(Vm vm, Memslot slot, gfn_t base_gfn, u64 mask) except -1
@cython.locals(i=u64, word=u64, words=list, nr=u64)
cpdef list take_words(Vm vm, Memslot slot)
