# SPDX-License-Identifier: GPL-2.0-only
"""Events of system kvmmmu: built from shadow pages and sptes as the kernel builds them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvmmu.kvm.mmu import mmutrace
from kvmmu.kvm.mmu.page import ShadowPage
from kvmmu.kvm.mmu.spte import SpteFormat, make_npt_format, make_shadow_format
from kvmmu.trace.ring import EventList
from kvmmu.tracepoint import EVENTS, Event, Trace

FORMATS = [make_shadow_format(46, True), make_npt_format(46, True)]


def fired(fire: Callable[[Trace], int]) -> Event:
    trace, events = Trace(), EventList()
    trace.attach(events)
    assert fire(trace) == 0
    assert len(events) == 1
    event = events.events[0]
    assert len(event) == 1 + len(EVENTS[event[0]][1])
    return event


def make_page() -> ShadowPage:
    sp = ShadowPage(0x14, 0x3701, 0x5000)
    sp.mmu_valid_gen = 1
    sp.root_count = 2
    sp.unsync = True
    return sp


def test_the_walker_tells_addresses_entries_and_errors() -> None:
    assert fired(lambda t: mmutrace.trace_pagetable_walk(t, 2**64 - 1, 0x12)) == (
        "kvm_mmu_pagetable_walk", 2**64 - 1, 0x12,
    )  # fmt: skip
    assert fired(lambda t: mmutrace.trace_paging_element(t, 2**63 | 1, 4)) == ("kvm_mmu_paging_element", 2**63 | 1, 4)
    assert fired(lambda t: mmutrace.trace_set_accessed_bit(t, 0x13028)) == ("kvm_mmu_set_accessed_bit", 0x13028)
    assert fired(lambda t: mmutrace.trace_set_dirty_bit(t, 0x13028)) == ("kvm_mmu_set_dirty_bit", 0x13028)
    assert fired(lambda t: mmutrace.trace_walker_error(t, 7)) == ("kvm_mmu_walker_error", 7)


def test_a_page_event_tells_the_pages_state() -> None:
    sp = make_page()
    state = (1, 0x14, 0x3701, 2, True)
    assert fired(lambda t: mmutrace.trace_get_page(t, sp, False)) == ("kvm_mmu_get_page", *state, False)
    assert fired(lambda t: mmutrace.trace_get_page(t, sp, True)) == ("kvm_mmu_get_page", *state, True)
    assert fired(lambda t: mmutrace.trace_sync_page(t, sp)) == ("kvm_mmu_sync_page", *state)
    assert fired(lambda t: mmutrace.trace_unsync_page(t, sp)) == ("kvm_mmu_unsync_page", *state)
    assert fired(lambda t: mmutrace.trace_prepare_zap_page(t, sp)) == ("kvm_mmu_prepare_zap_page", *state)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_an_mmio_spte_is_told_with_its_low_bits_as_access(fmt: SpteFormat) -> None:
    # The worked example of the reference: gfn 0x8000, access W and U, generation 0x18.
    event = fired(lambda t: mmutrace.trace_mark_mmio_spte(t, fmt, 0x5008, 0x00080000080000C7))
    assert event == ("mark_mmio_spte", 0x5008, 0x8000, 7, 0x18)


def test_generations_are_told_as_far_as_sptes_hold_them() -> None:
    event = fired(lambda t: mmutrace.trace_check_mmio_spte(t, 2**63 | 0x80002, 0x80002, 0x80000E00001E7))
    assert event == ("check_mmio_spte", 2, 2, 0x80000E00001E7)
    event = fired(lambda t: mmutrace.trace_check_mmio_spte(t, 0x7FFFF, 0, 1))
    assert event == ("check_mmio_spte", 0x7FFFF, 0, 1)


@pytest.mark.parametrize(("spte", "flags"), [
    (0xE67, (True, True, 1)),
    (0xE63, (True, True, 0)),
    (0x8000000000000E67, (True, False, 1)),
    (0x8000000000000801, (True, False, 0)),
    (0x800, (True, True, 0)),
])  # fmt: skip
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_a_leaf_is_always_readable_and_its_other_rights_are_its_bits(
    fmt: SpteFormat, spte: int, flags: tuple[bool, bool, int]
) -> None:
    event = fired(lambda t: mmutrace.trace_set_spte(t, fmt, 1, 0x14, 0x5008, spte))
    assert event == ("kvm_mmu_set_spte", 0x14, spte, 0x5008, 1, *flags)
    assert [type(field) for field in event[5:]] == [bool, bool, int]


def test_other_events_tell_what_they_are_given() -> None:
    assert fired(lambda t: mmutrace.trace_spte_requested(t, 0xE0000, 2**63, 1)) == (
        "kvm_mmu_spte_requested", 0xE0000, 2**63, 1,
    )  # fmt: skip
    assert fired(lambda t: mmutrace.trace_zap_all_fast(t, 1, 16)) == ("kvm_mmu_zap_all_fast", 1, 16)
    assert fired(lambda t: mmutrace.trace_handle_mmio_page_fault(t, 2**64 - 1, 0x404E, 6)) == (
        "handle_mmio_page_fault", 2**64 - 1, 0x404E, 6,
    )  # fmt: skip
    fields = (1, 0x4000000, 0x100000007, 0x5008, 0xE65, 0xE67, 5)
    assert fired(lambda t: mmutrace.trace_fast_page_fault(t, *fields)) == ("fast_page_fault", *fields)


def test_a_listener_that_left_is_no_error() -> None:
    trace = Trace()
    assert mmutrace.trace_walker_error(trace, 7) == 0
    assert mmutrace.trace_sync_page(trace, make_page()) == 0
