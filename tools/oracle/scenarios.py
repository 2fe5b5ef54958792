#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Write random scenarios for the recorder.  usage: scenarios.py OUTDIR FAMILY[:MODE] ... [--seeds FIRST-LAST]

A scenario is a world (slots, guest page tables) and a list of guest operations and host actions, all drawn from a
seed: family, mode and seed give the same file for ever. FAMILIES names what there is.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

P, W, U, A, D, PS, G = 1, 2, 4, 0x20, 0x40, 0x80, 0x100
NX = 1 << 63
PAGE = 0x1000
#: Levels, index bits per level, bytes per entry, bytes that a large page maps.
SHAPES = {"long": (4, 9, 8, 0x200000), "pae": (3, 9, 8, 0x200000), "pse32": (2, 10, 4, 0x400000)}
MODES = tuple(SHAPES)
#: Where things are: roots and tables of the first address space, the window on small pages, large pages, a device.
ROOT, POOL = 0x10000, 0x11000
WINDOW, LARGE, DEVICE = 0x10000000, 0x11000000, 0x12000000
DEVICE_GPA = 0xE0000000
SMALL_GPA, HUGE_GPA = 0x4000000, 0x8000000
#: The guest's list has room for so many operations below its code at CPL 3.
MAX_OPS = 500
_FRAME = 0x000FFFFFFFFFF000
_WP_ON, _WP_OFF = 0x80010011, 0x80000011


class Tables:
    """Guest page tables of one address space, built in ``memory`` (gpa of an entry -> entry)."""

    def __init__(self, mode: str, root: int, pool: int, memory: dict[int, int]) -> None:
        self.mode, self.root, self.pool, self.memory = mode, root, pool, memory
        self.levels, self.bits, self.size, self.large = SHAPES[mode]

    def entry(self, table: int, va: int, level: int) -> int:
        """Gpa of the entry for ``va`` in ``table`` of ``level``."""
        return table + (va >> 12 + self.bits * (level - 1) & ((1 << self.bits) - 1)) * self.size

    def path(self, va: int, level: int = 1) -> list[int]:
        """Gpas of the entries on the way to ``va``, top first, tables made where there are none."""
        table, entries = self.root, []
        for depth in range(self.levels, level, -1):
            entry = self.entry(table, va, depth)
            if entry not in self.memory:
                is_pdpte = self.mode == "pae" and depth == 3
                self.memory[entry] = self.pool | (P if is_pdpte else P | W | U | A)
                self.pool += PAGE
            entries.append(entry)
            table = self.memory[entry] & _FRAME
        return [*entries, self.entry(table, va, level)]

    def map(self, va: int, pa: int, flags: int = P | W | U | A | D, level: int = 1) -> int:
        """Map one page; return the gpa of its entry."""
        entry = self.path(va, level)[-1]
        self.memory[entry] = pa | flags | (PS if level > 1 else 0)
        return entry

    def share(self, va: int, other: Tables) -> None:
        """Let ``va`` be reached through the same level-1 table as in ``other``."""
        self.memory[self.path(va)[-2]] = other.memory[other.path(va)[-2]]

    def identity(self, first: int = PAGE, last: int = 0x80000) -> None:
        """Map ``[first, last)`` to itself, for the interpreter and the tables."""
        for page in range(first, last, PAGE):
            self.map(page, page, P | W | A | D | (U if page == 0x8000 else 0))


class Scenario:
    """One file in the making."""

    def __init__(self, name: str, mode: str, slots: list[str], memory: dict[int, int]) -> None:
        self.name = name
        word = "mem4" if mode == "pse32" else "mem8"
        self.lines = [f"mode {mode}", *slots]
        self.lines += [f"{word} {gpa:#x} {value:#x}" for gpa, value in sorted(memory.items())]
        self.nr_ops = 0

    def op(self, name: str, a: int = 0, b: int = 0) -> None:
        """One operation of the guest."""
        self.lines.append(f"op {name} {a:#x} {b:#x}")
        self.nr_ops += 1

    def host(self, text: str) -> None:
        """One action of the VMM, before the next operation."""
        self.lines.append(f"host {text}")

    def save(self, folder: Path) -> None:
        """Write NAME.scn."""
        (folder / f"{self.name}.scn").write_text("\n".join(self.lines) + "\n", encoding="utf-8")


