# SPDX-License-Identifier: GPL-2.0-only
"""What kvm remembers of MMIO: sptes that name the gfn and die by generation, and one record per vCPU.

The generation is that of the memslots of the vCPU's own address space: a slot that comes or goes makes every MMIO spte
and record of the past useless at once, without zapping any. The record's gva half also dies with the guest's flushes.
Reference: "MMIO".
"""

from __future__ import annotations

from ...addr import Gfn, Gpa, Gva, Hpa, gpa_to_gfn
from ...page_types import NOTHING, PAGE_MASK
from ..bits import KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS
from ..vcpu import Vcpu
from .bits import MMIO_SPTE_GEN_MASK
from .change import set_spte
from .mmutrace import trace_mark_mmio_spte
from .spte import make_mmio


def generation(vcpu: Vcpu) -> int:
    """The memslot generation of the vCPU's address space, in-progress flag (bit 63) included."""
    return vcpu.memslots().read_generation(vcpu.gate)


def mark_mmio_spte(vcpu: Vcpu, sptep: Hpa, gfn: Gfn, access: int) -> int:
    """Write an MMIO spte over a nonpresent entry or another MMIO spte."""
    vm = vcpu.vm
    spte = make_mmio(vm.fmt, gfn, access, generation(vcpu) & MMIO_SPTE_GEN_MASK)
    if vm.trace.on:
        trace_mark_mmio_spte(vm.trace, vm.fmt, sptep, spte)
    return set_spte(vm, sptep, spte)


def cache_record(vcpu: Vcpu, gva: Gva, gfn: Gfn, access: int) -> int:
    """Remember that the page of ``gva`` (0: no gva, a direct MMU) is MMIO at ``gfn`` with these rights.

    Not written while a memslot update is in progress: the number it would carry is not final.
    """
    gen = generation(vcpu)
    if gen & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS:
        return 0
    vcpu.mmio_gva = gva & PAGE_MASK
    vcpu.mmio_access = access
    vcpu.mmio_gfn = gfn
    vcpu.mmio_gen = gen
    return 0


def match_gva(vcpu: Vcpu, gva: Gva) -> bool:
    """Whether the record holds for ``gva``."""
    return vcpu.mmio_gva != 0 and vcpu.mmio_gva == gva & PAGE_MASK and vcpu.mmio_gen == generation(vcpu)


def match_gpa(vcpu: Vcpu, gpa: Gpa) -> bool:
    """Whether the record holds for ``gpa``; a gfn of 0 never does."""
    return vcpu.mmio_gfn != 0 and vcpu.mmio_gfn == gpa_to_gfn(gpa) and vcpu.mmio_gen == generation(vcpu)


def clear_gva(vcpu: Vcpu, gva: Gva) -> int:
    """Forget the gva half if it names the page of ``gva``; the gfn half stays."""
    if vcpu.mmio_gva == gva & PAGE_MASK:
        vcpu.mmio_gva = NOTHING
    return 0


def clear_any_gva(vcpu: Vcpu) -> int:
    """Forget the gva half."""
    vcpu.mmio_gva = NOTHING
    return 0
