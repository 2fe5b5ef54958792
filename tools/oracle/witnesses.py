#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Write the witnesses: scenarios by hand, each for one rule of the MMU that random ones do not touch.

usage: witnesses.py OUTDIR. The docstrings say what a model that breaks the rule would show.
"""

from __future__ import annotations

import sys
from pathlib import Path

from scenarios import DEVICE_GPA, NX, PAGE, PS, ROOT, WINDOW, A, D, P, Scenario, Tables, U, W

RAM = 0x200000
_SLOT = ["slot 0 0 0x1000000 pop"]
_HIGH = 0x100000


def world(mode: str = "long") -> tuple[Tables, dict[int, int]]:
    """The first address space: low memory, and low memory's tables behind 1M."""
    memory: dict[int, int] = {}
    tables = Tables(mode, ROOT, ROOT + PAGE, memory)
    tables.identity()
    tables.identity(_HIGH, _HIGH + 0x80000)
    return tables, memory


def other_root(number: int, mode: str, memory: dict[int, int], pages: dict[int, int]) -> Tables:
    """Another address space, which maps ``pages`` too."""
    root = _HIGH + number * 0x8000
    tables = Tables(mode, root, root + PAGE, memory)
    tables.identity()
    tables.identity(_HIGH, _HIGH + 0x80000)
    for va, pa in pages.items():
        tables.map(va, pa)
    return tables


def flood_root() -> Scenario:
    """Stores to a root count towards a flood; the count starts again when the root is found for a vCPU once more."""
    _, memory = world()
    others = [other_root(i, "long", memory, {}) for i in range(6)]
    s = Scenario("flood-root", "long", _SLOT, memory)
    # A walk through a root clears its count, so the stores come from another address space.
    first = others[0].root
    for _ in range(2):
        for other in others:
            s.op("cr3", other.root)
        s.op("cr3", ROOT)
        for i in range(2):
            s.op("w8", first + 0x800 + 8 * i, 0)
    for i in range(4):
        s.op("w8", first + 0x900 + 8 * i, 0)
    s.op("cr3", first)
    s.op("r4", 0x30000)
    return s


def sync_protects() -> Scenario:
    """A sync may not let go of another table: its entry stays read-only, and the table synchronous."""
    tables, memory = world()
    tables.map(WINDOW, RAM)
    mapped = tables.map(WINDOW + 0x200000, RAM + PAGE)
    leaf = tables.map(WINDOW + PAGE, mapped & ~0xFFF, P | U | A)
    s = Scenario("sync-protects", "long", _SLOT, memory)
    s.op("r4", WINDOW + 0x200000)
    s.op("r4", WINDOW + PAGE)
    s.op("w8", leaf, (mapped & ~0xFFF) | P | W | U | A | D)
    s.op("cr3", ROOT)
    s.op("r4", WINDOW + PAGE)
    s.op("w4", WINDOW + PAGE + 0xFF0, 0)
    s.op("cr3", ROOT)
    s.op("r4", WINDOW + 0x200000)
    return s


def unsync_upper() -> Scenario:
    """A table that is unsync and now also is a directory: its first mirror goes."""
    tables, memory = world()
    leaf = tables.map(WINDOW, RAM)
    table = leaf & ~0xFFF
    inner = RAM + 0x10000
    memory[table + 8 * 133] = inner | P | W | U | A
    memory[inner] = (RAM + 0x20000) | P | W | U | A | D
    # The directory of the second gigabyte above the window is the window's table.
    upper = tables.path(WINDOW + 0x40000000, 2)[-2]
    memory[upper] = table | P | W | U | A
    s = Scenario("unsync-upper", "long", _SLOT, memory)
    s.op("r4", WINDOW)
    s.op("w8", table + 8 * 7, (RAM + 0x7000) | P | W | U | A | D)
    s.op("r4", WINDOW + 0x7000)
    s.op("r4", WINDOW + 0x40000000 + 5 * 0x200000)
    s.op("w8", table + 8 * 8, (RAM + 0x8000) | P | W | U | A | D)
    s.op("r4", WINDOW + 0x8000)
    s.op("r4", WINDOW + 0x40000000 + 5 * 0x200000)
    return s


def rmap_limit() -> Scenario:
    """More than 1000 entries for one page: all of them go."""
    tables, memory = world()
    for i in range(1100):
        tables.map(WINDOW + i * PAGE, RAM)
    s = Scenario("rmap-limit", "long", _SLOT, memory)
    s.op("rloop", WINDOW, 996)
    for i in range(990, 1024):
        s.op("r4", WINDOW + i * PAGE)
    s.op("rloop", WINDOW, 16)
    s.op("w4", WINDOW + 0x3E0000, 1)
    return s


def unsync_array() -> Scenario:
    """More unsync tables than one batch of a sync holds: one flush for each batch."""
    tables, memory = world()
    leaves = [tables.map(WINDOW + i * 0x200000, RAM + i * PAGE) for i in range(37)]
    s = Scenario("unsync-array", "long", _SLOT, memory)
    for nr in (14, 15, 16, 17, 30, 32, 34):
        for i in range(nr):
            s.op("r4", WINDOW + i * 0x200000)
        for i in range(nr):
            s.op("w8", leaves[i] + 8, (RAM + 0x80000 + i * PAGE) | P | W | U | A | D)
        s.op("cr3", ROOT)
        s.host("stats")
    return s


