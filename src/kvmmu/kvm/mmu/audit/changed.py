# SPDX-License-Identifier: GPL-2.0-only
"""The audit of what changed: an :class:`Auditor` remembers what it found sound, and reads again what is not as it was.

What is compared is the structures themselves, not a list of what somebody said to have changed: tables, translations
and rmap descriptors byte by byte, rmap heads and the headers of pages one by one. So a change is noticed whoever made
it. What each changed entry, list or header can break is checked with the functions of the whole audit: the entry
itself, the lists that it was or is in, the children that it linked or links, its parents, and the leaves of a guest
table that is protected from now on. What is cheap is checked whole each time: hash and active list, roles, roots,
tracking, counters, frames. The rooms of the TDP MMU and of TLBs do the same with what ``known`` keeps. Other memslots
than before, or other flags of one, make it a whole audit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ....addr import Hpa
from ....page_types import ENTRIES, PAGE_SIZE
from ..bits import SHADOW_NONPRESENT_VALUE
from .entries import check_entries, check_protection
from .known import EMPTY, changed_entries, differing_words
from .rmaps import RmapHeads, check_listed, check_members, check_parents, count_listed, read_list
from .survey import DESC_WORDS, Audit, ListKey, Survey, level_of, parents_key, raise_problems, rmap_key
from .tracking import check_unsync
from .whole import check_all, check_headers, check_totals

if TYPE_CHECKING:
    from ...vm import Vm
    from ..page import ShadowPage

_DESC_BYTES = DESC_WORDS * 8
_NO_LIST: tuple[list[int], list[int]] = ([], [])


@dataclass(frozen=True, slots=True)
class _Page:
    """A shadow page as it was: header words, then the bytes of its table and of its translations."""

    sp: ShadowPage
    identity: tuple[int, int, int]
    state: tuple[int, int, int, list[int]]
    table: bytes
    translations: bytes


@dataclass(slots=True)
class _Work:
    """What is to be checked again."""

    #: spt -> indices of entries.
    entries: dict[int, set[int]] = field(default_factory=dict)
    #: Pages whose header changed.
    headers: set[int] = field(default_factory=set)
    #: Pages whose list of parents, or what links them, changed.
    children: set[int] = field(default_factory=set)
    rmaps: set[ListKey] = field(default_factory=set)
    #: Places where a leaf is, or was, that must be in one list.
    leaves: set[int] = field(default_factory=set)

    def add(self, sptep: int) -> None:
        """The entry at ``sptep``."""
        self.entries.setdefault(sptep & ~0xFFF, set()).add(sptep >> 3 & 511)


class Auditor:
    """Audits ``vm`` again and again, first all of it, then what is not as it was at the audit before."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        # None: nothing is known to be sound.
        self._survey: Survey | None = None
        self._slots: tuple[object, ...] = ()
        self._pages: dict[int, _Page] = {}
        self._heads: RmapHeads | None = None
        self._desc_frames: dict[int, bytes] = {}

    def audit(self, full: bool = False) -> Audit:
        """Check what changed since the last audit (``full``: everything); no lock may be held.

        :class:`KvmBug` lists the first broken invariants with the words involved. Returns what there is, all counted.
        """
        return raise_problems(self.find_violations(full))

    def find_violations(self, full: bool = False) -> Audit:
        """As :meth:`audit`, with the problems returned instead of raised; the next audit after any is a full one."""
        survey, heads = self._survey, self._heads
        slots = _slots_of(self.vm)
        if full or survey is None or heads is None or slots != self._slots:
            survey, heads = Survey(self.vm), RmapHeads(self.vm)
            check_all(survey)
            pages: dict[int, _Page] = {sp.spt: _read_page(survey, sp) for sp in survey.sps}
        else:
            pages = self._check_changes(survey, heads)
        self._survey = None if survey.result.problems else survey
        if self._survey is not None:
            self._slots, self._pages, self._heads = slots, pages, heads
            frames = {desc & -PAGE_SIZE for desc in (*survey.descs, *survey.free_descs)}
            self._desc_frames = {frame: self.vm.memory.read(Hpa(frame), PAGE_SIZE) for frame in frames}
        return survey.result

    def _check_changes(self, survey: Survey, heads: RmapHeads) -> dict[int, _Page]:
        protected = set(survey.protected)
        survey.begin()
        check_headers(survey)
        work = _Work()
        pages = self._find_pages(survey, work)
        _check_entries(survey, work)
        self._check_lists(survey, work, heads)
        _check_unsync(survey, work)
        _check_protected(survey, work, heads.heads, set(survey.protected) - protected)
        check_totals(survey)
        return pages

    # Find pages that are gone, new, or not as they were; forget what those that are gone held.
    def _find_pages(self, survey: Survey, work: _Work) -> dict[int, _Page]:
        for spt, page in self._pages.items():
            if survey.spts.get(spt) is not page.sp:
                for index in differing_words(page.table, EMPTY):
                    _forget(survey, work, spt + index * 8)
                _forget_list(survey, (-1, 0, spt))
                for sptep in survey.parents.get(spt, ()):
                    work.add(sptep)
        pages: dict[int, _Page] = {}
        for sp in survey.sps:
            before = self._pages.get(sp.spt)
            if before is not None and before.sp is not sp:
                before = None
            page = _read_page(survey, sp)
            if before is None or before != page:
                self._compare(survey, work, before, page)
            else:
                page = before
            pages[sp.spt] = page
            survey.tables[sp.spt] = page.table
        return pages

    def _compare(self, survey: Survey, work: _Work, before: _Page | None, page: _Page) -> None:
        spt = page.sp.spt
        if before is None or before.identity != page.identity:
            # All that it holds, and what links it.
            old = EMPTY if before is None else before.table
            indices = {*differing_words(old, EMPTY), *survey.differing(spt, EMPTY, page.table)}
            for sptep in survey.parents.get(spt, ()):
                work.add(sptep)
        else:
            differing = survey.differing(spt, before.table, page.table)
            indices = set(changed_entries(self.vm.fmt, before.table, page.table, differing))
            indices.update(differing_words(before.translations, page.translations))
        if indices:
            work.entries.setdefault(spt, set()).update(indices)
        if before is None or (before.identity, before.state) != (page.identity, page.state):
            work.headers.add(spt)
            work.children.add(spt)

    # Rmaps and lists of parents that changed, or that something was in that changed.
    def _check_lists(self, survey: Survey, work: _Work, heads: RmapHeads) -> None:
        before = heads.look()
        work.rmaps.update(before)
        for key in self._changed_descs(survey):
            if key[0] < 0:
                work.children.add(key[2])
            else:
                work.rmaps.add(key)
        listed = {key: _forget_rmap(survey, key, before, heads.heads) for key in work.rmaps}
        children = [survey.spts[spt] for spt in work.children if spt in survey.spts]
        for sp in children:
            _forget_list(survey, parents_key(sp))
        _check_rmaps(survey, work, listed, heads.heads)
        check_listed(survey, work.leaves)
        for sp in children:
            check_parents(survey, sp)

    def _changed_descs(self, survey: Survey) -> Iterable[ListKey]:
        for frame, before in self._desc_frames.items():
            now = self.vm.memory.read(Hpa(frame), PAGE_SIZE)
            if now != before:
                for start in range(0, PAGE_SIZE, _DESC_BYTES):
                    key = survey.descs.get(frame + start)
                    if key is not None and now[start : start + _DESC_BYTES] != before[start : start + _DESC_BYTES]:
                        yield key


