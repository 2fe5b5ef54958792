# SPDX-License-Identifier: GPL-2.0-only
"""Audit of the CPUs' TLBs: no entry but what kvm's tables still say, unless a flush is on its way (I1, I2).

Whatever kvm takes back from its tables it flushes before anybody may rely on it. So between two operations each live
translation of a vCPU must be in its tables: the same frame, and no right that they do not give. A flush that was
counted and not made, or made of the wrong range, shows here. A huge page that was split translates as before. What the
guest itself left unflushed is no excuse: tables that change for its sake are flushed as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....hw.bits import (
    PT_FRAME,
    PT_NX,
    PT_PAGE_SIZE,
    PT_PRESENT,
    PT_USER,
    PT_WRITABLE,
    TR_EXECUTABLE,
    TR_HOST_WRITABLE,
    TR_USER,
    TR_WRITABLE,
    describe_translation,
)
from ....hw.cpu import CpuRunner
from ....page_types import INVALID_PAGE, LEVEL_BITS, PAGE_SHIFT
from ...bits import (
    KVM_REQ_MMU_FREE_OBSOLETE_ROOTS,
    KVM_REQ_TLB_FLUSH,
    KVM_REQ_TLB_FLUSH_CURRENT,
    KVM_REQ_TLB_FLUSH_GUEST,
)
from .known import EMPTY, SoundTlb, Translating
from .survey import Survey, level_of

if TYPE_CHECKING:
    from ...vcpu import Vcpu

# The entry of a vCPU serves these, or loads a root, before the guest runs; each empties its TLB.
_FLUSHING = (
    1 << KVM_REQ_TLB_FLUSH
    | 1 << KVM_REQ_TLB_FLUSH_CURRENT
    | 1 << KVM_REQ_TLB_FLUSH_GUEST
    | 1 << KVM_REQ_MMU_FREE_OBSOLETE_ROOTS
)
_SPACE_SHIFT = 13
_LEVEL_2M = 2

_RIGHTS = PT_WRITABLE | PT_USER | PT_NX

# Level, page number, owner, translation word: as Tlb.entries() gives them.
_Entry = tuple[int, int, int, int]


def check_tlbs(survey: Survey) -> None:
    """Every live translation of every vCPU is in kvm's tables; needs ``survey.tables``.

    Looked up are the entries that a TLB did not have when the survey was checked last, and those whose leaves have
    gone since, or give less; all of a vCPU when its root, or a table below, is no longer in use.
    """
    known = survey.known_tlbs
    lookup = _Lookup(survey)
    lookup.compare_tables()
    tlbs, known.tlbs = known.tlbs, {}
    for vcpu in survey.vm.vcpus:
        if vcpu.requests & _FLUSHING or vcpu.mmu.root_hpa == INVALID_PAGE or not isinstance(vcpu.runner, CpuRunner):
            continue
        tlb = vcpu.cpu.tlb
        entries = [entry for entry in tlb.entries() if entry[2] >> _SPACE_SHIFT == tlb.space]
        survey.result.tlb_entries += len(entries)
        root = vcpu.mmu.root_hpa if survey.vm.tdp_enabled else 0
        now = SoundTlb(lookup.reach(root), set(entries))
        before = tlbs.get(vcpu.vcpu_id)
        if before is not None and before.reach <= now.reach:
            entries = lookup.select(entries, before.entries)
        lookup.check(vcpu, entries, now.reach)
        known.tlbs[vcpu.vcpu_id] = now


class _Lookup:
    """Leaves by frame as ``survey.tables`` have them, and what has gone from them since the last time."""

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self.known = survey.known_tlbs
        self.is_nested = survey.vm.tdp_enabled
        # Bits that no frame can have: the CPU takes an entry with any of them for none.
        bits = survey.vm.host_maxphyaddr
        self.reserved = PT_FRAME >> bits << bits
        # Blocks of 2M, and of 1G where a leaf was so large, that a leaf was in which is gone, or gives less.
        self.blocks: set[int] = set()
        self.huge_blocks: set[int] = set()
        self.reaches: dict[int, set[int]] = {}

    def compare_tables(self) -> None:
        """Bring the leaves by frame up to date, and note what has gone."""
        survey, tables = self.survey, self.known.tables
        pages = {**survey.spts, **survey.tdp_tables}
        levels = {spt: level_of(sp) for spt, sp in pages.items()}
        for spt, table in list(tables.items()):
            if levels.get(spt) != table.level:
                self._compare(spt, table, EMPTY)
                del tables[spt]
        for spt, words in survey.tables.items():
            if spt not in tables:
                tables[spt] = Translating(levels[spt])
            table = tables[spt]
            if table.words is not words and table.words != words:
                self._compare(spt, table, words)
            table.words = words

    def _compare(self, spt: int, table: Translating, words: bytes) -> None:
        frames, level = self.known.frames, table.level
        old, new = memoryview(table.words).cast("Q"), memoryview(words).cast("Q")
        # Entries are told apart by these bits: leaves have the one value, links the other.
        mask = PT_PRESENT | self.reserved | (PT_PAGE_SIZE if level > 1 else 0)
        leaf, link = mask & (PT_PRESENT | PT_PAGE_SIZE), PT_PRESENT
        for index in self.survey.differing(spt, table.words, words):
            was, spte = old[index], new[index]
            before = (was & PT_FRAME) >> PAGE_SHIFT if was & mask == leaf else -1
            now = (spte & PT_FRAME) >> PAGE_SHIFT if spte & mask == leaf else -1
            if before != now:
                if before >= 0:
                    frames[before].remove(spt + index * 8)
                if now >= 0:
                    frames.setdefault(now, []).append(spt + index * 8)
            if before >= 0 and (before != now or (was ^ PT_NX) & ~(spte ^ PT_NX) & _RIGHTS):
                self.blocks.add(before >> LEVEL_BITS)
                if level > _LEVEL_2M:
                    self.huge_blocks.add(before >> 2 * LEVEL_BITS)
            if level > 1:
                table.children.pop(index, None)
                if spte & mask == link:
                    table.children[index] = spte & PT_FRAME

    def reach(self, root: int) -> set[int]:
        """The tables that the CPU's second stage walks from ``root`` on; none under shadow paging.

        There all tables count: those of a context that is not current may be linked by nothing.
        """
        if root not in self.reaches:
            found = self.reaches[root] = set()
            todo = [root]
            while todo:
                spt = todo.pop()
                table = self.known.tables.get(spt)
                if table is not None and spt not in found:
                    found.add(spt)
                    todo += table.children.values()
        return self.reaches[root]

    def select(self, entries: list[_Entry], sound: set[_Entry]) -> list[_Entry]:
        """Those of ``entries`` that are not among the ``sound`` ones, or whose leaf may have gone."""
        blocks, huge_blocks = self.blocks, self.huge_blocks
        return [
            entry
            for entry in entries
            if entry not in sound
            or (entry[3] & PT_FRAME) >> PAGE_SHIFT + LEVEL_BITS in blocks
            or (entry[3] & PT_FRAME) >> PAGE_SHIFT + 2 * LEVEL_BITS in huge_blocks
            or entry[0] > _LEVEL_2M
        ]

    def check(self, vcpu: Vcpu, entries: list[_Entry], reach: set[int]) -> None:
        """Each of ``entries`` of the vCPU's TLB is in the tables of ``reach``."""
        for level, vpn, owner, translation in entries:
            pfn = (translation & PT_FRAME) >> PAGE_SHIFT
            gva = vpn << (9 * level + 3)
            sptes: list[int] = []
            for size in range(level, 4):
                sptes += self._leaves(size, pfn >> 9 * (size - 1) << 9 * (size - 1), gva, reach)
            if any(_allows(self.survey, spte, translation) for spte in sptes):
                continue
            if not self._is_split(pfn, level, translation, reach):
                text = describe_translation(translation)
                what = f"vCPU {vcpu.vcpu_id}, gva {gva:#x} (owner {owner:#x}): the TLB {text}"
                have = ", ".join(f"{spte:#x}" for spte in sptes) or "none"
                text = f"{what}; entries of that frame in kvm's tables: {have}; no flush is due"
                self.survey.bad("I2" if sptes else "I1", text)

    # Leaves of a size that map pfn first; a shadow page's only where the walk of gva comes by.
    def _leaves(self, size: int, pfn: int, gva: int, reach: set[int]) -> list[int]:
        found = []
        for sptep in self.known.frames.get(pfn, ()):
            table = sptep & ~0xFFF
            if self.known.tables[table].level != size:
                continue
            if table in reach if self.is_nested else (sptep >> 3 ^ gva >> 9 * size + 3) & 511 == 0:
                found.append(self.survey.word(sptep))
        return found

    # Whether smaller leaves stand for a page of level, each with every right: a huge page was split, which needs no
    # flush.
    def _is_split(self, pfn: int, level: int, translation: int, reach: set[int]) -> bool:
        if level == 1 or not self.is_nested:
            return False
        size = 1 << (9 * (level - 2))
        return all(
            any(_allows(self.survey, spte, translation) for spte in self._leaves(level - 1, piece, 0, reach))
            or self._is_split(piece, level - 1, translation, reach)
            for piece in range(pfn, pfn + 512 * size, size)
        )


# Whether a leaf gives every right of a translation that was made from it. Under nested paging the guest's own tables
# decide the rest.
def _allows(survey: Survey, spte: int, translation: int) -> bool:
    if survey.vm.tdp_enabled:
        writable, user = translation & TR_HOST_WRITABLE, False
    else:
        writable, user = translation & TR_WRITABLE, bool(translation & TR_USER)
    return not (
        (writable and not spte & PT_WRITABLE)
        or (user and not spte & PT_USER)
        or (translation & TR_EXECUTABLE and spte & PT_NX)
    )
