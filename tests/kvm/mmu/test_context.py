# SPDX-License-Identifier: GPL-2.0-only
"""The Mmu's tables: permissions, protection keys, reserved bits; and how roles come into it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm.mmu.machines import reserved_bits
from kvmmu.errors import KvmBug
from kvmmu.host.frames import FrameAllocator
from kvmmu.host.mm import Mm
from kvmmu.hw.cpu import Cpu
from kvmmu.hw.memory import PhysicalMemory
from kvmmu.kvm.cpuid import CpuFeatures
from kvmmu.kvm.mmu import context as c
from kvmmu.kvm.mmu import setup
from kvmmu.kvm.mmu.bits import FAULT_OP_NONPAGING, FAULT_OP_PAGING, FAULT_OP_TDP, KVM_MMU_NUM_PREV_ROOTS
from kvmmu.kvm.mmu.context import is_rsvd_bits_set, is_rsvd_spte
from kvmmu.kvm.mmu.role import calc_cpu_role, role_direct
from kvmmu.kvm.mmu.walker import GuestWalk
from kvmmu.kvm.run import create_vm
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.params import Params
from oracle.permission_model import Access, Machine, Page, error_code

PG, WP = 1 << 31, 1 << 16
PSE, PAE, LA57, SMEP, SMAP, PKE = 1 << 4, 1 << 5, 1 << 12, 1 << 20, 1 << 21, 1 << 22
LMA, NX = 1 << 10, 1 << 11
AC = 1 << 18
IMPLICIT = 1 << 48
INVALID = 2**64 - 1

BOOLS = (False, True)


def bits(low: int, high: int) -> int:
    """Bits low to high, both included."""
    return sum(1 << n for n in range(low, high + 1))


def mmu_of(cr0: int, cr4: int, efer: int) -> c.Mmu:
    """An Mmu with the permission tables of a guest with these registers."""
    mmu = c.Mmu()
    mmu.cpu_role = calc_cpu_role(cr0, cr4, efer, False)
    c.update_permission_bitmask(mmu)
    c.update_pkru_mask(mmu)
    return mmu


def make_vcpu(**params: object) -> Vcpu:
    """A vCPU of a VM without any memory slot."""
    memory = PhysicalMemory(64)
    vm = create_vm(Mm(FrameAllocator(memory)), Params(**params))  # type: ignore[arg-type]
    return Vcpu(vm, 0, Cpu(0, memory), GuestWalk())


# ------------------------------------------------------------------------------------------- permissions


@pytest.mark.parametrize("pke", BOOLS)
@pytest.mark.parametrize("efer", [LMA, LMA | NX])
def test_permission_fault_agrees_with_the_manual_for_every_combination(efer: int, pke: bool) -> None:
    keys = range(4)
    cases = 0
    for wp, smep, smap in itertools.product(BOOLS, repeat=3):
        mmu = mmu_of(PG | wp * WP, PAE | smep * SMEP | smap * SMAP | pke * PKE, efer)
        for ac, key in itertools.product(BOOLS, keys):
            machine = Machine(wp, smep, smap, bool(efer & NX), ac, pke, bool(key & 1), bool(key & 2))
            for write, user, fetch, implicit, present in itertools.product(BOOLS, repeat=5):
                access = write * 2 | user * 4 | fetch * 16 | present * 1
                for acc in range(8):
                    page = Page(bool(acc & 4), bool(acc & 2), bool(acc & 1))
                    want = error_code(machine, Access(write, user, fetch, implicit), page)
                    got = c.permission_fault(mmu, acc, 7, access | implicit * IMPLICIT, ac * AC | 2, key << 14)
                    assert got == want, (machine, write, user, fetch, implicit, page)
                    cases += 1
    assert cases == 8 * 8 * 32 * 8


@given(st.integers(0, 2**32 - 1), st.integers(0, 15))
def test_the_pages_own_key_is_asked(pkru: int, pkey: int) -> None:
    mmu = mmu_of(PG | WP, PAE | PKE, LMA)
    denied = pkru >> 2 * pkey & 3
    assert c.permission_fault(mmu, 6, pkey, 0, 2, pkru) == (0x21 if denied & 1 else 0)
    assert c.permission_fault(mmu, 6, pkey, 2, 2, pkru) == (0x21 if denied else 0)


@pytest.mark.parametrize("registers", [(PG, 0, 0), (PG, PAE, 0), (PG | WP, PAE, LMA)])
def test_protection_keys_need_cr4_pke_in_long_mode(registers: tuple[int, int, int]) -> None:
    cr0, cr4, efer = registers
    assert mmu_of(cr0, cr4, efer).pkru_mask == 0
    assert (mmu_of(cr0, cr4 | PKE, efer).pkru_mask != 0) is bool(efer & LMA)


@given(st.integers(0, 2**64 - 1), st.integers(0, 7))
def test_bits_of_an_access_that_are_no_permission_do_not_matter(access: int, acc: int) -> None:
    mmu = mmu_of(PG | WP, PAE | SMAP | SMEP | PKE, LMA | NX)
    known = access & (2 | 4 | 16 | IMPLICIT)
    assert c.permission_fault(mmu, acc, 3, access, AC, 0x80) == c.permission_fault(mmu, acc, 3, known, AC, 0x80)


# ------------------------------------------------------------------------------------------- reserved bits


def table_of(level: int, reserved: int, **facts: bool) -> dict[tuple[int, int], int]:
    """Reserved bits by bit 7 and level."""
    rules = c.EntryRules(level, reserved)
    for name, value in facts.items():
        setattr(rules, name, value)
    table = c.rsvd_bits_table(rules)
    assert len(table) == 10
    return {(large, lvl): table[5 * large + lvl - 1] for large in (0, 1) for lvl in range(1, 6)}


def test_two_level_entries_reserve_bits_of_4m_pages_only() -> None:
    assert set(table_of(2, bits(46, 63)).values()) == {0}
    with_pse = table_of(2, bits(46, 63), pse=True)
    assert with_pse.pop((1, 2)) == bits(17, 21)
    assert set(with_pse.values()) == {0}


@pytest.mark.parametrize("nx", BOOLS)
def test_pae_entries_reserve_addresses_up_to_bit_62(nx: bool) -> None:
    table = table_of(3, bits(40, 63), nx=nx)
    high = bits(40, 62) | (0 if nx else 1 << 63)
    assert table[0, 1] == table[1, 1] == table[0, 2] == high
    assert table[1, 2] == high | bits(13, 20)
    assert table[0, 3] == high | 1 << 63 | bits(5, 8) | bits(1, 2)
    assert table[0, 4] == table[1, 5] == 0


@pytest.mark.parametrize(("nx", "gbpages", "amd"), list(itertools.product(BOOLS, repeat=3)))
@pytest.mark.parametrize("level", [4, 5])
def test_long_mode_entries_reserve_what_their_level_has_no_use_for(
    level: int, nx: bool, gbpages: bool, amd: bool
) -> None:
    table = table_of(level, bits(46, 63), nx=nx, gbpages=gbpages, amd_compatible=amd)
    high = bits(46, 51) | (0 if nx else 1 << 63)
    no_1g = 0 if gbpages else 1 << 7
    upper = high | 1 << 7 | (1 << 8 if amd else 0)
    assert [table[0, n] for n in (1, 2, 3, 4)] == [high, high, high | no_1g, upper]
    assert [table[1, n] for n in (1, 2, 3, 4)] == [high, high | bits(13, 20), high | no_1g | bits(13, 29), upper]
    assert table[0, 5] == table[1, 5] == (upper if level == 5 else 0)


def test_bit_7_of_an_entry_chooses_the_row() -> None:
    mmu = c.Mmu()
    c.reset_guest_rsvd(mmu, c.EntryRules(4, bits(46, 63)))
    c.reset_shadow_rsvd(mmu, c.EntryRules(4, bits(40, 63)))
    assert c.is_rsvd_bits_set(mmu, 1 << 13 | 1 << 7 | 1, 2)
    assert not c.is_rsvd_bits_set(mmu, 1 << 13 | 1, 2)
    assert not c.is_rsvd_bits_set(mmu, 1 << 45 | 1, 1)
    assert c.is_rsvd_spte(mmu, 1 << 45 | 1, 1)
    assert reserved_bits(is_rsvd_bits_set, mmu, 1 << 7, 2) == bits(46, 51) | 1 << 63 | bits(13, 20)
    assert reserved_bits(is_rsvd_spte, mmu, 0, 1) == bits(40, 51) | 1 << 63


# ------------------------------------------------------------------------------------------- init_mmu


def set_mode(vcpu: Vcpu, cr0: int, cr4: int, efer: int) -> None:
    """Set the registers, and nothing that follows from them."""
    vcpu.cr0, vcpu.cr4, vcpu.efer = cr0, cr4, efer


def test_a_new_mmu_has_no_roots() -> None:
    mmu = c.Mmu()
    assert (mmu.root_hpa, mmu.root_pgd) == (INVALID, 0)
    assert [mmu.prev_root(i) for i in range(KVM_MMU_NUM_PREV_ROOTS)] == [(INVALID, INVALID)] * 3
    assert mmu.pae_root == 0


MODES = {
    "nonpaging": (0, 0, 0, 0x1_0000_0780),
    "2-level": (PG, PSE, 0, 0x5_0000_0712),
    "PAE": (PG | WP, PAE, NX, 0x1_0000_3703),
    "4-level": (PG | WP, PAE, LMA | NX, 0x81_0000_3704),
    "5-level": (PG | WP, PAE | LA57, LMA, 0xC1_0000_2705),
}
SHADOW_ROOTS = {"nonpaging": 0x1783, "2-level": 0x1713, "PAE": 0x3703, "4-level": 0x3704, "5-level": 0x3705}


@pytest.mark.parametrize("mode", list(MODES))
def test_shadow_paging_follows_the_guests_mode(mode: str) -> None:
    vcpu = make_vcpu(npt=False)
    cr0, cr4, efer, cpu_role = MODES[mode]
    set_mode(vcpu, cr0, cr4, efer)
    assert setup.init_mmu(vcpu)
    assert vcpu.mmu.cpu_role == cpu_role
    assert vcpu.mmu.root_role == SHADOW_ROOTS[mode]
    assert vcpu.mmu.fault_op == (FAULT_OP_PAGING if cr0 else FAULT_OP_NONPAGING)
    assert vcpu.mmu.can_sync is bool(cr0)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("mode", list(MODES))
def test_with_tdp_the_root_does_not_depend_on_the_guest(mode: str, levels: int) -> None:
    vcpu = make_vcpu(npt=True, host_levels=levels)
    cr0, cr4, efer, cpu_role = MODES[mode]
    set_mode(vcpu, cr0, cr4, efer)
    assert setup.init_mmu(vcpu)
    assert vcpu.mmu.cpu_role == cpu_role
    assert vcpu.mmu.root_role == 0x3780 | levels
    assert vcpu.mmu.fault_op == FAULT_OP_TDP
    assert not vcpu.mmu.can_sync


@pytest.mark.parametrize("npt", BOOLS)
def test_an_unchanged_mode_is_no_change(npt: bool) -> None:
    vcpu = make_vcpu(npt=npt)
    assert setup.init_mmu(vcpu)
    assert not setup.init_mmu(vcpu)
    set_mode(vcpu, PG | WP, PAE, LMA)
    assert setup.init_mmu(vcpu)
    vcpu.cr3 = 0x1000
    vcpu.cr4 |= 1 << 7  # PGE is no part of a role
    assert not setup.init_mmu(vcpu)
    vcpu.cr4 |= SMEP
    assert setup.init_mmu(vcpu)


def test_guest_tables_use_the_guests_cpuid_and_shadow_tables_the_hosts() -> None:
    vcpu = make_vcpu(npt=False, host_maxphyaddr=46)
    vcpu.set_cpuid(CpuFeatures(40, gbpages=False, amd=False))
    set_mode(vcpu, PG, PAE, LMA)
    setup.init_mmu(vcpu)
    assert reserved_bits(is_rsvd_bits_set, vcpu.mmu, 0, 3) == bits(40, 51) | 1 << 63 | 1 << 7
    assert reserved_bits(is_rsvd_bits_set, vcpu.mmu, 0, 4) == bits(40, 51) | 1 << 63 | 1 << 7
    # NX is always usable in sptes; 1G pages are as the guest has them.
    assert reserved_bits(is_rsvd_spte, vcpu.mmu, 0, 1) == bits(46, 51)
    assert reserved_bits(is_rsvd_spte, vcpu.mmu, 0, 3) == bits(46, 51) | 1 << 7
    assert reserved_bits(is_rsvd_spte, vcpu.mmu, 0, 4) == bits(46, 51) | bits(7, 8)


def test_nested_tables_have_1g_pages_whatever_the_guest_has() -> None:
    vcpu = make_vcpu(npt=True, host_maxphyaddr=48)
    vcpu.set_cpuid(CpuFeatures(40, gbpages=False))
    setup.init_mmu(vcpu)
    assert reserved_bits(is_rsvd_spte, vcpu.mmu, 0, 3) == bits(48, 51)
    assert reserved_bits(is_rsvd_spte, vcpu.mmu, 1 << 7, 3) == bits(48, 51) | bits(13, 29)


def test_pae_shadow_tables_reserve_addresses_up_to_bit_62() -> None:
    vcpu = make_vcpu(npt=False, host_maxphyaddr=46)
    set_mode(vcpu, PG, 0, 0)
    setup.init_mmu(vcpu)
    assert reserved_bits(is_rsvd_spte, vcpu.mmu, 0, 1) == bits(46, 62)
    assert reserved_bits(is_rsvd_spte, vcpu.mmu, 1 << 7, 2) == bits(46, 62) | bits(13, 20)


def test_forgotten_roles_are_rebuilt_and_still_say_direct() -> None:
    vcpu = make_vcpu(npt=True)
    setup.init_mmu(vcpu)
    before = (vcpu.mmu.cpu_role, vcpu.mmu.root_role)
    setup.forget_roles(vcpu)
    assert (vcpu.mmu.cpu_role, vcpu.mmu.root_role) == (before[0] & ~(1 << 32), before[1] | 1 << 11)
    assert role_direct(vcpu.mmu.root_role)
    assert setup.init_mmu(vcpu)
    assert (vcpu.mmu.cpu_role, vcpu.mmu.root_role) == before


def test_long_mode_without_pae_is_a_bug_of_the_model() -> None:
    vcpu = make_vcpu(npt=False)
    set_mode(vcpu, PG, 0, LMA)
    with pytest.raises(KvmBug, match=r"EFER\.LMA without CR4\.PAE"):
        setup.init_mmu(vcpu)
