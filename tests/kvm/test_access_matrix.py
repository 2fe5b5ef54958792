# SPDX-License-Identifier: GPL-2.0-only
"""The access matrix end to end: the guest's tables, kvm's tables in front of (or behind) them, and the CPU that walks.

The same combinations as in ``tests/hw/test_access_matrix.py``: a directory entry, the entry below it, the CPU's bits
and an access. There the walker is judged; here a whole machine is, by what its guest sees: outcome, translation, error
code, and the A and D bits left in the guest's entries. Between two combinations the guest stores both entries (as the
emulator does for a table that is mirrored) and reloads CR3.

What KVM does otherwise than the manual is listed in ``docs/limits.md``; here each departure is a function with its
reason that says which combinations it is about, and a test that shows it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import pytest

from hw.test_access_matrix import (
    BITS,
    CPUS,
    GVA,
    KINDS,
    KINDS_PLAIN,
    LEVELS,
    LONG,
    NX,
    PAIRS,
    PKRUS,
    PS,
    UPPER_PAIRS,
    WIDTH,
    A,
    CpuBits,
    P,
    R,
    U,
    W,
    WatchedRam,
)
from kvmmu import KvmBug, Params, World
from kvmmu.guest.tables import ControlRegisters
from kvmmu.kvm import insn, run
from kvmmu.kvm.mmu.gptewrite import track_write
from kvmmu.kvm.outcome import RUN_EMULATE, RUN_FAULT, RUN_HIT
from oracle.access_oracle import Access, Machine, Outcome, predict

#: The guest's physical memory, as far as combinations reach it, by slot: tables and small pages; large pages.
SLOTS = ((0, 0x0100_0000), (0x4000_0000, 0x4000_0000))
WITHOUT_PKE = [bits for bits in CPUS if not bits.pke]
KINDS_THAT_DIFFER = [kind for kind in KINDS if not (kind[1].ac and (kind[1].user or kind[1].fetch))]
EFLAGS_AC = 1 << 18


def loops_in_kvm(bits: CpuBits, access: Access) -> bool:
    """An implicit supervisor access with EFLAGS.AC set, under SMAP.

    A #PF does not tell an implicit access from an explicit one, and KVM's walk takes AC at its word: it maps the page,
    the CPU refuses it again, and so on. A real guest hangs there; the model says so.
    """
    return bits.smap and access.ac and access.implicit


def kvm_error_code(mode: str, bits: CpuBits, access: Access, code: int) -> int:
    """KVM's error code where the manual says ``code``: it sets F with EFER.NX even if the guest's tables have no NX."""
    return code | 16 if mode.startswith("32") and bits.nx and access.fetch else code


class Rig:
    """One world, one paging mode; the entries of levels ``low + 1`` and ``low`` are free, plain tables around them."""

    def __init__(self, mode: str, low: int, npt: bool) -> None:
        self.mode = mode
        self.low = low
        self.npt = npt
        self.width = 4 if mode.startswith("32") else 8
        self.bits = 10 if self.width == 4 else 9
        self.levels = LEVELS[mode]
        # Memory for half a dozen pages and kvm's tables; the slots are far larger and stay empty.
        self.world = World(Params(npt=npt, host_maxphyaddr=WIDTH), nr_frames=1024)
        for number, (gpa, size) in enumerate(SLOTS):
            self.world.add_slot(number, gpa, size)
        self.vcpu = self.world.create_vcpu()
        self.memory = self.world.memory
        self.ram = WatchedRam(1 << 32)
        self.hpas: dict[int, int] = {}
        for level in range(1, self.levels + 1):
            plain = self.base(level, False) | (0x1 if mode == "pae" and level == 3 else 0x27)
            self.store(self.place(level), plain)
        self.high_at, self.low_at = self.place(low + 1), self.place(low)
        self.ram.watched = self.low_at
        self.high_hpa, self.low_hpa = self.hpa(self.high_at), self.hpa(self.low_at)
        self.bits_set: CpuBits | None = None

    def hpa(self, gpa: int) -> int:
        """Where the guest's byte lies, in a page of its own."""
        page = gpa & ~0xFFF
        if page not in self.hpas:
            self.world.poke(page, self.world.peek(page))
            slot = self.vcpu.gfn_to_memslot(page >> 12)
            assert slot is not None
            self.hpas[page] = self.world.mm.user_access(slot.gfn_to_hva(page >> 12), True)
        return self.hpas[page] | (gpa & 0xFFF)

    def place(self, level: int) -> int:
        gva = GVA if self.mode in LONG else GVA % 2**32
        index = (gva >> (12 + self.bits * (level - 1))) % 2**self.bits
        if self.mode == "pae" and level == 3:
            index %= 4
        return 0x1000 * level + index * self.width

    def base(self, level: int, is_large: bool) -> int:
        if level == 1:
            return 0x00A5_B000
        if is_large and self.mode != "32":
            return 0x4000_0000 if self.width == 8 else 0x00C0_0000
        return 0x1000 * (level - 1)

    def store(self, gpa: int, value: int) -> None:
        self.ram.store(gpa, self.width, value)
        self.world.poke(gpa, value, self.width)

    def word(self, level: int, flags: Iterable[int]) -> int:
        """The entry of this level with these of P ... NX set."""
        flags = set(flags)
        value = self.base(level, PS in flags) | sum(BITS[flag] for flag in flags if flag != R)
        if R in flags:
            value |= 1 << 21 if self.width == 4 else 1 << (WIDTH + 2)
        if self.mode in LONG:
            value |= (1 if level == 1 or PS in flags else 2) << 59
        return value

    def words(self, level: int, free: Sequence[int] = range(8), always: Sequence[int] = ()) -> list[int]:
        free = [flag for flag in free if flag != NX or self.width == 8]
        return [
            self.word(level, [*always, *chosen])
            for count in range(len(free) + 1)
            for chosen in itertools.combinations(free, count)
        ]

    def set_cpu(self, bits: CpuBits, pkru: int) -> Machine:
        """Change the registers by the guest's instructions; return the same state for the oracle."""
        cr0 = 0x8000_0011 | (0x10000 if bits.wp else 0)
        cr4 = {"32": 0, "32pse": 0x10, "pae": 0x20, "4": 0x20, "5": 0x1020}[self.mode]
        cr4 |= (1 << 20 if bits.smep else 0) | (1 << 21 if bits.smap else 0) | (1 << 22 if bits.pke else 0)
        efer = (0x500 if self.mode in LONG else 0) | (0x800 if bits.nx else 0)
        root = 0x1000 * self.levels
        if self.bits_set is None:
            self.world.load_registers(self.vcpu, ControlRegisters(cr0, root, cr4, efer))
        else:
            assert self.world.mov_cr0(self.vcpu, cr0)
            assert self.world.mov_cr4(self.vcpu, cr4)
            assert self.world.wrmsr_efer(self.vcpu, efer)
        assert self.world.wrpkru(self.vcpu, pkru)
        self.bits_set = bits
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

    def expect(self, machine: Machine, bits: CpuBits, access: Access, high: int, low: int) -> tuple[Outcome, int, int]:
        """What the guest must see, and the entries afterwards."""
        self.ram.store(self.high_at, self.width, high)
        self.ram.store(self.low_at, self.width, low)
        self.ram.was_read = False
        outcome = predict(machine, GVA, access)
        if outcome[0] == "pf" and not self.npt:
            outcome = ("pf", kvm_error_code(self.mode, bits, access, outcome[1]))
        return outcome, self.ram.load(self.high_at, self.width), self.ram.load(self.low_at, self.width)

    def check(
        self, highs: Sequence[int], lows: Sequence[int], machine: Machine, bits: CpuBits, kind: tuple[int, Access]
    ) -> str:
        """Every pair of entries for one CPU state and access: the first difference, or nothing."""
        put = self.memory.write_once32 if self.width == 4 else self.memory.write_once
        get = self.memory.read_once32 if self.width == 4 else self.memory.read_once
        vcpu, cpu, width, make_access, mov_cr3 = self.vcpu, self.vcpu.cpu, self.width, run.access, insn.mov_cr3
        high_at, low_at, high_hpa, low_hpa, root = self.high_at, self.low_at, self.high_hpa, self.low_hpa, machine.cr3
        word, access = kind
        vcpu.rflags = 2 | (EFLAGS_AC if access.ac else 0)
        for high in highs:
            below: tuple[Outcome, int] | None = None  # the same for all entries that the walk does not reach
            put(high_hpa, high)
            track_write(vcpu, high_at, width)
            for low in lows:
                if below is None:
                    outcome, high_after, low_after = self.expect(machine, bits, access, high, low)
                    if not self.ram.was_read:
                        below = outcome, high_after
                else:
                    (outcome, high_after), low_after = below, low
                want = ("ok", self.hpa(outcome[1])) if outcome[0] == "ok" else outcome
                if get(high_hpa) != high:
                    put(high_hpa, high)
                    track_write(vcpu, high_at, width)
                put(low_hpa, low)
                track_write(vcpu, low_at, width)
                mov_cr3(vcpu, root)
                status = make_access(vcpu, GVA, word)
                got = ("ok", cpu.hpa) if status == 0 else ("pf", vcpu.exception_error_code)
                if got != want or status > 1 or get(high_hpa) != high_after or get(low_hpa) != low_after:
                    return (
                        f"directory {high:#x} entry {low:#x} {access}: status {status} {got} {get(high_hpa):#x} "
                        f"{get(low_hpa):#x}, expected {want} {high_after:#x} {low_after:#x}"
                    )
        return ""


