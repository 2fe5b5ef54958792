# SPDX-License-Identifier: GPL-2.0-only
"""PageFault: what is known about one fault, filled stage by stage; and the verdicts that end it.

The stages themselves are in ``pagefault``, which reads top to bottom. Reference: "Data structures", kvm_page_fault;
"Page-fault pipeline", result codes.
"""

from __future__ import annotations

from ...addr import Address, Gfn, Hva, Pfn, pages_per_level
from ...hw.bits import PFERR_FETCH, PFERR_PRESENT, PFERR_RSVD, PFERR_USER, PFERR_WRITE
from ...page_types import NOTHING, PAGE_SHIFT
from ..bits import KVM_HVA_ERR_BAD, KVM_PFN_ERR_FAULT
from ..memslots import Memslot
from .bits import KVM_MAX_HUGEPAGE_LEVEL
from .verdict import (
    CAUSE_ERROR,
    CAUSE_FAST,
    CAUSE_MAP,
    CAUSE_MMIO_INSTALL,
    CAUSE_MMIO_UNCACHED,
    CAUSE_NONE,
    CAUSE_RETRY,
    CAUSE_SPURIOUS,
    CAUSE_TABLE,
    CAUSE_WRITE_PROTECTED,
    LIMIT_HOST,
    LIMIT_MAPPING,
    LIMIT_MISALIGNED,
    LIMIT_NONE,
    LIMIT_SLOT_END,
    LIMIT_SYNCED_TABLE,
    LIMIT_WRITE_TRACKED,
    LIMITS,
    RET_PF_EMULATE,
    RET_PF_RETRY,
    RET_PF_SPURIOUS,
    RET_PF_WRITE_PROTECTED,
)


class PageFault:
    """One fault at ``addr`` with the exit's ``error_code`` (``PFERR_*``)."""

    __slots__ = (
        "addr",
        "cause",
        "error_code",
        "exec",
        "gfn",
        "goal_level",
        "huge_page_disallowed",
        "hva",
        "limit",
        "map_writable",
        "max_level",
        "mmu_seq",
        "nr_linked",
        "pfn",
        "prefetch",
        "present",
        "req_level",
        "rsvd",
        "slot",
        "user",
        "validate_direct",
        "write",
        "write_fault_to_shadow_pgtable",
    )

    def __init__(self, addr: Address, error_code: int, prefetch: bool = False) -> None:
        self.begin(addr, error_code, prefetch)

    def begin(self, addr: Address, error_code: int, prefetch: bool) -> int:
        """Do what ``__init__`` does, without boxed arguments (compiled rooms make objects with it)."""
        self.addr = addr
        self.error_code = error_code
        self.prefetch = prefetch
        self.exec = error_code & PFERR_FETCH != 0
        self.write = error_code & PFERR_WRITE != 0
        self.present = error_code & PFERR_PRESENT != 0
        self.rsvd = error_code & PFERR_RSVD != 0
        self.user = error_code & PFERR_USER != 0
        self.max_level = KVM_MAX_HUGEPAGE_LEVEL
        self.req_level = 1
        self.goal_level = 1
        self.huge_page_disallowed = False
        self.gfn: Gfn = NOTHING
        self.slot: Memslot | None = None
        self.mmu_seq = 0
        self.hva: Hva = KVM_HVA_ERR_BAD
        self.pfn: Pfn = KVM_PFN_ERR_FAULT
        self.map_writable = False
        self.write_fault_to_shadow_pgtable = False
        self.validate_direct = True
        self.nr_linked = 0
        self.cause = CAUSE_NONE
        self.limit = LIMIT_NONE
        return 0

    def __repr__(self) -> str:
        return (
            f"<PageFault addr {self.addr:#x} error_code {self.error_code:#x} gfn {self.gfn:#x} slot {self.slot!r}"
            f" pfn {self.pfn:#x} levels max {self.max_level} req {self.req_level} goal {self.goal_level}"
            f" limit {LIMITS[limit_of(self)]}>"
        )


def make_fault(addr: Address, error_code: int) -> PageFault:
    """The record of a fault at ``addr`` that a guest waits for; :class:`PageFault` for callers in compiled rooms."""
    fault = PageFault.__new__(PageFault)
    fault.begin(addr, error_code, False)
    return fault


def cause_of(fault: PageFault, verdict: int) -> int:
    """The one cause (CAUSE_*) of ``fault``, which ended with ``verdict``.

    A stage that knows better has set ``fault.cause``: the guest's own ``#PF``, what the leaf found in its place.
    """
    if verdict < 0:
        return CAUSE_ERROR
    if verdict == RET_PF_WRITE_PROTECTED:
        return CAUSE_WRITE_PROTECTED
    if verdict == RET_PF_EMULATE:
        return CAUSE_MMIO_UNCACHED if fault.cause == CAUSE_NONE else CAUSE_MMIO_INSTALL
    if verdict == RET_PF_SPURIOUS:
        return CAUSE_SPURIOUS
    if fault.cause == CAUSE_NONE:
        return CAUSE_RETRY if verdict == RET_PF_RETRY else CAUSE_FAST
    if fault.cause == CAUSE_MAP and fault.nr_linked:
        return CAUSE_TABLE
    return fault.cause


def limit_of(fault: PageFault) -> int:
    """Why ``fault`` maps no larger page (LIMIT_*), which is looked into now: what has changed since may mislead.

    Of several reasons the first in the order of LIMIT_*; of the two kinds of guest table in the way, write-tracked.
    """
    slot = fault.slot
    if fault.limit != LIMIT_MAPPING or slot is None:
        return fault.limit
    level = fault.req_level + 1
    if slot.nr_disallowed(fault.gfn, level) == 0:
        return LIMIT_HOST
    size: int = pages_per_level(level)
    first: Gfn = fault.gfn & ~(size - 1)
    if first < slot.base_gfn or first + size > slot.end_gfn:
        return LIMIT_SLOT_END
    if (slot.base_gfn ^ (slot.userspace_addr >> PAGE_SHIFT)) & (size - 1):
        return LIMIT_MISALIGNED
    return LIMIT_WRITE_TRACKED if slot.is_any_tracked(first, size) else LIMIT_SYNCED_TABLE
