# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u64, gfn_t
from .memslots cimport Memslot
from .vcpu cimport Vcpu
from .vm cimport Vm

cdef u64 ONE

@cython.locals(bit=u64)
cpdef int mark_page_dirty_in_slot(Vm vm, Vcpu vcpu, Memslot slot, gfn_t gfn) except -1
@cython.locals(word=u64)
cpdef u64 clear_dirty_bits(Vm vm, Memslot slot, u64 index, u64 mask) except? 0x5A5A5A5A5A
@cython.locals(word=u64)
cpdef u64 dirty_word(Vm vm, Memslot slot, u64 index) except? 0x5A5A5A5A5A
@cython.locals(word=u64)
cpdef u64 take_dirty_word(Vm vm, Memslot slot, u64 index) except? 0x5A5A5A5A5A
