# SPDX-License-Identifier: GPL-2.0-only
"""The memory map of a recorded machine as it changes: which backing memory lies at which guest physical address.

Ranges that continue each other are one. Memory that none of the header's names is (a device's own) counts as a memory
named :data:`OTHER`, in which each gpa has its own place: what was seen of a device's memory page by page, and later as
one range, is the same memory.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from .format import MAP_IO, MAP_NAMES, MAP_RAM, MAP_ROM, MEMORY_UNKNOWN, Header, Region

#: Name of all memory that the header does not name.
OTHER = "(other)"


@dataclass(frozen=True, slots=True)
class Change:
    """A MAP record: ``size`` bytes at ``gpa`` become ``kind`` (MAP_*) of ``memory`` (its number) at ``offset``."""

    gpa: int
    size: int
    kind: int
    memory: int
    offset: int


class MemoryMap:
    """The ranges of memory of ``header``, then of every :meth:`change`; what lies in none is I/O.

    ``joins``: a range that continues its neighbour becomes one with it.
    """

    __slots__ = ("joins", "names", "regions", "starts")

    def __init__(self, header: Header, joins: bool = True) -> None:
        self.joins = joins
        self.names = header.memories
        self.regions: list[Region] = []
        self.starts: list[int] = []
        for region in sorted(header.memory, key=lambda region: region.gpa):
            self.put(region)

    def find(self, gpa: int) -> Region | None:
        """The range that holds ``gpa``, or None: I/O."""
        index = bisect_right(self.starts, gpa) - 1
        if index < 0:
            return None
        region = self.regions[index]
        return region if gpa < region.gpa + region.size else None

    def between(self, start: int, end: int) -> list[Region]:
        """The ranges that lie in or reach into ``[start, end)``."""
        low, high = self._overlap(start, end)
        return self.regions[low:high]

    def holds(self, change: Change) -> bool:
        """Whether all of the range means already what a MAP record says."""
        regions = self.between(change.gpa, change.gpa + change.size)
        if change.kind == MAP_IO or not regions:
            return change.kind == MAP_IO and not regions
        wanted = self.region_of(change)
        return len(regions) == 1 and _shows(regions[0], wanted)

    def region_of(self, change: Change) -> Region:
        """The range that a MAP record (not one of I/O) makes."""
        name, offset = OTHER, change.gpa
        if change.memory != MEMORY_UNKNOWN:
            name, offset = self.names[change.memory], change.offset
        return Region(change.gpa, change.size, "rom" if change.kind == MAP_ROM else "ram", name, offset)

    def change(self, change: Change) -> list[Region]:
        """Make a MAP record's change; return the ranges that it takes away, as they were."""
        if change.kind == MAP_IO:
            return self.take(change.gpa, change.gpa + change.size)
        return self.put(self.region_of(change))

    def put(self, region: Region) -> list[Region]:
        """Let ``region`` be there from now on, one with a neighbour that it continues; return what it takes away."""
        gone = self.take(region.gpa, region.gpa + region.size)
        index = bisect_right(self.starts, region.gpa)
        if self.joins and index < len(self.regions) and is_continued(region, self.regions[index]):
            after = self.regions.pop(index)
            region = Region(region.gpa, region.size + after.size, region.kind, region.memory, region.offset)
            del self.starts[index]
        if self.joins and index and is_continued(self.regions[index - 1], region):
            before = self.regions[index - 1]
            region = Region(before.gpa, before.size + region.size, region.kind, region.memory, before.offset)
            self.regions[index - 1] = region
            return gone
        self.regions.insert(index, region)
        self.starts.insert(index, region.gpa)
        return gone

    def take(self, start: int, end: int) -> list[Region]:
        """Let ``[start, end)`` be I/O from now on; return the ranges that it cuts or covers, as they were."""
        low, high = self._overlap(start, end)
        gone = self.regions[low:high]
        rest = [piece for region in gone for piece in _outside(region, start, end)]
        self.regions[low:high] = rest
        self.starts[low:high] = [piece.gpa for piece in rest]
        return gone

    # Indices of the first range that reaches into [start, end), and of the first behind it.
    def _overlap(self, start: int, end: int) -> tuple[int, int]:
        low = max(bisect_right(self.starts, start) - 1, 0)
        if low < len(self.regions) and self.regions[low].gpa + self.regions[low].size <= start:
            low += 1
        return low, max(bisect_left(self.starts, end), low)

    def changes_from(self, header: Header) -> Iterator[Change]:
        """The MAP records that make this map out of the header's."""
        numbers = {name: number for number, name in enumerate(self.names)} | {OTHER: MEMORY_UNKNOWN}
        first = MemoryMap(header)
        for region in first.regions:
            for piece in _uncovered(region, self.regions):
                yield Change(piece.gpa, piece.size, MAP_IO, MEMORY_UNKNOWN, 0)
        known = set(first.regions)
        for region in self.regions:
            if region not in known:
                kind = MAP_ROM if region.kind == "rom" else MAP_RAM
                offset = 0 if region.memory == OTHER else region.offset
                yield Change(region.gpa, region.size, kind, numbers[region.memory], offset)


