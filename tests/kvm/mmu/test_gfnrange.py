# SPDX-License-Identifier: GPL-2.0-only
"""Passes over ranges of gfns: which leaves each level loses, which lose W, who takes the lock."""

from __future__ import annotations

import pytest

from kvm.mmu.machines import (
    ACCESS_ALL,
    DIRECT,
    EMPTY,
    HOST_W,
    MMU_W,
    SHADOW,
    SLOT_PAGES,
    OneSlot,
    Others,
    P,
    U,
    W,
    flushes,
    held,
)
from kvmmu import KvmBug
from kvmmu.kvm.memslots import Memslot
from kvmmu.kvm.mmu import gfnrange, rmap
from kvmmu.kvm.mmu.page import ShadowPage
from kvmmu.kvm.mmu.pages import alloc_page

PS = 0x80
LEAF = SHADOW | HOST_W | MMU_W | P | W | U


class Leaves(OneSlot):
    """One slot whose rmaps the test fills."""

    def page(self, gfn: int, level: int = 1) -> ShadowPage:
        with held(self.vm):
            return alloc_page(self.vm, gfn, level | DIRECT | ACCESS_ALL)

    def leaf(self, sp: ShadowPage, index: int, gfn: int, word: int = LEAF) -> int:
        """Put ``word`` for a fresh frame into the table and enter it; where it lies."""
        sptep = sp.spt + 8 * index
        self.world.memory.write_once(sptep, word | self.world.frames.alloc() << 12)
        with held(self.vm):
            rmap.rmap_add(self.vm, self.slot, sptep, gfn, 7)
        return sptep

    def small(self, *gfns: int) -> dict[int, int]:
        return {gfn: self.leaf(self.page(gfn & ~511), gfn & 511, gfn) for gfn in gfns}

    def large(self) -> list[int]:
        """The two 2M leaves of the slot."""
        directory = self.page(0, 2)
        return [self.leaf(directory, index, index << 9, LEAF | PS) for index in (0, 1)]

    def writable(self, places: dict[int, int]) -> list[int]:
        return [gfn for gfn, sptep in places.items() if self.read(sptep) & W]


# Yields: what was taken is flushed before others may have the lock, and only once.


@pytest.mark.parametrize(("gfns", "nr_flushes"), [((3,), 1), ((3, 4, 515), 3)])
def test_an_unmap_flushes_what_went_each_time_it_yields(gfns: tuple[int, ...], nr_flushes: int) -> None:
    box = Leaves()
    box.small(*gfns)
    before = flushes(box.vm)
    with held(box.vm):
        others = Others(box.vm)
        assert not gfnrange.unmap_rmaps(box.vm, box.slot, 0, 0x300)
        box.vm.gate.disarm()
    assert flushes(box.vm) == before + nr_flushes
    # 0x300 small blocks, two of 2M and one of 1G.
    assert (others.nr_yields, others.nr_unlocks()) == (0x303, 0x303)


def test_what_is_unmapped_behind_the_last_yield_is_the_callers_to_flush() -> None:
    box = Leaves()
    box.small(3, 4)
    before = flushes(box.vm)
    with held(box.vm):
        Others(box.vm, most=4)
        assert gfnrange.unmap_rmaps(box.vm, box.slot, 0, 0x300)
        box.vm.gate.disarm()
    assert flushes(box.vm) == before + 1


def test_a_sparse_unmap_yields_too() -> None:
    box = Leaves()
    box.small(3, 515)
    box.vm.n_used_mmu_pages = 0
    before = flushes(box.vm)
    with held(box.vm):
        others = Others(box.vm)
        assert not gfnrange.unmap_rmaps(box.vm, box.slot, 0, SLOT_PAGES)
        box.vm.gate.disarm()
    assert (flushes(box.vm), others.nr_unlocks()) == (before + 2, 2)


def test_write_protection_yields_and_leaves_the_flush_to_the_end() -> None:
    box = Leaves()
    places = box.small(3, 4)
    before = flushes(box.vm)
    with held(box.vm):
        others = Others(box.vm)
        assert gfnrange.write_protect_rmaps(box.vm, box.slot)
        box.vm.gate.disarm()
    assert (flushes(box.vm), box.writable(places)) == (before, [])
    assert others.nr_unlocks() > 2


# Taking leaves.


def test_a_zapped_range_is_half_open_and_takes_large_leaves_that_it_touches() -> None:
    box = Leaves()
    small = box.small(0x1FE, 0x1FF, 0x200, 0x20F, 0x210)
    large = box.large()
    with held(box.vm):
        assert gfnrange.unmap_gfn_range(box.vm, box.slot, 0x1FF, 0x210)
    assert [gfn for gfn, sptep in small.items() if box.read(sptep) != EMPTY] == [0x1FE, 0x210]
    assert [box.read(sptep) for sptep in large] == [EMPTY, EMPTY]
    with held(box.vm):
        assert not gfnrange.unmap_gfn_range(box.vm, box.slot, 0x1FF, 0x210)


