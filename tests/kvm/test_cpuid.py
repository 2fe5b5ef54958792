# SPDX-License-Identifier: GPL-2.0-only
"""CPU features as a value: what each takes from the guest, in registers and in entries, with both kinds of paging."""

from __future__ import annotations

import errno
import re
from typing import Any

import pytest

from kvmmu import ConfigError, ControlRegisters, CpuFeatures, GuestMisuse, KvmIoctlError, Params, World
from kvmmu.hw.modes import MODE_2LEVEL_PSE, MODES, Limits, reserved_bits
from kvmmu.kvm.mmu import zap
from kvmmu.kvm.vcpu import Vcpu
from oracle import access_oracle

HOST = 46
ROOT, GVA, GPA = 0x10000, 0x40_0000, 0x20_0000
PE, WP, PG = 1, 1 << 16, 1 << 31
PSE, PAE, LA57, PCIDE, SMEP, SMAP, PKE = 1 << 4, 1 << 5, 1 << 12, 1 << 17, 1 << 20, 1 << 21, 1 << 22
LME, LMA, NX = 1 << 8, 1 << 10, 1 << 11
NPT = pytest.mark.parametrize("npt", [False, True], ids=["shadow", "npt"])


def machine(npt: bool, cpu: CpuFeatures, mode: str = "4-level") -> tuple[World, Vcpu]:
    world = World(Params(npt=npt, host_maxphyaddr=HOST, host_levels=5), nr_frames=4096, cpu=cpu)
    world.add_slot(0, 0, 8 << 20)
    vcpu = world.create_vcpu()
    tables = world.tables(mode, ROOT)
    if mode == "2-level-pse":
        tables.map(GVA, 0x40_0000, 0x40_0000)
    else:
        tables.map(GVA, GPA)
    world.load_registers(vcpu, tables.registers(nx=cpu.nx))
    return world, vcpu


# ---- registers

#: Feature, register, what it lets the guest set.
REGISTER_BITS = [
    ("smep", "cr4", SMEP),
    ("smap", "cr4", SMAP),
    ("pku", "cr4", PKE),
    ("la57", "cr4", LA57),
    ("pcid", "cr4", PCIDE),
    ("nx", "efer", NX),
    ("lm", "efer", LME),
]


@NPT
@pytest.mark.parametrize("has", [True, False], ids=["has", "lacks"])
@pytest.mark.parametrize(("name", "register", "bit"), REGISTER_BITS, ids=[row[0] for row in REGISTER_BITS])
def test_a_bit_that_cpuid_lacks_is_gp_for_the_guest_and_einval_for_the_vmm(
    npt: bool, has: bool, name: str, register: str, bit: int
) -> None:
    world = World(Params(npt=npt), nr_frames=1024)
    vcpu = world.create_vcpu(CpuFeatures(**{name: has}))
    works = has and (npt or name != "pku")
    before = repr(vcpu)
    if name != "pcid":  # PCIDE can be turned on in long mode alone
        write = world.mov_cr4 if register == "cr4" else world.wrmsr_efer
        assert write(vcpu, bit) == works
    assert (repr(vcpu) == before) == (not works or name == "pcid")
    registers = ControlRegisters(0x11, 0, bit if register == "cr4" else 0, bit if register == "efer" else 0)
    if works:
        world.load_registers(vcpu, registers)
        assert getattr(vcpu, register) == bit
        return
    told = f"the guest's CPUID has no {name.upper()}" if not has else "protection keys need nested paging"
    with pytest.raises(KvmIoctlError, match=f"EINVAL: .*{register} {bit:#x}: {told}") as caught:
        world.load_registers(vcpu, registers)
    assert (caught.value.errno, repr(vcpu)) == (errno.EINVAL, before)


