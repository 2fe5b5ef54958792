# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport hva_t

@cython.final
cdef class NotifierChain:
    cdef readonly list notifiers    # objects with the methods of notifier.Notifier

    cpdef int range_start(self, hva_t start, hva_t end) except -1
    cpdef int range_end(self, hva_t start, hva_t end) except -1
