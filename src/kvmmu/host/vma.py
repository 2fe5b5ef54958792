# SPDX-License-Identifier: GPL-2.0-only
"""A range of the process's address space: one protection, one kind of backing, and the page table words of its pages.

Pieces of one mmap() share its page table, so that cutting a range copies nothing.
"""

from __future__ import annotations

from array import array
from typing import TypeAlias

from ..addr import Hva, pages_per_level
from ..page_types import PAGE_SHIFT
from .frames import zeroed_array

# So many pages at most have an array of their own size, which is one object to the garbage collector.
_FEW_PAGES = 512

Hptes: TypeAlias = "memoryview | array[int]"


class Vma:
    """One range of the address space with one protection and one kind of backing."""

    __slots__ = ("area", "area_start", "backing", "end", "hptes", "order", "page_level", "start", "writable")

    def __init__(self, start: Hva, end: Hva, backing: str, page_level: int, hptes: Hptes | None = None) -> None:
        self.start = start
        self.end = end
        self.backing = backing
        self.page_level = page_level
        self.writable = True
        self.order = 0
        self.area_start = start
        nr = (end - start) >> PAGE_SHIFT
        if hptes is None:
            hptes = array("Q", bytes(8 * nr)) if nr <= _FEW_PAGES else zeroed_array("Q", nr)
        self.area = hptes
        self.hptes = hptes

    def piece(self, start: Hva, end: Hva) -> Vma:
        """A range of the same mmap() with this one's attributes and the page table of ``[start, end)``."""
        first = (start - self.area_start) >> PAGE_SHIFT
        hptes = memoryview(self.area)[first : first + ((end - start) >> PAGE_SHIFT)]
        vma = Vma(start, end, self.backing, self.page_level, hptes)
        vma.writable = self.writable
        vma.belong_to(self)
        return vma

    def belong_to(self, other: Vma) -> int:
        """Share the page table of the whole mmap() that ``other`` is a piece of."""
        self.area_start = other.area_start
        self.area = other.area
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
