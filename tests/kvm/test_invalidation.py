# SPDX-License-Identifier: GPL-2.0-only
"""Invalidations: what a fault is told before, during and after one; who waits for the host."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvmmu import KvmBug
from kvmmu.kvm.invalidation import Invalidation
from kvmmu.lockorder import RANK_LEAF, RANK_MMU, RANK_SLOTS_ARCH
from kvmmu.sync import Gate, Mutex, RwLock

GFNS = [0, 4, 5, 9, 10, 2**40]


class Box:
    """Invalidations with locks of their own."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.mmu_lock = RwLock("mmu_lock", self.gate, RANK_MMU)
        self.mn_lock = Mutex("mn_invalidate_lock", self.gate, RANK_LEAF)
        self.inv = Invalidation(self.gate, self.mmu_lock, self.mn_lock)

    def locked(self, function: Callable[..., int], *args: int) -> int:
        self.mmu_lock.write_lock()
        try:
            return function(*args)
        finally:
            self.mmu_lock.write_unlock()

    def begin(self, *gfns: int) -> None:
        """Begin one that covers [gfns[0], gfns[1])."""
        self.mmu_lock.write_lock()
        self.inv.begin()
        self.inv.add_range(*gfns)
        self.mmu_lock.write_unlock()

    def end(self) -> None:
        self.locked(self.inv.end)

    def covered(self, seq: int) -> list[int]:
        """Of GFNS, those that a fault which sampled ``seq`` must not use: the same with the lock and without."""
        found = [gfn for gfn in GFNS if self.locked(self.inv.covers, gfn, seq)]
        assert [gfn for gfn in GFNS if self.inv.covers_unlocked(gfn, seq)] == found
        return found


class Listener:
    """A checker that remembers words and barriers in their order; who waits is helped by ``other``, as actor 1."""

    def __init__(self, gate: Gate, other: Callable[[], object] | None = None) -> None:
        self.gate, self.other = gate, other
        self.heard: list[object] = []
        self.nr_waits = 0
        gate.arm(self)

    def point(self, kind: str, where: object, key: object) -> None:
        if isinstance(where, Invalidation):
            self.heard.append((kind, key))

    def barrier(self, kind: str) -> None:
        self.heard.append(kind)

    def wait(self, kind: str, where: object, condition: Callable[[], bool]) -> None:
        assert (kind, self.other is not None, condition()) == ("wait_for_invalidations", True, False)
        self.nr_waits += 1
        self.gate.run(1)
        self.other()  # type: ignore[misc]
        self.gate.run(0)


def test_a_fault_uses_what_it_found_while_nothing_happens() -> None:
    box = Box()
    seq = box.inv.sample()
    assert box.covered(seq) == []
    # Another sequence than that of now is always stale, whatever the gfn.
    assert box.covered(seq + 1) == GFNS


def test_while_one_is_in_progress_its_gfns_are_covered_and_no_others() -> None:
    box = Box()
    seq = box.inv.sample()
    box.begin(5, 10)
    assert box.covered(seq) == [5, 9]
    assert box.inv.sample() == seq
    assert "gfns 0x5-0xa" in repr(box.inv)


def test_after_its_end_all_that_was_found_before_is_stale_and_what_comes_later_is_not() -> None:
    box = Box()
    seq = box.inv.sample()
    box.begin(5, 10)
    during = box.inv.sample()
    box.end()
    assert box.covered(seq) == box.covered(during) == GFNS
    assert box.covered(box.inv.sample()) == []


def test_ranges_of_one_time_are_one_that_covers_all_until_the_last_has_ended() -> None:
    box = Box()
    box.begin(9, 10)
    box.begin(4, 5)
    assert box.covered(0) == [4, 5, 9]
    box.end()
    # The sequence has moved once; the union stands.
    assert box.covered(1) == [4, 5, 9]
    box.end()
    assert box.covered(2) == []
    # The next one begins with no range of the past.
    box.begin(10, 11)
    assert box.covered(2) == [10]


def test_a_range_is_widened_at_both_ends_and_never_narrowed() -> None:
    box = Box()
    box.begin(5, 9)
    for gfns, expected in (((6, 7), [5]), ((4, 5), [4, 5]), ((9, 11), [4, 5, 9, 10])):
        box.locked(box.inv.add_range, *gfns)
        assert box.covered(0) == expected


