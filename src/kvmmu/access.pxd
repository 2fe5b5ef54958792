# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from .addr cimport u32, u64
from .door cimport Door
from .kvm.guestmem cimport read_guest, write_from_process
from .kvm.run cimport access, enter
from .kvm.vcpu cimport Vcpu
from .kvm.vm cimport Vm
from .hw.memory cimport PhysicalMemory

cdef int PF_VECTOR, RUN_ERROR, RUN_FAULT, RUN_HIT, RUN_SHUTDOWN
cdef int X86EMUL_IO_NEEDED, X86EMUL_PROPAGATE_FAULT, X86EMUL_RETRY_INSTR, X86EMUL_UNHANDLEABLE
cdef u64 ACCESS_AC, ACCESS_FETCH, CR4_LA57, EFER_LMA, INVALID_GPA, PAGE_SIZE, U64, X86_EFLAGS_AC

cdef u64 _LAST_WORD
cdef Access _DONE

@cython.final
cdef class Access:
    cdef readonly object kind
    cdef readonly object data
    cdef readonly object error_code
    cdef readonly object address
    cdef readonly object vector
    cdef readonly object failure

    cpdef tuple _fields(self)

cpdef object peek(Door door, Vm vm, object gpa, object size)
cpdef object poke(Door door, Vm vm, object gpa, object data, object size)
cpdef object bytes_at(object gpa, object data, object size)
cpdef object guest_access(Door door, Vm vm, object vcpu, object gva, u32 kind, object data, object size)
@cython.locals(last=u64, unused=int, top=u64)
cpdef bint is_linear(Vcpu vcpu, u64 gva, u64 size) except -1
@cython.locals(first=u64, status=int)
cdef object _access(Vcpu vcpu, u64 gva, u32 kind, object data, u64 size)
@cython.locals(status=int, memory=PhysicalMemory)
cdef object _access_two(Vcpu vcpu, u64 gva, u32 kind, object data, u64 size, u64 first)
@cython.locals(status=int)
cdef int _run(Vcpu vcpu, u64 gva, u32 kind) except -1
