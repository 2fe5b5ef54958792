# SPDX-License-Identifier: GPL-2.0-only
"""Events of system kvm: the fields in the table's order, and the text that comes of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvmmu.kvm import kvmtrace
from kvmmu.kvm.bits import KVM_EMUL_INSN_REAL, KVM_TRACE_MMIO_READ_UNSATISFIED, KVM_TRACE_MMIO_WRITE
from kvmmu.trace.ring import EventList
from kvmmu.trace.text import event_text
from kvmmu.tracepoint import EVENTS, Event, Trace

CASES: list[tuple[Callable[[Trace], int], Event, str]] = [
    (
        lambda t: kvmtrace.trace_kvm_page_fault(t, 1, 0x1063, 2**64 - 1, 0x100000006),
        ("kvm_page_fault", 1, 0x1063, 2**64 - 1, 0x100000006),
        "vcpu 1 rip 0x1063 address 0xffffffffffffffff error_code 0x100000006",
    ),
    (
        lambda t: kvmtrace.trace_inj_exception(t, 14, True, 7, False),
        ("kvm_inj_exception", 14, True, 7, False),
        "#PF (0x7)",
    ),
    (
        lambda t: kvmtrace.trace_kvm_mmio(t, KVM_TRACE_MMIO_WRITE, 4, 0xE0001004, 0xCAFE),
        ("kvm_mmio", 2, 4, 0xE0001004, 0xCAFE),
        "mmio write len 4 gpa 0xe0001004 val 0xcafe",
    ),
    (
        lambda t: kvmtrace.trace_kvm_mmio(t, KVM_TRACE_MMIO_READ_UNSATISFIED, 4, 0xE0001004, 0),
        ("kvm_mmio", 0, 4, 0xE0001004, 0),
        "mmio unsatisfied-read len 4 gpa 0xe0001004 val 0x0",
    ),
    (
        lambda t: kvmtrace.trace_vcpu_match_mmio(t, 0x50001004, 0xE0001004, True, False),
        ("vcpu_match_mmio", 0x50001004, 0xE0001004, True, False),
        "gva 0x50001004 gpa 0xe0001004 Write GVA",
    ),
    (
        lambda t: kvmtrace.trace_emulate_insn(t, 0x1030),
        ("kvm_emulate_insn", 0x1030, 0, 0, b"", 9, False),
        "0:1030: (prot64)",
    ),
    (
        lambda t: kvmtrace.trace_emulate_insn(t, 0x1030, KVM_EMUL_INSN_REAL),
        ("kvm_emulate_insn", 0x1030, 0, 0, b"", 0, False),
        "0:1030: (real)",
    ),
    (
        lambda t: kvmtrace.trace_unmap_hva_range(t, 0x7FFFF6C00000, 0x7FFFF6C01000),
        ("kvm_unmap_hva_range", 0x7FFFF6C00000, 0x7FFFF6C01000),
        "mmu notifier unmap range: 0x007ffff6c00000 -- 0x007ffff6c01000",
    ),
]


@pytest.mark.parametrize(("fire", "event", "text"), CASES)
def test_an_event_has_the_tables_fields_and_the_kernels_text(
    fire: Callable[[Trace], int], event: Event, text: str
) -> None:
    trace, events = Trace(), EventList()
    trace.attach(events)
    # A fault's event comes back to who fires it: its cause is told later.
    assert fire(trace) in (0, event)
    assert events.events == [event]
    assert [type(field) for field in events.events[0]] == [type(field) for field in event]
    assert len(event) == 1 + len(EVENTS[event[0]][1])
    assert event_text(events.events[0]) == text


@pytest.mark.parametrize("case", CASES)
def test_without_a_listener_nothing_happens(case: tuple[Callable[[Trace], int], Event, str]) -> None:
    trace, events = Trace(), EventList()
    trace.attach(events)
    trace.detach(events)
    assert case[0](trace) in (0, None)
    assert (trace.on, len(events)) == (False, 0)
