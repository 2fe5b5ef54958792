# SPDX-License-Identifier: GPL-2.0-only
"""Audit of the MMU: the invariants of a VM's structures, checked one against the other.

Called while nobody holds a lock; slow, interpreted, and without side effects. What is checked, by the reference's
numbers: I1 (the host's pages) and I8 (what may be written is logged) of the TDP MMU, I3 (protected guest tables), I4
(unsync bits), I5 (rmaps and parent links, descriptors), I6 (write-track and large-page counts), I7 (lists, validity,
root counts), I9 (writable triples, nothing frozen), I10 (MMIO sptes), I11 (counters), I14 (roles), I15 (no section of
RCU is open), I16 (empty entries), and the accounting of frames. The translations themselves, and what TLBs hold, are
the business of other oracles. Words are decoded here anew, apart from the single-spte predicates of ``spte``. Every check
adds to one :class:`~.survey.Survey`, so that each table is read once: the order of the checks is that of their needs.
Source: reference "Invariants for a model checker / runtime audit".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....errors import KvmBug
from .accounts import check_counters, check_frames, check_roots
from .entries import check_table
from .pages import check_active_list, check_hash, check_role
from .rmaps import check_parents, check_rmaps, mmu_rmaps_stat
from .survey import Audit, Survey
from .tdp import check_nx_pages, check_tdp_mmu
from .tracking import check_tracking, check_unsync, note_shadowed

if TYPE_CHECKING:
    from ...vm import Vm

__all__ = ["MAX_LISTED", "Audit", "audit", "find_violations", "mmu_rmaps_stat"]

#: Problems that the raised error lists; the rest is counted.
MAX_LISTED = 20


def audit(vm: Vm) -> Audit:
    """Check every structure of ``vm``; no lock may be held.

    Raises :class:`KvmBug` that lists the first broken invariants with the words involved. Returns what was seen.
    """
    result = find_violations(vm)
    problems = result.problems
    if problems:
        more = f"\n  ... and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        listed = "".join(f"\n  {problem}" for problem in problems[:MAX_LISTED])
        raise KvmBug(f"audit: {len(problems)} broken invariants{listed}{more}")
    return result


def find_violations(vm: Vm) -> Audit:
    """As :func:`audit`, with the problems returned instead of raised."""
    survey = Survey(vm)
    check_hash(survey)
    check_active_list(survey)
    note_shadowed(survey)
    for sp in survey.sps:
        check_role(survey, sp)
        check_table(survey, sp)
    check_tdp_mmu(survey)
    check_nx_pages(survey)
    survey.result.pages = len(survey.sps) + len(survey.tdp_tables)
    check_rmaps(survey)
    for sp in survey.sps:
        check_parents(survey, sp)
        check_unsync(survey, sp)
    check_tracking(survey)
    check_roots(survey)
    check_counters(survey)
    check_frames(survey)
    return survey.result
