# SPDX-License-Identifier: GPL-2.0-only
"""KVM_SET_USER_MEMORY_REGION: how memslots come, go, move and change, and KVM_SET_NR_MMU_PAGES.

A request is checked in the kernel's order, each refusal with the kernel's errno. What is accepted is made in the
inactive set of slots, which is published by a *swap*: it carries the old generation with the in-progress flag, and gets
its final number, larger by the number of address spaces, after everybody saw it. The set that was published before
then follows. A slot that is deleted or moved is first
published as INVALID and everything that was built on it is zapped. Sources: reference sections "Memslots and memory
ioctls" and "Generation protocol".

Not modelled, and so never a reason to refuse: guest_memfd (needs private memory), external write trackers (KVMGT),
the copy of the request from user memory.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from .. import arguments
from ..addr import Gfn, Gpa, Hva
from ..errors import KvmBug, KvmIoctlError
from ..host.bits import USER_END
from ..page_types import PAGE_SHIFT, PAGE_SIZE
from ..params import KVM_MIN_ALLOC_MMU_PAGES
from . import requests
from .bits import (
    KVM_ADDRESS_SPACE_NUM,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_MAX_NR_PAGES,
    KVM_MEM_READONLY,
    KVM_MEM_SLOTS_NUM,
    KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS,
    KVM_MEMSLOT_INVALID,
    KVM_USER_MEM_SLOTS,
)
from .memslots import Memslot
from .mmu import dirty, gfnrange, zap
from .mmu.bits import MMIO_SPTE_GEN_MASK

if TYPE_CHECKING:
    from .vm import Vm

#: Shadow pages allowed by default: one for so many pages of slots, and at least the minimum.
KVM_MEMSLOT_PAGES_TO_MMU_PAGES_RATIO = 50

_U32_END = 1 << 32
_U64_END = 1 << 64


@dataclass(frozen=True, slots=True)
class UserMemoryRegion:
    """The ioctl's argument, ``struct kvm_userspace_memory_region``.

    ``slot`` is the slot's id in bits 0-15 and its address space in bits 16-31; ``memory_size`` 0 deletes it.
    :class:`UserError` for a value that its field cannot hold.
    """

    slot: int
    flags: int
    guest_phys_addr: Gpa
    memory_size: int
    userspace_addr: Hva

    def __post_init__(self) -> None:
        for name in ("slot", "flags"):
            arguments.number(name, getattr(self, name), _U32_END - 1)
        for name in ("guest_phys_addr", "memory_size", "userspace_addr"):
            arguments.number(name, getattr(self, name))


class _Change(Enum):
    CREATE = auto()
    DELETE = auto()
    MOVE = auto()
    FLAGS_ONLY = auto()


def set_user_memory_region(vm: Vm, region: UserMemoryRegion) -> None:
    """Create, delete (size 0), move or change the flags of one slot, as the ioctl of a process does.

    Takes slots_lock. :class:`KvmIoctlError` with the kernel's errno, the first that applies in its order: EINVAL for
    a request that is malformed or that no slot allows, EEXIST where slots would overlap, ENOMEM for their arrays.
    A request that changes nothing succeeds without an update.
    """
    unknown = region.flags & ~(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY)
    if unknown:
        _refuse(errno.EINVAL, f"flags {region.flags:#x}: only LOG_DIRTY_PAGES (1) and READONLY (2) exist")
    if region.slot & 0xFFFF >= KVM_USER_MEM_SLOTS:
        _refuse(errno.EINVAL, f"slot id {region.slot & 0xFFFF}: user slots are 0 to {KVM_USER_MEM_SLOTS - 1}")
    vm.slots_lock.lock()
    try:
        set_memory_region(vm, region)
    finally:
        vm.slots_lock.unlock()


def set_memory_region(vm: Vm, region: UserMemoryRegion) -> None:
    """:func:`set_user_memory_region` for any slot id below 32767, KVM's own among them; slots_lock held."""
    vm.slots_lock.assert_held()
    _check_shape(vm, region)
    slots = vm.slots_of(region.slot >> 16)
    old = slots.find_id(region.slot & 0xFFFF)
    if region.memory_size == 0:
        if old is None:
            _refuse(errno.EINVAL, f"size 0 deletes a slot, but slot {_name(region)} does not exist")
            return
        if vm.nr_memslot_pages < old.npages:
            raise KvmBug(f"{vm.nr_memslot_pages} pages in all slots, but {old.npages} in {old!r}")
        _set_memslot(vm, old, None, _Change.DELETE)
        return
    change = _kind_of_change(vm, region, old)
    if change is None:
        return
    base_gfn, npages = Gfn(region.guest_phys_addr >> PAGE_SHIFT), region.memory_size >> PAGE_SHIFT
    if change is not _Change.FLAGS_ONLY:
        other = slots.overlaps(base_gfn, Gfn(base_gfn + npages), region.slot & 0xFFFF)
        if other is not None:
            gfns = f"[{base_gfn:#x}, {base_gfn + npages:#x})"
            _refuse(errno.EEXIST, f"slot {_name(region)}: gfns {gfns} overlap {other!r}; slots may not")
    _set_memslot(vm, old, Memslot(region.slot, region.flags, base_gfn, npages, region.userspace_addr), change)


