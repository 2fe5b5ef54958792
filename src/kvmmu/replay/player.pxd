# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u64, hpa_t
from ..hw.cpu cimport Cpu
from ..kvm.emulate cimport complete_mmio_read, emulate
from ..kvm.guestmem cimport gpa_to_hpa
from ..kvm.insn cimport insn_invlpg, insn_invpcid
from ..kvm.run cimport access
from ..kvm.vcpu cimport Vcpu
from ..record.reader cimport Reader
from .referee cimport Referee
from .registers cimport (change_register, check_features, check_registers, clean_pdptes, clean_snapshot, has_registers,
                         load_registers)

cdef int HW_HIT, MODEL_EMULATED, MODEL_HIT, K_ACCESS, K_INVLPG, K_INVPCID, K_MAP, K_MMIO, K_PAGE, K_REGS, K_STORE
cdef int RUN_EMULATE, RUN_FAULT, RUN_HIT, STOP_BREAK, STOP_END, STOP_LIMIT, STOP_MISMATCH, W_INIT, W_PKRU
cdef int UD_VECTOR, X86EMUL_CONTINUE, X86EMUL_IO_NEEDED, X86EMUL_PROPAGATE_FAULT, X86EMUL_UNHANDLEABLE
cdef u64 ACCESS_AC, ACCESS_FETCH, ACCESS_WRITE, NO_HPA, X86_EFLAGS_AC

@cython.final
cdef class Player(Referee):
    # What the records are played into.
    cdef readonly list vcpus        # by CPU number; empty when bare
    cdef readonly list cpus
    cdef readonly u64 cr4_mask      # CR4 bits that the machine offers its guest
    cdef bint other_cpu             # the caller changed what the CPUs have
    cdef bint has_la57              # they may have 5-level paging
    # What came of it.
    cdef u64 counts[16]             # records by kind
    cdef readonly u64 accesses      # verified translations: ACCESS, STORE and MMIO records
    cdef readonly u64 stores
    cdef readonly u64 emulated_stores
    cdef readonly u64 smm_records   # left out: made in system management mode, which the model does not have
    cdef bint map_waits             # MAP records were played that kvm's slots do not follow yet
    cdef public u64 break_cause     # CAUSE_* to stop at; 0: none
    cdef public bint stop_at_mismatch
    cdef public object on_record    # called with the position before each record is played, or None

    cpdef u64 nr_records(self, int kind) noexcept
    @cython.locals(reader=Reader, kind=int, mismatches=u64)
    cpdef int play(self, u64 limit) except -1
    @cython.locals(kind=int)
    cpdef int fast_forward(self, u64 limit) except -1
    cdef int play_record(self, int kind) except -1
    cdef int change_map(self) except -1
    cpdef int settle(self) except -1
    @cython.locals(vcpu=Vcpu)
    cdef bint is_break(self) except -1
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
    @cython.locals(ret=int, reader=Reader, cpu=Cpu, vcpu=Vcpu, cr4=u64)
    cdef int play_regs(self) except -1
    @cython.locals(vcpu=Vcpu)
    cdef int play_invalidation(self, int kind) except -1
