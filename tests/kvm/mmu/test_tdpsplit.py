# SPDX-License-Identifier: GPL-2.0-only
"""Splits of huge pages: what the small ones are, their events, memory that ends, lost races, and who never splits."""

from __future__ import annotations

from errno import EBUSY, ENOMEM

import pytest

from kvmmu.kvm.mmu import gfnrange, tdpsplit
from kvmmu.kvm.mmu.role import role_with_level
from kvmmu.kvm.mmu.spte import make_npt_format

from .machines import EMPTY, SHADOW, Others, Tdp, W, shared

A, D, PS, NX = 0x20, 0x40, 0x80, 1 << 63
FRAME = 0x000F_FFFF_FFFF_F000
HUGE = 0x200000


def huge(*settings: str, memory: int = 16 << 20) -> Tdp:
    box = Tdp("host_page=2m", *settings, memory=memory)
    box.touch(HUGE, HUGE * 2)
    assert box.vm.stat.pages_2m == 2
    return box


def splits(box: Tdp) -> list[tuple[object, ...]]:
    return [event[1:] for event in box.events if event[0] == "kvm_mmu_split_huge_page"]


def test_the_small_pages_are_the_pieces_of_the_huge_one() -> None:
    box = huge()
    was = box.spte(HUGE)
    gfnrange.split_slot(box.vm, box.slot)
    for page in (0, 1, 511):
        assert box.spte(HUGE + page * 4096) == (was & ~PS) + page * 4096
    assert (box.vm.stat.pages_2m, box.vm.stat.pages_4k, box.vm.tdp_mmu_pages) == (0, 1024, 4)
    assert box.vm.stat.remote_tlb_flush_requests == 0
    box.world.audit()


def test_each_split_tells_page_change_and_split_and_nothing_of_its_children() -> None:
    box = huge()
    was = [box.spte(HUGE), box.spte(HUGE * 2)]
    gfnrange.split_slot(box.vm, box.slot)
    names = [event[0] for event in box.events]
    assert names == ["kvm_mmu_get_page", "kvm_tdp_mmu_spte_changed", "kvm_mmu_split_huge_page"] * 2
    assert splits(box) == [(0x200, was[0], 2, 0), (0x400, was[1], 2, 0)]


def test_a_1g_page_is_split_to_2m_then_each_of_these_to_4k() -> None:
    box = Tdp("host_page=1g", memory=1 << 30, nr_frames=(1 << 19) + 8192)
    box.touch(0x1000)
    assert (box.way(0)[-1][0], box.vm.stat.pages_1g) == (3, 1)
    gfnrange.split_slot(box.vm, box.slot)
    assert [(gfn, level) for gfn, _, level, _ in splits(box)][:3] == [(0, 3), (0, 2), (0x200, 2)]
    assert len(splits(box)) == 513
    assert (box.vm.stat.pages_1g, box.vm.stat.pages_2m, box.vm.stat.pages_4k) == (0, 0, 1 << 18)
    box.world.audit()


def test_only_the_range_that_is_meant_is_split() -> None:
    box = huge()
    with shared(box.vm):
        box.vm.rcu.read_unlock()
        tdpsplit.split_leafs(box.vm, box.slot, 0x401, 0x402, 1)
        box.vm.rcu.read_lock()
    assert (box.way(HUGE)[-1][0], box.way(HUGE * 2)[-1][0]) == (2, 1)


def test_logging_splits_first_then_protects() -> None:
    box = huge()
    box.log()
    names = [event[0] for event in box.events]
    assert names[:6] == ["kvm_mmu_get_page", "kvm_tdp_mmu_spte_changed", "kvm_mmu_split_huge_page"] * 2
    assert names[6:] == ["kvm_tdp_mmu_spte_changed"] * 1024
    assert not box.spte(HUGE) & W
    assert box.vm.stat.remote_tlb_flush_requests == 1
    box.world.audit()


