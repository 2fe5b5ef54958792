# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ..addr cimport u8, u64, gpa_t, hpa_t, gpa_to_gfn
from ..hw.memory cimport PhysicalMemory
from ..kvm.guestmem cimport gpa_to_hpa
from ..kvm.memslots cimport Memslots
from ..kvm.mmu.gptewrite cimport unprotect_gfn
from ..kvm.mmu.track cimport is_anything_shadowed
from ..kvm.vm cimport Vm
from ..record.reader cimport Reader

cdef int K_STORE, MODEL_EMULATED, MODEL_FAULT, RUN_FAULT
cdef u64 ACCESS_WRITE

cdef class Referee:
    cdef readonly Reader reader
    cdef readonly object machine    # machine.GuestMachine or machine.BareMachine
    cdef readonly bint bare         # no kvm: the CPUs walk the guest's own tables
    cdef readonly PhysicalMemory memory
    cdef readonly Vm vm             # None when bare
    cdef Memslots slots             # kvm's, outside of SMM; None when bare
    cdef readonly u64 mismatches
    cdef readonly u64 tlb_differences # the machine's translation and the model's differ, both are lawful
    cdef public object judge        # lawful.Judge, once one was needed, or None
    cdef readonly str problem       # what is wrong with the last record that was a mismatch

    cdef int note_slots(self) except -1
    cdef int fail(self, object problem) except -1
    cdef bint disagree(self, int how, u64 where, object problem) except -1
    cdef bint is_lawful(self, int how, u64 where) except -1
    cdef hpa_t home_of(self, gpa_t gpa) except? 0x5A5A5A5A
    cdef const u8[::1] recorded_bytes(self)
    @cython.locals(hpa=hpa_t)
    cdef int store_unseen(self, gpa_t gpa, const u8[::1] data) except -1
    cdef int fail_exception(self, int status, object what) except -1
