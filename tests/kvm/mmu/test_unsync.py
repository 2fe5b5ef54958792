# SPDX-License-Identifier: GPL-2.0-only
"""Going out of sync: who may, what the tables above remember, and how a walk finds it again."""

from __future__ import annotations

import errno

import pytest

from kvm.mmu.machines import ACCESS_ALL, DIRECT, INVALID, SHADOW, held
from kvmmu import KvmBug, Params, World
from kvmmu.kvm.mmu import track, unsync, zap
from kvmmu.kvm.mmu.page import ShadowPage
from kvmmu.kvm.mmu.pages import alloc_page
from kvmmu.kvm.mmu.unsync import UnsyncWalk
from kvmmu.kvm.vm import Vm

LINK = SHADOW | 7


class Tree:
    """Shadow pages that a test links by hand; every gfn lies in the one slot."""

    def __init__(self) -> None:
        self.world = World(Params(npt=False), nr_frames=4096)
        self.world.add_slot(0, 0, 16 << 20)
        self.vm: Vm = self.world.vm
        self.next_gfn = 0x100

    def page(self, level: int, gfn: int | None = None, role: int = 0) -> ShadowPage:
        if gfn is None:
            self.next_gfn += 1
            gfn = self.next_gfn
        with held(self.vm):
            return alloc_page(self.vm, gfn, level | role | ACCESS_ALL)

    def link(self, parent: ShadowPage, index: int, child: ShadowPage, flags: int = LINK) -> None:
        sptep = parent.spt + 8 * index
        self.vm.memory.write_once(sptep, child.spt | flags)
        with held(self.vm):
            zap.add_parent_pte(self.vm, child, sptep)

    def unsync(self, sp: ShadowPage) -> None:
        lock = self.vm.mmu_unsync_pages_lock
        with held(self.vm):
            lock.lock()
            try:
                unsync.unsync_page(self.vm, sp)
            finally:
                lock.unlock()

    def chain(self) -> list[ShadowPage]:
        """Levels 4 to 1, linked at entries 4, 3, 2."""
        pages = [self.page(level) for level in (4, 3, 2, 1)]
        for parent, child, index in zip(pages, pages[1:], (4, 3, 2), strict=False):
            self.link(parent, index, child)
        return pages

    def walk(self, sp: ShadowPage) -> int:
        with held(self.vm):
            return unsync.unsync_walk(self.vm, sp, UnsyncWalk())

    def zap_below(self, sp: ShadowPage) -> tuple[int, list[ShadowPage]]:
        """Zap the unsync pages below ``sp`` as its own zap would: how many went, and which, in order."""
        invalid_list: list[ShadowPage] = []
        with held(self.vm):
            return zap.zap_unsync_children(self.vm, sp, invalid_list), invalid_list


def bits(sp: ShadowPage) -> list[int]:
    return [index for index in range(512) if sp.is_unsync_child(index)]


# Marking.


def test_every_table_above_has_a_bit_and_a_count() -> None:
    tree = Tree()
    pages = tree.chain()
    tree.unsync(pages[3])
    assert [(bits(sp), sp.unsync_children, sp.unsync) for sp in pages] == [
        ([4], 1, False),
        ([3], 1, False),
        ([2], 1, False),
        ([], 0, True),
    ]
    assert tree.vm.stat.mmu_unsync == 1


def test_a_second_child_is_no_news_further_up() -> None:
    tree = Tree()
    pages = tree.chain()
    other = tree.page(1)
    tree.link(pages[2], 511, other)
    tree.unsync(pages[3])
    tree.unsync(other)
    assert [(bits(sp), sp.unsync_children) for sp in pages[:3]] == [([4], 1), ([3], 1), ([2, 511], 2)]


def test_a_bit_that_is_set_is_not_counted_twice() -> None:
    tree = Tree()
    pages = tree.chain()
    tree.unsync(pages[3])
    with held(tree.vm):
        unsync.mark_unsync(tree.vm, pages[2].spt + 16)
    assert [sp.unsync_children for sp in pages[:3]] == [1, 1, 1]


def test_every_parent_is_told() -> None:
    tree = Tree()
    pages = tree.chain()
    others = [tree.page(2) for _ in range(20)]
    for number, parent in enumerate(others):
        tree.link(parent, number, pages[3])
    tree.unsync(pages[3])
    assert [bits(sp) for sp in others] == [[number] for number in range(20)]


@pytest.mark.parametrize("level", [2, 3, 4])
def test_only_level_1_may_be_unsync(level: int) -> None:
    tree = Tree()
    sp = tree.page(level)
    with pytest.raises(KvmBug, match="only level 1 may be unsync"):
        tree.unsync(sp)
    assert not sp.unsync


