# SPDX-License-Identifier: GPL-2.0-only
"""Dirty logging by write protection, with the bitmap of a memslot: on, read and clear, off.

Huge pages are split by faults: a logged slot gets 4K leaves only. Reference: "Dirty logging" for the legacy
MMU without PML; "Huge pages and the NX mitigation", collapse.
"""

from __future__ import annotations

import errno
import sys
from array import array

from ...addr import Gfn
from ...errors import KvmIoctlError
from ..bits import KVM_ADDRESS_SPACE_NUM, KVM_USER_MEM_SLOTS
from ..dirtylog import take_dirty_word
from ..memslots import Memslot
from ..requests import flush_remote_tlbs
from ..vm import Vm
from .gfnrange import collapse_slot, write_protect_masked, write_protect_slot


def slot_log_enabled(vm: Vm, slot: Memslot) -> None:
    """``slot`` is logged from now on: no leaf of it stays writable; takes ``mmu_lock`` exclusively."""
    write_protect_slot(vm, slot)
    # Unconditional: W may have been taken before, by a pass that left the flush to this one.
    flush_remote_tlbs(vm)


def slot_log_disabled(vm: Vm, slot: Memslot) -> None:
    """``slot`` is no longer logged: small leaves go where a huge page may come; takes ``mmu_lock`` exclusively."""
    collapse_slot(vm, slot)


def take_words(vm: Vm, slot: Memslot) -> list[int]:
    """Read and clear the bitmap of ``slot``, protecting again what was set; ``mmu_lock`` held exclusively."""
    words = []
    for index in range(slot.nr_dirty_words()):
        word = take_dirty_word(vm, slot, index)
        words.append(word)
        if word:
            write_protect_masked(vm, slot, Gfn(slot.base_gfn + (index << 6)), word)
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
