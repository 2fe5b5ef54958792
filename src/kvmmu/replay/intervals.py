# SPDX-License-Identifier: GPL-2.0-only
"""What a replay counts, interval by interval of so many records."""

from __future__ import annotations

from ..kvm.mmu.verdict import CAUSES
from .machine import BareMachine, GuestMachine
from .player import Player
from .result import Interval

_COUNTS = ("accesses", "stores", "emulated_stores", "mismatches", "smm_records")


def count_faults(machine: GuestMachine | BareMachine) -> dict[str, int]:
    """Faults so far by cause, those that happened."""
    counts = {cause: sum(vcpu.nr_faults(number) for vcpu in machine.vcpus) for number, cause in enumerate(CAUSES)}
    return {cause: count for cause, count in counts.items() if count}


class IntervalCounter:
    """Closes an interval every ``size`` records; 0: never, which costs nothing."""

    def __init__(self, player: Player, machine: GuestMachine | BareMachine, size: int) -> None:
        self.player = player
        self.machine = machine
        self.size = size
        #: The intervals that are over.
        self.intervals: list[Interval] = []
        self._start = player.reader.position
        self._counts = self._now()
        self._faults = count_faults(machine)

    def end(self, limit: int) -> int:
        """Where the interval in hand ends, at most ``limit``."""
        return min(limit, self._start + self.size) if self.size else limit

    def close(self, *, is_last: bool = False) -> None:
        """End the interval in hand if it is full; ``is_last``: also if it holds any record."""
        position = self.player.reader.position
        played = position - self._start
        if not self.size or not (played >= self.size or (is_last and played)):
            return
        counts, faults = self._now(), count_faults(self.machine)
        self.intervals.append(
            Interval(
                first=self._start,
                until=position,
                **{name: value - self._counts[name] for name, value in counts.items()},
                faults={cause: count - self._faults.get(cause, 0) for cause, count in faults.items()},
                counters=self.machine.world.counters() if self.machine.world is not None else {},
            )
        )
        self._start, self._counts, self._faults = position, counts, faults

    def _now(self) -> dict[str, int]:
        counts = {name: int(getattr(self.player, name)) for name in _COUNTS}
        counts["exits"] = sum(vcpu.stat.exits for vcpu in self.machine.vcpus)
        return counts
