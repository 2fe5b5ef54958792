# SPDX-License-Identifier: GPL-2.0-only
cimport cython

@cython.final
cdef class Policy:
    cdef readonly bint mmio_caching     # sptes remember that a gfn has no memory
    cdef readonly bint flush_on_reuse   # flush and sync whenever a cached root is used again