@NPT
def test_without_any_cpuid_cr4_is_held_against_kvm_alone(npt: bool) -> None:
    """``cr4_guest_rsvd_bits`` is made by KVM_SET_CPUID2; EFER is looked up in the CPUID each time."""
    world = World(Params(npt=npt), nr_frames=1024)
    vcpu = world.create_vcpu(CpuFeatures.none())
    assert vcpu.maxphyaddr == 36
    for bit in (SMEP, SMAP, LA57):
        assert world.mov_cr4(vcpu, bit)
    assert world.mov_cr4(vcpu, PKE) == npt
    assert not world.wrmsr_efer(vcpu, NX)
    assert not world.wrmsr_efer(vcpu, LME)
    assert world.wrmsr_efer(vcpu, 1)
    # An empty CPUID is another thing.
    empty = CpuFeatures(36, **dict.fromkeys(("smep", "smap", "pku", "la57", "pcid", "nx", "lm", "gbpages"), False))
    assert not world.mov_cr4(world.create_vcpu(empty), SMEP)


@NPT
def test_cr3_has_the_address_bits_of_the_guest_or_under_nested_paging_of_the_host(npt: bool) -> None:
    world, vcpu = machine(npt, CpuFeatures(40))
    assert world.mov_cr3(vcpu, 1 << 39)
    assert world.mov_cr3(vcpu, 1 << 40) == npt
    assert not world.mov_cr3(vcpu, 1 << HOST)
    # KVM_SET_SREGS asks kvm, whoever walks the tables.
    with pytest.raises(KvmIoctlError, match="cr3 0x10000000000: this vCPU's physical addresses have 40 bits"):
        world.load_registers(vcpu, ControlRegisters(0x8001_0011, 1 << 40, PAE, LME | LMA))


# ---- entries

MODES_OF = {
    "2-level-pse": ("32", (2,)),
    "pae": ("pae", (2, 1)),
    "4-level": ("4", (4, 3, 2, 1)),
    "5-level": ("5", (5, 4, 3, 2, 1)),
}
CPUS = {
    "all": CpuFeatures(amd=False),
    "36-bits": CpuFeatures(36, amd=False),
    "52-bits": CpuFeatures(52, amd=False),
    "no-nx": CpuFeatures(nx=False, amd=False),
    "no-gbpages": CpuFeatures(gbpages=False, amd=False),
    "no-pse36": CpuFeatures(pse36=False, amd=False),
}


@NPT
@pytest.mark.parametrize("mode", MODES_OF)
@pytest.mark.parametrize("name", CPUS)
def test_reserved_bits_are_those_of_the_manual_for_that_cpu(npt: bool, name: str, mode: str) -> None:
    """Each bit of each entry that is no address: the access faults exactly where the independent model says.

    Under nested paging the model is asked with what the host has, because the CPU walks by itself. No CPUID without
    PSE-36 makes a difference: kvm takes every CPU to have it.
    """
    cpu = CPUS[name]
    world, vcpu = machine(npt, cpu, mode)
    tables = world.tables(mode, ROOT)
    paging, levels = MODES_OF[mode]
    size = 4 if mode == "2-level-pse" else 8
    width = HOST if npt or cpu.maxphyaddr is None else cpu.maxphyaddr
    if mode == "2-level-pse" and not npt:
        width = 36  # kvm's idea of PSE-36
    state = model_of(world, cpu, npt, paging, width)
    faults = 0
    for level in levels:
        place = tables.entry_gpa(GVA, level)
        entry = int.from_bytes(world.peek(place, size), "little") & ~0x60
        for bit in range(8 * size):
            is_address = 12 <= bit < (width if size == 8 else 32)
            if bit == 0 or (is_address and not entry & 0x80) or (bit == 7 and level > 1 and mode != "2-level-pse"):
                continue
            word = entry | 1 << bit
            for large in (0, 0x80) if level in (2, 3) and not is_address else (0,):
                word |= large
                world.poke(place, word, size)
                # What the VMM edits stays unseen while it is shadowed.
                zap.zap_all(world.vm)
                world.mov_cr3(vcpu, ROOT)
                state.ram.store(place, size, word)
                state.pdptes = pdptes_of(state.ram)
                wanted = access_oracle.predict(state, GVA, access_oracle.Access())
                got = world.read(vcpu, GVA)
                is_fault = got.kind == "fault"
                assert is_fault == (wanted[0] == "pf"), (level, bit, hex(word), got, wanted)
                if is_fault:
                    assert got.error_code == wanted[1], (level, bit, hex(word))
                    faults += 1
        world.poke(place, entry, size)
        state.ram.store(place, size, entry)
    assert faults > (0 if mode == "2-level-pse" else 5)


