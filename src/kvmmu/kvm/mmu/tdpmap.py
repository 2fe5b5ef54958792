# SPDX-License-Identifier: GPL-2.0-only
"""The TDP MMU's part of a fault: from the root to the goal level with tables linked on the way, then the leaf.

``mmu_lock`` is held shared: other vCPUs do the same at the same time, so every entry changes by cmpxchg, and who loses
lets the guest try again. Reference: "TDP MMU", mapping fault.
"""

from __future__ import annotations

from ..bits import KVM_PFN_NOSLOT
from ..requests import flush_remote_tlbs_gfn
from ..vcpu import Vcpu
from ..vm import Vm
from .bits import ACC_ALL, MMIO_SPTE_GEN_MASK
from .fault import PageFault
from .hugepage import adjust, disallowed_adjust
from .leaf import Leaf, make_spte
from .mmio import generation
from .mmutrace import trace_mark_mmio_spte, trace_set_spte, trace_spte_requested
from .nxpage import is_disallowed, set_disallowed, track_possible
from .pages import sptep_to_sp
from .spte import is_frozen, is_large, is_last, is_shadow_present, make_mmio
from .tdpchange import alloc_table, clear_table, free_table, init_child, link_table, set_spte_atomic
from .tdpiter import TdpIter, make_iter
from .tdpsplit import split_huge_page
from .verdict import (
    CAUSE_MAP,
    CAUSE_PERMISSION,
    CAUSE_REMAP,
    CAUSE_UNSYNC,
    RET_PF_EMULATE,
    RET_PF_FIXED,
    RET_PF_RETRY,
    RET_PF_SPURIOUS,
    RET_PF_WRITE_PROTECTED,
)


def tdp_map(vcpu: Vcpu, fault: PageFault, leaf: Leaf) -> int:
    """Map fault.gfn at the largest allowed level, or note that it is MMIO; ``mmu_lock`` shared. Return a verdict."""
    vm = vcpu.vm
    vm.mmu_lock.assert_shared()
    adjust(vcpu, fault)
    if vm.trace.on:
        trace_spte_requested(vm.trace, fault.gfn, fault.pfn, fault.goal_level)
    it = make_iter()
    vm.rcu.read_lock()
    try:
        it.start(vm.memory, sptep_to_sp(vm, vcpu.mmu.root_hpa), 1, fault.gfn)
        if not walk_to_goal(vcpu, fault, it):
            return RET_PF_RETRY
        return install(vcpu, fault, leaf, it)
    finally:
        vm.rcu.read_unlock()


def walk_to_goal(vcpu: Vcpu, fault: PageFault, it: TdpIter) -> bool:
    """Lead ``it`` down to the entry of the goal level, linking what is missing; False: somebody else changes it."""
    vm = vcpu.vm
    nx_huge_pages = vm.policy.nx_huge_pages
    while it.valid and it.gfn <= fault.gfn:
        if nx_huge_pages:
            disallowed_adjust(vm, fault, it.old_spte, it.level)
        # Zapped at this moment: no use to build a table for it.
        if is_frozen(it.old_spte):
            return False
        if it.level == fault.goal_level:
            return True
        if not is_shadow_present(it.old_spte) or is_large(it.old_spte):
            if not add_table(vm, fault, it):
                return False
        it.next(vm.memory)
    return False


def add_table(vm: Vm, fault: PageFault, it: TdpIter) -> bool:
    """Link a table at the entry in hand, which is empty or a huge page to be split; False: others were quicker."""
    sp = alloc_table(vm)
    init_child(vm, sp, it)
    set_disallowed(vm, sp, fault.huge_page_disallowed)
    level = it.level
    if is_shadow_present(it.old_spte):
        fault.cause = CAUSE_REMAP
        linked = split_huge_page(vm, it, sp)
    else:
        clear_table(vm, sp)
        linked = link_table(vm, it, sp)
    if not linked:
        free_table(vm, sp)
        return False
    fault.nr_linked += 1
    if fault.huge_page_disallowed and fault.req_level >= level:
        vm.tdp_mmu_pages_lock.lock()
        # It may have been removed by now, and then it is nobody's any more.
        if is_disallowed(vm, sp):
            track_possible(vm, sp)
        vm.tdp_mmu_pages_lock.unlock()
    return True


def install(vcpu: Vcpu, fault: PageFault, leaf: Leaf, it: TdpIter) -> int:
    """Put the leaf, or an MMIO spte, at the entry in hand; a verdict, RETRY if others were quicker."""
    vm = vcpu.vm
    old = it.old_spte
    if fault.pfn == KVM_PFN_NOSLOT:
        return install_mmio(vcpu, fault, it)
    nr_unsync = vm.stat.mmu_unsync
    fill_leaf(fault, leaf, it)
    spte = make_spte(vcpu, sptep_to_sp(vm, it.sptep), leaf, old)
    note_cause(fault, old, it.level, vm.stat.mmu_unsync != nr_unsync)
    verdict = RET_PF_FIXED
    if spte == old:
        verdict = RET_PF_SPURIOUS
    elif not set_spte_atomic(vm, it, spte):
        return RET_PF_RETRY
    elif is_shadow_present(old) and not is_last(old, it.level):
        flush_remote_tlbs_gfn(vm, it.gfn, it.level)
    # The write in hand still cannot be done; SPURIOUS would let the guest try again forever.
    if leaf.wrprot and fault.write:
        verdict = RET_PF_WRITE_PROTECTED
    if vm.trace.on:
        trace_set_spte(vm.trace, vm.fmt, it.level, it.gfn, it.sptep, spte)
    return verdict


def install_mmio(vcpu: Vcpu, fault: PageFault, it: TdpIter) -> int:
    """Remember at the entry in hand that the gfn has no memory: EMULATE, or RETRY if others were quicker."""
    vm = vcpu.vm
    spte = make_mmio(vm.fmt, it.gfn, ACC_ALL, generation(vcpu) & MMIO_SPTE_GEN_MASK)
    fault.cause = CAUSE_MAP
    if spte != it.old_spte and not set_spte_atomic(vm, it, spte):
        return RET_PF_RETRY
    vcpu.stat.pf_mmio_spte_created += 1
    if vm.trace.on:
        trace_mark_mmio_spte(vm.trace, vm.fmt, it.sptep, spte)
    return RET_PF_EMULATE


def fill_leaf(fault: PageFault, leaf: Leaf, it: TdpIter) -> int:
    """Say in ``leaf`` what is to be mapped at the entry in hand."""
    leaf.slot = fault.slot
    leaf.gfn = it.gfn
    leaf.pfn = fault.pfn
    leaf.access = ACC_ALL
    leaf.host_writable = fault.map_writable
    leaf.prefetch = fault.prefetch
    leaf.write_fault = fault.write
    return 0


def note_cause(fault: PageFault, old_spte: int, level: int, unsynced: bool) -> int:
    """Note in ``fault`` what was found where its leaf goes, unless a split on the way says it already."""
    if unsynced:
        fault.cause = CAUSE_UNSYNC
    elif fault.cause == CAUSE_REMAP:
        return 0
    elif not is_shadow_present(old_spte):
        fault.cause = CAUSE_MAP
    elif is_last(old_spte, level):
        fault.cause = CAUSE_PERMISSION
    else:
        fault.cause = CAUSE_REMAP
    return 0
