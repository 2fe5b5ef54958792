# SPDX-License-Identifier: GPL-2.0-only
"""The tracepoints of system ``kvmmmu``: each function builds one event and hands it to the sink.

Callers test ``trace.on`` first, so that nothing is built while nobody listens. Fields are in the order of
:data:`kvmmu.tracepoint.EVENTS`; addresses of entries are physical, because a table has no other address here.
Source: reference "Tracepoints, system kvmmmu".
"""

from __future__ import annotations

from ...addr import Gfn, Gpa, Hpa, Pfn
from ...tracepoint import Event, Trace
from .bits import ACC_ALL, MMIO_SPTE_GEN_MASK
from .page import ShadowPage
from .spte import SpteFormat, is_executable, mmio_generation, mmio_gfn


def trace_pagetable_walk(trace: Trace, addr: int, pferr: int) -> int:
    """A software walk of the guest's tables for ``addr`` (gva or gpa) begins; ``pferr``: the low 32 bits of access."""
    return _emit(trace, ("kvm_mmu_pagetable_walk", addr, pferr))


def trace_paging_element(trace: Trace, pte: int, level: int) -> int:
    """The walk read ``pte`` in the guest's table of ``level``."""
    return _emit(trace, ("kvm_mmu_paging_element", pte, level))


def trace_set_accessed_bit(trace: Trace, gpa: Gpa) -> int:
    """The walk sets A in the gpte at ``gpa``."""
    return _emit(trace, ("kvm_mmu_set_accessed_bit", gpa))


def trace_set_dirty_bit(trace: Trace, gpa: Gpa) -> int:
    """The walk sets D in the gpte at ``gpa``."""
    return _emit(trace, ("kvm_mmu_set_dirty_bit", gpa))


def trace_walker_error(trace: Trace, pferr: int) -> int:
    """The walk ends in a ``#PF`` with error code ``pferr``."""
    return _emit(trace, ("kvm_mmu_walker_error", pferr))


def trace_get_page(trace: Trace, sp: ShadowPage, created: bool) -> int:
    """``sp`` was asked for, and found or (``created``) built."""
    event = ("kvm_mmu_get_page", sp.mmu_valid_gen, sp.gfn, sp.role, sp.root_count, bool(sp.unsync), bool(created))
    return _emit(trace, event)


def trace_sync_page(trace: Trace, sp: ShadowPage) -> int:
    """``sp`` becomes synchronised; its state before the change."""
    return _sp_event(trace, "kvm_mmu_sync_page", sp)


def trace_unsync_page(trace: Trace, sp: ShadowPage) -> int:
    """``sp`` becomes unsynchronised; its state before the change."""
    return _sp_event(trace, "kvm_mmu_unsync_page", sp)


def trace_prepare_zap_page(trace: Trace, sp: ShadowPage) -> int:
    """``sp`` is about to be zapped; its state before the change."""
    return _sp_event(trace, "kvm_mmu_prepare_zap_page", sp)


def trace_mark_mmio_spte(trace: Trace, fmt: SpteFormat, sptep: Hpa, spte: int) -> int:
    """The MMIO spte ``spte`` is stored at ``sptep``; access is the word's low three bits, not the decoded access."""
    event = (
        "mark_mmio_spte",
        sptep,
        mmio_gfn(fmt, spte),
        spte & ACC_ALL,
        mmio_generation(spte),
    )
    return _emit(trace, event)


def trace_handle_mmio_page_fault(trace: Trace, addr: int, gfn: Gfn, access: int) -> int:
    """A fault on an MMIO spte: ``access`` is the one decoded from it."""
    return _emit(trace, ("handle_mmio_page_fault", addr, gfn, access))


def trace_fast_page_fault(
    trace: Trace,
    vcpu_id: int,
    addr: int,
    error_code: int,
    sptep: Hpa,
    old_spte: int,
    new_spte: int,
    ret: int,
) -> int:
    """The lockless path ended with ``ret``; ``new_spte`` is what the entry holds now."""
    return _emit(trace, ("fast_page_fault", vcpu_id, addr, error_code, sptep, old_spte, new_spte, ret))


def trace_zap_all_fast(trace: Trace, mmu_valid_gen: int, used_pages: int) -> int:
    """All shadow pages of ``mmu_valid_gen`` become obsolete; fires before the generation toggles."""
    return _emit(trace, ("kvm_mmu_zap_all_fast", mmu_valid_gen, used_pages))


def trace_check_mmio_spte(trace: Trace, kvm_gen: int, spte_gen: int, spte: int) -> int:
    """The generation of an MMIO spte is compared with the vCPU's memslots; both cut to the bits that sptes hold."""
    event = ("check_mmio_spte", kvm_gen & MMIO_SPTE_GEN_MASK, spte_gen & MMIO_SPTE_GEN_MASK, spte)
    return _emit(trace, event)


def trace_set_spte(trace: Trace, fmt: SpteFormat, level: int, gfn: Gfn, sptep: Hpa, spte: int) -> int:
    """The leaf ``spte`` is at ``sptep`` now.

    r is true whenever the format has a present mask; u is -1 for a format without a user bit.
    """
    readable = fmt.present_mask != 0 or (spte & 1) != 0
    user = -1
    if fmt.user_mask != 0:
        user = 1 if spte & fmt.user_mask else 0
    event = ("kvm_mmu_set_spte", gfn, spte, sptep, level, bool(readable), bool(is_executable(fmt, spte)), user)
    return _emit(trace, event)


def trace_spte_requested(trace: Trace, gfn: Gfn, pfn: Pfn, level: int) -> int:
    """A fault asks for a leaf at ``level``; ``pfn`` has the low gfn bits of that level or-ed in."""
    return _emit(trace, ("kvm_mmu_spte_requested", gfn, pfn, level))


def trace_tdp_mmu_spte_changed(trace: Trace, as_id: int, gfn: Gfn, level: int, old_spte: int, new_spte: int) -> int:
    """The TDP MMU's entry for ``gfn`` at ``level`` was ``old_spte`` and is ``new_spte``."""
    return _emit(trace, ("kvm_tdp_mmu_spte_changed", gfn, old_spte, new_spte, level, as_id))


def trace_split_huge_page(trace: Trace, gfn: Gfn, spte: int, level: int, errno: int) -> int:
    """The huge ``spte`` of ``gfn`` at ``level`` was split into a table of smaller ones; or not: a negative errno."""
    return _emit(trace, ("kvm_mmu_split_huge_page", gfn, spte, level, errno))


# The four page events differ in name only (get_page has one field more).
def _sp_event(trace: Trace, name: str, sp: ShadowPage) -> int:
    return _emit(trace, (name, sp.mmu_valid_gen, sp.gfn, sp.role, sp.root_count, bool(sp.unsync)))


# Deliver one event; a sink that was detached after the caller looked is no error.
def _emit(trace: Trace, event: Event) -> int:
    sink = trace.sink
    if sink is not None:
        sink(event)
    return 0
