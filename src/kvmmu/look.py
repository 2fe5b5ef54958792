# SPDX-License-Identifier: GPL-2.0-only
"""What there is to see of a VM's MMU: entries on a way, shadow pages, counters, and one hash of it all. Only reads."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from .addr import Gpa, Gva, Hpa
from .kvm.bits import INVALID_GPA
from .kvm.mmu import shadowwalk, walker
from .kvm.mmu.page import ShadowPage
from .kvm.mmu.spte import describe_spte
from .kvm.mmu.tdproots import all_tables
from .kvm.mode import vcpu_load, vcpu_put
from .kvm.vcpu import Vcpu
from .kvm.vm import Vm
from .page_types import PAGE_SIZE


@dataclass(frozen=True, slots=True)
class SpteElement:
    """One entry of kvm's tables on the way to an address: the ``spte`` of ``level``, which lies at ``hpa``."""

    level: int
    hpa: Hpa
    spte: int
    text: str

    def __repr__(self) -> str:
        return f"<SpteElement level {self.level} at {self.hpa:#x}: {self.spte:#x} {self.text}>"


def translate(vcpu: Vcpu, gva: Gva | int) -> Gpa | None:
    """The gpa that the guest's tables give ``gva`` for a supervisor's read, or None; sets A bits as kvm's walks do."""
    vcpu_load(vcpu)
    try:
        gpa = walker.gva_to_gpa(vcpu, vcpu.walk_mmu, Gva(gva), 0)
    finally:
        vcpu_put(vcpu)
    return None if gpa == INVALID_GPA else gpa


def walk(vcpu: Vcpu, address: Gva | Gpa | int) -> list[SpteElement]:
    """Kvm's own entries on the way to ``address``, top first, down to a leaf or one that is not present."""
    elements = []
    vm = vcpu.vm
    step = shadowwalk.walk_start(vcpu, vcpu.mmu.root_hpa, address)
    while step:
        sptep = shadowwalk.walk_sptep(step, address)
        level = shadowwalk.walk_level(step)
        spte = vm.memory.read_once(sptep)
        elements.append(SpteElement(level, sptep, spte, describe_spte(spte, vm.fmt, level)))
        step = shadowwalk.walk_next(step, spte)
    return elements


def shadow_pages(vm: Vm) -> list[ShadowPage]:
    """Every table of kvm's: active shadow pages, newest first, then those of the TDP MMU, each after what links it."""
    pages = []
    sp = vm.active_mmu_pages.link_next
    while sp is not None and sp is not vm.active_mmu_pages:
        pages.append(sp)
        sp = sp.link_next
    return pages + all_tables(vm)


def counters(vm: Vm) -> dict[str, int]:
    """Every ``kvm_stat`` counter by its name: the VM's, and the sum over its vCPUs."""
    out = dict(vm.stat.as_dict())
    for vcpu in vm.vcpus:
        for name, value in vcpu.stat.as_dict().items():
            out[name] = out.get(name, 0) + value
    return out


def digest(vm: Vm) -> str:
    """A stable hash of all MMU state: pages, sptes, translations, slots, registers, counters."""
    out = hashlib.sha256()
    for sp in shadow_pages(vm):
        fields = (sp.gfn, sp.role, sp.spt, sp.unsync, sp.unsync_children, sp.root_count, sp.parent_ptes)
        out.update(repr((sp.ptep, sp.nx_huge_page_disallowed)).encode())
        out.update(repr(fields).encode())
        out.update(vm.memory.read(sp.spt, PAGE_SIZE))
        if sp.shadowed_translation:
            out.update(vm.memory.read(sp.shadowed_translation, PAGE_SIZE))
    for vcpu in vm.vcpus:
        state = (vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer, vcpu.mmu.root_hpa, vcpu.mmu.root_role, vcpu.requests)
        out.update(repr(state).encode())
    for slots in (vm.slots_of(0), vm.slots_of(1)):
        out.update(repr((slots.generation, [repr(slot) for slot in slots.slots])).encode())
    out.update(repr(sorted(counters(vm).items())).encode())
    return out.hexdigest()
