# SPDX-License-Identifier: GPL-2.0-only
"""Going out of sync: a level-1 guest table may be written without an exit until the guest flushes.

``try_to_unsync()`` grants it; every table above an unsync page then carries a bit for the way down and a count, so that
``unsync_walk()`` finds the unsync pages below a root without looking elsewhere. Making them agree again is ``resync``.
Reference: "Unsync / sync".
"""

from __future__ import annotations

import errno
from errno import EEXIST, EPERM

from ...addr import Gfn, Hpa
from ...errors import KvmBug
from ..memslots import Memslot
from ..vm import Vm
from .bits import KVM_PAGE_ARRAY_NR
from .mmutrace import trace_sync_page, trace_unsync_page
from .page import ShadowPage
from .pages import first_gfn_sp, next_gfn_sp, sptep_index, sptep_to_sp
from .rmap import pte_list_first, pte_list_next, pte_list_sptep
from .role import role_level
from .spte import is_large, is_shadow_present, spte_to_child
from .track import is_write_tracked

#: What a walk returns when its array is full: not 0, so that the caller loops.
_WALK_FULL = -errno.ENOSPC


class UnsyncWalk:
    """What one walk below a table found: ``for_each_sp`` is ``i = first(); i < len(pages); i = next(i)``."""

    __slots__ = ("indices", "pages", "parent_indices", "parents")

    def __init__(self) -> None:
        self.pages: list[ShadowPage] = []
        self.indices: list[int] = []
        self.parents: list[ShadowPage | None] = [None] * 6
        self.parent_indices = [0] * 6

    def add(self, sp: ShadowPage, index: int) -> bool:
        """Enter sp once, if it is itself unsync; returns whether the array is full."""
        if sp.unsync:
            for known in self.pages:
                if known is sp:
                    return False
        self.pages.append(sp)
        self.indices.append(index)
        return len(self.pages) == KVM_PAGE_ARRAY_NR

    def next(self, i: int) -> int:
        """The next level-1 page after position i, with parents set up to it; len(pages) at the end."""
        i += 1
        while i < len(self.pages):
            sp = self.pages[i]
            level = role_level(sp.role)
            self.parent_indices[level - 1] = self.indices[i]
            if level == 1:
                break
            self.parents[level - 2] = sp
            i += 1
        return i

    def first(self) -> int:
        """The first level-1 page found, with parents set up to it; 0 when nothing was found."""
        if not self.pages:
            return 0
        sp = self.pages[0]
        level = role_level(sp.role)
        self.parents[level - 2] = sp
        self.parents[level - 1] = None
        return self.next(0)

    def clear_parents(self, vm: Vm) -> int:
        """The page in hand is in sync: its bit goes in the parent, and further up while a count drops to 0."""
        level = 0
        while True:
            sp = self.parents[level]
            if sp is None:
                return 0
            clear_unsync_child_bit(vm, sp, self.parent_indices[level])
            if sp.unsync_children:
                return 0
            level += 1


def clear_unsync_child_bit(vm: Vm, sp: ShadowPage, index: int) -> int:
    """Entry ``index`` of ``sp`` no longer leads to an unsync page."""
    if sp.unsync_children == 0:
        raise KvmBug(f"unsync children of {sp!r} would become negative")
    if vm.gate.armed:
        vm.gate.announce("write", sp, "unsync_children")
    sp.unsync_children -= 1
    sp.clear_unsync_child(index)
    return 0


def mark_unsync(vm: Vm, sptep: Hpa) -> int:
    """The spte at sptep leads to an unsync page: tell its table, and the tables above if that is news."""
    sp = sptep_to_sp(vm, sptep)
    if sp.is_unsync_child(sptep_index(sptep)):
        return 0
    sp.set_unsync_child(sptep_index(sptep))
    if vm.gate.armed:
        vm.gate.announce("write", sp, "unsync_children")
    sp.unsync_children += 1
    if sp.unsync_children > 1:
        return 0
    return mark_parents_unsync(vm, sp)


def mark_parents_unsync(vm: Vm, sp: ShadowPage) -> int:
    """Tell every table that links ``sp`` that it leads to an unsync page."""
    place = pte_list_first(sp.parent_ptes)
    while place:
        mark_unsync(vm, pte_list_sptep(vm, place))
        place = pte_list_next(vm, place)
    return 0


def is_unsync(vm: Vm, sp: ShadowPage) -> bool:
    """Whether ``sp`` may differ from its guest table."""
    if vm.gate.armed:
        vm.gate.announce("read", sp, "unsync")
    return sp.unsync


