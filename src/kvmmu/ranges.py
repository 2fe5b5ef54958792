# SPDX-License-Identifier: GPL-2.0-only
"""Sorted ranges that do not overlap, and which of them holds a number.

The ranges of a process's address space and the memslots of a VM are both found by this search. Who searches often for
the same keeps what was found last, and asks here only when that is not it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable


class Ranges:
    """Half-open ranges ``[start, end)`` in ascending order; they never change: a change is another object."""

    __slots__ = ("bounds", "nr")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        words = array("Q")
        for start, end in ranges:
            words.append(start)
            words.append(end)
        self.bounds = words
        self.nr = len(words) // 2

    def search(self, key: int) -> int:
        """Number of the range that holds ``key``, by bisection; -1: none does."""
        low = 0
        high = self.nr
        while low < high:
            middle = (low + high) >> 1
            if key < self.bounds[2 * middle]:
                high = middle
            elif key >= self.bounds[2 * middle + 1]:
                low = middle + 1
            else:
                return middle
        return -1