def test_a_page_goes_out_of_sync_under_its_lock_only() -> None:
    tree = Tree()
    sp = tree.chain()[3]
    with held(tree.vm), pytest.raises(KvmBug, match="mmu_unsync_pages_lock must be held"):
        unsync.unsync_page(tree.vm, sp)
    assert not sp.unsync


def test_a_page_comes_back_in_sync_once() -> None:
    tree = Tree()
    sp = tree.chain()[3]
    tree.unsync(sp)
    with held(tree.vm):
        unsync.unlink_unsync_page(tree.vm, sp)
        assert (sp.unsync, tree.vm.stat.mmu_unsync) == (False, 0)
        with pytest.raises(KvmBug, match="not unsync"):
            unsync.unlink_unsync_page(tree.vm, sp)


def test_a_count_below_zero_is_a_bug() -> None:
    tree = Tree()
    sp = tree.page(2)
    with held(tree.vm), pytest.raises(KvmBug, match="would become negative"):
        unsync.clear_unsync_child_bit(tree.vm, sp, 5)


# May it?


def try_it(tree: Tree, gfn: int, *, can_unsync: bool = True, prefetch: bool = False) -> int:
    slot = tree.vm.gfn_to_memslot(gfn, 0)
    assert slot is not None
    with held(tree.vm):
        return unsync.try_to_unsync(tree.vm, slot, gfn, can_unsync, prefetch)


def test_whether_it_may_is_asked_under_mmu_lock_only_shared_or_not() -> None:
    tree = Tree()
    slot = tree.vm.gfn_to_memslot(0x50, 0)
    with pytest.raises(KvmBug, match="mmu_lock must be held"):
        unsync.try_to_unsync(tree.vm, slot, 0x50, True, False)
    tree.vm.mmu_lock.read_lock()
    assert unsync.try_to_unsync(tree.vm, slot, 0x50, True, False) == 0


@pytest.mark.parametrize("in_hand", [False, True])
def test_the_answer_does_not_depend_on_the_slot_in_hand(in_hand: bool) -> None:
    tree = Tree()
    slot = tree.vm.gfn_to_memslot(0x50, 0)
    assert slot is not None
    mirror = tree.page(1, 0x50)
    with held(tree.vm):
        track.add_gfn(tree.vm, slot, 0x51)
        known = slot if in_hand else None
        assert unsync.try_to_unsync(tree.vm, known, 0x51, True, False) == -errno.EPERM
        assert unsync.try_to_unsync(tree.vm, known, 0x50, True, False) == 0
    assert mirror.unsync


def test_a_page_that_holds_no_table_may_be_written() -> None:
    tree = Tree()
    assert try_it(tree, 0x50) == 0
    assert try_it(tree, 0x50, can_unsync=False) == 0
    assert try_it(tree, 0x50, prefetch=True) == 0


def test_a_write_lets_every_level_1_mirror_go_out_of_sync() -> None:
    tree = Tree()
    mirrors = [tree.page(1, 0x50, role=quadrant << 5) for quadrant in range(3)]
    direct, zapped = tree.page(1, 0x50, DIRECT), tree.page(1, 0x50, INVALID)
    other = tree.page(1, 0x51)
    assert try_it(tree, 0x50) == 0
    assert [sp.unsync for sp in mirrors] == [True] * 3
    assert [sp.unsync for sp in (direct, zapped, other)] == [False] * 3
    assert tree.vm.stat.mmu_unsync == 3
    assert tree.vm.mmu_unsync_pages_lock.is_free()


def test_a_tracked_gfn_stays_protected_whoever_asks() -> None:
    tree = Tree()
    mirror = tree.page(1, 0x50)
    slot = tree.vm.gfn_to_memslot(0x50, 0)
    assert slot is not None
    with held(tree.vm):
        track.add_gfn(tree.vm, slot, 0x50)
    assert try_it(tree, 0x50) == -errno.EPERM
    assert not mirror.unsync


def test_who_may_not_unsync_is_refused_even_what_is_unsync_already() -> None:
    tree = Tree()
    mirror = tree.page(1, 0x50)
    assert try_it(tree, 0x50, can_unsync=False) == -errno.EPERM
    assert not mirror.unsync
    assert try_it(tree, 0x50) == 0
    assert try_it(tree, 0x50, can_unsync=False) == -errno.EPERM


