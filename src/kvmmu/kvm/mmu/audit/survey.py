# SPDX-License-Identifier: GPL-2.0-only
"""What one audit has read and found: the pages, leaves and links of a VM, and the words for its sentences."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ....addr import Hpa
from ..bits import ROLE_DIRECT, ROLE_INVALID, ROLE_LEVEL_MASK, ROLE_PASSTHROUGH
from ..role import describe_role
from ..spte import describe_spte

if TYPE_CHECKING:
    from ...vm import Vm
    from ..page import ShadowPage

#: 64-bit words of an rmap descriptor.
DESC_WORDS = 16


@dataclass
class Audit:
    """What one audit saw: counts, and a sentence per broken invariant, each beginning with the invariant's number."""

    pages: int = 0
    leaves: int = 0
    nonleaves: int = 0
    mmio: int = 0
    rmap_entries: int = 0
    tlb_entries: int = 0
    problems: list[str] = field(default_factory=list)


class Survey:
    """One reading of the structures of ``vm``: what each check found, for the checks that follow."""

    __slots__ = (
        "descs",
        "leaves",
        "nr_tdp_roots",
        "parents",
        "protected",
        "result",
        "rmap_seen",
        "shadowed",
        "sps",
        "spts",
        "tdp_leaves",
        "tdp_tables",
        "vm",
    )

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.result = Audit()
        self.sps: list[ShadowPage] = []
        self.spts: dict[int, ShadowPage] = {}
        # sptep -> (gfn, level, address space) of each present leaf.
        self.leaves: dict[int, tuple[int, int, int]] = {}
        # spt of the child -> spteps that link it.
        self.parents: dict[int, list[int]] = {}
        # Descriptors in use.
        self.descs: set[int] = set()
        self.rmap_seen: Counter[int] = Counter()
        # (address space, gfn) -> reasons for write protection: tables above level 1, and level-1 tables.
        self.shadowed: Counter[tuple[int, int, bool]] = Counter()
        self.protected: list[int] = []
        # Tables of the TDP MMU by where they are, how many of them are roots, leaves by level.
        self.tdp_tables: dict[int, ShadowPage] = {}
        self.nr_tdp_roots = 0
        self.tdp_leaves: Counter[int] = Counter()

    def bad(self, invariant: str, text: str) -> None:
        """Note that ``invariant`` is broken; ``text`` has the words involved."""
        self.result.problems.append(f"{invariant}: {text}")

    def word(self, hpa: int) -> int:
        """The 64-bit word at ``hpa``."""
        return self.vm.memory.read_once(Hpa(hpa))

    def read_words(self, hpa: int, count: int) -> list[int]:
        """``count`` words from ``hpa`` on."""
        return memoryview(self.vm.memory.read(Hpa(hpa), count * 8)).cast("Q").tolist()

    def word_at(self, hpa: int) -> str:
        """What lies at ``hpa``, in words, also where no entry can be."""
        if hpa & 7 or hpa >= self.vm.memory.size:
            return "not a place of an entry"
        return f"holds {self.word(hpa):#x}"

    def gfn_of(self, sp: ShadowPage, index: int) -> int:
        """The gfn that entry ``index`` of ``sp`` maps, or would."""
        if sp.shadowed_translation:
            return self.word(sp.shadowed_translation + index * 8) >> 12
        return sp.gfn + (index << (9 * (level_of(sp) - 1)))

    def spte_text(self, sptep: int, sp: ShadowPage) -> str:
        """The entry at ``sptep`` of ``sp``, in words."""
        spte = self.word(sptep)
        return f"spte {spte:#x} ({describe_spte(spte, self.vm.fmt, level_of(sp))}) at {sptep:#x} in {name_of(sp)}"


def level_of(sp: ShadowPage) -> int:
    """Level of the tables that ``sp`` is one of: 1 maps 4K pages."""
    return sp.role & ROLE_LEVEL_MASK


def as_id_of(sp: ShadowPage) -> int:
    """Address space of ``sp``: 0 normal, 1 SMM."""
    return sp.role >> 24


def is_invalid(sp: ShadowPage) -> bool:
    """Whether ``sp`` waits for its last user to go."""
    return sp.role & ROLE_INVALID != 0


def has_gptes(sp: ShadowPage) -> bool:
    """Whether ``sp`` mirrors a table of the guest."""
    return sp.role & (ROLE_DIRECT | ROLE_PASSTHROUGH) == 0


def name_of(sp: ShadowPage) -> str:
    """``sp`` in words."""
    return f"sp at {sp.spt:#x} (gfn {sp.gfn:#x}, {describe_role(sp.role)})"
