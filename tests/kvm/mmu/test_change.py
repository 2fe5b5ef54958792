# SPDX-License-Identifier: GPL-2.0-only
"""The door through which sptes change: what is exchanged, what is told to the page, when a flush is due."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from kvm.mmu.machines import ACCESS_ALL, DIRECT, EMPTY, HOST_W, MMU_W, SHADOW, held
from kvmmu import KvmBug, Params, World
from kvmmu.host.bits import PG_ACCESSED, PG_DIRTY
from kvmmu.kvm.mmu import change
from kvmmu.kvm.mmu.pages import alloc_page

P, W, U, A, D = 1, 2, 4, 0x20, 0x40
BASE = SHADOW | HOST_W | P | U


class Entry:
    """One spte of a level-1 page, and a frame for it to map."""

    def __init__(self, word: int = EMPTY, level: int = 1) -> None:
        self.world = World(Params(npt=False), nr_frames=1024)
        self.world.add_slot(0, 0, 1 << 20)
        self.vm = self.world.vm
        with held(self.vm):
            sp = alloc_page(self.vm, 0, level | DIRECT | ACCESS_ALL)
        self.sptep = sp.spt + 0x100
        self.pfn = self.world.frames.alloc()
        self.put(word)

    def put(self, word: int) -> None:
        self.world.memory.write_once(self.sptep, self.word(word))

    def word(self, flags: int) -> int:
        return flags | self.pfn << 12 if flags & SHADOW else flags

    @property
    def now(self) -> int:
        return self.world.memory.read_once(self.sptep)

    def told(self) -> tuple[bool, bool]:
        """Whether the frame was said to be accessed, and dirty."""
        flags = self.world.frames.flags_of(self.pfn)
        return bool(flags & PG_ACCESSED), bool(flags & PG_DIRTY)


@pytest.mark.parametrize(("level", "counts"), [(1, (3, 0, 0)), (2, (0, 3, 0)), (3, (0, 0, 3))])
def test_leaves_are_counted_by_size(level: int, counts: tuple[int, int, int]) -> None:
    vm = Entry().vm
    with held(vm):
        change.count_pages(vm, level, 5)
        change.count_pages(vm, level, -2)
    assert (vm.stat.pages_4k, vm.stat.pages_2m, vm.stat.pages_1g) == counts


@pytest.mark.parametrize("old", [EMPTY, 0, 1 << 51 | P | 1 << 12])
def test_a_word_is_set_where_nothing_was_present(old: int) -> None:
    entry = Entry(old)
    with held(entry.vm):
        change.set_spte(entry.vm, entry.sptep, entry.word(BASE))
    assert entry.now == entry.word(BASE)


def test_setting_over_a_present_word_is_a_bug_and_leaves_it() -> None:
    entry = Entry(BASE)
    with held(entry.vm), pytest.raises(KvmBug, match="set over a present spte"):
        change.set_spte(entry.vm, entry.sptep, entry.word(BASE | A))
    assert entry.now == entry.word(BASE)


def test_when_an_update_must_be_followed_by_a_flush_and_what_the_page_is_told() -> None:
    """W lost where the hardware may use it, A or D lost: by every pair of words that differ in these bits."""
    cases = 0
    bits = (W | MMU_W, MMU_W, 0)
    words = [BASE | w | a | d for w, a, d in itertools.product(bits, (0, A), (0, D))]
    for old, new in itertools.product(words, words):
        entry = Entry(old)
        lost_w = bool(old & MMU_W and not new & W)
        lost_a, lost_d = bool(old & A and not new & A), bool(old & D and not new & D)
        with held(entry.vm):
            flush = change.update_spte(entry.vm, entry.sptep, entry.word(new))
        assert flush == (lost_w or lost_a or lost_d), (hex(old), hex(new))
        assert entry.told() == (lost_a, lost_d)
        assert entry.now == entry.word(new)
        cases += 1
    assert cases == 144


def test_an_update_of_nothing_is_a_store_without_a_flush() -> None:
    entry = Entry()
    with held(entry.vm):
        assert not change.update_spte(entry.vm, entry.sptep, entry.word(BASE))
    assert entry.now == entry.word(BASE)


def test_the_update_returns_what_was_there() -> None:
    for old in (BASE, BASE | W | MMU_W | A | D, EMPTY):
        entry = Entry(old)
        with held(entry.vm):
            assert change.update_spte_no_track(entry.vm, entry.sptep, entry.word(BASE | A)) == entry.word(old)


@pytest.mark.parametrize("update", [change.update_spte, change.update_spte_no_track])
@pytest.mark.parametrize("old", [EMPTY, BASE], ids=["first install", "update"])
def test_an_illegal_writable_triple_is_refused_and_changes_nothing(update: Callable[..., int], old: int) -> None:
    """Host-writable, MMU-writable, W: each may only be set with those before it."""
    legal = 0
    for host, mmu, writable in itertools.product((0, HOST_W), (0, MMU_W), (0, W)):
        entry, new = Entry(old), SHADOW | P | U | host | mmu | writable
        before = entry.now
        with held(entry.vm):
            if (mmu and not host) or (writable and not mmu):
                with pytest.raises(KvmBug, match="writable"):
                    update(entry.vm, entry.sptep, entry.word(new))
                assert entry.now == before
            else:
                update(entry.vm, entry.sptep, entry.word(new))
                assert entry.now == entry.word(new)
                legal += 1
    assert legal == 4


@pytest.mark.parametrize("old", [BASE, BASE | W | MMU_W])
def test_another_frame_in_place_is_a_bug(old: int) -> None:
    """A TLB could go on with the old one: it must go through nonpresent."""
    entry = Entry(old)
    with held(entry.vm), pytest.raises(KvmBug, match="pfn changed in place"):
        change.update_spte(entry.vm, entry.sptep, BASE | (entry.pfn + 1) << 12)


def test_what_the_hardware_may_change_meanwhile_is_exchanged_not_overwritten() -> None:
    """The gate hears what kind of access each store is."""
    heard: list[str] = []

    class Listener:
        def point(self, kind: str, where: object, key: int) -> None:
            heard.append(f"{kind}")

    cases = 0
    # Volatile: A or D may still be set by hardware, or W given back by the lockless path.
    for old, volatile in ((BASE | A | D, False), (BASE, True), (BASE | A | W | MMU_W, True), (BASE | A | MMU_W, True)):
        for function in (change.update_spte_no_track, change.clear_track_bits):
            entry = Entry(old)
            arguments = (entry.word(BASE),) if function is change.update_spte_no_track else ()
            with held(entry.vm):
                heard.clear()
                entry.vm.gate.arm(Listener())
                function(entry.vm, entry.sptep, *arguments)
                entry.vm.gate.disarm()
            assert ("xchg" in heard) == volatile, (hex(old), heard)
            cases += 1
    assert cases == 8


@pytest.mark.parametrize(("a", "d"), [(0, 0), (A, 0), (0, D), (A, D)])
@pytest.mark.parametrize("level", [1, 2])
def test_a_leaf_that_goes_is_uncounted_and_hands_a_and_d_to_its_page(a: int, d: int, level: int) -> None:
    word = BASE | a | d | (0x80 if level > 1 else 0)
    entry = Entry(word, level)
    with held(entry.vm):
        change.count_pages(entry.vm, level, 1)
        assert change.clear_track_bits(entry.vm, entry.sptep) == entry.word(word)
    assert entry.now == EMPTY
    assert entry.told() == (bool(a), bool(d))
    assert (entry.vm.stat.pages_4k, entry.vm.stat.pages_2m) == (0, 0)


@pytest.mark.parametrize("old", [EMPTY, 1 << 51 | P | 1 << 12])
def test_what_was_no_leaf_is_cleared_and_uncounted_by_nobody(old: int) -> None:
    entry = Entry(old)
    with held(entry.vm):
        assert change.clear_track_bits(entry.vm, entry.sptep) == old
    assert (entry.now, entry.vm.stat.pages_4k) == (EMPTY, 0)


def test_a_link_goes_without_telling_anyone() -> None:
    entry = Entry(BASE | A | D)
    with held(entry.vm):
        change.clear_no_track(entry.vm, entry.sptep)
    assert (entry.now, entry.told(), entry.vm.stat.pages_4k) == (EMPTY, (False, False), 0)
