# SPDX-License-Identifier: GPL-2.0-only
"""Passes of the TDP MMU: which entries each changes, in which roots, with which events, flushes and yields."""

from __future__ import annotations

import pytest

from kvmmu import KvmBug, UserMemoryRegion
from kvmmu.kvm import sregs
from kvmmu.kvm.mmu import dirty, gfnrange, tdppass, tdproots, track

from .machines import EMPTY, MMU_W, SHADOW, Others, Tdp, W, held, shared

A, D = 0x20, 0x40
HUGE = 0x200000
PAGES = (0x1000, 0x2000, 0x5000, 0x201000)


def flushes(box: Tdp) -> int:
    return box.vm.stat.remote_tlb_flush_requests


def gfns(box: Tdp) -> list[int]:
    return [gfn for gfn, *_ in box.changes()]


# Unmap.


def test_the_notifier_takes_leaves_and_leaves_tables() -> None:
    box = Tdp()
    box.touch(*PAGES)
    before = flushes(box)
    box.world.mm.dontneed(box.hva + 0x2000, 0x4000)
    assert box.changes()[:1][0][:2] == (2, 1)
    assert [box.spte(gpa) & SHADOW for gpa in PAGES] == [SHADOW, 0, 0, SHADOW]
    assert (flushes(box), box.vm.tdp_mmu_pages, box.vm.stat.pages_4k) == (before + 1, 4, 2)
    box.world.audit()


def test_a_huge_leaf_that_begins_before_the_range_goes_as_a_whole() -> None:
    box = Tdp("host_page=2m")
    box.touch(HUGE)
    with held(box.vm):
        assert gfnrange.unmap_gfn_range(box.vm, box.slot, 0x2FF, 0x300)
        assert not gfnrange.unmap_gfn_range(box.vm, box.slot, 0x2FF, 0x300)
    assert [(gfn, level, new) for gfn, level, _, new in box.changes()] == [(0x200, 2, EMPTY)]


def test_leaves_of_an_invalid_root_go_without_a_flush() -> None:
    box = Tdp()
    box.touch(*PAGES)
    with held(box.vm):
        tdproots.invalidate_all_roots(box.vm)
        assert not tdppass.zap_leafs(box.vm, 0, 1 << 30, False)
        assert gfns(box) == []
        assert not gfnrange.unmap_gfn_range(box.vm, box.slot, 0, box.slot.npages)
    assert gfns(box) == [1, 2, 5, 0x201]


@pytest.mark.parametrize("pending", [False, True])
def test_a_yield_flushes_what_is_pending_and_what_comes_after_is_pending_again(pending: bool) -> None:
    box = Tdp()
    box.touch(*PAGES)
    before = flushes(box)
    with held(box.vm):
        Others(box.vm)
        flush = tdppass.unmap_leafs(box.vm, box.slot, 2, 3, pending)
        box.vm.gate.disarm()
    # The one leaf was the last thing that the walk saw, or a yield after it flushed.
    assert gfns(box) == [2]
    assert flushes(box) - before + flush >= 1
    assert not box.spte(0x2000) & SHADOW


def test_every_address_space_loses_a_range_of_gfns() -> None:
    box = Tdp()
    box.touch(*PAGES)
    before, seq = flushes(box), box.vm.invalidation.seq
    gfnrange.zap_gfn_range(box.vm, 2, 6)
    assert gfns(box) == [2, 5]
    assert (flushes(box), box.vm.invalidation.seq, box.vm.invalidation.in_progress) == (before + 1, seq + 1, 0)
    gfnrange.zap_gfn_range(box.vm, 2, 6)
    assert flushes(box) == before + 1


@pytest.mark.parametrize("setting", ["tdp_mmu=off", "npt=off"])
def test_the_legacy_mmus_lose_it_too(setting: str) -> None:
    box = Tdp(setting)
    box.touch(*PAGES)
    gfnrange.zap_gfn_range(box.vm, 0, 6)
    assert box.vm.stat.pages_4k == 1
    box.world.audit()


# Age.


