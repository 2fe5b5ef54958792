# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..vm cimport Vm
from .page cimport ShadowPage

cdef object NO_PAGE

cpdef bint is_disallowed(Vm vm, ShadowPage sp) except -1
cpdef int set_disallowed(Vm vm, ShadowPage sp, bint disallowed) except -1
@cython.locals(head=ShadowPage, last=ShadowPage)
cpdef int track_possible(Vm vm, ShadowPage sp) except -1
cpdef int forget(Vm vm, ShadowPage sp) except -1
@cython.locals(first=ShadowPage)
cpdef ShadowPage first_possible(Vm vm)
