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

from collections.abc import Sequence

import pytest

from kvmmu import KvmBug, Params, World
from kvmmu.kvm import insn, run
from kvmmu.kvm.cpuid import CpuFeatures
from kvmmu.kvm.mmu.gptewrite import track_write
from kvmmu.kvm.outcome import RUN_EMULATE, RUN_FAULT, RUN_HIT
from oracle.access_cases import (
    CPUS,
    GVA,
    KINDS,
    KINDS_PLAIN,
    KINDS_THAT_DIFFER,
    NX,
    PAIRS,
    PS,
    UPPER_PAIRS,
    WIDTH,
    WITHOUT_PKE,
    A,
    CaseRig,
    CpuBits,
    P,
    U,
    W,
    enumerate_cases,
)
from oracle.access_oracle import Access, Machine, Outcome

#: The guest's physical memory, as far as combinations reach it, by slot: tables and small pages; large pages.
SLOTS = ((0, 0x0100_0000), (0x4000_0000, 0x4000_0000))
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


class Rig(CaseRig):
    """One world with one guest."""

    def __init__(self, mode: str, low: int, npt: bool) -> None:
        self.npt = npt
        # Memory for half a dozen pages and kvm's tables; the slots are far larger and stay empty.
        self.world = World(Params(npt=npt, host_maxphyaddr=WIDTH), nr_frames=1024)
        for number, (gpa, size) in enumerate(SLOTS):
            self.world.add_slot(number, gpa, size)
        self.vcpu = self.world.create_vcpu()
        self.memory = self.world.memory
        self.hpas: dict[int, int] = {}
        super().__init__(mode, low, 1 << 32)
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

    def store(self, gpa: int, value: int) -> None:
        self.ram.store(gpa, self.width, value)
        self.world.poke(gpa, value, self.width)

    def set_cpu(self, bits: CpuBits, pkru: int) -> Machine:
        """Change the registers by the guest's instructions."""
        registers = self.registers(bits)
        if self.bits_set is None:
            self.world.load_registers(self.vcpu, registers)
        else:
            assert self.world.mov_cr0(self.vcpu, registers.cr0)
            assert self.world.mov_cr4(self.vcpu, registers.cr4)
            assert self.world.wrmsr_efer(self.vcpu, registers.efer)
        assert self.world.wrpkru(self.vcpu, pkru)
        self.bits_set = bits
        return self.machine(bits, pkru)

    def is_left_out(self, bits: CpuBits, access: Access) -> bool:
        return not self.npt and loops_in_kvm(bits, access)

    def end_of_state(self) -> None:
        self.world.audit()

    def seen_by_guest(
        self, machine: Machine, bits: CpuBits, access: Access, high: int, low: int
    ) -> tuple[Outcome, int, int]:
        """What the oracle says, with KVM's own error code."""
        outcome, high_after, low_after = self.expect(machine, access, high, low)
        if outcome[0] == "pf" and not self.npt:
            outcome = ("pf", kvm_error_code(self.mode, bits, access, outcome[1]))
        return outcome, high_after, low_after

    def check(
        self, highs: Sequence[int], lows: Sequence[int], machine: Machine, bits: CpuBits, kind: tuple[int, Access]
    ) -> str:
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
                    outcome, high_after, low_after = self.seen_by_guest(machine, bits, access, high, low)
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
    cases = enumerate_cases(rig, [rig.word(low + 1, (P, W, U, A))], rig.words(low), bits, KINDS_PLAIN)
    assert cases == rig.nr_words() * 6


@SHADOW_AND_NPT
@pytest.mark.parametrize(("mode", "low"), PAIRS + UPPER_PAIRS)
def test_every_directory_entry(mode: str, low: int, npt: bool) -> None:
    rig = Rig(mode, low, npt)
    bits = [CpuBits(True, False, False, False, False)]
    cases = enumerate_cases(rig, rig.words(low + 1), [rig.word(low, (P, W, U))], bits, KINDS_PLAIN)
    assert cases == rig.nr_words() * 6


@pytest.mark.deep
@pytest.mark.parametrize("part", range(4))
@SHADOW_AND_NPT
@pytest.mark.parametrize(("mode", "low"), PAIRS)
def test_the_whole_product(mode: str, low: int, npt: bool, part: int) -> None:
    rig = Rig(mode, low, npt)
    cpus = (CPUS if npt else WITHOUT_PKE)[part::4]
    cases = enumerate_cases(rig, rig.words(low + 1), rig.words(low), cpus, KINDS)
    left_out = 0 if npt else sum(bits.smap for bits in cpus) * 3
    states = sum(4 if bits.pke else 1 for bits in cpus)
    assert cases == rig.nr_words() ** 2 * (states * 18 - left_out)


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
    rig.vcpu.set_cpuid(CpuFeatures(WIDTH, amd=is_amd))
    rig.set_cpu(CpuBits(True, False, False, False, True), 0)
    rig.store(rig.high_at, rig.word(4, (P, W, U)) | 1 << 8)
    status = run.access(rig.vcpu, GVA, 0)
    assert (status, rig.vcpu.exception_error_code) == ((RUN_FAULT, 0x9) if is_amd else (RUN_HIT, 0))
