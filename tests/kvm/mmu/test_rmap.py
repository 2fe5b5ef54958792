# SPDX-License-Identifier: GPL-2.0-only
"""Reverse maps: the shapes of the descriptor chains word by word, and what is done through them.

The chains are compared with a model that keeps Python lists; locations in them need not exist.
"""

from __future__ import annotations

import random

import pytest

from kvm.mmu.machines import ACCESS_ALL, DIRECT, EMPTY, HOST_W, MMU_W, SHADOW, SLOT_PAGES, OneSlot, flushes, held
from kvmmu import KvmBug
from kvmmu.host.bits import PG_ACCESSED, PG_DIRTY
from kvmmu.kvm.mmu import rmap
from kvmmu.kvm.mmu.page import ShadowPage
from kvmmu.kvm.mmu.pages import alloc_page

#: Entries of a descriptor, descriptors of a frame.
WIDTH, PER_FRAME = 14, 32
SHAPES = (1, 2, 14, 15, 16, 28, 29, 43)
P, W, U, A, D, PS = 1, 2, 4, 0x20, 0x40, 0x80
LEAF = SHADOW | HOST_W | MMU_W | P | W | U


def location(number: int) -> int:
    return 0x4000_0000 + 8 * number


class Model:
    """A chain as lists of locations, the head descriptor first; None: the list of one that needs no descriptor."""

    def __init__(self) -> None:
        self.descs: list[list[int]] = []
        self.single: int | None = None

    def add(self, sptep: int) -> None:
        if self.single is not None:
            self.descs, self.single = [[self.single, sptep]], None
        elif not self.descs:
            self.single = sptep
        elif len(self.descs[0]) == WIDTH:
            self.descs.insert(0, [sptep])
        else:
            self.descs[0].append(sptep)

    def remove(self, sptep: int) -> None:
        if self.single is not None:
            assert self.single == sptep
            self.single = None
            return
        (desc,) = [desc for desc in self.descs if sptep in desc]
        desc[desc.index(sptep)] = self.descs[0][-1]
        self.descs[0].pop()
        if not self.descs[0]:
            self.descs.pop(0)

    def all(self) -> list[int]:
        return [self.single] if self.single is not None else [sptep for desc in self.descs for sptep in desc]


