# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ..addr cimport u64
from ..hw.cpu cimport Cpu
from ..kvm.insn cimport mov_cr0, mov_cr3, mov_cr4, wrmsr_efer, wrpkru
from ..kvm.vcpu cimport Vcpu
from ..record.reader cimport Reader

cdef int W_CR0, W_CR3, W_CR4, W_EFER
cdef u64 CR0_PE, CR0_PG, CR4_LA57, CR4_PAE, EFER_LMA

cdef u64 _PDPTE_RESERVED
cdef u64 _PDPTES

@cython.locals(entry=u64)
cpdef int clean_pdptes(object machine, u64 cr0, u64 cr3, u64 cr4, u64 efer) except -1
@cython.locals(cpu=Cpu, vcpu=Vcpu)
cpdef int clean_snapshot(object machine, list cpus, list vcpus, u64 gfn) except -1
cpdef int check_registers(bint has_la57, Reader reader) except -1
cpdef check_features(object machine, Reader reader)
cdef int _refuse(Reader reader, str wrong) except -1
@cython.locals(ret=int)
cpdef int change_register(Cpu cpu, Vcpu vcpu, Reader reader, u64 cr4) except -1
cpdef bint has_registers(Cpu cpu, Vcpu vcpu, Reader reader, u64 cr4) except -1
cpdef int load_registers(Cpu cpu, Vcpu vcpu, Reader reader, u64 cr4) except -1
