# SPDX-License-Identifier: GPL-2.0-only
"""The notifier chain of a process: who wants to know when the host changes what is mapped.

Each change of a mapping that somebody may use happens between a start and an end that everyone on the chain hears;
filling a hole tells nobody. Source: reference section "MMU notifiers".
"""

from __future__ import annotations

from typing import Protocol

from ..addr import Hva
from ..errors import UserError


class Notifier(Protocol):
    """Who wants to hear before and after the host changes what is mapped in ``[start, end)``."""

    def invalidate_range_start(self, start: Hva, end: Hva) -> object:
        """Stop using every frame found through the range."""

    def invalidate_range_end(self, start: Hva, end: Hva) -> object:
        """The change is made; the range may be looked up again."""

    def clear_flush_young(self, start: Hva, end: Hva) -> bool:
        """Forget that ``[start, end)`` was used, in TLBs too; whether it was, since it was last asked."""

    def clear_young(self, start: Hva, end: Hva) -> bool:
        """As above; TLBs may go on as if it had been."""

    def test_young(self, address: Hva) -> bool:
        """Whether the page at ``address`` was used; nothing is forgotten."""


class NotifierChain:
    """The notifiers of one address space, told in the order in which they registered."""

    __slots__ = ("notifiers",)

    def __init__(self) -> None:
        self.notifiers: list[Notifier] = []

    def register(self, notifier: Notifier) -> None:
        """Add ``notifier`` to the chain."""
        self.notifiers.append(notifier)

    def unregister(self, notifier: Notifier) -> None:
        """Take ``notifier`` off the chain; :class:`UserError` if it is not on it."""
        if notifier not in self.notifiers:
            raise UserError(f"{notifier!r} is not registered with this address space")
        self.notifiers.remove(notifier)

    def range_start(self, start: Hva, end: Hva) -> int:
        """Tell the chain that what is mapped in ``[start, end)`` is about to change."""
        for notifier in self.notifiers:
            notifier.invalidate_range_start(start, end)
        return 0

    def clear_flush_young(self, start: Hva, end: Hva) -> bool:
        """Make all forget that ``[start, end)`` was used, TLBs included; whether anybody had."""
        return any([notifier.clear_flush_young(start, end) for notifier in self.notifiers])

    def clear_young(self, start: Hva, end: Hva) -> bool:
        """Make all forget that ``[start, end)`` was used; whether anybody had."""
        return any([notifier.clear_young(start, end) for notifier in self.notifiers])

    def test_young(self, address: Hva) -> bool:
        """Whether anybody used the page at ``address``."""
        return any([notifier.test_young(address) for notifier in self.notifiers])

    def range_end(self, start: Hva, end: Hva) -> int:
        """Tell the chain that the change announced by :meth:`range_start` is made."""
        for notifier in self.notifiers:
            notifier.invalidate_range_end(start, end)
        return 0