def test_a_range_that_ends_at_a_block_spares_the_next_large_leaf() -> None:
    box = Leaves()
    large = box.large()
    with held(box.vm):
        assert gfnrange.unmap_gfn_range(box.vm, box.slot, 0x100, 0x200)
    assert box.read(large[0]) == EMPTY
    assert box.read(large[1]) != EMPTY


def test_a_slot_without_rmaps_has_nothing_to_zap() -> None:
    box = Leaves()
    slot = Memslot(0, 0, 0, SLOT_PAGES, box.slot.userspace_addr)
    with held(box.vm):
        assert not gfnrange.unmap_gfn_range(box.vm, slot, 0, SLOT_PAGES)


def test_a_range_is_zapped_under_the_lock_only() -> None:
    box = Leaves()
    with pytest.raises(KvmBug, match="mmu_lock"):
        gfnrange.unmap_gfn_range(box.vm, box.slot, 0, 1)


def test_who_zaps_leaves_the_flush_to_the_caller() -> None:
    box = Leaves()
    box.small(0x10)
    before = flushes(box.vm)
    with held(box.vm):
        assert gfnrange.unmap_gfn_range(box.vm, box.slot, 0x10, 0x11)
    assert flushes(box.vm) == before


# Taking W.


def test_a_mask_takes_w_of_its_gfns_and_leaves_what_the_mmu_may_give_back() -> None:
    box = Leaves()
    small = box.small(0x100, 0x101, 0x13F, 0x140)
    with held(box.vm):
        gfnrange.write_protect_masked(box.vm, box.slot, 0x100, 1 | 1 << 63)
    assert box.writable(small) == [0x101, 0x140]
    assert all(box.read(sptep) & (MMU_W | HOST_W) == MMU_W | HOST_W for sptep in small.values())


def test_a_mask_leaves_large_leaves_alone() -> None:
    box = Leaves()
    large = box.large()
    with held(box.vm):
        gfnrange.write_protect_masked(box.vm, box.slot, 0, 2**64 - 1)
    assert all(box.read(sptep) & W for sptep in large)


def test_a_mask_is_protected_under_the_lock_only() -> None:
    box = Leaves()
    with pytest.raises(KvmBug, match="mmu_lock"):
        gfnrange.write_protect_masked(box.vm, box.slot, 0, 1)


def test_a_slot_loses_w_at_every_level_and_the_pass_takes_the_lock_itself() -> None:
    box = Leaves()
    small, large = box.small(0, 0x3FF), box.large()
    assert gfnrange.write_protect_slot(box.vm, box.slot)
    assert box.writable(small) == []
    assert [box.read(sptep) & W for sptep in large] == [0, 0]
    assert not gfnrange.write_protect_slot(box.vm, box.slot)
    assert box.vm.mmu_lock.is_free()
    with held(box.vm), pytest.raises(KvmBug, match="write_lock by actor 0 while it holds"):
        gfnrange.write_protect_slot(box.vm, box.slot)


def test_the_pass_over_rmaps_comes_with_the_lock_held() -> None:
    box = Leaves()
    small = box.small(5)
    with held(box.vm):
        assert gfnrange.write_protect_rmaps(box.vm, box.slot)
        assert not gfnrange.write_protect_rmaps(box.vm, box.slot)
    assert box.writable(small) == []


def test_a_slot_without_rmaps_needs_neither_pass_nor_lock() -> None:
    box = Leaves()
    slot = Memslot(0, 0, 0, SLOT_PAGES, box.slot.userspace_addr)
    with held(box.vm):
        assert not gfnrange.write_protect_slot(box.vm, slot)
        assert not gfnrange.collapse_slot(box.vm, slot)
        assert gfnrange.write_protect_masked(box.vm, slot, 0, 2**64 - 1) == 0


# Room for larger pages.


def test_collapsing_flushes_only_if_it_zapped_and_zaps_under_its_own_lock() -> None:
    box = Leaves()
    sp = box.page(0)
    sptep = box.leaf(sp, 7, 7)
    before = flushes(box.vm)
    # The process has small pages: nothing larger could be mapped.
    assert not gfnrange.collapse_slot(box.vm, box.slot)
    assert (flushes(box.vm), box.read(sptep) != EMPTY) == (before, True)
    with held(box.vm), pytest.raises(KvmBug, match="write_lock by actor 0 while it holds"):
        gfnrange.collapse_slot(box.vm, box.slot)