# Entries that changed, in pages that exist. What linked a page that is gone may be gone as well.
def _check_entries(survey: Survey, work: _Work) -> None:
    leaves, links = survey.leaves, survey.links
    for spt, indices in work.entries.items():
        sp = survey.spts.get(spt)
        if sp is None:
            continue
        before = []
        for index in indices:
            sptep = spt + index * 8
            before.append((sptep, leaves.pop(sptep, None)))
            if sptep in links:
                _forget_link(survey, work, sptep)
            survey.mmio.discard(sptep)
        words = survey.read_words(spt, ENTRIES)
        check_entries(survey, sp, [(i, words[i]) for i in indices if words[i] != SHADOW_NONPRESENT_VALUE])
        for sptep, old in before:
            leaf = leaves.get(sptep)
            if leaf != old:
                work.leaves.add(sptep)
                if leaf is not None:
                    work.rmaps.add(rmap_key(leaf))
                if old is not None:
                    work.rmaps.add(rmap_key(old))
            if sptep in links:
                work.children.add(links[sptep])


# What was known of a list of descriptors; return what it listed.
def _forget_list(survey: Survey, key: ListKey) -> list[int]:
    entries, descs = survey.lists.pop(key, _NO_LIST)
    for desc in descs:
        survey.descs.pop(desc, None)
    return entries


