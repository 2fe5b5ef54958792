# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u64, gpa_t, gfn_t, hva_t, hpa_t, gpa_to_gfn, page_offset
from ..host.mm cimport Mm
from .memslots cimport Memslot, Memslots
from .vm cimport Vm

cdef int EFAULT
cdef u64 NO_HPA, PAGE_OFFSET, PAGE_SIZE

@cython.locals(slot=Memslot, gfn=gfn_t, hva=hva_t)
cpdef hpa_t gpa_to_hpa(Memslots slots, Mm mm, gpa_t gpa, bint write) except? 0xFFFFFFFFFFFF0000
@cython.locals(slots=Memslots, chunk=u64, hpa=hpa_t)
cpdef object read_guest(Vm vm, int as_id, gpa_t gpa, u64 length)
@cython.locals(slots=Memslots, slot=Memslot, done=u64, chunk=u64, length=u64, hpa=hpa_t, start=u64, end=u64)
cpdef int write_from_process(Vm vm, int as_id, gpa_t gpa, bytes data) except? -99
