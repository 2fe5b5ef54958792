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
from ....page_types import INVALID_PAGE
from ...bits import (
    KVM_REQ_MMU_FREE_OBSOLETE_ROOTS,
    KVM_REQ_TLB_FLUSH,
    KVM_REQ_TLB_FLUSH_CURRENT,
    KVM_REQ_TLB_FLUSH_GUEST,
)
from ..role import role_level
from .survey import Survey

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

#: Leaves by their first frame: level, index in their table, and the entry itself.
Leaves = dict[int, list[tuple[int, int, int]]]


def check_tlbs(survey: Survey) -> None:
    """Every live translation of every vCPU is in kvm's tables; needs ``survey.leaves``."""
    shadow: Leaves | None = None
    nested: dict[int, Leaves] = {}
    for vcpu in survey.vm.vcpus:
        if vcpu.requests & _FLUSHING or vcpu.mmu.root_hpa == INVALID_PAGE or not isinstance(vcpu.runner, CpuRunner):
            continue
        tlb = vcpu.cpu.tlb
        entries = [entry for entry in tlb.entries() if entry[2] >> _SPACE_SHIFT == tlb.space]
        if not entries:
            continue
        if survey.vm.tdp_enabled:
            root = vcpu.mmu.root_hpa
            if root not in nested:
                nested[root] = {}
                _collect(survey, root, role_level(vcpu.mmu.root_role), nested[root])
            _check(survey, vcpu, entries, nested[root])
        else:
            if shadow is None:
                shadow = _shadow_leaves(survey)
            _check(survey, vcpu, entries, shadow)


# The leaves of all shadow pages: what a context translated that is not current may be in tables that nothing links.
def _shadow_leaves(survey: Survey) -> Leaves:
    found: Leaves = {}
    tables: dict[int, list[int]] = {}
    for sptep, (_, level, _) in survey.leaves.items():
        table = sptep & ~0xFFF
        if table not in tables:
            tables[table] = survey.read_words(table, 512)
        spte = tables[table][(sptep >> 3) & 511]
        found.setdefault((spte & PT_FRAME) >> 12, []).append((level, (sptep >> 3) & 511, spte))
    return found


# The leaves below a table, as the CPU's second stage walks it.
def _collect(survey: Survey, table: int, level: int, found: Leaves) -> None:
    for index, spte in enumerate(survey.read_words(table, 512)):
        if not spte & PT_PRESENT or spte >> survey.vm.host_maxphyaddr & (PT_FRAME >> survey.vm.host_maxphyaddr):
            continue
        if level == 1 or spte & PT_PAGE_SIZE:
            found.setdefault((spte & PT_FRAME) >> 12, []).append((level, index, spte))
        else:
            _collect(survey, spte & PT_FRAME, level - 1, found)


def _check(survey: Survey, vcpu: Vcpu, entries: list[tuple[int, int, int, int]], leaves: Leaves) -> None:
    for level, vpn, owner, translation in entries:
        pfn = (translation & PT_FRAME) >> 12
        gva = vpn << (9 * level + 3)
        sptes = [
            spte
            for size in range(level, 4)
            for at, index, spte in leaves.get(pfn >> 9 * (size - 1) << 9 * (size - 1), ())
            if at == size and (survey.vm.tdp_enabled or index == gva >> (9 * size + 3) & 511)
        ]
        survey.result.tlb_entries += 1
        if not any(_allows(survey, spte, translation) for spte in sptes) and not _is_split(
            survey, leaves, pfn, level, translation
        ):
            what = f"vCPU {vcpu.vcpu_id}, gva {gva:#x} (owner {owner:#x}): the TLB {describe_translation(translation)}"
            have = ", ".join(f"{spte:#x}" for spte in sptes) or "none"
            survey.bad(
                "I2" if sptes else "I1", f"{what}; entries of that frame in kvm's tables: {have}; no flush is due"
            )


# Whether smaller leaves stand for a page of level, each with every right: a huge page was split, which needs no flush.
def _is_split(survey: Survey, leaves: Leaves, pfn: int, level: int, translation: int) -> bool:
    if level == 1 or not survey.vm.tdp_enabled:
        return False
    size = 1 << (9 * (level - 2))
    return all(
        any(at == level - 1 and _allows(survey, spte, translation) for at, _, spte in leaves.get(piece, ()))
        or _is_split(survey, leaves, piece, level - 1, translation)
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
