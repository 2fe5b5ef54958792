# SPDX-License-Identifier: GPL-2.0-only
"""What one audit has read and found: the pages, leaves and links of a VM, and the words for its sentences."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ....addr import Hpa
from ....errors import KvmBug
from ..bits import ROLE_DIRECT, ROLE_INVALID, ROLE_LEVEL_MASK, ROLE_PASSTHROUGH
from ..role import describe_role
from ..spte import describe_spte
from .known import KnownTdp, KnownTlbs, differing_words

if TYPE_CHECKING:
    from ...vm import Vm
    from ..page import ShadowPage

#: Of an rmap: address space, level, first gfn; of the parents of a page: -1, 0, its spt.
ListKey = tuple[int, int, int]
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


#: Problems that the raised error lists; the rest is counted.
MAX_LISTED = 20


def raise_problems(result: Audit) -> Audit:
    """Return ``result``, unless it has problems: :class:`KvmBug` lists the first."""
    problems = result.problems
    if problems:
        more = f"\n  ... and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        listed = "".join(f"\n  {problem}" for problem in problems[:MAX_LISTED])
        raise KvmBug(f"audit: {len(problems)} broken invariants{listed}{more}")
    return result


class Survey:
    """One reading of the structures of ``vm``: what each check found, for the checks that follow.

    An audit of what changed keeps the survey of the one before: :meth:`begin` forgets what is read anew each time, the
    entries and lists of pages that did not change stay.
    """

    __slots__ = (
        "_compared",
        "descs",
        "free_descs",
        "known_tdp",
        "known_tlbs",
        "leaves",
        "links",
        "lists",
        "mmio",
        "nr_tdp_roots",
        "parents",
        "protected",
        "result",
        "rmap_seen",
        "shadowed",
        "sps",
        "spts",
        "tables",
        "tdp_leaves",
        "tdp_tables",
        "tracked",
        "vm",
    )

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        # sptep -> (gfn, level, address space) of each present leaf.
        self.leaves: dict[int, tuple[int, int, int]] = {}
        # spt of the child -> spteps that link it; and the other way round.
        self.parents: dict[int, list[int]] = {}
        self.links: dict[int, int] = {}
        self.mmio: set[int] = set()
        # Descriptor in use -> key of its list; key -> entries and descriptors of each list that has any.
        self.descs: dict[int, ListKey] = {}
        self.lists: dict[ListKey, tuple[list[int], list[int]]] = {}
        # sptep -> how many lists it is in.
        self.rmap_seen: dict[int, int] = {}
        self.known_tdp = KnownTdp()
        self.known_tlbs = KnownTlbs()
        self.begin()

    def begin(self) -> None:
        """Forget what every audit reads anew: which pages exist, what they protect, the problems."""
        self.result = Audit()
        self.sps: list[ShadowPage] = []
        self.spts: dict[int, ShadowPage] = {}
        # Bytes of each table of either MMU, as this audit has read them.
        self.tables: dict[int, bytes] = {}
        self._compared: dict[int, tuple[bytes, bytes, list[int]]] = {}
        # (address space, gfn) -> reasons for write protection: tables above level 1, and level-1 tables.
        self.shadowed: Counter[tuple[int, int, bool]] = Counter()
        # (address space, slot) -> write-track counts that are not 0, by gfn.
        self.tracked: dict[tuple[int, int], dict[int, int]] = {}
        self.protected: list[int] = []
        self.free_descs: set[int] = set()
        # Tables of the TDP MMU by where they are, how many of them are roots, leaves by level.
        self.tdp_tables: dict[int, ShadowPage] = {}
        self.nr_tdp_roots = 0
        self.tdp_leaves: Counter[int] = Counter()

    def count(self) -> None:
        """Add to the result how much of the legacy MMU was found; what the TDP MMU has is counted as it is read."""
        self.result.pages = len(self.sps) + len(self.tdp_tables)
        self.result.leaves += len(self.leaves)
        self.result.nonleaves += len(self.links)
        self.result.mmio += len(self.mmio)
        self.result.rmap_entries = sum(self.rmap_seen.values())

    def differing(self, spt: int, before: bytes, now: bytes) -> list[int]:
        """Indices of the entries of the table at ``spt`` that differ; who asks again, with the same two, pays little.

        ``before`` and ``now`` are :data:`~.known.EMPTY`, or what ``tables`` has of this audit and of the one before.
        """
        held = self._compared.get(spt)
        if held is None or held[0] is not before or held[1] is not now:
            held = self._compared[spt] = before, now, differing_words(before, now)
        return held[2]

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


def parents_key(sp: ShadowPage) -> ListKey:
    """Which list the parents of ``sp`` are."""
    return -1, 0, sp.spt


def rmap_key(leaf: tuple[int, int, int]) -> ListKey:
    """Which list a leaf of ``(gfn, level, address space)`` belongs to."""
    gfn, level, as_id = leaf
    shift = 9 * (level - 1)
    return as_id, level, gfn >> shift << shift


def name_of(sp: ShadowPage) -> str:
    """``sp`` in words."""
    return f"sp at {sp.spt:#x} (gfn {sp.gfn:#x}, {describe_role(sp.role)})"
