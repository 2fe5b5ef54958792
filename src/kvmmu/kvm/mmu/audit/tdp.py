# SPDX-License-Identifier: GPL-2.0-only
"""Audit of the TDP MMU: roots and their users (I7), tables and their roles (I14), entries (I1, I8, I9, I16), RCU (I15).

Tables are found from the roots, as there is no list of them. What the NX mitigation counts is checked for the pages of
both MMUs (I11).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ....addr import Gfn, Pfn
from ....host.bits import HPTE_PFN_MASK, HPTE_PRESENT
from ....page_types import INVALID_PAGE
from ..bits import FROZEN_SPTE, ROLE_DIRECT, ROLE_LEVEL_MASK, SHADOW_NONPRESENT_VALUE, SPTE_BASE_ADDR_MASK
from ..page import ShadowPage
from ..spte import is_executable, is_legal_triple, is_mmio, is_shadow_present, is_writable
from .entries import check_mmio
from .survey import Survey, as_id_of, is_invalid, level_of, name_of

if TYPE_CHECKING:
    from ...memslots import Memslot

_PS = 1 << 7


def check_tdp_mmu(survey: Survey) -> None:
    """Every root, and all that lies below it; notes tables and leaves in ``survey``."""
    vm = survey.vm
    if vm.rcu.readers or vm.rcu.pending:
        survey.bad("I15", f"nobody runs, but {vm.rcu!r}")
    head = vm.tdp_mmu_roots
    roots: dict[int, ShadowPage] = {}
    previous, root = head, head.link_next
    while root is not None and root is not head:
        if root.spt in survey.tdp_tables:
            survey.bad("I7", f"the list of roots runs in a circle at {name_of(root)}")
            return
        if root.link_prev is not previous:
            survey.bad("I7", f"link_prev of {name_of(root)} does not lead to its predecessor in the list of roots")
        survey.tdp_tables[root.spt] = root
        _check_root(survey, root, roots)
        _check_table(survey, root, root)
        previous, root = root, root.link_next
    linked = len(survey.tdp_tables) - survey.nr_tdp_roots
    if vm.tdp_mmu_pages != linked:
        survey.bad("I11", f"tdp_mmu_pages is {vm.tdp_mmu_pages}, {linked} tables are linked")


def _check_root(survey: Survey, root: ShadowPage, roots: dict[int, ShadowPage]) -> None:
    survey.nr_tdp_roots += 1
    if not root.is_tdp or not root.role & ROLE_DIRECT or root.ptep or root.gfn or level_of(root) < 4:
        survey.bad("I14", f"no root of the TDP MMU: {root!r} linked at {root.ptep:#x}")
    if root.scheduled_to_zap:
        survey.bad("I7", f"{name_of(root)} still waits to be zapped")
    if not is_invalid(root):
        other = roots.setdefault(root.role, root)
        if other is not root:
            survey.bad("I7", f"{name_of(root)} has the role of the valid {name_of(other)}")
    users = sum(
        place == root.spt
        for vcpu in survey.vm.vcpus
        for place in (vcpu.mmu.root_hpa, *(vcpu.mmu.prev_root(i)[0] for i in range(3)))
        if place != INVALID_PAGE
    )
    wanted = users + (not is_invalid(root))
    if root.root_count != wanted:
        survey.bad("I7", f"root_count is {root.root_count}, {wanted} use {name_of(root)}")


def _check_table(survey: Survey, root: ShadowPage, sp: ShadowPage) -> None:
    vm = survey.vm
    level = level_of(sp)
    if vm.frames.nr_refs(Pfn(sp.spt >> 12)) != 1:
        survey.bad("frames", f"the table of {name_of(sp)} has {vm.frames.nr_refs(Pfn(sp.spt >> 12))} references")
    for index, spte in enumerate(survey.read_words(sp.spt, 512)):
        if spte == SHADOW_NONPRESENT_VALUE:
            continue
        sptep = sp.spt + index * 8
        if spte == FROZEN_SPTE:
            survey.bad("I9", f"frozen {survey.spte_text(sptep, sp)}")
        elif not is_shadow_present(spte):
            if is_mmio(vm.fmt, spte):
                check_mmio(survey, sp, index, sptep, spte)
            else:
                survey.bad("I16", f"neither present nor MMIO nor empty: {survey.spte_text(sptep, sp)}")
        elif is_invalid(root):
            survey.bad("I7", f"invalid root maps: {survey.spte_text(sptep, sp)}")
        elif level == 1 or spte & _PS:
            _check_leaf(survey, sp, index, sptep, spte)
        else:
            _check_link(survey, root, sp, index, sptep, spte)


def _check_link(survey: Survey, root: ShadowPage, sp: ShadowPage, index: int, sptep: int, spte: int) -> None:
    survey.result.nonleaves += 1
    place = spte & SPTE_BASE_ADDR_MASK
    child = survey.vm.frames.owner(Pfn(place >> 12)) if place < survey.vm.memory.size else None
    if not isinstance(child, ShadowPage) or not child.is_tdp or child.spt != place:
        survey.bad("I7", f"links a table that is none of the TDP MMU's: {survey.spte_text(sptep, sp)}")
        return
    if place in survey.tdp_tables:
        survey.bad("I7", f"links a table that has a place already: {survey.spte_text(sptep, sp)}")
        return
    survey.tdp_tables[place] = child
    if child.ptep != sptep:
        survey.bad("I5", f"{name_of(child)} thinks that {child.ptep:#x} links it: {survey.spte_text(sptep, sp)}")
    if child.role != (sp.role & ~ROLE_LEVEL_MASK | level_of(sp) - 1):
        survey.bad("I14", f"role of {name_of(child)} under entry {index} of {name_of(sp)}")
    if child.gfn != survey.gfn_of(sp, index):
        survey.bad("I14", f"{name_of(child)} is linked for gfn {survey.gfn_of(sp, index):#x}")
    _check_table(survey, root, child)


def _check_leaf(survey: Survey, sp: ShadowPage, index: int, sptep: int, spte: int) -> None:
    survey.result.leaves += 1
    survey.tdp_leaves[level_of(sp)] += 1
    for invariant, wrong in _wrong_with_leaf(survey, sp, Gfn(survey.gfn_of(sp, index)), spte):
        survey.bad(invariant, f"{wrong}: {survey.spte_text(sptep, sp)}")


# (invariant, what is broken) of the leaf for gfn.
def _wrong_with_leaf(survey: Survey, sp: ShadowPage, gfn: Gfn, spte: int) -> Iterator[tuple[str, str]]:
    vm = survey.vm
    level = level_of(sp)
    size = 1 << (9 * (level - 1))
    pfn = (spte & SPTE_BASE_ADDR_MASK) >> 12
    if level > 3 or pfn & (size - 1):
        yield "I5", f"no leaf of level {level}"
    if not is_legal_triple(vm.fmt, spte):
        yield "I9", "illegal (host-writable, MMU-writable, W)"
    if level > 1 and vm.policy.nx_huge_pages and is_executable(vm.fmt, spte):
        yield "I9", "executable huge page against the NX mitigation"
    slot = vm.memslots[as_id_of(sp)].search(gfn)
    if slot is None or gfn + size > slot.end_gfn:
        yield "I1", f"maps gfn {gfn:#x}, which has no memory"
        return
    # The host maps the page there, in a page of its own that is at least as large.
    hva = slot.gfn_to_hva(gfn)
    hpte = vm.mm.hpte(hva)
    if not hpte & HPTE_PRESENT or (hpte & HPTE_PFN_MASK) >> 12 != pfn:
        yield "I1", f"the host has {hpte:#x} for gfn {gfn:#x}"
    elif vm.mm.mapping_level(hva) < level:
        yield "I1", f"the host's page for gfn {gfn:#x} is of level {vm.mm.mapping_level(hva)}"
    if level == 1 and is_writable(spte) and not _is_logged_as_written(slot, gfn):
        yield "I8", f"gfn {gfn:#x} can be written and is not in the dirty log"


def _is_logged_as_written(slot: Memslot, gfn: int) -> bool:
    if not slot.is_dirty_logged() or slot.dirty_array is None:
        return True
    bit = gfn - slot.base_gfn
    return bool(slot.dirty_array[bit >> 6] >> (bit & 63) & 1)


def check_nx_pages(survey: Survey) -> None:
    """The list of pages that only the NX mitigation keeps small, and its counter."""
    head = survey.vm.possible_nx_huge_pages
    known = {sp.spt for sp in survey.sps} | survey.tdp_tables.keys()
    listed: set[int] = set()
    sp = head.nx_next
    while sp is not None and sp is not head and sp.spt not in listed:
        listed.add(sp.spt)
        if sp.spt not in known:
            survey.bad("I11", f"the list of possible NX huge pages has {name_of(sp)}, which is gone")
        if not sp.nx_huge_page_disallowed:
            survey.bad("I11", f"the list of possible NX huge pages has {name_of(sp)}, where none was forbidden")
        sp = sp.nx_next
    if sp is not head:
        survey.bad("I11", "the list of possible NX huge pages does not come back to its sentinel")
    if survey.vm.stat.nx_lpage_splits != len(listed):
        survey.bad("I11", f"nx_lpage_splits is {survey.vm.stat.nx_lpage_splits}, there are {len(listed)}")
