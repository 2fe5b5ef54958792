# SPDX-License-Identifier: GPL-2.0-only
"""How kvm reacts when the host takes memory back: the notifier that a VM registers with its process.

Between start and end no fault may install what the host is taking away: the sequence and the range tell those that are
on their way. Reference: "MMU notifiers".
"""

from __future__ import annotations

from ...addr import Gfn, Hva
from ...errors import KvmBug
from ...page_types import INVALID_PAGE, PAGE_SIZE
from ..kvmtrace import trace_unmap_hva_range
from ..memslots import Memslot
from ..requests import flush_remote_tlbs
from ..vm import Vm
from .rmap import zap_slot_range


class MmuNotifier:
    """The VM's entry in the notifier chain of its process."""

    __slots__ = ("vm",)

    def __init__(self, vm: Vm) -> None:
        self.vm = vm

    def invalidate_range_start(self, start: Hva, end: Hva) -> None:
        """Stop using the pages of ``[start, end)``: zap what maps them and flush; takes ``mmu_lock`` exclusively."""
        vm = self.vm
        if vm.trace.on:
            trace_unmap_hva_range(vm.trace, start, end)
        vm.mn_active_invalidate_count += 1
        slots = overlapping_slots(vm, start, end)
        if not slots:
            return
        vm.mmu_lock.write_lock()
        begin(vm)
        flush = False
        for slot in slots:
            start_gfn, end_gfn = gfn_range(slot, start, end)
            add_range(vm, start_gfn, end_gfn)
            if zap_slot_range(vm, slot, start_gfn, end_gfn):
                flush = True
        if flush:
            flush_remote_tlbs(vm)
        vm.mmu_lock.write_unlock()

    def invalidate_range_end(self, start: Hva, end: Hva) -> None:
        """The host is done with ``[start, end)``; faults that began before must look again."""
        vm = self.vm
        if overlapping_slots(vm, start, end):
            vm.mmu_lock.write_lock()
            finish(vm)
            vm.mmu_lock.write_unlock()
        vm.mn_active_invalidate_count -= 1


def overlapping_slots(vm: Vm, start: Hva, end: Hva) -> list[Memslot]:
    """Slots of all address spaces that hold a byte of ``[start, end)``, in the order that they are handled."""
    return [slot for slots in vm.memslots for slot in slots.in_hva_range(start, end)]


def gfn_range(slot: Memslot, start: Hva, end: Hva) -> tuple[Gfn, Gfn]:
    """The gfns of ``slot`` that ``[start, end)`` touches, half-open."""
    first = max(start, slot.userspace_addr) - slot.userspace_addr
    last = min(end, slot.userspace_addr + slot.npages * PAGE_SIZE) - slot.userspace_addr
    return Gfn(slot.base_gfn + first // PAGE_SIZE), Gfn(slot.base_gfn + (last + PAGE_SIZE - 1) // PAGE_SIZE)


def begin(vm: Vm) -> None:
    """An invalidation begins (``kvm_mmu_invalidate_begin``); ``mmu_lock`` exclusive."""
    vm.mmu_lock.assert_exclusive()
    vm.mmu_invalidate_in_progress += 1
    if vm.mmu_invalidate_in_progress == 1:
        vm.mmu_invalidate_range_start = Gfn(INVALID_PAGE)
        vm.mmu_invalidate_range_end = Gfn(INVALID_PAGE)


def add_range(vm: Vm, start_gfn: Gfn, end_gfn: Gfn) -> None:
    """Widen the recorded range to ``[start_gfn, end_gfn)``; ``mmu_lock`` exclusive."""
    vm.mmu_lock.assert_exclusive()
    if vm.mmu_invalidate_range_start == INVALID_PAGE:
        vm.mmu_invalidate_range_start = start_gfn
        vm.mmu_invalidate_range_end = end_gfn
        return
    vm.mmu_invalidate_range_start = min(vm.mmu_invalidate_range_start, start_gfn)
    vm.mmu_invalidate_range_end = max(vm.mmu_invalidate_range_end, end_gfn)


def finish(vm: Vm) -> None:
    """An invalidation ends (``kvm_mmu_invalidate_end``): sequence first, then the count; ``mmu_lock`` exclusive."""
    vm.mmu_lock.assert_exclusive()
    vm.mmu_invalidate_seq += 1
    vm.mmu_invalidate_in_progress -= 1
    if vm.mmu_invalidate_in_progress < 0:
        raise KvmBug("an invalidation ended that never began")