def enumerate_cases(
    rig: Rig, highs: Sequence[int], lows: Sequence[int], cpus: Sequence[CpuBits], kinds: Sequence[tuple[int, Access]]
) -> int:
    """Compare the whole product and return its size; PKRU is varied where protection keys are on."""
    cases = 0
    for bits in cpus:
        for pkru in PKRUS if bits.pke else PKRUS[:1]:
            machine = rig.set_cpu(bits, pkru)
            for kind in kinds:
                if not rig.npt and loops_in_kvm(bits, kind[1]):
                    continue
                difference = rig.check(highs, lows, machine, bits, kind)
                assert not difference, f"{rig.mode} level {rig.low} npt={rig.npt}: {bits} pkru {pkru:#x}: {difference}"
                cases += len(highs) * len(lows)
        rig.world.audit()
    return cases


SHADOW_AND_NPT = pytest.mark.parametrize("npt", [False, True], ids=["shadow", "npt"])


@SHADOW_AND_NPT
@pytest.mark.parametrize(("mode", "low"), PAIRS)
def test_permissions_of_both_levels(mode: str, low: int, npt: bool) -> None:
    """Rights of both entries in the CPU states at the corners: nothing on, each bit alone, all on."""
    rig = Rig(mode, low, npt)
    corners = [bits for bits in WITHOUT_PKE if bits.wp + bits.smep + bits.smap + bits.nx in (1, 4)]
    always = [P, PS] if low > 1 else [P]
    free = (W, U) if npt else (W, U, NX)
    cases = enumerate_cases(rig, rig.words(low + 1, free, (P, A)), rig.words(low, free, always), corners, KINDS_PLAIN)
    pairs = 16 if npt or rig.width == 4 else 64
    assert cases == pairs * len(corners) * len(KINDS_PLAIN)


