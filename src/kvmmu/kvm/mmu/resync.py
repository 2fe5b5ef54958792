# SPDX-License-Identifier: GPL-2.0-only
"""Coming back in sync: making sptes agree with guest entries that were written while nobody looked.

A whole page is synced when its table is used again after the guest's flush, one entry when the guest invalidates one
address. What changed is dropped or rebuilt with less; nothing new is mapped here.
Reference: "Unsync / sync", "Roots, CR3, PCID, invalidation instructions" invalidate_addr.
"""

from __future__ import annotations

from ...addr import Address, Gfn, Gva, Hpa, gfn_to_gpa
from ...page_types import INVALID_PAGE, U64
from ..requests import flush_remote_tlbs_gfn
from ..vcpu import Vcpu
from ..vm import Vm
from .bits import (
    ROLE_ACCESS_MASK,
    ROLE_LEVEL_MASK,
    ROLE_PASSTHROUGH,
    ROLE_QUADRANT_MASK,
    SHADOW_NONPRESENT_VALUE,
)
from .change import clear_no_track, update_spte
from .context import is_rsvd_bits_set
from .gpte import gpte_access, gpte_to_gfn, is_present_gpte, protect_clean
from .leaf import make_leaf, make_spte
from .mmio import clear_any_gva, clear_gva, mark_mmio_spte
from .page import ShadowPage
from .pages import root_to_sp, set_translation, sp_access, sp_gfn, sptep_to_sp
from .rmap import drop_spte
from .role import cpu_role_level, role_access, role_direct, role_has_4_byte_gpte, role_quadrant
from .shadowwalk import walk_level, walk_next, walk_sptep, walk_start
from .spte import is_host_writable, is_mmio, mmio_gfn, spte_to_child, spte_to_pfn
from .track import protect_gfn
from .unsync import UnsyncWalk, is_unsync, leads_to_unsync, unlink_unsync_page, unsync_walk
from .walker import gpte_place, read_gpte
from .zap import flush_or_zap, prepare_zap, zap_pte

_SYNC_ROLE_IGNORED = ROLE_LEVEL_MASK | ROLE_ACCESS_MASK | ROLE_QUADRANT_MASK | ROLE_PASSTHROUGH
_FAILED = -1


def is_syncable(vcpu: Vcpu, sp: ShadowPage) -> bool:
    """Whether the current MMU context may interpret the guest table that sp mirrors."""
    if role_direct(sp.role) or not vcpu.mmu.can_sync:
        return False
    return (sp.role ^ vcpu.mmu.root_role) & ~_SYNC_ROLE_IGNORED == 0


def is_invalid_gpte(vcpu: Vcpu, gpte: int) -> bool:
    """Whether a level-1 gpte may not be mapped ahead of an access: not present, not accessed, reserved bits."""
    if not is_present_gpte(vcpu.mmu.gpte, gpte) or gpte & vcpu.mmu.gpte.accessed_mask != vcpu.mmu.gpte.accessed_mask:
        return True
    return is_rsvd_bits_set(vcpu.mmu, gpte, 1)


def gpte_table(vcpu: Vcpu, sp: ShadowPage) -> Address:
    """Where the gptes that level-1 page sp mirrors begin; INVALID_PAGE: they cannot be read."""
    offset = role_quadrant(sp.role) << 11 if role_has_4_byte_gpte(sp.role) else 0
    return gpte_place(vcpu, gfn_to_gpa(sp.gfn) + offset)