def test_an_end_without_a_beginning_is_a_bug() -> None:
    box = Box()
    with pytest.raises(KvmBug, match="ended that never began"):
        box.end()


def test_a_beginning_without_a_range_that_lets_go_of_the_lock_is_a_bug() -> None:
    box = Box()
    box.locked(box.inv.begin)
    with pytest.raises(KvmBug, match="recorded no range"):
        box.locked(box.inv.covers, 5, 0)


def test_it_is_in_progress_from_the_first_beginning_to_the_last_end() -> None:
    box = Box()
    states = []
    for step in (lambda: None, lambda: box.begin(4, 5), lambda: box.begin(6, 7), box.end, box.end):
        step()
        states.append(bool(box.locked(box.inv.is_in_progress)))
    assert states == [False, True, True, True, False]


def test_who_changes_it_holds_the_lock_exclusively_and_who_asks_holds_it() -> None:
    box = Box()
    inv = box.inv
    changes: list[Callable[[], int]] = [inv.begin, lambda: inv.add_range(1, 2), inv.end]
    questions: list[Callable[[], int]] = [lambda: inv.covers(5, 0), inv.is_in_progress]
    for call in changes + questions:
        with pytest.raises(KvmBug, match="mmu_lock must be held"):
            call()
    box.mmu_lock.read_lock()
    for call in questions:
        assert not call()
    for call in changes:
        with pytest.raises(KvmBug, match="mmu_lock must be held exclusively"):
            call()
    box.mmu_lock.read_unlock()
    box.gate.run(1)
    box.mmu_lock.write_lock()
    box.gate.run(0)
    for call in changes + questions:
        with pytest.raises(KvmBug, match="by actor 0"):
            call()
    assert (inv.seq, inv.in_progress) == (0, 0)


def test_the_sequence_moves_before_the_count_and_is_read_after_it() -> None:
    """So a fault that asks without the lock sees one or the other."""
    box = Box()
    box.begin(5, 10)
    listener = Listener(box.gate)
    box.end()
    assert listener.heard == [("write", "seq"), "wmb", ("write", "in_progress")]
    listener.heard.clear()
    box.inv.covers_unlocked(5, 1)
    in_order = [what for what in listener.heard if what in ("rmb", ("read", "in_progress"), ("read", "seq"))]
    assert in_order == [("read", "in_progress"), "rmb", ("read", "seq")]
    listener.heard.clear()
    assert box.inv.sample() == 1
    assert listener.heard == [("read", "seq"), "rmb"]


# The host's notifiers.


def test_notifiers_are_counted_and_the_host_is_idle_without_any() -> None:
    box = Box()
    states = []
    for step in (lambda: 0, box.inv.enter, box.inv.enter, box.inv.leave, box.inv.leave):
        step()
        states.append(box.inv.is_idle())
    assert states == [True, False, False, False, True]
    assert box.mn_lock.is_free()
    with pytest.raises(KvmBug, match="without its start"):
        box.inv.leave()


def test_an_idle_host_is_kept_idle() -> None:
    box = Box()
    box.inv.lock_idle()
    assert box.mn_lock.owner == 0
    box.gate.run(1)
    with pytest.raises(KvmBug, match=r"mn_invalidate_lock.* waits forever"):
        box.inv.enter()
    assert box.inv.is_idle()
    box.gate.run(0)
    box.inv.unlock_idle()
    assert box.mn_lock.is_free()
    box.inv.enter()
    assert not box.inv.is_idle()


def test_a_busy_host_is_waited_for_without_the_lock_that_it_needs() -> None:
    box = Box()
    box.inv.enter()
    with pytest.raises(KvmBug, match=r"wait_for_invalidations.* waits forever"):
        box.inv.lock_idle()
    assert box.mn_lock.is_free()
    listener = Listener(box.gate, box.inv.leave)
    box.inv.lock_idle()
    assert (listener.nr_waits, box.mn_lock.owner, box.inv.is_idle()) == (1, 0, True)
    box.inv.unlock_idle()


def test_waiting_for_the_host_comes_after_the_locks_of_the_slots() -> None:
    box = Box()
    slots = Mutex("slots_arch_lock", box.gate, RANK_SLOTS_ARCH)
    slots.lock()
    box.inv.lock_idle()
    box.inv.unlock_idle()
    slots.unlock()
    box.inv.lock_idle()
    with pytest.raises(KvmBug, match="slots_arch_lock taken by actor 0"):
        slots.lock()
