# SPDX-License-Identifier: GPL-2.0-only
"""A range of the process's address space: one protection, one kind of backing, and the page table words of its pages.

Pieces of one mmap() share its page table, so that cutting a range copies nothing.
"""

from __future__ import annotations

from typing import Any

from ..addr import Hva, pages_per_level
from ..page_types import PAGE_SHIFT
from .bits import SMALL_ARRAY_WORDS
from .frames import SmallArrays, zeroed_array


class Vma:
    """One range of the address space with one protection and one kind of backing.

    ``has_table``: with a page table of its own, which a piece of another has not; a small one is cut from ``arrays``.
    """

    __slots__ = ("area_start", "backing", "end", "hptes", "order", "page_level", "start", "table", "writable")

    def __init__(
        self,
        start: Hva,
        end: Hva,
        backing: str,
        page_level: int,
        arrays: SmallArrays | None = None,
        has_table: bool = True,
    ) -> None:
        self.start = start
        self.end = end
        self.backing = backing
        self.page_level = page_level
        self.writable = True
        self.order = 0
        self.area_start = start
        if has_table:
            self.make_table(arrays)

    def make_table(self, arrays: SmallArrays | None) -> int:
        """A page table with no page in it. Return 0."""
        nr = (self.end - self.start) >> PAGE_SHIFT
        if arrays is not None and nr <= SMALL_ARRAY_WORDS:
            self.table: Any = arrays.take_words(nr)
        else:
            self.table = zeroed_array("Q", nr)
        self.hptes: Any = self.table
        return 0

    @property
    def area(self) -> Any:
        """The page table of the whole mmap(), for reports."""
        return self.table

    def piece(self, start: Hva, end: Hva) -> Vma:
        """A range of the same mmap() with this one's attributes and the page table of ``[start, end)``."""
        first = (start - self.area_start) >> PAGE_SHIFT
        vma = Vma(start, end, self.backing, self.page_level, None, False)
        vma.hptes = self.table[first : first + ((end - start) >> PAGE_SHIFT)]
        vma.writable = self.writable
        vma.belong_to(self)
        return vma

    def belong_to(self, other: Vma) -> int:
        """Share the page table of the whole mmap() that ``other`` is a piece of."""
        self.area_start = other.area_start
        self.table = other.table
        return 0

    def is_anonymous(self) -> bool:
        """Whether reads may see the zero page and writes may copy."""
        return self.backing == "anonymous"

    def covers_block(self, hva: Hva, level: int) -> bool:
        """Whether the naturally aligned block of ``level`` around ``hva`` lies inside."""
        mask = (pages_per_level(level) << PAGE_SHIFT) - 1
        return self.start <= hva & ~mask and (hva | mask) < self.end

    def __repr__(self) -> str:
        access = "rw" if self.writable else "r-"
        return f"<Vma {self.start:#x}-{self.end:#x} {access} {self.backing} level {self.page_level}>"
