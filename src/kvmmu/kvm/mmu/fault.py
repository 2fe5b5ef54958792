# SPDX-License-Identifier: GPL-2.0-only
"""PageFault: what is known about one fault, filled stage by stage; and the verdicts that end it.

The stages themselves are in ``pagefault``, which reads top to bottom. Reference: "Data structures", kvm_page_fault;
"Page-fault pipeline", result codes.
"""

from __future__ import annotations

from ...addr import Gfn, Hva, Pfn
from ...hw.bits import PFERR_FETCH, PFERR_PRESENT, PFERR_RSVD, PFERR_USER, PFERR_WRITE
from ..memslots import KVM_HVA_ERR_BAD, KVM_PFN_ERR_FAULT, Memslot

#: Go on with the next stage.
RET_PF_CONTINUE = 0
#: Let the guest fault again: something moved meanwhile, or the guest was given an exception.
RET_PF_RETRY = 1
#: Emulate the instruction: MMIO.
RET_PF_EMULATE = 2
#: The gfn holds a guest table that must not be written behind kvm's back: emulate, or unprotect and retry.
RET_PF_WRITE_PROTECTED = 3
#: The fast paths cannot tell: take the slow one.
RET_PF_INVALID = 4
#: An spte was installed or changed.
RET_PF_FIXED = 5
#: The spte allowed the access already.
RET_PF_SPURIOUS = 6

#: Verdict -> name.
VERDICTS = ("CONTINUE", "RETRY", "EMULATE", "WRITE_PROTECTED", "INVALID", "FIXED", "SPURIOUS")

KVM_MAX_HUGEPAGE_LEVEL = 3

# What a fault was about: a closed list, one per fault (docs/fault-path.md tells them apart).
CAUSE_NONE = 0
CAUSE_GUEST = 1
CAUSE_TABLE = 2
CAUSE_MAP = 3
CAUSE_REMAP = 4
CAUSE_PERMISSION = 5
CAUSE_UNSYNC = 6
CAUSE_WRITE_PROTECTED = 7
CAUSE_MMIO_INSTALL = 8
CAUSE_MMIO_CACHED = 9
CAUSE_MMIO_UNCACHED = 10
CAUSE_FAST = 11
CAUSE_SPURIOUS = 12
CAUSE_RETRY = 13
CAUSE_ERROR = 14

#: Cause -> the word that reports use.
CAUSES = (
    "none",
    "guest",
    "table",
    "map",
    "remap",
    "permission",
    "unsync",
    "write-protected",
    "mmio-install",
    "mmio-cached",
    "mmio-uncached",
    "fast",
    "spurious",
    "retry",
    "error",
)

_MAX_LEVEL = KVM_MAX_HUGEPAGE_LEVEL
_PFERR_PRESENT = PFERR_PRESENT
_PFERR_WRITE = PFERR_WRITE
_PFERR_USER = PFERR_USER
_PFERR_RSVD = PFERR_RSVD
_PFERR_FETCH = PFERR_FETCH
_KVM_PFN_ERR_FAULT = KVM_PFN_ERR_FAULT
_KVM_HVA_ERR_BAD = KVM_HVA_ERR_BAD
_RETRY = RET_PF_RETRY
_EMULATE = RET_PF_EMULATE
_WRITE_PROTECTED = RET_PF_WRITE_PROTECTED
_SPURIOUS = RET_PF_SPURIOUS
_CAUSE_NONE = CAUSE_NONE
_CAUSE_TABLE = CAUSE_TABLE
_CAUSE_MAP = CAUSE_MAP
_CAUSE_WRITE_PROTECTED = CAUSE_WRITE_PROTECTED
_CAUSE_MMIO_INSTALL = CAUSE_MMIO_INSTALL
_CAUSE_MMIO_UNCACHED = CAUSE_MMIO_UNCACHED
_CAUSE_FAST = CAUSE_FAST
_CAUSE_SPURIOUS = CAUSE_SPURIOUS
_CAUSE_RETRY = CAUSE_RETRY
_CAUSE_ERROR = CAUSE_ERROR


class PageFault:
    """One fault at ``addr`` with the exit's ``error_code`` (``PFERR_*``)."""

    __slots__ = (
        "addr",
        "cause",
        "error_code",
        "exec",
        "gfn",
        "goal_level",
        "hva",
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

    def __init__(self, addr: int, error_code: int, prefetch: bool = False) -> None:
        self.begin(addr, error_code, prefetch)

    def begin(self, addr: int, error_code: int, prefetch: bool) -> int:
        """Do what ``__init__`` does, without boxed arguments (compiled rooms make objects with it)."""
        self.addr = addr
        self.error_code = error_code
        self.prefetch = prefetch
        self.exec = error_code & _PFERR_FETCH != 0
        self.write = error_code & _PFERR_WRITE != 0
        self.present = error_code & _PFERR_PRESENT != 0
        self.rsvd = error_code & _PFERR_RSVD != 0
        self.user = error_code & _PFERR_USER != 0
        self.max_level = _MAX_LEVEL
        self.req_level = 1
        self.goal_level = 1
        self.gfn: Gfn = 0  # type: ignore[assignment]
        self.slot: Memslot | None = None
        self.mmu_seq = 0
        self.hva: Hva = _KVM_HVA_ERR_BAD  # type: ignore[assignment]
        self.pfn: Pfn = _KVM_PFN_ERR_FAULT  # type: ignore[assignment]
        self.map_writable = False
        self.write_fault_to_shadow_pgtable = False
        self.validate_direct = True
        self.nr_linked = 0
        self.cause = _CAUSE_NONE
        return 0

    def __repr__(self) -> str:
        return (
            f"<PageFault addr {self.addr:#x} error_code {self.error_code:#x} gfn {self.gfn:#x} slot {self.slot!r}"
            f" pfn {self.pfn:#x} levels max {self.max_level} req {self.req_level} goal {self.goal_level}>"
        )


def make_fault(addr: int, error_code: int) -> PageFault:
    """The record of a fault at ``addr`` that a guest waits for; :class:`PageFault` for callers in compiled rooms."""
    fault = PageFault.__new__(PageFault)
    fault.begin(addr, error_code, False)
    return fault


def cause_of(fault: PageFault, verdict: int) -> int:
    """The one cause (CAUSE_*) of ``fault``, which ended with ``verdict``.

    A stage that knows better has set ``fault.cause``: the guest's own ``#PF``, what the leaf found in its place.
    """
    if verdict < 0:
        return _CAUSE_ERROR
    if verdict == _WRITE_PROTECTED:
        return _CAUSE_WRITE_PROTECTED
    if verdict == _EMULATE:
        return _CAUSE_MMIO_UNCACHED if fault.cause == _CAUSE_NONE else _CAUSE_MMIO_INSTALL
    if verdict == _SPURIOUS:
        return _CAUSE_SPURIOUS
    if fault.cause == _CAUSE_NONE:
        return _CAUSE_RETRY if verdict == _RETRY else _CAUSE_FAST
    if fault.cause == _CAUSE_MAP and fault.nr_linked:
        return _CAUSE_TABLE
    return fault.cause
