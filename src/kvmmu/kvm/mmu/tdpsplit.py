# SPDX-License-Identifier: GPL-2.0-only
"""Splitting a huge page of the TDP MMU: a table of smaller pages with the same rights takes the place of its spte.

Done by a fault that needs a smaller page there, and eagerly, for a whole range, when dirty logging begins. Nothing is
flushed: old and new translations are the same. Reference: "TDP MMU", split; "Dirty logging", eager splitting.
"""

from __future__ import annotations

from errno import EBUSY, ENOMEM

from ...addr import Gfn, pages_per_level
from ...hw.bits import PT_PAGE_SIZE
from ...page_types import ENTRIES, LEVEL_BITS, PAGE_SHIFT
from ..memslots import Memslot
from ..vm import Vm
from .bits import ACC_EXEC
from .change import count_pages
from .mmutrace import trace_split_huge_page
from .page import ShadowPage
from .role import role_access, role_level
from .spte import (
    SpteFormat,
    is_access_tracked,
    is_large,
    is_shadow_present,
    mark_for_access_track,
    restore_access_track,
)
from .tdpchange import alloc_table, free_table, init_child, link_table
from .tdpiter import TdpIter, make_iter, yield_walk
from .tdproots import drop_root, next_root


def make_executable(fmt: SpteFormat, spte: int) -> int:
    """The leaf ``spte`` with fetches allowed, access-tracked if it was."""
    tracked = is_access_tracked(fmt, spte)
    if tracked:
        spte = restore_access_track(fmt, spte)
    spte = (spte & ~fmt.nx_mask) | fmt.x_mask
    return mark_for_access_track(fmt, spte) if tracked else spte


def split_spte(vm: Vm, huge_spte: int, role: int, index: int) -> int:
    """Entry ``index`` of the table of ``role`` that replaces ``huge_spte``."""
    spte = huge_spte | ((index << (LEVEL_BITS * (role_level(role) - 1))) << PAGE_SHIFT)
    if role_level(role) > 1:
        return spte
    spte &= ~PT_PAGE_SIZE
    # The mitigation is for huge pages alone.
    if vm.policy.nx_huge_pages and role_access(role) & ACC_EXEC:
        spte = make_executable(vm.fmt, spte)
    return spte


def fill_split(vm: Vm, sp: ShadowPage, huge_spte: int) -> int:
    """Make the entries of ``sp``, which nobody else can see yet, map what ``huge_spte`` maps."""
    # The first entry has all that they have in common; each next one is a page further.
    spte = split_spte(vm, huge_spte, sp.role, 0)
    step = pages_per_level(role_level(sp.role)) << PAGE_SHIFT
    sptep = sp.spt
    for _ in range(ENTRIES):
        vm.memory.write_once(sptep, spte)
        sptep += 8
        spte += step
    return 0


def split_huge_page(vm: Vm, it: TdpIter, sp: ShadowPage) -> bool:
    """Replace the huge leaf in hand by the new table ``sp``, initialised for it; ``mmu_lock`` in either mode.

    False: others changed the entry meanwhile (lock held shared), ``it.old_spte`` is what it is now.
    """
    huge_spte = it.old_spte
    level = it.level
    fill_split(vm, sp, huge_spte)
    ok = link_table(vm, it, sp)
    if ok:
        # The huge page itself is no longer counted, since its entry links a table.
        count_pages(vm, level - 1, ENTRIES)
    if vm.trace.on:
        trace_split_huge_page(vm.trace, it.gfn, huge_spte, level, 0 if ok else -EBUSY)
    return ok


def split_root(vm: Vm, root: ShadowPage, start_gfn: Gfn, end_gfn: Gfn, target_level: int) -> int:
    """Split every huge page below ``root`` that is larger than ``target_level``; 0, or -ENOMEM: no table was to be had.

    ``mmu_lock`` held, in either mode; dropped and taken again for each allocation, which may wait.
    """
    it = make_iter()
    sp: ShadowPage | None = None
    ret = 0
    vm.rcu.read_lock()
    it.start(vm.memory, root, target_level + 1, start_gfn)
    while it.valid and it.gfn < end_gfn:
        if yield_walk(vm, it, False) or not is_shadow_present(it.old_spte) or not is_large(it.old_spte):
            it.next(vm.memory)
        elif sp is None:
            sp = alloc_unlocked(vm, it)
            if sp is None:
                ret = -ENOMEM
                break
            it.next(vm.memory)
        else:
            init_child(vm, sp, it)
            if split_huge_page(vm, it, sp):
                sp = None
                it.next(vm.memory)
    vm.rcu.read_unlock()
    # Left over when somebody else was quicker with the last one.
    if sp is not None:
        free_table(vm, sp)
    return ret


def alloc_unlocked(vm: Vm, it: TdpIter) -> ShadowPage | None:
    """A table, allocated while ``mmu_lock`` is dropped: ``it`` has yielded. None, with its event: there is no frame."""
    vm.rcu.read_unlock()
    exclusive = vm.mmu_lock.is_exclusive()
    if exclusive:
        vm.mmu_lock.write_unlock()
    else:
        vm.mmu_lock.read_unlock()
    sp = alloc_table(vm) if vm.frames.nr_free else None
    if exclusive:
        vm.mmu_lock.write_lock()
    else:
        vm.mmu_lock.read_lock()
    vm.rcu.read_lock()
    it.yielded = True
    if sp is None and vm.trace.on:
        trace_split_huge_page(vm.trace, it.gfn, it.old_spte, it.level, -ENOMEM)
    return sp


def split_leafs(vm: Vm, slot: Memslot, start_gfn: Gfn, end_gfn: Gfn, target_level: int) -> int:
    """Split the huge pages that map ``[start_gfn, end_gfn)`` of ``slot`` to ``target_level``, as far as memory goes.

    ``mmu_lock`` held, in either mode, and yielded.
    """
    vm.mmu_lock.assert_held()
    root = next_root(vm, None, slot.as_id, True)
    while root is not None:
        if split_root(vm, root, start_gfn, end_gfn, target_level):
            return drop_root(vm, root)
        root = next_root(vm, root, slot.as_id, True)
    return 0
