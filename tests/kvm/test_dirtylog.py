# SPDX-License-Identifier: GPL-2.0-only
"""The log of written pages: which bit a gfn has, which slots have none, and taking a word once."""

from __future__ import annotations

import pytest

from kvmmu import Params, World
from kvmmu.kvm.dirtylog import mark_page_dirty_in_slot, take_dirty_word
from kvmmu.kvm.memslots import Memslot
from kvmmu.kvm.vm import Vm

LOG = 1


class Listener:
    """A checker that lets everything pass and remembers which words were touched, and how."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, object, object]] = []

    def point(self, kind: str, where: object, key: object) -> None:
        self.heard.append((kind, where, key))

    def barrier(self, kind: str) -> None:
        raise AssertionError(f"a barrier {kind}: the log has none")

    def wait(self, kind: str, where: object, condition: object) -> None:
        raise AssertionError(f"{kind} waits: the log takes no lock")


def logged() -> tuple[Vm, Memslot]:
    """A VM, and 130 pages from gfn 100 on that are logged."""
    vm = World(Params(npt=False), nr_frames=64).vm
    slot = Memslot(0, LOG, 100, 130, 0)
    slot.alloc_dirty_bitmap()
    return vm, slot


def test_marking_is_for_logged_slots_with_a_bitmap() -> None:
    vm, slot = logged()
    slot.flags = 0
    mark_page_dirty_in_slot(vm, None, slot, 100)
    mark_page_dirty_in_slot(vm, None, None, 100)
    assert not any(slot.dirty_array)
    slot.flags = LOG
    for gfn in (100, 163, 164, 229):
        mark_page_dirty_in_slot(vm, None, slot, gfn)
    assert list(slot.dirty_array) == [1 | 1 << 63, 1, 2, 0, 0, 0]
    slot.use_dirty_bitmap_of(None)
    assert mark_page_dirty_in_slot(vm, None, slot, 100) == 0


def test_a_page_that_is_marked_twice_has_one_bit() -> None:
    vm, slot = logged()
    for _ in range(2):
        mark_page_dirty_in_slot(vm, None, slot, 101)
    assert list(slot.dirty_array)[:3] == [2, 0, 0]


def test_a_vcpu_marks_like_the_process() -> None:
    world = World(Params(npt=False), nr_frames=1024)
    _, slot = logged()
    mark_page_dirty_in_slot(world.vm, world.create_vcpu(), slot, 164)
    assert list(slot.dirty_array)[:3] == [0, 1, 0]


@pytest.mark.parametrize(("index", "word"), [(0, 1 | 1 << 63), (1, 1), (2, 2)])
def test_a_word_is_taken_once_and_the_others_stay(index: int, word: int) -> None:
    vm, slot = logged()
    for gfn in (100, 163, 164, 229):
        mark_page_dirty_in_slot(vm, None, slot, gfn)
    expected = [1 | 1 << 63, 1, 2]
    assert take_dirty_word(vm, slot, index) == word
    expected[index] = 0
    assert list(slot.dirty_array)[:3] == expected
    assert take_dirty_word(vm, slot, index) == 0
    assert list(slot.dirty_array)[:3] == expected


def test_what_is_marked_after_the_taking_is_in_the_next_word() -> None:
    vm, slot = logged()
    mark_page_dirty_in_slot(vm, None, slot, 100)
    assert take_dirty_word(vm, slot, 0) == 1
    mark_page_dirty_in_slot(vm, None, slot, 102)
    assert take_dirty_word(vm, slot, 0) == 4


def test_a_checker_hears_of_the_word_before_it_changes() -> None:
    vm, slot = logged()
    listener = Listener()
    vm.gate.arm(listener)
    mark_page_dirty_in_slot(vm, None, slot, 164)
    mark_page_dirty_in_slot(vm, None, None, 164)
    assert take_dirty_word(vm, slot, 1) == 1
    vm.gate.disarm()
    assert [(kind, key) for kind, _, key in listener.heard] == [
        ("or", ("dirty_bitmap", 1)),
        ("xchg", ("dirty_bitmap", 1)),
    ]
    assert all(where is slot for _, where, _ in listener.heard)