def sync_spte(vcpu: Vcpu, sp: ShadowPage, index: int, table: Hpa) -> int:
    """Make one entry agree with its gpte. 0: it does; 1: it changed so that TLBs must be flushed; -1: unreadable."""
    vcpu.vm.mmu_lock.assert_exclusive()
    vm = vcpu.vm
    sptep: Hpa = sp.spt + (index << 3)
    # An empty entry stands for any gpte: a fault will read it. So only what is there can be wrong.
    spte = vm.memory.read_once(sptep)
    if spte == SHADOW_NONPRESENT_VALUE:
        return 0
    if table == INVALID_PAGE:
        return _FAILED
    size = 4 if role_has_4_byte_gpte(sp.role) else 8
    gpte = read_gpte(vcpu, table + index * size, size)
    # What the guest took away, or never used (A clear: kvm may not map it, for nobody would set A later).
    fmt = vcpu.mmu.gpte
    if is_invalid_gpte(vcpu, gpte):
        drop_spte(vm, sptep)
        return 1
    gfn = gpte_to_gfn(gpte)
    # No TLB holds an MMIO entry, so no flush; written anew even if unchanged, which renews its generation.
    access = protect_clean(fmt, role_access(sp.role) & gpte_access(fmt, gpte), gpte)
    if is_mmio(vm.fmt, spte):
        if gfn != mmio_gfn(vm.fmt, spte):
            clear_no_track(vm, sptep)
        else:
            mark_mmio_spte(vcpu, sptep, gfn, access)
        return 0
    # Another page: its pfn is unknown, and asking the host needs what this path must not do (sleep, drop the lock).
    if gfn != sp_gfn(vm, sp, index):
        drop_spte(vm, sptep)
        return 1
    # Compared with the rights that the gpte gave last time, not with the spte, which may have lost W for other reasons.
    if access == sp_access(vm, sp, index):
        return 0
    set_translation(vm, sp, index, gfn, access)
    return sync_access(vcpu, sp, sptep, gfn, access)


def sync_access(vcpu: Vcpu, sp: ShadowPage, sptep: Hpa, gfn: Gfn, access: int) -> int:
    """Rebuild the leaf at sptep for other rights to the same page, never letting another table go out of sync."""
    old = vcpu.vm.memory.read_once(sptep)
    leaf = make_leaf()
    leaf.slot = vcpu.gfn_to_memslot(gfn)
    leaf.gfn = gfn
    leaf.pfn = spte_to_pfn(old)
    leaf.access = access
    leaf.host_writable = is_host_writable(vcpu.vm.fmt, old)
    # W comes back only if the gfn is no guest table: a sync that lets others go out of sync might never end.
    leaf.can_unsync = False
    return update_spte(vcpu.vm, sptep, make_spte(vcpu, sp, leaf, old))


def sync_page(vcpu: Vcpu, sp: ShadowPage, invalid_list: list[ShadowPage]) -> int:
    """Make every entry of sp agree. 0 or 1 as sync_spte(); -1: sp was zapped, to invalid_list."""
    vcpu.vm.mmu_lock.assert_exclusive()
    failed = not is_syncable(vcpu, sp)
    flush = 0
    if not failed:
        mem = vcpu.vm.memory
        table = gpte_table(vcpu, sp)
        for index in range(512):
            if mem.read_once(sp.spt + (index << 3)) == SHADOW_NONPRESENT_VALUE:
                continue
            ret = sync_spte(vcpu, sp, index, table)
            if ret < 0:
                failed = True
            else:
                flush |= ret
    if failed:
        prepare_zap(vcpu.vm, sp, invalid_list)
        return _FAILED
    return flush


def protect_walked(vcpu: Vcpu, walk: UnsyncWalk) -> bool:
    """Write-protect the guest table of every unsync page found; returns whether TLBs must be flushed."""
    done = False
    i = walk.first()
    while i < len(walk.pages):
        sp = walk.pages[i]
        slot = vcpu.gfn_to_memslot(sp.gfn)
        if slot is not None and protect_gfn(vcpu.vm, slot, sp.gfn, 1):
            done = True
        i = walk.next(i)
    return done


def sync_children(vcpu: Vcpu, parent: ShadowPage, may_yield: bool) -> int:
    """Sync every unsync page below parent; mmu_lock exclusive. First no guest may write them, then they are read.

    may_yield: the lock may be yielded between two rounds, which flush before.
    """
    vm = vcpu.vm
    vm.mmu_lock.assert_exclusive()
    if parent.unsync_children == 0:
        return 0
    invalid_list: list[ShadowPage] = []
    walk = UnsyncWalk()
    flush = False
    while unsync_walk(vm, parent, walk):
        # Protect all, flush once, then read: a write by another vCPU is either seen by the read or faults and waits.
        # The other order would lose what is written between the read and the protection.
        if protect_walked(vcpu, walk):
            flush_or_zap(vm, invalid_list, True)
            flush = False
        i = walk.first()
        while i < len(walk.pages):
            sp = walk.pages[i]
            unlink_unsync_page(vm, sp)
            if sync_page(vcpu, sp, invalid_list) > 0:
                flush = True
            # Marks go only now, and only upwards while nothing else below is out of sync: a walk that was cut short by
            # a full array still finds the rest in the next round.
            walk.clear_parents(vm)
            i = walk.next(i)
        if may_yield and vm.gate.must_yield(vm.mmu_lock):
            flush_or_zap(vm, invalid_list, flush)
            flush = False
            vm.mmu_lock.relax()
    return flush_or_zap(vm, invalid_list, flush)


