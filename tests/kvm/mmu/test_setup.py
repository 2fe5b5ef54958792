# SPDX-License-Identifier: GPL-2.0-only
"""Choosing a vCPU's MMU: which op and root each mode has, what makes it rebuild, and whose bits are reserved."""

from __future__ import annotations

import pytest

from kvm.mmu.machines import reserved_bits
from kvmmu import KvmBug, Params, World
from kvmmu.kvm.cpuid import CpuFeatures
from kvmmu.kvm.mmu import setup
from kvmmu.kvm.mmu.context import is_rsvd_bits_set, is_rsvd_spte
from kvmmu.kvm.vcpu import Vcpu

PE, WP, PG = 1, 1 << 16, 1 << 31
PSE, PAE, LA57, SMEP = 1 << 4, 1 << 5, 1 << 12, 1 << 20
LME, LMA, NX = 1 << 8, 1 << 10, 1 << 11
TDP, NONPAGING, PAGING = 0, 1, 2
DIRECT, INVALID, VALID = 1 << 7, 1 << 11, 1 << 32

#: Mode, CR0, CR4, EFER; levels of the guest, of the shadow root.
MODES = [
    ("unpaged", PE, 0, 0, 0, 3),
    ("2-level", PE | PG, 0, 0, 2, 3),
    ("2-level-pse", PE | PG, PSE, 0, 2, 3),
    ("pae", PE | PG, PAE, NX, 3, 3),
    ("4-level", PE | PG | WP, PAE, LME | LMA | NX, 4, 4),
    ("5-level", PE | PG | WP, PAE | LA57, LME | LMA | NX, 5, 5),
]


def vcpu_of(*, npt: bool, levels: int = 5, width: int = 46) -> Vcpu:
    return World(Params(npt=npt, host_levels=levels, host_maxphyaddr=width), nr_frames=1024).create_vcpu()


def put(vcpu: Vcpu, cr0: int, cr4: int, efer: int) -> bool:
    vcpu.cr0, vcpu.cr4, vcpu.efer = cr0, cr4, efer
    return setup.init_mmu(vcpu)


@pytest.mark.parametrize(("name", "cr0", "cr4", "efer", "guest", "shadow"), MODES, ids=[row[0] for row in MODES])
@pytest.mark.parametrize("npt", [False, True])
def test_op_and_root_follow_from_the_mode(
    npt: bool, name: str, cr0: int, cr4: int, efer: int, guest: int, shadow: int
) -> None:
    vcpu = vcpu_of(npt=npt)
    put(vcpu, cr0, cr4, efer)
    mmu = vcpu.mmu
    assert mmu.cpu_role & 15 == guest
    assert mmu.root_role & 15 == (5 if npt else shadow)
    assert bool(mmu.root_role & DIRECT) == (npt or guest == 0)
    assert mmu.fault_op == (TDP if npt else PAGING if guest else NONPAGING), name
    # Only mirrors of guest tables can get out of sync.
    assert mmu.can_sync == (not npt and guest > 0)


@pytest.mark.parametrize("levels", [4, 5])
def test_a_nested_paging_root_has_the_hosts_levels(levels: int) -> None:
    vcpu = vcpu_of(npt=True, levels=levels)
    assert vcpu.mmu.root_role & 15 == levels


@pytest.mark.parametrize("npt", [False, True])
def test_nothing_is_rebuilt_while_the_roles_stay(npt: bool) -> None:
    vcpu = vcpu_of(npt=npt)
    cr0, cr4, efer = MODES[4][1:4]
    assert put(vcpu, cr0, cr4, efer)
    assert not put(vcpu, cr0, cr4, efer)
    # CR0.CD, CR4.PGE and EFER.SCE do not matter to paging.
    assert not put(vcpu, cr0 | 1 << 30, cr4 | 1 << 7, efer | 1)
    assert put(vcpu, cr0, cr4 | SMEP, efer)


