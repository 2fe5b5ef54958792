# SPDX-License-Identifier: GPL-2.0-only
"""Paging modes as tables: everything in which one mode differs from another is a row here.

The walker (:mod:`kvmmu.hw.paging`) has one loop for all of them. Reserved bits follow Intel's rule for guests (bit 8
of a directory is ignored) and AMD's for nested tables, which no Intel CPU has (bit 8 of levels 4 and 5 must be 0).
Source: Intel SDM volume 3, "Paging", "The Extended Page Table Mechanism"; AMD APM volume 2, "Nested Paging"; reference
section "Reserved-bit tables".
"""

from __future__ import annotations

from dataclasses import dataclass

from ..page_types import ONE
from .bits import CR0_PG, CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA

MODE_NONE = 0
MODE_2LEVEL = 1
MODE_2LEVEL_PSE = 2
MODE_PAE = 3
MODE_4LEVEL = 4
MODE_5LEVEL = 5
MODE_NPT4 = 6
MODE_NPT5 = 7
MODE_EPT4 = 8
MODE_EPT5 = 9


@dataclass(frozen=True, slots=True)
class PagingMode:
    """One row: what the walking loop must know about a mode."""

    #: Index in :data:`MODES`.
    number: int
    #: The one name that everything of the package uses for the mode: arguments, output and messages.
    name: str
    #: Tables from the root to a 4K leaf; 0 without paging.
    levels: int
    #: Address bits that one table translates.
    index_bits: int
    #: Bytes per entry.
    entry_size: int
    #: Address bits that exist; an access drops those above.
    gva_bits: int
    #: Levels whose PS bit makes a large page. Level 3 also needs a CPU with 1G pages.
    large_levels: tuple[int, ...]
    #: Bits of CR3 that locate the root table.
    root_bits: tuple[int, int]
    #: The top level is four PDPTEs that are loaded together with CR3.
    has_pdptrs: bool = False
    #: Protection keys exist.
    has_pkeys: bool = False
    #: Bit 8 is reserved in directories of level 4 and 5 (AMD).
    has_reserved_bit8: bool = False
    #: The entries are EPT's.
    is_ept: bool = False

    @property
    def is_guests(self) -> bool:
        """Whether a guest has tables of this mode; false for second stages."""
        return self.number < MODE_NPT4


MODES = (
    PagingMode(MODE_NONE, "none", 0, 0, 0, 32, (), (0, 0)),
    PagingMode(MODE_2LEVEL, "2-level", 2, 10, 4, 32, (), (12, 31)),
    PagingMode(MODE_2LEVEL_PSE, "2-level-pse", 2, 10, 4, 32, (2,), (12, 31)),
    PagingMode(MODE_PAE, "pae", 3, 9, 8, 32, (2,), (5, 31), has_pdptrs=True),
    PagingMode(MODE_4LEVEL, "4-level", 4, 9, 8, 64, (2, 3), (12, 51), has_pkeys=True),
    PagingMode(MODE_5LEVEL, "5-level", 5, 9, 8, 64, (2, 3), (12, 51), has_pkeys=True),
    PagingMode(MODE_NPT4, "npt-4-level", 4, 9, 8, 48, (2, 3), (12, 51), has_reserved_bit8=True),
    PagingMode(MODE_NPT5, "npt-5-level", 5, 9, 8, 57, (2, 3), (12, 51), has_reserved_bit8=True),
    PagingMode(MODE_EPT4, "ept-4-level", 4, 9, 8, 48, (2, 3), (12, 51), is_ept=True),
    PagingMode(MODE_EPT5, "ept-5-level", 5, 9, 8, 57, (2, 3), (12, 51), is_ept=True),
)


def paging_mode(cr0: int, cr4: int, efer: int) -> PagingMode:
    """The mode that the registers select (Intel SDM, "Paging-Mode Enabling")."""
    if not cr0 & CR0_PG:
        return MODES[MODE_NONE]
    if efer & EFER_LMA:
        return MODES[MODE_5LEVEL if cr4 & CR4_LA57 else MODE_4LEVEL]
    if cr4 & CR4_PAE:
        return MODES[MODE_PAE]
    return MODES[MODE_2LEVEL_PSE if cr4 & CR4_PSE else MODE_2LEVEL]


