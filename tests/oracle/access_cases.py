# SPDX-License-Identifier: GPL-2.0-only
"""Every combination of access bits: what a case is, and how the products are walked through.

One case is a directory entry, the entry below it, the CPU's bits, PKRU and an access. A :class:`CaseRig` lays both
entries into tables of one paging mode and asks the oracle what must come of it; a matrix derives from it, says how its
machine stores entries and makes accesses, and compares. Whole dimensions here, products of parts of them in the tests.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvmmu.guest.tables import ControlRegisters
from oracle.access_oracle import Access, Machine, Outcome, Ram, predict

P, W, U, A, D, PS, R, NX = range(8)
BITS = {P: 1, W: 2, U: 4, A: 0x20, D: 0x40, PS: 0x80, NX: 1 << 63}
WIDTH = 46
MODES = ("32", "32pse", "pae", "4", "5")
LEVELS = {"32": 2, "32pse": 2, "pae": 3, "4": 4, "5": 5}
LONG = ("4", "5")
#: Indices 2, 5, 3, 7, 9 from level 5 down, and an offset.
GVA = (2 << 48) | (5 << 39) | (3 << 30) | (7 << 21) | (9 << 12) | 0x123

#: Every kind of access: the package's word, and what it means.
KINDS = [
    (
        2 * write + 4 * user + 16 * fetch + 256 * ac + 512 * implicit,
        Access(bool(write), bool(user), bool(fetch), bool(ac), bool(implicit)),
    )
    for write, fetch in ((0, 0), (1, 0), (0, 1))
    for user, implicit in ((0, 0), (1, 0), (0, 1))
    for ac in (0, 1)
]
#: Those without what the manual says cannot matter: AC of a user access, and of a fetch.
KINDS_THAT_DIFFER = [kind for kind in KINDS if not (kind[1].ac and (kind[1].user or kind[1].fetch))]
KINDS_PLAIN = [kind for kind in KINDS if not kind[1].ac and not kind[1].implicit]

#: Mode and the lower level of the two entries that vary; pairs at the top have no leaf between them.
PAIRS = [("32", 1), ("32pse", 1), ("pae", 1), ("4", 1), ("4", 2), ("5", 1), ("5", 2)]
UPPER_PAIRS = [("4", 3), ("5", 3), ("5", 4)]


@dataclass(frozen=True)
class CpuBits:
    """The CPU's dimensions of the product."""

    wp: bool
    smep: bool
    smap: bool
    pke: bool
    nx: bool


CPUS = [CpuBits(*bits) for bits in itertools.product((False, True), repeat=5)]
CPUS_PLAIN = [cpu for cpu in CPUS if not (cpu.smep or cpu.smap or cpu.pke)]
WITHOUT_PKE = [bits for bits in CPUS if not bits.pke]
#: PKRU with each AD/WD for key 1, the leaf's. Every other key is denied all, to show that it is not looked at.
PKRUS = [0xFFFF_FFF3 | (bits << 2) for bits in range(4)]


class WatchedRam(Ram):
    """Remembers whether the lower entry was read."""

    watched = -1
    was_read = False

    def load(self, address: int, width: int) -> int:
        if address == self.watched:
            self.was_read = True
        return super().load(address, width)


