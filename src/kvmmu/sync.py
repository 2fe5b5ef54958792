# SPDX-License-Identifier: GPL-2.0-only
"""The seam for everything that two actors can touch: the gate, and the locks.

Every shared word (``hw/memory``) and every lock passes one closed gate. While it is closed, an access costs one
branch; a checker that arms it hears of each access before it happens and decides who runs next. The gate belongs
to one world, so many worlds live in one process.

Locks here are the kernel's (``mmu_lock``, ``slots_lock`` ...), held by one actor of a single-threaded model: taking
a lock that is held is therefore a bug of the model, and raises :class:`~kvmmu.errors.KvmBug` at once.
"""

from __future__ import annotations

from typing import Any

from .errors import KvmBug


class Gate:
    """Whether accesses to shared words and locks are announced, and to whom."""

    __slots__ = ("armed", "checker")

    def __init__(self) -> None:
        self.armed = False
        self.checker: Any = None

    def arm(self, checker: Any) -> None:
        """Announce every access to ``checker.point(kind, where, key)`` from now on."""
        self.checker = checker
        self.armed = True

    def disarm(self) -> None:
        """Close the gate again."""
        self.armed = False
        self.checker = None


class RwLock:
    """A reader-writer lock such as ``mmu_lock``."""

    __slots__ = ("exclusive", "gate", "name", "readers")

    def __init__(self, name: str, gate: Gate) -> None:
        self.name = name
        self.gate = gate
        self.readers = 0
        self.exclusive = False

    def write_lock(self) -> int:
        """Take the lock exclusively; :class:`KvmBug` if it is held in any mode."""
        if self.gate.armed:
            self.gate.checker.point("write_lock", self, 0)
        if self.exclusive or self.readers:
            raise KvmBug(f"{self.name}: write_lock while held ({self.readers} readers, exclusive {self.exclusive})")
        self.exclusive = True
        return 0

    def write_unlock(self) -> int:
        """Release the exclusive hold; :class:`KvmBug` if there is none."""
        if not self.exclusive:
            raise KvmBug(f"{self.name}: write_unlock without the lock")
        self.exclusive = False
        if self.gate.armed:
            self.gate.checker.point("write_unlock", self, 0)
        return 0

    def read_lock(self) -> int:
        """Take the lock shared; :class:`KvmBug` if it is held exclusively."""
        if self.gate.armed:
            self.gate.checker.point("read_lock", self, 0)
        if self.exclusive:
            raise KvmBug(f"{self.name}: read_lock while held exclusively")
        self.readers += 1
        return 0

    def read_unlock(self) -> int:
        """Release one shared hold; :class:`KvmBug` if there is none."""
        if self.readers == 0:
            raise KvmBug(f"{self.name}: read_unlock without the lock")
        self.readers -= 1
        if self.gate.armed:
            self.gate.checker.point("read_unlock", self, 0)
        return 0

    def assert_exclusive(self) -> int:
        """:class:`KvmBug` unless held exclusively (``lockdep_assert_held_write``)."""
        if not self.exclusive:
            raise KvmBug(f"{self.name} must be held exclusively here")
        return 0

    def assert_held(self) -> int:
        """:class:`KvmBug` unless held in some mode (``lockdep_assert_held``)."""
        if not self.exclusive and self.readers == 0:
            raise KvmBug(f"{self.name} must be held here")
        return 0


class Mutex:
    """A lock with one holder: ``slots_lock``, ``slots_arch_lock``, ``mmu_unsync_pages_lock`` ..."""

    __slots__ = ("gate", "locked", "name")

    def __init__(self, name: str, gate: Gate) -> None:
        self.name = name
        self.gate = gate
        self.locked = False

    def lock(self) -> int:
        """Take the lock; :class:`KvmBug` if it is held."""
        if self.gate.armed:
            self.gate.checker.point("lock", self, 0)
        if self.locked:
            raise KvmBug(f"{self.name}: lock while held")
        self.locked = True
        return 0

    def unlock(self) -> int:
        """Release the lock; :class:`KvmBug` if it is not held."""
        if not self.locked:
            raise KvmBug(f"{self.name}: unlock without the lock")
        self.locked = False
        if self.gate.armed:
            self.gate.checker.point("unlock", self, 0)
        return 0

    def assert_held(self) -> int:
        """:class:`KvmBug` unless held."""
        if not self.locked:
            raise KvmBug(f"{self.name} must be held here")
        return 0