@pytest.mark.slow  # A minute and more on the interpreted build only.
@SHADOW_AND_NPT
@pytest.mark.parametrize(("mode", "low"), PAIRS)
def test_permissions_of_both_levels_in_every_cpu_state(mode: str, low: int, npt: bool) -> None:
    rig = Rig(mode, low, npt)
    always = [P, PS] if low > 1 else [P]
    highs, lows = rig.words(low + 1, (W, U, NX), (P, A)), rig.words(low, (W, U, NX), always)
    cases = enumerate_cases(rig, highs, lows, CPUS if npt else WITHOUT_PKE, KINDS_THAT_DIFFER)
    looping = 0 if npt else 8 * len([kind for kind in KINDS_THAT_DIFFER if kind[1].ac and kind[1].implicit])
    states = 16 + 16 * 4 if npt else 16
    assert cases == len(highs) * len(lows) * (states * len(KINDS_THAT_DIFFER) - looping)


@SHADOW_AND_NPT
@pytest.mark.parametrize(("mode", "low"), PAIRS)
def test_every_lower_entry(mode: str, low: int, npt: bool) -> None:
    rig = Rig(mode, low, npt)
    bits = [CpuBits(True, False, False, False, True)]
    enumerate_cases(rig, [rig.word(low + 1, (P, W, U, A))], rig.words(low), bits, KINDS_PLAIN)


@SHADOW_AND_NPT
@pytest.mark.parametrize(("mode", "low"), PAIRS + UPPER_PAIRS)
def test_every_directory_entry(mode: str, low: int, npt: bool) -> None:
    rig = Rig(mode, low, npt)
    bits = [CpuBits(True, False, False, False, False)]
    enumerate_cases(rig, rig.words(low + 1), [rig.word(low, (P, W, U))], bits, KINDS_PLAIN)


