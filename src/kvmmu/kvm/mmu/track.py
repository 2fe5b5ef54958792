# SPDX-License-Identifier: GPL-2.0-only
"""Write tracking: which gfns hold guest tables that kvm mirrors, so that no spte may let the guest write them.

Tables above level 1 are counted per gfn and always protected; level-1 tables are protected when they are mirrored and
may go out of sync later (``unsync``). Either way no large page may cover the gfn.
Reference: "Shadow pages" (account_shadowed), "Write tracking and emulated writes to guest tables".
"""

from __future__ import annotations

from ...addr import Gfn
from ...errors import KvmBug
from ..bits import KVM_ADDRESS_SPACE_NUM
from ..memslots import Memslot
from ..requests import flush_remote_tlbs, flush_remote_tlbs_gfn
from ..vm import Vm
from .page import ShadowPage
from .pages import slot_of_sp
from .rmap import write_protect_gfn
from .role import role_level
from .tdppass import write_protect_leaf


def count_lpage(slot: Memslot, gfn: Gfn, nr: int) -> int:
    """One more (or less) reason not to map gfn with 2M or 1G."""
    slot.disallow_lpage[slot.offset[2] + slot.index(gfn, 2)] += nr
    slot.disallow_lpage[slot.offset[3] + slot.index(gfn, 3)] += nr
    return 0


def change_write_track(vm: Vm, slot: Memslot, gfn: Gfn, nr: int) -> int:
    """The write-track count of ``gfn`` by ``nr`` (1 or -1); :class:`KvmBug` beyond 65535 or below 0."""
    at = slot.index(gfn, 1)
    count = slot.gfn_write_track[at] + nr
    if count < 0 or count > 65535:
        raise KvmBug(f"write tracking of gfn {gfn:#x}: {count} pages; a count has 16 bits and never ends below 0")
    if vm.gate.armed:
        vm.gate.announce("write", slot, ("gfn_write_track", at))
    slot.gfn_write_track[at] = count
    return 0


def protect_gfn(vm: Vm, slot: Memslot, gfn: Gfn, min_level: int) -> bool:
    """Take W and MMU-writable from what maps ``gfn`` of ``slot`` at ``min_level`` and above; ``mmu_lock`` exclusive.

    Return whether TLBs must be flushed before the lock is dropped.
    """
    vm.mmu_lock.assert_exclusive()
    flush = write_protect_gfn(vm, slot, gfn, min_level) if slot.rmap_array is not None else False
    if vm.policy.tdp_mmu and write_protect_leaf(vm, slot, gfn, min_level):
        return True
    return flush


def add_gfn(vm: Vm, slot: Memslot, gfn: Gfn) -> int:
    """Track writes to gfn: count, forbid large pages, protect what maps it now; ``mmu_lock`` exclusive."""
    vm.mmu_lock.assert_exclusive()
    change_write_track(vm, slot, gfn, 1)
    count_lpage(slot, gfn, 1)
    if protect_gfn(vm, slot, gfn, 1):
        flush_remote_tlbs(vm)
    return 0


def remove_gfn(vm: Vm, slot: Memslot, gfn: Gfn) -> int:
    """Undo one ``add_gfn()``; what was protected stays so until it is written; ``mmu_lock`` exclusive."""
    vm.mmu_lock.assert_exclusive()
    change_write_track(vm, slot, gfn, -1)
    count_lpage(slot, gfn, -1)
    return 0


def is_tracked_in(vm: Vm, slot: Memslot, gfn: Gfn) -> bool:
    """Whether ``slot``, which holds ``gfn``, counts a tracked table there."""
    if slot.write_track_array is None:
        return False
    if vm.gate.armed:
        vm.gate.announce("read", slot, ("gfn_write_track", slot.index(gfn, 1)))
    count: int = slot.gfn_write_track[slot.index(gfn, 1)]
    return count != 0


def is_write_tracked(vm: Vm, slot: Memslot | None, gfn: Gfn) -> bool:
    """Whether ``gfn``, which ``slot`` holds, is a tracked table in any address space.

    ``mmu_lock`` held, or a retry will follow. The slot in hand is not searched for again; that of the other address
    space is, and with None both are.
    """
    if slot is not None and is_tracked_in(vm, slot, gfn):
        return True
    for as_id in range(KVM_ADDRESS_SPACE_NUM):
        if slot is None or as_id != slot.as_id:
            other = vm.gfn_to_memslot(gfn, as_id)
            if other is not None and is_tracked_in(vm, other, gfn):
                return True
    return False


def is_anything_shadowed(vm: Vm) -> bool:
    """Whether kvm mirrors any guest table: without one, writes have no consequences; needs no lock."""
    if vm.gate.armed:
        vm.gate.announce("read", vm, "indirect_shadow_pages")
    return vm.indirect_shadow_pages != 0


def account_shadowed(vm: Vm, sp: ShadowPage) -> int:
    """A guest table at ``sp.gfn`` is mirrored from now on; the count, tested without the lock, comes first."""
    vm.mmu_lock.assert_exclusive()
    if vm.gate.armed:
        vm.gate.announce("write", vm, "indirect_shadow_pages")
    vm.indirect_shadow_pages += 1
    # An emulated write either sees the count, or was made before the guest's table is read again.
    vm.gate.smp_mb()
    slot = slot_of_sp(vm, sp, sp.gfn)
    if slot is None:
        raise KvmBug(f"shadow page without a slot: {sp!r}")
    if role_level(sp.role) > 1:
        return add_gfn(vm, slot, sp.gfn)
    count_lpage(slot, sp.gfn, 1)
    if protect_gfn(vm, slot, sp.gfn, 1):
        flush_remote_tlbs_gfn(vm, sp.gfn, 1)
    return 0


def unaccount_shadowed(vm: Vm, sp: ShadowPage) -> int:
    """Undo ``account_shadowed()``: the guest table at ``sp.gfn`` is no longer mirrored by ``sp``."""
    vm.mmu_lock.assert_exclusive()
    if vm.gate.armed:
        vm.gate.announce("write", vm, "indirect_shadow_pages")
    vm.indirect_shadow_pages -= 1
    slot = slot_of_sp(vm, sp, sp.gfn)
    if slot is None:
        raise KvmBug(f"shadow page without a slot: {sp!r}")
    if role_level(sp.role) > 1:
        return remove_gfn(vm, slot, sp.gfn)
    return count_lpage(slot, sp.gfn, -1)
