# SPDX-License-Identifier: GPL-2.0-only
"""Audit of the legacy MMU: the invariants of a VM's structures, checked one against the other.

Called while nobody holds a lock; slow, interpreted, and without side effects. What is checked, by the reference's
numbers: I3 (protected guest tables), I4 (unsync bits), I5 (rmaps and parent links, descriptors), I6 (write-track and
large-page counts), I7 (lists, validity, root counts), I9 (writable triples), I10 (MMIO sptes), I11 (counters), I14
(roles), I16 (empty entries), and the accounting of frames. The translations themselves, and what TLBs hold, are the
business of other oracles. Words are decoded here anew, apart from the single-spte predicates of ``spte``. The room
is long because all checks share one reading of every table.
Source: reference "Invariants for a model checker / runtime audit".
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...addr import Hpa, Pfn
from ...errors import KvmBug
from ...host.frames import nonzero_words
from ...page_types import INVALID_PAGE, U64
from .bits import (
    ACC_WRITE,
    FROZEN_SPTE,
    MMIO_SPTE_GEN_MASK,
    ROLE_ACCESS_MASK,
    ROLE_ACCESS_SHIFT,
    ROLE_CR0_WP,
    ROLE_DIRECT,
    ROLE_HAS_4_BYTE_GPTE,
    ROLE_INVALID,
    ROLE_LEVEL_MASK,
    ROLE_PASSTHROUGH,
    ROLE_QUADRANT_MASK,
    SHADOW_NONPRESENT_VALUE,
    SPTE_BASE_ADDR_MASK,
)
from .page import ShadowPage
from .role import describe_role
from .spte import (
    describe_spte,
    is_legal_triple,
    is_mmio,
    is_mmu_writable,
    is_shadow_present,
    is_writable,
    mmio_generation,
    mmio_gfn,
)

if TYPE_CHECKING:
    from ..memslots import Memslot
    from ..vm import Vm
    from .context import Mmu

#: Problems that the raised error lists; the rest is counted.
MAX_LISTED = 20

_LEVELS = (1, 2, 3)
_LEVEL_NAMES = {1: "4K", 2: "2M", 3: "1G"}
_DESC_WORDS = 16
_DESC_ENTRIES = 14
_DESCS_PER_FRAME = 32
_NR_BUCKETS = 4096
_GOLDEN_RATIO_64 = 0x61C8_8646_80B5_83EB
_PS = 1 << 7
#: Fields of a role that a child has from its parent unchanged.
_INHERITED = ~(ROLE_LEVEL_MASK | ROLE_QUADRANT_MASK | ROLE_DIRECT | ROLE_ACCESS_MASK | ROLE_INVALID | ROLE_PASSTHROUGH)
_ROLE_ACC_WRITE = ACC_WRITE << ROLE_ACCESS_SHIFT
_UNNAMED_ROLE_BITS = 0x00F8_0000


@dataclass
class Audit:
    """What one audit saw: counts, and a sentence per broken invariant, each beginning with the invariant's number."""

    pages: int = 0
    leaves: int = 0
    nonleaves: int = 0
    mmio: int = 0
    rmap_entries: int = 0
    problems: list[str] = field(default_factory=list)


def audit(vm: Vm) -> Audit:
    """Check every structure of ``vm``; no lock may be held.

    Raises :class:`KvmBug` that lists the first broken invariants with the words involved. Returns what was seen.
    """
    result = find_violations(vm)
    problems = result.problems
    if problems:
        more = f"\n  ... and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        listed = "".join(f"\n  {problem}" for problem in problems[:MAX_LISTED])
        raise KvmBug(f"audit: {len(problems)} broken invariants{listed}{more}")
    return result


def find_violations(vm: Vm) -> Audit:
    """As :func:`audit`, with the problems returned instead of raised."""
    return _Auditor(vm).run()


def mmu_rmaps_stat(vm: Vm) -> str:
    """The debugfs file ``mmu_rmaps_stat``: rmap lists by level and by the lowest set bit of their length.

    Source: reference "debugfs".
    """
    log = {level: [0] * 11 for level in _LEVELS}
    for slots in vm.memslots:
        for slot in slots.slots:
            for level, _, head in _rmap_heads(slot):
                length = _list_length(vm, head)
                log[level][min((length & -length).bit_length(), 10)] += 1
    ranges = "".join(f"{1 << (i - 1)}-{(1 << i) - 1}\t" for i in range(2, 11))
    lines = [f"Rmap_Count:\t0\t1\t{ranges}\n"]
    for level in _LEVELS:
        counts = "".join(f"{count}\t" for count in log[level])
        lines.append(f"Level={_LEVEL_NAMES[level]}:\t{counts}\n")
    return "".join(lines)


