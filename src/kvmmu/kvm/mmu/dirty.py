# SPDX-License-Identifier: GPL-2.0-only
"""Dirty logging by write protection, with the bitmap of a memslot: on, read, clear, off.

Reading clears the log and protects its pages again, or (manual mode) a call of its own does that for some of them. A
logged slot gets 4K leaves only: the TDP MMU splits huge pages ahead, all at once or, where the log begins full and so
nothing is protected at first, those of the pages that are cleared; what is huge still is split by the next write's
fault. Reference: "Dirty logging" without PML; "Huge pages and the NX mitigation", collapse.
"""

from __future__ import annotations

import errno
import sys
from array import array
from collections.abc import Sequence

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
from ..requests import flush_remote_tlbs_memslot
from ..vm import Vm
from .gfnrange import collapse_slot, split_gfn_range, split_slot, write_protect_masked, write_protect_slot
from .track import protect_gfn

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
    flush_remote_tlbs_memslot(vm, slot)


def slot_log_disabled(vm: Vm, slot: Memslot) -> None:
    """``slot`` is no longer logged: small leaves go where a huge page may come; takes ``mmu_lock``."""
    collapse_slot(vm, slot)


def set_manual_protect(vm: Vm, options: int) -> None:
    """KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: how logs are read and begin from now on, by KVM_DIRTY_LOG_* ``options``.

    :raises KvmIoctlError: EINVAL for other bits, and for INITIALLY_SET without MANUAL_PROTECT_ENABLE.
    """
    allowed = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
    if options & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE:
        allowed |= KVM_DIRTY_LOG_INITIALLY_SET
    if options & ~allowed:
        raise KvmIoctlError(
            errno.EINVAL,
            f"EINVAL: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: options {options:#x}: MANUAL_PROTECT_ENABLE (1) and, only with"
            " it, INITIALLY_SET (2) exist",
        )
    vm.manual_dirty_log_protect = options


def protect_again(vm: Vm, slot: Memslot, offset: int, mask: int) -> None:
    """Let the next write of the pages in ``mask``, not 0 (bit 0: page ``offset`` of ``slot``), be logged again.

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


def clear_words(vm: Vm, slot: Memslot, first_page: int, words: Sequence[int]) -> bool:
    """Clear in the bitmap of ``slot`` what is set in ``words``, which begin at ``first_page``, and protect those pages.

    ``mmu_lock`` held exclusively. Only what really was set is protected. Return whether anything was.
    """
    flush = False
    for index, mask in enumerate(words, first_page >> 6):
        cleared = clear_dirty_bits(vm, slot, index, mask) if mask else 0
        if cleared:
            flush = True
            protect_again(vm, slot, index << 6, cleared)
    return flush


def get_dirty_log(vm: Vm, slot_number: int) -> bytes:
    """KVM_GET_DIRTY_LOG of ``slot_number`` (id, address space << 16): the bitmap, one bit per page, then cleared.

    A write after this returns is in the next log. With manual protection nothing is cleared, and nothing flushed.
    Takes ``slots_lock``, and ``mmu_lock`` exclusively if it clears.

    :raises KvmIoctlError: EINVAL for a slot number out of range, ENOENT for a slot that is not there or not logged.
    """
    vm.slots_lock.lock()
    try:
        _check_number(slot_number, "KVM_GET_DIRTY_LOG")
        slot = _logged_slot(vm, slot_number, "KVM_GET_DIRTY_LOG")
        if vm.is_log_manual():
            words = [dirty_word(vm, slot, index) for index in range(slot.nr_dirty_words())]
        else:
            vm.mmu_lock.write_lock()
            words = take_words(vm, slot)
            vm.mmu_lock.write_unlock()
            if any(words):
                flush_remote_tlbs_memslot(vm, slot)
    finally:
        vm.slots_lock.unlock()
    out = array("Q", words)
    if sys.byteorder == "big":
        out.byteswap()
    return out.tobytes()


def clear_dirty_log(vm: Vm, slot_number: int, first_page: int, num_pages: int, bitmap: bytes) -> None:
    """KVM_CLEAR_DIRTY_LOG: clear the pages of ``slot_number`` whose bit is set in ``bitmap``, and log their next write.

    Bit 0 of ``bitmap`` is ``first_page``; ``num_pages`` bits count, and those that fill the last word of 64, which lie
    behind the slot. Takes ``slots_lock``, and ``mmu_lock`` exclusively. It works without manual protection too.

    :raises KvmIoctlError: EINVAL, ENOENT as :func:`get_dirty_log`; EINVAL unless ``first_page`` is a multiple of 64 and
        the range lies in the slot and ends at its end or with a multiple of 64 pages; EFAULT for too short a bitmap.
    """
    vm.slots_lock.lock()
    try:
        _check_number(slot_number, "KVM_CLEAR_DIRTY_LOG")
        if first_page & 63:
            _refuse(errno.EINVAL, f"KVM_CLEAR_DIRTY_LOG: first_page {first_page:#x}: must be a multiple of 64")
        slot = _logged_slot(vm, slot_number, "KVM_CLEAR_DIRTY_LOG")
        rest = slot.npages - first_page
        if rest < 0 or num_pages > rest or (num_pages < rest and num_pages & 63):
            _refuse(
                errno.EINVAL,
                f"KVM_CLEAR_DIRTY_LOG: {num_pages:#x} pages from {first_page:#x}: must lie in the slot's"
                f" {slot.npages:#x} pages, and be a multiple of 64 unless they end where it does",
            )
        nr_bytes = (num_pages + 63) // 64 * 8
        if len(bitmap) < nr_bytes:
            _refuse(errno.EFAULT, f"KVM_CLEAR_DIRTY_LOG: bitmap of {len(bitmap)} bytes: the range has {nr_bytes}")
        words = array("Q", bitmap[:nr_bytes])
        if sys.byteorder == "big":
            words.byteswap()
        vm.mmu_lock.write_lock()
        flush = clear_words(vm, slot, first_page, words)
        vm.mmu_lock.write_unlock()
        if flush:
            flush_remote_tlbs_memslot(vm, slot)
    finally:
        vm.slots_lock.unlock()


def _refuse(number: int, text: str) -> None:
    raise KvmIoctlError(number, f"{errno.errorcode[number]}: {text}")


# The number names a slot that there may be.
def _check_number(slot_number: int, ioctl: str) -> None:
    if slot_number >> 16 >= KVM_ADDRESS_SPACE_NUM or slot_number & 0xFFFF >= KVM_USER_MEM_SLOTS:
        _refuse(errno.EINVAL, f"{ioctl}: slot {slot_number:#x} is out of range")


# The slot of that number, which has a bitmap; slots_lock held.
def _logged_slot(vm: Vm, slot_number: int, ioctl: str) -> Memslot:
    slot = vm.slots_of(slot_number >> 16).find_id(slot_number & 0xFFFF)
    if slot is None or slot.dirty_array is None:
        raise KvmIoctlError(
            errno.ENOENT, f"ENOENT: {ioctl}: slot {slot_number:#x} has no dirty bitmap; set KVM_MEM_LOG_DIRTY_PAGES"
        )
    return slot
