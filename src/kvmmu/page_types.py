# SPDX-License-Identifier: GPL-2.0-only
"""Page sizes, levels, and the width of a word: numbers that every party knows."""

from __future__ import annotations

from typing import Any

#: The widths of machine words, all bits set.
U64 = 0xFFFF_FFFF_FFFF_FFFF
U32 = 0xFFFF_FFFF
#: The number that compiled rooms shift: in C it has 64 bits, as a literal ``1`` would not (``docs/two-builds.md``).
ONE = 1

PAGE_SHIFT = 12
PAGE_SIZE = 4096
PAGE_MASK = 0xFFFF_FFFF_FFFF_F000
#: Index bits that one level of an 8-byte-entry table translates.
LEVEL_BITS = 9
#: Words in a table page of 8-byte entries.
ENTRIES = 512

PG_LEVEL_NONE = 0
PG_LEVEL_4K = 1
PG_LEVEL_2M = 2
PG_LEVEL_1G = 3

#: No address, of whatever kind: all ones, as the kernel's INVALID_PAGE and INVALID_GPA. Nothing, likewise of any kind.
INVALID_PAGE: Any = U64
NOTHING: Any = 0
