# SPDX-License-Identifier: GPL-2.0-only
"""Every combination of access bits, against an oracle that shares no code with the walkers.

One case is a directory entry, the entry below it, the CPU's bits, PKRU and an access. Outcome, translation, error
code and the A and D bits left in both entries are compared. The quick tests enumerate products of a part of the
dimensions, each dimension whole in at least one of them; the deep ones enumerate everything (``make explore``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pytest

from kvmmu.hw.cpu import Cpu
from kvmmu.hw.cpumodel import CpuModel
from kvmmu.hw.memory import PhysicalMemory
from kvmmu.hw.paging import Walk, page_walk
from oracle.access_oracle import Access, Machine, Outcome, Ram, predict

P, W, U, A, D, PS, R, NX = range(8)
BITS = {P: 1, W: 2, U: 4, A: 0x20, D: 0x40, PS: 0x80, NX: 1 << 63}
SIZE = 64 * 4096
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


class Rig:
    """One paging mode, with the entries of levels ``low + 1`` and ``low`` free and plain tables around them."""

    def __init__(self, mode: str, low: int) -> None:
        self.mode = mode
        self.low = low
        self.width = 4 if mode.startswith("32") else 8
        self.bits = 10 if self.width == 4 else 9
        self.levels = LEVELS[mode]
        self.memory = PhysicalMemory(SIZE // 4096)
        self.cpu = Cpu(0, self.memory, CpuModel(maxphyaddr=WIDTH))
        self.out = Walk()
        self.ram = WatchedRam(SIZE)
        for level in range(1, self.levels + 1):
            plain = self.base(level, False) | (0x1 if mode == "pae" and level == 3 else 0x27)
            self.store(self.place(level), plain)
        self.high_at = self.place(low + 1)
        self.low_at = self.ram.watched = self.place(low)

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

    def store(self, place: int, value: int) -> None:
        self.ram.store(place, self.width, value)
        if self.width == 4:
            self.memory.write_once32(place, value)
        else:
            self.memory.write_once(place, value)

    def load(self, place: int) -> int:
        return self.memory.read_once32(place) if self.width == 4 else self.memory.read_once(place)

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

    def set_cpu(self, bits: CpuBits, pkru: int) -> Machine:
        """Load the registers; return the same for the oracle."""
        cr0 = 0x8000_0011 | (0x10000 if bits.wp else 0)
        cr4 = {"32": 0, "32pse": 0x10, "pae": 0x20, "4": 0x20, "5": 0x1020}[self.mode]
        cr4 |= (1 << 20 if bits.smep else 0) | (1 << 21 if bits.smap else 0) | (1 << 22 if bits.pke else 0)
        efer = (0x500 if self.mode in LONG else 0) | (0x800 if bits.nx else 0)
        root = 0x1000 * self.levels
        assert self.cpu.load_guest(cr0, root, cr4, efer) == 0
        self.cpu.write_pkru(pkru)
        pdptes = tuple(self.ram.load(0x3000 + 8 * i, 8) for i in range(4)) if self.mode == "pae" else (0, 0, 0, 0)
        return Machine(
            self.ram,
            self.mode.removesuffix("pse"),
            root,
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

    def check(
        self, highs: Sequence[int], lows: Sequence[int], machine: Machine, kind: tuple[int, Access]
    ) -> tuple[int, str]:
        """Every pair of entries for one CPU state and access: (cases, the first difference or nothing)."""
        put = self.memory.write_once32 if self.width == 4 else self.memory.write_once
        get = self.memory.read_once32 if self.width == 4 else self.memory.read_once
        cpu, out, gva, high_at, low_at = self.cpu, self.out, GVA, self.high_at, self.low_at
        word, access = kind
        for high in highs:
            is_in_place = False
            below: tuple[Outcome, int] | None = None  # the same for all entries that the walk does not reach
            for low in lows:
                if below is None:
                    outcome, high_after, low_after = self.expect(machine, access, high, low)
                    if not self.ram.was_read:
                        below = outcome, high_after
                else:
                    (outcome, high_after), low_after = below, low
                if not is_in_place:
                    put(high_at, high)
                is_in_place = high_after == high  # the walk leaves it as it is
                put(low_at, low)
                status = page_walk(cpu, gva, word, out)
                got = ("ok", out.hpa) if status == 0 else ("pf", out.error_code)
                if got != outcome or get(high_at) != high_after or get(low_at) != low_after:
                    return 0, (
                        f"directory {high:#x} entry {low:#x} {access} {machine}: {got} {get(high_at):#x} "
                        f"{get(low_at):#x}, expected {outcome} {high_after:#x} {low_after:#x}"
                    )
        return len(highs) * len(lows), ""


def enumerate_cases(
    rig: Rig, highs: Sequence[int], lows: Sequence[int], cpus: Sequence[CpuBits], kinds: Sequence[tuple[int, Access]]
) -> int:
    """Compare the whole product and return its size; PKRU is varied where protection keys are on."""
    cases = 0
    for bits in cpus:
        for pkru in PKRUS if bits.pke else PKRUS[:1]:
            machine = rig.set_cpu(bits, pkru)
            for kind in kinds:
                count, difference = rig.check(highs, lows, machine, kind)
                assert not difference, f"{rig.mode} level {rig.low}: {bits} pkru {pkru:#x}: {difference}"
                cases += count
    return cases


PAIRS = [("32", 1), ("32pse", 1), ("pae", 1), ("4", 1), ("4", 2), ("5", 1), ("5", 2)]
UPPER_PAIRS = [("4", 3), ("5", 3), ("5", 4)]


@pytest.mark.parametrize(("mode", "low"), PAIRS)
def test_permissions_of_both_levels_in_every_cpu_state(mode: str, low: int) -> None:
    rig = Rig(mode, low)
    always = [P, PS] if low > 1 else [P]
    cases = enumerate_cases(
        rig, rig.words(low + 1, (W, U, NX), (P, A)), rig.words(low, (W, U, NX), always), CPUS, KINDS_THAT_DIFFER
    )
    pairs = 16 if rig.width == 4 else 64
    assert cases == pairs * (16 + 16 * 4) * len(KINDS_THAT_DIFFER)


@pytest.mark.parametrize(("mode", "low"), PAIRS)
def test_every_lower_entry(mode: str, low: int) -> None:
    rig = Rig(mode, low)
    enumerate_cases(rig, [rig.word(low + 1, (P, W, U, A))], rig.words(low), CPUS_PLAIN, KINDS_PLAIN)


@pytest.mark.parametrize(("mode", "low"), PAIRS + UPPER_PAIRS)
def test_every_directory_entry(mode: str, low: int) -> None:
    rig = Rig(mode, low)
    lows = [rig.word(low, (P, W, U)), rig.word(low, (W, U))]
    enumerate_cases(rig, rig.words(low + 1), lows, CPUS_PLAIN, KINDS_PLAIN)


@pytest.mark.parametrize("mode", MODES)
def test_a_cached_translation_is_judged_as_a_walk_would(mode: str) -> None:
    """Fill by one access, change WP, SMEP, SMAP or PKRU without a flush, make another: as if nothing were cached."""
    rig = Rig(mode, 1)
    high = rig.word(2, (P, W, U, A))
    plain = [kind for kind in KINDS_THAT_DIFFER if not kind[1].implicit or kind[1].write]
    states = [bits for bits in CPUS if bits.nx and bits.pke == (mode in LONG)]
    for low in rig.words(1, (W, U, NX), (P,)):
        for (fill, _), bits in itertools.product(((0, None), (2, None), (4, None), (6, None), (20, None)), states):
            for pkru in PKRUS if bits.pke else PKRUS[:1]:
                machine = rig.set_cpu(CpuBits(False, False, False, bits.pke, True), 0)
                rig.store(rig.high_at, high)
                rig.store(rig.low_at, low)
                rig.cpu.flush_all()
                rig.cpu.access(GVA, fill)
                filled = rig.load(rig.high_at), rig.load(rig.low_at)
                machine = rig.set_cpu(bits, pkru)
                for kind, access in plain:
                    rig.store(rig.high_at, filled[0])
                    rig.store(rig.low_at, filled[1])
                    outcome, _, low_after = rig.expect(machine, access, *filled)
                    status = rig.cpu.access(GVA, kind)
                    got = ("ok", rig.cpu.hpa) if status == 0 else ("pf", rig.cpu.error_code)
                    assert got == outcome, (fill, bits, pkru, access, hex(low))
                    if not (filled[1] ^ low_after) & 0x40:
                        continue
                    # D was set in the table and in the cache; go on from the clean state.
                    assert rig.load(rig.low_at) == low_after
                    rig.cpu.flush_all()


@pytest.mark.deep
@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize(("mode", "low"), PAIRS)
def test_the_whole_product(mode: str, low: int, half: int) -> None:
    rig = Rig(mode, low)
    words = 128 if rig.width == 4 else 256
    cases = enumerate_cases(rig, rig.words(low + 1), rig.words(low), CPUS[half::2], KINDS)
    assert cases == words * words * (8 + 8 * 4) * len(KINDS)