def mmio_invlpg() -> Scenario:
    """INVLPG takes the record of a device's page along: a store to a table that lies there now is not the device's."""
    tables, memory = world()
    leaf = tables.map(WINDOW, DEVICE_GPA)
    directory = tables.path(WINDOW)[-2] & ~0xFFF
    s = Scenario("mmio-invlpg", "long", _SLOT, memory)
    s.op("r4", WINDOW + 0x800)
    s.op("r4", WINDOW + 0x804)
    s.op("w8", leaf, directory | P | W | U | A | D)
    s.op("invlpg", WINDOW)
    s.op("w4", WINDOW + 0x800, 0)
    s.op("r4", WINDOW + 0x800)
    s.op("w8", leaf, DEVICE_GPA | P | W | U | A | D)
    s.op("invlpg", WINDOW)
    s.op("w4", WINDOW + 0x810, 1)
    # A record of another page stays.
    s.op("invlpg", WINDOW + PAGE)
    s.op("w4", WINDOW + 0x814, 2)
    return s


def pse36() -> Scenario:
    """Address bits 39:32 of a 4M page are bits 20:13 of its entry; kvm's walk knows 36 bits in all."""
    tables, memory = world("pse32")
    slots = [*_SLOT, "slot 1 0x100000000 0x400000 pop", "slot 2 0x300000000 0x400000 pop"]
    for i, high in enumerate((1, 3, 8, 0x10, 0x11)):
        memory[tables.entry(ROOT, WINDOW + i * 0x400000, 2)] = high << 13 | P | W | U | A | D | PS
    s = Scenario("pse36", "pse32", slots, memory)
    for i in range(5):
        s.op("r4", WINDOW + i * 0x400000 + 0x1000)
        s.op("w4", WINDOW + i * 0x400000 + 0x2000, i)
        s.op("ur4", WINDOW + i * 0x400000 + 0x2000)
    return s


def prefetch_reserved() -> Scenario:
    """Neighbours whose entries have reserved bits, or were never accessed, are not prefetched."""
    tables, memory = world()
    for i in range(8):
        tables.map(WINDOW + i * PAGE, RAM + i * PAGE)
    leaf = tables.path(WINDOW)[-1]
    memory[leaf + 8] |= 1 << 51
    memory[leaf + 16] |= 1 << 41
    memory[leaf + 24] &= ~A
    memory[leaf + 32] &= ~P
    memory[leaf + 40] &= ~W
    memory[leaf + 48] &= ~D
    # With EFER.NX off the bit is reserved, and nothing else is wrong with the entry.
    memory[leaf + 56] |= NX
    s = Scenario("prefetch-reserved", "long", _SLOT, memory)
    s.op("wrmsr", 0xC0000080, 0x500)
    s.op("w4", WINDOW, 1)
    for i in range(1, 8):
        s.op("r4", WINDOW + i * PAGE)
    s.host("dumpspt")
    # The same in a table that is unsync, at a sync.
    s.op("w8", leaf + 56, (RAM + 0x7000) | P | W | U | A | D | 1 << 51)
    s.op("w8", leaf + 0, (RAM + 0x0000) | P | W | U | D)
    s.op("cr3", ROOT)
    s.op("r4", WINDOW)
    s.op("r4", WINDOW + 0x7000)
    return s


def prev_roots() -> Scenario:
    """INVLPG works on previous roots too: one flush more than without."""
    tables, memory = world()
    tables.map(WINDOW, RAM)
    leaf = tables.path(WINDOW)[-1]
    other = other_root(1, "long", memory, {WINDOW: RAM + PAGE})
    s = Scenario("prev-roots", "long", _SLOT, memory)
    s.op("r4", WINDOW)
    s.op("cr3", other.root)
    s.op("r4", WINDOW)
    for i in range(3):
        s.op("w8", leaf, (RAM + (4 + i) * PAGE) | P | W | U | A | D)
        s.op("invlpg", WINDOW)
        s.host("stats")
        s.op("r4", WINDOW)
    s.op("cr3", ROOT)
    s.op("r4", WINDOW)
    return s


def dirty_tables() -> Scenario:
    """The log has pages that kvm itself writes: entries that get A or D, tables to which a store is emulated."""
    tables, memory = world()
    for i in range(4):
        tables.map(WINDOW + i * 0x200000, RAM + i * PAGE, P | W | U)
    upper = tables.path(WINDOW + 3 * 0x200000)[-2]
    s = Scenario("dirty-tables", "long", _SLOT, memory)
    s.op("r4", RAM)
    s.host("setflags 0 1")
    s.host("getdirty 0")
    s.op("r4", WINDOW)
    s.host("getdirty 0")
    s.op("w4", WINDOW + 0x200000, 1)
    s.host("getdirty 0")
    s.op("w4", WINDOW + 0x200000, 2)
    s.op("w8", upper, memory[upper] & ~U)
    s.host("getdirty 0")
    s.op("r4", WINDOW + 3 * 0x200000)
    s.op("w4", WINDOW, 3)
    s.host("getdirty 0")
    s.host("getdirty 0")
    s.op("w4", WINDOW, 4)
    s.host("getdirty 0")
    s.host("setflags 0 0")
    s.op("w4", WINDOW, 5)
    return s


WITNESSES = (
    flood_root, sync_protects, unsync_upper, rmap_limit, unsync_array, mmio_invlpg, pse36, prefetch_reserved,
    prev_roots, dirty_tables,
)  # fmt: skip


def main() -> int:
    """Write all."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for make in WITNESSES:
        make().save(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
