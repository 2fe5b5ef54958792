# SPDX-License-Identifier: GPL-2.0-only
"""The legacy direct MMU: gfn to pfn without a guest table between, for unpaged guests and for nested paging.

``mmu_lock`` exclusive. Reference: "Page-fault pipeline", direct_map.
"""

from __future__ import annotations

from ..vcpu import Vcpu
from .bits import ACC_ALL
from .fault import PageFault
from .hugepage import adjust
from .leaf import Leaf, prefetch_direct
from .mmutrace import trace_spte_requested
from .pages import sptep_to_sp
from .role import role_ad_disabled, role_level
from .shadow import fetch_direct_tables, install
from .shadowwalk import walk_sptep, walk_start
from .verdict import RET_PF_RETRY, RET_PF_SPURIOUS


def direct_map(vcpu: Vcpu, fault: PageFault, leaf: Leaf) -> int:
    """Map fault.gfn at the largest allowed level, with tables linked as needed. Returns a verdict."""
    vm = vcpu.vm
    adjust(vcpu, fault)
    if vm.trace.on:
        trace_spte_requested(vm.trace, fault.gfn, fault.pfn, fault.goal_level)
    fault.validate_direct = False
    step = walk_start(vcpu, vcpu.mmu.root_hpa, fault.addr)
    if step == 0:
        return RET_PF_RETRY
    step = fetch_direct_tables(vcpu, fault, ACC_ALL, step)
    leaf.access = ACC_ALL
    verdict = install(vcpu, fault, leaf, step)
    if verdict != RET_PF_SPURIOUS:
        sptep = walk_sptep(step, fault.addr)
        sp = sptep_to_sp(vm, sptep)
        # Without A bits nobody could tell a prefetched page from a used one.
        if not role_ad_disabled(sp.role) and role_level(sp.role) == 1 and not vm.invalidation.is_in_progress():
            prefetch_direct(vcpu, sp, sptep)
    return verdict