def set_nr_mmu_pages(vm: Vm, nr_pages: int) -> None:
    """KVM_SET_NR_MMU_PAGES: allow ``nr_pages`` shadow pages from now on, whatever slots come or go.

    Takes slots_lock. :class:`KvmIoctlError` EINVAL for fewer than 64.
    """
    if nr_pages < KVM_MIN_ALLOC_MMU_PAGES:
        _refuse(errno.EINVAL, f"{nr_pages} MMU pages: the minimum is {KVM_MIN_ALLOC_MMU_PAGES}")
    vm.slots_lock.lock()
    try:
        zap.change_mmu_pages(vm, nr_pages)
        vm.n_requested_mmu_pages = nr_pages
    finally:
        vm.slots_lock.unlock()


# ------------------------------------------------------------------------------------------------ the checks


# Say no: errno, and the value with the rule that it breaks.
def _refuse(number: int, text: str) -> None:
    raise KvmIoctlError(number, f"{errno.errorcode[number]}: {text}")


# "address space:id", as slots are printed.
def _name(region: UserMemoryRegion) -> str:
    return f"{region.slot >> 16}:{region.slot & 0xFFFF}"


# Alignment, ranges and numbers, before any slot is looked at.
def _check_shape(vm: Vm, region: UserMemoryRegion) -> None:
    size, gpa, hva = region.memory_size, region.guest_phys_addr, region.userspace_addr
    if size % PAGE_SIZE:
        _refuse(errno.EINVAL, f"memory_size {size:#x}: must be a multiple of 0x1000")
    if gpa % PAGE_SIZE:
        _refuse(errno.EINVAL, f"guest_phys_addr {gpa:#x}: must be a multiple of 0x1000")
    if hva % PAGE_SIZE:
        _refuse(errno.EINVAL, f"userspace_addr {hva:#x}: must be a multiple of 0x1000")
    if hva + size > USER_END:
        _refuse(errno.EINVAL, f"userspace_addr {hva:#x} + {size:#x}: user addresses end at {USER_END:#x}")
    if region.slot >> 16 >= KVM_ADDRESS_SPACE_NUM:
        _refuse(errno.EINVAL, f"address space {region.slot >> 16} (slot bits 16-31): there are {KVM_ADDRESS_SPACE_NUM}")
    if region.slot & 0xFFFF >= KVM_MEM_SLOTS_NUM:
        _refuse(errno.EINVAL, f"slot id {region.slot & 0xFFFF}: ids end at {KVM_MEM_SLOTS_NUM}")
    if gpa + size >= _U64_END:
        _refuse(errno.EINVAL, f"guest_phys_addr {gpa:#x} + {size:#x}: wraps around 2**64")
    if size >> PAGE_SHIFT > KVM_MEM_MAX_NR_PAGES:
        _refuse(errno.EINVAL, f"memory_size {size:#x}: a slot has at most 2**31 - 1 pages")


