# SPDX-License-Identifier: GPL-2.0-only
"""Address kinds, page sizes, and every conversion between them.

A gva, gpa, gfn, hva, hpa and pfn are all 64-bit words and never interchangeable: mypy refuses one where another
is due, and no other room shifts by the page size by hand. For mypy each is a class that is closed under + - & | ^; at
run time, and in C, an address is the word itself. ``docs/terms.md`` defines the terms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NewType, Self, TypeAlias

from .page_types import (
    LEVEL_BITS,
    ONE,
    PAGE_MASK,
    PAGE_SHIFT,
    U64,
)

if TYPE_CHECKING:

    class _Address(int):
        """What may be done to an address without leaving its space; a shift leaves it, by the functions below."""

        def __add__(self, other: int) -> Self: ...
        def __sub__(self, other: int) -> Self: ...
        def __and__(self, other: int) -> Self: ...
        def __or__(self, other: int) -> Self: ...
        def __xor__(self, other: int) -> Self: ...

    class Gva(_Address):
        """Guest virtual address."""

    class Gpa(_Address):
        """Guest physical address."""

    class Gfn(_Address):
        """Guest frame number: gpa / 4096."""

    class Hva(_Address):
        """Address in the process that owns the VM."""

    class Hpa(_Address):
        """Host physical address."""

    class Pfn(_Address):
        """Host frame number: hpa / 4096."""

else:
    Gva = NewType("Gva", int)
    Gpa = NewType("Gpa", int)
    Gfn = NewType("Gfn", int)
    Hva = NewType("Hva", int)
    Hpa = NewType("Hpa", int)
    Pfn = NewType("Pfn", int)


#: The address of a fault: a gva, or a gpa under nested paging, as the MMU in use says; or the word of a table before it
#: is known what it names.
Address: TypeAlias = Any


def gpa_to_gfn(gpa: Gpa) -> Gfn:
    """Frame that holds ``gpa``."""
    return gpa >> PAGE_SHIFT  # type: ignore[return-value]  # this is the conversion


def gfn_to_gpa(gfn: Gfn) -> Gpa:
    """First byte of frame ``gfn``; wraps at 2**64 as the register does."""
    return (gfn << PAGE_SHIFT) & U64  # type: ignore[return-value]  # this is the conversion


def hpa_to_pfn(hpa: Hpa) -> Pfn:
    """Host frame that holds ``hpa``."""
    return hpa >> PAGE_SHIFT  # type: ignore[return-value]  # this is the conversion


def pfn_to_hpa(pfn: Pfn) -> Hpa:
    """First byte of host frame ``pfn``; wraps at 2**64."""
    return (pfn << PAGE_SHIFT) & U64  # type: ignore[return-value]  # this is the conversion


def page_offset(address: int) -> int:
    """Offset of ``address`` in its 4K page, 0 to 4095; the same for every address kind."""
    return address & ~PAGE_MASK & U64


def pages_per_level(level: int) -> int:
    """Number of 4K frames that one entry at ``level`` (1 = 4K, 2 = 2M, 3 = 1G ...) maps."""
    return ONE << (LEVEL_BITS * (level - 1))


def round_gfn(gfn: Gfn, level: int) -> Gfn:
    """First frame of the naturally aligned ``level`` block that holds ``gfn``."""
    return gfn & ~(pages_per_level(level) - 1) & U64
