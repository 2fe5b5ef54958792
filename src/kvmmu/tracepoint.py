# SPDX-License-Identifier: GPL-2.0-only
"""What can be observed: the tracepoints of Linux 6.12 by name, with their fields in the kernel's order.

An event is a tuple ``(name, field, field ...)``, fields as declared in :data:`EVENTS`; sinks get it with the vCPU that
worked, and faults in the end with their cause (:class:`VcpuEvent`). Nothing is built while nobody listens: each place
that can trace tests :attr:`Trace.on` first. Text, ring, Parquet are made outside, in ``trace``.
Fields and names: reference "Tracepoints, system kvmmmu" and "system kvm".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from .errors import UserError

Event = tuple[Any, ...]

_SP = ("mmu_valid_gen", "gfn", "role", "root_count", "unsync")

#: Event name -> (system, fields).
EVENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "kvm_mmu_pagetable_walk": ("kvmmmu", ("addr", "pferr")),
    "kvm_mmu_paging_element": ("kvmmmu", ("pte", "level")),
    "kvm_mmu_set_accessed_bit": ("kvmmmu", ("gpa",)),
    "kvm_mmu_set_dirty_bit": ("kvmmmu", ("gpa",)),
    "kvm_mmu_walker_error": ("kvmmmu", ("pferr",)),
    "kvm_mmu_get_page": ("kvmmmu", (*_SP, "created")),
    "kvm_mmu_sync_page": ("kvmmmu", _SP),
    "kvm_mmu_unsync_page": ("kvmmmu", _SP),
    "kvm_mmu_prepare_zap_page": ("kvmmmu", _SP),
    "mark_mmio_spte": ("kvmmmu", ("sptep", "gfn", "access", "gen")),
    "handle_mmio_page_fault": ("kvmmmu", ("addr", "gfn", "access")),
    "fast_page_fault": (
        "kvmmmu",
        ("vcpu_id", "cr2_or_gpa", "error_code", "sptep", "old_spte", "new_spte", "ret"),
    ),
    "kvm_mmu_zap_all_fast": ("kvmmmu", ("mmu_valid_gen", "mmu_used_pages")),
    "check_mmio_spte": ("kvmmmu", ("kvm_gen", "spte_gen", "spte")),
    "kvm_mmu_set_spte": ("kvmmmu", ("gfn", "spte", "sptep", "level", "r", "x", "u")),
    "kvm_mmu_spte_requested": ("kvmmmu", ("gfn", "pfn", "level")),
    "kvm_tdp_mmu_spte_changed": ("kvmmmu", ("gfn", "old_spte", "new_spte", "level", "as_id")),
    "kvm_mmu_split_huge_page": ("kvmmmu", ("gfn", "spte", "level", "errno")),
    "kvm_entry": ("kvm", ("vcpu_id", "rip", "immediate_exit")),
    "kvm_exit": (
        "kvm",
        ("exit_reason", "guest_rip", "isa", "info1", "info2", "intr_info", "error_code", "vcpu_id"),
    ),
    "kvm_page_fault": ("kvm", ("vcpu_id", "guest_rip", "fault_address", "error_code")),
    "kvm_inj_exception": ("kvm", ("exception", "has_error", "error_code", "reinjected")),
    "kvm_cr": ("kvm", ("rw", "cr", "val")),
    "kvm_msr": ("kvm", ("write", "ecx", "data", "exception")),
    "kvm_mmio": ("kvm", ("type", "len", "gpa", "val")),
    "vcpu_match_mmio": ("kvm", ("gva", "gpa", "write", "gpa_match")),
    "kvm_emulate_insn": ("kvm", ("rip", "csbase", "len", "insn", "flags", "failed")),
    "kvm_unmap_hva_range": ("kvm", ("start", "end")),
    "kvm_age_hva": ("kvm", ("start", "end")),
    "kvm_test_age_hva": ("kvm", ("hva",)),
}


class VcpuEvent(tuple[Any, ...]):  # noqa: SLOT001 - a tuple's fields are its elements, so this one needs a dictionary
    """An event as a sink gets it: the tuple, and in :attr:`vcpu_id` the vCPU that worked when it fired.

    None: no vCPU did, but the process: an ioctl of the VM, a change of the process's mappings. :attr:`cause` of a
    kvm_page_fault is why it happened (a word of ``kvm.mmu.verdict.CAUSES``); it fires before that is known, so that the
    cause is None until the fault has been handled, and for every other event. So it is with :attr:`limit`, why the
    fault maps no larger page (a word of ``LIMITS`` there).
    """

    vcpu_id: int | None
    cause: str | None
    limit: str | None

    def __new__(cls, event: Event, vcpu_id: int | None, cause: str | None = None) -> Self:
        """``event`` with its vCPU and, if it is a fault's, its cause."""
        made = tuple.__new__(cls, event)
        made.vcpu_id = vcpu_id
        made.cause = cause
        made.limit = None
        return made


def vcpu_of(event: Event) -> int | None:
    """The vCPU that worked when ``event`` fired; None: the process, or an event that does not tell."""
    return event.vcpu_id if isinstance(event, VcpuEvent) else None


def event_cause(event: Event) -> str | None:
    """The cause of the fault that ``event`` is; None: no fault, one that is still handled, or it cannot tell."""
    return event.cause if isinstance(event, VcpuEvent) else None


def event_limit(event: Event) -> str:
    """Why the fault that ``event`` is maps no larger page; "none" where nothing says so."""
    return (event.limit if isinstance(event, VcpuEvent) else None) or "none"


class Trace:
    """The tracepoints of one VM: silent until somebody attaches a sink.

    :attr:`vcpu_id` is the vCPU in whose context kvm works now, -1 for none; whoever begins or ends such work writes it.
    """

    __slots__ = ("on", "sink", "sinks", "vcpu_id")

    def __init__(self) -> None:
        self.on = False
        self.sinks: tuple[Callable[[Event], object], ...] = ()
        self.sink: Callable[[Event], object] | None = None
        self.vcpu_id = -1

    def __repr__(self) -> str:
        who = "" if self.vcpu_id < 0 else f", vCPU {self.vcpu_id} works"
        return f"<Trace {'on' if self.on else 'off'} sinks {len(self.sinks)}{who}>"

    def attach(self, sink: Callable[[Event], object]) -> None:
        """Deliver every event to ``sink`` too from now on, after the sinks that are attached already."""
        self._set_sinks((*self.sinks, sink))

    def detach(self, sink: Callable[[Event], object]) -> None:
        """Deliver no more events to ``sink``; :class:`UserError` if it is not attached.

        A sink that was attached twice is still attached once. An event that is being delivered reaches all that were
        attached when it fired.
        """
        if sink not in self.sinks:
            raise UserError(f"{sink!r} is not attached to this trace")
        at = self.sinks.index(sink)
        self._set_sinks(self.sinks[:at] + self.sinks[at + 1 :])

    def deliver(self, event: Event) -> VcpuEvent:
        """Hand ``event`` to every sink, in the order of attachment; return it as they have it."""
        made = VcpuEvent(event, None if self.vcpu_id < 0 else self.vcpu_id)
        for sink in self.sinks:
            sink(made)
        return made

    def _set_sinks(self, sinks: tuple[Callable[[Event], object], ...]) -> None:
        self.sinks = sinks
        self.sink = self.deliver if sinks else None
        self.on = bool(sinks)
