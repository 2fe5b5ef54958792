# SPDX-License-Identifier: GPL-2.0-only
"""Audit of the MMU: the invariants of a VM's structures, checked one against the other.

Called while nobody holds a lock; slow, interpreted, and without side effects. What is checked, by the reference's
numbers: I1 (the host's pages) and I8 (what may be written is logged) of the TDP MMU, I3 (protected guest tables), I4
(unsync bits), I5 (rmaps and parent links, descriptors), I6 (write-track and large-page counts), I7 (lists, validity,
root counts), I9 (writable triples, nothing frozen), I10 (MMIO sptes), I11 (counters), I14 (roles), I15 (no section of
RCU is open), I16 (empty entries), the accounting of frames, and that TLBs hold nothing that the tables have not (of I1
and I2). Words are decoded here anew, apart from the single-spte predicates of ``spte``. Every check
adds to one :class:`~.survey.Survey`, so that each table is read once: the order of the checks is that of their needs.
An :class:`Auditor` audits a VM again and again, and reads only what is not as it was.
Source: reference "Invariants for a model checker / runtime audit".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .changed import Auditor
from .rmaps import mmu_rmaps_stat
from .survey import MAX_LISTED, Audit, Survey, raise_problems
from .whole import check_all

if TYPE_CHECKING:
    from ...vm import Vm

__all__ = ["MAX_LISTED", "Audit", "Auditor", "audit", "find_violations", "mmu_rmaps_stat"]


def audit(vm: Vm) -> Audit:
    """Check every structure of ``vm``; no lock may be held.

    Raises :class:`KvmBug` that lists the first broken invariants with the words involved. Returns what was seen.
    """
    return raise_problems(find_violations(vm))


def find_violations(vm: Vm) -> Audit:
    """As :func:`audit`, with the problems returned instead of raised."""
    survey = Survey(vm)
    check_all(survey)
    return survey.result
