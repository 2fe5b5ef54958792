# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u64, gfn_t
from ..memslots cimport Memslot
from ..requests cimport flush_remote_tlbs, flush_remote_tlbs_gfn
from ..vm cimport Vm
from .page cimport ShadowPage
from .pages cimport slot_of_sp
from .rmap cimport write_protect_gfn
from .role cimport role_level
from .tdppass cimport write_protect_leaf

cdef int KVM_ADDRESS_SPACE_NUM

cpdef int count_lpage(Memslot slot, gfn_t gfn, int nr) except -1
@cython.locals(at=u64, count=int)
cpdef int change_write_track(Vm vm, Memslot slot, gfn_t gfn, int nr) except -1
@cython.locals(flush=bint)
cpdef bint protect_gfn(Vm vm, Memslot slot, gfn_t gfn, int min_level) except -1
cpdef int add_gfn(Vm vm, Memslot slot, gfn_t gfn) except -1
cpdef int remove_gfn(Vm vm, Memslot slot, gfn_t gfn) except -1
@cython.locals(count=int)
cpdef bint is_tracked_in(Vm vm, Memslot slot, gfn_t gfn) except -1
@cython.locals(as_id=int, other=Memslot)
cpdef bint is_write_tracked(Vm vm, Memslot slot, gfn_t gfn) except -1
cpdef bint is_anything_shadowed(Vm vm) except -1
@cython.locals(slot=Memslot)
cpdef int account_shadowed(Vm vm, ShadowPage sp) except -1
@cython.locals(slot=Memslot)
cpdef int unaccount_shadowed(Vm vm, ShadowPage sp) except -1