def test_no_page_goes_out_of_sync_for_a_prefetch() -> None:
    tree = Tree()
    mirror = tree.page(1, 0x50)
    assert try_it(tree, 0x50, prefetch=True) == -errno.EEXIST
    assert not mirror.unsync
    assert try_it(tree, 0x50) == 0
    # What is unsync already costs nothing.
    assert try_it(tree, 0x50, prefetch=True) == 0
    assert tree.vm.stat.mmu_unsync == 1


# Finding them.


def test_the_unsync_pages_below_are_found_in_the_order_of_entries() -> None:
    tree = Tree()
    pages = tree.chain()
    others = [tree.page(1) for _ in range(3)]
    for index, other in zip((1, 300, 511), others, strict=True):
        tree.link(pages[2], index, other)
        tree.unsync(other)
    tree.unsync(pages[3])
    assert bits(pages[2]) == [1, 2, 300, 511]
    assert tree.walk(pages[0]) == 4
    assert tree.zap_below(pages[0]) == (4, [others[0], pages[3], others[1], others[2]])


def test_a_walk_of_a_clean_table_finds_nothing() -> None:
    tree = Tree()
    pages = tree.chain()
    assert tree.walk(pages[0]) == 0
    assert tree.zap_below(pages[0]) == (0, [])


def test_what_is_in_sync_below_stays() -> None:
    tree = Tree()
    pages = tree.chain()
    clean = tree.page(1)
    tree.link(pages[2], 77, clean)
    tree.unsync(pages[3])
    assert tree.zap_below(pages[0]) == (1, [pages[3]])
    assert clean.role & INVALID == 0


def test_a_page_on_two_ways_is_zapped_once() -> None:
    tree = Tree()
    pages = tree.chain()
    tree.link(pages[2], 200, pages[3])
    tree.unsync(pages[3])
    assert bits(pages[2]) == [2, 200]
    assert tree.zap_below(pages[0]) == (1, [pages[3]])
    assert [(bits(sp), sp.unsync_children) for sp in pages[:3]] == [([], 0)] * 3


@pytest.mark.parametrize("gone", ["empty", "large", "in sync"])
def test_a_bit_that_leads_nowhere_is_cleared(gone: str) -> None:
    tree = Tree()
    pages = tree.chain()
    tree.unsync(pages[3])
    sptep = pages[2].spt + 16
    if gone == "empty":
        tree.vm.memory.write_once(sptep, 1 << 63)
    elif gone == "large":
        tree.vm.memory.write_once(sptep, LINK | 0x80 | pages[3].spt)
    else:
        with held(tree.vm):
            unsync.unlink_unsync_page(tree.vm, pages[3])
    assert tree.walk(pages[0]) == 0
    assert [(bits(sp), sp.unsync_children) for sp in pages[:3]] == [([], 0)] * 3


@pytest.mark.parametrize(("nr", "found"), [(1, 1), (12, 12), (13, -errno.ENOSPC), (40, -errno.ENOSPC)])
def test_a_walk_ends_when_its_16_places_are_full(nr: int, found: int) -> None:
    """Three tables on the way take a place each; the 16th place fills it. Who walks again finds the rest."""
    tree = Tree()
    pages = tree.chain()
    for index in range(100, 99 + nr):
        other = tree.page(1)
        tree.link(pages[2], index, other)
        tree.unsync(other)
    tree.unsync(pages[3])
    assert tree.walk(pages[0]) == found
    assert tree.zap_below(pages[0])[0] == nr
    assert tree.vm.stat.mmu_unsync == 0


def test_working_off_clears_the_bits_of_every_table_on_the_way() -> None:
    tree = Tree()
    pages = tree.chain()
    tables, leaves = [], []
    for index in (9, 10):
        table, leaf = tree.page(2), tree.page(1)
        tree.link(pages[1], index, table)
        tree.link(table, 8, leaf)
        tree.unsync(leaf)
        tables.append(table)
        leaves.append(leaf)
    tree.unsync(pages[3])
    assert [bits(sp) for sp in (pages[1], *tables)] == [[3, 9, 10], [8], [8]]
    assert tree.zap_below(tables[0]) == (1, [leaves[0]])
    # The tables above do not know yet: their bit leads nowhere, and goes with the next walk.
    assert [bits(sp) for sp in (pages[1], *tables)] == [[3, 9, 10], [], [8]]
    assert tree.zap_below(pages[0]) == (2, [pages[3], leaves[1]])
    assert [(bits(sp), sp.unsync_children) for sp in (*pages[:3], *tables)] == [([], 0)] * 5
    assert all(sp.role & INVALID == 0 for sp in (*pages[:3], *tables))