def model_of(world: World, cpu: CpuFeatures, npt: bool, paging: str, width: int) -> access_oracle.Machine:
    """The independent model of the machine, with the tables as they are."""
    ram = access_oracle.Ram(1 << 23)
    for page in range(ROOT, ROOT + 0x8000, 0x1000):
        words = memoryview(world.peek(page, 4096)).cast("I")
        ram.words.update({page + 4 * i: word for i, word in enumerate(words) if word})
    return access_oracle.Machine(
        ram,
        paging,
        cr3=ROOT,
        pdptes=pdptes_of(ram),
        wp=True,
        pse=paging == "32",
        nxe=cpu.nx,
        width=width,
        gigabyte_pages=npt or cpu.gbpages,
    )


def pdptes_of(ram: access_oracle.Ram) -> tuple[int, int, int, int]:
    """The four words at the root, which PAE paging loads."""
    return ram.load(ROOT, 8), ram.load(ROOT + 8, 8), ram.load(ROOT + 16, 8), ram.load(ROOT + 24, 8)


@pytest.mark.parametrize(("pse36", "wanted"), [(True, 0x20_0000), (False, 0x3F_E000)])
def test_a_cpu_without_pse36_reserves_bits_21_to_13_of_4m_entries(pse36: bool, wanted: int) -> None:
    limits = CpuFeatures(pse36=pse36).limits(has_nx=False, widest=52)
    assert reserved_bits(MODES[MODE_2LEVEL_PSE], 2, True, limits) == wanted


@pytest.mark.parametrize(("npt", "cpu", "works"), [
    (False, CpuFeatures(), True), (False, CpuFeatures(gbpages=False), False), (False, CpuFeatures(lm=True), True),
    (True, CpuFeatures(), True), (True, CpuFeatures(gbpages=False), True),
])  # fmt: skip
def test_1g_pages_are_the_guests_to_have_but_the_hardwares_under_nested_paging(
    npt: bool, cpu: CpuFeatures, works: bool
) -> None:
    world, vcpu = machine(npt, cpu)
    world.poke(world.tables("4-level", ROOT).entry_gpa(GVA, 3), 0xE7)
    assert world.read(vcpu, GVA).kind == ("done" if works else "fault")
    assert (world.translate(vcpu, GVA) == GVA) == works


def test_addresses_beyond_the_hosts_are_the_guests_to_name_under_shadow_paging() -> None:
    """kvm walks with the guest's 52 bits; under nested paging the CPU, with the host's, says #PF with RSVD."""
    for npt in (False, True):
        world, vcpu = machine(npt, CpuFeatures(52))
        gpa = 1 << HOST | GPA
        world.poke(world.tables("4-level", ROOT).entry_gpa(GVA, 1), gpa | 7)
        access = world.read(vcpu, GVA)
        assert (access.kind, access.error_code) == (("fault", 9) if npt else ("mmio", 0))
        assert npt or access.address == gpa
        # kvm itself walks with the guest's width under either.
        assert world.translate(vcpu, GVA) == gpa
        if not npt:
            world.add_slot(1, 1 << HOST, 4 << 20)
            assert world.write(vcpu, GVA, b"far").kind == "done"
            assert world.peek(gpa, 3) == b"far"
        world.audit()


