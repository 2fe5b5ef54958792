# SPDX-License-Identifier: GPL-2.0-only
"""The log of written pages: marking one, and taking what is marked. The owner of the words of a slot's dirty bitmap.

Bits are set by whoever makes a page writable or writes it on the guest's behalf, without a lock, and cleared by the
log's reader alone. What protects pages again is ``mmu/dirty``. Reference: "Dirty logging", marking.
"""

from __future__ import annotations

from ..addr import Gfn
from ..page_types import ONE
from .memslots import Memslot
from .vcpu import Vcpu
from .vm import Vm


def mark_page_dirty_in_slot(vm: Vm, vcpu: Vcpu | None, slot: Memslot | None, gfn: Gfn) -> int:
    """Note that ``gfn`` of ``slot`` was written, on behalf of ``vcpu`` (None: of the process).

    Nothing happens for no slot or one that is not logged. The bitmap does not ask who wrote. Return 0.
    """
    if slot is None or not slot.is_dirty_logged() or slot.dirty_bitmap is None:
        return 0
    bit = gfn - slot.base_gfn
    if vm.gate.armed:
        vm.gate.announce("or", slot, ("dirty_bitmap", bit >> 6))
    slot.dirty_bitmap[bit >> 6] |= ONE << (bit & 63)
    return 0


def clear_dirty_bits(vm: Vm, slot: Memslot, index: int, mask: int) -> int:
    """Clear the bits of ``mask`` in word ``index`` of the bitmap of the logged ``slot``; return those that were set."""
    if vm.gate.armed:
        vm.gate.announce("and", slot, ("dirty_bitmap", index))
    word: int = slot.dirty_bitmap[index] & mask
    slot.dirty_bitmap[index] &= ~mask
    return word


def dirty_word(vm: Vm, slot: Memslot, index: int) -> int:
    """Word ``index`` of the bitmap of the logged ``slot``, which stays as it is."""
    if vm.gate.armed:
        vm.gate.announce("read", slot, ("dirty_bitmap", index))
    word: int = slot.dirty_bitmap[index]
    return word


def take_dirty_word(vm: Vm, slot: Memslot, index: int) -> int:
    """Word ``index`` (64 pages) of the bitmap of the logged ``slot``, exchanged for 0 if anything is set."""
    if vm.gate.armed:
        vm.gate.announce("xchg", slot, ("dirty_bitmap", index))
    word: int = slot.dirty_bitmap[index]
    if word:
        slot.dirty_bitmap[index] = 0
    return word
