# SPDX-License-Identifier: GPL-2.0-only
"""Whose entries a TLB holds, and since when they count: owners, the clock, and the floors that flushes leave.

The owner of an entry is the address space (ASID or VPID), the PCID and the global bit; a global entry has no PCID. The
stamp of an entry is the TLB's clock at its fill. A flush moves the clock and notes it as the *floor* of what it
flushes; an entry lives while its stamp is not below the floor that applies to it. So every flush is O(1). Floors that
the current context needs are kept in ``floor`` and ``global_floor``; :meth:`Floors.switch` exchanges them. Clocks and
floors have 64 bits and never wrap.
"""

from __future__ import annotations

from ..page_types import ONE
from .bits import TLB_GLOBAL_OWNER, TLB_PCID_SHIFT, TLB_SPACE_SHIFT


class Floors:
    """The context of a TLB, ``space`` and ``pcid``, and what was flushed in this and the others.

    ``flushes`` (flush operations, INVLPG among them) counts from creation on.
    """

    __slots__ = (
        "all_floor",
        "clock",
        "floor",
        "flushes",
        "global_floor",
        "global_floors",
        "global_owner",
        "local_floors",
        "owner",
        "pcid",
        "pcid_floors",
        "space",
    )

    def __init__(self) -> None:
        self.clock = 1
        self.all_floor = 1
        self.global_floors: dict[int, int] = {}
        self.local_floors: dict[int, int] = {}
        self.pcid_floors: dict[int, int] = {}
        self.flushes = 0
        self.space = 0
        self.pcid = 0
        self.switch(0, 0)

    def switch(self, space: int, pcid: int) -> int:
        """Make (``space``, ``pcid``) the context that lookups and fills belong to; flushes nothing. Return 0."""
        self.space = space
        self.pcid = pcid
        self.owner = (ONE * space << TLB_SPACE_SHIFT) | (ONE * pcid << TLB_PCID_SHIFT)
        self.global_owner = (ONE * space << TLB_SPACE_SHIFT) | TLB_GLOBAL_OWNER
        self.floor = self.floor_of(self.owner)
        self.global_floor = self.floor_of(self.global_owner)
        return 0

    def floor_of(self, owner: int) -> int:
        """The clock value below which entries of this owner are dead."""
        space = owner >> TLB_SPACE_SHIFT
        if owner & TLB_GLOBAL_OWNER:
            return max(self.all_floor, self.global_floors.get(space, 0))
        return max(self.all_floor, self.local_floors.get(space, 0), self.pcid_floors.get(owner, 0))

    def raise_all(self) -> int:
        """Flush everything: every address space, global entries included. Return 0."""
        self.tick()
        self.all_floor = self.clock
        self.global_floors.clear()
        self.local_floors.clear()
        self.pcid_floors.clear()
        return self._refresh()

    def flush_space(self, space: int) -> int:
        """Flush all of one address space (ASID, VPID), global entries included. Return 0."""
        self.tick()
        self.global_floors[space] = self.clock
        self.local_floors[space] = self.clock
        return self._refresh()

    def flush_non_global(self) -> int:
        """Flush every PCID of the current space except its global entries. Return 0."""
        self.tick()
        self.local_floors[self.space] = self.clock
        return self._refresh()

    def flush_pcid(self, pcid: int) -> int:
        """Flush one PCID of the current space except its global entries. Return 0."""
        self.tick()
        self.pcid_floors[(ONE * self.space << TLB_SPACE_SHIFT) | (ONE * pcid << TLB_PCID_SHIFT)] = self.clock
        return self._refresh()

    def flush_current(self) -> int:
        """Flush the current PCID and the global entries of the current space. Return 0."""
        self.tick()
        self.pcid_floors[self.owner] = self.clock
        self.global_floors[self.space] = self.clock
        return self._refresh()

    def tick(self) -> int:
        """Another flush; the clock moves. Return 0."""
        self.clock += 1
        self.flushes += 1
        return 0

    def _refresh(self) -> int:
        self.floor = self.floor_of(self.owner)
        self.global_floor = self.floor_of(self.global_owner)
        return 0
