# SPDX-License-Identifier: GPL-2.0-only
"""Registers that KVM_SET_SREGS accepts (``kvm_is_valid_sregs``), with the rule that others break in words.

What an instruction may load is in ``sregs``: it has rules of its own about changes, and answers ``#GP``. CS.L is not
modelled: it counts as clear where that is asked for.
"""

from __future__ import annotations

from ..hw.bits import (
    CR0_CD,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR4_DEFINED,
    CR4_PAE,
    CR4_PKE,
    EFER_DEFINED,
    EFER_LMA,
    EFER_LME,
)
from .cpuid import CR4_FEATURES, EFER_FEATURES
from .vcpu import Vcpu


def broken_rule(vcpu: Vcpu, cr0: int, cr3: int, cr4: int, efer: int) -> str:
    """The first rule that the registers break for ``vcpu``, with the value and what to do; empty: they are accepted.

    Reserved bits of CR0 below bit 32 are accepted.
    """
    return _broken_by_mode(vcpu, cr0, cr3, cr4, efer) or _broken_by_bits(vcpu, cr0, cr4, efer)


# Long mode is all of LME, LMA, PG and PAE, or without PG (or LME) no LMA.
def _broken_by_mode(vcpu: Vcpu, cr0: int, cr3: int, cr4: int, efer: int) -> str:
    if not (efer & EFER_LME and cr0 & CR0_PG):
        if efer & EFER_LMA:
            return f"efer {efer:#x}: LMA (0x400) needs LME (0x100) and CR0.PG (0x80000000); set both, or clear LMA"
        return ""
    if not cr4 & CR4_PAE:
        return f"cr4 {cr4:#x}: paging with EFER.LME needs PAE (0x20); set it, or clear LME (0x100)"
    if not efer & EFER_LMA:
        return f"efer {efer:#x}: paging with LME needs LMA (0x400); set it, or clear LME (0x100)"
    if cr3 & vcpu.reserved_gpa_bits:
        return f"cr3 {cr3:#x}: this vCPU's physical addresses have {vcpu.maxphyaddr} bits; clear those above"
    return ""


def _broken_by_bits(vcpu: Vcpu, cr0: int, cr4: int, efer: int) -> str:
    if cr4 & ~CR4_DEFINED:
        return f"cr4 {cr4:#x}: bits {cr4 & ~CR4_DEFINED:#x} are reserved or not in the guest's CPUID; clear them"
    if cr4 & vcpu.cr4_guest_rsvd_bits:
        return f"cr4 {_lacking(cr4, vcpu.cr4_guest_rsvd_bits, CR4_FEATURES)}"
    if cr4 & CR4_PKE and not vcpu.vm.tdp_enabled:
        return f"cr4 {cr4:#x}: protection keys need nested paging; clear PKE (0x400000), or use Params(npt=True)"
    if cr0 >> 32:
        return f"cr0 {cr0:#x}: bits 63 to 32 are reserved; clear them"
    if cr0 & CR0_NW and not cr0 & CR0_CD:
        return f"cr0 {cr0:#x}: NW (0x20000000) needs CD (0x40000000); set both, or clear NW"
    if cr0 & CR0_PG and not cr0 & CR0_PE:
        return f"cr0 {cr0:#x}: PG (0x80000000) needs PE (1); set both, or clear PG"
    if efer & ~EFER_DEFINED:
        return f"efer {efer:#x}: bits {efer & ~EFER_DEFINED:#x} are reserved or not in the guest's CPUID; clear them"
    if efer & vcpu.efer_guest_rsvd_bits:
        return f"efer {_lacking(efer, vcpu.efer_guest_rsvd_bits, EFER_FEATURES)}"
    return ""


def _lacking(value: int, missing: int, features: dict[str, int]) -> str:
    names = " and no ".join(name.upper() for name, mask in features.items() if value & missing & mask)
    return (
        f"{value:#x}: the guest's CPUID has no {names}; clear {value & missing:#x}, or give the vCPU other CpuFeatures"
    )
