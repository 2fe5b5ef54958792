# SPDX-License-Identifier: GPL-2.0-only
"""What an audit keeps of what it found sound, for the one that follows: tables of the TDP MMU, leaves by frame, TLBs.

It lives in the :class:`~.survey.Survey`; that of an audit with problems is thrown away, so that nothing here is known
to be broken. What is kept are the bytes that were checked: who comes later compares, and believes nobody's word.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ....page_types import ENTRIES
from ..bits import SHADOW_NONPRESENT_VALUE, SPTE_MMU_PRESENT

if TYPE_CHECKING:
    from ..page import ShadowPage
    from ..spte import SpteFormat

#: Bytes of a table without an entry.
EMPTY = SHADOW_NONPRESENT_VALUE.to_bytes(8, "little") * ENTRIES
#: Bytes that are compared at once, where words are looked for that differ.
_STRIDE = 128


@dataclass(slots=True)
class TdpTable:
    """A table of the TDP MMU as it was: whose it is, its bytes, which entries are what, and what they rest upon."""

    sp: ShadowPage
    #: Role, gfn, root, and whether the root is invalid: all entries depend on each.
    identity: tuple[int, int, int, bool]
    words: bytes = EMPTY
    #: The host's word of the first page of each leaf; empty: there is no leaf.
    hptes: bytes = b""
    #: Indices of leaves and of MMIO entries, and of links with their words.
    leaves: set[int] = field(default_factory=set)
    mmio: set[int] = field(default_factory=set)
    links: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class KnownTdp:
    """The TDP MMU as it was: tables by where they are, and the dirty log of each slot that has one."""

    tables: dict[int, TdpTable] = field(default_factory=dict)
    logs: dict[tuple[int, int], bytes] = field(default_factory=dict)


@dataclass(slots=True)
class Translating:
    """A table of either MMU as translations were looked up in it: its level, its bytes, what it links by index."""

    level: int
    words: bytes = EMPTY
    children: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class SoundTlb:
    """Entries of a vCPU's TLB that were in kvm's tables, and the tables that its root led to, itself among them."""

    reach: set[int]
    entries: set[tuple[int, int, int, int]]


@dataclass(slots=True)
class KnownTlbs:
    """What TLBs may hold, and held: all tables, their leaves by first frame, the TLB of each vCPU."""

    tables: dict[int, Translating] = field(default_factory=dict)
    #: First frame -> where leaves of any size map it.
    frames: dict[int, list[int]] = field(default_factory=dict)
    tlbs: dict[int, SoundTlb] = field(default_factory=dict)


def differing_words(one: bytes, other: bytes) -> list[int]:
    """Indices of the 64-bit words that differ; both are of the same length."""
    found: list[int] = []
    for start in range(0, len(one), _STRIDE):
        old, new = one[start : start + _STRIDE], other[start : start + _STRIDE]
        if old != new:
            words = zip(memoryview(old).cast("Q"), memoryview(new).cast("Q"), strict=True)
            found += [(start >> 3) + i for i, (word, now) in enumerate(words) if word != now]
    return found


def changed_entries(fmt: SpteFormat, before: bytes, now: bytes, differing: list[int]) -> list[int]:
    """Those of the ``differing`` entries that are to be checked: A and D of what is present break nothing."""
    mask = ~(fmt.accessed_mask | fmt.dirty_mask)
    old, new = memoryview(before).cast("Q"), memoryview(now).cast("Q")
    return [i for i in differing if (old[i] ^ new[i]) & mask or not new[i] & SPTE_MMU_PRESENT]
