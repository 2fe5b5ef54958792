# SPDX-License-Identifier: GPL-2.0-only
"""Walking kvm's own tables from a root down, whatever the root is.

A step is one word: the table's location with the level of its entries in the low bits; 0 ends the walk. Start with
``walk_start()``; the entry of ``addr`` is at ``walk_sptep(step, addr)``; go down with ``walk_next(step, spte)``.
Reference: "Roots, CR3, PCID, invalidation instructions", walk start.
"""

from __future__ import annotations

from ...addr import Hpa, pfn_to_hpa
from ...page_types import INVALID_PAGE, NOTHING
from ..mode import begin_reading, end_reading
from ..vcpu import Vcpu
from ..vm import Vm
from .bits import SPTE_BASE_ADDR_MASK
from .pages import clear_flood_count, sptep_to_sp
from .role import role_direct, role_level
from .spte import is_last, is_shadow_present

_LEVEL_MASK = 7
_INDEX_MASK = 0xFF8


def is_dummy_root(vm: Vm, root: Hpa) -> bool:
    """Whether ``root`` is the zero page, which stands for a guest CR3 that lies in no slot."""
    return root == pfn_to_hpa(vm.frames.zero_pfn)


def walk_start(vcpu: Vcpu, root: Hpa, addr: int) -> int:
    """First step of the walk of ``addr`` from ``root``; 0 for no root, the dummy root, and an absent PAE entry."""
    mmu = vcpu.mmu
    if root == INVALID_PAGE or is_dummy_root(vcpu.vm, root):
        return 0
    level = role_level(mmu.root_role)
    if level == 3:
        entry = vcpu.vm.memory.read_once(mmu.pae_root + (((addr >> 30) & 3) << 3))
        if entry & SPTE_BASE_ADDR_MASK == 0:
            return 0
        return (entry & SPTE_BASE_ADDR_MASK) | 2
    return root | level


def walk_level(step: int) -> int:
    """Level of the entries of the table in hand; 0: the walk has ended."""
    return step & _LEVEL_MASK


def walk_sptep(step: int, addr: int) -> Hpa:
    """Location of the entry of ``addr`` in the table in hand."""
    index = addr >> (9 + 9 * ((step & _LEVEL_MASK) - 1))
    return (step & SPTE_BASE_ADDR_MASK) + (index & _INDEX_MASK)  # type: ignore[return-value]  # the step is a word, half of it an hpa


def walk_next(step: int, spte: int) -> int:
    """The step below ``spte``, the entry of the table in hand; 0 if there is none."""
    if not is_shadow_present(spte) or is_last(spte, step & _LEVEL_MASK):
        return 0
    return (spte & SPTE_BASE_ADDR_MASK) | ((step & _LEVEL_MASK) - 1)


def begin_lockless_walk(vcpu: Vcpu) -> int:
    """From here to :func:`end_lockless_walk` no table that can be reached is freed; takes no lock.

    A remote flush, which comes before every freeing of a shadow page, waits for the vCPU's mode; tables of the TDP MMU
    are freed after the readers of RCU (``walk_shadow_page_lockless_begin``).
    """
    if is_tdp_mmu_active(vcpu):
        return vcpu.vm.rcu.read_lock()
    return begin_reading(vcpu)


def end_lockless_walk(vcpu: Vcpu) -> int:
    """The walk is over, also where it raises: nothing that it found may be used any more."""
    if is_tdp_mmu_active(vcpu):
        return vcpu.vm.rcu.read_unlock()
    return end_reading(vcpu)


def is_tdp_mmu_active(vcpu: Vcpu) -> bool:
    """Whether the tables that ``vcpu`` uses now are the TDP MMU's."""
    return vcpu.vm.policy.tdp_mmu and role_direct(vcpu.mmu.root_role)


def find_last_sptep(vcpu: Vcpu, addr: int) -> Hpa:
    """Location of the last entry on the way to ``addr``, present or not; 0 if there is no walk.

    Takes no lock: the caller is inside a lockless walk as long as it uses the result.
    """
    sptep: Hpa = NOTHING
    step = walk_start(vcpu, vcpu.mmu.root_hpa, addr)
    while step:
        sptep = walk_sptep(step, addr)
        step = walk_next(step, vcpu.vm.memory.read_once(sptep))
    return sptep


def clear_flood_counts(vcpu: Vcpu, addr: int) -> int:
    """The guest uses these tables: what was written to them so far is no flood. Takes no lock."""
    begin_lockless_walk(vcpu)
    try:
        step = walk_start(vcpu, vcpu.mmu.root_hpa, addr)
        while step:
            sptep = walk_sptep(step, addr)
            clear_flood_count(vcpu.vm, sptep_to_sp(vcpu.vm, sptep))
            step = walk_next(step, vcpu.vm.memory.read_once(sptep))
    finally:
        end_lockless_walk(vcpu)
    return 0