# What the request asks of the slot that it names; None: what is already there.
def _kind_of_change(vm: Vm, region: UserMemoryRegion, old: Memslot | None) -> _Change | None:
    npages = region.memory_size >> PAGE_SHIFT
    if old is None:
        if vm.nr_memslot_pages + npages >= _U64_END:
            _refuse(errno.EINVAL, f"{vm.nr_memslot_pages:#x} pages in all slots + {npages:#x}: must fit in 64 bits")
        return _Change.CREATE
    if region.userspace_addr != old.userspace_addr:
        _refuse(errno.EINVAL, f"userspace_addr {region.userspace_addr:#x}: {old!r} keeps its own; delete it first")
    if npages != old.npages:
        _refuse(errno.EINVAL, f"memory_size {region.memory_size:#x}: {old!r} keeps its own; delete it first")
    if (region.flags ^ old.flags) & KVM_MEM_READONLY:
        _refuse(errno.EINVAL, f"flags {region.flags:#x}: READONLY of {old!r} cannot change; delete it first")
    if region.guest_phys_addr >> PAGE_SHIFT != old.base_gfn:
        return _Change.MOVE
    return _Change.FLAGS_ONLY if region.flags != old.flags else None


# ------------------------------------------------------------------------------------------- the update


# Make one change visible. slots_lock held; slots_arch_lock is taken here and released by each swap.
def _set_memslot(vm: Vm, old: Memslot | None, new: Memslot | None, change: _Change) -> None:
    either = new if new is not None else old
    if either is None:
        raise KvmBug(f"{change} without a slot")
    vm.slots_arch_lock.lock()
    # What the published set has when the change comes: old, or its INVALID copy.
    current = old
    if old is not None and change in (_Change.DELETE, _Change.MOVE):
        current = _invalidate_memslot(vm, old)
    try:
        _prepare_memory_region(vm, old, new, change)
    except KvmIoctlError:
        if change is _Change.MOVE:
            _activate_memslot(vm, either.as_id, current, old)
        else:
            vm.slots_arch_lock.unlock()
        raise
    vm.slots_of(either.as_id).inactive().replace(old, new)
    _activate_memslot(vm, either.as_id, current, new)
    _commit_memory_region(vm, old, new, change)


# Publish a copy of the slot that nobody can map or read through, and zap what was built on the slot. The inactive set
# keeps the slot itself.
def _invalidate_memslot(vm: Vm, old: Memslot) -> Memslot:
    invalid = old.copy()
    invalid.flags |= KVM_MEMSLOT_INVALID
    vm.slots_of(old.as_id).inactive().replace(old, invalid)
    _swap_active_memslots(vm, old.as_id)
    if vm.policy.slot_zap_all:
        zap.zap_all_fast(vm)
    else:
        gfnrange.zap_memslot(vm, old)
    vm.slots_arch_lock.lock()
    # The first shadow root may have given the published copy its arrays meanwhile.
    old.share_arch(invalid)
    return invalid


# Publish the inactive set, in which the change is made, and make it in the other one too.
def _activate_memslot(vm: Vm, as_id: int, old: Memslot | None, new: Memslot | None) -> None:
    _swap_active_memslots(vm, as_id)
    vm.slots_of(as_id).inactive().replace(old, new)


