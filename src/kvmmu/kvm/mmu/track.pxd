# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u64, gfn_t
from ..memslots cimport Memslot, Memslots
from ..requests cimport flush_remote_tlbs, flush_remote_tlbs_gfn
from ..vm cimport Vm
from .page cimport ShadowPage
from .pages cimport slot_of_sp
from .rmap cimport write_protect_gfn
from .role cimport role_level

cpdef int count_lpage(Memslot slot, gfn_t gfn, int nr) except -1
@cython.locals(at=u64)
cpdef int add_gfn(Vm vm, Memslot slot, gfn_t gfn) except -1
cpdef int remove_gfn(Vm vm, Memslot slot, gfn_t gfn) except -1
@cython.locals(as_id=int, slots=Memslots, slot=Memslot)
cpdef bint is_write_tracked(Vm vm, gfn_t gfn) except -1
@cython.locals(slot=Memslot)
cpdef int account_shadowed(Vm vm, ShadowPage sp) except -1
@cython.locals(slot=Memslot)
cpdef int unaccount_shadowed(Vm vm, ShadowPage sp) except -1
