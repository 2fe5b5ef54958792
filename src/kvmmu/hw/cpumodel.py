# SPDX-License-Identifier: GPL-2.0-only
"""What one CPU model has: address width, features, TLB sizes."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True, slots=True)
class CpuModel:
    """Facts about a CPU that no register changes.

    :raises ConfigError: a value that no CPU has.
    """

    #: Physical address bits, 32 to 52 (CPUID 0x80000008 EAX[7:0]).
    maxphyaddr: int = 46
    #: 1G pages exist.
    has_gbpages: bool = True
    #: TLB entries by page size; each a power of two, at least ``tlb_ways``.
    tlb_entries_4k: int = 2048
    tlb_entries_2m: int = 1024
    tlb_entries_1g: int = 64
    #: Entries that one address can be in; a power of two.
    tlb_ways: int = 4
    #: The TLB never evicts by itself: what is not flushed stays, so that a missing flush shows.
    keep_all: bool = False
    #: The TLB remembers the guest frame behind each entry, for flushes by guest frame.
    tracks_gfns: bool = False

    def __post_init__(self) -> None:
        if not 32 <= self.maxphyaddr <= 52:
            raise ConfigError(f"maxphyaddr={self.maxphyaddr}: a CPU has 32 to 52 physical address bits")
        for name in ("tlb_entries_4k", "tlb_entries_2m", "tlb_entries_1g"):
            entries = getattr(self, name)
            if entries < self.tlb_ways or entries & (entries - 1):
                raise ConfigError(f"{name}={entries}: take a power of two, at least tlb_ways={self.tlb_ways}")
        if self.tlb_ways < 1 or self.tlb_ways & (self.tlb_ways - 1):
            raise ConfigError(f"tlb_ways={self.tlb_ways}: take a power of two")