def test_aging_clears_a_and_nothing_else_in_ascending_order() -> None:
    box = Tdp()
    box.touch(*PAGES)
    was = {gpa: box.spte(gpa) for gpa in PAGES}
    before = flushes(box)
    assert box.world.mm.test_young(box.hva + 0x2000)
    assert box.world.mm.clear_young(box.hva, 0x5000)
    assert box.changes() == [(gpa >> 12, 1, was[gpa], was[gpa] & ~A) for gpa in PAGES[:2]]
    assert not box.world.mm.clear_young(box.hva, 0x5000)
    assert not box.world.mm.test_young(box.hva + 0x2000)
    assert box.world.mm.test_young(box.hva + 0x5000)
    assert flushes(box) == before
    assert box.world.mm.clear_flush_young(box.hva, 0x400000)
    assert flushes(box) == before + 1
    assert not box.world.mm.clear_flush_young(box.hva, 0x400000)
    assert flushes(box) == before + 1
    box.world.audit()


def test_each_address_space_ages_its_own_roots() -> None:
    # The same gfn of two address spaces is other memory of the host.
    box = Tdp()
    hva = box.world.add_slot(1 << 16, 0, 0x10000)
    box.touch(0x1000)
    smm = box.world.create_vcpu()
    smm.smm = True
    sregs.reset_context(smm)
    assert box.world.write(smm, 0x1000, b"x").kind == "done"
    mm = box.world.mm
    assert mm.clear_young(hva, 0x2000)
    assert (mm.test_young(hva + 0x1000), mm.test_young(box.hva + 0x1000)) == (False, True)
    assert mm.clear_young(box.hva, 0x2000)
    assert not mm.test_young(box.hva + 0x1000)
    box.world.audit()


@pytest.mark.parametrize("setting", ["tdp_mmu=on", "tdp_mmu=off", "npt=off"])
def test_a_page_that_was_aged_is_young_again_when_it_is_used(setting: str) -> None:
    box = Tdp(setting)
    box.touch(0x1000, 0x201000)
    mm = box.world.mm
    assert mm.clear_flush_young(box.hva, 0x400000)
    names = [event[0] for event in box.events]
    assert names[0] == "kvm_age_hva"
    assert mm.test_young(box.hva + 0x1000) is False
    assert box.events[-1] == ("kvm_test_age_hva", box.hva + 0x1000)
    box.touch(0x1000)
    assert mm.test_young(box.hva + 0x1080) is True
    assert mm.test_young(box.hva + 0x201000) is False
    box.world.audit()


def test_without_a_flush_a_tlb_hides_the_next_use() -> None:
    box = Tdp()
    box.touch(0x1000)
    mm = box.world.mm
    assert mm.clear_young(box.hva + 0x1000, 0x1000)
    box.touch(0x1000)
    assert not mm.test_young(box.hva + 0x1000)


def test_pages_outside_every_slot_concern_nobody() -> None:
    box = Tdp()
    hva = box.world.mm.mmap(0x1000)
    with held(box.vm):
        # The lock is not needed for that.
        assert not box.world.mm.clear_young(hva, 0x1000)


# Write protection.


def test_a_slot_that_is_logged_loses_w_and_keeps_mmu_writable() -> None:
    box = Tdp()
    box.touch(*PAGES)
    box.touch(0x3000, write=False)
    was = {gpa: box.spte(gpa) for gpa in PAGES}
    assert gfnrange.write_protect_slot(box.vm, box.slot)
    assert box.changes() == [(gpa >> 12, 1, was[gpa], was[gpa] & ~W) for gpa in PAGES]
    assert all(box.spte(gpa) & MMU_W for gpa in PAGES)
    assert not gfnrange.write_protect_slot(box.vm, box.slot)
    assert box.changes() == []
    assert box.vm.mmu_lock.is_free()


