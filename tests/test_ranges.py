# SPDX-License-Identifier: GPL-2.0-only
"""Sorted ranges: the one that holds a number, against a look at each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvmmu.ranges import Ranges


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=12))
def test_the_range_that_holds_a_number_is_found(steps: list[tuple[int, int]]) -> None:
    made, end = [], 0
    for gap, length in steps:
        made.append((end + gap, end + gap + length))
        end += gap + length
    ranges = Ranges(made)
    assert ranges.nr == len(made)
    for key in range(end + 3):
        holders = [number for number, (low, high) in enumerate(made) if low <= key < high]
        assert ranges.search(key) == (holders[0] if holders else -1)


def test_no_ranges_hold_nothing() -> None:
    assert Ranges().search(0) == -1


def test_the_ends_of_64_bits_are_numbers_as_any_other() -> None:
    top = 2**64 - 1
    ranges = Ranges([(0, 1), (2**63, top)])
    assert [ranges.search(key) for key in (0, 1, 2**63 - 1, 2**63, top - 1, top)] == [0, -1, -1, 1, 1, -1]