class Lists(OneSlot):
    """One slot whose rmaps the test fills."""

    def add(self, head: int, sptep: int) -> int:
        with held(self.vm):
            return rmap.pte_list_add(self.vm, head, sptep)

    def remove(self, head: int, sptep: int) -> int:
        with held(self.vm):
            return rmap.pte_list_remove(self.vm, head, sptep)

    def make(self, nr: int) -> int:
        head = 0
        for number in range(nr):
            head = self.add(head, location(number))
        return head

    def descs(self, head: int) -> list[list[int]]:
        """The chain as it lies in memory, with the counts of what follows checked."""
        found, behind = [], []
        desc = head & ~7
        while desc:
            assert desc % 128 == 0
            word = self.read(desc + 8)
            found.append([self.read(desc + 16 + 8 * i) for i in range(word & 0xFFFF_FFFF)])
            behind.append(word >> 32)
            desc = self.read(desc)
        assert behind == [sum(len(later) for later in found[i + 1 :]) for i in range(len(found))]
        return found

    def nr_free_descs(self) -> int:
        nr, desc = 0, self.vm.desc_free
        while desc:
            nr += 1
            desc = self.read(desc)
        return nr

    def nr_descs(self) -> int:
        """Descriptors in use."""
        return self.vm.nr_desc_frames * PER_FRAME - self.nr_free_descs()

    def is_like(self, head: int, model: Model) -> bool:
        if model.single is not None:
            return head == model.single
        if not model.descs:
            return head == 0
        return head & 7 == 1 and self.descs(head) == model.descs

    def walk(self, head: int) -> list[int]:
        found, place = [], rmap.pte_list_first(head)
        while place:
            found.append(rmap.pte_list_sptep(self.vm, place))
            place = rmap.pte_list_next(self.vm, place)
        return found

    # Leaves.

    def page(self, gfn: int, level: int = 1, flags: int = DIRECT) -> ShadowPage:
        with held(self.vm):
            return alloc_page(self.vm, gfn, level | flags | ACCESS_ALL)

    def leaf(self, sp: ShadowPage, index: int, gfn: int, word: int = LEAF, access: int = 7) -> int:
        """Put ``word`` for a fresh frame into the table and enter it; where it lies."""
        sptep = sp.spt + 8 * index
        self.world.memory.write_once(sptep, word | self.world.frames.alloc() << 12)
        with held(self.vm):
            rmap.rmap_add(self.vm, self.slot, sptep, gfn, access)
        return sptep

    def head(self, gfn: int, level: int = 1) -> int:
        return self.slot.rmap_word(gfn, level)

    def at(self, gfn: int, level: int) -> int:
        """Number of the word in the slot's array: 2M blocks first, then 1G, then pages."""
        blocks = (SLOT_PAGES // 512, 1)
        return {2: gfn >> 9, 3: blocks[0] + (gfn >> 18), 1: sum(blocks) + gfn}[level]


# The chains.


@pytest.mark.parametrize("nr", SHAPES)
def test_a_chain_grows_at_its_head_and_only_the_head_is_partly_filled(nr: int) -> None:
    lists = Lists()
    head = lists.make(nr)
    if nr == 1:
        assert head == location(0)
        return
    full, rest = divmod(nr - 1, WIDTH)
    sizes = [rest + 1, *[WIDTH] * full]
    assert [len(desc) for desc in lists.descs(head)] == sizes
    chunks = [list(range(start, min(start + WIDTH, nr))) for start in range(0, nr, WIDTH)]
    assert lists.descs(head) == [[location(number) for number in chunk] for chunk in reversed(chunks)]
    assert lists.nr_descs() == len(sizes)


@pytest.mark.parametrize("nr", [0, *SHAPES])
def test_count_and_walk_tell_every_entry_once(nr: int) -> None:
    lists = Lists()
    head = lists.make(nr)
    assert rmap.pte_list_count(lists.vm, head) == nr
    walked = lists.walk(head)
    assert sorted(walked) == [location(number) for number in range(nr)]
    if nr > 1:
        assert walked == [sptep for desc in lists.descs(head) for sptep in desc]


def test_removal_fills_the_hole_from_the_head_wherever_it_is() -> None:
    cases = 0
    for nr in SHAPES:
        for victim in range(nr):
            lists, model = Lists(), Model()
            for number in range(nr):
                model.add(location(number))
            head = lists.remove(lists.make(nr), location(victim))
            model.remove(location(victim))
            assert lists.is_like(head, model), (nr, victim)
            assert rmap.pte_list_count(lists.vm, head) == nr - 1
            assert lists.nr_descs() == len(model.descs)
            cases += 1
    assert cases == sum(SHAPES)


def test_a_list_that_shrinks_to_one_keeps_its_descriptor() -> None:
    lists = Lists()
    head = lists.remove(lists.make(2), location(0))
    assert lists.descs(head) == [[location(1)]]
    assert lists.remove(head, location(1)) == 0
    assert lists.nr_descs() == 0


@pytest.mark.parametrize("order", ["first in first", "last in first", "any"])
def test_a_drained_chain_gives_every_descriptor_back(order: str) -> None:
    lists = Lists()
    head = lists.make(500)
    assert (lists.nr_descs(), lists.vm.nr_desc_frames) == (36, 2)
    victims = list(range(500))
    if order == "last in first":
        victims.reverse()
    elif order == "any":
        random.Random(5).shuffle(victims)
    for number in victims:
        head = lists.remove(head, location(number))
    assert (head, lists.nr_descs(), lists.vm.nr_desc_frames) == (0, 0, 2)
    lists.make(500)
    assert lists.vm.nr_desc_frames == 2


def test_descriptors_of_one_frame_are_32_that_do_not_overlap() -> None:
    lists = Lists()
    with held(lists.vm):
        descs = [rmap.alloc_desc(lists.vm) for _ in range(33)]
    assert {desc % 128 for desc in descs} == {0}
    assert len(set(descs)) == 33
    assert len({desc >> 12 for desc in descs[:32]}) == 1
    assert descs[32] >> 12 != descs[0] >> 12
    with held(lists.vm):
        rmap.free_desc(lists.vm, descs[7])
        assert rmap.alloc_desc(lists.vm) == descs[7]


@pytest.mark.parametrize("nr", [0, 1, 2, 14, 15, 29])
def test_removing_what_is_not_there_is_a_bug_and_changes_nothing(nr: int) -> None:
    lists = Lists()
    head = lists.make(nr)
    before = lists.walk(head)
    with pytest.raises(KvmBug, match="is not in the list"):
        lists.remove(head, location(nr))
    assert lists.walk(head) == before
    assert rmap.pte_list_count(lists.vm, head) == nr


@pytest.mark.parametrize(("count", "is_bug"), [(WIDTH, False), (WIDTH + 1, True), (0xFFFF_FFFF, True)])
def test_a_descriptor_with_more_entries_than_it_holds_is_a_bug(count: int, is_bug: bool) -> None:
    """As one that lies where no memory is: all its words are ones, and its walk would take 2**32 steps."""
    lists = Lists()
    head = lists.make(WIDTH)
    lists.world.memory.write_once((head & ~7) + 8, count)
    if not is_bug:
        assert len(lists.walk(head)) == WIDTH
        return
    words = f"rmap: {count} entries in the descriptor at {head & ~7:#x}, which holds {WIDTH}"
    with pytest.raises(KvmBug, match=words):
        lists.walk(head)


def test_a_stale_entry_behind_the_count_is_not_found() -> None:
    """A removed entry's word is still in the descriptor; the count says that it is not."""
    lists = Lists()
    head = lists.remove(lists.make(3), location(2))
    with pytest.raises(KvmBug, match="is not in the list"):
        lists.remove(head, location(2))


def test_random_changes_agree_with_the_model() -> None:
    rng = random.Random(11)
    lists, model, head = Lists(), Model(), 0
    present: list[int] = []
    for number in range(1500):
        if present and rng.random() < (0.35 if number < 700 else 0.6):
            sptep = present.pop(rng.randrange(len(present)))
            head = lists.remove(head, sptep)
            model.remove(sptep)
        else:
            present.append(location(number))
            head = lists.add(head, location(number))
            model.add(location(number))
        if number % 25 == 0:
            assert lists.is_like(head, model)
            assert rmap.pte_list_count(lists.vm, head) == len(present)
            assert lists.nr_descs() == len(model.descs)
    assert sorted(lists.walk(head)) == sorted(present)


# Leaves.


def test_an_added_leaf_is_counted_and_found_at_its_level() -> None:
    lists = Lists()
    small = lists.leaf(lists.page(0x200), 5, 0x205)
    large = lists.leaf(lists.page(0, 2), 1, 0x200, LEAF | PS)
    assert (lists.head(0x205), lists.head(0x200, 2)) == (small, large)
    assert [lists.head(gfn) for gfn in (0x204, 0x206, 0x200)] == [0, 0, 0]
    assert [lists.head(0, 2), lists.head(0, 3)] == [0, 0]
    assert (lists.vm.stat.pages_4k, lists.vm.stat.pages_2m, lists.vm.stat.pages_1g) == (1, 1, 0)


def test_an_added_leaf_of_an_indirect_page_notes_what_it_translates() -> None:
    lists = Lists()
    sp = lists.page(0x30, flags=0)
    lists.leaf(sp, 9, 0x123, access=5)
    assert lists.read(sp.shadowed_translation + 8 * 9) == 0x123 << 12 | 5
    assert lists.head(0x123) == sp.spt + 72


def test_the_list_of_a_gfn_is_recycled_when_it_had_more_than_1000_before() -> None:
    lists = Lists()
    pages = [lists.page(0x300 + number, flags=0) for number in range(2)]
    places = [(pages[number // 512], number % 512) for number in range(1002)]
    for sp, index in places[:-1]:
        lists.leaf(sp, index, 0x42)
    assert rmap.pte_list_count(lists.vm, lists.head(0x42)) == 1001
    assert (lists.vm.stat.pages_4k, lists.vm.stat.max_mmu_rmap_size, flushes(lists.vm)) == (1001, 1000, 0)
    sp, index = places[-1]
    lists.leaf(sp, index, 0x42)
    assert lists.head(0x42) == 0
    assert {lists.read(sp.spt + 8 * index) for sp, index in places} == {EMPTY}
    assert (lists.vm.stat.pages_4k, lists.vm.stat.max_mmu_rmap_size, flushes(lists.vm)) == (0, 1001, 1)
    assert lists.nr_descs() == 0


def test_a_recycled_gfn_leaves_its_neighbours_alone() -> None:
    lists = Lists()
    pages = [lists.page(0x300 + number, flags=0) for number in range(3)]
    neighbour = lists.leaf(pages[2], 511, 0x43)
    for number in range(1002):
        lists.leaf(pages[number // 512], number % 512, 0x42)
    assert (lists.head(0x42), lists.head(0x43)) == (0, neighbour)
    assert lists.read(neighbour) != EMPTY
    assert lists.vm.stat.pages_4k == 1


def test_a_removed_leaf_is_taken_from_the_rmap_of_the_pages_own_gfn() -> None:
    lists = Lists()
    indirect, direct = lists.page(0x30, flags=0), lists.page(0x120)
    first, second = lists.leaf(indirect, 9, 0x123), lists.leaf(direct, 3, 0x123)
    with held(lists.vm):
        rmap.rmap_remove(lists.vm, first)
    assert lists.walk(lists.head(0x123)) == [second]


def test_a_leaf_of_a_gfn_without_a_slot_is_a_bug() -> None:
    lists = Lists()
    sp = lists.page(SLOT_PAGES)
    with held(lists.vm), pytest.raises(KvmBug, match="no slot for gfn"):
        rmap.rmap_remove(lists.vm, sp.spt)


def test_a_dropped_leaf_is_gone_from_table_rmap_and_count_and_tells_its_frame() -> None:
    lists = Lists()
    sp = lists.page(0x200)
    sptep = lists.leaf(sp, 5, 0x205, LEAF | A | D)
    pfn = lists.read(sptep) >> 12 & 0xFFFFF
    with held(lists.vm):
        rmap.drop_spte(lists.vm, sptep)
    assert (lists.read(sptep), lists.head(0x205), lists.vm.stat.pages_4k) == (EMPTY, 0, 0)
    assert lists.world.frames.flags_of(pfn) & (PG_ACCESSED | PG_DIRTY) == PG_ACCESSED | PG_DIRTY


def test_dropping_nothing_does_not_look_for_an_rmap() -> None:
    lists = Lists()
    sp = lists.page(0x200)
    with held(lists.vm):
        rmap.drop_spte(lists.vm, sp.spt + 40)
    assert (lists.read(sp.spt + 40), lists.vm.stat.pages_4k) == (EMPTY, 0)


@pytest.mark.parametrize("nr", [0, 1, 2, 14, 15, 29])
def test_a_zapped_rmap_clears_every_leaf_and_frees_its_chain(nr: int) -> None:
    lists = Lists()
    sp = lists.page(0x30, flags=0)
    places = [lists.leaf(sp, index, 0x42) for index in range(nr)]
    other = lists.leaf(sp, 100, 0x41)
    with held(lists.vm):
        assert rmap.zap_rmap(lists.vm, lists.slot, lists.at(0x42, 1)) == (nr > 0)
    assert {lists.read(sptep) for sptep in places} <= {EMPTY}
    assert (lists.head(0x42), lists.head(0x41), lists.vm.stat.pages_4k, lists.nr_descs()) == (0, other, 1, 0)


# Write protection.


@pytest.mark.parametrize(
    ("bits", "pt_protect", "after", "flush"),
    [
        (W | MMU_W, False, MMU_W, True),
        (W | MMU_W, True, 0, True),
        (MMU_W, False, MMU_W, False),
        (MMU_W, True, 0, True),
        (0, False, 0, False),
        (0, True, 0, False),
    ],
)
def test_write_protection_of_one_leaf(bits: int, pt_protect: bool, after: int, flush: bool) -> None:
    """For dirty logging the lockless path may give W back; for a guest table it may not."""
    lists = Lists()
    sptep = lists.leaf(lists.page(0x200), 5, 0x205, (LEAF & ~(W | MMU_W)) | bits)
    kept = lists.read(sptep) & ~(W | MMU_W)
    with held(lists.vm):
        assert rmap.spte_write_protect(lists.vm, sptep, pt_protect) == flush
    assert lists.read(sptep) == kept | after


@pytest.mark.parametrize("writable", range(3))
def test_one_writable_leaf_among_others_is_enough_for_a_flush(writable: int) -> None:
    lists = Lists()
    sp = lists.page(0x30, flags=0)
    read_only = LEAF & ~(W | MMU_W | HOST_W)
    places = [lists.leaf(sp, index, 0x42, LEAF if index == writable else read_only) for index in range(3)]
    with held(lists.vm):
        assert rmap.rmap_write_protect(lists.vm, lists.head(0x42), True)
        assert not rmap.rmap_write_protect(lists.vm, lists.head(0x42), True)
    assert [lists.read(sptep) & (W | MMU_W) for sptep in places] == [0, 0, 0]


@pytest.mark.parametrize(("min_level", "protected"), [(1, [1, 2, 3]), (2, [2, 3]), (3, [3])])
def test_a_guest_table_is_protected_at_every_level_from_the_lowest_wanted_on(
    min_level: int, protected: list[int]
) -> None:
    lists = Lists()
    places = {
        1: lists.leaf(lists.page(0x200), 5, 0x205),
        2: lists.leaf(lists.page(0, 2), 1, 0x200, LEAF | PS),
        3: lists.leaf(lists.page(0, 3), 0, 0, LEAF | PS),
    }
    others = [lists.leaf(lists.page(0x200), 6, 0x206), lists.leaf(lists.page(0, 2), 0, 0, LEAF | PS)]
    with held(lists.vm):
        assert rmap.write_protect_gfn(lists.vm, lists.slot, 0x205, min_level)
        assert not rmap.write_protect_gfn(lists.vm, lists.slot, 0x205, min_level)
    assert [level for level, sptep in places.items() if not lists.read(sptep) & W] == protected
    assert all(lists.read(sptep) & W for sptep in others)
