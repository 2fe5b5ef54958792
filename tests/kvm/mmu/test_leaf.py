# SPDX-License-Identifier: GPL-2.0-only
"""Leaves: the word for a page bit by bit, what setting it does to what was there, and prefetched neighbours."""

from __future__ import annotations

import itertools

import pytest

from kvm.mmu.machines import (
    ACCESS_ALL,
    AD,
    DATA,
    DIRECT,
    EMPTY,
    HOLE,
    HOST_W,
    MMU_W,
    RW,
    SHADOW,
    VA,
    Guest,
    flushes,
    held,
)
from kvmmu import UserMemoryRegion
from kvmmu.kvm.mmu import leaf as leaf_room
from kvmmu.kvm.mmu import zap
from kvmmu.kvm.mmu.leaf import Leaf
from kvmmu.kvm.mmu.page import ShadowPage
from kvmmu.kvm.mmu.pages import alloc_page

P, W, U, A, D, PS, NX = 1, 2, 4, 0x20, 0x40, 0x80, 1 << 63
EXEC, WRITE, USER = 1, 2, 4
EMULATE, WRITE_PROTECTED, FIXED, SPURIOUS = 2, 3, 5, 6
MAP, REMAP, PERMISSION, UNSYNC = 3, 4, 5, 6
NO_SLOT = 1 << 63
GFN = DATA >> 12


class Box:
    """A guest's vCPU, a shadow page that nothing links, and leaves to put there."""

    def __init__(self, level: int = 1, role: int = 0) -> None:
        self.guest = Guest()
        self.guest.tables.map(VA, DATA)
        self.guest.read(VA + 0x10_0000)
        self.vcpu, self.vm = self.guest.vcpu, self.guest.world.vm
        with held(self.vm):
            self.sp: ShadowPage = alloc_page(self.vm, 0, level | role | ACCESS_ALL | (0 if level == 1 else DIRECT))
        self.sptep = self.sp.spt + 8 * (GFN >> 9 * (level - 1) & 511)

    def leaf(self, access: int = 7, gfn: int = GFN, **settings: object) -> Leaf:
        leaf = Leaf()
        leaf.slot = self.vcpu.gfn_to_memslot(gfn)
        leaf.gfn, leaf.access, leaf.prefetch = gfn, access, False
        if leaf.slot is None:
            leaf.pfn = NO_SLOT
        else:
            leaf.pfn = self.guest.world.mm.user_access(leaf.slot.gfn_to_hva(gfn), True) >> 12
        for name, value in settings.items():
            setattr(leaf, name, value)
        return leaf

    def make(self, leaf: Leaf, old: int = EMPTY) -> int:
        with held(self.vm):
            return leaf_room.make_spte(self.vcpu, self.sp, leaf, old)

    def set(self, leaf: Leaf) -> int:
        with held(self.vm):
            return leaf_room.set_leaf(self.vcpu, self.sp, self.sptep, leaf)

    @property
    def spte(self) -> int:
        return self.vm.memory.read_once(self.sptep)

    def mirror(self, gfn: int, level: int = 1) -> ShadowPage:
        with held(self.vm):
            return alloc_page(self.vm, gfn, level | ACCESS_ALL)


# The word.


def test_every_bit_of_a_leaf_follows_from_access_host_prefetch_and_level() -> None:
    cases = 0
    for level in (1, 2):
        box = Box(level)
        for access, host, prefetch in itertools.product(range(8), (False, True), (False, True)):
            leaf = box.leaf(access, host_writable=host, prefetch=prefetch)
            if level > 1:
                leaf.gfn, leaf.pfn = 0x200, 0x200
            writable = bool(access & WRITE) and host
            expected = SHADOW | P | leaf.pfn << 12
            expected |= 0 if prefetch else A
            expected |= 0 if access & EXEC else NX
            expected |= U if access & USER else 0
            expected |= PS if level > 1 else 0
            expected |= HOST_W if host else 0
            expected |= W | MMU_W | D if writable else 0
            assert box.make(leaf) == expected, (level, access, host, prefetch)
            assert not leaf.wrprot
            cases += 1
    assert cases == 64


def test_without_a_and_d_bits_none_is_set() -> None:
    box = Box(role=1 << 16)
    spte = box.make(box.leaf())
    assert spte & (A | D | 3 << 52) == 1 << 52
    assert spte & (W | MMU_W) == W | MMU_W