def is_unsync_root(vm: Vm, root: Hpa) -> bool:
    """Whether ``root`` is or leads to an unsync page; tested without the lock, after the guest's writes."""
    sp = root_to_sp(vm, root)
    # The guest's stores to its tables were made before it asked for this: what made them possible is seen now.
    vm.gate.smp_rmb()
    return sp is not None and leads_to_unsync(vm, sp)


def sync_roots(vcpu: Vcpu) -> int:
    """Bring everything below the current root in sync (``kvm_mmu_sync_roots``); takes ``mmu_lock`` exclusively."""
    mmu = vcpu.mmu
    vm = vcpu.vm
    if role_direct(mmu.root_role) or mmu.root_hpa == INVALID_PAGE:
        return 0
    clear_any_gva(vcpu)
    if cpu_role_level(mmu.cpu_role) >= 4:
        if is_unsync_root(vm, mmu.root_hpa):
            vm.mmu_lock.write_lock()
            sync_children(vcpu, sptep_to_sp(vm, mmu.root_hpa), True)
            vm.mmu_lock.write_unlock()
        return 0
    vm.mmu_lock.write_lock()
    for i in range(4):
        entry = vm.memory.read_once(mmu.pae_root + (i << 3))
        if entry:
            sync_children(vcpu, sptep_to_sp(vm, spte_to_child(entry)), True)
    vm.mmu_lock.write_unlock()
    return 0


def invalidate_root(vcpu: Vcpu, addr: Gva, root: Hpa) -> int:
    """Sync the one spte of addr on every unsync page of the way down from root."""
    vm = vcpu.vm
    if root == INVALID_PAGE:
        return 0
    vm.mmu_lock.write_lock()
    step = walk_start(vcpu, root, addr)
    while step:
        sptep = walk_sptep(step, addr)
        sp = sptep_to_sp(vm, sptep)
        if is_unsync(vm, sp):
            ret = sync_spte(vcpu, sp, (sptep >> 3) & 511, gpte_table(vcpu, sp))
            if ret < 0:
                zap_pte(vm, sp, sptep)
            if ret:
                flush_remote_tlbs_gfn(vm, sp_gfn(vm, sp, (sptep >> 3) & 511), walk_level(step))
        # Nothing below is out of sync, so what is below agrees with the guest's tables by write protection.
        if sp.unsync_children == 0:
            break
        step = walk_next(step, vm.memory.read_once(sptep))
    vm.mmu_lock.write_unlock()
    return 0


def is_noncanonical(vm: Vm, addr: Gva) -> bool:
    """Whether the host's widest linear addresses (48 bits, 57 with 5 levels) do not reach ``addr``."""
    top = addr >> (56 if vm.tdp_root_level == 5 else 47)
    return top != 0 and top != U64 >> (56 if vm.tdp_root_level == 5 else 47)


def invalidate_addr(vcpu: Vcpu, addr: Gva, roots: int) -> int:
    """Forget stale translations of ``addr`` under the selected ``roots`` (``kvm_mmu_invalidate_addr``).

    A non-canonical address is ignored. Takes ``mmu_lock`` exclusively for shadow paging.
    """
    if is_noncanonical(vcpu.vm, addr):
        return 0
    vcpu.vm.vendor.flush_tlb_gva(vcpu, addr)
    if not vcpu.mmu.can_sync:
        return 0
    clear_gva(vcpu, addr)
    if roots & 1:
        invalidate_root(vcpu, addr, vcpu.mmu.root_hpa)
    for i in range(3):
        if (roots >> (i + 1)) & 1:
            invalidate_root(vcpu, addr, vcpu.mmu.prev_hpa[i])
    return 0
