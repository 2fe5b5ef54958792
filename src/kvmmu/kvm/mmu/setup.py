# SPDX-License-Identifier: GPL-2.0-only
"""Choosing a vCPU's MMU: roles from its registers, then ops and tables from the roles (``kvm_init_mmu``).

Whoever changes a register that paging depends on frees roots first (``sregs.reset_context()``) where cached
ones would be wrong, and calls :func:`init_mmu` then. Reference: "Selecting and rebuilding".
"""

from __future__ import annotations

from ...addr import Address
from ...errors import KvmBug
from ...hw.bits import CR0_PG, CR4_PAE, EFER_LMA, EPTP_AD, EPTP_LEVELS_SHIFT
from ...page_types import ONE, U32
from ..vcpu import Vcpu
from .bits import EXT_VALID, FAULT_OP_NONPAGING, FAULT_OP_PAGING, FAULT_OP_TDP, PT32E_ROOT_LEVEL, ROLE_INVALID
from .context import (
    EntryRules,
    Mmu,
    reset_ept_rsvd,
    reset_guest_rsvd,
    reset_shadow_rsvd,
    update_permission_bitmask,
    update_pkru_mask,
)
from .gpte import GPTE_2_LEVEL, GPTE_64, GPTE_EPT, GPTE_EPT_WITHOUT_AD, GPTE_PAE, GpteFormat
from .role import (
    calc_cpu_role,
    calc_ept_role,
    calc_shadow_root_role,
    calc_tdp_root_role,
    cpu_role_efer_nx,
    cpu_role_has_4_byte_gpte,
    cpu_role_level,
    cpu_role_paging,
    cpu_role_pse,
    role_level,
)

_U64_BITS = 64


def init_mmu(vcpu: Vcpu) -> bool:
    """Bring ``vcpu.root_mmu`` in line with the vCPU's registers and CPUID; return whether a role changed.

    Nothing is done while both roles stay what they are. Roots are the caller's business, and no lock is needed: an
    MMU belongs to its vCPU. Raises ``KvmBug`` for EFER.LMA without CR4.PAE, which no register write can reach.
    """
    mmu: Mmu = vcpu.root_mmu
    if vcpu.cr0 & CR0_PG and vcpu.efer & EFER_LMA and not vcpu.cr4 & CR4_PAE:
        raise KvmBug(f"vcpu {vcpu.vcpu_id}: EFER.LMA without CR4.PAE (cr4 {vcpu.cr4:#x}, efer {vcpu.efer:#x})")
    cpu_role = calc_cpu_role(vcpu.cr0, vcpu.cr4, vcpu.efer, vcpu.smm)
    root_role = _calc_root_role(vcpu, cpu_role)
    if mmu.cpu_role == cpu_role and mmu.root_role == root_role:
        return False
    mmu.cpu_role = cpu_role
    mmu.root_role = root_role
    _choose_ops(vcpu, mmu)
    if cpu_role_paging(cpu_role):
        mmu.gpte = choose_gpte(cpu_role)
        reset_guest_rsvd(mmu, guest_rules(vcpu, cpu_role))
        update_permission_bitmask(mmu)
        update_pkru_mask(mmu)
    reset_shadow_rsvd(mmu, shadow_rules(vcpu, root_role))
    return True


def init_ept_mmu(vcpu: Vcpu, mmu: Mmu, eptp: Address, has_execonly: bool, huge_page_level: int) -> bool:
    """Let ``mmu`` walk the EPT at ``eptp``, which a hypervisor in the guest made; return whether its role changed.

    ``eptp`` is the whole word: bits 5:3 say 4 or 5 levels, bit 6 enables A and D. The rest is what the guest's CPU
    offers: entries that are executable alone, and pages of level ``huge_page_level`` (1 to 3). The caller checked both.
    """
    mmu.eptp = eptp
    has_ad = (eptp & EPTP_AD) != 0
    cpu_role = calc_ept_role(((eptp >> EPTP_LEVELS_SHIFT) & 7) + 1, has_ad, has_execonly)
    if mmu.cpu_role == cpu_role:
        return False
    mmu.cpu_role = cpu_role
    mmu.root_role = cpu_role & U32
    mmu.fault_op = FAULT_OP_PAGING
    mmu.can_sync = True
    mmu.gpte = GPTE_EPT if has_ad else GPTE_EPT_WITHOUT_AD
    reset_ept_rsvd(mmu, vcpu.reserved_gpa_bits, has_execonly, huge_page_level)
    update_permission_bitmask(mmu)
    update_pkru_mask(mmu)
    return True


def forget_roles(vcpu: Vcpu) -> int:
    """Make the next :func:`init_mmu` rebuild the MMU whatever the registers are, because CPUID changed; return 0.

    The rest of the root's role stays, since freeing the roots still asks it whether they are direct.
    """
    for mmu in (vcpu.root_mmu, vcpu.guest_mmu, vcpu.nested_mmu):
        mmu.root_role |= ROLE_INVALID
        mmu.cpu_role = mmu.cpu_role & ~EXT_VALID
    return 0


# Role of kvm's own tables. A and D bits are always used: both formats have them.
def _calc_root_role(vcpu: Vcpu, cpu_role: int) -> int:
    if vcpu.vm.tdp_enabled:
        return calc_tdp_root_role(cpu_role, vcpu.vm.tdp_root_level, False)
    return calc_shadow_root_role(cpu_role)


# Ops follow from the roles; only the shadow pages of a guest with paging can get out of sync with its tables.
def _choose_ops(vcpu: Vcpu, mmu: Mmu) -> int:
    if vcpu.vm.tdp_enabled:
        mmu.fault_op = FAULT_OP_TDP
    elif cpu_role_paging(mmu.cpu_role):
        mmu.fault_op = FAULT_OP_PAGING
    else:
        mmu.fault_op = FAULT_OP_NONPAGING
    mmu.can_sync = mmu.fault_op == FAULT_OP_PAGING
    return 0


def choose_gpte(cpu_role: int) -> GpteFormat:
    """The layout of the guest's entries in the paging mode of ``cpu_role``."""
    if cpu_role_has_4_byte_gpte(cpu_role):
        return GPTE_2_LEVEL
    return GPTE_PAE if cpu_role_level(cpu_role) == PT32E_ROOT_LEVEL else GPTE_64


def guest_rules(vcpu: Vcpu, cpu_role: int) -> EntryRules:
    """What decides the reserved bits of the guest's own tables: its mode and its CPUID."""
    rules = EntryRules(cpu_role_level(cpu_role), vcpu.reserved_gpa_bits)
    rules.nx = cpu_role_efer_nx(cpu_role)
    rules.gbpages = vcpu.has_gbpages
    rules.pse = cpu_role_pse(cpu_role)
    rules.amd_compatible = vcpu.amd_compatible
    return rules


def shadow_rules(vcpu: Vcpu, root_role: int) -> EntryRules:
    """What decides the reserved bits of kvm's tables: the host's addresses; 1G as the guest has it, unless TDP."""
    rules = EntryRules(role_level(root_role), _reserved_hpa_bits(vcpu.vm.host_maxphyaddr))
    rules.nx = True
    rules.gbpages = vcpu.vm.tdp_enabled or vcpu.has_gbpages
    rules.amd_compatible = True
    return rules


# Address bits from maxphyaddr to 63.
def _reserved_hpa_bits(maxphyaddr: int) -> int:
    bits = 0
    for bit in range(maxphyaddr, _U64_BITS):
        bits |= ONE << bit
    return bits