@pytest.mark.parametrize(("old", "dirty"), [(EMPTY, D), (SHADOW | W | P, 0), (SHADOW | P, D), (W | 1 << 51 | P, 0)])
def test_d_of_a_leaf_that_was_writable_is_left_to_the_hardware(old: int, dirty: int) -> None:
    """Bit 1 alone counts, present or not, as in KVM."""
    box = Box()
    assert box.make(box.leaf(), old) & (W | D) == W | dirty


@pytest.mark.parametrize(("can_unsync", "prefetch", "level"), [(False, False, 1), (True, True, 1), (True, False, 2)])
def test_a_mirrored_table_that_may_not_go_out_of_sync_is_not_writable(
    can_unsync: bool, prefetch: bool, level: int
) -> None:
    box = Box()
    mirror = box.mirror(GFN, level)
    if level > 1:
        slot = box.vcpu.gfn_to_memslot(GFN)
        assert slot is not None
        array = slot.write_track_array
        assert array is not None
        array[GFN] = 1
    leaf = box.leaf(can_unsync=can_unsync, prefetch=prefetch)
    assert box.make(leaf) & (W | MMU_W | D | HOST_W) == HOST_W
    assert leaf.wrprot
    assert not mirror.unsync


def test_a_mirrored_table_that_may_goes_out_of_sync_and_is_writable() -> None:
    box = Box()
    mirror = box.mirror(GFN)
    leaf = box.leaf()
    assert box.make(leaf) & (W | MMU_W | D) == W | MMU_W | D
    assert (leaf.wrprot, mirror.unsync) == (False, True)


def test_a_writable_leaf_of_a_logged_slot_marks_its_page() -> None:
    box = Box()
    box.guest.world.set_region(UserMemoryRegion(0, 1, 0, 16 << 20, box.guest.hva))
    box.guest.world.dirty_log(0)
    box.make(box.leaf(EXEC | USER))
    assert not any(box.guest.world.dirty_log(0))
    box.make(box.leaf())
    log = int.from_bytes(box.guest.world.dirty_log(0), "little")
    assert log == 1 << GFN


# Setting it.


def test_a_leaf_where_nothing_was_is_entered_into_its_rmap() -> None:
    box = Box()
    leaves = box.vm.stat.pages_4k
    leaf = box.leaf()
    assert box.set(leaf) == FIXED
    assert box.spte == box.make(box.leaf(), EMPTY)
    assert leaf.cause == MAP
    assert leaf.slot is not None
    assert leaf.slot.rmap_word(GFN, 1) == box.sptep
    assert box.vm.memory.read_once(box.sp.shadowed_translation + box.sptep % 4096) == DATA | 7
    assert box.vm.stat.pages_4k == leaves + 1


def test_the_same_leaf_again_is_spurious() -> None:
    box = Box()
    assert box.set(box.leaf(EXEC | USER)) == FIXED
    flushed, leaves = flushes(box.vm), box.vm.stat.pages_4k
    leaf = box.leaf(EXEC | USER)
    assert (box.set(leaf), leaf.cause) == (SPURIOUS, PERMISSION)
    assert (flushes(box.vm), box.vm.stat.pages_4k) == (flushed, leaves)


def test_other_rights_to_the_same_page_are_changed_in_place() -> None:
    box = Box()
    box.set(box.leaf(EXEC | USER))
    flushed, leaves = flushes(box.vm), box.vm.stat.pages_4k
    leaf = box.leaf()
    assert (box.set(leaf), leaf.cause) == (FIXED, PERMISSION)
    assert box.spte & (W | MMU_W | D) == W | MMU_W | D
    assert (flushes(box.vm), box.vm.stat.pages_4k) == (flushed, leaves)
    assert box.vm.memory.read_once(box.sp.shadowed_translation + box.sptep % 4096) == DATA | 7
    # Losing W needs a flush.
    assert box.set(box.leaf(EXEC)) == FIXED
    assert flushes(box.vm) == flushed + 1
    assert box.vm.memory.read_once(box.sp.shadowed_translation + box.sptep % 4096) == DATA | 1