@pytest.mark.parametrize("setting", ["tdp_mmu=off", "eager_page_split=off"])
def test_the_legacy_mmu_and_who_does_not_want_it_split_nothing_eagerly(setting: str) -> None:
    box = huge(setting)
    box.log()
    assert splits(box) == []
    level, spte = box.way(HUGE)[-1]
    assert (level, spte & W) == (2, 0)
    gfnrange.split_slot(box.vm, box.slot)
    assert bool(splits(box)) == (setting == "eager_page_split=off")


def test_memory_that_ends_ends_the_splits_and_is_told() -> None:
    box = huge()
    frames = box.world.frames
    taken = [frames.alloc() for _ in range(frames.nr_free - 1)]
    was = box.spte(HUGE * 2)
    gfnrange.split_slot(box.vm, box.slot)
    assert splits(box)[1:] == [(0x400, was, 2, -ENOMEM)]
    assert (box.way(HUGE)[-1][0], box.way(HUGE * 2)[-1][0]) == (1, 2)
    assert box.vm.mmu_lock.is_free()
    assert box.root.root_count == 2
    for pfn in taken:
        frames.put(pfn)
    box.world.audit()


def test_the_lock_is_dropped_while_memory_is_sought() -> None:
    """What changes meanwhile is looked at anew; the page that was got for it serves the next."""
    box = huge()
    free = box.world.frames.nr_free
    place = box.sptep(HUGE, 2)

    class Once(Others):
        def must_yield(self, where: object) -> bool:
            return False

    Once(box.vm, lambda: box.world.memory.write_once(place, EMPTY))
    gfnrange.split_slot(box.vm, box.slot)
    box.vm.gate.disarm()
    assert [gfn for gfn, *_ in splits(box)] == [0x400]
    assert box.world.frames.nr_free == free - 1
    box.vm.stat.pages_2m -= 1
    box.flush()
    box.world.audit()


def test_who_loses_the_entry_tells_so_and_tries_again() -> None:
    box = huge()
    place, was = box.sptep(HUGE, 2), box.spte(HUGE)

    class Racer(Others):
        def must_yield(self, where: object) -> bool:
            return False

        def point(self, kind: str, where: object, key: object) -> None:
            if (kind, key) == ("cmpxchg", place):
                self.gate.disarm()
                box.world.memory.write_once(place, was & ~A)

    Racer(box.vm)
    gfnrange.split_slot(box.vm, box.slot)
    assert splits(box)[:2] == [(0x200, was, 2, -EBUSY), (0x200, was & ~A, 2, 0)]
    assert [event[0] for event in box.events][:2] == ["kvm_mmu_get_page", "kvm_mmu_split_huge_page"]
    assert box.spte(HUGE) & A == 0
    box.flush()
    box.world.audit()


def test_a_page_that_is_left_over_is_given_back() -> None:
    box = huge()
    free = box.world.frames.nr_free
    places = [box.sptep(HUGE, 2), box.sptep(HUGE * 2, 2)]

    class Once(Others):
        def must_yield(self, where: object) -> bool:
            return False

    Once(box.vm, lambda: [box.world.memory.write_once(place, EMPTY) for place in places])
    gfnrange.split_slot(box.vm, box.slot)
    box.vm.gate.disarm()
    assert (splits(box), box.world.frames.nr_free) == ([], free)


def test_small_pages_may_be_fetched_from_where_the_mitigation_forbade_it_for_the_huge_one() -> None:
    fmt = make_npt_format(46, True)
    spte = SHADOW | 1 | NX | A
    assert tdpsplit.make_executable(fmt, spte) == spte & ~NX
    box = Tdp("host_page=2m", "nx_huge_pages=on")
    box.touch(HUGE)
    was = box.spte(HUGE)
    assert was & NX
    role = role_with_level(box.root.role, 1)
    assert tdpsplit.split_spte(box.vm, was, role, 3) == (was & ~(NX | PS)) + 0x3000
    was = was & ~FRAME | 1 << 30
    assert tdpsplit.split_spte(box.vm, was, role_with_level(role, 2), 3) == was + 0x600000
    gfnrange.split_slot(box.vm, box.slot)
    assert not box.spte(HUGE) & NX
    box.world.audit()