def test_a_cached_mmio_address_beyond_the_hosts_loses_its_upper_bits() -> None:
    """KVM's own way: of an MMIO spte's gfn it reads the host's address bits (``get_mmio_spte_gfn``)."""
    world, vcpu = machine(False, CpuFeatures(52))
    world.poke(world.tables("4-level", ROOT).entry_gpa(GVA, 1), 1 << 47 | GPA | 7)
    other = world.create_vcpu()
    world.load_registers(other, ControlRegisters(vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer))
    assert world.read(vcpu, GVA).address == 1 << 47 | GPA
    # The vCPU that made the spte remembers the gfn, another has it from the spte.
    assert world.read(vcpu, GVA).address == 1 << 47 | GPA
    assert world.read(other, GVA).address == GPA


# ---- KVM_SET_CPUID2


@NPT
def test_cpuid_is_each_vcpus_own_and_ends_with_the_first_run(npt: bool) -> None:
    world = World(Params(npt=npt), nr_frames=4096, cpu=CpuFeatures(smep=False))
    world.add_slot(0, 0, 8 << 20)
    first, second = world.create_vcpu(), world.create_vcpu(CpuFeatures(40))
    assert (first.features, second.features) == (CpuFeatures(smep=False), CpuFeatures(40))
    world.set_cpuid(first, CpuFeatures(nx=False))
    assert not world.wrmsr_efer(first, NX)
    world.read(first, 0x1000)
    world.set_cpuid(first, CpuFeatures(nx=False))
    with pytest.raises(KvmIoctlError, match=r"EINVAL: KVM_SET_CPUID2, vCPU 0 has run") as caught:
        world.set_cpuid(first, CpuFeatures())
    assert caught.value.errno == errno.EINVAL
    assert first.features == CpuFeatures(nx=False)
    world.set_cpuid(second, CpuFeatures())


# ---- the value

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"maxphyaddr": 31}, "maxphyaddr=31: must be a number from 32 to 52"),
    ({"maxphyaddr": 53}, "maxphyaddr=53: must be a number from 32 to 52"),
    ({"maxphyaddr": True}, "maxphyaddr=on: must be a number from 32 to 52"),
    ({"maxphyaddr": "40"}, "maxphyaddr=40: must be a number from 32 to 52"),
    ({"nx": 1}, "nx=1: must be on or off"),
    ({"nx": None}, "nx=None: must be on or off"),
    ({"has_cpuid": False}, "has_cpuid=False: a guest without CPUID has no features; take CpuFeatures.none()"),
    ({"has_cpuid": 0}, "has_cpuid=0: must be True or False"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_features_that_no_cpuid_has_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        CpuFeatures(**fields)


def test_features_are_set_by_text() -> None:
    assert CpuFeatures().with_settings(["nx=off", "maxphyaddr=40"]) == CpuFeatures(40, nx=False)
    assert repr(CpuFeatures(40, nx=False)) == "CpuFeatures(maxphyaddr=40, nx=False)"
    assert (repr(CpuFeatures()), repr(CpuFeatures.none())) == ("CpuFeatures()", "CpuFeatures.none()")
    for wrong, message in (
        (["nxx=off"], "unknown CPU feature 'nxx': did you mean nx?"),
        (["nx"], "'nx': a CPU feature is set as name=value"),
        (5, "settings 5: must be a list of texts, name=value"),
        ("nx=off", "settings 'nx=off': must be a list of texts, name=value"),
        ([5], "5: a CPU feature is set by a text, name=value"),
    ):
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
            CpuFeatures().with_settings(wrong)  # type: ignore[arg-type]


def test_a_world_takes_features_alone() -> None:
    with pytest.raises(GuestMisuse, match=r"^cpu 0x5: must be a CpuFeatures"):
        World(cpu=5)  # type: ignore[arg-type]
    assert Limits(52, True, True) == CpuFeatures().limits(has_nx=True, widest=52)