class World:
    """What the families share: the window of small pages, two large ones, a device, several roots.

    ``roots`` share the window's level-1 table with the first; ``is_wild`` puts tables where they are in the way.
    """

    def __init__(self, family: str, mode: str, seed: int, nr_roots: int = 2, is_wild: bool = False, nr_pages: int = 24):
        self.mode, self.nr_pages = mode, nr_pages
        self.random = random.Random(f"{family}-{mode}-{seed}")
        pick = self.random.choice
        memory: dict[int, int] = {}
        main = Tables(mode, ROOT, POOL, memory)
        main.identity()
        if is_wild:
            # The tables of the other roots are reached through the same window on low memory.
            main.identity(0x100000, 0x100000 + nr_roots * 0x10000)
        self.leaves = [
            main.map(WINDOW + i * PAGE, self.frame(), P | U | pick([0, W]) | pick([0, A, A | D]))
            for i in range(nr_pages)
        ]
        self.large = [
            main.map(LARGE + i * main.large, HUGE_GPA + i * main.large, P | U | W | pick([0, A]), 2) for i in range(2)
        ]
        main.map(DEVICE, DEVICE_GPA)
        self.main = main
        self.roots = [ROOT]
        self.uppers = main.path(WINDOW)[:-1]
        for i in range(1, nr_roots):
            root = 0x100000 + i * 0x10000 if is_wild else 0x60000 + (i - 1) * 0x8000
            other = Tables(mode, root, root + PAGE, memory)
            other.identity()
            other.share(WINDOW, main)
            other.map(LARGE, HUGE_GPA, P | U | W | A, 2)
            if is_wild:
                other.identity(0x100000, 0x100000 + nr_roots * 0x10000)
                self.uppers += other.path(WINDOW)[:-1]
            self.roots.append(root)
        if is_wild:
            self._put_tables_in_the_way(main)
        slots = ["slot 0 0 0x1000000 pop", f"slot 1 {SMALL_GPA:#x} 0x40000", f"slot 2 {HUGE_GPA:#x} 0x800000 thp pop"]
        if is_wild:
            slots.insert(2, "slot 3 0x5000000 0x8000 ro pop")
        self.scenario = Scenario(f"{family}-{mode}-{seed}", mode, slots, memory)
        self.wp = _WP_ON

    # The window's own table and a directory, as pages of the window too.
    def _put_tables_in_the_way(self, main: Tables) -> None:
        table, directory = main.memory[main.path(WINDOW)[-2]] & _FRAME, main.path(WINDOW)[-2] & _FRAME
        for i, page in ((1, table), (3, directory)):
            main.memory[self.leaves[-i]] = page | P | W | A | D

    def frame(self) -> int:
        """Gpa of a page of the small slot, or now and then just behind it."""
        return SMALL_GPA + self.random.randrange(66) * PAGE

    def address(self, size: int = 4, is_aligned: bool = True) -> int:
        """An address in the window; without ``is_aligned`` any, often one that crosses into the next page."""
        page = WINDOW + self.random.randrange(self.nr_pages) * PAGE
        if is_aligned:
            return page + self.random.randrange(PAGE // size) * size
        return page + (
            PAGE - self.random.randrange(1, 8) if self.random.random() < 0.5 else self.random.randrange(PAGE)
        )

    def leaf(self) -> int:
        """A new entry for a small page."""
        pick = self.random.choice
        if self.random.random() < 0.15:
            return 0
        return self.frame() | P | pick([0, W, W]) | pick([0, U, U]) | pick([0, A, A | D])

    def large_address(self) -> int:
        """An address in one of the large pages."""
        return LARGE + self.random.randrange(2) * self.main.large + self.random.randrange(self.main.large // 4) * 4

    def large_leaf(self) -> int:
        """A new entry for a large page."""
        pick = self.random.choice
        return HUGE_GPA + self.random.randrange(2) * self.main.large | P | PS | U | pick([0, W]) | pick([0, A, A | D])

    def run(self, nr_ops: int, choices: list[tuple[int, Callable[[World], None]]]) -> Scenario:
        """Draw from ``choices`` (weight, what to do) until there are ``nr_ops`` operations."""
        weights = [weight for weight, _ in choices]
        since = 0
        while self.scenario.nr_ops < min(nr_ops, MAX_OPS - 4):
            self.random.choices(choices, weights)[0][1](self)
            if self.scenario.nr_ops - since >= 100:
                since = self.scenario.nr_ops
                self.scenario.host("dumpspt")
        return self.scenario


# What can happen. Each takes the world and adds to its scenario.


def plain(w: World) -> None:
    """A load or store in the window."""
    w.scenario.op(w.random.choice(["r4", "w4", "ur4", "uw4", "w1"]), w.address(), w.random.randrange(1 << 16))


def crossing(w: World) -> None:
    """A load or store anywhere, of any size."""
    sizes = ["r1", "r4", "w1", "w4", "ur1", "ur4", "uw1", "uw4"] + (
        ["r8", "w8", "ur8", "uw8"] if w.mode == "long" else []
    )
    w.scenario.op(w.random.choice(sizes), w.address(is_aligned=False), w.random.randrange(1 << 31))


def modify(w: World) -> None:
    """A read-modify-write instruction, in the window, on an entry, or on a directory."""
    where = w.random.random()
    if where < 0.4:
        w.scenario.op(w.random.choice(["add", "uadd"]), w.address(), w.random.randrange(256))
    elif where < 0.7:
        w.scenario.op("ptloop", w.random.choice(w.leaves), w.random.randrange(1, 6))
    else:
        w.scenario.op(
            *w.random.choice([("ptloop", w.random.choice(w.uppers), 2), ("add", w.random.choice(w.uppers), 0)])
        )


def edit(w: World) -> None:
    """A store of a whole entry; PAE guests store half by half."""
    w.scenario.op("w8" if w.mode == "long" else "w4", w.random.choice(w.leaves), w.leaf())


def edit_badly(w: World) -> None:
    """A store of one byte, or a misaligned one, into the table."""
    entry = w.random.choice(w.leaves)
    if w.random.random() < 0.5:
        w.scenario.op("w1", entry, w.random.choice([0x63, 0x67, 0x21, 0x25, 0x65, 0]))
    else:
        w.scenario.op("w4", entry + w.random.choice([1, 2, 4, 6]), w.random.randrange(8))


def edit_upper(w: World) -> None:
    """A directory entry loses or regains a permission; a while later it is as before."""
    entry = w.random.choice(w.uppers)
    value = w.main.memory[entry]
    changed = value ^ w.random.choice([W, U, A]) if not (w.mode == "pae" and value & 0xFFF == P) else value
    store = "w8" if w.mode == "long" else "w4"
    w.scenario.op(store, entry, changed)
    plain(w)
    w.scenario.op("invlpg", w.address())
    plain(w)
    w.scenario.op(store, entry, value)


def edit_large(w: World) -> None:
    """A store of an entry for a large page."""
    w.scenario.op("w8" if w.mode == "long" else "w4", w.random.choice(w.large), w.large_leaf())


def flood(w: World) -> None:
    """Several stores into the table and no access through it between them."""
    for _ in range(w.random.randrange(3, 6)):
        w.scenario.op("w4", w.random.choice(w.leaves), w.leaf() & 0xFFFFFFFF)


def invlpg(w: World) -> None:
    """INVLPG of one page of the window."""
    w.scenario.op("invlpg", w.address())


def switch(w: World) -> None:
    """CR3 is loaded."""
    w.scenario.op("cr3", w.random.choice(w.roots))


def protect(w: World) -> None:
    """CR0.WP changes."""
    w.wp ^= 0x10000
    w.scenario.op("cr0", w.wp)


def large(w: World) -> None:
    """An access to a large page."""
    w.scenario.op(w.random.choice(["r4", "w4", "ur4", "uw4"]), w.large_address(), 5)


def device(w: World) -> None:
    """An access to the device, sometimes across its end."""
    w.scenario.op(w.random.choice(["r4", "w4"]), DEVICE + w.random.randrange(1024) * 4, 7)


def features(w: World) -> None:
    """CR4, EFER, EFLAGS.AC or a call."""
    base = 0x10 if w.mode == "pse32" else 0x20
    kind = w.random.randrange(4)
    if kind == 0:
        w.scenario.op("cr4", base | w.random.choice([0, 0x80, 1 << 20, 1 << 21, 3 << 20]))
    elif kind == 1 and w.mode == "long":
        w.scenario.op("wrmsr", 0xC0000080, w.random.choice([0x500, 0xD00]))
    elif kind == 2:
        w.scenario.op("flags", w.random.choice([2, 0x40002]))
    else:
        w.scenario.op("w1", address := w.address(), 0xC3)
        w.scenario.op(w.random.choice(["x", "ux"]), address)


def forget(w: World) -> None:
    """MADV_DONTNEED of some pages."""
    page = w.random.randrange(60)
    w.scenario.host(f"dontneed {SMALL_GPA + page * PAGE:#x} {w.random.choice([1, 4]) * PAGE:#x}")
    w.scenario.op("r4", w.address())


def forget_huge(w: World) -> None:
    """MADV_DONTNEED of all or part of a huge page."""
    block = HUGE_GPA + w.random.randrange(4) * 0x200000
    if w.random.random() < 0.5:
        w.scenario.host(f"dontneed {block:#x} 0x200000")
    else:
        w.scenario.host(f"dontneed {block + w.random.randrange(512) * PAGE:#x} {PAGE:#x}")
    large(w)


def protect_host(w: World) -> None:
    """mprotect() to read-only, an access, and back."""
    page = SMALL_GPA + w.random.randrange(62) * PAGE
    w.scenario.host(f"mprotect {page:#x} {2 * PAGE:#x} 1")
    w.scenario.op("r4", w.address())
    w.scenario.host(f"mprotect {page:#x} {2 * PAGE:#x} 3")
    w.scenario.op("w4", w.address(), 1)


def log_huge(w: World) -> None:
    """Dirty logging of the huge slot, on, read, off."""
    w.scenario.host("setflags 2 1")
    for _ in range(w.random.randrange(1, 4)):
        w.scenario.op(w.random.choice(["w4", "r4", "uw4"]), w.large_address(), 1)
    w.scenario.host("getdirty 2")
    w.scenario.op("w4", w.large_address(), 1)
    if w.random.random() < 0.5:
        w.scenario.host("getdirty 2")
    w.scenario.host("setflags 2 0")
    w.scenario.op("r4", w.address())


def log_small(w: World) -> None:
    """Dirty logging of the small slot: toggled, and read while it is on."""
    on = w.random.randrange(2)
    w.scenario.host(f"setflags 1 {on}")
    for _ in range(w.random.randrange(1, 5)):
        w.scenario.op(w.random.choice(["w4", "uw4", "r4"]), w.address(), 9)
    if on:
        w.scenario.host("getdirty 1")
        w.scenario.op("w4", w.address(), 9)


def log_low(w: World) -> None:
    """Dirty logging of the slot that holds the guest's own tables: A and D updates, emulated stores."""
    w.scenario.host("setflags 0 1")
    edit(w)
    plain(w)
    w.scenario.host("getdirty 0")
    plain(w)
    edit(w)
    w.scenario.host("getdirty 0")
    w.scenario.host("setflags 0 0")


def delete(w: World) -> None:
    """A slot goes and comes back."""
    slot = w.random.choice([1, 1, 2])
    w.scenario.host(f"delete {slot}")
    w.scenario.op("r4", w.address())
    w.scenario.host(f"restore {slot}")
    w.scenario.op("r4", w.address())


def move(w: World) -> None:
    """A slot moves away and back."""
    w.scenario.host("move 1 0x6000000")
    plain(w)
    w.scenario.host(f"move 1 {SMALL_GPA:#x}")
    plain(w)


def fail(w: World) -> None:
    """An action that the host refuses."""
    w.scenario.host(
        w.random.choice(
            [
                "nrmmu 40",
                "dontneed 0x7000000 0x1000",
                "mprotect 0x7000000 0x1000 3",
                "munmap 0x7000000 0x1000",
                f"dontneed {SMALL_GPA + 4:#x} 0x1000",
                "getdirty 9",
                f"move 1 {HUGE_GPA:#x}",
            ]
        )
    )
    if w.scenario.lines[-1].startswith("host move"):
        w.scenario.host(f"move 1 {SMALL_GPA:#x}")
    plain(w)


def unmap(w: World) -> None:
    """Pages leave the VMM's address space, twice; what the guest does there ends KVM_RUN, and the VMM maps anew."""
    page = SMALL_GPA + w.random.randrange(62) * PAGE
    w.scenario.host(f"munmap {page:#x} {PAGE:#x}")
    w.scenario.host(f"munmap {page:#x} {PAGE:#x}")
    w.scenario.host(f"dontneed {page:#x} {2 * PAGE:#x}")
    w.scenario.host(f"remap {page:#x} {PAGE:#x}")
    plain(w)


def limit(w: World) -> None:
    """KVM_SET_NR_MMU_PAGES."""
    w.scenario.host(f"nrmmu {w.random.choice([64, 80, 100, 200])}")
    plain(w)


def look(w: World) -> None:
    """A load from the program itself: code, descriptors, stack, list."""
    size = w.random.choice([1, 4, 4])
    w.scenario.op(f"r{size}", w.random.choice([0x1000, 0x2000, 0x3000, 0x4000]) + w.random.randrange(0x370))


def ask(w: World) -> None:
    """KVM_TRANSLATE, and a look into memory."""
    w.scenario.host(f"translate {w.address():#x}")
    w.scenario.host(f"peek8 {ROOT:#x}")
    plain(w)


RANDOM = [
    (40, plain), (15, edit), (12, invlpg), (5, switch), (4, protect), (6, large), (3, edit_large), (4, device),
    (5, forget), (2, log_huge), (2, log_small), (2, delete),
]  # fmt: skip
WILD = [
    (16, plain), (18, crossing), (10, modify), (10, edit), (7, edit_badly), (5, edit_upper), (2, flood), (9, invlpg),
    (6, switch), (4, protect), (5, features), (5, large), (3, edit_large), (4, device), (3, forget), (2, log_huge),
    (2, log_small), (2, log_low), (2, delete), (1, move), (2, fail), (1, unmap), (2, limit), (1, ask), (3, look),
]  # fmt: skip
HUGE = [
    (40, large), (10, plain), (6, edit_large), (5, invlpg), (4, switch), (4, forget_huge), (4, log_huge), (3, delete),
    (2, protect_host), (2, protect),
]  # fmt: skip
DIRTY = [
    (20, plain), (10, large), (8, edit), (5, invlpg), (3, switch), (8, log_huge), (8, log_small), (8, log_low),
    (3, forget), (2, protect_host), (3, crossing),
]  # fmt: skip


def random_family(mode: str, seed: int) -> Scenario:
    """Well-behaved operations over a small world: edits, INVLPG, CR3, WP, a device, huge pages, notifiers, logs."""
    return World("random", mode, seed).run(400, RANDOM)


def wild_family(mode: str, seed: int) -> Scenario:
    """What no kernel would do: misaligned, crossing and read-modify-write accesses, tables in odd places, failures."""
    return World("wild", mode, seed, nr_roots=4, is_wild=True).run(340, WILD)


def huge_family(mode: str, seed: int) -> Scenario:
    """Huge pages: split, zapped in part, logged, mapped anew."""
    return World("huge", mode, seed).run(300, HUGE)


def dirty_family(mode: str, seed: int) -> Scenario:
    """Dirty logging of every slot, the one with the guest's tables too."""
    return World("dirty", mode, seed).run(300, DIRTY)


def nx_family(mode: str, seed: int) -> Scenario:
    """Calls into large pages, for the modes with the NX mitigation (shadownx, tdpnx)."""
    w = World("nx", mode, seed)
    for i in range(8):
        w.scenario.op("w1", LARGE + (i % 2) * w.main.large + i * 0x41000, 0xC3)

    def call(world: World) -> None:
        i = world.random.randrange(8)
        world.scenario.op(world.random.choice(["x", "ux"]), LARGE + (i % 2) * world.main.large + i * 0x41000)

    return w.run(260, [*HUGE, (30, call)])


FAMILIES: dict[str, Callable[[str, int], Scenario]] = {
    "random": random_family,
    "wild": wild_family,
    "huge": huge_family,
    "dirty": dirty_family,
    "nx": nx_family,
}


def scenarios(family: str, modes: tuple[str, ...], seeds: range) -> Iterator[Scenario]:
    """The scenarios of ``family``."""
    for mode in modes:
        for seed in seeds:
            yield FAMILIES[family](mode, seed)


def main() -> int:
    """Write what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("families", nargs="+", metavar="FAMILY[:MODE]", help=", ".join(FAMILIES))
    parser.add_argument("--seeds", default="0-2", metavar="FIRST-LAST")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    options.folder.mkdir(parents=True, exist_ok=True)
    for word in options.families:
        family, _, mode = word.partition(":")
        if family not in FAMILIES or (mode and mode not in SHAPES):
            parser.error(f"{word}: families are {', '.join(FAMILIES)}; modes are {', '.join(MODES)}")
        for scenario in scenarios(family, (mode,) if mode else MODES, range(int(first), int(last or first) + 1)):
            scenario.save(options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