def test_a_gfn_with_the_same_page_leaves_the_entry_in_the_rmap_where_it_is() -> None:
    # The zero page is behind many gfns. The entry is known under the gfn that it was made for, until a sync drops it.
    box = Box()
    first, second = box.leaf(EXEC), box.leaf(EXEC | USER, GFN + 1)
    assert first.slot is not None
    second.pfn = first.pfn
    box.set(first)
    assert (box.set(second), second.cause) == (FIXED, PERMISSION)
    assert (first.slot.rmap_word(GFN, 1), first.slot.rmap_word(GFN + 1, 1)) == (box.sptep, 0)
    assert box.vm.memory.read_once(box.sp.shadowed_translation + box.sptep % 4096) == DATA | EXEC | USER


def test_another_page_replaces_the_old_one_with_a_flush() -> None:
    box = Box()
    first = box.leaf()
    box.set(first)
    flushed, leaves = flushes(box.vm), box.vm.stat.pages_4k
    second = box.leaf(gfn=GFN + 1)
    assert (box.set(second), second.cause) == (FIXED, REMAP)
    assert (flushes(box.vm), box.vm.stat.pages_4k) == (flushed + 1, leaves)
    assert second.slot is not None
    assert [second.slot.rmap_word(gfn, 1) for gfn in (GFN, GFN + 1)] == [0, box.sptep]


def test_a_large_leaf_unlinks_the_table_that_was_there() -> None:
    box = Box(2)
    child = box.mirror(GFN)
    box.vm.memory.write_once(box.sptep, child.spt | SHADOW | 7)
    with held(box.vm):
        zap.add_parent_pte(box.vm, child, box.sptep)
    leaf = box.leaf()
    leaf.gfn, leaf.pfn = 0, 0x200
    flushed = flushes(box.vm)
    assert (box.set(leaf), leaf.cause) == (FIXED, REMAP)
    assert (child.parent_ptes, flushes(box.vm)) == (0, flushed + 1)
    assert box.spte & PS
    assert child in box.guest.world.shadow_pages()


@pytest.mark.parametrize("was_mapped", [False, True])
def test_a_device_is_an_mmio_entry_without_rmap(was_mapped: bool) -> None:
    box = Box()
    if was_mapped:
        box.set(box.leaf())
    flushed, leaves, created = flushes(box.vm), box.vm.stat.pages_4k, box.vcpu.stat.pf_mmio_spte_created
    assert box.set(box.leaf(gfn=HOLE >> 12)) == EMULATE
    assert box.spte & SHADOW == 0
    assert box.spte >> 12 & 0xFFFFFF == HOLE >> 12
    assert box.vcpu.stat.pf_mmio_spte_created == created + 1
    assert flushes(box.vm) == flushed + was_mapped
    assert box.vm.stat.pages_4k == leaves - was_mapped


@pytest.mark.parametrize(("write_fault", "verdict"), [(True, WRITE_PROTECTED), (False, FIXED)])
def test_a_write_to_a_mirrored_table_is_write_protected(write_fault: bool, verdict: int) -> None:
    box = Box()
    box.mirror(GFN)
    assert box.set(box.leaf(can_unsync=False, write_fault=write_fault)) == verdict
    # Also when the entry is what it was.
    again = WRITE_PROTECTED if write_fault else SPURIOUS
    assert box.set(box.leaf(can_unsync=False, write_fault=write_fault)) == again


def test_a_table_that_goes_out_of_sync_is_the_cause() -> None:
    box = Box()
    box.mirror(GFN)
    leaf = box.leaf(write_fault=True)
    assert (box.set(leaf), leaf.cause) == (FIXED, UNSYNC)


def test_what_was_there_is_told_apart() -> None:
    box = Box(2)
    with held(box.vm):
        leaf = box.leaf()
        leaf.pfn = 0x200
        # Nothing, MMIO, and the page itself with other rights.
        for old, expected in (
            (EMPTY, MAP),
            (1 << 51 | P, MAP),
            (SHADOW | PS | P | 0x200 << 12, PERMISSION),
        ):
            box.vm.memory.write_once(box.sptep, old)
            assert leaf_room.replace_present(box.vcpu, box.sp, box.sptep, leaf) == expected
            assert box.spte == old


# Ahead of need.


@pytest.mark.parametrize(
    ("flags", "access", "found"), [(0, 7, True), (1, 7, False), (1, EXEC | USER, True), (1, WRITE, False)]
)
def test_writable_neighbours_in_a_logged_slot_are_not_mapped(flags: int, access: int, found: bool) -> None:
    box = Box()
    if flags:
        box.guest.world.set_region(UserMemoryRegion(0, flags, 0, 16 << 20, box.guest.hva))
    slot = leaf_room.prefetch_slot(box.vcpu, GFN, access)
    assert (slot is not None) == found
    assert leaf_room.prefetch_slot(box.vcpu, HOLE >> 12, access) is None


