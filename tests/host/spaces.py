# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of the host share: an address space with somebody on its chain."""

from __future__ import annotations

from kvmmu.host.frames import FrameAllocator
from kvmmu.host.mm import Mm
from kvmmu.hw.memory import PhysicalMemory

M2 = 0x20_0000
G1 = 0x4000_0000


class Chain:
    """Remembers what the notifier chain says."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, int]] = []

    def invalidate_range_start(self, start: int, end: int) -> None:
        self.events.append(("start", start, end))

    def invalidate_range_end(self, start: int, end: int) -> None:
        self.events.append(("end", start, end))

    def ranges(self) -> list[tuple[int, int]]:
        """The ranges, each start answered by its end before the next."""
        assert self.events[0::2] == [("start", start, end) for _, start, end in self.events[1::2]]
        assert all(kind == "end" for kind, _, _ in self.events[1::2])
        return [(start, end) for _, start, end in self.events[0::2]]


def make(nr_frames: int = 4096) -> tuple[Mm, Chain]:
    mm = Mm(FrameAllocator(PhysicalMemory(nr_frames)))
    chain = Chain()
    mm.chain.register(chain)
    return mm, chain


def pfn_of(mm: Mm, hva: int) -> int:
    return (mm.hpte(hva) & 0x000F_FFFF_FFFF_F000) >> 12
