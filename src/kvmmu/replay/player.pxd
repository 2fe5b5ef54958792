# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u64, hpa_t
from ..hw.cpu cimport Cpu
from ..hw.memory cimport PhysicalMemory
from ..kvm.emulate cimport complete_mmio_read, emulate
from ..kvm.guestmem cimport gpa_to_hpa
from ..kvm.insn cimport insn_invlpg, insn_invpcid, mov_cr0, mov_cr3, mov_cr4, wrmsr_efer, wrpkru
from ..kvm.run cimport access
from ..kvm.vcpu cimport Vcpu
from ..kvm.vm cimport Vm
from ..kvm.mmu.gptewrite cimport unprotect_gfn
from ..record.reader cimport Reader

cdef int HW_HIT, MODEL_EMULATED, MODEL_FAULT, MODEL_HIT, K_ACCESS, K_INVLPG, K_INVPCID, K_MAP, K_MMIO, K_PAGE
cdef int K_REGS, K_STORE, RUN_EMULATE, RUN_FAULT, RUN_HIT
cdef int STOP_BREAK, STOP_END, STOP_LIMIT, STOP_MISMATCH, W_CR0, W_CR3, W_CR4, W_EFER, W_INIT, W_PKRU
cdef int UD_VECTOR, X86EMUL_CONTINUE, X86EMUL_IO_NEEDED, X86EMUL_PROPAGATE_FAULT, X86EMUL_UNHANDLEABLE
cdef u64 ACCESS_AC, ACCESS_FETCH, ACCESS_WRITE, NO_HPA, X86_EFLAGS_AC

cdef class Player:
    # What plays, and what it plays into.
    cdef readonly Reader reader
    cdef readonly object machine    # machine.GuestMachine or machine.BareMachine
    cdef readonly bint bare         # no kvm: the CPUs walk the guest's own tables
    cdef readonly PhysicalMemory memory
    cdef readonly Vm vm             # None when bare
    cdef readonly list vcpus        # by CPU number; empty when bare
    cdef readonly list cpus
    cdef readonly u64 cr4_mask      # CR4 bits that the machine offers its guest
    # What came of it.
    cdef u64 counts[16]             # records by kind
    cdef readonly u64 accesses      # verified translations: ACCESS, STORE and MMIO records
    cdef readonly u64 stores
    cdef readonly u64 mismatches
    cdef readonly u64 emulated_stores
    cdef readonly u64 smm_records   # left out: made in system management mode, which the model does not have
    cdef readonly u64 tlb_differences # the machine's translation and the model's differ, both are lawful
    cdef bint map_waits             # MAP records were played that kvm's slots do not follow yet
    cdef public object judge        # lawful.Judge, once one was needed, or None
    cdef public u64 break_cause     # CAUSE_* to stop at; 0: none
    cdef public bint stop_at_mismatch
    cdef public object on_record    # called with the position before each record is played, or None
    cdef readonly str problem       # what is wrong with the record in hand, after STOP_MISMATCH

    cpdef u64 nr_records(self, int kind) noexcept
    @cython.locals(kind=int)
    cpdef int play(self, u64 limit) except -1
    @cython.locals(kind=int)
    cpdef int fast_forward(self, u64 limit) except -1
    cdef int play_record(self, int kind) except -1
    cdef int change_map(self) except -1
    cpdef int settle(self) except -1
    cdef bint is_break(self) except -1
    cdef int fail(self, object problem) except -1
    cdef bint disagree(self, int how, u64 where, object problem) except -1
    @cython.locals(found_gpa=bint, found_where=bint)
    cdef bint is_lawful(self, int how, u64 where) except -1
    cdef hpa_t home_of(self, u64 gpa) except? 0x5A5A5A5A
    @cython.locals(hpa=hpa_t)
    cdef int store_unseen(self, u64 gpa, bytes data) except -1
    cdef int fail_exception(self, int status, object what) except -1
    cdef int make_access(self, Vcpu vcpu) except -1
    @cython.locals(vcpu=Vcpu, status=int)
    cdef int play_access(self) except -1
    @cython.locals(vcpu=Vcpu, status=int)
    cdef int play_store(self) except -1
    @cython.locals(vcpu=Vcpu, outcome=int, data=bytes)
    cdef int emulate_until_done(self, Vcpu vcpu, bytes data, u64 size) except -1
    @cython.locals(vcpu=Vcpu, status=int, data=bytes, outcome=int)
    cdef int play_mmio(self) except -1
    @cython.locals(cpu=Cpu)
    cdef int play_bare(self, int kind) except -1
    @cython.locals(reader=Reader)
    cdef int store_record(self, hpa_t hpa) except -1
    cdef bytes store_data(self)
    @cython.locals(expected=hpa_t)
    cdef bint verify_hpa(self, Vcpu vcpu) except -1
    @cython.locals(is_undefined=bint)
    cdef int verify_unfetchable(self, Vcpu vcpu, int outcome) except -1
    cdef int play_page(self) except -1
    cdef int clean_pdptes_in(self, u64 gfn) except -1
    @cython.locals(vcpu=Vcpu, ret=int, reader=Reader, cr4=u64)
    cdef int play_regs(self) except -1
    @cython.locals(cpu=Cpu, reader=Reader)
    cdef int play_bare_regs(self) except -1
    @cython.locals(vcpu=Vcpu)
    cdef int play_invalidation(self, int kind) except -1
