# SPDX-License-Identifier: GPL-2.0-only
from ..addr cimport u32, u64, gva_t
from .sregs cimport invlpg, invpcid, set_cr0, set_cr3, set_cr4, set_efer
from .mode cimport vcpu_load, vcpu_put
from .vcpu cimport Vcpu
from .run cimport enter, leave


cpdef int mov_cr3(Vcpu vcpu, u64 value) except -1
cpdef int mov_cr0(Vcpu vcpu, u64 value) except -1
cpdef int mov_cr4(Vcpu vcpu, u64 value) except -1
cpdef int wrmsr_efer(Vcpu vcpu, u64 value) except -1
cpdef int wrpkru(Vcpu vcpu, u32 value) except -1
cpdef int insn_invlpg(Vcpu vcpu, gva_t gva) except -1
cpdef int insn_invpcid(Vcpu vcpu, int kind, u64 pcid, gva_t gva) except -1