@pytest.mark.deep
@pytest.mark.parametrize("part", range(4))
@SHADOW_AND_NPT
@pytest.mark.parametrize(("mode", "low"), PAIRS)
def test_the_whole_product(mode: str, low: int, npt: bool, part: int) -> None:
    rig = Rig(mode, low, npt)
    enumerate_cases(rig, rig.words(low + 1), rig.words(low), (CPUS if npt else WITHOUT_PKE)[part::4], KINDS)


# The departures.


def test_an_implicit_access_with_ac_under_smap_exits_forever_without_nested_paging() -> None:
    rig = Rig("4", 1, False)
    rig.set_cpu(CpuBits(True, False, True, False, True), 0)
    rig.vcpu.rflags = 2 | EFLAGS_AC
    rig.store(rig.low_at, rig.word(1, (P, W, U)))
    with pytest.raises(KvmBug, match="exits forever"):
        run.access(rig.vcpu, GVA, 256 | 512)


def test_a_fetch_is_told_apart_by_efer_nx_even_where_tables_have_no_nx() -> None:
    for npt, code in ((False, 0x10), (True, 0)):
        rig = Rig("32", 1, npt)
        rig.set_cpu(CpuBits(True, False, False, False, True), 0)
        rig.store(rig.low_at, 0)
        assert run.access(rig.vcpu, GVA, 16) == RUN_FAULT
        assert rig.vcpu.exception_error_code == code


def test_protection_keys_are_hidden_without_nested_paging() -> None:
    for npt in (False, True):
        rig = Rig("4", 1, npt)
        rig.set_cpu(CpuBits(True, False, False, False, True), 0)
        assert rig.world.mov_cr4(rig.vcpu, rig.vcpu.cr4 | 1 << 22) == npt


@pytest.mark.parametrize("bit", range(13, 22))
def test_a_4m_page_reaches_16_times_4_gib_only(bit: int) -> None:
    """Bits 20:17 name addresses that a CPU with 40 address bits has; KVM reserves them, and bit 21 as the CPU does."""
    rig = Rig("32pse", 1, False)
    rig.set_cpu(CpuBits(True, False, False, False, True), 0)
    rig.store(rig.high_at, rig.word(2, (P, W, U, PS)) | 1 << bit)
    status = run.access(rig.vcpu, GVA, 0)
    assert status == (RUN_EMULATE if bit < 17 else RUN_FAULT)
    assert bit < 17 or rig.vcpu.exception_error_code == 0x9


def test_shadow_pages_are_shared_across_efer_nx() -> None:
    """An entry with bit 63 that was mirrored with NX on stays usable with NX off until its page is rebuilt."""
    rig = Rig("4", 1, False)
    on, off = CpuBits(True, False, False, False, True), CpuBits(True, False, False, False, False)
    rig.set_cpu(on, 0)
    rig.store(rig.low_at, rig.word(1, (P, W, U, A, NX)))
    assert run.access(rig.vcpu, GVA, 0) == RUN_HIT
    rig.set_cpu(off, 0)
    assert run.access(rig.vcpu, GVA, 0) == RUN_HIT
    track_write(rig.vcpu, rig.low_at, 8)
    assert run.access(rig.vcpu, GVA, 0) == RUN_FAULT
    assert rig.vcpu.exception_error_code == 0x9


@SHADOW_AND_NPT
def test_a_table_outside_every_slot_is_not_present(npt: bool) -> None:
    """The manual has no such thing: a CPU reads all ones there. Nested paging makes the walk itself an MMIO exit."""
    rig = Rig("4", 1, npt)
    rig.set_cpu(CpuBits(True, False, False, False, True), 0)
    rig.store(rig.high_at, 0xE000_0000 | 0x27)
    status = run.access(rig.vcpu, GVA, 0)
    assert status == (RUN_EMULATE if npt else RUN_FAULT)
    assert npt or rig.vcpu.exception_error_code == 0


@pytest.mark.parametrize("is_amd", [True, False])
def test_bit_8_of_upper_directories_is_reserved_for_amd_guests(is_amd: bool) -> None:
    rig = Rig("4", 3, False)
    rig.vcpu.set_cpuid(WIDTH, amd_compatible=is_amd)
    rig.set_cpu(CpuBits(True, False, False, False, True), 0)
    rig.store(rig.high_at, rig.word(4, (P, W, U)) | 1 << 8)
    status = run.access(rig.vcpu, GVA, 0)
    assert (status, rig.vcpu.exception_error_code) == ((RUN_FAULT, 0x9) if is_amd else (RUN_HIT, 0))
