# SPDX-License-Identifier: GPL-2.0-only
"""Invalidation: what tells a fault that the host has taken pages back since it asked for one.

A sequence that every invalidation moves, a count of those in progress, and the gfns that they cover. A fault takes a
:meth:`~Invalidation.sample`, asks the host, and under ``mmu_lock`` asks whether an invalidation :meth:`~covers` its
gfn. The owner of ``mmu_invalidate_seq``, ``mmu_invalidate_in_progress``, ``mmu_invalidate_range_*`` and
``mn_active_invalidate_count``: nobody else touches them. Reference: "MMU notifiers", begin / range_add / end.
"""

from __future__ import annotations

from ..addr import Gfn
from ..errors import KvmBug
from ..page_types import INVALID_PAGE
from ..sync import Gate, Mutex, RwLock


class Invalidation:
    """The invalidations of one VM; ``mmu_lock`` and ``mn_invalidate_lock`` are the VM's."""

    __slots__ = ("active", "gate", "in_progress", "mmu_lock", "mn_invalidate_lock", "range_end", "range_start", "seq")

    def __init__(self, gate: Gate, mmu_lock: RwLock, mn_invalidate_lock: Mutex) -> None:
        self.gate = gate
        self.mmu_lock = mmu_lock
        self.mn_invalidate_lock = mn_invalidate_lock
        self.seq = 0
        self.in_progress = 0
        self.range_start = INVALID_PAGE
        self.range_end = INVALID_PAGE
        self.active = 0

    def __repr__(self) -> str:
        covered = f" gfns {self.range_start:#x}-{self.range_end:#x}" if self.in_progress else ""
        return f"<Invalidation seq {self.seq} in progress {self.in_progress}{covered} active {self.active}>"

    # The fault's side.

    def sample(self) -> int:
        """The sequence, for :meth:`covers`; taken before the host is asked. Needs no lock."""
        if self.gate.armed:
            self.gate.announce("read", self, "seq")
        seq = self.seq
        self.gate.smp_rmb()
        return seq

    def covers(self, gfn: Gfn, seq: int) -> bool:
        """Whether what was found for ``gfn`` since ``seq`` was sampled must not be used; ``mmu_lock`` held.

        An invalidation covers the gfn now, or any has ended meanwhile (``mmu_invalidate_retry_gfn``).
        """
        self.mmu_lock.assert_held()
        if self.in_progress:
            if self.range_start == INVALID_PAGE:
                raise KvmBug(f"an invalidation that recorded no range let go of mmu_lock: {self!r}")
            if self.range_start <= gfn < self.range_end:
                return True
        return self.seq != seq

    def covers_unlocked(self, gfn: Gfn, seq: int) -> bool:
        """:meth:`covers` without the lock: a "no" may be out of date, a "yes" is true (``..._retry_gfn_unsafe``)."""
        if self.gate.armed:
            self.gate.announce("read", self, "in_progress")
        if self.in_progress and self.range_start <= gfn < self.range_end:
            return True
        # An end moves the sequence before the count: whoever missed the one sees the other.
        self.gate.smp_rmb()
        if self.gate.armed:
            self.gate.announce("read", self, "seq")
        return self.seq != seq

    def is_in_progress(self) -> bool:
        """Whether any invalidation is under way: no time to prefetch; ``mmu_lock`` held."""
        self.mmu_lock.assert_held()
        return self.in_progress != 0

    # The host's side.

    def begin(self) -> int:
        """An invalidation begins (``kvm_mmu_invalidate_begin``); ``mmu_lock`` exclusive."""
        self.mmu_lock.assert_exclusive()
        if self.gate.armed:
            self.gate.announce("write", self, "in_progress")
        self.in_progress += 1
        if self.in_progress == 1:
            self.range_start = INVALID_PAGE
            self.range_end = INVALID_PAGE
        return 0

    def add_range(self, start_gfn: Gfn, end_gfn: Gfn) -> int:
        """Widen the recorded range to ``[start_gfn, end_gfn)``; ``mmu_lock`` exclusive."""
        self.mmu_lock.assert_exclusive()
        if self.gate.armed:
            self.gate.announce("write", self, "range")
        if self.range_start == INVALID_PAGE:
            self.range_start = start_gfn
            self.range_end = end_gfn
            return 0
        if start_gfn < self.range_start:
            self.range_start = start_gfn
        if end_gfn > self.range_end:
            self.range_end = end_gfn
        return 0

    def end(self) -> int:
        """An invalidation ends (``kvm_mmu_invalidate_end``): sequence first, then the count; ``mmu_lock`` exclusive."""
        self.mmu_lock.assert_exclusive()
        if self.gate.armed:
            self.gate.announce("write", self, "seq")
        self.seq += 1
        # Whoever no longer sees it in progress sees that the sequence has moved.
        self.gate.smp_wmb()
        if self.gate.armed:
            self.gate.announce("write", self, "in_progress")
        self.in_progress -= 1
        if self.in_progress < 0:
            raise KvmBug("an invalidation ended that never began")
        return 0

    # Memslot updates wait for the host: its end must look at the slots that its start saw.

    def enter(self) -> int:
        """A notifier's start was called; takes ``mn_invalidate_lock``."""
        self.mn_invalidate_lock.lock()
        self.active += 1
        self.mn_invalidate_lock.unlock()
        return 0

    def leave(self) -> int:
        """The notifier's end is done; takes ``mn_invalidate_lock``."""
        self.mn_invalidate_lock.lock()
        self.active -= 1
        self.mn_invalidate_lock.unlock()
        if self.active < 0:
            raise KvmBug("a notifier's end came without its start")
        return 0

    def is_idle(self) -> bool:
        """Whether no notifier is between its start and its end."""
        return self.active == 0

    def lock_idle(self) -> int:
        """Wait until the host is idle and return with ``mn_invalidate_lock`` held, so that it stays so."""
        self.mn_invalidate_lock.lock()
        while self.active:
            self.mn_invalidate_lock.unlock()
            self.gate.wait("wait_for_invalidations", self, self.is_idle)
            self.mn_invalidate_lock.lock()
        return 0

    def unlock_idle(self) -> int:
        """Let notifiers start again."""
        return self.mn_invalidate_lock.unlock()