def is_continued(region: Region, after: Region) -> bool:
    """Whether ``after`` goes on where ``region`` ends: at the next gpa, in the same memory, as the same kind."""
    return (
        region.gpa + region.size == after.gpa
        and region.kind == after.kind
        and region.memory == after.memory
        and region.offset + region.size == after.offset
    )


# Whether `region` has all of `part`, with the same kind and memory behind it.
def _shows(region: Region, part: Region) -> bool:
    return (
        region.gpa <= part.gpa
        and part.gpa + part.size <= region.gpa + region.size
        and region.kind == part.kind
        and region.memory == part.memory
        and part.offset - region.offset == part.gpa - region.gpa
    )


# What is left of `region` outside [start, end).
def _outside(region: Region, start: int, end: int) -> Iterator[Region]:
    region_end = region.gpa + region.size
    for first, last in ((region.gpa, min(start, region_end)), (max(end, region.gpa), region_end)):
        if first < last:
            yield Region(first, last - first, region.kind, region.memory, region.offset + first - region.gpa)


# The parts of `region` in which none of `others` (ascending) lies.
def _uncovered(region: Region, others: list[Region]) -> Iterator[Region]:
    left = [region]
    for other in others:
        left = [piece for part in left for piece in _outside(part, other.gpa, other.gpa + other.size)]
    return iter(left)


def map_changes(before: tuple[Region, ...], now: tuple[Region, ...]) -> tuple[Region, ...]:
    """Ranges whose meaning differs between two memory maps, as they are now; a range that is no memory any more has
    kind ``io``.
    """
    edges = sorted({edge for region in (*before, *now) for edge in (region.gpa, region.gpa + region.size)})
    changes: list[Region] = []
    for low, high in pairwise(edges):
        old, new = _piece(before, low, high), _piece(now, low, high)
        if old == new:
            continue
        last = changes[-1] if changes else None
        if last and last.gpa + last.size == low and _follows(last, new):
            changes[-1] = replace(last, size=last.size + new.size)
        else:
            changes.append(new)
    return tuple(changes)


# What a map says about a range that no edge divides.
def _piece(regions: tuple[Region, ...], low: int, high: int) -> Region:
    for region in regions:
        if region.gpa <= low and high <= region.gpa + region.size:
            return Region(low, high - low, region.kind, region.memory, region.offset + low - region.gpa)
    return Region(low, high - low, MAP_NAMES[MAP_IO], "", 0)


def _follows(last: Region, new: Region) -> bool:
    same = last.kind == new.kind and last.memory == new.memory
    return same and (last.kind == MAP_NAMES[MAP_IO] or last.offset + last.size == new.offset)