# What an rmap listed, its head being that of before; most are one word.
def _forget_rmap(survey: Survey, key: ListKey, before: dict[ListKey, int], heads: dict[ListKey, int]) -> list[int]:
    head = before[key] if key in before else heads.get(key, 0)
    if head & 1:
        return _forget_list(survey, key)
    return [head] if head else []


# Rmaps with what each listed before: check what came, and what stayed and changed; note what must be in one list.
def _check_rmaps(survey: Survey, work: _Work, listed: dict[ListKey, list[int]], heads: dict[ListKey, int]) -> None:
    seen, touched = survey.rmap_seen, set()
    for key, before in listed.items():
        head = heads.get(key, 0)
        if head & 1 == 0 and len(before) <= 1:
            # The common case, in few steps: one entry or none, then and now.
            old_entry = before[0] if before else 0
            if head != old_entry:
                if old_entry:
                    seen[old_entry] -= 1
                    touched.add(old_entry)
                if head:
                    count_listed(survey, head, key, (head,))
                    touched.add(head)
            elif head in work.leaves:
                check_members(survey, head, key, (head,))
            continue
        now = read_list(survey, head, key)
        old, new = set(before), set(now)
        gone, come = old - new, new - old
        if len(new) != len(now):
            gone, come = old, new
        for sptep in gone:
            seen[sptep] -= 1
        if len(new) != len(now):
            count_listed(survey, head, key, now)
        else:
            for sptep in come:
                seen[sptep] = seen.get(sptep, 0) + 1
            check_members(survey, head, key, come | (new & work.leaves))
        touched |= gone
        touched |= come
    work.leaves |= touched


# Bits of the tables above: of what changed itself, is linked by it, or was linked anew.
def _check_unsync(survey: Survey, work: _Work) -> None:
    found = work.headers | work.children
    for spt in work.headers:
        if spt in survey.spts and level_of(survey.spts[spt]) > 1:
            found.update(child for place in range(spt, spt + PAGE_SIZE, 8) if (child := survey.links.get(place)))
    for spt in found:
        if spt in survey.spts:
            check_unsync(survey, survey.spts[spt])


# Leaves of guest tables that may not be written from now on, as far as they were not checked as entries.
def _check_protected(survey: Survey, work: _Work, heads: dict[ListKey, int], gfns: set[int]) -> None:
    keys = {rmap_key((gfn, level, as_id)) for gfn in gfns for level in (1, 2, 3) for as_id in (0, 1)}
    for key in keys & heads.keys():
        for sptep in _entries(survey, heads[key], key):
            spt = sptep & ~0xFFF
            if sptep in survey.leaves and sptep >> 3 & 511 not in work.entries.get(spt, ()):
                check_protection(survey, survey.spts[spt], sptep, survey.word(sptep))


# What decides whether the slots, their arrays and whether they log what is written, are those of before.
def _slots_of(vm: Vm) -> tuple[object, ...]:
    logged = [(slot.flags, slot.dirty_array is None) for slots in vm.memslots for slot in slots.slots]
    generations = [slots.generation for slots in vm.memslots]
    return generations, logged, vm.is_shadow_root_allocated()


def _read_page(survey: Survey, sp: ShadowPage) -> _Page:
    read = survey.vm.memory.read
    translations = read(Hpa(sp.shadowed_translation), PAGE_SIZE) if sp.shadowed_translation else b""
    return _Page(
        sp,
        (sp.gfn, sp.role, sp.shadowed_translation),
        (sp.parent_ptes, sp.unsync, sp.unsync_children, sp.unsync_words()),
        read(sp.spt, PAGE_SIZE),
        translations,
    )


# Entries of a list that was read.
def _entries(survey: Survey, head: int, key: ListKey) -> list[int]:
    if head & 1 == 0:
        return [head] if head else []
    return survey.lists.get(key, _NO_LIST)[0]


# What was known of the entry at sptep, whose page is gone.
def _forget(survey: Survey, work: _Work, sptep: int) -> None:
    leaf = survey.leaves.pop(sptep, None)
    if leaf is not None:
        work.leaves.add(sptep)
        work.rmaps.add(rmap_key(leaf))
    if sptep in survey.links:
        _forget_link(survey, work, sptep)
    survey.mmio.discard(sptep)


def _forget_link(survey: Survey, work: _Work, sptep: int) -> None:
    child = survey.links.pop(sptep)
    survey.parents[child].remove(sptep)
    work.children.add(child)
