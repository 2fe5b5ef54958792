# SPDX-License-Identifier: GPL-2.0-only
"""Sinks that keep events in memory: all of them, or the newest."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

from ..errors import UserError
from ..tracepoint import Event


class EventList:
    """A sink that keeps every event, oldest first, in :attr:`events`."""

    __slots__ = ("events",)

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Keep ``event``."""
        self.events.append(event)

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def count(self) -> Counter[str]:
        """Events by name."""
        return Counter(event[0] for event in self.events)

    def take(self) -> list[Event]:
        """The events so far; the sink is empty afterwards."""
        events, self.events = self.events, []
        return events


class EventRing:
    """A sink that keeps the newest ``capacity`` events and counts the older ones that it dropped."""

    __slots__ = ("_events", "capacity", "total")

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise UserError(f"a ring of {capacity} events cannot hold one: the capacity is at least 1")
        self.capacity = capacity
        self.total = 0
        self._events: deque[Event] = deque(maxlen=capacity)

    def __call__(self, event: Event) -> None:
        """Keep ``event``, in place of the oldest when the ring is full."""
        self._events.append(event)
        self.total += 1

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    @property
    def dropped(self) -> int:
        """Events that came and are no longer here, since the start or the last :meth:`clear`."""
        return self.total - len(self._events)

    def clear(self) -> None:
        """Forget all events and counts."""
        self._events.clear()
        self.total = 0
