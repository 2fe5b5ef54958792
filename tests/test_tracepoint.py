# SPDX-License-Identifier: GPL-2.0-only
"""The trace of a VM: who gets an event, in which order, and with which vCPU."""

from __future__ import annotations

import pytest

from kvmmu.errors import UserError
from kvmmu.kvm.kvmtrace import trace_unmap_hva_range
from kvmmu.tracepoint import Event, Trace, VcpuEvent, vcpu_of


def test_every_sink_gets_every_event_in_the_order_of_attachment() -> None:
    trace = Trace()
    got: list[tuple[str, Event]] = []
    for name in "abc":
        trace.attach(lambda event, name=name: got.append((name, event)))  # type: ignore[misc]
    trace_unmap_hva_range(trace, 3, 0x1000)
    trace_unmap_hva_range(trace, 0, 1)
    assert got == [
        (name, ("kvm_unmap_hva_range", start, end)) for start, end in ((3, 0x1000), (0, 1)) for name in "abc"
    ]


def test_a_sink_that_is_taken_off_leaves_the_others() -> None:
    trace = Trace()
    first: list[Event] = []
    second: list[Event] = []
    trace.attach(first.append)
    trace.attach(second.append)
    trace.detach(first.append)
    assert trace.on
    trace_unmap_hva_range(trace, 3, 9)
    assert (len(first), len(second)) == (0, 1)
    trace.detach(second.append)
    assert not trace.on
    trace_unmap_hva_range(trace, 3, 9)
    assert len(second) == 1


def test_a_sink_that_is_attached_twice_gets_an_event_twice() -> None:
    trace = Trace()
    events: list[Event] = []
    sink = events.append
    trace.attach(sink)
    trace.attach(sink)
    trace_unmap_hva_range(trace, 3, 9)
    assert len(events) == 2
    trace.detach(sink)
    trace_unmap_hva_range(trace, 3, 9)
    assert len(events) == 3


def test_a_sink_that_is_not_attached_cannot_be_taken_off() -> None:
    with pytest.raises(UserError, match="not attached"):
        Trace().detach(print)


def test_a_sink_may_take_itself_off_while_it_is_called() -> None:
    trace = Trace()
    later: list[Event] = []

    def once(event: Event) -> None:
        trace.detach(once)

    trace.attach(once)
    trace.attach(later.append)
    trace_unmap_hva_range(trace, 3, 9)
    trace_unmap_hva_range(trace, 4, 9)
    assert [event[1] for event in later] == [3, 4]
    assert len(trace.sinks) == 1


def test_an_event_has_the_vcpu_that_works_when_it_fires() -> None:
    trace = Trace()
    events: list[Event] = []
    trace.attach(events.append)
    for vcpu_id in (-1, 0, 7, -1):
        trace.vcpu_id = vcpu_id
        trace_unmap_hva_range(trace, 3, 9)
    assert [vcpu_of(event) for event in events] == [None, 0, 7, None]
    assert events[0] == events[1] == ("kvm_unmap_hva_range", 3, 9)


def test_a_plain_tuple_tells_no_vcpu() -> None:
    assert vcpu_of(("kvm_unmap_hva_range", 3, 9)) is None
    assert vcpu_of(VcpuEvent(("kvm_unmap_hva_range", 3, 9), 2)) == 2