def test_only_levels_from_the_lowest_asked_for_are_protected() -> None:
    box = Tdp("host_page=2m", "eager_page_split=off")
    box.touch(HUGE)
    box.world.mm.mprotect(box.hva, 0x1000, True)
    with shared(box.vm):
        box.vm.rcu.read_unlock()
        assert not tdppass.write_protect_leafs(box.vm, box.slot, 3)
        assert tdppass.write_protect_leafs(box.vm, box.slot, 2)
        box.vm.rcu.read_lock()
    assert box.spte(HUGE) & W == 0


def test_a_lost_race_is_looked_at_again() -> None:
    box = Tdp()
    box.touch(0x1000)
    place, was = box.sptep(0x1000), box.spte(0x1000)

    class Racer(Others):
        def must_yield(self, where: object) -> bool:
            return False

        def point(self, kind: str, where: object, key: object) -> None:
            if (kind, key) == ("cmpxchg", place):
                self.gate.disarm()
                box.world.memory.write_once(place, was & ~D)

    Racer(box.vm)
    assert gfnrange.write_protect_slot(box.vm, box.slot)
    assert box.spte(0x1000) == was & ~(D | W)


def test_a_mask_names_pages_and_their_frames_are_dirty() -> None:
    box = Tdp()
    pages = [(64 + i) << 12 for i in (0, 3, 4, 63)]
    box.touch(*pages, 0x3F000, 0x80000)
    frame = (box.spte(pages[1]) & 0xFFFFFFFFF000) >> 12
    assert box.world.frames.flags_of(frame) == 0
    with held(box.vm):
        gfnrange.write_protect_masked(box.vm, box.slot, 64, 1 << 3 | 1 << 63 | 1 << 5)
    assert gfns(box) == [67, 127]
    assert [bool(box.spte(page) & W) for page in pages] == [True, False, True, False]
    assert box.world.frames.flags_of(frame) & 1
    assert box.spte(0x3F000) & box.spte(0x80000) & W


def test_a_mask_spares_huge_pages_and_invalid_roots() -> None:
    box = Tdp("host_page=2m")
    box.touch(HUGE)
    with held(box.vm):
        gfnrange.write_protect_masked(box.vm, box.slot, 0x200, (1 << 64) - 1)
    assert box.spte(HUGE) & W
    small = Tdp()
    small.touch(0x1000)
    with held(small.vm):
        tdproots.invalidate_all_roots(small.vm)
        gfnrange.write_protect_masked(small.vm, small.slot, 0, 2)
    assert small.spte(0x1000) & W


def test_a_gfn_that_must_not_be_written_loses_mmu_writable_too() -> None:
    box = Tdp()
    box.touch(0x1000, 0x2000)
    with held(box.vm):
        assert track.protect_gfn(box.vm, box.slot, 1, 1)
        assert not track.protect_gfn(box.vm, box.slot, 1, 1)
        assert not track.protect_gfn(box.vm, box.slot, 2, 2)
    assert box.spte(0x1000) & (W | MMU_W) == 0
    assert box.spte(0x2000) & W
    # The fast path cannot undo that.
    assert box.world.write(box.vcpu, 0x1000, b"y").kind == "done"
    assert box.vcpu.stat.pf_fast == 0


# Collapse.


def test_a_gfn_whose_table_is_mirrored_is_protected_in_the_tdp_mmu_too() -> None:
    """Shadow pages for a nested guest come beside the TDP MMU's roots; both map the guest's tables."""
    box = Tdp()
    box.touch(0x5000, 0x6000)
    box.slot.alloc_rmap()
    box.slot.alloc_write_track()
    before = box.vm.stat.remote_tlb_flush_requests
    with held(box.vm):
        track.add_gfn(box.vm, box.slot, 5)
    assert not box.spte(0x5000) & (W | MMU_W)
    assert box.spte(0x6000) & (W | MMU_W) == W | MMU_W
    assert box.vm.stat.remote_tlb_flush_requests == before + 1


def small_pages() -> Tdp:
    """A huge page of the host that logging made small; nothing is logged any more, and nothing was collapsed."""
    box = Tdp("host_page=2m")
    box.log()
    box.touch(HUGE, HUGE + 0x5000)
    box.slot.flags &= ~1
    return box


