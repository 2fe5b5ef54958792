# SPDX-License-Identifier: GPL-2.0-only
"""The hardware side of a vCPU on AMD: what the logical CPU runs with, and its TLB flushes.

Under shadow paging the CPU never sees the guest's control registers as they are: paging and CR0.WP are always on,
PAE and NX too, and CR3 is kvm's root. Under nested paging it runs with the guest's own and nCR3 is kvm's root. Every
flush has the scope of the vCPU's ASID. Reference: "TLB flush rules", hardware scope.
"""

from __future__ import annotations

from typing import Any

from ..addr import Gfn, Gva
from ..errors import KvmBug
from ..hw.bits import (
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR3_PCID,
    CR4_LA57,
    CR4_PAE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PKE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_LME,
    EFER_NX,
)
from .bits import EOPNOTSUPP
from .mmu.role import role_level
from .vcpu import Vcpu
from .vendor import Vendor
from .vm import Vm

_CR4_SMEP_SMAP = CR4_SMEP | CR4_SMAP


def load_shadow(vcpu: Vcpu) -> int:
    """Run the guest on kvm's root: the mode is that of the shadow tables, SMEP and SMAP are the guest's if it pages."""
    mmu = vcpu.mmu
    cr0 = vcpu.cr0 | CR0_PG | CR0_WP | CR0_PE
    # The guest's PCIDs tag its translations: a MOV to CR3 that keeps them must not meet those of another CR3.
    cr4 = (vcpu.cr4 | CR4_PAE) & ~(CR4_PKE | CR4_PGE | CR4_LA57)
    if vcpu.cr0 & CR0_PG == 0:
        cr4 &= ~_CR4_SMEP_SMAP
    efer = vcpu.efer | EFER_NX
    if role_level(mmu.root_role) >= 4:
        efer |= EFER_LMA | EFER_LME
        if role_level(mmu.root_role) == 5:
            cr4 |= CR4_LA57
    else:
        efer &= ~(EFER_LMA | EFER_LME)
    cr3 = mmu.root_hpa
    if vcpu.cr4 & CR4_PCIDE:
        cr3 |= vcpu.cr3 & CR3_PCID
    if vcpu.runner.load_guest(cr0, cr3, cr4, efer):
        raise KvmBug(f"the CPU refuses the shadow root {mmu.root_hpa:#x}")
    return 0


class Svm(Vendor):
    """AMD-V: nested paging or kvm's own root, one ASID for each vCPU."""

    __slots__ = ()

    def load_mmu_pgd(self, vcpu: Any) -> int:
        """Make the CPU use the current root: as CR3 under shadow paging, as nCR3 under nested paging."""
        target: Vcpu = vcpu
        if not target.vm.tdp_enabled:
            return load_shadow(target)
        target.runner.set_nested(target.mmu.root_hpa, role_level(target.mmu.root_role))
        return target.runner.load_guest(target.cr0, target.cr3, target.cr4, target.efer)

    def flush_tlb_current(self, vcpu: Any) -> int:
        """Flush all translations of this vCPU's ASID."""
        target: Vcpu = vcpu
        return target.runner.flush_asid()

    def flush_tlb_gva(self, vcpu: Any, gva: Gva) -> int:
        """Flush the translations of ``gva`` under every PCID of this vCPU's ASID (INVLPGA names an ASID only)."""
        target: Vcpu = vcpu
        return target.runner.flush_gva(gva)

    def flush_remote_tlbs_range(self, vm: Any, gfn: Gfn, nr_pages: int) -> int:
        """Plain hardware has no such flush. A hypervisor below has one, of nested translations (``range_flush``)."""
        target: Vm = vm
        if not (target.policy.range_flush and target.tdp_enabled):
            return EOPNOTSUPP
        for vcpu in target.vcpus:
            vcpu.runner.flush_gfns(gfn, nr_pages)
        return 0
