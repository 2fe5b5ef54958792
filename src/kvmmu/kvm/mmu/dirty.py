# SPDX-License-Identifier: GPL-2.0-only
"""Dirty logging by write protection, with the bitmap of a memslot: on, read and clear, off.

Huge pages are split by faults: a logged slot gets 4K leaves only. Reference: "Dirty logging" for the legacy
MMU without PML; "Huge pages and the NX mitigation", collapse.
"""

from __future__ import annotations

import errno
import sys
from array import array

from ...addr import Gfn, Hpa
from ...errors import KvmIoctlError
from ...page_types import ONE
from ..bits import KVM_ADDRESS_SPACE_NUM, KVM_USER_MEM_SLOTS
from ..memslots import Memslot
from ..requests import flush_remote_tlbs
from ..vm import Vm
from .hugepage import max_mapping_level
from .pages import sptep_to_sp
from .rmap import drop_spte, pte_list_first, pte_list_next, pte_list_sptep, rmap_write_protect
from .role import role_direct, role_level


def slot_log_enabled(vm: Vm, slot: Memslot) -> None:
    """``slot`` is logged from now on: no leaf of it stays writable; takes ``mmu_lock`` exclusively."""
    if slot.rmap_array is not None:
        vm.mmu_lock.write_lock()
        write_protect_slot(vm, slot)
        vm.mmu_lock.write_unlock()
    # Unconditional: W may have been taken before, by a pass that left the flush to this one.
    flush_remote_tlbs(vm)


def slot_log_disabled(vm: Vm, slot: Memslot) -> None:
    """``slot`` is no longer logged: small leaves go where a huge page may come; takes ``mmu_lock`` exclusively."""
    if slot.rmap_array is None:
        return
    vm.mmu_lock.write_lock()
    if zap_collapsible(vm, slot):
        flush_remote_tlbs(vm)
    vm.mmu_lock.write_unlock()


def write_protect_slot(vm: Vm, slot: Memslot) -> bool:
    """Take W (not MMU-writable) from every leaf of slot; returns whether TLBs must be flushed."""
    flush = False
    for level in range(1, 4):
        at = slot.offset[level]
        end = at + slot.nr_entries[level]
        while at < end:
            if slot.rmap[at] and rmap_write_protect(vm, slot.rmap[at], False):
                flush = True
            at += 1
    return flush


def zap_one_collapsible(vm: Vm, slot: Memslot, at: int) -> bool:
    """Zap the first leaf of one rmap that a larger page could replace; False: there is none (any more)."""
    place = pte_list_first(slot.rmap[at])
    while place:
        sptep: Hpa = pte_list_sptep(vm, place)
        sp = sptep_to_sp(vm, sptep)
        if role_direct(sp.role) and slot.contains(sp.gfn):
            if role_level(sp.role) < max_mapping_level(vm, slot, sp.gfn, 3):
                drop_spte(vm, sptep)
                return True
        place = pte_list_next(vm, place)
    return False


def zap_collapsible(vm: Vm, slot: Memslot) -> bool:
    """Zap every leaf of ``slot`` that a larger page could replace; return whether TLBs must be flushed."""
    flush = False
    for level in range(1, 3):
        at = slot.offset[level]
        end = at + slot.nr_entries[level]
        while at < end:
            while zap_one_collapsible(vm, slot, at):
                flush = True
            at += 1
    return flush


def protect_masked(vm: Vm, slot: Memslot, base_gfn: Gfn, mask: int) -> int:
    """Take W from the 4K leaves of the gfns whose bit is set in mask, bit 0 meaning base_gfn."""
    for i in range(64):
        if (mask >> i) & ONE:
            gfn: Gfn = base_gfn + i  # type: ignore[assignment]
            rmap_write_protect(vm, slot.rmap[slot.offset[1] + slot.index(gfn, 1)], False)
    return 0


def take_words(vm: Vm, slot: Memslot) -> list[int]:
    """Read and clear the bitmap, protecting again what was set."""
    words = []
    nr = slot.nr_dirty_words()
    for i in range(nr):
        word = slot.dirty_bitmap[i]
        words.append(word)
        if word:
            slot.dirty_bitmap[i] = 0
            if slot.rmap_array is not None:
                protect_masked(vm, slot, slot.base_gfn + (i << 6), word)  # type: ignore[arg-type]
    return words


def get_dirty_log(vm: Vm, slot_number: int) -> bytes:
    """KVM_GET_DIRTY_LOG of ``slot_number`` (id, address space << 16): the bitmap, one bit per page, then cleared.

    A write after this returns is in the next log. Takes ``mmu_lock`` exclusively.

    :raises KvmIoctlError: EINVAL for a slot number out of range, ENOENT for a slot that is not there or not logged.
    """
    slot_id, as_id = slot_number & 0xFFFF, slot_number >> 16
    if as_id >= KVM_ADDRESS_SPACE_NUM or slot_id >= KVM_USER_MEM_SLOTS:
        raise KvmIoctlError(errno.EINVAL, f"KVM_GET_DIRTY_LOG: slot {slot_number:#x} is out of range")
    slot = vm.slots_of(as_id).find_id(slot_id)
    if slot is None or slot.dirty_array is None:
        raise KvmIoctlError(
            errno.ENOENT, f"KVM_GET_DIRTY_LOG: slot {slot_number:#x} has no dirty bitmap; set KVM_MEM_LOG_DIRTY_PAGES"
        )
    vm.slots_lock.lock()
    vm.mmu_lock.write_lock()
    words = take_words(vm, slot)
    vm.mmu_lock.write_unlock()
    if any(words):
        flush_remote_tlbs(vm)
    vm.slots_lock.unlock()
    out = array("Q", words)
    if sys.byteorder == "big":
        out.byteswap()
    return out.tobytes()