def test_a_table_that_a_huge_page_could_replace_goes_with_a_flush() -> None:
    box = small_pages()
    before = flushes(box)
    gfnrange.collapse_slot(box.vm, box.slot)
    changes = box.changes()
    assert [(gfn, level, new) for gfn, level, _, new in changes[:1]] == [(0x200, 2, EMPTY)]
    assert len(changes) == 513
    assert (flushes(box), box.vm.stat.pages_4k) == (before + 1, 0)
    box.touch(HUGE)
    assert box.way(HUGE)[-1][0] == 2
    box.world.audit()


def test_a_huge_leaf_or_what_must_stay_small_is_left_alone() -> None:
    box = small_pages()
    box.slot.lpage_array[1] += 1  # type: ignore[index]
    gfnrange.collapse_slot(box.vm, box.slot)
    assert box.changes() == []
    box.slot.lpage_array[1] -= 1  # type: ignore[index]
    gfnrange.collapse_slot(box.vm, box.slot)
    box.touch(HUGE)
    gfnrange.collapse_slot(box.vm, box.slot)
    assert box.changes() == []


def test_a_block_that_begins_before_the_slot_is_not_asked_about() -> None:
    box = Tdp("host_page=2m")
    hva = box.world.mm.mmap(4 << 20, "anonymous", 2)
    box.world.set_region(UserMemoryRegion(1, 0, (32 << 20) + 0x1000, 0x1FF000, hva + 0x1000))
    box.touch((32 << 20) + 0x1000)
    slot = box.vm.gfn_to_memslot(0x2001, 0)
    assert slot is not None
    gfnrange.collapse_slot(box.vm, slot)
    assert box.changes() == []


def test_the_end_of_logging_collapses() -> None:
    box = Tdp("host_page=2m")
    box.touch(HUGE)
    box.log()
    assert box.way(HUGE)[-1][0] == 1
    box.log(0)
    assert not box.way(HUGE)[-1][1] & SHADOW
    box.touch(HUGE)
    assert box.way(HUGE)[-1][0] == 2
    box.world.audit()


# All of them.


def test_each_pass_wants_its_mode_of_the_lock() -> None:
    box = Tdp()
    box.touch(0x1000)
    vm, slot = box.vm, box.slot
    with shared(vm):
        for exclusive in (
            lambda: tdppass.zap_leafs(vm, 0, 1, False),
            lambda: tdppass.unmap_leafs(vm, slot, 0, 1, False),
            lambda: tdppass.age_leafs(vm, slot, 0, 1),
            lambda: tdppass.is_any_young(vm, slot, 0, 1),
            lambda: tdppass.write_protect_mask(vm, slot, 0, 1),
            lambda: tdppass.write_protect_leaf(vm, slot, 0, 1),
        ):
            with pytest.raises(KvmBug, match="must be held exclusively"):
                exclusive()
    with held(vm):
        for one in (
            lambda: tdppass.write_protect_leafs(vm, slot, 1),
            lambda: tdppass.collapse_tables(vm, slot),
        ):
            with pytest.raises(KvmBug, match="must be held shared"):
                one()


def test_passes_that_yield_at_every_entry_do_all_the_same() -> None:
    for setting in ("eager_page_split=on", "eager_page_split=off"):
        quiet, noisy = Tdp("host_page=2m", setting), Tdp("host_page=2m", setting)
        for box in (quiet, noisy):
            box.touch(HUGE, HUGE * 2, 0x5000)
            if box is noisy:
                Others(box.vm)
            box.log()
            box.vm.gate.disarm()
            box.touch(HUGE, HUGE + 0x7000)
            if box is noisy:
                Others(box.vm)
            dirty.get_dirty_log(box.vm, 0)
            box.log(0)
            box.vm.gate.disarm()
            box.world.audit()
        assert [quiet.way(gpa) for gpa in (HUGE, HUGE * 2, 0x5000)] == [
            noisy.way(gpa) for gpa in (HUGE, HUGE * 2, 0x5000)
        ]
        assert quiet.vm.stat.pages_4k == noisy.vm.stat.pages_4k
