# SPDX-License-Identifier: GPL-2.0-only
"""Sinks in memory."""

from __future__ import annotations

import pytest

from kvmmu.errors import UserError
from kvmmu.trace.ring import EventList, EventRing
from kvmmu.tracepoint import Trace


def test_a_ring_keeps_the_newest_and_counts_the_dropped() -> None:
    ring = EventRing(3)
    for gpa in range(5):
        ring(("kvm_mmu_set_dirty_bit", gpa))
    assert [event[1] for event in ring] == [2, 3, 4]
    assert (len(ring), ring.total, ring.dropped) == (3, 5, 2)
    ring.clear()
    assert (len(ring), ring.total, ring.dropped) == (0, 0, 0)


def test_a_ring_that_is_not_full_dropped_nothing() -> None:
    ring = EventRing(3)
    ring(("kvm_mmu_set_dirty_bit", 0))
    assert ring.dropped == 0


def test_a_ring_needs_room_for_an_event() -> None:
    with pytest.raises(UserError, match="capacity is at least 1"):
        EventRing(0)


def test_a_list_keeps_everything_in_order() -> None:
    events = EventList()
    trace = Trace()
    trace.attach(events)
    for gpa in range(3):
        trace.sink(("kvm_mmu_set_dirty_bit", gpa))  # type: ignore[misc]
    trace.sink(("kvm_mmu_set_accessed_bit", 7))  # type: ignore[misc]
    assert [event[1] for event in events] == [0, 1, 2, 7]
    assert events.count() == {"kvm_mmu_set_dirty_bit": 3, "kvm_mmu_set_accessed_bit": 1}
    assert len(events.take()) == 4
    assert len(events) == 0
