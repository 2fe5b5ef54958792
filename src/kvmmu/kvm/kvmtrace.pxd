# SPDX-License-Identifier: GPL-2.0-only
from ..addr cimport u32, u64, gva_t, gpa_t, hva_t
from ..tracepoint cimport Trace

# Each builds one event and hands it to trace.sink; callers test trace.on first.
cpdef object trace_kvm_page_fault(Trace trace, int vcpu_id, u64 rip, u64 addr, u64 error_code)
cpdef int trace_inj_exception(Trace trace, u32 vector, bint has_error, u32 error_code, bint reinjected) except -1
cpdef int trace_kvm_mmio(Trace trace, u32 kind, u32 length, gpa_t gpa, u64 val) except -1
cpdef int trace_vcpu_match_mmio(Trace trace, gva_t gva, gpa_t gpa, bint is_write, bint gpa_match) except -1
cpdef int trace_emulate_insn(Trace trace, u64 rip, u32 flags=*, bint failed=*) except -1
cpdef int trace_unmap_hva_range(Trace trace, hva_t start, hva_t end) except -1
cpdef int trace_age_hva(Trace trace, hva_t start, hva_t end) except -1
cpdef int trace_test_age_hva(Trace trace, hva_t hva) except -1

cpdef int _emit(Trace trace, object event) except -1