def test_a_neighbour_is_mapped_if_the_host_has_it_writable_at_hand() -> None:
    box = Box()
    leaf = box.leaf(prefetch=True)
    pfn = leaf.pfn
    leaf.pfn = 0
    refs = box.vm.frames.nr_refs(pfn)
    with held(box.vm):
        assert leaf_room.prefetch_one(box.vcpu, box.sp, box.sptep, leaf)
    assert box.spte & (A | SHADOW) == SHADOW
    assert (box.spte >> 12 & 0xFFFFFF, box.vm.frames.nr_refs(pfn)) == (pfn, refs)


@pytest.mark.parametrize("reason", ["not at hand", "read-only here", "read-only slot", "no slot"])
def test_prefetch_stops(reason: str) -> None:
    box = Box()
    world = box.guest.world
    gfn = GFN
    if reason == "not at hand":
        gfn = 0x800
    elif reason == "read-only here":
        world.mm.mprotect(box.guest.hva + DATA, 0x1000, writable=False)
    elif reason == "read-only slot":
        world.add_slot(7, 0x2000_0000, 0x1000, flags=2, populate=True)
        gfn = 0x20000
    else:
        gfn = HOLE >> 12
    leaf = Leaf()
    leaf.gfn, leaf.access = gfn, 7
    with held(box.vm):
        assert not leaf_room.prefetch_one(box.vcpu, box.sp, box.sptep, leaf)
    assert box.spte == EMPTY


def direct_page(box: Box, gpas: list[int]) -> ShadowPage:
    """A direct level-1 page of the block at 8 MiB, with host memory at these gpas."""
    for gpa in gpas:
        box.guest.world.poke(gpa, 1)
    with held(box.vm):
        return alloc_page(box.vm, 0x800, 1 | DIRECT | ACCESS_ALL)


def present(box: Box, sp: ShadowPage, nr: int = 16) -> list[int]:
    return [i for i in range(nr) if box.vm.memory.read_once(sp.spt + 8 * i) & SHADOW]


@pytest.mark.parametrize(
    ("backed", "mapped", "found"), [([0, 1, 2, 3], [0, 1, 2, 3], True), ([0, 2], [0], True), ([1, 2], [], False)]
)
def test_a_run_maps_what_the_host_has_from_its_start(backed: list[int], mapped: list[int], found: bool) -> None:
    box = Box()
    sp = direct_page(box, [0x80_0000 + i * 0x1000 for i in backed])
    with held(box.vm):
        assert leaf_room.prefetch_run(box.vcpu, sp, sp.spt, sp.spt + 32) == found
    assert present(box, sp) == mapped


def test_the_neighbours_of_a_direct_entry_are_those_of_its_group_of_8() -> None:
    box = Box()
    sp = direct_page(box, [0x80_0000 + i * 0x1000 for i in range(16)])
    with held(box.vm):
        leaf_room.prefetch_direct(box.vcpu, sp, sp.spt + 8 * 11)
    # The entry itself is its fault's business.
    assert present(box, sp) == [8, 9, 10, 12, 13, 14, 15]
    slot = box.vcpu.gfn_to_memslot(0x800)
    assert slot is not None
    assert [bool(slot.rmap_word(0x800 + i, 1)) for i in range(7, 13)] == [False, True, True, True, False, True]


def test_a_fresh_leaf_is_a_prefetch_with_every_right_of_the_host() -> None:
    for leaf in (Leaf(), leaf_room.make_leaf()):
        assert (leaf.slot, leaf.gfn, leaf.pfn, leaf.access, leaf.cause) == (None, 0, 0, 0, 0)
        assert (leaf.host_writable, leaf.prefetch, leaf.can_unsync) == (True, True, True)
        assert (leaf.write_fault, leaf.wrprot) == (False, False)


def test_a_guests_own_leaf_has_all_of_it() -> None:
    """The word that a plain write makes, once more from outside."""
    guest = Guest()
    guest.tables.map(VA, DATA, flags=RW | AD)
    assert guest.write(VA) == "done"
    spte = guest.world.walk(guest.vcpu, VA)[-1].spte
    assert spte & ~(0xFFFFFF << 12) == SHADOW | HOST_W | MMU_W | P | W | U | A | D
