# SPDX-License-Identifier: GPL-2.0-only
"""The tracepoints of system ``kvm`` that the model fires: each function builds one event and hands it to the sink.

Callers test ``trace.on`` first. Fields are in the order of :data:`kvmmu.tracepoint.EVENTS`.
Source: reference "Tracepoints, system kvm".
"""

from __future__ import annotations

from typing import Any

from ..addr import Gpa, Gva, Hva
from ..tracepoint import Event, Trace


def trace_kvm_page_fault(trace: Trace, vcpu_id: int, rip: int, addr: int, error_code: int) -> Any:
    """An exit for a page fault: ``addr`` is the gva (shadow paging) or the gpa (NPT) that faulted.

    Return the event as the sinks have it, whose cause the caller tells when it knows; None: nobody listens any more.
    """
    sink = trace.sink
    return None if sink is None else sink(("kvm_page_fault", vcpu_id, rip, addr, error_code))


def trace_inj_exception(trace: Trace, vector: int, has_error: bool, error_code: int, reinjected: bool) -> int:
    """An exception goes to the guest at this entry."""
    event = ("kvm_inj_exception", vector, bool(has_error), error_code, bool(reinjected))
    return _emit(trace, event)


def trace_kvm_mmio(trace: Trace, kind: int, length: int, gpa: Gpa, val: int) -> int:
    """A device access of ``length`` bytes at ``gpa``; ``kind`` is MMIO_READ_UNSATISFIED, MMIO_READ or MMIO_WRITE."""
    return _emit(trace, ("kvm_mmio", kind, length, gpa, val))


def trace_vcpu_match_mmio(trace: Trace, gva: Gva, gpa: Gpa, is_write: bool, gpa_match: bool) -> int:
    """The vCPU's record of its last MMIO access served this one; ``gpa_match`` tells by which address."""
    return _emit(trace, ("vcpu_match_mmio", gva, gpa, bool(is_write), bool(gpa_match)))


def trace_emulate_insn(trace: Trace, rip: int, flags: int = 9, failed: bool = False) -> int:
    """KVM emulates the instruction at ``rip``, or cannot; ``flags`` is the CPU mode (EMUL_*), 64-bit unless told.

    The model has accesses, not instructions: no bytes are known, so csbase and len are 0 and insn is empty.
    """
    return _emit(trace, ("kvm_emulate_insn", rip, 0, 0, b"", flags, bool(failed)))


def trace_unmap_hva_range(trace: Trace, start: Hva, end: Hva) -> int:
    """The host is about to unmap [``start``, ``end``) of the process that owns the VM."""
    return _emit(trace, ("kvm_unmap_hva_range", start, end))


def trace_age_hva(trace: Trace, start: Hva, end: Hva) -> int:
    """The host asks whether [``start``, ``end``) was used, and wants that forgotten."""
    return _emit(trace, ("kvm_age_hva", start, end))


def trace_test_age_hva(trace: Trace, hva: Hva) -> int:
    """The host asks whether the page at ``hva`` was used."""
    return _emit(trace, ("kvm_test_age_hva", hva))


# Deliver one event; a sink that was detached after the caller looked is no error.
def _emit(trace: Trace, event: Event) -> int:
    sink = trace.sink
    if sink is not None:
        sink(event)
    return 0
