# SPDX-License-Identifier: GPL-2.0-only
"""Audit of a shadow page's entries: leaves (I3, I5, I9), links (I7, I14), MMIO (I10), and empty ones (I16)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ....page_types import ENTRIES, PAGE_SIZE
from ..bits import (
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
from ..spte import is_legal_triple, is_mmio, is_mmu_writable, is_shadow_present, is_writable, mmio_generation, mmio_gfn
from .survey import Survey, as_id_of, is_invalid, level_of, name_of

if TYPE_CHECKING:
    from ..page import ShadowPage

_PS = 1 << 7
#: Fields of a role that a child has from its parent unchanged.
_INHERITED = ~(ROLE_LEVEL_MASK | ROLE_QUADRANT_MASK | ROLE_DIRECT | ROLE_ACCESS_MASK | ROLE_INVALID | ROLE_PASSTHROUGH)
_ROLE_ACC_WRITE = ACC_WRITE << ROLE_ACCESS_SHIFT


def check_table(survey: Survey, sp: ShadowPage) -> None:
    """Every entry of ``sp`` is empty, MMIO, or maps what it may; notes leaves and links in ``survey``."""
    table = survey.tables[sp.spt] = survey.vm.memory.read(sp.spt, PAGE_SIZE)
    words = memoryview(table).cast("Q").tolist()
    check_entries(survey, sp, [pair for pair in enumerate(words) if pair[1] != SHADOW_NONPRESENT_VALUE])


def check_entries(survey: Survey, sp: ShadowPage, entries: Iterable[tuple[int, int]]) -> None:
    """The same of some entries, (index, spte), none of them empty."""
    level, as_id, fmt = level_of(sp), as_id_of(sp), survey.vm.fmt
    shift = 9 * (level - 1)
    gfns = survey.read_words(sp.shadowed_translation, ENTRIES) if sp.shadowed_translation else None
    for index, spte in entries:
        sptep = sp.spt + index * 8
        if not is_shadow_present(spte):
            _check_absent(survey, sp, index, sptep, spte)
            continue
        if is_invalid(sp):
            survey.bad("I7", f"invalid page maps: {survey.spte_text(sptep, sp)}")
        if level > 1 and not spte & _PS:
            _check_nonleaf(survey, sp, index, sptep, spte)
            continue
        gfn = gfns[index] >> 12 if gfns is not None else sp.gfn + (index << shift)
        survey.leaves[sptep] = (gfn, level, as_id)
        if level > 1:
            _check_size(survey, sp, sptep, spte)
        if not is_legal_triple(fmt, spte):
            survey.bad("I9", f"illegal (host-writable, MMU-writable, W): {survey.spte_text(sptep, sp)}")
        if is_writable(spte) or is_mmu_writable(fmt, spte):
            check_protection(survey, sp, sptep, spte)


def _check_absent(survey: Survey, sp: ShadowPage, index: int, sptep: int, spte: int) -> None:
    if is_mmio(survey.vm.fmt, spte):
        check_mmio(survey, sp, index, sptep, spte)
    elif spte == FROZEN_SPTE:
        survey.bad("I9", f"frozen {survey.spte_text(sptep, sp)}")
    else:
        wanted = f"neither present nor MMIO, and not {SHADOW_NONPRESENT_VALUE:#x}"
        survey.bad("I16", f"{survey.spte_text(sptep, sp)} is {wanted}")


def _check_size(survey: Survey, sp: ShadowPage, sptep: int, spte: int) -> None:
    gfn, level, _ = survey.leaves[sptep]
    size = 1 << (9 * (level - 1))
    if level > 3:
        survey.bad("I5", f"leaf at level {level}: {survey.spte_text(sptep, sp)}")
    if (spte & SPTE_BASE_ADDR_MASK) >> 12 & (size - 1) or gfn & (size - 1):
        survey.bad("I5", f"gfn {gfn:#x} or pfn not aligned to {size} frames: {survey.spte_text(sptep, sp)}")


def check_protection(survey: Survey, sp: ShadowPage, sptep: int, spte: int) -> None:
    """The leaf ``spte`` lets nobody write a protected guest table."""
    gfn, level, _ = survey.leaves[sptep]
    if is_writable(spte) or is_mmu_writable(survey.vm.fmt, spte):
        size = 1 << (9 * (level - 1))
        at = bisect_left(survey.protected, gfn)
        if at < len(survey.protected) and survey.protected[at] < gfn + size:
            table = survey.protected[at]
            survey.bad("I3", f"the guest table at gfn {table:#x} can be written: {survey.spte_text(sptep, sp)}")


def _check_nonleaf(survey: Survey, sp: ShadowPage, index: int, sptep: int, spte: int) -> None:
    child = survey.spts.get(spte & SPTE_BASE_ADDR_MASK)
    if child is None:
        survey.bad("I7", f"links a table that is no shadow page: {survey.spte_text(sptep, sp)}")
        return
    survey.parents.setdefault(child.spt, []).append(sptep)
    survey.links[sptep] = child.spt
    if is_invalid(child):
        survey.bad("I7", f"links the invalid {name_of(child)}: {survey.spte_text(sptep, sp)}")
    _check_child_role(survey, sp, index, child)


def _check_child_role(survey: Survey, sp: ShadowPage, index: int, child: ShadowPage) -> None:
    pair = f"{name_of(child)} under entry {index} of {name_of(sp)}"
    if level_of(child) != level_of(sp) - 1:
        survey.bad("I14", f"level: {pair}")
    if (child.role ^ sp.role) & _INHERITED:
        survey.bad("I14", f"role bits {(child.role ^ sp.role) & _INHERITED & 0xFFFFFFFF:#x} differ: {pair}")
    more = child.role & ROLE_ACCESS_MASK & ~sp.role
    if child.role & ROLE_DIRECT and not sp.role & (ROLE_DIRECT | ROLE_CR0_WP):
        # With CR0.WP clear, a supervisor's write through a read-only huge page makes it kernel-only, writable.
        more &= ~_ROLE_ACC_WRITE
    if more:
        survey.bad("I14", f"more access than the table above allows: {pair}")
    if sp.role & ROLE_DIRECT and not child.role & ROLE_DIRECT:
        survey.bad("I14", f"a direct table links an indirect one: {pair}")
    if child.role & ROLE_HAS_4_BYTE_GPTE and (child.role & ROLE_QUADRANT_MASK) >> 5 != index & 1:
        survey.bad("I14", f"quadrant is not the lowest bit of the index: {pair}")
    if sp.role & ROLE_DIRECT and child.gfn != survey.gfn_of(sp, index):
        survey.bad("I14", f"the entry maps gfn {survey.gfn_of(sp, index):#x}: {pair}")


def check_mmio(survey: Survey, sp: ShadowPage, index: int, sptep: int, spte: int) -> None:
    """The MMIO spte at ``index`` of ``sp``, of either MMU, names a gfn without memory, its own in a direct table."""
    if not sp.is_tdp:
        survey.mmio.add(sptep)
    vm = survey.vm
    gfn = mmio_gfn(vm.fmt, spte)
    slots = vm.memslots[as_id_of(sp)]
    is_current = mmio_generation(spte) == slots.generation & MMIO_SPTE_GEN_MASK
    slot = slots.search(gfn)
    if is_current and slot is not None and slot.is_visible():
        survey.bad("I10", f"gfn {gfn:#x} has memory ({slot!r}) in the spte's generation: {survey.spte_text(sptep, sp)}")
    if level_of(sp) != 1:
        survey.bad("I10", f"MMIO above level 1: {survey.spte_text(sptep, sp)}")
    if sp.role & ROLE_DIRECT and gfn != survey.gfn_of(sp, index):
        wanted = survey.gfn_of(sp, index)
        survey.bad("I10", f"MMIO gfn {gfn:#x} in the entry of {wanted:#x}: {survey.spte_text(sptep, sp)}")
