# SPDX-License-Identifier: GPL-2.0-only
"""Audit of what is counted: users of roots (I7), statistics (I11), frames and rmap descriptors."""

from __future__ import annotations

from collections import Counter
from operator import itemgetter
from typing import TYPE_CHECKING

from ....addr import Pfn
from ....page_types import INVALID_PAGE
from ..bits import SPTE_BASE_ADDR_MASK
from ..page import ShadowPage
from .survey import DESC_WORDS, Survey, name_of

if TYPE_CHECKING:
    from ..context import Mmu

_DESCS_PER_FRAME = 32


def check_roots(survey: Survey) -> None:
    """``root_count`` of each page is the number of roots that use it."""
    users: Counter[int] = Counter()
    for vcpu in survey.vm.vcpus:
        mmu = vcpu.mmu
        for root in (mmu.root_hpa, *(mmu.prev_root(i)[0] for i in range(3))):
            users.update(_pages_of_root(survey, root, mmu))
    users = Counter({spt: count for spt, count in users.items() if spt not in survey.tdp_tables})
    for sp in survey.sps:
        if sp.root_count != users[sp.spt]:
            survey.bad("I7", f"root_count is {sp.root_count}, {users[sp.spt]} roots use {name_of(sp)}")
    for spt in users:
        if spt not in survey.spts:
            survey.bad("I7", f"a root is at {spt:#x}, where no shadow page is")


# Tables that a root makes in use: itself, or those of a PAE root; the dummy root has none.
def _pages_of_root(survey: Survey, root: int, mmu: Mmu) -> list[int]:
    if root == INVALID_PAGE or root >> 12 == survey.vm.frames.zero_pfn:
        return []
    if root != mmu.pae_root:
        return [root]
    entries = survey.read_words(mmu.pae_root, 4)
    return [entry & SPTE_BASE_ADDR_MASK for entry in entries if entry & 1]


def check_counters(survey: Survey) -> None:
    """The counters of the VM are what they count."""
    vm, stat = survey.vm, survey.vm.stat
    levels = Counter(map(itemgetter(1), survey.leaves.values())) + survey.tdp_leaves
    real = {
        "pages_4k": (stat.pages_4k, levels[1]),
        "pages_2m": (stat.pages_2m, levels[2]),
        "pages_1g": (stat.pages_1g, levels[3]),
        "n_used_mmu_pages": (vm.n_used_mmu_pages, len(survey.sps)),
        "mmu_unsync": (stat.mmu_unsync, sum(bool(sp.unsync) for sp in survey.sps)),
    }
    for name, (counter, count) in real.items():
        if counter != count:
            survey.bad("I11", f"{name} is {counter}, there are {count}")


def check_frames(survey: Survey) -> None:
    """Each frame of kvm's has one owner, each rmap descriptor one use."""
    frames = survey.vm.frames
    owned: dict[int, str] = {sp.spt: "table" for sp in survey.sps}
    owned |= {sp.shadowed_translation: "translations" for sp in survey.sps if sp.shadowed_translation}
    translations = sum(1 for sp in survey.sps if sp.shadowed_translation)
    if len(owned) != len(survey.sps) + translations:
        survey.bad("frames", "two shadow pages share a frame")
    for hpa, kind in owned.items():
        refs = frames.nr_refs(Pfn(hpa >> 12))
        if refs != 1:
            survey.bad("frames", f"the {kind} at {hpa:#x} has {refs} references, it needs 1")
    pages = sum(isinstance(owner, ShadowPage) for owner in frames.all_owners())
    exist = len(survey.sps) + len(survey.tdp_tables)
    if pages != exist:
        survey.bad("frames", f"{pages} frames belong to shadow pages, {exist} pages exist")
    _check_descs(survey)


def _check_descs(survey: Survey) -> None:
    free = survey.free_descs
    desc = survey.vm.desc_free
    while desc:
        if desc in free or desc in survey.descs or desc & (DESC_WORDS * 8 - 1) or desc >= survey.vm.memory.size:
            survey.bad("frames", f"free descriptor {desc:#x} is in use, free twice or misplaced")
            return
        free.add(desc)
        desc = survey.word(desc)  # type: ignore[assignment]  # a free descriptor's word names the next
    total = survey.vm.nr_desc_frames * _DESCS_PER_FRAME
    if len(free) + len(survey.descs) != total:
        text = f"{len(survey.descs)} in use and {len(free)} free, {survey.vm.nr_desc_frames} frames hold {total}"
        survey.bad("frames", f"rmap descriptors: {text}")
