# SPDX-License-Identifier: GPL-2.0-only
"""The seam for everything that two actors can touch: the gate, the barriers, the locks.

Shared words pass one closed gate: those of physical memory in ``hw/memory``, each other one in the few functions of its
owner (``kvm/invalidation``, ``kvm/mode``, ``kvm/requests`` ...). While the gate is closed an access costs one branch; a
checker that arms it hears of each access before it happens and decides who runs next. The gate belongs to one world,
so many worlds live in one process.

An *actor* is whoever runs now: number 0 while the gate is closed, and whom a checker says afterwards. Locks here are
the kernel's (``mmu_lock``, ``slots_lock`` ...) and know the actor that holds them. Taking one that somebody else holds
waits, if a checker can run the other; with one actor it would wait forever, which is a bug of the model, and raises
:class:`~kvmmu.errors.KvmBug` at once. So does taking locks in another order than ``docs/locking.md`` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import KvmBug
from .lockorder import MAX_ACTORS
from .page_types import ONE

# No actor.
_NOBODY = -1


class Gate:
    """Whether accesses to shared words and locks are announced, and to whom; who runs; which locks each actor holds."""

    __slots__ = ("actor", "armed", "checker", "held")

    def __init__(self) -> None:
        self.armed = False
        self.checker: Any = None
        self.actor = 0
        self.held = [0] * 64

    def arm(self, checker: Any) -> None:
        """Announce every access to ``checker`` from now on, before it happens.

        ``checker.point(kind, where, key)``: an access to the shared word ``key`` of ``where``, or a lock operation.
        ``checker.barrier(kind)``: a barrier. ``checker.wait(kind, where, condition)``: the actor can go on only when
        ``condition()`` is true, which it may be already; returns then.
        """
        self.checker = checker
        self.armed = True

    def disarm(self) -> None:
        """Close the gate again; actor 0 is the one that runs."""
        self.armed = False
        self.checker = None
        self.actor = 0

    def run(self, actor: int) -> int:
        """Say that ``actor`` (0 to MAX_ACTORS - 1) runs from now on; :class:`KvmBug` for another number. Return 0."""
        if actor < 0 or actor >= MAX_ACTORS:
            raise KvmBug(f"actor {actor}: there are {MAX_ACTORS}, from 0")
        self.actor = actor
        return 0

    def announce(self, kind: str, where: Any, key: Any) -> int:
        """Tell the checker of an access of ``kind`` to ``key`` of ``where``; callers test :attr:`armed` first."""
        self.checker.point(kind, where, key)
        return 0

    def wait(self, kind: str, where: Any, condition: Callable[[], bool]) -> int:
        """Go on when ``condition()`` is true. With the gate closed nobody else can make it so: :class:`KvmBug`."""
        if not self.armed:
            if not condition():
                raise KvmBug(f"{kind}: {where!r} waits forever, nobody else runs")
            return 0
        self.checker.wait(kind, where, condition)
        if not condition():
            raise KvmBug(f"{kind}: the checker came back too early, {where!r} still waits")
        return 0

    def must_yield(self, where: Any) -> bool:
        """Whether the holder of ``where`` should let others in (``need_resched``, ``rwlock_needbreak``): checkers know.

        ``checker.must_yield(where)`` says so, as often as it likes; with the gate closed nobody waits.
        """
        return self.armed and bool(self.checker.must_yield(where))

    # Barriers, by their kernel names. Memory is sequentially consistent here; they mark where the kernel's order
    # depends on more, for a checker that knows weaker models. Each use is listed in tests/test_barriers.py.

    def smp_mb(self) -> int:
        """Full barrier."""
        if self.armed:
            self.checker.barrier("mb")
        return 0

    def smp_rmb(self) -> int:
        """Read barrier: loads before it are done before loads after it."""
        if self.armed:
            self.checker.barrier("rmb")
        return 0

    def smp_wmb(self) -> int:
        """Write barrier: stores before it are seen before stores after it."""
        if self.armed:
            self.checker.barrier("wmb")
        return 0

    def smp_store_release(self) -> int:
        """The store that follows is a release: all accesses before it are seen first."""
        if self.armed:
            self.checker.barrier("store-release")
        return 0

    def smp_load_acquire(self) -> int:
        """The load before was an acquire: all accesses after it come later."""
        if self.armed:
            self.checker.barrier("load-acquire")
        return 0

    # Lock order.

    def hold(self, rank: int, name: str) -> int:
        """The actor takes a lock of ``rank``; :class:`KvmBug` if it holds one of that rank or a deeper one."""
        held = self.held[self.actor]
        if held >> rank:
            raise KvmBug(f"{name} taken by actor {self.actor}, which holds a lock that comes after it ({held:#x})")
        self.held[self.actor] = held | (ONE << rank)
        return 0

    def release(self, rank: int) -> int:
        """The actor drops its lock of ``rank``."""
        self.held[self.actor] &= ~(ONE << rank)
        return 0

    def holds_any(self) -> bool:
        """Whether any actor holds any lock."""
        count = 0
        for actor in range(MAX_ACTORS):
            count += self.held[actor] != 0
        return count != 0


class RwLock:
    """A reader-writer lock such as ``mmu_lock``; ``rank`` is its place in the order of locks (RANK_*)."""

    __slots__ = ("gate", "name", "rank", "readers", "writer")

    def __init__(self, name: str, gate: Gate, rank: int) -> None:
        self.name = name
        self.gate = gate
        self.rank = rank
        self.readers = 0
        self.writer = _NOBODY

    def __repr__(self) -> str:
        if self.writer != _NOBODY:
            return f"<RwLock {self.name} held for writing by actor {self.writer}>"
        return f"<RwLock {self.name} readers {self.readers:#x}>"

    def write_lock(self) -> int:
        """Take the lock exclusively; :class:`KvmBug` if this actor holds it, or another and nobody else can run."""
        gate = self.gate
        if gate.armed:
            gate.announce("write_lock", self, 0)
        if self.writer != _NOBODY or self.readers:
            self._must_be_others("write_lock")
            gate.wait("write_lock", self, self.is_free)
        gate.hold(self.rank, self.name)
        self.writer = gate.actor
        return 0

    def write_unlock(self) -> int:
        """Release the exclusive hold; :class:`KvmBug` if this actor has none."""
        if self.writer != self.gate.actor:
            raise KvmBug(f"write_unlock by actor {self.gate.actor}: {self!r}")
        self.writer = _NOBODY
        self.gate.release(self.rank)
        if self.gate.armed:
            self.gate.announce("write_unlock", self, 0)
        return 0

    def read_lock(self) -> int:
        """Take the lock shared; :class:`KvmBug` if this actor holds it, or a writer does and nobody else can run."""
        gate = self.gate
        if gate.armed:
            gate.announce("read_lock", self, 0)
        if self.writer != _NOBODY or (self.readers >> gate.actor) & ONE:
            self._must_be_others("read_lock")
            gate.wait("read_lock", self, self.has_no_writer)
        gate.hold(self.rank, self.name)
        self.readers |= ONE << gate.actor
        return 0

    def read_unlock(self) -> int:
        """Release the shared hold; :class:`KvmBug` if this actor has none."""
        if (self.readers >> self.gate.actor) & ONE == 0:
            raise KvmBug(f"read_unlock by actor {self.gate.actor}: {self!r}")
        self.readers &= ~(ONE << self.gate.actor)
        self.gate.release(self.rank)
        if self.gate.armed:
            self.gate.announce("read_unlock", self, 0)
        return 0

    def relax(self) -> int:
        """Drop the lock and take it again in the mode in which this actor holds it (``cond_resched_rwlock_*``)."""
        if self.is_exclusive():
            self.write_unlock()
            return self.write_lock()
        self.read_unlock()
        return self.read_lock()

    def is_exclusive(self) -> bool:
        """Whether this actor holds it exclusively."""
        return self.writer == self.gate.actor

    def is_free(self) -> bool:
        """Whether nobody holds it."""
        return self.writer == _NOBODY and self.readers == 0

    def has_no_writer(self) -> bool:
        """Whether nobody holds it exclusively."""
        return self.writer == _NOBODY

    def _must_be_others(self, what: str) -> int:
        if self.writer == self.gate.actor or (self.readers >> self.gate.actor) & ONE:
            raise KvmBug(f"{what} by actor {self.gate.actor} while it holds the lock: {self!r}")
        return 0

    def assert_exclusive(self) -> int:
        """:class:`KvmBug` unless this actor holds it exclusively (``lockdep_assert_held_write``)."""
        if self.writer != self.gate.actor:
            raise KvmBug(f"{self.name} must be held exclusively here by actor {self.gate.actor}: {self!r}")
        return 0

    def assert_shared(self) -> int:
        """:class:`KvmBug` unless this actor holds it shared (``lockdep_assert_held_read``)."""
        if (self.readers >> self.gate.actor) & ONE == 0:
            raise KvmBug(f"{self.name} must be held shared here by actor {self.gate.actor}: {self!r}")
        return 0

    def assert_held(self) -> int:
        """:class:`KvmBug` unless this actor holds it in some mode (``lockdep_assert_held``)."""
        if self.writer != self.gate.actor and (self.readers >> self.gate.actor) & ONE == 0:
            raise KvmBug(f"{self.name} must be held here by actor {self.gate.actor}: {self!r}")
        return 0


class Mutex:
    """A lock with one holder: ``slots_lock``, ``slots_arch_lock``, ``mmu_unsync_pages_lock`` ...; ``rank`` as above."""

    __slots__ = ("gate", "name", "owner", "rank")

    def __init__(self, name: str, gate: Gate, rank: int) -> None:
        self.name = name
        self.gate = gate
        self.rank = rank
        self.owner = _NOBODY

    def __repr__(self) -> str:
        return f"<Mutex {self.name} {'free' if self.owner == _NOBODY else f'held by actor {self.owner}'}>"

    def lock(self) -> int:
        """Take the lock; :class:`KvmBug` if this actor holds it, or another and nobody else can run."""
        gate = self.gate
        if gate.armed:
            gate.announce("lock", self, 0)
        if self.owner != _NOBODY:
            if self.owner == gate.actor:
                raise KvmBug(f"lock by actor {gate.actor} while it holds the lock: {self!r}")
            gate.wait("lock", self, self.is_free)
        gate.hold(self.rank, self.name)
        self.owner = gate.actor
        return 0

    def unlock(self) -> int:
        """Release the lock; :class:`KvmBug` if this actor does not hold it."""
        if self.owner != self.gate.actor:
            raise KvmBug(f"unlock by actor {self.gate.actor}: {self!r}")
        self.owner = _NOBODY
        self.gate.release(self.rank)
        if self.gate.armed:
            self.gate.announce("unlock", self, 0)
        return 0

    def is_free(self) -> bool:
        """Whether nobody holds it."""
        return self.owner == _NOBODY

    def assert_held(self) -> int:
        """:class:`KvmBug` unless this actor holds it."""
        if self.owner != self.gate.actor:
            raise KvmBug(f"{self.name} must be held here by actor {self.gate.actor}: {self!r}")
        return 0


class Srcu:
    """Readers of what is published and replaced: the memslots. Sections of one actor may nest."""

    __slots__ = ("depth", "gate", "name", "readers")

    def __init__(self, name: str, gate: Gate) -> None:
        self.name = name
        self.gate = gate
        self.readers = 0
        self.depth = [0] * 64

    def __repr__(self) -> str:
        return f"<Srcu {self.name} readers {self.readers:#x}>"

    def read_lock(self) -> int:
        """Begin a section: what it finds published stays valid until its end."""
        gate = self.gate
        if gate.armed:
            gate.announce("srcu_read_lock", self, 0)
        self.depth[gate.actor] += 1
        self.readers |= ONE << gate.actor
        return 0

    def read_unlock(self) -> int:
        """End a section; :class:`KvmBug` if this actor is in none."""
        gate = self.gate
        if self.depth[gate.actor] == 0:
            raise KvmBug(f"srcu_read_unlock by actor {gate.actor}, which is in no section: {self!r}")
        self.depth[gate.actor] -= 1
        if self.depth[gate.actor] == 0:
            self.readers &= ~(ONE << gate.actor)
        if gate.armed:
            gate.announce("srcu_read_unlock", self, 0)
        return 0

    def has_no_readers(self) -> bool:
        """Whether nobody is in a section."""
        return self.readers == 0

    def synchronize(self) -> int:
        """Wait until every section that may still see the old state has ended; :class:`KvmBug` inside a section."""
        if (self.readers >> self.gate.actor) & ONE:
            raise KvmBug(f"synchronize by actor {self.gate.actor} inside a section waits forever: {self!r}")
        return self.gate.wait("synchronize_srcu", self, self.has_no_readers)


class Rcu:
    """Readers of what others unlink meanwhile, and what waits for them to be freed. Sections of one actor may nest."""

    __slots__ = ("depth", "gate", "name", "pending", "readers")

    def __init__(self, name: str, gate: Gate) -> None:
        self.name = name
        self.gate = gate
        self.readers = 0
        self.depth = [0] * 64
        # What is to be freed, each with the actors whose sections, begun before, have not ended: a bit each.
        self.pending: list[tuple[Callable[[Any], object], Any, int]] = []

    def __repr__(self) -> str:
        return f"<Rcu {self.name} readers {self.readers:#x} pending {len(self.pending)}>"

    def read_lock(self) -> int:
        """Begin a section: nothing that can be reached now is freed before its end."""
        gate = self.gate
        if gate.armed:
            gate.announce("rcu_read_lock", self, 0)
        self.depth[gate.actor] += 1
        self.readers |= ONE << gate.actor
        return 0

    def read_unlock(self) -> int:
        """End a section, and free what waited for nothing else; :class:`KvmBug` if this actor is in none."""
        gate = self.gate
        if self.depth[gate.actor] == 0:
            raise KvmBug(f"rcu_read_unlock by actor {gate.actor}, which is in no section: {self!r}")
        self.depth[gate.actor] -= 1
        if self.depth[gate.actor]:
            return 0
        self.readers &= ~(ONE << gate.actor)
        if gate.armed:
            gate.announce("rcu_read_unlock", self, 0)
        return self._end_of(gate.actor) if self.pending else 0

    def call(self, free: Callable[[Any], object], what: Any) -> int:
        """Call ``free(what)`` when every section of now has ended (``call_rcu``): at once if there is none."""
        if self.readers == 0:
            free(what)
            return 0
        self.pending.append((free, what, self.readers))
        return 0

    def assert_reading(self) -> int:
        """:class:`KvmBug` unless this actor is in a section."""
        if (self.readers >> self.gate.actor) & ONE == 0:
            raise KvmBug(f"actor {self.gate.actor} must be in a section here: {self!r}")
        return 0

    # No section of actor is left: what waited for it alone goes, in the order in which it came.
    def _end_of(self, actor: int) -> int:
        pending = self.pending
        self.pending = []
        for free, what, waits_for in pending:
            left = waits_for & ~(ONE << actor)
            if left:
                self.pending.append((free, what, left))
            else:
                free(what)
        return 0
