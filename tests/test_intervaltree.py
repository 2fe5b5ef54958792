# SPDX-License-Identifier: GPL-2.0-only
"""Intervals in a tree: every answer as a sorted list gives it, and the tree balanced after every step."""

from __future__ import annotations

from bisect import insort
from math import log2

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvmmu.errors import KvmBug
from kvmmu.intervaltree import Interval, IntervalTree

TOP = 2**64 - 1
NUMBERS = st.one_of(st.integers(0, 40), st.integers(0, TOP), st.sampled_from([2**63 - 1, 2**63, TOP - 1, TOP]))


def checked(node: Interval | None) -> tuple[int, int]:
    """Height and greatest number of a subtree, computed from its leaves; fails where a node says otherwise."""
    if node is None:
        return 0, -1
    left, right = checked(node.left), checked(node.right)
    assert abs(left[0] - right[0]) <= 1
    assert (node.height, node.max_last) == (1 + max(left[0], right[0]), max(node.last, left[1], right[1]))
    return node.height, node.max_last


class Intervals(RuleBasedStateMachine):
    """The model is a list of (start, number of the owner, last, order of coming)."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = IntervalTree()
        self.model: list[tuple[int, int, int, int]] = []
        self.count = 0

    @rule(start=NUMBERS, length=st.one_of(st.integers(0, 20), st.integers(0, TOP)))
    def insert(self, start: int, length: int) -> None:
        last = min(start + length, TOP)
        order = self.tree.insert(start, last, self.count)
        insort(self.model, (start, self.count, last, order), key=lambda one: one[:2])
        self.count += 1

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        start, _, _, order = self.model.pop(data.draw(st.integers(0, len(self.model) - 1)))
        self.tree.remove(start, order)
        with pytest.raises(KvmBug, match="is not in the tree"):
            self.tree.remove(start, order)

    @rule(start=NUMBERS, length=st.one_of(st.integers(0, 20), st.integers(0, TOP)))
    def overlapping(self, start: int, length: int) -> None:
        last = min(start + length, TOP)
        expected = [number for low, number, high, _ in self.model if low <= last and start <= high]
        assert self.tree.overlapping(start, last) == expected

    @rule(key=NUMBERS)
    def find(self, key: int) -> None:
        if any(one[2] >= other[0] for one, other in zip(self.model, self.model[1:], strict=False)):
            return
        expected = next((number for low, number, high, _ in self.model if low <= key <= high), None)
        assert self.tree.find(key) == expected

    @invariant()
    def agree(self) -> None:
        assert self.tree.owners() == [one[1] for one in self.model]
        assert self.tree.nr == len(self.model)
        checked(self.tree.root)


TestIntervals = Intervals.TestCase
TestIntervals.settings = settings(max_examples=150, stateful_step_count=60)


def test_neighbours_are_found_by_every_number_that_they_hold() -> None:
    tree = IntervalTree()
    for place in (5, 0, 2, 9, 7, 1):
        tree.insert(10 * place, 10 * place + 4, place)
    for key in range(110):
        held = key // 10 if key % 10 < 5 and key // 10 in (5, 0, 2, 9, 7, 1) else None
        assert tree.find(key) == held


@pytest.mark.parametrize("step", [1, -1, 7919])
def test_a_tree_is_as_high_as_its_size_asks_in_every_order_of_coming(step: int) -> None:
    tree, size = IntervalTree(), 4096
    places = [number * step % 65537 for number in range(size)]
    orders = [tree.insert(place, place, place) for place in places]
    assert checked(tree.root)[0] <= 1.45 * log2(size + 2)
    for place, order in list(zip(places, orders, strict=True))[: size // 2]:
        tree.remove(place, order)
    assert checked(tree.root)[0] <= 1.45 * log2(size // 2 + 2)
    assert len(tree.owners()) == tree.nr == size // 2


def test_an_empty_tree_holds_nothing() -> None:
    tree = IntervalTree()
    assert (tree.find(0), tree.overlapping(0, TOP), tree.owners(), tree.nr) == (None, [], [], 0)
    with pytest.raises(KvmBug, match="is not in the tree"):
        tree.remove(1, 2)
