#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Write the witnesses: scenarios by hand, each for one rule of the MMU that random ones do not touch.

usage: witnesses.py OUTDIR. The docstrings say what a model that breaks the rule would show.
"""

from __future__ import annotations

import sys
from pathlib import Path

from scenarios import DEVICE, DEVICE_GPA, HUGE_GPA, LARGE, NX, PAGE, PS, ROOT, WINDOW, A, D, P, Scenario, Tables, U, W

RAM = 0x200000
_SLOT = ["slot 0 0 0x1000000 pop"]
_HIGH = 0x100000
_BLOCK = 0x200000
#: Four blocks that the host has as huge pages, and that the guest maps so.
_HUGE_SLOT = f"slot 2 {HUGE_GPA:#x} {4 * _BLOCK:#x} thp pop"
_RET = 0xC3


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
    """A sync gives no leaf W that maps a mirrored table, not even one that is out of sync still and comes next."""
    tables, memory = world()
    tables.map(WINDOW, RAM)
    mapped = tables.map(WINDOW + 0x200000, RAM + PAGE)
    leaf = tables.map(WINDOW + PAGE, mapped & ~0xFFF, P | U | A)
    s = Scenario("sync-protects", "long", _SLOT, memory)
    s.op("r4", WINDOW + 0x200000)
    s.op("r4", WINDOW + PAGE)
    s.op("w8", leaf, (mapped & ~0xFFF) | P | W | U | A | D)
    s.op("w8", mapped + 8, (RAM + 2 * PAGE) | P | W | U | A | D)
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


def huge_world() -> tuple[Tables, dict[int, int], list[int]]:
    """The first address space, with four large pages; their addresses come last."""
    tables, memory = world()
    for i in range(4):
        tables.map(LARGE + i * _BLOCK, HUGE_GPA + i * _BLOCK, level=2)
    return tables, memory, [LARGE + i * _BLOCK for i in range(4)]


def prev_sync() -> Scenario:
    """A flush of all contexts drops a previous root that hides an unsync table, so that its next use looks for it."""
    tables, memory = world()
    tables.map(WINDOW, RAM)
    other = other_root(1, "long", memory, {WINDOW: RAM + PAGE})
    leaf = other.path(WINDOW)[-1]
    s = Scenario("prev-sync", "long", _SLOT, memory)
    for root in (ROOT, other.root, ROOT):
        s.op("cr3", root)
        s.op("r4", WINDOW)
    s.op("w8", leaf + 8, (RAM + 2 * PAGE) | P | W | U | A | D)
    s.op("cr4", 0xA0)
    s.op("cr4", 0x20)
    s.op("cr3", other.root)
    s.op("r4", WINDOW)
    s.op("r4", WINDOW + PAGE)
    # The same without an unsync table: the root stays.
    s.op("cr3", ROOT)
    s.op("cr4", 0xA0)
    s.op("cr3", other.root)
    s.op("r4", WINDOW)
    return s


def prefetch_nx() -> Scenario:
    """A neighbour whose only fault is a reserved bit (NX while EFER.NX is off) ends the prefetch."""
    tables, memory = world()
    for i in range(16):
        tables.map(WINDOW + i * PAGE, RAM + i * PAGE)
    leaf = tables.path(WINDOW)[-1]
    memory[leaf + 8] |= NX
    memory[leaf + 72] |= NX
    s = Scenario("prefetch-nx", "long", _SLOT, memory)
    s.op("wrmsr", 0xC0000080, 0x500)
    s.op("r4", WINDOW)
    s.host("dumpspt")
    s.op("w8", leaf + 8, (RAM + PAGE) | P | W | U | A | D)
    s.op("r4", WINDOW + PAGE)
    # With EFER.NX the bit is none too many.
    s.op("wrmsr", 0xC0000080, 0xD00)
    s.op("r4", WINDOW + 8 * PAGE)
    s.host("dumpspt")
    return s


def lpage_tables() -> Scenario:
    """A block that holds a mirrored guest table is mapped by small pages, until the table goes."""
    tables, memory, blocks = huge_world()
    # A directory in the second block, and below it a table in the first; both for addresses from 2G on.
    directory, table = HUGE_GPA + _BLOCK + 0x5000, HUGE_GPA + 0x5000
    memory[tables.path(0x80000000, 3)[-1]] = directory | P | W | U | A
    memory[directory] = table | P | W | U | A
    memory[table] = RAM | P | W | U | A | D
    s = Scenario("lpage-tables", "long", [*_SLOT, _HUGE_SLOT], memory)
    for block in blocks[:3]:
        s.op("r4", block)
    s.op("r4", 0x80000000)
    for block in blocks:
        s.op("w4", block + 0x8000, 1)
        s.op("r4", block + 0x9000)
    s.host("stats")
    # A flood makes the directory an ordinary page; then new memory for its block, and for that of the table.
    for i in range(4):
        s.op("w8", blocks[1] + 0x5800 + 8 * i, 0)
    for i in range(2):
        s.host(f"dontneed {HUGE_GPA + i * _BLOCK:#x} {_BLOCK:#x}")
        s.op("w4", blocks[i] + 0x8000, 1)
        s.op("r4", blocks[i] + 0x9000)
    return s


def lpage_slots() -> Scenario:
    """Where gfn and hva differ within a block, no block of the slot is mapped by a large page."""
    tables, memory, blocks = huge_world()
    odd = 0x9010000
    for i in range(3):
        tables.map(0x13000000 + i * _BLOCK, (odd & ~(_BLOCK - 1)) + i * _BLOCK, level=2)
    slots = [
        *_SLOT,
        f"slot 2 {HUGE_GPA:#x} {3 * _BLOCK + 0x100000:#x} thp pop",
        f"slot 3 {odd:#x} {2 * _BLOCK:#x} thp pop",
    ]
    s = Scenario("lpage-slots", "long", slots, memory)
    for block in [*blocks, 0x13000000, 0x13000000 + _BLOCK, 0x13000000 + 2 * _BLOCK]:
        s.op("r4", block + 0x20000)
        s.op("w4", block + 0x8000, 1)
    for slot in (2, 3):
        s.host(f"setflags {slot} 1")
        s.op("w4", blocks[0] + 0x9000, 1)
        s.op("w4", 0x13000000 + 0x19000, 1)
        s.host(f"getdirty {slot}")
        s.host(f"setflags {slot} 0")
        s.host("stats")
    return s


def dirty_huge() -> Scenario:
    """Logging splits what is huge, protects it again on each read, and makes it huge again in the end."""
    _, memory, blocks = huge_world()
    s = Scenario("dirty-huge", "long", [*_SLOT, _HUGE_SLOT], memory)
    s.op("w4", blocks[0], 1)
    s.op("r4", blocks[1])
    s.host("setflags 2 1")
    s.host("stats")
    s.op("w4", blocks[0] + 0x3000, 1)
    s.op("w4", blocks[1] + 0x5000, 1)
    s.op("r4", blocks[2])
    s.op("w4", blocks[3], 1)
    s.host("stats")
    for _ in range(3):
        s.host("getdirty 2")
        s.host("getdirty 2")
        s.host("stats")
        s.op("r4", blocks[0] + 0x3000)
        s.op("w4", blocks[0] + 0x3000, 1)
    s.host("setflags 2 0")
    s.host("stats")
    for block in blocks:
        s.op("w4", block + 0x7000, 1)
    s.host("dumpspt")
    # Where the host has no huge page any more, nothing comes together.
    s.host(f"dontneed {HUGE_GPA + _BLOCK + 0x7000:#x} {PAGE:#x}")
    s.op("w4", blocks[1] + 0x8000, 1)
    s.host("setflags 2 1")
    s.op("w4", blocks[1] + 0x9000, 1)
    s.op("w4", blocks[2] + 0x9000, 1)
    s.host("stats")
    s.host("setflags 2 0")
    s.host("stats")
    for block in blocks:
        s.op("r4", block + 0x9000)
    return s


def dirty_manual() -> Scenario:
    """Reading leaves the log alone; clearing protects, and flushes only if a bit was set."""
    _, memory, blocks = huge_world()
    s = Scenario("dirty-manual", "long", ["cap manual_dirty 1", *_SLOT, _HUGE_SLOT], memory)
    s.op("w4", blocks[0], 1)
    s.op("w4", blocks[1], 1)
    s.host("setflags 2 1")
    for page in (0, 1, 0x3F, 0x40, 0x41):
        s.op("w4", blocks[0] + page * PAGE, 1)
    s.op("w4", blocks[3] + 0x1FF000, 1)
    for clear in (
        "2 0 0x40",
        "2 0 0x40",
        "2 1 0x40",
        "2 0 1",
        "2 0x40 0x41",
        "2 0x7c0 0x40",
        "2 0x40 0x7c0",
        "9 0 0x40",
    ):
        s.host("getdirty 2")
        s.host(f"cleardirty {clear}")
        s.host(f"cleardirty {clear}")
        s.host("stats")
        s.op("w4", blocks[0] + PAGE, 2)
        s.op("r4", blocks[0] + 0x41 * PAGE)
        s.op("w4", blocks[0] + 0x41 * PAGE, 2)
    s.host("getdirty 2")
    s.host("setflags 2 0")
    s.op("w4", blocks[0], 3)
    return s


def dirty_full() -> Scenario:
    """A log that begins full: nothing is protected at first, and what is cleared is split first."""
    _, memory, blocks = huge_world()
    s = Scenario("dirty-full", "long", ["cap manual_dirty 3", *_SLOT, _HUGE_SLOT], memory)
    for block in blocks[:2]:
        s.op("w4", block, 1)
    s.op("r4", blocks[2])
    s.host("setflags 2 1")
    s.host("stats")
    s.op("w4", blocks[0] + 0x3000, 1)
    s.host("getdirty 2")
    s.host("cleardirty 2 0 0x40")
    s.host("stats")
    s.op("w4", blocks[0] + 0x1000, 1)
    s.op("w4", blocks[0] + 0x80000, 1)
    s.op("w4", blocks[3], 1)
    s.host("dumpspt")
    # Not where the block begins: there the kernel protects twice.
    s.host("cleardirty 2 0x240 0x40")
    s.op("r4", blocks[1])
    s.op("w4", blocks[1] + 0x2000, 1)
    s.host("getdirty 2")
    s.host("cleardirty 2 0x400 0x400")
    s.host("cleardirty 2 0 0x800")
    s.host("stats")
    for block in blocks:
        s.op("w4", block + 0x4000, 1)
    s.host("getdirty 2")
    s.host("setflags 2 0")
    s.host("stats")
    for block in blocks:
        s.op("r4", block)
    return s


def nx_child() -> Scenario:
    """A table that is there for a fetch stays while other pages of its block are used; all that ends it is counted."""
    _, memory, blocks = huge_world()
    s = Scenario("nx-child", "long", [*_SLOT, _HUGE_SLOT], memory)
    # By the VMM: what it stores does not map anything.
    for i in range(4):
        s.host(f"poke8 {HUGE_GPA + i * _BLOCK + 0x1000:#x} {_RET:#x}")
        s.host(f"poke8 {HUGE_GPA + i * _BLOCK + 0x3000:#x} {_RET:#x}")
    s.op("x", blocks[0] + 0x1000)
    s.op("r4", blocks[0] + 0x40000)
    s.op("w4", blocks[0] + 0x41000, 1)
    s.op("x", blocks[0] + 0x3000)
    s.host("stats")
    s.op("x", blocks[1] + 0x1000)
    s.host("setflags 2 1")
    s.host("stats")
    s.op("x", blocks[2] + 0x1000)
    s.op("w4", blocks[3] + 0x5000, 1)
    s.op("x", blocks[3] + 0x1000)
    s.host("stats")
    s.host("setflags 2 0")
    s.host("stats")
    for block in blocks:
        s.op("r4", block + 0x2000)
        s.op("x", block + 0x3000)
    s.host("dumpspt")
    s.host(f"dontneed {HUGE_GPA:#x} {_BLOCK:#x}")
    s.op("r4", blocks[0])
    s.op("w1", blocks[0] + 0x1000, _RET)
    s.host("stats")
    s.op("x", blocks[0] + 0x1000)
    s.host("delete 2")
    s.host("stats")
    s.host("restore 2")
    s.op("r4", blocks[1])
    s.op("x", blocks[1] + 0x1000)
    s.op("r4", blocks[1] + 0x2000)
    s.host("stats")
    return s


def huge_again() -> Scenario:
    """A page takes the place of a table whose own pages are gone: the table may still be in TLBs, so one flush more."""
    _, memory, blocks = huge_world()
    s = Scenario("huge-again", "long", [*_SLOT, _HUGE_SLOT], memory)
    for number, block in enumerate(blocks[:3]):
        place = HUGE_GPA + number * _BLOCK
        s.op("w4", block, 1)
        # The host's page is cut, and so small pages follow.
        s.host(f"dontneed {place + 0x7000:#x} {PAGE:#x}")
        s.op("w4", block + 0x8000, 1)
        s.op("r4", block + 0x9000)
        s.host("stats")
        # Fresh memory there: the host's own table is gone, kvm's is not.
        s.host(f"munmap {place:#x} {_BLOCK:#x}")
        s.host(f"remap {place:#x} {_BLOCK:#x}")
        s.host(f"thp {place:#x} {_BLOCK:#x}")
        s.host("stats")
        s.op("r4" if number == 1 else "w4", block + 0x3000, 1)
        s.host("stats")
        s.op("w4", block + 0x4000, 1)
        s.host("stats")
    s.host("dumpspt")
    return s


def mmio_slots() -> Scenario:
    """A gfn that was a device's becomes memory and a device's again; each slot change ends what is known of it."""
    tables, memory = world()
    tables.map(DEVICE, DEVICE_GPA)
    tables.map(WINDOW, 0x4000000)
    s = Scenario("mmio-slots", "long", [*_SLOT, "slot 1 0x4000000 0x40000 pop"], memory)
    for change in ("", "move 1 0xe0000000", "move 1 0x4000000", "delete 1", "restore 1"):
        if change:
            s.host(change)
        for _ in range(2):
            s.op("r4", DEVICE + 0x10)
            s.op("w4", DEVICE + 0x20, 3)
            s.op("r4", WINDOW)
        s.host("stats")
    return s


WITNESSES = (
    flood_root, sync_protects, unsync_upper, rmap_limit, unsync_array, mmio_invlpg, pse36, prefetch_reserved,
    prev_roots, dirty_tables, prev_sync, prefetch_nx, lpage_tables, lpage_slots, dirty_huge, dirty_manual, dirty_full,
    nx_child, mmio_slots, huge_again,
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