def second_stage_mode(number: int, levels: int) -> PagingMode:
    """The mode of second stages with ``levels`` (4 or 5) levels, whose 4-level mode is ``number``."""
    return MODES[number + levels - 4]


@dataclass(frozen=True, slots=True)
class Limits:
    """What reserved bits depend on beyond the mode: the CPU's limits, and EFER.NX."""

    maxphyaddr: int
    has_nx: bool
    has_gbpages: bool
    #: 4M entries have address bits 39 to 32.
    has_pse36: bool = True
    #: Bit 8 of guest entries of level 4 and 5 is reserved (AMD).
    has_reserved_bit8: bool = False


def bit_range(low: int, high: int) -> int:
    """Bits ``low`` to ``high``, both included; no bit if ``high`` is below ``low``."""
    return (1 << (high + 1)) - (1 << low) if high >= low else 0


def is_large_level(mode: PagingMode, level: int, limits: Limits) -> bool:
    """Whether PS at ``level`` makes a large page."""
    return level in mode.large_levels and (level < 3 or limits.has_gbpages)


def reserved_bits(mode: PagingMode, level: int, is_large: bool, limits: Limits) -> int:
    """Bits that must be 0 in a present entry of ``level``; ``is_large``: one that maps a large page.

    Source: Intel SDM, the tables of paging-structure entry formats.
    """
    if mode.entry_size == 4:
        return _reserved_2level(is_large, limits)
    if mode.is_ept:
        return _reserved_ept(mode, level, is_large, limits)
    if mode.has_pdptrs:
        high = bit_range(limits.maxphyaddr, 62) | _reserved_nx(limits)
        if level == 3:
            return high | bit_range(1, 2) | bit_range(5, 8) | bit_range(63, 63)
    else:
        high = bit_range(limits.maxphyaddr, 51) | _reserved_nx(limits)
    if is_large:
        return high | bit_range(13, 11 + mode.index_bits * (level - 1))
    if level > 1 and not is_large_level(mode, level, limits):
        high |= bit_range(7, 7)
    if level > 3 and (mode.has_reserved_bit8 or limits.has_reserved_bit8):
        high |= bit_range(8, 8)
    return high


# Bits 63:52 are ignored, memory type and IPAT are a leaf's alone.
def _reserved_ept(mode: PagingMode, level: int, is_large: bool, limits: Limits) -> int:
    high = bit_range(limits.maxphyaddr, 51)
    if is_large:
        return high | bit_range(12, 11 + mode.index_bits * (level - 1))
    if level == 1:
        return high
    return high | bit_range(3, 6 if is_large_level(mode, level, limits) else 7)


def ept_illegal_low_bits(has_execonly: bool) -> int:
    """What bits 5:0 of an EPT entry may not be, as a map: bit n is set if they may not be n.

    W without R is no right, nor is X alone unless the CPU has it; memory types 2, 3 and 7 do not exist. The type's
    bits of an entry that links a table are 0 by :func:`reserved_bits`. Source: Intel SDM, "EPT Misconfigurations".
    """
    illegal_rights = (2, 6) if has_execonly else (2, 4, 6)
    return sum(ONE << n for n in range(64) if n >> 3 in (2, 3, 7) or n & 7 in illegal_rights)


# NX is reserved while EFER.NX is clear.
def _reserved_nx(limits: Limits) -> int:
    return 0 if limits.has_nx else bit_range(63, 63)


# Only 4M entries have reserved bits: those between the address bits that PSE-36 moved and bit 22.
def _reserved_2level(is_large: bool, limits: Limits) -> int:
    if not is_large:
        return 0
    return bit_range(min(limits.maxphyaddr, 40) - 19 if limits.has_pse36 else 13, 21)
