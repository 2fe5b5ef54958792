# SPDX-License-Identifier: GPL-2.0-only
"""Every combination of access bits, against an oracle that shares no code with the walkers.

One case is a directory entry, the entry below it, the CPU's bits, PKRU and an access. Outcome, translation, error
code and the A and D bits left in both entries are compared. The quick tests enumerate products of a part of the
dimensions, each dimension whole in at least one of them; the deep ones enumerate everything (``make explore``).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from kvmmu.hw.cpu import Cpu
from kvmmu.hw.cpumodel import CpuModel
from kvmmu.hw.memory import PhysicalMemory
from kvmmu.hw.paging import Walk, page_walk
from oracle.access_cases import (
    CPUS,
    CPUS_PLAIN,
    GVA,
    KINDS,
    KINDS_PLAIN,
    KINDS_THAT_DIFFER,
    LONG,
    MODES,
    NX,
    PAIRS,
    PKRUS,
    PS,
    UPPER_PAIRS,
    WIDTH,
    A,
    CaseRig,
    CpuBits,
    P,
    U,
    W,
    enumerate_cases,
)
from oracle.access_oracle import Access, Machine, Outcome

SIZE = 64 * 4096


class Rig(CaseRig):
    """A bare CPU and its walker."""

    def __init__(self, mode: str, low: int) -> None:
        self.memory = PhysicalMemory(SIZE // 4096)
        self.cpu = Cpu(0, self.memory, CpuModel(maxphyaddr=WIDTH))
        self.out = Walk()
        super().__init__(mode, low, SIZE)

    def store(self, place: int, value: int) -> None:
        self.ram.store(place, self.width, value)
        if self.width == 4:
            self.memory.write_once32(place, value)
        else:
            self.memory.write_once(place, value)

    def load(self, place: int) -> int:
        return self.memory.read_once32(place) if self.width == 4 else self.memory.read_once(place)

    def set_cpu(self, bits: CpuBits, pkru: int) -> Machine:
        registers = self.registers(bits)
        assert self.cpu.load_guest(registers.cr0, registers.cr3, registers.cr4, registers.efer) == 0
        self.cpu.write_pkru(pkru)
        return self.machine(bits, pkru)

    def check(
        self, highs: Sequence[int], lows: Sequence[int], machine: Machine, bits: CpuBits, kind: tuple[int, Access]
    ) -> str:
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
                    return (
                        f"directory {high:#x} entry {low:#x} {access} {machine}: {got} {get(high_at):#x} "
                        f"{get(low_at):#x}, expected {outcome} {high_after:#x} {low_after:#x}"
                    )
        return ""


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
    cases = enumerate_cases(rig, [rig.word(low + 1, (P, W, U, A))], rig.words(low), CPUS_PLAIN, KINDS_PLAIN)
    assert cases == rig.nr_words() * 4 * 6


@pytest.mark.parametrize(("mode", "low"), PAIRS + UPPER_PAIRS)
def test_every_directory_entry(mode: str, low: int) -> None:
    rig = Rig(mode, low)
    lows = [rig.word(low, (P, W, U)), rig.word(low, (W, U))]
    cases = enumerate_cases(rig, rig.words(low + 1), lows, CPUS_PLAIN, KINDS_PLAIN)
    assert cases == rig.nr_words() * 2 * 4 * 6


@pytest.mark.parametrize("mode", MODES)
def test_a_cached_translation_is_judged_as_a_walk_would(mode: str) -> None:
    """Fill by one access, change WP, SMEP, SMAP or PKRU without a flush, make another: as if nothing were cached."""
    rig = Rig(mode, 1)
    high = rig.word(2, (P, W, U, A))
    plain = [kind for kind in KINDS_THAT_DIFFER if not kind[1].implicit or kind[1].write]
    states = [bits for bits in CPUS if bits.nx and bits.pke == (mode in LONG)]
    cases = 0
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
                    cases += 1
                    if not (filled[1] ^ low_after) & 0x40:
                        continue
                    # D was set in the table and in the cache; go on from the clean state.
                    assert rig.load(rig.low_at) == low_after
                    rig.cpu.flush_all()
    leaves = 4 if rig.width == 4 else 8
    assert cases == leaves * 5 * 8 * (4 if mode in LONG else 1) * len(plain)


@pytest.mark.deep
@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize(("mode", "low"), PAIRS)
def test_the_whole_product(mode: str, low: int, half: int) -> None:
    rig = Rig(mode, low)
    cases = enumerate_cases(rig, rig.words(low + 1), rig.words(low), CPUS[half::2], KINDS)
    assert cases == rig.nr_words() ** 2 * (8 + 8 * 4) * len(KINDS)
