# SPDX-License-Identifier: GPL-2.0-only
"""What a recording has said so far of each guest frame: what the memory map means there, and whether it is a table."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right

from ..page_types import U64
from .format import MAP_IO, MAP_RAM, MAP_ROM, Header

# Tables that were asked for last, by the low bits of their frame.
_SEEN_SLOTS = 4096
_SEEN_MASK = 4095


class KnownFrames:
    """The memory map of ``header``, then of every :meth:`change`, and the frames given to :meth:`add_table`.

    The map is ranges, the tables are a set: the size of the machine costs nothing.
    """

    __slots__ = (
        "device_end",
        "device_start",
        "kinds",
        "near_end",
        "near_kind",
        "near_start",
        "seen",
        "starts",
        "tables",
    )

    def __init__(self, header: Header) -> None:
        self.starts = [0]
        self.kinds = [MAP_IO]
        self.near_start = self.near_end = 0
        self.near_kind = MAP_IO
        self.device_start = self.device_end = 0
        self.tables: set[int] = set()
        self.seen = memoryview(array("Q", [U64]) * _SEEN_SLOTS)
        for region in header.memory:
            kind = MAP_ROM if region.kind == "rom" else MAP_RAM
            self.change(region.gpa >> 12, (region.gpa + region.size) >> 12, kind)

    def meaning(self, frame: int) -> int:
        """What the memory map says of ``frame`` (``MAP_*``). The range that was asked for last is asked first."""
        if frame < self.near_start or frame >= self.near_end:
            self.find_range(frame)
        return self.near_kind

    def is_ram(self, frame: int) -> bool:
        """Whether the memory map says that ``frame`` is RAM.

        For accesses to devices, which come between accesses to memory: the range that they found last is a second one.
        """
        if self.device_start <= frame < self.device_end:
            return False
        if self.meaning(frame) == MAP_RAM:
            return True
        self.device_start = self.near_start
        self.device_end = self.near_end
        return False

    def find_range(self, frame: int) -> int:
        """Make the range of ``frame`` the one that is asked first. Return 0."""
        index = bisect_right(self.starts, frame)
        self.near_start = self.starts[index - 1]
        self.near_end = self.starts[index] if index < len(self.starts) else U64
        self.near_kind = self.kinds[index - 1]
        return 0

    def change(self, first: int, end: int, kind: int) -> int:
        """From here on the frames [``first``, ``end``) are ``kind``; return how many ranges the map has.

        Ranges that come to mean the same as a neighbour join it.
        """
        starts = self.starts
        kinds = self.kinds
        after = kinds[bisect_right(starts, end) - 1]
        low = bisect_left(starts, first)
        high = bisect_right(starts, end)
        new_starts = []
        new_kinds = []
        if low == 0 or kinds[low - 1] != kind:
            new_starts.append(first)
            new_kinds.append(kind)
        if after != kind:
            new_starts.append(end)
            new_kinds.append(after)
        starts[low:high] = new_starts
        kinds[low:high] = new_kinds
        self.near_start = self.near_end = 0
        self.device_start = self.device_end = 0
        return len(starts)

    def is_table(self, frame: int) -> bool:
        """Whether ``frame`` was recorded as a table."""
        if self.seen[frame & _SEEN_MASK] == frame:
            return True
        if frame not in self.tables:
            return False
        self.seen[frame & _SEEN_MASK] = frame
        return True

    def add_table(self, frame: int) -> int:
        """``frame`` is recorded as a table. Return 0."""
        if self.seen[frame & _SEEN_MASK] != frame:
            self.tables.add(frame)
            self.seen[frame & _SEEN_MASK] = frame
        return 0
