# SPDX-License-Identifier: GPL-2.0-only
"""Address kinds, page sizes, and every conversion between them.

A gva, gpa, gfn, hva, hpa and pfn are all 64-bit words and never interchangeable: mypy refuses one where another
is due, and no other room shifts by the page size by hand. ``docs/terms.md`` defines the terms.
"""

from __future__ import annotations

from typing import NewType

from .page_types import (
    LEVEL_BITS,
    ONE,
    PAGE_MASK,
    PAGE_SHIFT,
    U64,
)

Gva = NewType("Gva", int)
Gpa = NewType("Gpa", int)
Gfn = NewType("Gfn", int)
Hva = NewType("Hva", int)
Hpa = NewType("Hpa", int)
Pfn = NewType("Pfn", int)


def gpa_to_gfn(gpa: Gpa) -> Gfn:
    """Frame that holds ``gpa``."""
    return gpa >> PAGE_SHIFT  # type: ignore[return-value]


def gfn_to_gpa(gfn: Gfn) -> Gpa:
    """First byte of frame ``gfn``; wraps at 2**64 as the register does."""
    return (gfn << PAGE_SHIFT) & U64  # type: ignore[return-value]


def hpa_to_pfn(hpa: Hpa) -> Pfn:
    """Host frame that holds ``hpa``."""
    return hpa >> PAGE_SHIFT  # type: ignore[return-value]


def pfn_to_hpa(pfn: Pfn) -> Hpa:
    """First byte of host frame ``pfn``; wraps at 2**64."""
    return (pfn << PAGE_SHIFT) & U64  # type: ignore[return-value]


def page_offset(address: int) -> int:
    """Offset of ``address`` in its 4K page, 0 to 4095; the same for every address kind."""
    return address & ~PAGE_MASK & U64


def pages_per_level(level: int) -> int:
    """Number of 4K frames that one entry at ``level`` (1 = 4K, 2 = 2M, 3 = 1G ...) maps."""
    return ONE << (LEVEL_BITS * (level - 1))


def round_gfn(gfn: Gfn, level: int) -> Gfn:
    """First frame of the naturally aligned ``level`` block that holds ``gfn``."""
    return gfn & ~(pages_per_level(level) - 1) & U64  # type: ignore[return-value]