# The same of every rmap that is not empty; a slot may be large and hardly used.
def _used_rmap_heads(slot: Memslot) -> Iterator[tuple[int, int, int]]:
    if slot.rmap_array is None:
        return
    start = 0
    for level in (2, 3, 1):
        count = slot.nr_lpages(level)
        first = slot.base_gfn >> (9 * (level - 1))
        for i, head in nonzero_words(slot.rmap_array[start : start + count]):
            yield level, (first + i) << (9 * (level - 1)), head
        start += count


# (level, first gfn, head word) of every rmap of a slot.
def _rmap_heads(slot: Memslot) -> Iterator[tuple[int, int, int]]:
    if slot.rmap_array is None:
        return
    start = 0
    for level in (2, 3, 1):
        count = slot.nr_lpages(level)
        first = slot.base_gfn >> (9 * (level - 1))
        for i, head in enumerate(slot.rmap_array[start : start + count]):
            yield level, (first + i) << (9 * (level - 1)), head
        start += count


def _list_length(vm: Vm, head: int) -> int:
    if head & 1 == 0:
        return 1 if head else 0
    counts = vm.memory.read_once(Hpa((head & ~7) + 8))
    return (counts & 0xFFFF_FFFF) + (counts >> 32)


def _level(sp: ShadowPage) -> int:
    return sp.role & ROLE_LEVEL_MASK


def _as_id(sp: ShadowPage) -> int:
    return sp.role >> 24


def _is_invalid(sp: ShadowPage) -> bool:
    return sp.role & ROLE_INVALID != 0


def _has_gptes(sp: ShadowPage) -> bool:
    return sp.role & (ROLE_DIRECT | ROLE_PASSTHROUGH) == 0


def _name(sp: ShadowPage) -> str:
    return f"sp at {sp.spt:#x} (gfn {sp.gfn:#x}, {describe_role(sp.role)})"


