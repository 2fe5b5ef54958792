# SPDX-License-Identifier: GPL-2.0-only
"""How kvm reacts when the host takes memory back, or asks what was used: the notifier that a VM has in its process.

Between start and end no fault may install what the host is taking away: the sequence and the range tell those that are
on their way. Reference: "MMU notifiers".
"""

from __future__ import annotations

from collections.abc import Callable

from ...addr import Gfn, Hva
from ...page_types import PAGE_SIZE
from ..bits import KVM_ADDRESS_SPACE_NUM
from ..kvmtrace import trace_age_hva, trace_test_age_hva, trace_unmap_hva_range
from ..memslots import Memslot
from ..requests import flush_remote_tlbs
from ..vm import Vm
from .gfnrange import age_gfn_range, is_young_gfn_range, unmap_gfn_range


class MmuNotifier:
    """The VM's entry in the notifier chain of its process."""

    __slots__ = ("vm",)

    def __init__(self, vm: Vm) -> None:
        self.vm = vm

    def invalidate_range_start(self, start: Hva, end: Hva) -> None:
        """Stop using the pages of ``[start, end)``: zap what maps them and flush.

        Takes ``mmu_lock`` exclusively if a slot shows any of them; reads the memslots inside ``srcu``.
        """
        vm = self.vm
        if vm.trace.on:
            trace_unmap_hva_range(vm.trace, start, end)
        vm.invalidation.enter()
        vm.srcu.read_lock()
        try:
            self._unmap(start, end)
        finally:
            vm.srcu.read_unlock()

    def _unmap(self, start: Hva, end: Hva) -> None:
        vm = self.vm
        slots = overlapping_slots(vm, start, end)
        if not slots:
            return
        vm.mmu_lock.write_lock()
        vm.invalidation.begin()
        flush = False
        for slot in slots:
            start_gfn, end_gfn = gfn_range(slot, start, end)
            vm.invalidation.add_range(start_gfn, end_gfn)
            if unmap_gfn_range(vm, slot, start_gfn, end_gfn):
                flush = True
        if flush:
            flush_remote_tlbs(vm)
        vm.mmu_lock.write_unlock()

    def invalidate_range_end(self, start: Hva, end: Hva) -> None:
        """The host is done with ``[start, end)``; faults that began before must look again. Locks as at the start."""
        vm = self.vm
        vm.srcu.read_lock()
        if overlapping_slots(vm, start, end):
            vm.mmu_lock.write_lock()
            vm.invalidation.end()
            vm.mmu_lock.write_unlock()
        vm.srcu.read_unlock()
        vm.invalidation.leave()

    def clear_flush_young(self, start: Hva, end: Hva) -> bool:
        """Make what maps ``[start, end)`` not accessed; whether it was. TLBs are flushed, so that the next use shows.

        Takes ``mmu_lock`` exclusively if a slot shows any of it; reads the memslots inside ``srcu``.
        """
        if self.vm.trace.on:
            trace_age_hva(self.vm.trace, start, end)
        return self._ask(age_gfn_range, start, end, True)

    def clear_young(self, start: Hva, end: Hva) -> bool:
        """As above, without a flush: a use that a TLB still translates goes unnoticed."""
        if self.vm.trace.on:
            trace_age_hva(self.vm.trace, start, end)
        return self._ask(age_gfn_range, start, end, False)

    def test_young(self, address: Hva) -> bool:
        """Whether what maps the page at ``address`` was accessed since it was last aged; locks as above."""
        if self.vm.trace.on:
            trace_test_age_hva(self.vm.trace, address)
        return self._ask(is_young_gfn_range, address, Hva(address + 1), False)

    # Put question to every slot that shows part of the range: whether one says yes.
    def _ask(self, question: Callable[[Vm, Memslot, Gfn, Gfn], bool], start: Hva, end: Hva, flushes: bool) -> bool:
        vm = self.vm
        young = False
        vm.srcu.read_lock()
        slots = overlapping_slots(vm, start, end)
        if slots:
            vm.mmu_lock.write_lock()
            for slot in slots:
                if question(vm, slot, *gfn_range(slot, start, end)):
                    young = True
            if young and flushes:
                flush_remote_tlbs(vm)
            vm.mmu_lock.write_unlock()
        vm.srcu.read_unlock()
        return young


def overlapping_slots(vm: Vm, start: Hva, end: Hva) -> list[Memslot]:
    """Slots of all address spaces that hold a byte of ``[start, end)``, in the order that they are handled."""
    return [slot for as_id in range(KVM_ADDRESS_SPACE_NUM) for slot in vm.slots_of(as_id).in_hva_range(start, end)]


def gfn_range(slot: Memslot, start: Hva, end: Hva) -> tuple[Gfn, Gfn]:
    """The gfns of ``slot`` that ``[start, end)`` touches, half-open."""
    first = max(start, slot.userspace_addr) - slot.userspace_addr
    last = min(end, slot.userspace_addr + slot.npages * PAGE_SIZE) - slot.userspace_addr
    return Gfn(slot.base_gfn + first // PAGE_SIZE), Gfn(slot.base_gfn + (last + PAGE_SIZE - 1) // PAGE_SIZE)
