# SPDX-License-Identifier: GPL-2.0-only
"""Audit of which shadow pages exist: hash, active list (I7), and the role of each (I14)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....addr import Pfn
from ....page_types import U64
from ..bits import ROLE_HAS_4_BYTE_GPTE, ROLE_QUADRANT_MASK
from .survey import Survey, as_id_of, has_gptes, is_invalid, level_of, name_of

if TYPE_CHECKING:
    from ..page import ShadowPage

_GOLDEN_RATIO_64 = 0x61C8_8646_80B5_83EB
_UNNAMED_ROLE_BITS = 0x00F8_0000


def check_hash(survey: Survey) -> None:
    """Every page is hashed once, where its gfn belongs; notes all pages in ``survey``."""
    seen: dict[tuple[int, int], ShadowPage] = {}
    for bucket, head in enumerate(survey.vm.hash_heads()):
        previous: ShadowPage | None = None
        sp = head
        while sp is not None:
            if sp.spt in survey.spts:
                survey.bad("I7", f"{name_of(sp)} is hashed twice")
                break
            survey.spts[sp.spt] = sp
            survey.sps.append(sp)
            _check_hashed(survey, sp, bucket, previous)
            other = seen.setdefault((sp.gfn, sp.role), sp)
            is_live = not is_invalid(sp) and sp.mmu_valid_gen == survey.vm.mmu_valid_gen
            if other is not sp and is_live and other.mmu_valid_gen == sp.mmu_valid_gen:
                survey.bad("I7", f"{name_of(sp)} has the gfn and role of the valid {name_of(other)}")
            previous, sp = sp, sp.hash_next


def _check_hashed(survey: Survey, sp: ShadowPage, bucket: int, previous: ShadowPage | None) -> None:
    wanted = ((sp.gfn * _GOLDEN_RATIO_64) & U64) >> 52
    if wanted != bucket:
        survey.bad("I7", f"{name_of(sp)} is in hash bucket {bucket}, its gfn belongs to {wanted}")
    if sp.hash_prev is not previous:
        survey.bad("I7", f"hash_prev of {name_of(sp)} does not lead to its predecessor in bucket {bucket}")
    if survey.vm.frames.owner(Pfn(sp.spt >> 12)) is not sp:
        survey.bad("I7", f"the frame of {name_of(sp)} does not know it")


def check_active_list(survey: Survey) -> None:
    """The active list leads through every valid page, today's generation first."""
    head = survey.vm.active_mmu_pages
    active: set[int] = set()
    previous, sp = head, head.link_next
    is_old = False
    while sp is not None and sp is not head:
        if sp.spt in active:
            survey.bad("I7", f"the active list runs in a circle at {name_of(sp)}")
            break
        active.add(sp.spt)
        _check_active(survey, sp, previous)
        is_current = sp.mmu_valid_gen == survey.vm.mmu_valid_gen
        if is_old and is_current:
            survey.bad("I7", f"{name_of(sp)} of today's generation is behind an obsolete page on the active list")
        is_old = not is_current
        previous, sp = sp, sp.link_next
    if sp is None:
        survey.bad("I7", f"the active list ends at {name_of(previous)} without its sentinel")
    for page in survey.sps:
        if page.spt not in active and not is_invalid(page):
            survey.bad("I7", f"{name_of(page)} is valid and not on the active list")


def _check_active(survey: Survey, sp: ShadowPage, previous: ShadowPage) -> None:
    if sp.link_prev is not previous:
        survey.bad("I7", f"link_prev of {name_of(sp)} does not lead to its predecessor on the active list")
    if survey.spts.get(sp.spt) is not sp:
        survey.bad("I7", f"{name_of(sp)} is on the active list and not in the hash")
    if is_invalid(sp):
        survey.bad("I7", f"{name_of(sp)} is invalid and on the active list")


def check_role(survey: Survey, sp: ShadowPage) -> None:
    """The role of ``sp`` is one that a table can have, and agrees with what the page owns."""
    level = level_of(sp)
    quadrant = (sp.role & ROLE_QUADRANT_MASK) >> 5
    if not 1 <= level <= 5:
        survey.bad("I14", f"{name_of(sp)} has level {level}, which no table has")
    if sp.role & _UNNAMED_ROLE_BITS or as_id_of(sp) > 1:
        survey.bad("I14", f"role {sp.role:#x} of {name_of(sp)} has bits without meaning")
    if quadrant and not sp.role & ROLE_HAS_4_BYTE_GPTE:
        survey.bad("I14", f"{name_of(sp)} has quadrant {quadrant} and 8-byte gptes")
    if quadrant > 1 and level == 1:
        survey.bad("I14", f"{name_of(sp)} has quadrant {quadrant}; a level-1 table has only 0 and 1")
    if sp.role & ROLE_HAS_4_BYTE_GPTE and level > 2:
        survey.bad("I14", f"{name_of(sp)} has 4-byte gptes at level {level}; those guests have two levels")
    has_translations = sp.shadowed_translation != 0
    if has_translations != (has_gptes(sp) and level <= 3):
        survey.bad("I14", f"{name_of(sp)} has {'' if has_translations else 'no '}translations, against its role")
    if is_invalid(sp) and sp.root_count <= 0:
        survey.bad("I7", f"{name_of(sp)} is invalid, has no user and still exists")
