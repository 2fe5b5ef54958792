# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ..addr cimport u64

@cython.final
cdef class SecondStage:
    cdef readonly str name
    cdef readonly int mode              # number of the 4-level mode; the 5-level one is the next
    cdef readonly bint is_ept           # faults are violations and misconfigurations
    cdef readonly u64 present           # an entry with any of these is present
    cdef readonly u64 inverted          # bits that forbid
    cdef readonly u64 read              # what each access needs at every level, after that
    cdef readonly u64 write
    cdef readonly u64 fetch
    cdef readonly u64 accessed          # 0 with dirty: no such bits
    cdef readonly u64 dirty
    cdef readonly u64 illegal_low_bits  # bit n is set if bits 5:0 of an entry may not be n