def leads_to_unsync(vm: Vm, sp: ShadowPage) -> bool:
    """Whether ``sp`` or a page below it is unsync; needs no lock, if the caller has ordered its own reads."""
    if is_unsync(vm, sp):
        return True
    if vm.gate.armed:
        vm.gate.announce("read", sp, "unsync_children")
    return sp.unsync_children != 0


def try_to_unsync(vm: Vm, slot: Memslot | None, gfn: Gfn, can_unsync: bool, prefetch: bool) -> int:
    """May a writable leaf map ``gfn`` of ``slot``? 0: yes, the level-1 pages that mirror it are unsync now.

    Else a negative errno: -EPERM, a table that must stay in sync; -EEXIST, only a prefetch. ``mmu_lock`` held.
    """
    vm.mmu_lock.assert_held()
    if is_write_tracked(vm, slot, gfn):
        return -EPERM
    locked = False
    sp = first_gfn_sp(vm, gfn)
    while sp is not None:
        # A page mirrors the gfn, and the caller wants none to go out of sync: no writable leaf, even if it is unsync
        # already.
        if not can_unsync:
            return -EPERM
        if not is_unsync(vm, sp):
            # Going out of sync has a price at the guest's next flush: not for an access that nobody has made.
            if prefetch:
                return -EEXIST
            if not locked:
                locked = True
                vm.mmu_unsync_pages_lock.lock()
            # Asked again under the lock: another vCPU's fault may have let it go meanwhile.
            if not is_unsync(vm, sp):
                unsync_page(vm, sp)
        sp = next_gfn_sp(vm, sp.hash_next, gfn)
    if locked:
        vm.mmu_unsync_pages_lock.unlock()
    # The page is seen unsync before the spte that lets the guest write its table.
    vm.gate.smp_wmb()
    return 0


def unsync_page(vm: Vm, sp: ShadowPage) -> int:
    """Let ``sp`` go out of sync; ``mmu_unsync_pages_lock`` held."""
    vm.mmu_unsync_pages_lock.assert_held()
    if role_level(sp.role) != 1:
        raise KvmBug(f"only level 1 may be unsync: {sp!r}")
    if vm.trace.on:
        trace_unsync_page(vm.trace, sp)
    vm.stat.mmu_unsync += 1
    if vm.gate.armed:
        vm.gate.announce("write", sp, "unsync")
    sp.unsync = True
    return mark_parents_unsync(vm, sp)


def unlink_unsync_page(vm: Vm, sp: ShadowPage) -> int:
    """``sp`` is about to agree with its guest table again."""
    if not sp.unsync:
        raise KvmBug(f"not unsync: {sp!r}")
    if vm.trace.on:
        trace_sync_page(vm.trace, sp)
    if vm.gate.armed:
        vm.gate.announce("write", sp, "unsync")
    sp.unsync = False
    vm.stat.mmu_unsync -= 1
    return 0


def unsync_walk(vm: Vm, sp: ShadowPage, walk: UnsyncWalk) -> int:
    """Collect pages on the way from sp to unsync ones. 0: none; else the number found or "full"."""
    walk.pages.clear()
    walk.indices.clear()
    if sp.unsync_children == 0:
        return 0
    walk.add(sp, -1)
    return unsync_walk_below(vm, sp, walk)


def unsync_walk_below(vm: Vm, sp: ShadowPage, walk: UnsyncWalk) -> int:
    """The walk of ``unsync_walk()`` below ``sp``, which is entered already; clears bits that lead nowhere."""
    nr = 0
    index = sp.next_unsync_child(0)
    while index < 512:
        spte = vm.memory.read_once(sp.spt + (index << 3))
        # Links go without telling the marks above: who zaps a child leaves the bit behind, and the walk that next comes
        # by clears it. A bit may so be set without cause, never clear with one.
        if not is_shadow_present(spte) or is_large(spte):
            clear_unsync_child_bit(vm, sp, index)
            index = sp.next_unsync_child(index + 1)
            continue
        child = sptep_to_sp(vm, spte_to_child(spte))
        # The tables on the way are collected too, in front of what is below: next() rebuilds the path from them.
        if child.unsync_children:
            if walk.add(child, index):
                return _WALK_FULL
            ret = unsync_walk_below(vm, child, walk)
            if ret < 0:
                return ret
            # The child thought that something below it was out of sync, and found that it all was gone.
            if ret == 0:
                clear_unsync_child_bit(vm, sp, index)
            nr += ret
        elif child.unsync:
            nr += 1
            if walk.add(child, index):
                return _WALK_FULL
        else:
            clear_unsync_child_bit(vm, sp, index)
        index = sp.next_unsync_child(index + 1)
    return nr
