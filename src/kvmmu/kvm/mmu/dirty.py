# SPDX-License-Identifier: GPL-2.0-only
"""Dirty logging by write protection, with the bitmap of a memslot: on, read and clear, off.

Reading clears the log and protects its pages again, or (manual mode) a call of its own does that for some of them. A
logged slot gets 4K leaves only: the TDP MMU splits huge pages ahead, all at once or, where the log begins full and so
nothing is protected at first, those of the pages that are cleared; what is huge still is split by the next write's
fault. Reference: "Dirty logging" without PML; "Huge pages and the NX mitigation", collapse.
"""

from __future__ import annotations

import errno
import sys
from array import array

from ...addr import Gfn
from ...errors import KvmIoctlError
from ..bits import (
    KVM_ADDRESS_SPACE_NUM,
    KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_USER_MEM_SLOTS,
)
from ..dirtylog import clear_dirty_bits, dirty_word, take_dirty_word
from ..memslots import Memslot
from ..requests import flush_remote_tlbs
from ..vm import Vm
from .gfnrange import (
    collapse_slot,
    protect_gfn,
    split_gfn_range,
    split_slot,
    write_protect_masked,
    write_protect_slot,
)

_HUGE_LEVEL = 2
_HUGE_PAGES = 512


def slot_log_enabled(vm: Vm, slot: Memslot) -> None:
    """``slot`` is logged from now on: no leaf of it stays writable, unless its log begins full; takes ``mmu_lock``."""
    if vm.is_log_initially_set():
        return
    if vm.policy.eager_page_split:
        split_slot(vm, slot)
    write_protect_slot(vm, slot)
    # Unconditional: W may have been taken before, by a pass that left the flush to this one.
    flush_remote_tlbs(vm)


def slot_log_disabled(vm: Vm, slot: Memslot) -> None:
    """``slot`` is no longer logged: small leaves go where a huge page may come; takes ``mmu_lock``."""
    collapse_slot(vm, slot)


def set_manual_protect(vm: Vm, flags: int) -> None:
    """KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: how dirty logs are cleared from now on, KVM_DIRTY_LOG_* bits; 0: by reading.

    :raises KvmIoctlError: EINVAL for other bits, and for INITIALLY_SET without MANUAL_PROTECT_ENABLE.
    """
    allowed = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
    if flags & allowed:
        allowed |= KVM_DIRTY_LOG_INITIALLY_SET
    if flags & ~allowed:
        raise KvmIoctlError(
            errno.EINVAL, f"manual dirty log {flags:#x}: MANUAL_PROTECT_ENABLE (1), and with it INITIALLY_SET (2)"
        )
    vm.manual_dirty_log_protect = flags


