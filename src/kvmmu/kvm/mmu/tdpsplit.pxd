# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u32, u64, gfn_t, hpa_t, pages_per_level
from ..memslots cimport Memslot
from ..vm cimport Vm
from .change cimport count_pages
from .mmutrace cimport trace_split_huge_page
from .page cimport ShadowPage
from .role cimport role_access, role_level
from .spte cimport (SpteFormat, is_access_tracked, is_large, is_shadow_present, mark_for_access_track,
                    restore_access_track)
from .tdpchange cimport alloc_table, free_table, init_child, link_table
from .tdpiter cimport TdpIter, make_iter, yield_walk
from .tdproots cimport next_root, drop_root

cdef int EBUSY, ENOMEM, ENTRIES, LEVEL_BITS
cdef u64 ACC_EXEC, PAGE_SHIFT, PT_PAGE_SIZE

@cython.locals(tracked=bint)
cpdef u64 make_executable(SpteFormat fmt, u64 spte) except? 0x5A5A5A5A5A
@cython.locals(spte=u64)
cpdef u64 split_spte(Vm vm, u64 huge_spte, u32 role, u64 index) except? 0x5A5A5A5A5A
@cython.locals(spte=u64, step=u64, sptep=hpa_t, _=int)
cpdef int fill_split(Vm vm, ShadowPage sp, u64 huge_spte) except -1
@cython.locals(huge_spte=u64, level=int, ok=bint)
cpdef bint split_huge_page(Vm vm, TdpIter it, ShadowPage sp) except -1
@cython.locals(it=TdpIter, sp=ShadowPage, ret=int)
cpdef int split_root(Vm vm, ShadowPage root, gfn_t start_gfn, gfn_t end_gfn, int target_level) except? -99
@cython.locals(exclusive=bint, sp=ShadowPage)
cpdef ShadowPage alloc_unlocked(Vm vm, TdpIter it)
@cython.locals(root=ShadowPage)
cpdef int split_leafs(Vm vm, Memslot slot, gfn_t start_gfn, gfn_t end_gfn, int target_level) except -1
