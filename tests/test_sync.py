# SPDX-License-Identifier: GPL-2.0-only
"""The seam: who holds a lock, who may drop it, in which order locks are taken, and how one waits for another actor."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from kvmmu import KvmBug
from kvmmu.lockorder import MAX_ACTORS, RANK_LEAF, RANK_MMU, RANK_SLOTS, RANK_SLOTS_ARCH, RANK_UNDER_MMU
from kvmmu.sync import Gate, Mutex, Rcu, RwLock, Srcu

RANKS = [RANK_SLOTS, RANK_SLOTS_ARCH, RANK_MMU, RANK_UNDER_MMU, RANK_LEAF]


class Checker:
    """Lets everything pass and remembers it; who waits is helped by ``other``, run as actor 1."""

    def __init__(self, gate: Gate, other: Callable[[], object] | None = None) -> None:
        self.gate, self.other = gate, other
        self.heard: list[tuple[str, object]] = []
        self.barriers: list[str] = []
        self.waits: list[tuple[str, object, bool]] = []

    def point(self, kind: str, where: object, key: object) -> None:
        self.heard.append((kind, where))

    def barrier(self, kind: str) -> None:
        self.barriers.append(kind)

    def wait(self, kind: str, where: object, condition: Callable[[], bool]) -> None:
        self.waits.append((kind, where, condition()))
        if self.other is not None:
            me = self.gate.actor
            self.gate.run(1)
            self.other()
            self.gate.run(me)


def armed(gate: Gate, other: Callable[[], object] | None = None) -> Checker:
    checker = Checker(gate, other)
    gate.arm(checker)
    return checker


def rw() -> tuple[Gate, RwLock]:
    gate = Gate()
    return gate, RwLock("mmu_lock", gate, RANK_MMU)


def mutex() -> tuple[Gate, Mutex]:
    gate = Gate()
    return gate, Mutex("slots_lock", gate, RANK_SLOTS)


# The gate.


def test_a_gate_is_closed_and_actor_0_runs() -> None:
    gate = Gate()
    assert (gate.armed, gate.actor, gate.holds_any()) == (False, 0, False)


def test_disarming_makes_actor_0_run_again() -> None:
    gate = Gate()
    armed(gate)
    gate.run(7)
    assert (gate.armed, gate.actor) == (True, 7)
    gate.disarm()
    assert (gate.armed, gate.actor, gate.checker) == (False, 0, None)


@pytest.mark.parametrize("actor", [-1, MAX_ACTORS])
def test_an_actor_that_there_is_not(actor: int) -> None:
    gate = Gate()
    gate.run(MAX_ACTORS - 1)
    with pytest.raises(KvmBug, match="from 0"):
        gate.run(actor)
    assert gate.actor == MAX_ACTORS - 1


def test_barriers_are_announced_by_their_kind_and_only_to_an_armed_gate() -> None:
    gate = Gate()
    calls = (gate.smp_mb, gate.smp_rmb, gate.smp_wmb, gate.smp_store_release, gate.smp_load_acquire)
    for call in calls:
        call()
    checker = armed(gate)
    for call in calls:
        call()
    assert checker.barriers == ["mb", "rmb", "wmb", "store-release", "load-acquire"]


def test_waiting_with_a_closed_gate_is_a_bug_unless_there_is_nothing_to_wait_for() -> None:
    gate = Gate()
    assert gate.wait("ipi", "x", lambda: True) == 0
    with pytest.raises(KvmBug, match="ipi: 'x' waits forever, nobody else runs"):
        gate.wait("ipi", "x", lambda: False)


def test_a_checker_that_comes_back_too_early_is_a_bug() -> None:
    gate = Gate()
    checker = armed(gate)
    with pytest.raises(KvmBug, match="came back too early"):
        gate.wait("ipi", "x", lambda: False)
    assert checker.waits == [("ipi", "x", False)]


# A lock for readers and writers.


def test_a_writer_is_known_and_alone() -> None:
    gate, lock = rw()
    assert (lock.writer, lock.readers, lock.is_free(), lock.has_no_writer()) == (-1, 0, True, True)
    gate.run(5)
    lock.write_lock()
    assert (lock.writer, lock.readers, lock.is_free(), lock.has_no_writer()) == (5, 0, False, False)
    assert "held for writing by actor 5" in repr(lock)
    lock.write_unlock()
    assert (lock.writer, lock.is_free(), gate.holds_any()) == (-1, True, False)


def test_readers_are_known_each() -> None:
    gate, lock = rw()
    for actor in (0, 3, 63):
        gate.run(actor)
        lock.read_lock()
    assert (lock.readers, lock.writer, lock.is_free(), lock.has_no_writer()) == (1 | 1 << 3 | 1 << 63, -1, False, True)
    gate.run(3)
    lock.read_unlock()
    assert lock.readers == 1 | 1 << 63
    assert gate.holds_any()
    for actor in (63, 0):
        gate.run(actor)
        lock.read_unlock()
    assert lock.is_free()
    assert not gate.holds_any()


@pytest.mark.parametrize("first", ["write_lock", "read_lock"])
@pytest.mark.parametrize("second", ["write_lock", "read_lock"])
@pytest.mark.parametrize("is_armed", [False, True])
def test_no_actor_takes_the_lock_twice(first: str, second: str, is_armed: bool) -> None:
    gate, lock = rw()
    checker = armed(gate) if is_armed else None
    getattr(lock, first)()
    before = (lock.writer, lock.readers)
    with pytest.raises(KvmBug, match=f"{second} by actor 0 while it holds the lock"):
        getattr(lock, second)()
    assert (lock.writer, lock.readers) == before
    assert checker is None or checker.waits == []


@pytest.mark.parametrize(
    ("first", "second"), [("write_lock", "write_lock"), ("write_lock", "read_lock"), ("read_lock", "write_lock")]
)
def test_a_lock_of_another_actor_is_waited_for(first: str, second: str) -> None:
    gate, lock = rw()
    unlock = getattr(lock, first.replace("_lock", "_unlock"))
    gate.run(1)
    getattr(lock, first)()
    gate.run(0)
    with pytest.raises(KvmBug, match="waits forever"):
        getattr(lock, second)()
    checker = armed(gate, unlock)
    getattr(lock, second)()
    assert checker.waits == [(second, lock, False)]
    # What was heard, in its order: this actor's try, then the other's release.
    assert checker.heard == [(second, lock), (first.replace("_lock", "_unlock"), lock)]
    assert (lock.writer, lock.readers) == ((0, 0) if second == "write_lock" else (-1, 1))


def test_readers_do_not_wait_for_each_other() -> None:
    gate, lock = rw()
    checker = armed(gate)
    lock.read_lock()
    gate.run(1)
    lock.read_lock()
    assert (lock.readers, checker.waits) == (3, [])


def test_only_the_holder_drops_it() -> None:
    gate, lock = rw()
    for unlock in (lock.write_unlock, lock.read_unlock):
        with pytest.raises(KvmBug, match="unlock by actor 0"):
            unlock()
    lock.write_lock()
    with pytest.raises(KvmBug, match="read_unlock by actor 0"):
        lock.read_unlock()
    gate.run(1)
    with pytest.raises(KvmBug, match="write_unlock by actor 1"):
        lock.write_unlock()
    gate.run(0)
    lock.write_unlock()
    lock.read_lock()
    gate.run(1)
    with pytest.raises(KvmBug, match="read_unlock by actor 1"):
        lock.read_unlock()
    assert lock.readers == 1


def test_what_an_actor_must_hold_another_cannot_hold_for_it() -> None:
    gate, lock = rw()
    checks = {"exclusive": lock.assert_exclusive, "held": lock.assert_held}

    def passing() -> list[str]:
        found = []
        for name, check in checks.items():
            try:
                check()
            except KvmBug as bug:
                assert f"here by actor {gate.actor}" in str(bug)  # noqa: PT017 - the others must pass
            else:
                found.append(name)
        return found

    assert passing() == []
    lock.write_lock()
    assert passing() == ["exclusive", "held"]
    gate.run(1)
    assert passing() == []
    gate.run(0)
    lock.write_unlock()
    lock.read_lock()
    assert passing() == ["held"]
    gate.run(1)
    assert passing() == []


# A mutex.


def test_a_mutex_knows_its_owner() -> None:
    gate, lock = mutex()
    assert (lock.owner, lock.is_free(), repr(lock)) == (-1, True, "<Mutex slots_lock free>")
    gate.run(2)
    lock.lock()
    assert (lock.owner, lock.is_free(), repr(lock)) == (2, False, "<Mutex slots_lock held by actor 2>")
    lock.assert_held()
    gate.run(0)
    for wrong in (lock.unlock, lock.assert_held):
        with pytest.raises(KvmBug, match="by actor 0"):
            wrong()
    gate.run(2)
    lock.unlock()
    assert lock.is_free()
    with pytest.raises(KvmBug, match="must be held here by actor 2"):
        lock.assert_held()


def test_a_mutex_is_no_recursive_one() -> None:
    gate, lock = mutex()
    lock.lock()
    for _ in range(2):
        with pytest.raises(KvmBug, match="lock by actor 0 while it holds the lock"):
            lock.lock()
        armed(gate)
    assert lock.owner == 0


def test_a_mutex_of_another_actor_is_waited_for() -> None:
    gate, lock = mutex()
    gate.run(1)
    lock.lock()
    gate.run(0)
    with pytest.raises(KvmBug, match="waits forever"):
        lock.lock()
    checker = armed(gate, lock.unlock)
    lock.lock()
    assert (lock.owner, checker.waits) == (0, [("lock", lock, False)])
    assert checker.heard == [("lock", lock), ("unlock", lock)]


# Order.


def take(gate: Gate, kind: str, rank: int) -> Callable[[], object]:
    """Take a fresh lock of this kind and rank; what drops it again."""
    if kind == "mutex":
        lock = Mutex(f"rank {rank}", gate, rank)
        lock.lock()
        return lock.unlock
    rwlock = RwLock(f"rank {rank}", gate, rank)
    if kind == "write":
        rwlock.write_lock()
        return rwlock.write_unlock
    rwlock.read_lock()
    return rwlock.read_unlock


@pytest.mark.parametrize("kinds", list(itertools.product(("mutex", "write", "read"), repeat=2)), ids="-".join)
def test_locks_are_taken_outer_first(kinds: tuple[str, str]) -> None:
    cases = 0
    for outer, inner in itertools.product(RANKS, repeat=2):
        gate = Gate()
        drop = take(gate, kinds[0], outer)
        if inner > outer:
            take(gate, kinds[1], inner)()
        else:
            with pytest.raises(KvmBug, match=f"rank {inner} taken by actor 0, which holds a lock that comes after it"):
                take(gate, kinds[1], inner)
        drop()
        # Nothing is left of a lock that was refused.
        assert not gate.holds_any()
        take(gate, kinds[1], inner)
        cases += 1
    assert cases == len(RANKS) ** 2


def test_a_lock_that_comes_too_late_stays_free() -> None:
    gate = Gate()
    inner, outer = Mutex("inner", gate, RANK_LEAF), RwLock("outer", gate, RANK_MMU)
    inner.lock()
    for take_it in (outer.write_lock, outer.read_lock):
        with pytest.raises(KvmBug, match="outer taken by actor 0"):
            take_it()
        assert outer.is_free()


def test_what_one_actor_holds_does_not_order_another() -> None:
    gate = Gate()
    take(gate, "mutex", RANK_LEAF)
    gate.run(1)
    take(gate, "mutex", RANK_SLOTS)
    with pytest.raises(KvmBug, match="actor 1"):
        take(gate, "mutex", RANK_SLOTS)
    gate.run(0)
    with pytest.raises(KvmBug, match="actor 0"):
        take(gate, "mutex", RANK_SLOTS)


def test_locks_are_dropped_in_any_order() -> None:
    gate = Gate()
    drop_outer, drop_inner = take(gate, "mutex", RANK_SLOTS), take(gate, "write", RANK_MMU)
    drop_outer()
    with pytest.raises(KvmBug, match="comes after it"):
        take(gate, "mutex", RANK_SLOTS)
    drop_inner()
    take(gate, "mutex", RANK_SLOTS)()
    assert not gate.holds_any()


# Sections.


def test_sections_nest_and_belong_to_their_actor() -> None:
    gate = Gate()
    srcu = Srcu("srcu", gate)
    srcu.read_lock()
    srcu.read_lock()
    gate.run(4)
    srcu.read_lock()
    assert (srcu.readers, srcu.has_no_readers()) == (1 | 1 << 4, False)
    srcu.read_unlock()
    with pytest.raises(KvmBug, match="srcu_read_unlock by actor 4, which is in no section"):
        srcu.read_unlock()
    gate.run(0)
    srcu.read_unlock()
    assert srcu.readers == 1
    srcu.read_unlock()
    assert srcu.has_no_readers()
    with pytest.raises(KvmBug, match="in no section"):
        srcu.read_unlock()


def test_a_section_is_no_lock_and_has_no_place_in_the_order() -> None:
    gate = Gate()
    srcu = Srcu("srcu", gate)
    srcu.read_lock()
    assert not gate.holds_any()
    drop = take(gate, "mutex", RANK_LEAF)
    srcu.read_lock()
    srcu.read_unlock()
    drop()


def test_waiting_inside_the_own_section_is_a_bug_even_if_others_can_run() -> None:
    gate = Gate()
    srcu = Srcu("srcu", gate)
    assert srcu.synchronize() == 0
    srcu.read_lock()
    with pytest.raises(KvmBug, match="inside a section waits forever"):
        srcu.synchronize()
    checker = armed(gate, srcu.read_unlock)
    with pytest.raises(KvmBug, match="inside a section waits forever"):
        srcu.synchronize()
    assert checker.waits == []


def test_the_sections_of_others_are_waited_for() -> None:
    gate = Gate()
    srcu = Srcu("srcu", gate)
    gate.run(1)
    srcu.read_lock()
    gate.run(0)
    with pytest.raises(KvmBug, match=r"synchronize_srcu.*waits forever"):
        srcu.synchronize()
    checker = armed(gate, srcu.read_unlock)
    srcu.synchronize()
    assert checker.waits == [("synchronize_srcu", srcu, False)]
    assert checker.heard == [("srcu_read_unlock", srcu)]


# RCU.


def rcu() -> tuple[Gate, Rcu, list[object]]:
    gate = Gate()
    return gate, Rcu("rcu", gate), []


def test_without_readers_what_was_unlinked_goes_at_once() -> None:
    _, section, gone = rcu()
    section.call(gone.append, "a")
    assert gone == ["a"]


def test_what_was_unlinked_waits_for_every_section_that_began_before_and_no_other() -> None:
    gate, section, gone = rcu()
    gate.run(1)
    section.read_lock()
    gate.run(2)
    section.read_lock()
    section.call(gone.append, "a")
    gate.run(3)
    section.read_lock()
    section.call(gone.append, "b")
    gate.run(2)
    section.read_unlock()
    assert gone == []
    section.read_lock()
    section.call(gone.append, "c")
    gate.run(1)
    section.read_unlock()
    # "a" waited for 1 and 2; 3 began after it, and 2 again.
    assert gone == ["a"]
    gate.run(3)
    section.read_unlock()
    assert gone == ["a", "b"]
    gate.run(2)
    section.read_unlock()
    assert (gone, section.pending, section.readers) == (["a", "b", "c"], [], 0)


def test_sections_of_one_actor_nest() -> None:
    _, section, gone = rcu()
    section.read_lock()
    section.read_lock()
    section.call(gone.append, "a")
    section.read_unlock()
    assert (gone, section.readers) == ([], 1)
    section.assert_reading()
    section.read_unlock()
    assert gone == ["a"]
    assert repr(section) == "<Rcu rcu readers 0x0 pending 0>"


def test_the_end_of_no_section_is_a_bug() -> None:
    _, section, _ = rcu()
    with pytest.raises(KvmBug, match="rcu_read_unlock by actor 0, which is in no section"):
        section.read_unlock()
    with pytest.raises(KvmBug, match="must be in a section here"):
        section.assert_reading()


def test_an_armed_gate_hears_of_sections() -> None:
    gate, section, _ = rcu()
    checker = armed(gate)
    section.read_lock()
    section.read_lock()
    section.read_unlock()
    section.read_unlock()
    assert [kind for kind, _ in checker.heard] == ["rcu_read_lock", "rcu_read_lock", "rcu_read_unlock"]


# Yields.


@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_lock_that_relaxes_is_free_in_between_and_held_as_before(mode: str) -> None:
    gate, lock = rw()
    seen: list[bool] = []

    class Watch(Checker):
        def point(self, kind: str, where: object, key: object) -> None:
            if kind.endswith("_unlock"):
                seen.append(lock.is_free())

    getattr(lock, f"{mode}_lock")()
    gate.arm(Watch(gate))
    lock.relax()
    gate.disarm()
    assert seen == [True]
    assert lock.is_exclusive() == (mode == "write")
    if mode == "read":
        lock.assert_shared()
    else:
        with pytest.raises(KvmBug, match="must be held shared here by actor 0"):
            lock.assert_shared()
    getattr(lock, f"{mode}_unlock")()


def test_a_checker_says_who_must_yield() -> None:
    gate, lock = rw()
    assert not gate.must_yield(lock)

    class Asks(Checker):
        def must_yield(self, where: object) -> bool:
            return where is lock

    gate.arm(Asks(gate))
    assert gate.must_yield(lock)
    assert not gate.must_yield(gate)
