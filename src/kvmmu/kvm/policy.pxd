# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u64

@cython.final
cdef class Policy:
    cdef readonly bint mmio_caching     # sptes remember that a gfn has no memory
    cdef readonly bint flush_on_reuse   # flush and sync whenever a cached root is used again
    cdef readonly bint exit_on_emulation_error  # what cannot be emulated ends KVM_RUN at any CPL, without #UD
    cdef readonly bint slot_zap_all     # a slot that goes or moves takes all shadow pages along
    cdef readonly bint range_flush      # ranges of gfns are flushed alone, where nested paging is used
    cdef readonly bint tdp_mmu          # every direct MMU is a TDP MMU
    cdef readonly bint eager_page_split     # huge pages are split when logging begins (TDP MMU only)
    cdef readonly bint nx_huge_pages    # huge leaves are never executable
    cdef readonly int max_page_level    # of any leaf: 3, or 2 where the CPU has no 1G pages
    cdef readonly u64 nx_recovery_ratio # one in so many forced tables goes at a recovery; 0: none
