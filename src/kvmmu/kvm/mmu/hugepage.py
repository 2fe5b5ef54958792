# SPDX-License-Identifier: GPL-2.0-only
"""How large a page may map a gfn: what the slot forbids, what the host has, what the NX mitigation leaves.

Reference: "Huge pages and the iTLB-multihit (NX) mitigation".
"""

from __future__ import annotations

from ...addr import Gfn, pages_per_level
from ...errors import KvmBug
from ..memslots import Memslot, is_error_noslot_pfn
from ..vcpu import Vcpu
from ..vm import Vm
from .bits import KVM_MAX_HUGEPAGE_LEVEL
from .fault import PageFault
from .nxpage import is_disallowed
from .pages import sptep_to_sp
from .spte import is_large, is_shadow_present, spte_to_child
from .verdict import (
    LIMIT_CPU,
    LIMIT_DIRTY_LOG,
    LIMIT_GUEST_PAGE,
    LIMIT_MAPPING,
    LIMIT_NO_SLOT,
    LIMIT_NONE,
    LIMIT_NX,
    LIMIT_NX_TABLE,
)


def max_mapping_level(vm: Vm, slot: Memslot, gfn: Gfn, max_level: int) -> int:
    """Largest level, at most ``max_level``, at which ``gfn`` may be mapped now.

    Valid only under the notifier protocol: ``mmu_lock`` held and the fault not stale.
    """
    level = min(max_level, vm.policy.max_page_level)
    while level > 1 and slot.disallow_lpage[slot.offset[level] + slot.index(gfn, level)]:
        level -= 1
    if level == 1:
        return 1
    return min(level, vm.mm.mapping_level(slot.gfn_to_hva(gfn)))


def adjust(vcpu: Vcpu, fault: PageFault) -> int:
    """Choose the level of fault (req_level, goal_level) and round its pfn down accordingly."""
    slot = fault.slot
    fault.huge_page_disallowed = fault.exec and vcpu.vm.policy.nx_huge_pages
    if fault.max_level < KVM_MAX_HUGEPAGE_LEVEL and fault.limit == LIMIT_NONE:
        fault.limit = LIMIT_GUEST_PAGE
    if is_error_noslot_pfn(fault.pfn) or slot is None:
        fault.limit = LIMIT_NO_SLOT
        return 0
    if fault.max_level == 1:
        return 0
    if slot.is_dirty_logged():
        fault.limit = LIMIT_DIRTY_LOG
        return 0
    fault.req_level = max_mapping_level(vcpu.vm, slot, fault.gfn, fault.max_level)
    if fault.req_level < fault.max_level:
        fault.limit = LIMIT_CPU if fault.req_level == vcpu.vm.policy.max_page_level else LIMIT_MAPPING
    if fault.req_level == 1:
        return 0
    # The level that was asked for is noted all the same: it says what the mitigation alone forbids.
    if fault.huge_page_disallowed:
        fault.limit = LIMIT_NX
        return 0
    fault.goal_level = fault.req_level
    mask = pages_per_level(fault.goal_level) - 1
    if (fault.gfn ^ fault.pfn) & mask:
        raise KvmBug(f"gfn {fault.gfn:#x} and pfn {fault.pfn:#x} differ within a level {fault.goal_level} page")
    fault.pfn &= ~mask
    return 0


def disallowed_adjust(vm: Vm, fault: PageFault, spte: int, level: int) -> int:
    """Go a level below the goal, where ``spte`` at ``level`` links a table that the NX mitigation made.

    It may hold executable 4K pages, which a huge page, never executable, must not replace.
    """
    if level == 1 or level != fault.goal_level or not is_shadow_present(spte) or is_large(spte):
        return 0
    if is_disallowed(vm, sptep_to_sp(vm, spte_to_child(spte))):
        fault.pfn |= fault.gfn & (pages_per_level(level) - pages_per_level(level - 1))
        fault.goal_level = level - 1
        fault.limit = LIMIT_NX_TABLE
    return 0