# Publish the inactive set of an address space. slots_arch_lock held on entry, released on return.
def _swap_active_memslots(vm: Vm, as_id: int) -> None:
    vm.slots_arch_lock.assert_held()
    active = vm.slots_of(as_id)
    old_generation = active.read_generation(vm.gate)
    if old_generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS:
        raise KvmBug(f"memslot update in address space {as_id} inside another: generation {old_generation:#x}")
    slots = active.inactive()
    slots.start_update(old_generation | KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS)
    # Publishing between a notifier's start and end would let the end look at other slots than the start did.
    vm.invalidation.lock_idle()
    vm.publish_slots(slots)
    vm.invalidation.unlock_idle()
    vm.slots_arch_lock.unlock()
    # From here on nobody uses the old set.
    vm.srcu.synchronize()
    generation = old_generation + KVM_ADDRESS_SPACE_NUM
    _memslots_updated(vm, generation)
    slots.set_generation(vm.gate, generation)


# Each address space counts in steps of their number, so its own part of the MMIO generation wraps to 0 by itself. MMIO
# sptes from the round before would look valid again: nothing of it may survive.
def _memslots_updated(vm: Vm, generation: int) -> None:
    if generation & MMIO_SPTE_GEN_MASK & ~(KVM_ADDRESS_SPACE_NUM - 1) == 0:
        zap.zap_all_fast(vm)
    requests.kick_all(vm)


# Give the slot that comes what it needs before anybody sees it.
def _prepare_memory_region(vm: Vm, old: Memslot | None, new: Memslot | None, change: _Change) -> None:
    if new is None:
        return
    try:
        _prepare_dirty_bitmap(vm, old, new)
        if change is _Change.FLAGS_ONLY and old is not None:
            new.share_arch(old)
            return
        if new.end_gfn - 1 > vm.max_gfn:
            _refuse(errno.EINVAL, f"last gfn {new.end_gfn - 1:#x}: the largest that can be mapped is {vm.max_gfn:#x}")
        _alloc_metadata(vm, new)
    except MemoryError as error:
        raise KvmIoctlError(errno.ENOMEM, f"ENOMEM: arrays for {new!r}: {error}") from None


# A slot that stays logged keeps its bitmap.
def _prepare_dirty_bitmap(vm: Vm, old: Memslot | None, new: Memslot) -> None:
    if not new.is_dirty_logged():
        new.use_dirty_bitmap_of(None)
    elif old is not None and old.dirty_array is not None:
        new.use_dirty_bitmap_of(old)
    else:
        new.alloc_dirty_bitmap(vm.is_log_initially_set())


# Fresh arrays, also for a slot that moves: their indices and alignment depend on the place.
def _alloc_metadata(vm: Vm, new: Memslot) -> None:
    if vm.has_rmaps():
        new.alloc_rmap()
    new.alloc_lpage_info(vm.small_arrays)
    if vm.is_write_tracking_enabled():
        new.alloc_write_track()


# Bring the counts in line and act on the flags.
def _commit_memory_region(vm: Vm, old: Memslot | None, new: Memslot | None, change: _Change) -> None:
    if change is _Change.DELETE and old is not None:
        vm.nr_memslot_pages -= old.npages
    elif change is _Change.CREATE and new is not None:
        vm.nr_memslot_pages += new.npages
    was_logged = old is not None and old.is_dirty_logged()
    is_logged = new is not None and new.is_dirty_logged()
    vm.nr_memslots_dirty_logging += is_logged - was_logged
    if not vm.n_requested_mmu_pages and change in (_Change.CREATE, _Change.DELETE):
        goal = max(vm.nr_memslot_pages // KVM_MEMSLOT_PAGES_TO_MMU_PAGES_RATIO, KVM_MIN_ALLOC_MMU_PAGES)
        zap.change_mmu_pages(vm, goal)
    # Other changes have no mappings to protect; a read-only slot never has writable ones.
    if change is not _Change.FLAGS_ONLY or new is None or new.is_readonly():
        return
    if is_logged:
        dirty.slot_log_enabled(vm, new)
    else:
        dirty.slot_log_disabled(vm, new)
