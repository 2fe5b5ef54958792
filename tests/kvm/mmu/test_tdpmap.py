# SPDX-License-Identifier: GPL-2.0-only
"""A fault of the TDP MMU: tables and leaf with their events, causes and counters, and lost races."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvmmu import KvmBug, UserMemoryRegion
from kvmmu.kvm.mmu import gfnrange, tdpmap
from kvmmu.kvm.mmu.fault import PageFault
from kvmmu.kvm.mmu.leaf import Leaf
from kvmmu.kvm.mmu.tdproots import zap_root
from kvmmu.kvm.mmu.verdict import CAUSES, RET_PF_EMULATE, RET_PF_FIXED, RET_PF_RETRY, RET_PF_SPURIOUS

from .machines import EMPTY, HOLE, SHADOW, Tdp, W, held, shared

FROZEN = EMPTY | 0x5A0
NOSLOT = 1 << 63
LEAF, LINK = 0xE67, 0x827
FRAME = 0x000F_FFFF_FFFF_F000


def names(box: Tdp) -> list[str]:
    return [event[0] for event in box.events]


def cause(box: Tdp) -> str:
    return CAUSES[box.vcpu.fault_cause]


def fault_of(box: Tdp, gpa: int, *, write: bool = True) -> PageFault:
    """A fault whose page the host has given."""
    fault = PageFault(gpa, 2 if write else 0)
    fault.gfn = gpa >> 12
    fault.slot = box.vcpu.gfn_to_memslot(gpa >> 12)
    fault.map_writable = True
    if fault.slot is None:
        fault.pfn = NOSLOT
    else:
        fault.pfn = box.world.mm.user_access(fault.slot.gfn_to_hva(fault.gfn), True) >> 12
    return fault


def mapped(box: Tdp, fault: PageFault) -> int:
    leaf = Leaf()
    leaf.prefetch = False
    box.vm.mmu_lock.read_lock()
    try:
        return tdpmap.tdp_map(box.vcpu, fault, leaf)
    finally:
        box.vm.mmu_lock.read_unlock()


def test_a_first_mapping_links_tables_top_down_then_the_leaf() -> None:
    box = Tdp()
    assert box.world.write(box.vcpu, 0x201000, b"x").kind == "done"
    tail = names(box)[names(box).index("kvm_mmu_spte_requested") :]
    assert tail == [
        "kvm_mmu_spte_requested",
        *["kvm_mmu_get_page", "kvm_tdp_mmu_spte_changed"] * 3,
        "kvm_tdp_mmu_spte_changed",
        "kvm_mmu_set_spte",
    ]
    pages = [(event[2], event[3] & 15, event[4]) for event in box.events if event[0] == "kvm_mmu_get_page"]
    assert pages == [(0, 4, 0), (0, 3, 0), (0, 2, 0), (0x200, 1, 0)]
    changes = [(gfn, level, old, new & ~FRAME) for gfn, level, old, new in box.changes()]
    assert changes == [
        (0, 4, EMPTY, LINK), (0, 3, EMPTY, LINK), (0x200, 2, EMPTY, LINK), (0x201, 1, EMPTY, LEAF),
    ]  # fmt: skip
    assert (cause(box), box.vm.tdp_mmu_pages, box.vm.stat.pages_4k, box.vm.n_used_mmu_pages) == ("table", 3, 1, 0)
    box.world.audit()


def test_a_second_page_needs_no_table() -> None:
    box = Tdp()
    box.touch(0x1000)
    box.world.write(box.vcpu, 0x2000, b"x")
    assert names(box) == ["kvm_page_fault", "kvm_mmu_spte_requested", "kvm_tdp_mmu_spte_changed", "kvm_mmu_set_spte"]
    assert (cause(box), box.vm.stat.pages_4k) == ("map", 2)


def test_a_device_leaves_an_mmio_spte_that_the_next_access_finds() -> None:
    box = Tdp()
    box.touch(0)
    assert box.world.read(box.vcpu, HOLE).kind == "mmio"
    assert (cause(box), "mark_mmio_spte" in names(box)) == ("mmio-install", True)
    assert not box.spte(HOLE) & SHADOW
    assert box.vcpu.stat.pf_mmio_spte_created == 1
    assert box.world.read(box.vcpu, HOLE + 0x1000).kind == "mmio"
    assert box.world.read(box.vcpu, HOLE).kind == "mmio"
    assert cause(box) == "mmio-cached"
    assert "check_mmio_spte" in names(box)
    box.world.audit()


def test_a_leaf_over_a_stale_mmio_spte_leaves_d_to_the_hardware() -> None:
    box = Tdp()
    assert box.world.read(box.vcpu, HOLE).kind == "mmio"
    box.world.add_slot(1, HOLE, 0x10000, populate=True)
    box.events.clear()
    assert box.world.read(box.vcpu, HOLE).kind == "done"
    ((gfn, _, old, new),) = [change for change in box.changes() if change[0] == HOLE >> 12]
    assert (gfn, bool(old & SHADOW), new & ~FRAME) == (HOLE >> 12, False, 0xE27)


def test_the_same_leaf_once_more_is_spurious_and_still_tells_set_spte() -> None:
    box = Tdp()
    box.touch(0x1000)
    spte = box.spte(0x1000) & ~0x40
    box.world.memory.write_once(box.sptep(0x1000), spte)
    assert mapped(box, fault_of(box, 0x1000)) == RET_PF_SPURIOUS
    assert names(box) == ["kvm_mmu_spte_requested", "kvm_mmu_set_spte"]
    assert box.spte(0x1000) == spte


def test_a_device_that_is_known_already_is_marked_again() -> None:
    box = Tdp()
    box.touch(0)
    fault = fault_of(box, HOLE)
    for nr in (1, 2):
        assert mapped(box, fault) == RET_PF_EMULATE
        assert box.vcpu.stat.pf_mmio_spte_created == nr
    assert names(box)[-2:] == ["kvm_mmu_spte_requested", "mark_mmio_spte"]


def test_huge_pages_of_the_host_are_mapped_huge() -> None:
    box = Tdp("host_page=2m")
    box.touch(0x234000)
    assert [(level, bool(spte & 0x80)) for level, spte in box.way(0x234000)] == [(4, False), (3, False), (2, True)]
    assert (box.vm.stat.pages_2m, box.vm.stat.pages_4k) == (1, 0)
    box.world.audit()


def test_a_huge_page_on_the_way_is_split_not_zapped() -> None:
    box = Tdp("host_page=2m", "eager_page_split=off")
    box.touch(0x200000)
    box.log()
    box.events.clear()
    assert box.world.write(box.vcpu, 0x201000, b"y").kind == "done"
    after = names(box)[names(box).index("kvm_mmu_spte_requested") :]
    assert after == [
        "kvm_mmu_spte_requested",
        "kvm_mmu_get_page",
        "kvm_tdp_mmu_spte_changed",
        "kvm_mmu_split_huge_page",
        "kvm_tdp_mmu_spte_changed",
        "kvm_mmu_set_spte",
    ]
    assert (cause(box), box.vm.stat.pages_2m, box.vm.stat.pages_4k) == ("remap", 0, 512)
    # The others stay as the huge page was when logging began: mapped, not writable.
    assert (box.spte(0x202000) & W, box.spte(0x201000) & W) == (0, W)
    box.world.audit()


def test_a_huge_page_takes_the_place_of_a_table_which_is_taken_apart_and_flushed() -> None:
    box = Tdp("host_page=2m", "eager_page_split=off")
    box.log()
    box.touch(0x200000, 0x201000)
    with held(box.vm):
        gfnrange.unmap_gfn_range(box.vm, box.slot, 0x200, 0x400)
    # No collapse: the table stays linked, and empty.
    box.slot.flags &= ~1
    box.events.clear()
    flushes = box.vm.stat.remote_tlb_flush_requests
    assert mapped(box, fault_of(box, 0x200000)) == RET_PF_FIXED
    assert box.way(0x200000)[-1][0] == 2
    assert box.vm.stat.remote_tlb_flush_requests == flushes + 1
    changes = box.changes()
    # The entry, then every entry of the table, empty as it is.
    assert [(level, new) for _, level, _, new in changes[1:]] == [(1, FROZEN)] * 512
    assert [gfn for gfn, *_ in changes[1:]] == list(range(0x200, 0x400))
    assert (box.vm.stat.pages_2m, box.vm.stat.pages_4k, box.vm.tdp_mmu_pages) == (1, 0, 2)
    box.world.audit()


def test_a_read_only_page_of_the_host_is_not_writable() -> None:
    box = Tdp()
    fault = fault_of(box, 0x1000, write=False)
    box.touch(0)
    fault.map_writable = False
    assert mapped(box, fault) == RET_PF_FIXED
    assert box.spte(0x1000) & 0xFFF == 0x825


# Lost races.


class Racer:
    """A checker: before the ``nth`` cmpxchg, another actor does ``act``."""

    def __init__(self, box: Tdp, nth: int, act: Callable[[], object]) -> None:
        self.box, self.left, self.act = box, nth, act
        box.vm.gate.arm(self)

    def point(self, kind: str, where: object, key: object) -> None:
        if kind == "cmpxchg":
            self.left -= 1
            if self.left == 0:
                self.box.vm.gate.disarm()
                self.act()
                self.box.vm.gate.arm(self)

    def barrier(self, kind: str) -> None:
        pass

    def wait(self, kind: str, where: object, condition: Callable[[], bool]) -> None:
        assert condition(), kind

    def must_yield(self, where: object) -> bool:
        return False


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_who_loses_an_entry_lets_the_guest_try_again_and_leaves_nothing_behind(nth: int) -> None:
    """Another vCPU links its own table, or maps the page, in between."""
    box = Tdp()
    box.touch(0x4000_0000 >> 9)
    gpa = 0
    with held(box.vm):
        zap_root(box.vm, box.root)
    box.flush()
    other = box.world.create_vcpu()
    fault = fault_of(box, gpa)
    free = box.world.frames.nr_free

    def win() -> None:
        box.vm.gate.run(1)
        box.vm.rcu.read_lock()
        box.vm.rcu.read_unlock()
        box.vm.mmu_lock.read_lock()
        leaf = Leaf()
        leaf.prefetch = False
        assert tdpmap.tdp_map(other, fault_of(box, gpa), leaf) in (RET_PF_FIXED, RET_PF_SPURIOUS)
        box.vm.mmu_lock.read_unlock()
        box.vm.gate.run(0)

    other.mmu.root_hpa = box.vcpu.mmu.root_hpa
    Racer(box, nth, win)
    verdict = mapped(box, fault)
    box.vm.gate.disarm()
    other.mmu.root_hpa = 2**64 - 1
    assert verdict == RET_PF_RETRY
    assert box.vm.tdp_mmu_pages == 3
    assert box.world.frames.nr_free == free - 3
    assert box.vm.stat.pages_4k == 1
    assert box.spte(gpa) & ~FRAME == LEAF
    box.world.audit()


@pytest.mark.parametrize("level", [4, 3, 2, 1])
def test_a_frozen_entry_on_the_way_ends_the_fault(level: int) -> None:
    box = Tdp()
    box.touch(0x1000)
    place = box.sptep(0x1000, level)
    before = box.world.memory.read_once(place)
    box.world.memory.write_once(place, FROZEN)
    free = box.world.frames.nr_free
    assert mapped(box, fault_of(box, 0x1000)) == RET_PF_RETRY
    assert (box.world.memory.read_once(place), box.world.frames.nr_free) == (FROZEN, free)
    box.world.memory.write_once(place, before)


def test_it_wants_the_lock_shared() -> None:
    box = Tdp()
    box.touch(0)
    with held(box.vm), pytest.raises(KvmBug, match="must be held shared"):
        tdpmap.tdp_map(box.vcpu, fault_of(box, 0x1000), Leaf())
    with shared(box.vm):
        assert box.vm.mmu_lock.assert_shared() == 0


def test_the_page_of_a_stale_fault_is_given_back() -> None:
    box = Tdp()
    box.touch(0)
    box.world.set_region(UserMemoryRegion(0, 0, 0, 0, 0))
    # The root in use is invalid: the fault looks again with the next one.
    assert box.root.role & 1 << 11
    box.world.add_slot(0, 0, 0x10000)
    assert box.world.write(box.vcpu, 0, b"x").kind == "done"
    assert not box.root.role & 1 << 11
    box.world.audit()