class _Auditor:
    # One run over one VM.

    __slots__ = (
        "descs",
        "leaves",
        "parents",
        "protected",
        "result",
        "rmap_seen",
        "shadowed",
        "sps",
        "spts",
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

    def run(self) -> Audit:
        self.check_hash()
        self.check_active_list()
        self.note_shadowed()
        for sp in self.sps:
            self.check_role(sp)
            self.check_table(sp)
        self.result.pages = len(self.sps)
        self.check_rmaps()
        for sp in self.sps:
            self.check_parents(sp)
            self.check_unsync(sp)
        self.check_tracking()
        self.check_roots()
        self.check_counters()
        self.check_frames()
        return self.result

    def bad(self, invariant: str, text: str) -> None:
        self.result.problems.append(f"{invariant}: {text}")

    def word(self, hpa: int) -> int:
        return self.vm.memory.read_once(Hpa(hpa))

    def read_words(self, hpa: int, count: int) -> list[int]:
        return memoryview(self.vm.memory.read(Hpa(hpa), count * 8)).cast("Q").tolist()

    def spte_text(self, sptep: int, sp: ShadowPage) -> str:
        spte = self.word(sptep)
        return f"spte {spte:#x} ({describe_spte(spte, self.vm.fmt, _level(sp))}) at {sptep:#x} in {_name(sp)}"

    # ---- lists (I7)

    def check_hash(self) -> None:
        seen: dict[tuple[int, int], ShadowPage] = {}
        for bucket, head in enumerate(self.vm.mmu_page_hash):
            previous: ShadowPage | None = None
            sp = head
            while sp is not None:
                if sp.spt in self.spts:
                    self.bad("I7", f"{_name(sp)} is hashed twice")
                    break
                self.spts[sp.spt] = sp
                self.sps.append(sp)
                self.check_hashed(sp, bucket, previous)
                other = seen.setdefault((sp.gfn, sp.role), sp)
                is_live = not _is_invalid(sp) and sp.mmu_valid_gen == self.vm.mmu_valid_gen
                if other is not sp and is_live and other.mmu_valid_gen == sp.mmu_valid_gen:
                    self.bad("I7", f"{_name(sp)} has the gfn and role of the valid {_name(other)}")
                previous, sp = sp, sp.hash_next

    def check_hashed(self, sp: ShadowPage, bucket: int, previous: ShadowPage | None) -> None:
        wanted = ((sp.gfn * _GOLDEN_RATIO_64) & U64) >> 52
        if wanted != bucket:
            self.bad("I7", f"{_name(sp)} is in hash bucket {bucket}, its gfn belongs to {wanted}")
        if sp.hash_prev is not previous:
            self.bad("I7", f"hash_prev of {_name(sp)} does not lead to its predecessor in bucket {bucket}")
        if self.vm.frames.owner(Pfn(sp.spt >> 12)) is not sp:
            self.bad("I7", f"the frame of {_name(sp)} does not know it")

    def check_active_list(self) -> None:
        head = self.vm.active_mmu_pages
        active: set[int] = set()
        previous, sp = head, head.link_next
        is_old = False
        while sp is not None and sp is not head:
            if sp.spt in active:
                self.bad("I7", f"the active list runs in a circle at {_name(sp)}")
                break
            active.add(sp.spt)
            self.check_active(sp, previous)
            is_current = sp.mmu_valid_gen == self.vm.mmu_valid_gen
            if is_old and is_current:
                self.bad("I7", f"{_name(sp)} of today's generation is behind an obsolete page on the active list")
            is_old = not is_current
            previous, sp = sp, sp.link_next
        if sp is None:
            self.bad("I7", f"the active list ends at {_name(previous)} without its sentinel")
        for page in self.sps:
            if page.spt not in active and not _is_invalid(page):
                self.bad("I7", f"{_name(page)} is valid and not on the active list")

    def check_active(self, sp: ShadowPage, previous: ShadowPage) -> None:
        if sp.link_prev is not previous:
            self.bad("I7", f"link_prev of {_name(sp)} does not lead to its predecessor on the active list")
        if self.spts.get(sp.spt) is not sp:
            self.bad("I7", f"{_name(sp)} is on the active list and not in the hash")
        if _is_invalid(sp):
            self.bad("I7", f"{_name(sp)} is invalid and on the active list")

    # ---- one page: its role (I14), its table (I3, I5, I9, I10, I16)

    def check_role(self, sp: ShadowPage) -> None:
        level = _level(sp)
        quadrant = (sp.role & ROLE_QUADRANT_MASK) >> 5
        if not 1 <= level <= 5:
            self.bad("I14", f"{_name(sp)} has level {level}, which no table has")
        if sp.role & _UNNAMED_ROLE_BITS or _as_id(sp) > 1:
            self.bad("I14", f"role {sp.role:#x} of {_name(sp)} has bits without meaning")
        if quadrant and not sp.role & ROLE_HAS_4_BYTE_GPTE:
            self.bad("I14", f"{_name(sp)} has quadrant {quadrant} and 8-byte gptes")
        if quadrant > 1 and level == 1:
            self.bad("I14", f"{_name(sp)} has quadrant {quadrant}; a level-1 table has only 0 and 1")
        if sp.role & ROLE_HAS_4_BYTE_GPTE and level > 2:
            self.bad("I14", f"{_name(sp)} has 4-byte gptes at level {level}; those guests have two levels")
        has_translations = sp.shadowed_translation != 0
        if has_translations != (_has_gptes(sp) and level <= 3):
            self.bad("I14", f"{_name(sp)} has {'' if has_translations else 'no '}translations, against its role")
        if _is_invalid(sp) and sp.root_count <= 0:
            self.bad("I7", f"{_name(sp)} is invalid, has no user and still exists")

    def check_table(self, sp: ShadowPage) -> None:
        for index, spte in enumerate(self.read_words(sp.spt, 512)):
            if spte == SHADOW_NONPRESENT_VALUE:
                continue
            sptep = sp.spt + index * 8
            if is_shadow_present(spte):
                self.check_present(sp, index, sptep, spte)
            elif is_mmio(self.vm.fmt, spte):
                self.check_mmio(sp, index, sptep, spte)
            elif spte == FROZEN_SPTE:
                self.bad("I9", f"frozen {self.spte_text(sptep, sp)}")
            else:
                wanted = f"neither present nor MMIO, and not {SHADOW_NONPRESENT_VALUE:#x}"
                self.bad("I16", f"{self.spte_text(sptep, sp)} is {wanted}")

    def check_present(self, sp: ShadowPage, index: int, sptep: int, spte: int) -> None:
        level = _level(sp)
        if _is_invalid(sp):
            self.bad("I7", f"invalid page maps: {self.spte_text(sptep, sp)}")
        if level == 1 or spte & _PS:
            self.check_leaf(sp, index, sptep, spte)
        else:
            self.check_nonleaf(sp, index, sptep, spte)

    def gfn_of(self, sp: ShadowPage, index: int) -> int:
        if sp.shadowed_translation:
            return self.word(sp.shadowed_translation + index * 8) >> 12
        return sp.gfn + (index << (9 * (_level(sp) - 1)))

    def check_leaf(self, sp: ShadowPage, index: int, sptep: int, spte: int) -> None:
        level, gfn = _level(sp), self.gfn_of(sp, index)
        self.result.leaves += 1
        self.leaves[sptep] = (gfn, level, _as_id(sp))
        if level > 3:
            self.bad("I5", f"leaf at level {level}: {self.spte_text(sptep, sp)}")
        if not is_legal_triple(self.vm.fmt, spte):
            self.bad("I9", f"illegal (host-writable, MMU-writable, W): {self.spte_text(sptep, sp)}")
        size = 1 << (9 * (level - 1))
        if (spte & SPTE_BASE_ADDR_MASK) >> 12 & (size - 1) or gfn & (size - 1):
            self.bad("I5", f"gfn {gfn:#x} or pfn not aligned to {size} frames: {self.spte_text(sptep, sp)}")
        if is_writable(spte) or is_mmu_writable(self.vm.fmt, spte):
            at = bisect_left(self.protected, gfn)
            if at < len(self.protected) and self.protected[at] < gfn + size:
                table = self.protected[at]
                self.bad("I3", f"the guest table at gfn {table:#x} can be written: {self.spte_text(sptep, sp)}")

    def check_nonleaf(self, sp: ShadowPage, index: int, sptep: int, spte: int) -> None:
        self.result.nonleaves += 1
        child = self.spts.get(spte & SPTE_BASE_ADDR_MASK)
        if child is None:
            self.bad("I7", f"links a table that is no shadow page: {self.spte_text(sptep, sp)}")
            return
        self.parents.setdefault(child.spt, []).append(sptep)
        if _is_invalid(child):
            self.bad("I7", f"links the invalid {_name(child)}: {self.spte_text(sptep, sp)}")
        self.check_child_role(sp, index, child)

    def check_child_role(self, sp: ShadowPage, index: int, child: ShadowPage) -> None:
        pair = f"{_name(child)} under entry {index} of {_name(sp)}"
        if _level(child) != _level(sp) - 1:
            self.bad("I14", f"level: {pair}")
        if (child.role ^ sp.role) & _INHERITED:
            self.bad("I14", f"role bits {(child.role ^ sp.role) & _INHERITED & 0xFFFFFFFF:#x} differ: {pair}")
        more = child.role & ROLE_ACCESS_MASK & ~sp.role
        if child.role & ROLE_DIRECT and not sp.role & (ROLE_DIRECT | ROLE_CR0_WP):
            # With CR0.WP clear, a supervisor's write through a read-only huge page makes it kernel-only, writable.
            more &= ~_ROLE_ACC_WRITE
        if more:
            self.bad("I14", f"more access than the table above allows: {pair}")
        if sp.role & ROLE_DIRECT and not child.role & ROLE_DIRECT:
            self.bad("I14", f"a direct table links an indirect one: {pair}")
        if child.role & ROLE_HAS_4_BYTE_GPTE and (child.role & ROLE_QUADRANT_MASK) >> 5 != index & 1:
            self.bad("I14", f"quadrant is not the lowest bit of the index: {pair}")
        if sp.role & ROLE_DIRECT and child.gfn != self.gfn_of(sp, index):
            self.bad("I14", f"the entry maps gfn {self.gfn_of(sp, index):#x}: {pair}")

    def check_mmio(self, sp: ShadowPage, index: int, sptep: int, spte: int) -> None:
        self.result.mmio += 1
        vm = self.vm
        gfn = mmio_gfn(vm.fmt, spte)
        slots = vm.memslots[_as_id(sp)]
        is_current = mmio_generation(spte) == slots.generation & MMIO_SPTE_GEN_MASK
        slot = slots.search(gfn)
        if is_current and slot is not None and slot.is_visible():
            self.bad("I10", f"gfn {gfn:#x} has memory ({slot!r}) in the spte's generation: {self.spte_text(sptep, sp)}")
        if _level(sp) != 1:
            self.bad("I10", f"MMIO above level 1: {self.spte_text(sptep, sp)}")
        if sp.role & ROLE_DIRECT and gfn != self.gfn_of(sp, index):
            wanted = self.gfn_of(sp, index)
            self.bad("I10", f"MMIO gfn {gfn:#x} in the entry of {wanted:#x}: {self.spte_text(sptep, sp)}")

    # ---- reverse maps (I5)

    # Entries of a list, with every rule about its descriptors checked on the way.
    def read_list(self, head: int, what: str) -> list[int]:
        if head & 1 == 0:
            return [head] if head else []
        entries: list[int] = []
        chain: list[tuple[int, int]] = []
        desc = head & ~7
        while desc:
            if desc & (_DESC_WORDS * 8 - 1) or desc >= self.vm.memory.size or desc in self.descs:
                self.bad("I5", f"{what}: descriptor {desc:#x} is misplaced or used twice")
                return entries
            self.descs.add(desc)
            more, counts, *sptes = self.read_words(desc, _DESC_WORDS)
            count = counts & 0xFFFF_FFFF
            if not 1 <= count <= _DESC_ENTRIES or (chain and count != _DESC_ENTRIES):
                rule = "1 to 14 in the head, 14 in all others"
                self.bad("I5", f"{what}: descriptor {desc:#x} holds {count} entries; {rule}")
            entries += sptes[: min(count, _DESC_ENTRIES)]
            chain.append((desc, counts))
            desc = more
        self.check_tail_counts(chain, what)
        return entries

    def check_tail_counts(self, chain: Sequence[tuple[int, int]], what: str) -> None:
        tail = 0
        for desc, counts in reversed(chain):
            if counts >> 32 != tail:
                text = f"descriptor {desc:#x} counts {counts >> 32} entries behind it"
                self.bad("I5", f"{what}: {text}, there are {tail}")
            tail += counts & 0xFFFF_FFFF

    def check_rmaps(self) -> None:
        for as_id, slots in enumerate(self.vm.memslots):
            for slot in slots.slots:
                for level, gfn, head in _used_rmap_heads(slot):
                    self.check_rmap(head, gfn, level, as_id)
        for sptep, (gfn, level, as_id) in self.leaves.items():
            count = self.rmap_seen[sptep]
            if count != 1:
                sp = self.spts[sptep & ~0xFFF]
                place = f"gfn {gfn:#x} level {level} address space {as_id}"
                self.bad("I5", f"{count} rmap entries, of {place}: {self.spte_text(sptep, sp)}")

    def check_rmap(self, head: int, gfn: int, level: int, as_id: int) -> None:
        what = f"rmap of gfn {gfn:#x} level {level} address space {as_id} (head {head:#x})"
        for sptep in self.read_list(head, what):
            self.result.rmap_entries += 1
            self.rmap_seen[sptep] += 1
            leaf = self.leaves.get(sptep)
            if leaf is None:
                self.bad("I5", f"{what}: {sptep:#x} is no present leaf ({self.word_at(sptep)})")
            elif (leaf[0] >> (9 * (level - 1)), *leaf[1:]) != (gfn >> (9 * (level - 1)), level, as_id):
                text = f"the leaf maps gfn {leaf[0]:#x} level {leaf[1]} address space {leaf[2]}"
                self.bad("I5", f"{what}: {text}: {self.spte_text(sptep, self.spts[sptep & ~0xFFF])}")

    def word_at(self, hpa: int) -> str:
        if hpa & 7 or hpa >= self.vm.memory.size:
            return "not a place of an entry"
        return f"holds {self.word(hpa):#x}"

    def check_parents(self, sp: ShadowPage) -> None:
        listed = Counter(self.read_list(sp.parent_ptes, f"parents of {_name(sp)}"))
        actual = Counter(self.parents.get(sp.spt, ()))
        for sptep in (listed - actual).elements():
            self.bad("I5", f"{_name(sp)} lists parent {sptep:#x}, which does not link it ({self.word_at(sptep)})")
        for sptep in (actual - listed).elements():
            self.bad("I5", f"not among the parents of {_name(sp)}: {self.spte_text(sptep, self.spts[sptep & ~0xFFF])}")

    # ---- unsync (I4)

    def check_unsync(self, sp: ShadowPage) -> None:
        bits = sum(sp.is_unsync_child(index) for index in range(512)) if _level(sp) > 1 else 0
        if bits != sp.unsync_children:
            self.bad("I4", f"unsync_children is {sp.unsync_children}, {bits} bits are set: {_name(sp)}")
        if sp.unsync and (_level(sp) != 1 or not _has_gptes(sp)):
            self.bad("I4", f"only level-1 tables of the guest may be unsync: {_name(sp)}")
        if not sp.unsync and not sp.unsync_children:
            return
        for sptep in self.parents.get(sp.spt, ()):
            parent = self.spts[sptep & ~0xFFF]
            if not parent.is_unsync_child((sptep >> 3) & 511):
                what = "unsync" if sp.unsync else "has unsync children"
                self.bad("I4", f"{_name(sp)} is {what}, its parent's bit is clear: {self.spte_text(sptep, parent)}")

    # ---- write tracking (I3, I6)

    # Before the tables are read: which gfns may not be writable, and why.
    def note_shadowed(self) -> None:
        protected: set[int] = set()
        for sp in self.sps:
            if _is_invalid(sp) or not _has_gptes(sp):
                continue
            self.shadowed[_as_id(sp), sp.gfn, _level(sp) > 1] += 1
            if not sp.unsync and sp.mmu_valid_gen == self.vm.mmu_valid_gen:
                protected.add(sp.gfn)
        for slots in self.vm.memslots:
            for slot in slots.slots:
                protected.update(slot.base_gfn + i for i, _ in _nonzero(slot.write_track_array))
        self.protected = sorted(protected)

    def check_tracking(self) -> None:
        total = sum(self.shadowed.values())
        if total != self.vm.indirect_shadow_pages:
            count = self.vm.indirect_shadow_pages
            self.bad("I6", f"indirect_shadow_pages is {count}, {total} pages mirror guest tables")
        for as_id, slots in enumerate(self.vm.memslots):
            for slot in slots.slots:
                self.check_write_track(slot, as_id)
                self.check_lpage_info(slot, as_id)

    def check_write_track(self, slot: Memslot, as_id: int) -> None:
        tracked = {slot.base_gfn + i: count for i, count in _nonzero(slot.write_track_array)}
        wanted = dict(self.shadowed_in(slot, as_id, True))
        for gfn in sorted(tracked.keys() | wanted.keys()):
            count, real = tracked.get(gfn, 0), wanted.get(gfn, 0)
            if count != real:
                text = f"gfn_write_track is {count}, {real} tables above level 1 mirror it"
                self.bad("I6", f"gfn {gfn:#x} address space {as_id}: {text}")

    # (gfn, count) of the guest tables in a slot that are above level 1, or at level 1.
    def shadowed_in(self, slot: Memslot, as_id: int, is_upper: bool) -> Iterator[tuple[int, int]]:
        for (space, gfn, upper), count in self.shadowed.items():
            if space == as_id and upper == is_upper and slot.base_gfn <= gfn < slot.base_gfn + slot.npages:
                yield gfn, count

    def check_lpage_info(self, slot: Memslot, as_id: int) -> None:
        if slot.lpage_array is None:
            return
        tables = [*self.shadowed_in(slot, as_id, True), *self.shadowed_in(slot, as_id, False)]
        start = 0
        for level in (2, 3):
            wanted = _base_disallow(slot, level)
            for gfn, count in tables:
                wanted[(gfn >> (9 * (level - 1))) - (slot.base_gfn >> (9 * (level - 1)))] += count
            actual = list(slot.lpage_array[start : start + len(wanted)])
            start += len(wanted)
            for i, (count, real) in enumerate(zip(actual, wanted, strict=True)):
                if count != real:
                    gfn = ((slot.base_gfn >> (9 * (level - 1))) + i) << (9 * (level - 1))
                    text = f"disallow_lpage of gfn {gfn:#x} level {level} is {count}, reasons are {real}"
                    self.bad("I6", f"{text}, address space {as_id}")

    # ---- roots (I7), counters (I11), frames

    def check_roots(self) -> None:
        users: Counter[int] = Counter()
        for vcpu in self.vm.vcpus:
            mmu = vcpu.mmu
            for root in (mmu.root_hpa, *(mmu.prev_root(i)[0] for i in range(3))):
                users.update(self.pages_of_root(root, mmu))
        for sp in self.sps:
            if sp.root_count != users[sp.spt]:
                self.bad("I7", f"root_count is {sp.root_count}, {users[sp.spt]} roots use {_name(sp)}")
        for spt in users:
            if spt not in self.spts:
                self.bad("I7", f"a root is at {spt:#x}, where no shadow page is")

    # Tables that a root makes in use: itself, or those of a PAE root; the dummy root has none.
    def pages_of_root(self, root: int, mmu: Mmu) -> list[int]:
        if root == INVALID_PAGE or root >> 12 == self.vm.frames.zero_pfn:
            return []
        if root != mmu.pae_root:
            return [root]
        entries = self.read_words(mmu.pae_root, 4)
        return [entry & SPTE_BASE_ADDR_MASK for entry in entries if entry & 1]

    def check_counters(self) -> None:
        vm, stat = self.vm, self.vm.stat
        levels = Counter(level for _, level, _ in self.leaves.values())
        real = {
            "pages_4k": (stat.pages_4k, levels[1]),
            "pages_2m": (stat.pages_2m, levels[2]),
            "pages_1g": (stat.pages_1g, levels[3]),
            "n_used_mmu_pages": (vm.n_used_mmu_pages, len(self.sps)),
            "mmu_unsync": (stat.mmu_unsync, sum(bool(sp.unsync) for sp in self.sps)),
            "nx_lpage_splits": (stat.nx_lpage_splits, 0),
        }
        for name, (counter, count) in real.items():
            if counter != count:
                self.bad("I11", f"{name} is {counter}, there are {count}")

    def check_frames(self) -> None:
        frames = self.vm.frames
        owned: dict[int, str] = {sp.spt: "table" for sp in self.sps}
        owned |= {sp.shadowed_translation: "translations" for sp in self.sps if sp.shadowed_translation}
        translations = sum(1 for sp in self.sps if sp.shadowed_translation)
        if len(owned) != len(self.sps) + translations:
            self.bad("frames", "two shadow pages share a frame")
        for hpa, kind in owned.items():
            refs = frames.nr_refs(Pfn(hpa >> 12))
            if refs != 1:
                self.bad("frames", f"the {kind} at {hpa:#x} has {refs} references, it needs 1")
        pages = sum(isinstance(owner, ShadowPage) for owner in frames.all_owners())
        if pages != len(self.sps):
            self.bad("frames", f"{pages} frames belong to shadow pages, {len(self.sps)} pages exist")
        self.check_descs()

    def check_descs(self) -> None:
        free: set[int] = set()
        desc = self.vm.desc_free
        while desc:
            if desc in free or desc in self.descs or desc & (_DESC_WORDS * 8 - 1) or desc >= self.vm.memory.size:
                self.bad("frames", f"free descriptor {desc:#x} is in use, free twice or misplaced")
                return
            free.add(desc)
            desc = self.word(desc)  # type: ignore[assignment]
        total = self.vm.nr_desc_frames * _DESCS_PER_FRAME
        if len(free) + len(self.descs) != total:
            text = f"{len(self.descs)} in use and {len(free)} free, {self.vm.nr_desc_frames} frames hold {total}"
            self.bad("frames", f"rmap descriptors: {text}")


# (index, value) of the elements that are not 0.
def _nonzero(array: memoryview | None) -> list[tuple[int, int]]:
    return [] if array is None else nonzero_words(array)


# disallow_lpage of a fresh slot: blocks that stick out of it, and all when gfn and hva differ within a block.
def _base_disallow(slot: Memslot, level: int) -> list[int]:
    size = 1 << (9 * (level - 1))
    first = slot.base_gfn // size
    last = (slot.base_gfn + slot.npages - 1) // size
    counts = [0] * (last - first + 1)
    if slot.base_gfn % size:
        counts[0] = 1
    if (slot.base_gfn + slot.npages) % size:
        counts[-1] = 1
    if (slot.base_gfn - (slot.userspace_addr >> 12)) % size:
        counts = [1] * len(counts)
    return counts
