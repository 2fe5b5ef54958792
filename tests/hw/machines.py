# SPDX-License-Identifier: GPL-2.0-only
"""Small machines for the tests of this party: a CPU in a mode, and tables written entry by entry."""

from __future__ import annotations

from kvmmu.hw.cpu import Cpu
from kvmmu.hw.cpumodel import CpuModel
from kvmmu.hw.memory import PhysicalMemory
from kvmmu.sync import Gate

PG, WP, PE = 1 << 31, 1 << 16, 1
PSE, PAE, PGE, LA57, PCIDE, SMEP, SMAP, PKE = (1 << bit for bit in (4, 5, 7, 12, 17, 20, 21, 22))
LME, LMA, NX = 1 << 8, 1 << 10, 1 << 11
LEVELS = {"32": 2, "32pse": 2, "pae": 3, "4": 4, "5": 5}
CR4 = {"off": 0, "32": 0, "32pse": PSE, "pae": PAE, "4": PAE, "5": PAE | LA57}
READ, WRITE, USER, FETCH = 0, 2, 4, 16
P, W, U, A, D, PS, G, XD = 1, 2, 4, 0x20, 0x40, 0x80, 0x100, 1 << 63
FULL = P | W | U


class Box:
    """A machine in one paging mode. The root is at 0x10000; ``table()`` hands out further tables."""

    def __init__(
        self, mode: str = "4", params: CpuModel | None = None, frames: int = 1024, gate: Gate | None = None
    ) -> None:
        self.mode = mode
        self.memory = PhysicalMemory(frames, gate)
        self.cpu = Cpu(0, self.memory, params or CpuModel())
        self.size = 4 if mode.startswith("32") else 8
        self.index_bits = 10 if self.size == 4 else 9
        self.root = 0x10000
        self.free = 0x11000
        self.load()

    def load(self, cr4: int = 0, cr0: int = WP, nx: bool = True) -> int:
        """Load the registers of this mode with more bits; False if PDPTEs are bad."""
        paging = PG if self.mode != "off" else 0
        efer = (LME | LMA if self.mode in ("4", "5") else 0) | (NX if nx else 0)
        return self.cpu.load_guest(PE | paging | cr0, self.root, CR4[self.mode] | cr4, efer)

    def table(self) -> int:
        """A fresh empty table."""
        self.free += 0x1000
        return self.free - 0x1000

    def put(self, place: int, value: int) -> None:
        if self.size == 4:
            self.memory.write_once32(place, value)
        else:
            self.memory.write_once(place, value)

    def get(self, place: int) -> int:
        return self.memory.read_once32(place) if self.size == 4 else self.memory.read_once(place)

    def place(self, gva: int, level: int) -> int:
        """Where the entry for ``gva`` lies at ``level``; the tables above must be there."""
        table = self.root
        for above in range(LEVELS[self.mode], level, -1):
            table = self.get(self._slot(table, gva, above)) & 0x000F_FFFF_FFFF_F000
        return self._slot(table, gva, level)

    def _slot(self, table: int, gva: int, level: int) -> int:
        index = (gva >> (12 + self.index_bits * (level - 1))) % 2**self.index_bits
        return table + index * self.size

    def map(self, gva: int, entry: int, level: int = 1, upper: int = FULL) -> int:
        """Write ``entry`` for ``gva`` at ``level`` with tables of flags ``upper`` above it; return where it lies."""
        table = self.root
        for above in range(LEVELS[self.mode], level, -1):
            slot = self._slot(table, gva, above)
            if not self.get(slot) & P:
                flags = P if self.mode == "pae" and above == 3 else upper
                self.put(slot, self.table() | flags)
            table = self.get(slot) & 0x000F_FFFF_FFFF_F000
        slot = self._slot(table, gva, level)
        self.put(slot, entry)
        if self.mode == "pae":
            self.cpu.load_pdptrs()
        return slot
