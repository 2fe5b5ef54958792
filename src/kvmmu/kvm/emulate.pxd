# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u32, u64, gva_t, gpa_t, hpa_t, gpa_to_gfn, page_offset, gfn_to_gpa
from .dirtylog cimport mark_page_dirty_in_slot
from .guestmem cimport gpa_to_hpa
from .kvmtrace cimport trace_emulate_insn, trace_kvm_mmio, trace_vcpu_match_mmio
from .memslots cimport Memslots
from .vcpu cimport Vcpu
from .mode cimport vcpu_load, vcpu_put
from .mmu.context cimport Mmu, permission_fault
from .mmu.gptewrite cimport track_write, unprotect_and_retry
from .mmu.mmio cimport match_gpa, match_gva
from .exception cimport queue_exception
from .mmu.pagefault cimport inject_page_fault
from .mmu.role cimport cpu_role_paging, role_direct
from .mmu.walker cimport gva_to_gpa_walk

cdef int EMULTYPE_ALLOW_RETRY_PF, EMULTYPE_WRITE_PF_TO_SP, KVM_TRACE_MMIO_READ, KVM_TRACE_MMIO_READ_UNSATISFIED
cdef int KVM_TRACE_MMIO_WRITE, UD_VECTOR, X86EMUL_CONTINUE, X86EMUL_IO_NEEDED, X86EMUL_PROPAGATE_FAULT
cdef int X86EMUL_RETRY_INSTR, X86EMUL_UNHANDLEABLE
cdef u64 ACCESS_FETCH, ACCESS_IMPLICIT, ACCESS_NOT_PT_INSN, ACCESS_USER, ACCESS_WRITE, APIC_DEFAULT_PHYS_BASE
cdef u64 EFER_LMA, INVALID_GPA, NO_HPA, PAGE_MASK, PAGE_SIZE, PFERR_FETCH, PFERR_IMPLICIT_ACCESS, PFERR_USER
cdef u64 PFERR_WRITE, U32, U64

cpdef u64 walk_access(u32 kind) noexcept
@cython.locals(gpa=gpa_t, access=u64)
cpdef int fetch_insn(Vcpu vcpu, gva_t rip, u32 kind) except -1
cpdef int decode_insn(Vcpu vcpu, u32 kind) except -1
@cython.locals(fetched=int, first=u64)
cpdef int decode_at(Vcpu vcpu, gva_t rip, u32 kind, u64 size) except -1
cpdef int decode_failed(Vcpu vcpu, gva_t rip, u32 kind, int outcome) except -1
cpdef bint is_mmio_gpa(Vcpu vcpu, gva_t gva, gpa_t gpa, bint is_write) except -1
@cython.locals(mmu=Mmu, gpa=gpa_t, access=u64, is_write=bint)
cpdef int find_gpa(Vcpu vcpu, gva_t gva, u32 kind, bint has_exit_gpa) except -1
@cython.locals(slots=Memslots, hpa=hpa_t, gpa=gpa_t)
cpdef int write_ram(Vcpu vcpu, gpa_t gpa, bytes data) except -1
@cython.locals(ret=int, gpa=gpa_t)
cpdef int one_page(Vcpu vcpu, gva_t gva, u32 kind, object data, u64 size, bint has_exit_gpa) except -1
@cython.locals(direct=bint, offset=u64, first=u64, has_exit_gpa=bint, is_mmio=bint, fragment=gpa_t, ret=int)
cpdef int emulate_memory(Vcpu vcpu, gva_t gva, u32 kind, object data, u64 size) except -1
@cython.locals(is_fetch=bint, rip=gva_t, outcome=int)
cpdef int emulate(Vcpu vcpu, gva_t gva, u32 kind, object data, u64 size) except -1
cpdef int complete_mmio_read(Vcpu vcpu, u64 size, u64 value) except -1
