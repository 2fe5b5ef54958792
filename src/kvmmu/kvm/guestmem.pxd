# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u64, gpa_t, gfn_t, hva_t, hpa_t, gpa_to_gfn, page_offset
from ..host.mm cimport Mm
from .memslots cimport Memslot, Memslots

cdef u64 NO_HPA, PAGE_OFFSET

@cython.locals(slot=Memslot, gfn=gfn_t, hva=hva_t)
cpdef hpa_t gpa_to_hpa(Memslots slots, Mm mm, gpa_t gpa, bint write) except? 0xFFFFFFFFFFFF0000
