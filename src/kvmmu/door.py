# SPDX-License-Identifier: GPL-2.0-only
"""Door: one caller at a time works with a world, and after it was closed nobody does.

While a call works, kvm may hold locks and have half a change made. An event sink runs in the middle of that: it may
look (:meth:`Door.look`), but what it calls must not touch the machine, and what it raises comes out when
the call ends. A second thread waits for the call to end, on a
lock of its own; a world has no such lock, it refuses. Between two calls a world may go from one thread to another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from threading import get_ident

from .errors import GuestMisuse
from .tracepoint import Event

# No thread has this number.
_CLOSED = -1
_NOBODY = 0


class Door:
    """The door of one world: a call begins with :meth:`enter` or :meth:`look` and ends with :meth:`leave`."""

    __slots__ = ("acquire", "failure", "locked", "owner", "release")

    def __init__(self) -> None:
        lock = threading.Lock()
        self.acquire = lock.acquire
        self.release = lock.release
        self.locked = lock.locked
        #: What a sink raised during the call that works now; it comes out at the end of that call.
        self.failure: BaseException | None = None
        #: The thread that works, or worked last.
        self.owner = _NOBODY

    def enter(self) -> int:
        """The caller works with the world from here to :meth:`leave`; return 0.

        :raises GuestMisuse: the world is closed, or somebody works with it (:meth:`refusal`).
        """
        if not self.acquire(False):
            raise self.refusal()
        self.owner = get_ident()
        return 0

    def look(self) -> bool:
        """Enter, unless the caller's own thread is inside: a sink may look. Return whether :meth:`leave` is due.

        :raises GuestMisuse: the world is closed, or another thread works with it.
        """
        if self.acquire(False):
            self.owner = get_ident()
            return True
        if not self.is_mine():
            raise self.refusal()
        return False

    def leave(self) -> int:
        """The call is over: let others in, unless the world was closed, and raise what a sink raised. Return 0."""
        if self.owner != _CLOSED:
            self.release()
        if self.failure is not None:
            self.raise_failure()
        return 0

    def is_mine(self) -> bool:
        """Whether the caller's own thread entered last."""
        return self.owner == get_ident()

    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self.owner == _CLOSED

    def raise_failure(self) -> None:
        """Raise, once, what a sink raised."""
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    def guarded(self, sink: Callable[[Event], object]) -> Callable[[Event], None]:
        """``sink`` as it is attached: what it raises waits for the end of the call, for kvm must not stop half way."""

        def deliver(event: Event) -> None:
            try:
                sink(event)
            except BaseException as error:
                if not self.locked():
                    raise
                if self.failure is None:
                    self.failure = error

        return deliver

    def close(self) -> None:
        """Let nobody in from now on; the caller, who is inside, does not release it."""
        self.owner = _CLOSED

    def refusal(self) -> GuestMisuse:
        """Why the caller may not enter."""
        if self.is_closed():
            return GuestMisuse("this world is closed: build another one")
        if self.is_mine():
            return GuestMisuse(
                "the world is at work: an event sink (or whatever runs inside a call) may look but not call back into"
                " it; keep the event and act after the call"
            )
        return GuestMisuse(
            "the world is at work in another thread: it is bound to one thread at a time; call it from one thread, or"
            " hold a lock of yours around each call"
        )
