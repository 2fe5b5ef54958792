# SPDX-License-Identifier: GPL-2.0-only
"""What guest page tables map, as ranges: every leaf below a root, and neighbours that are alike joined.

A right is there if every level gives it. An entry with reserved bits is listed as what it is, a range in which every
access faults, and what it points to is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..addr import Gpa, Gva
from ..adjacent import joined
from ..hw.bits import PT_FRAME, PT_NX, PT_PRESENT, PT_PSE36_LOW, PT_PSE36_SHIFT, PT_USER, PT_WRITABLE
from ..hw.modes import Limits, is_large_level, reserved_bits
from ..page_types import PAGE_SIZE

if TYPE_CHECKING:
    from .tables import GuestTables

_SIZE_NAMES = {1 << 12: "4K", 1 << 21: "2M", 1 << 22: "4M", 1 << 30: "1G", 1 << 39: "512G", 1 << 48: "256T"}
# All rights, in the words of an entry whose NX is turned around.
_ALL = PT_WRITABLE | PT_USER | PT_NX


@dataclass(frozen=True, slots=True)
class Mapping:
    """Pages of ``page_size`` bytes that follow one another in both address spaces and have the same rights.

    ``rights`` are three signs, ``wux``: user and kernel may write, user code may access, code may be fetched; a minus
    sign stands for what is missing. ``reserved`` has the reserved bits that are set in the entry (0: none): every
    access to such a range faults, its ``gpa`` is 0, and ``page_size`` is what the entry spans.
    """

    gva: Gva
    gpa: Gpa
    nr_bytes: int
    page_size: int
    rights: str
    reserved: int = 0

    def __repr__(self) -> str:
        where = f"reserved {self.reserved:#x}" if self.reserved else f"gpa {self.gpa:#x}"
        size = size_name(self.page_size)
        return f"<Mapping {self.gva:#x} + {self.nr_bytes:#x}: {where} {size} {self.rights}>"

    def is_followed_by(self, other: Mapping) -> bool:
        """Whether ``other`` continues this range."""
        return (
            other.gva == self.gva + self.nr_bytes
            and (self.reserved != 0 or other.gpa == self.gpa + self.nr_bytes)
            and (other.page_size, other.rights, other.reserved) == (self.page_size, self.rights, self.reserved)
        )


def size_name(size: int) -> str:
    """``4K``, ``2M`` ..."""
    return _SIZE_NAMES[size]


def table_ranges(tables: GuestTables, limits: Limits) -> Iterator[Mapping]:
    """What ``tables`` map, ascending, with neighbours joined; ``limits`` decide which bits are reserved."""
    return joined(_leaves(tables, limits, tables.root, tables.mode.levels, 0, _ALL))


# Every leaf below one table of level, which begins at gva and gets rights from above.
def _leaves(tables: GuestTables, limits: Limits, table: Gpa, level: int, gva: int, rights: int) -> Iterator[Mapping]:
    mode = tables.mode
    span = PAGE_SIZE << (mode.index_bits * (level - 1))
    is_pdptr = mode.has_pdptrs and level == mode.levels
    can_be_large = is_large_level(mode, level, limits)
    reserved = (reserved_bits(mode, level, False, limits), reserved_bits(mode, level, True, limits))
    for index, entry in enumerate(tables.table_words(table, 4 if is_pdptr else 1 << mode.index_bits)):
        if not entry & PT_PRESENT:
            continue
        here = gva + index * span
        is_leaf = level == 1 or (can_be_large and tables.is_leaf(entry, level))
        # A PDPTE has no rights to give. NX says what is not allowed, and 4-byte entries have none.
        given = rights if is_pdptr else rights & (entry ^ PT_NX)
        bad = entry & reserved[is_leaf and level > 1]
        if bad:
            yield Mapping(_canonical(tables, here), Gpa(0), span, span, _rights_text(given), bad)
        elif is_leaf:
            gpa = _leaf_gpa(entry, level, span, mode.entry_size)
            yield Mapping(_canonical(tables, here), gpa, span, span, _rights_text(given))
        else:
            yield from _leaves(tables, limits, Gpa(entry & PT_FRAME), level - 1, here, given)


def _leaf_gpa(entry: int, level: int, span: int, entry_size: int) -> Gpa:
    gpa = entry & PT_FRAME & ~(span - 1)
    if level == 2 and entry_size == 4:
        gpa |= (entry & PT_PSE36_LOW) << PT_PSE36_SHIFT
    return Gpa(gpa)


# Four and five levels translate signed addresses.
def _canonical(tables: GuestTables, gva: int) -> Gva:
    if tables.mode.levels < 4:
        return Gva(gva)
    bits = 12 + 9 * tables.mode.levels
    return Gva(gva | ((1 << 64) - (1 << bits)) if gva >> (bits - 1) else gva)


def _rights_text(rights: int) -> str:
    signs = ((PT_WRITABLE, "w"), (PT_USER, "u"), (PT_NX, "x"))
    return "".join(sign if rights & bit else "-" for bit, sign in signs)
