# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u8, u32, u64, gva_t, gpa_t, gfn_t
from ..hw.cpu cimport Cpu
from ..hw.runner cimport Runner
from ..sync cimport Gate
from .memslots cimport Memslot, Memslots
from .stats cimport VcpuStat
from .vm cimport Vm
from .mmu.context cimport Mmu

cdef int READING_SHADOW_PAGE_TABLES
cdef u64 ONE, U64

cdef class Vcpu:
    cdef readonly int vcpu_id
    cdef readonly Vm vm
    cdef readonly Gate gate
    cdef readonly Cpu cpu               # the logical CPU that makes its accesses
    cdef readonly Runner runner         # what is told its registers and flushes: that CPU, or an emulator
    # Its contexts: of its own tables, of a nested guest's second stage as kvm shadows it, of that guest's own tables.
    cdef readonly Mmu root_mmu
    cdef readonly Mmu guest_mmu
    cdef readonly Mmu nested_mmu
    cdef readonly Mmu mmu               # whose root is in use: faults go here
    cdef readonly Mmu walk_mmu          # whose tables translate a gva of the code that runs
    cdef readonly VcpuStat stat
    # Guest state.
    cdef public u64 cr0
    cdef public u64 cr2
    cdef public u64 cr3
    cdef public u64 cr4
    cdef public u64 efer
    cdef public u32 pkru
    cdef public u64 rflags              # EFLAGS.AC matters
    cdef public u64 rip
    cdef public bint smm
    # The guest's CPUID, as far as paging asks (cpuid.CpuFeatures), and what follows from it.
    cdef readonly object features
    cdef readonly int maxphyaddr
    cdef readonly bint has_gbpages
    cdef readonly bint amd_compatible
    cdef readonly u64 reserved_gpa_bits
    cdef readonly u64 cr4_guest_rsvd_bits
    cdef readonly u64 efer_guest_rsvd_bits
    cdef public bint has_run            # it has entered the guest: its CPUID stays what it is
    cdef readonly object guest_walk     # the walker.GuestWalk of the fault in hand
    cdef public int fault_cause         # CAUSE_* of the last fault
    cdef public int fault_limit         # LIMIT_*: why it maps no larger page; MAPPING is told apart only while traced
    cdef u64 fault_counts[16]           # page-fault exits by CAUSE_*
    cdef public u64 exit_address        # of the last page-fault exit: gva, or gpa under nested paging
    cdef public int emultype            # EMULTYPE_* bits of the last page-fault exit; 0: nothing to emulate
    cdef public int run_errno           # the negative errno that ended KVM_RUN, for RUN_ERROR
    cdef public gpa_t mmio_gpa          # of the last access or fetch by kvm: a device's, if that ended in MMIO
    cdef public bint fetches_insns      # rip is real: emulation fetches the instruction from there
    # Pending work.
    cdef public u64 requests            # bit per KVM_REQ number (requests.py)
    cdef public int mode                # OUTSIDE_GUEST_MODE ...
    cdef public bint exception_pending  # an exception to inject at the next entry
    cdef public bint exception_reinjected
    cdef public u8 exception_vector
    cdef public bint exception_has_error
    cdef public u32 exception_error_code
    cdef public u64 exception_address   # CR2 of a page fault
    # Hint of gfn_to_memslot(), and the generation that it belongs to.
    cdef readonly Memslot last_used_slot
    cdef readonly u64 last_used_slot_gen
    # MMIO record.
    cdef public gva_t mmio_gva
    cdef public u32 mmio_access
    cdef public gfn_t mmio_gfn
    cdef public u64 mmio_gen
    # Retry memo.
    cdef public u64 last_retry_eip
    cdef public u64 last_retry_addr

    cpdef Memslots memslots(self)
    cpdef u64 nr_faults(self, int cause) noexcept
    @cython.locals(slots=Memslots, slot=Memslot, generation=u64)
    cpdef Memslot gfn_to_memslot(self, gfn_t gfn)
