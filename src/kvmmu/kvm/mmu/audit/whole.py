# SPDX-License-Identifier: GPL-2.0-only
"""The audit of everything: all checks, in the order of what they need of one another."""

from __future__ import annotations

from .accounts import check_counters, check_frames, check_roots
from .entries import check_table
from .pages import check_active_list, check_hash, check_role
from .rmaps import check_parents, check_rmaps
from .survey import Survey
from .tdp import check_nx_pages, check_tdp_mmu
from .tlbs import check_tlbs
from .tracking import check_tracking, check_unsync, note_shadowed


def check_all(survey: Survey) -> None:
    """Read all structures of the VM into a new ``survey``, and check them."""
    check_headers(survey)
    for sp in survey.sps:
        check_table(survey, sp)
    check_rmaps(survey)
    for sp in survey.sps:
        check_parents(survey, sp)
        check_unsync(survey, sp)
    check_totals(survey)


def check_headers(survey: Survey) -> None:
    """Which pages exist, and what each says of itself."""
    check_hash(survey)
    check_active_list(survey)
    note_shadowed(survey)
    for sp in survey.sps:
        check_role(survey, sp)
    check_tdp_mmu(survey)
    check_nx_pages(survey)


def check_totals(survey: Survey) -> None:
    """Whatever counts something, once everything is read."""
    check_tracking(survey)
    check_roots(survey)
    check_counters(survey)
    check_frames(survey)
    check_tlbs(survey)
    survey.count()
