# SPDX-License-Identifier: GPL-2.0-only
"""Write tracking: which gfns hold guest tables that kvm mirrors, so that no spte may let the guest write them.

Tables above level 1 are counted per gfn and always protected; level-1 tables are protected when they are mirrored and
may go out of sync later (``unsync``). Either way no large page may cover the gfn.
Reference: "Shadow pages" (account_shadowed), "Write tracking and emulated writes to guest tables".
"""

from __future__ import annotations

from ...addr import Gfn
from ...errors import KvmBug
from ..memslots import Memslot, Memslots
from ..requests import flush_remote_tlbs, flush_remote_tlbs_gfn
from ..vm import Vm
from .page import ShadowPage
from .pages import slot_of_sp
from .rmap import write_protect_gfn
from .role import role_level


def count_lpage(slot: Memslot, gfn: Gfn, nr: int) -> int:
    """One more (or less) reason not to map gfn with 2M or 1G."""
    slot.disallow_lpage[slot.offset[2] + slot.index(gfn, 2)] += nr
    slot.disallow_lpage[slot.offset[3] + slot.index(gfn, 3)] += nr
    return 0


def add_gfn(vm: Vm, slot: Memslot, gfn: Gfn) -> int:
    """Track writes to gfn: count, forbid large pages, protect what maps it now."""
    at = slot.index(gfn, 1)
    if slot.gfn_write_track[at] == 65535:
        raise KvmBug(f"write tracking of gfn {gfn:#x}: more than 65535 pages")
    slot.gfn_write_track[at] += 1
    count_lpage(slot, gfn, 1)
    if write_protect_gfn(vm, slot, gfn, 1):
        flush_remote_tlbs(vm)
    return 0


def remove_gfn(vm: Vm, slot: Memslot, gfn: Gfn) -> int:
    """Undo one ``add_gfn()``; what was protected stays so until it is written."""
    if slot.gfn_write_track[slot.index(gfn, 1)] == 0:
        raise KvmBug(f"write tracking of gfn {gfn:#x} ends more often than it began")
    slot.gfn_write_track[slot.index(gfn, 1)] -= 1
    count_lpage(slot, gfn, -1)
    return 0


def is_write_tracked(vm: Vm, gfn: Gfn) -> bool:
    """Whether ``gfn`` holds a tracked table in any address space; ``mmu_lock`` held, or a retry will follow."""
    for as_id in range(2):
        slots: Memslots = vm.memslots[as_id]
        slot = slots.find(gfn)
        if slot is not None and slot.write_track_array is not None and slot.gfn_write_track[slot.index(gfn, 1)]:
            return True
    return False


def account_shadowed(vm: Vm, sp: ShadowPage) -> int:
    """A guest table at ``sp.gfn`` is mirrored from now on; the count, tested without the lock, comes first."""
    vm.indirect_shadow_pages += 1
    slot = slot_of_sp(vm, sp, sp.gfn)
    if slot is None:
        raise KvmBug(f"shadow page without a slot: {sp!r}")
    if role_level(sp.role) > 1:
        return add_gfn(vm, slot, sp.gfn)
    count_lpage(slot, sp.gfn, 1)
    if write_protect_gfn(vm, slot, sp.gfn, 1):
        flush_remote_tlbs_gfn(vm, sp.gfn, 1)
    return 0


def unaccount_shadowed(vm: Vm, sp: ShadowPage) -> int:
    """Undo ``account_shadowed()``: the guest table at ``sp.gfn`` is no longer mirrored by ``sp``."""
    vm.indirect_shadow_pages -= 1
    slot = slot_of_sp(vm, sp, sp.gfn)
    if slot is None:
        raise KvmBug(f"shadow page without a slot: {sp!r}")
    if role_level(sp.role) > 1:
        return remove_gfn(vm, slot, sp.gfn)
    return count_lpage(slot, sp.gfn, -1)
