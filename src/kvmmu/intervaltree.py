# SPDX-License-Identifier: GPL-2.0-only
"""Intervals of numbers in a balanced tree: what holds a number, what touches a range, in ascending order.

The memslots of a VM (by gfn, and by address in the process) and the ranges of that process are found here. Entering,
leaving and finding one interval costs O(log n) steps. An AVL tree whose nodes also know the greatest number below them;
intervals that begin alike stay in the order in which they came. Who searches often for the same keeps what was found
last, and asks here only when that is not it.
"""

from __future__ import annotations

from typing import Any

from .errors import KvmBug


class Interval:
    """The numbers ``start`` to ``last``, both included, that ``owner`` stands for; a node of one tree.

    Owners do not know their nodes: what holds no circle need not be looked through for garbage, however many there are.
    """

    __slots__ = ("height", "last", "left", "max_last", "order", "owner", "right", "start")

    def __init__(self, start: int, last: int, owner: Any, order: int) -> None:
        self.start = start
        self.last = last
        self.owner = owner
        self.order = order
        self.height = 1
        self.max_last = last
        self.left: Interval | None = None
        self.right: Interval | None = None

    def __repr__(self) -> str:
        return f"<Interval {self.start:#x}-{self.last:#x} {self.owner!r}>"


class IntervalTree:
    """Intervals by their start; ``nr`` is their number. Not for two actors at once: the owner has a lock."""

    __slots__ = ("next_order", "nr", "root")

    def __init__(self) -> None:
        self.root: Interval | None = None
        self.nr = 0
        self.next_order = 1

    def __repr__(self) -> str:
        return f"<IntervalTree of {self.nr}>"

    def insert(self, start: int, last: int, owner: Any) -> int:
        """Enter ``start`` to ``last`` for ``owner``, behind those that begin alike; return its order of coming."""
        order = self.next_order
        new = Interval(start, last, owner, order)
        self.next_order += 1
        self.nr += 1
        path: list[Interval] = []
        at = self.root
        while at is not None:
            path.append(at)
            if last > at.max_last:
                at.max_last = last
            at = at.left if start < at.start else at.right
        if not path:
            self.root = new
            return order
        at = path[len(path) - 1]
        if start < at.start:
            at.left = new
        else:
            at.right = new
        self._rise(path)
        return order

    # Bring the heights on the way up in line; most ways end after a step or two.
    def _rise(self, path: list[Interval]) -> int:
        while path:
            at = path.pop()
            height = at.height
            top = balanced(at)
            if top is at:
                if at.height == height:
                    return 0
                continue
            # A rotation gives the subtree the height that it had.
            if not path:
                self.root = top
                return 0
            parent = path[len(path) - 1]
            if parent.left is at:
                parent.left = top
            else:
                parent.right = top
            return 0
        return 0

    def remove(self, start: int, order: int) -> int:
        """Take out what begins at ``start`` and for which :meth:`insert` returned ``order``. Return 0.

        :class:`KvmBug`: it is not in this tree.
        """
        self.root = removed(self.root, start, order)
        self.nr -= 1
        return 0

    def find(self, key: int) -> Any:
        """The owner of the interval that holds ``key``, or None, in a tree whose intervals do not overlap."""
        node = self.root
        while node is not None:
            if key < node.start:
                node = node.left
            elif key > node.last:
                node = node.right
            else:
                return node.owner
        return None

    def overlapping(self, start: int, last: int) -> list[Any]:
        """Owners of the intervals that share a number with ``start`` to ``last``, in ascending order."""
        found: list[Any] = []
        if self.root is not None:
            collect(self.root, start, last, found)
        return found

    def owners(self) -> list[Any]:
        """All owners in ascending order."""
        found: list[Any] = []
        if self.root is not None:
            collect(self.root, 0, self.root.max_last, found)
        return found


# The steps on subtrees. Each returns the subtree's new root.


def removed(at: Interval | None, start: int, order: int) -> Interval | None:
    """The subtree ``at`` without one interval. :class:`KvmBug`: it is not there."""
    if at is None:
        raise KvmBug(f"the interval at {start:#x} that came as number {order} is not in the tree")
    if start == at.start and order == at.order:
        if at.left is None:
            return at.right
        if at.right is None:
            return at.left
        # What follows takes its place.
        heir = at.right
        while heir.left is not None:
            heir = heir.left
        heir.right = removed(at.right, heir.start, heir.order)
        heir.left = at.left
        return balanced(heir)
    if start < at.start or (start == at.start and order < at.order):
        at.left = removed(at.left, start, order)
    else:
        at.right = removed(at.right, start, order)
    return balanced(at)


def balanced(at: Interval) -> Interval:
    """The subtree ``at``, whose children are balanced and differ by 2 at most, made so that they differ by 1."""
    lean = height_of(at.left) - height_of(at.right)
    if lean > 1:
        left: Interval = at.left  # type: ignore[assignment]  # it is the higher one, so it is there
        if height_of(left.left) < height_of(left.right):
            at.left = rotated_left(left)
        return rotated_right(at)
    if lean < -1:
        right: Interval = at.right  # type: ignore[assignment]  # it is the higher one, so it is there
        if height_of(right.right) < height_of(right.left):
            at.right = rotated_right(right)
        return rotated_left(at)
    summarise(at)
    return at


def rotated_left(at: Interval) -> Interval:
    """The subtree ``at`` with its right child on top."""
    top: Interval = at.right  # type: ignore[assignment]  # the caller knows of it
    at.right = top.left
    top.left = at
    summarise(at)
    summarise(top)
    return top


def rotated_right(at: Interval) -> Interval:
    """The subtree ``at`` with its left child on top."""
    top: Interval = at.left  # type: ignore[assignment]  # the caller knows of it
    at.left = top.right
    top.right = at
    summarise(at)
    summarise(top)
    return top


def summarise(at: Interval) -> int:
    """Height and greatest number of ``at`` from its children's. Return 0."""
    at.height = 1
    at.max_last = at.last
    child = at.left
    if child is not None:
        at.height = child.height + 1
        if child.max_last > at.max_last:
            at.max_last = child.max_last
    child = at.right
    if child is not None:
        if child.height >= at.height:
            at.height = child.height + 1
        if child.max_last > at.max_last:
            at.max_last = child.max_last
    return 0


def height_of(at: Interval | None) -> int:
    """Height of a subtree; 0: it is empty."""
    return 0 if at is None else at.height


def collect(at: Interval, start: int, last: int, found: list[Any]) -> int:
    """Append to ``found`` the owners in the subtree ``at`` that share a number with ``start`` to ``last``. Return 0."""
    if at.left is not None and at.left.max_last >= start:
        collect(at.left, start, last, found)
    if at.start <= last:
        if at.last >= start:
            found.append(at.owner)
        if at.right is not None and at.right.max_last >= start:
            collect(at.right, start, last, found)
    return 0
