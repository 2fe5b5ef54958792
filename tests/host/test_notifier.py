# SPDX-License-Identifier: GPL-2.0-only
"""The notifier chain: who hears, and in which order."""

from __future__ import annotations

import pytest

from host.spaces import make
from kvmmu.errors import UserError
from kvmmu.host.notifier import NotifierChain


def test_the_chain_can_be_left() -> None:
    mm, chain = make()
    mm.chain.unregister(chain)
    hva = mm.mmap(0x1000, populate=True)
    mm.munmap(hva, 0x1000)
    assert not chain.events
    with pytest.raises(UserError, match="not registered"):
        mm.chain.unregister(chain)


def test_all_hear_in_the_order_of_registration() -> None:
    chain, heard = NotifierChain(), []

    class Listener:
        def __init__(self, name: str) -> None:
            self.name = name

        def invalidate_range_start(self, start: int, end: int) -> None:
            heard.append((self.name, "start", start, end))

        def invalidate_range_end(self, start: int, end: int) -> None:
            heard.append((self.name, "end", start, end))

    first, second = Listener("first"), Listener("second")
    chain.register(first)
    chain.register(second)
    chain.range_start(0x1000, 0x3000)
    chain.range_end(0x1000, 0x3000)
    assert heard == [(name, what, 0x1000, 0x3000) for what in ("start", "end") for name in ("first", "second")]
    heard.clear()
    chain.unregister(first)
    chain.range_start(0, 0x1000)
    assert heard == [("second", "start", 0, 0x1000)]
