# SPDX-License-Identifier: GPL-2.0-only
"""Write tracking: counts per gfn, what they forbid, and whose writes are protected when a table is mirrored."""

from __future__ import annotations

import pytest

from kvm.mmu.machines import ACCESS_ALL, AD, DATA, HOLE, MMU_W, RW, VA, Guest, W, flushes, held
from kvmmu import KvmBug, Params, World
from kvmmu.kvm.memslots import Memslot
from kvmmu.kvm.mmu import track
from kvmmu.kvm.mmu.page import ShadowPage
from kvmmu.kvm.mmu.pages import alloc_page
from kvmmu.kvm.vm import Vm

GFN = 0x345
SMM = 1 << 24


class Slots:
    """A VM with 16 MiB in each address space, no leaf anywhere."""

    def __init__(self) -> None:
        self.world = World(Params(npt=False), nr_frames=4096)
        self.vm: Vm = self.world.vm
        self.slots: list[Memslot] = []
        for as_id in (0, 1):
            self.world.add_slot(as_id << 16, 0, 16 << 20)
            slot = self.vm.gfn_to_memslot(0, as_id)
            assert slot is not None
            self.slots.append(slot)

    def count(self, gfn: int = GFN, as_id: int = 0) -> int:
        array = self.slots[as_id].write_track_array
        assert array is not None
        return array[gfn]

    def set_count(self, value: int) -> None:
        array = self.slots[0].write_track_array
        assert array is not None
        array[GFN] = value

    def disallowed(self, gfn: int = GFN, as_id: int = 0) -> tuple[int, int]:
        return tuple(self.slots[as_id].nr_disallowed(gfn, level) for level in (2, 3))  # type: ignore[return-value]

    def page(self, level: int, gfn: int = GFN, role: int = 0) -> ShadowPage:
        with held(self.vm):
            return alloc_page(self.vm, gfn, level | role | ACCESS_ALL)


def test_a_tracked_gfn_is_counted_and_has_no_large_page() -> None:
    box = Slots()
    edge = box.disallowed()[1]
    with held(box.vm):
        for _ in range(3):
            track.add_gfn(box.vm, box.slots[0], GFN)
    assert (box.count(), box.disallowed()) == (3, (3, edge + 3))
    assert (box.count(GFN + 1), box.disallowed(GFN + 512)[0]) == (0, 0)
    with held(box.vm):
        track.remove_gfn(box.vm, box.slots[0], GFN)
    assert (box.count(), box.disallowed()) == (2, (2, edge + 2))


def test_tracking_that_ends_more_often_than_it_began_is_a_bug() -> None:
    box = Slots()
    before = box.disallowed()
    with held(box.vm), pytest.raises(KvmBug, match="-1 pages; a count has 16 bits and never ends below 0"):
        track.remove_gfn(box.vm, box.slots[0], GFN)
    assert (box.count(), box.disallowed()) == (0, before)


def test_tracking_by_more_than_a_16_bit_count_is_a_bug() -> None:
    box = Slots()
    box.set_count(65534)
    with held(box.vm):
        track.add_gfn(box.vm, box.slots[0], GFN)
        with pytest.raises(KvmBug, match="65536 pages; a count has 16 bits"):
            track.add_gfn(box.vm, box.slots[0], GFN)
    assert box.count() == 65535


@pytest.mark.parametrize("as_id", [0, 1])
def test_a_gfn_is_tracked_if_it_is_in_either_address_space(as_id: int) -> None:
    box = Slots()
    assert [track.is_write_tracked(box.vm, slot, GFN) for slot in (None, *box.slots)] == [False] * 3
    with held(box.vm):
        track.add_gfn(box.vm, box.slots[as_id], GFN)
    # Whichever slot the caller has in hand, or none.
    assert [track.is_write_tracked(box.vm, slot, GFN) for slot in (None, *box.slots)] == [True] * 3
    assert [track.is_write_tracked(box.vm, slot, GFN + 1) for slot in (None, *box.slots)] == [False] * 3


def test_a_gfn_without_a_slot_or_without_counts_is_not_tracked() -> None:
    assert not track.is_write_tracked(Slots().vm, None, HOLE >> 12)
    world = World(Params(npt=True), nr_frames=1024)
    world.add_slot(0, 0, 1 << 20)
    for slot in (None, world.vm.gfn_to_memslot(1, 0)):
        assert not track.is_write_tracked(world.vm, slot, 1)


@pytest.mark.parametrize("as_id", [0, 1])
@pytest.mark.parametrize(("level", "tracked"), [(1, 0), (2, 1), (3, 1), (4, 1)])
def test_only_tables_above_level_1_are_tracked_and_all_forbid_large_pages(level: int, tracked: int, as_id: int) -> None:
    box = Slots()
    edges = [box.disallowed(as_id=space) for space in (0, 1)]
    edge = edges[as_id]
    sp = box.page(level, role=SMM * as_id)
    with held(box.vm):
        track.account_shadowed(box.vm, sp)
    assert box.vm.indirect_shadow_pages == 1
    assert [box.count(as_id=space) for space in (0, 1)] == [tracked if space == as_id else 0 for space in (0, 1)]
    assert box.disallowed(as_id=as_id) == (edge[0] + 1, edge[1] + 1)
    assert box.disallowed(as_id=1 - as_id) == edges[1 - as_id]
    with held(box.vm):
        track.unaccount_shadowed(box.vm, sp)
    assert (box.vm.indirect_shadow_pages, box.count(as_id=as_id)) == (0, 0)
    assert box.disallowed(as_id=as_id) == edge


@pytest.mark.parametrize("function", [track.account_shadowed, track.unaccount_shadowed])
def test_a_mirrored_table_without_a_slot_is_a_bug(function: object) -> None:
    box = Slots()
    sp = box.page(2, gfn=HOLE >> 12)
    with held(box.vm), pytest.raises(KvmBug, match="without a slot"):
        function(box.vm, sp)  # type: ignore[operator]


@pytest.mark.parametrize("level", [1, 2])
def test_what_maps_the_table_writable_is_protected_and_flushed(level: int) -> None:
    guest = Guest()
    guest.tables.map(VA, DATA, flags=RW | AD)
    assert guest.write(VA) == "done"
    vm, leaf = guest.world.vm, guest.world.walk(guest.vcpu, VA)[-1]
    assert leaf.spte & (W | MMU_W) == W | MMU_W
    flushed = flushes(vm)
    with held(vm):
        sp = alloc_page(vm, DATA >> 12, level | ACCESS_ALL)
        track.account_shadowed(vm, sp)
    assert vm.memory.read_once(leaf.hpa) & (W | MMU_W) == 0
    assert flushes(vm) == flushed + 1
    with held(vm):
        track.unaccount_shadowed(vm, sp)
        track.account_shadowed(vm, sp)
    # Nothing was writable any more: no second flush.
    assert flushes(vm) == flushed + 1
    assert vm.memory.read_once(leaf.hpa) & (W | MMU_W) == 0