def test_a_changed_cpuid_forces_a_rebuild_and_keeps_what_the_roots_are() -> None:
    vcpu = vcpu_of(npt=False)
    cr0, cr4, efer = MODES[4][1:4]
    put(vcpu, cr0, cr4, efer)
    role, cpu_role = vcpu.mmu.root_role, vcpu.mmu.cpu_role
    setup.forget_roles(vcpu)
    assert (vcpu.mmu.root_role, vcpu.mmu.cpu_role) == (role | INVALID, cpu_role & ~VALID)
    assert setup.init_mmu(vcpu)
    assert (vcpu.mmu.root_role, vcpu.mmu.cpu_role) == (role, cpu_role)


def test_long_mode_without_pae_is_a_bug() -> None:
    vcpu = vcpu_of(npt=False)
    with pytest.raises(KvmBug, match=r"EFER\.LMA without CR4\.PAE"):
        put(vcpu, PE | PG, 0, LME | LMA)
    # Without paging, LMA means nothing.
    put(vcpu, PE, 0, LME | LMA)


def test_the_guests_address_bits_are_reserved_in_its_entries_and_the_hosts_in_kvms() -> None:
    vcpu = vcpu_of(npt=False, width=46)
    vcpu.set_cpuid(CpuFeatures(40))
    setup.forget_roles(vcpu)
    put(vcpu, *MODES[4][1:4])
    above_40, above_46 = (1 << 52) - (1 << 40), (1 << 52) - (1 << 46)
    for level in (1, 2, 3, 4):
        assert reserved_bits(is_rsvd_bits_set, vcpu.mmu, 0, level) & ((1 << 52) - 1 & ~0xFFF) == above_40
        assert reserved_bits(is_rsvd_spte, vcpu.mmu, 0, level) & ((1 << 52) - 1 & ~0xFFF) == above_46


@pytest.mark.parametrize(("efer", "reserved"), [(LME | LMA, 1 << 63), (LME | LMA | NX, 0)])
def test_nx_is_reserved_for_a_guest_without_it_and_never_for_kvm(efer: int, reserved: int) -> None:
    vcpu = vcpu_of(npt=False)
    put(vcpu, PE | PG | WP, PAE, efer)
    assert reserved_bits(is_rsvd_bits_set, vcpu.mmu, 0, 1) & 1 << 63 == reserved
    assert reserved_bits(is_rsvd_spte, vcpu.mmu, 0, 1) & 1 << 63 == 0


@pytest.mark.parametrize(
    ("npt", "gbpages", "guest", "kvm"),
    [
        (False, True, 0, 0),
        (False, False, 1, 1),
        (True, True, 0, 0),
        (True, False, 0, 0),
    ],
)
def test_1g_pages_are_the_guests_to_have_and_the_hardwares_under_nested_paging(
    npt: bool, gbpages: bool, guest: int, kvm: int
) -> None:
    """Whether bit 7 at level 3 is reserved."""
    vcpu = vcpu_of(npt=npt)
    vcpu.set_cpuid(CpuFeatures(46, gbpages=gbpages))
    setup.forget_roles(vcpu)
    put(vcpu, *MODES[4][1:4])
    assert is_rsvd_bits_set(vcpu.mmu, 1 << 7, 3) == guest
    assert is_rsvd_spte(vcpu.mmu, 1 << 7, 3) == kvm


@pytest.mark.parametrize(("is_amd", "reserved"), [(True, 1), (False, 0)])
def test_bit_8_of_upper_entries_is_reserved_for_amd_guests(is_amd: bool, reserved: int) -> None:
    vcpu = vcpu_of(npt=False)
    vcpu.set_cpuid(CpuFeatures(46, amd=is_amd))
    setup.forget_roles(vcpu)
    put(vcpu, *MODES[4][1:4])
    assert reserved_bits(is_rsvd_bits_set, vcpu.mmu, 0, 4) >> 8 & 1 == reserved
