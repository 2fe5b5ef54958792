# SPDX-License-Identifier: GPL-2.0-only
"""Audit of what protects guest tables: write-track and large-page counts (I6), unsync bits (I4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ....host.frames import nonzero_words
from .survey import Survey, as_id_of, has_gptes, is_invalid, level_of, name_of

if TYPE_CHECKING:
    from ...memslots import Memslot
    from ..page import ShadowPage


# Before the tables are read: which gfns may not be writable, and why.
def note_shadowed(survey: Survey) -> None:
    """Note in ``survey``, before the tables are read, which gfns may not be writable, and why."""
    protected: set[int] = set()
    for sp in survey.sps:
        if is_invalid(sp) or not has_gptes(sp):
            continue
        survey.shadowed[as_id_of(sp), sp.gfn, level_of(sp) > 1] += 1
        if not sp.unsync and sp.mmu_valid_gen == survey.vm.mmu_valid_gen:
            protected.add(sp.gfn)
    for as_id, slots in enumerate(survey.vm.memslots):
        for slot in slots.slots:
            tracked: dict[int, int] = {slot.base_gfn + i: count for i, count in _nonzero(slot.write_track_array)}
            survey.tracked[as_id, slot.id] = tracked
            protected.update(tracked)
    survey.protected = sorted(protected)


def check_tracking(survey: Survey) -> None:
    """Write-track and large-page counts are the number of their reasons."""
    total = sum(survey.shadowed.values())
    if total != survey.vm.indirect_shadow_pages:
        count = survey.vm.indirect_shadow_pages
        survey.bad("I6", f"indirect_shadow_pages is {count}, {total} pages mirror guest tables")
    for as_id, slots in enumerate(survey.vm.memslots):
        for slot in slots.slots:
            _check_write_track(survey, slot, as_id)
            _check_lpage_info(survey, slot, as_id)


def _check_write_track(survey: Survey, slot: Memslot, as_id: int) -> None:
    tracked = survey.tracked[as_id, slot.id]
    wanted = dict(_shadowed_in(survey, slot, as_id, True))
    for gfn in sorted(tracked.keys() | wanted.keys()):
        count, real = tracked.get(gfn, 0), wanted.get(gfn, 0)
        if count != real:
            text = f"gfn_write_track is {count}, {real} tables above level 1 mirror it"
            survey.bad("I6", f"gfn {gfn:#x} address space {as_id}: {text}")


# (gfn, count) of the guest tables in a slot that are above level 1, or at level 1.
def _shadowed_in(survey: Survey, slot: Memslot, as_id: int, is_upper: bool) -> Iterator[tuple[int, int]]:
    for (space, gfn, upper), count in survey.shadowed.items():
        if space == as_id and upper == is_upper and slot.base_gfn <= gfn < slot.base_gfn + slot.npages:
            yield gfn, count


def _check_lpage_info(survey: Survey, slot: Memslot, as_id: int) -> None:
    if slot.lpage_array is None:
        return
    tables = [*_shadowed_in(survey, slot, as_id, True), *_shadowed_in(survey, slot, as_id, False)]
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
                survey.bad("I6", f"{text}, address space {as_id}")


def check_unsync(survey: Survey, sp: ShadowPage) -> None:
    """``sp`` and its parents agree about what is out of sync."""
    bits = sum(word.bit_count() for word in sp.unsync_words()) if level_of(sp) > 1 else 0
    if bits != sp.unsync_children:
        survey.bad("I4", f"unsync_children is {sp.unsync_children}, {bits} bits are set: {name_of(sp)}")
    if sp.unsync and (level_of(sp) != 1 or not has_gptes(sp)):
        survey.bad("I4", f"only level-1 tables of the guest may be unsync: {name_of(sp)}")
    if not sp.unsync and not sp.unsync_children:
        return
    for sptep in survey.parents.get(sp.spt, ()):
        parent = survey.spts[sptep & ~0xFFF]
        if not parent.is_unsync_child((sptep >> 3) & 511):
            what = "unsync" if sp.unsync else "has unsync children"
            survey.bad("I4", f"{name_of(sp)} is {what}, its parent's bit is clear: {survey.spte_text(sptep, parent)}")


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
