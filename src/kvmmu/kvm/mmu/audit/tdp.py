# SPDX-License-Identifier: GPL-2.0-only
"""Audit of the TDP MMU: roots and their users (I7), tables and their roles (I14), entries (I1, I8, I9, I16), RCU (I15).

Tables are found from the roots, as there is no list of them. What the NX mitigation counts is checked for the pages of
both MMUs (I11).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ....addr import Gfn, Pfn
from ....host.bits import HPTE_PFN_MASK, HPTE_PRESENT
from ....page_types import ENTRIES, INVALID_PAGE, PAGE_SHIFT, PAGE_SIZE
from ..bits import FROZEN_SPTE, ROLE_DIRECT, ROLE_LEVEL_MASK, SHADOW_NONPRESENT_VALUE, SPTE_BASE_ADDR_MASK
from ..page import ShadowPage
from ..spte import is_executable, is_legal_triple, is_mmio, is_shadow_present, is_writable
from .entries import check_mmio
from .known import TdpTable, changed_entries, differing_words
from .survey import Survey, as_id_of, is_invalid, level_of, name_of

if TYPE_CHECKING:
    from ...memslots import Memslot

_PS = 1 << 7


def check_tdp_mmu(survey: Survey) -> None:
    """Every root, and all that lies below it; notes tables and leaves in ``survey``.

    Roots, headers and links are checked each time; of entries those that the survey does not know, or not so: that
    changed themselves, whose host page did, or whose bit in the dirty log is clear and was not.
    """
    vm = survey.vm
    if vm.rcu.readers or vm.rcu.pending:
        survey.bad("I15", f"nobody runs, but {vm.rcu!r}")
    known = survey.known_tdp.tables
    survey.known_tdp.tables = {}
    walk = _Walk(survey, known, _take_logs(survey))
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
        walk.check_table(root, root)
        previous, root = root, root.link_next
    linked = len(survey.tdp_tables) - survey.nr_tdp_roots
    if vm.tdp_mmu_pages != linked:
        survey.bad("I11", f"tdp_mmu_pages is {vm.tdp_mmu_pages}, {linked} tables are linked")


# Note the dirty logs; return the gfns, by address space, whose bit is clear and was set.
def _take_logs(survey: Survey) -> dict[int, set[int]]:
    known = survey.known_tdp.logs
    logs = survey.known_tdp.logs = {}
    cleared: dict[int, set[int]] = {}
    for as_id, slots in enumerate(survey.vm.memslots):
        for slot in slots.slots:
            if slot.dirty_array is None:
                continue
            now = slot.dirty_array[: slot.nr_dirty_words()].tobytes()
            logs[as_id, slot.id] = now
            before = known.get((as_id, slot.id), now)
            words, old = memoryview(now).cast("Q"), memoryview(before).cast("Q")
            for at in differing_words(before, now):
                gone = old[at] & ~words[at]
                first = slot.base_gfn + at * 64
                cleared.setdefault(as_id, set()).update(first + i for i in range(64) if gone >> i & 1)
    return cleared


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


class _Walk:
    """One walk of ``survey`` through the tables; ``known`` are those of the walk before.

    ``cleared``: gfns by address space whose bit in a dirty log was set then, and is not now.
    """

    def __init__(self, survey: Survey, known: dict[int, TdpTable], cleared: dict[int, set[int]]) -> None:
        self.survey = survey
        self.known = known
        self.cleared = cleared

    def check_table(self, root: ShadowPage, sp: ShadowPage) -> None:
        """``sp``, which lies below ``root``, and all that it links."""
        survey, level = self.survey, level_of(sp)
        refs = survey.vm.frames.nr_refs(Pfn(sp.spt >> 12))
        if refs != 1:
            survey.bad("frames", f"the table of {name_of(sp)} has {refs} references")
        identity = (sp.role, sp.gfn, root.spt, is_invalid(root))
        table = self.known.get(sp.spt)
        if table is None or table.sp is not sp or table.identity != identity:
            table = TdpTable(sp, identity)
        survey.known_tdp.tables[sp.spt] = table
        self._check_entries(root, table)
        for index in sorted(table.links):
            self._check_link(root, sp, index, table.links[index])
        survey.result.nonleaves += len(table.links)
        survey.result.leaves += len(table.leaves)
        survey.result.mmio += len(table.mmio)
        survey.tdp_leaves[level] += len(table.leaves)

    # Entries that are not as they were, and leaves whose host page or dirty bit is not.
    def _check_entries(self, root: ShadowPage, table: TdpTable) -> None:
        survey, sp = self.survey, table.sp
        now = survey.vm.memory.read(sp.spt, PAGE_SIZE)
        if now == table.words:
            now = table.words
        survey.tables[sp.spt] = now
        words = memoryview(now).cast("Q")
        leaves = set()
        if now is not table.words:
            differing = survey.differing(sp.spt, table.words, now)
            for index in changed_entries(survey.vm.fmt, table.words, now, differing):
                table.leaves.discard(index)
                table.mmio.discard(index)
                table.links.pop(index, None)
                if words[index] != SHADOW_NONPRESENT_VALUE and _sort_entry(survey, root, table, index, words[index]):
                    leaves.add(index)
            table.words = now
        hptes = _read_hptes(survey, table)
        if hptes and hptes != table.hptes:
            leaves.update(table.leaves.intersection(differing_words(table.hptes or bytes(PAGE_SIZE), hptes)))
        table.hptes = hptes
        if level_of(sp) == 1:
            cleared = self.cleared.get(as_id_of(sp), ())
            leaves.update(gfn - sp.gfn for gfn in cleared if gfn - sp.gfn in table.leaves)
        for index in sorted(leaves):
            for invariant, wrong in _wrong_with_leaf(survey, sp, Gfn(survey.gfn_of(sp, index)), words[index]):
                survey.bad(invariant, f"{wrong}: {survey.spte_text(sp.spt + index * 8, sp)}")

    def _check_link(self, root: ShadowPage, sp: ShadowPage, index: int, place: int) -> None:
        survey, sptep = self.survey, sp.spt + index * 8
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
        self.check_table(root, child)


# Note what the entry is, which is not empty, and check all that it is by itself. Returns whether it is a leaf.
def _sort_entry(survey: Survey, root: ShadowPage, table: TdpTable, index: int, spte: int) -> bool:
    sp = table.sp
    sptep = sp.spt + index * 8
    if spte == FROZEN_SPTE:
        survey.bad("I9", f"frozen {survey.spte_text(sptep, sp)}")
    elif not is_shadow_present(spte):
        if is_mmio(survey.vm.fmt, spte):
            table.mmio.add(index)
            check_mmio(survey, sp, index, sptep, spte)
        else:
            survey.bad("I16", f"neither present nor MMIO nor empty: {survey.spte_text(sptep, sp)}")
    elif is_invalid(root):
        survey.bad("I7", f"invalid root maps: {survey.spte_text(sptep, sp)}")
    elif level_of(sp) == 1 or spte & _PS:
        table.leaves.add(index)
        return True
    else:
        table.links[index] = spte & SPTE_BASE_ADDR_MASK
    return False


# The host's word of the first page of each leaf, at the leaf's index; nothing when there is no leaf.
def _read_hptes(survey: Survey, table: TdpTable) -> bytes:
    vm, sp = survey.vm, table.sp
    if not table.leaves:
        return b""
    size = 1 << (9 * (level_of(sp) - 1))
    slots = vm.memslots[as_id_of(sp)]
    slot = slots.search(sp.gfn)
    if slot is not None and sp.gfn + ENTRIES * size <= slot.end_gfn:
        hva = slot.gfn_to_hva(sp.gfn)
        vma = vm.mm.find_vma(hva)
        if vma is not None and hva + (ENTRIES * size << PAGE_SHIFT) <= vma.end:
            first = (hva - vma.area_start) >> PAGE_SHIFT
            words: bytes = memoryview(vma.area)[first : first + ENTRIES * size : size].tobytes()
            return words
    # The table covers a border of slots or of ranges.
    found = array("Q", bytes(PAGE_SIZE))
    for index in table.leaves:
        gfn = Gfn(sp.gfn + index * size)
        slot = slots.search(gfn)
        if slot is not None:
            found[index] = vm.mm.hpte(slot.gfn_to_hva(gfn))
    return found.tobytes()


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