class CaseRig:
    """One paging mode, with the entries of levels ``low + 1`` and ``low`` free and plain tables around them."""

    def __init__(self, mode: str, low: int, nr_bytes: int) -> None:
        """``nr_bytes``: memory that the oracle sees. The machine must be ready to ``store()``."""
        self.mode = mode
        self.low = low
        self.width = 4 if mode.startswith("32") else 8
        self.bits = 10 if self.width == 4 else 9
        self.levels = LEVELS[mode]
        self.ram = WatchedRam(nr_bytes)
        for level in range(1, self.levels + 1):
            plain = self.base(level, False) | (0x1 if mode == "pae" and level == 3 else 0x27)
            self.store(self.place(level), plain)
        self.high_at = self.place(low + 1)
        self.low_at = self.ram.watched = self.place(low)

    # What a machine must be able to do.

    def store(self, place: int, value: int) -> None:
        """Put an entry into the machine's memory and the oracle's."""
        raise NotImplementedError

    def set_cpu(self, bits: CpuBits, pkru: int) -> Machine:
        """Load the registers; return the same for the oracle (:meth:`machine`)."""
        raise NotImplementedError

    def check(
        self, highs: Sequence[int], lows: Sequence[int], machine: Machine, bits: CpuBits, kind: tuple[int, Access]
    ) -> str:
        """Every pair of entries for one CPU state and access: the first difference, or nothing."""
        raise NotImplementedError

    def is_left_out(self, bits: CpuBits, access: Access) -> bool:
        """Whether the machine does otherwise by design for all entries."""
        return False

    def end_of_state(self) -> None:
        """All cases of one CPU state are done."""

    # Entries.

    def place(self, level: int) -> int:
        """Where the entry of this level lies."""
        gva = GVA if self.mode in LONG else GVA % 2**32
        index = (gva >> (12 + self.bits * (level - 1))) % 2**self.bits
        if self.mode == "pae" and level == 3:
            index %= 4
        return 0x1000 * level + index * self.width

    def base(self, level: int, is_large: bool) -> int:
        """Address in an entry: the next table, or a frame whose number tells the level."""
        if level == 1:
            return 0x00A5_B000
        if is_large and self.mode != "32":
            return 0x4000_0000 if self.width == 8 else 0x00C0_0000
        return 0x1000 * (level - 1)

    def word(self, level: int, flags: Iterable[int]) -> int:
        """The entry of this level with these of P ... NX set."""
        flags = set(flags)
        value = self.base(level, PS in flags) | sum(BITS[flag] for flag in flags if flag != R)
        if R in flags:
            value |= 1 << 21 if self.width == 4 else 1 << (WIDTH + 2)
        if self.mode in LONG:
            is_leaf = level == 1 or PS in flags
            value |= (1 if is_leaf else 2) << 59
        return value

    def words(self, level: int, free: Sequence[int] = range(8), always: Sequence[int] = ()) -> list[int]:
        """Every combination of the ``free`` bits, with ``always`` set besides."""
        free = [flag for flag in free if flag != NX or self.width == 8]
        return [
            self.word(level, [*always, *chosen])
            for count in range(len(free) + 1)
            for chosen in itertools.combinations(free, count)
        ]

    def nr_words(self) -> int:
        """How many entries ``words(level)`` are, said without them: 8 bits each, no NX in 4-byte entries."""
        return 128 if self.width == 4 else 256

    # The CPU, and what the oracle says.

    def registers(self, bits: CpuBits) -> ControlRegisters:
        """The control registers of the mode with these bits."""
        cr0 = 0x8000_0011 | (0x10000 if bits.wp else 0)
        cr4 = {"32": 0, "32pse": 0x10, "pae": 0x20, "4": 0x20, "5": 0x1020}[self.mode]
        cr4 |= (1 << 20 if bits.smep else 0) | (1 << 21 if bits.smap else 0) | (1 << 22 if bits.pke else 0)
        efer = (0x500 if self.mode in LONG else 0) | (0x800 if bits.nx else 0)
        return ControlRegisters(cr0, 0x1000 * self.levels, cr4, efer)

    def machine(self, bits: CpuBits, pkru: int) -> Machine:
        """The same for the oracle."""
        pdptes = tuple(self.ram.load(0x3000 + 8 * i, 8) for i in range(4)) if self.mode == "pae" else (0, 0, 0, 0)
        return Machine(
            self.ram,
            self.mode.removesuffix("pse"),
            0x1000 * self.levels,
            pdptes,
            bits.wp,
            self.mode == "32pse",
            bits.smep,
            bits.smap,
            bits.pke,
            bits.nx,
            pkru,
            WIDTH,
        )

    def expect(self, machine: Machine, access: Access, high: int, low: int) -> tuple[Outcome, int, int]:
        """What the oracle says, and the entries afterwards."""
        self.ram.store(self.high_at, self.width, high)
        self.ram.store(self.low_at, self.width, low)
        self.ram.was_read = False
        outcome = predict(machine, GVA, access)
        return outcome, self.ram.load(self.high_at, self.width), self.ram.load(self.low_at, self.width)


def enumerate_cases(
    rig: CaseRig,
    highs: Sequence[int],
    lows: Sequence[int],
    cpus: Sequence[CpuBits],
    kinds: Sequence[tuple[int, Access]],
) -> int:
    """Compare the whole product and return its size; PKRU is varied where protection keys are on."""
    cases = 0
    for bits in cpus:
        for pkru in PKRUS if bits.pke else PKRUS[:1]:
            machine = rig.set_cpu(bits, pkru)
            for kind in kinds:
                if rig.is_left_out(bits, kind[1]):
                    continue
                difference = rig.check(highs, lows, machine, bits, kind)
                assert not difference, f"{rig.mode} level {rig.low}: {bits} pkru {pkru:#x}: {difference}"
                cases += len(highs) * len(lows)
        rig.end_of_state()
    return cases
