# SPDX-License-Identifier: GPL-2.0-only
"""What can be observed: the tracepoints of Linux 6.12 by name, with their fields in the kernel's order.

An event is a tuple ``(name, field, field ...)``, fields as declared in :data:`EVENTS`. Nothing is built while nobody
listens: each place that can trace tests :attr:`Trace.on` first. Text, ring, Parquet are made outside, in ``trace``.
Fields and names: reference "Tracepoints, system kvmmmu" and "system kvm".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
}


class Trace:
    """The tracepoints of one VM: silent until somebody sets :attr:`sink`."""

    __slots__ = ("on", "sink")

    def __init__(self) -> None:
        self.on = False
        self.sink: Callable[[Event], object] | None = None

    def attach(self, sink: Callable[[Event], object]) -> None:
        """Deliver every event to ``sink`` from now on, in place of an earlier sink."""
        self.sink = sink
        self.on = True

    def detach(self) -> None:
        """Be silent again."""
        self.on = False
        self.sink = None