def protect_again(vm: Vm, slot: Memslot, offset: int, mask: int) -> None:
    """Let the next write of the pages in ``mask`` (bit 0: page ``offset`` of ``slot``) be logged again.

    ``mmu_lock`` held exclusively, and yielded by a split; the caller flushes.
    """
    base_gfn = Gfn(slot.base_gfn + offset)
    if vm.is_log_initially_set():
        # Nothing was protected when logging began, so huge pages may be writable still.
        first = Gfn(base_gfn + (mask & -mask).bit_length() - 1)
        last = Gfn(base_gfn + mask.bit_length() - 1)
        if vm.policy.eager_page_split:
            split_gfn_range(vm, slot, first, Gfn(last + 1))
        protect_gfn(vm, slot, first, _HUGE_LEVEL)
        # As the kernel rounds: a last page on a border counts to the block below.
        if -(-first // _HUGE_PAGES) != -(-last // _HUGE_PAGES):
            protect_gfn(vm, slot, last, _HUGE_LEVEL)
    write_protect_masked(vm, slot, base_gfn, mask)


def take_words(vm: Vm, slot: Memslot) -> list[int]:
    """Read and clear the bitmap of ``slot``, protecting again what was set; ``mmu_lock`` held exclusively."""
    words = []
    for index in range(slot.nr_dirty_words()):
        word = take_dirty_word(vm, slot, index)
        words.append(word)
        if word:
            protect_again(vm, slot, index << 6, word)
    return words


def logged_slot(vm: Vm, slot_number: int, ioctl: str) -> Memslot:
    """The slot (id, address space << 16), for ``ioctl``, which is refused: EINVAL out of range, ENOENT not logged."""
    slot_id, as_id = slot_number & 0xFFFF, slot_number >> 16
    if as_id >= KVM_ADDRESS_SPACE_NUM or slot_id >= KVM_USER_MEM_SLOTS:
        raise KvmIoctlError(errno.EINVAL, f"{ioctl}: slot {slot_number:#x} is out of range")
    slot = vm.slots_of(as_id).find_id(slot_id)
    if slot is None or slot.dirty_array is None:
        raise KvmIoctlError(
            errno.ENOENT, f"{ioctl}: slot {slot_number:#x} has no dirty bitmap; set KVM_MEM_LOG_DIRTY_PAGES"
        )
    return slot


def get_dirty_log(vm: Vm, slot_number: int) -> bytes:
    """KVM_GET_DIRTY_LOG of ``slot_number`` (id, address space << 16): the bitmap, one bit per page, then cleared.

    A write after this returns is in the next log. Takes ``mmu_lock`` exclusively. In manual mode nothing is cleared,
    and no lock but ``slots_lock`` taken.

    :raises KvmIoctlError: EINVAL for a slot number out of range, ENOENT for a slot that is not there or not logged.
    """
    slot = logged_slot(vm, slot_number, "KVM_GET_DIRTY_LOG")
    vm.slots_lock.lock()
    if vm.is_log_manual():
        words = [dirty_word(vm, slot, index) for index in range(slot.nr_dirty_words())]
    else:
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


def clear_dirty_log(vm: Vm, slot_number: int, first_page: int, nr_pages: int, bitmap: bytes) -> None:
    """KVM_CLEAR_DIRTY_LOG: clear the bits of ``bitmap`` for pages ``first_page`` on, and protect those pages again.

    A write of such a page after this returns is logged. Takes ``mmu_lock`` exclusively.

    :raises KvmIoctlError: EINVAL for a slot number out of range, pages that do not begin at a multiple of 64 or end
        neither at one nor with the slot; ENOENT for a slot that is not logged; EFAULT for a bitmap that is too short.
    """
    name = "KVM_CLEAR_DIRTY_LOG"
    if slot_number >> 16 < KVM_ADDRESS_SPACE_NUM and slot_number & 0xFFFF < KVM_USER_MEM_SLOTS and first_page % 64:
        raise KvmIoctlError(errno.EINVAL, f"{name}: first page {first_page:#x} must be a multiple of 64")
    slot = logged_slot(vm, slot_number, name)
    left = slot.npages - first_page
    if left < 0 or nr_pages > left or (nr_pages < left and nr_pages % 64):
        raise KvmIoctlError(
            errno.EINVAL,
            f"{name}: pages {first_page:#x} + {nr_pages:#x}: must end at a multiple of 64 or with {slot!r}",
        )
    nr_words = -(-nr_pages // 64)
    if len(bitmap) < nr_words * 8:
        raise KvmIoctlError(errno.EFAULT, f"{name}: a bitmap of {len(bitmap)} bytes for {nr_words} words")
    vm.slots_lock.lock()
    vm.mmu_lock.write_lock()
    flush = False
    for i in range(nr_words):
        mask = int.from_bytes(bitmap[8 * i : 8 * i + 8], "little")
        cleared = clear_dirty_bits(vm, slot, first_page // 64 + i, mask) if mask else 0
        if cleared:
            protect_again(vm, slot, first_page + 64 * i, cleared)
            flush = True
    vm.mmu_lock.write_unlock()
    if flush:
        flush_remote_tlbs(vm)
    vm.slots_lock.unlock()
