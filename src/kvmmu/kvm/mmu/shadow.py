# SPDX-License-Identifier: GPL-2.0-only
"""Shadow paging proper: getting the shadow page of a guest table, linking it, and ``fetch()``, which builds the way
down to a leaf as the guest's tables say. All under ``mmu_lock`` exclusive.

Reference: "Shadow pages" from lookup to link, "Page-fault pipeline" fetch.
"""

from __future__ import annotations

from ...addr import Gfn, Hpa, round_gfn
from ...errors import KvmBug
from ...page_types import INVALID_PAGE
from ..bits import KVM_REQ_MMU_FREE_OBSOLETE_ROOTS
from ..requests import flush_remote_tlbs, make_request
from ..vcpu import Vcpu
from .bits import PTE_PREFETCH_NUM
from .change import set_spte
from .fault import PageFault
from .gpte import gpte_access, gpte_to_gfn, protect_clean
from .hugepage import adjust, disallowed_adjust
from .leaf import Leaf, prefetch_direct, prefetch_one, set_leaf
from .mmutrace import trace_get_page, trace_spte_requested
from .nxpage import set_disallowed, track_possible
from .page import ShadowPage
from .pages import alloc_page, bucket_head, clear_flood_count, has_gptes, is_obsolete, sptep_index, sptep_to_sp
from .resync import is_invalid_gpte, sync_children, sync_page
from .role import (
    child_role,
    cpu_role_level,
    role_access,
    role_ad_disabled,
    role_direct,
    role_invalid,
    role_level,
)
from .shadowwalk import is_dummy_root, walk_level, walk_next, walk_sptep, walk_start
from .spte import is_large, is_shadow_present, make_nonleaf, spte_to_child
from .track import account_shadowed
from .unsync import is_unsync, leads_to_unsync, mark_unsync
from .verdict import RET_PF_RETRY, RET_PF_SPURIOUS
from .walker import GuestWalk, is_gpte_changed
from .zap import add_parent_pte, commit_zap, drop_parent_pte, prepare_zap, zap_pte


def find_page(vcpu: Vcpu, gfn: Gfn, role: int) -> ShadowPage | None:
    """The page of (gfn, role), transiently synced if it is unsync; None: there is none (any more)."""
    vm = vcpu.vm
    found = None
    invalid_list: list[ShadowPage] = []
    collisions = 0
    # Newest first. An obsolete page has the right key and content, but it waits for its last user to leave: whoever
    # asks now gets a page of today's generation. Zapping is put off to the end, because it unhashes, and the walk
    # stands there.
    sp = bucket_head(vm, gfn)
    while sp is not None:
        if is_obsolete(vm, sp):
            pass
        elif sp.gfn != gfn:
            collisions += 1
        elif sp.role != role:
            # A page about to be an upper table must not stay writable as somebody's level-1 table.
            if role_level(role) > 1 and is_unsync(vm, sp):
                prepare_zap(vm, sp, invalid_list)
        # Direct pages mirror nothing of the guest's, so there is nothing that could be stale.
        elif role_direct(role):
            found = sp
            break
        else:
            # The guest may have written the table since it was last read. Reading it now is enough for whoever links
            # the page; it stays unsync and writable, so the guest's next writes are free as well, until the guest
            # itself flushes.
            if is_unsync(vm, sp):
                ret = sync_page(vcpu, sp, invalid_list)
                if ret < 0:
                    break
                if ret > 0:
                    flush_remote_tlbs(vm)
            # Somebody walks it as a table: the writes counted so far were no sign that the page has become something
            # else.
            clear_flood_count(vm, sp)
            found = sp
            break
        sp = sp.hash_next
    if found is None:
        vm.stat.mmu_cache_miss += 1
    commit_zap(vm, invalid_list)
    if collisions > vm.stat.max_mmu_page_hash_collisions:
        vm.stat.max_mmu_page_hash_collisions = collisions
    return found


def get_page(vcpu: Vcpu, gfn: Gfn, role: int) -> ShadowPage:
    """The page of (gfn, role), made if need be."""
    vm = vcpu.vm
    sp = find_page(vcpu, gfn, role)
    created = sp is None
    if sp is None:
        sp = alloc_page(vm, gfn, role)
        if has_gptes(sp):
            account_shadowed(vm, sp)
    if vm.trace.on:
        trace_get_page(vm.trace, sp, created)
    return sp


def get_child(vcpu: Vcpu, sptep: Hpa, gfn: Gfn, direct: bool, access: int) -> ShadowPage | None:
    """The page to link at sptep; None if just that one is linked there already."""
    vm = vcpu.vm
    parent = sptep_to_sp(vm, sptep)
    if role_invalid(parent.role):
        raise KvmBug(f"a child of an invalid page is wanted: {parent!r}")
    role = child_role(parent.role, sptep_index(sptep), direct, access)
    spte = vm.memory.read_once(sptep)
    if is_shadow_present(spte) and not is_large(spte):
        child = sptep_to_sp(vm, spte_to_child(spte))
        if child.gfn == gfn and child.role == role:
            return None
    return get_page(vcpu, gfn, role)


def link_page(vcpu: Vcpu, sptep: Hpa, sp: ShadowPage) -> int:
    """Make the entry at sptep point to sp, replacing what is there (which needs a flush at once)."""
    vm = vcpu.vm
    if is_shadow_present(vm.memory.read_once(sptep)):
        zap_pte(vm, sptep_to_sp(vm, sptep), sptep)
        flush_remote_tlbs(vm)
    set_spte(vm, sptep, make_nonleaf(vm.fmt, sp.spt, role_ad_disabled(sp.role)))
    add_parent_pte(vm, sp, sptep)
    if leads_to_unsync(vm, sp):
        mark_unsync(vm, sptep)
    return 0


def validate_direct(vcpu: Vcpu, sptep: Hpa, access: int) -> int:
    """A direct child with other rights than the guest's huge page has now must go; it stays hashed."""
    vm = vcpu.vm
    spte = vm.memory.read_once(sptep)
    if not is_shadow_present(spte) or is_large(spte):
        return 0
    child = sptep_to_sp(vm, spte_to_child(spte))
    if role_access(child.role) != access:
        drop_parent_pte(vm, child, sptep)
        flush_remote_tlbs(vm)
    return 0


def fetch_tables(vcpu: Vcpu, fault: PageFault, gw: GuestWalk, step: int) -> int:
    """Link the pages of the guest's tables from step down to its leaf level. Returns the step there; 0: RETRY."""
    mem = vcpu.vm.memory
    while step:
        sptep = walk_sptep(step, fault.addr)
        clear_flood_count(vcpu.vm, sptep_to_sp(vcpu.vm, sptep))
        if walk_level(step) == gw.level:
            return step
        level = walk_level(step) - 1
        sp = get_child(vcpu, sptep, gw.table_gfn[level], False, gw.pt_access[level])
        if sp is not None and sp.unsync_children:
            sync_children(vcpu, sp, False)
        # The table below is protected now (or can be written only by leaving a trace): is the walk still true?
        if is_gpte_changed(vcpu, vcpu.mmu, gw, level):
            return 0
        if sp is not None:
            link_page(vcpu, sptep, sp)
            fault.nr_linked += 1
        if fault.write and gw.table_gfn[level] == fault.gfn:
            fault.write_fault_to_shadow_pgtable = True
        step = walk_next(step, mem.read_once(sptep))
    raise KvmBug(f"the shadow walk ended above the guest's leaf: {fault!r}")


def fetch_direct_tables(vcpu: Vcpu, fault: PageFault, access: int, step: int) -> int:
    """Below the guest's leaf, or for a direct MMU: link direct pages down to the goal level. Returns the step there."""
    vm = vcpu.vm
    mem = vm.memory
    while step:
        sptep = walk_sptep(step, fault.addr)
        if vm.policy.nx_huge_pages:
            disallowed_adjust(vm, fault, mem.read_once(sptep), walk_level(step))
        if walk_level(step) == fault.goal_level:
            return step
        if fault.validate_direct:
            validate_direct(vcpu, sptep, access)
        gfn = round_gfn(fault.gfn, walk_level(step))
        sp = get_child(vcpu, sptep, gfn, True, access)
        if sp is not None:
            link_page(vcpu, sptep, sp)
            fault.nr_linked += 1
            if fault.huge_page_disallowed:
                set_disallowed(vm, sp, True)
                if fault.req_level >= walk_level(step):
                    track_possible(vm, sp)
        step = walk_next(step, mem.read_once(sptep))
    raise KvmBug(f"the shadow walk ended above the goal level: {fault!r}")


def install(vcpu: Vcpu, fault: PageFault, leaf: Leaf, step: int) -> int:
    """Put the leaf of fault into the table in hand; the caller has set leaf.access."""
    sptep = walk_sptep(step, fault.addr)
    leaf.slot = fault.slot
    leaf.gfn = round_gfn(fault.gfn, walk_level(step))
    leaf.pfn = fault.pfn
    leaf.host_writable = fault.map_writable
    leaf.prefetch = fault.prefetch
    leaf.write_fault = fault.write
    verdict = set_leaf(vcpu, sptep_to_sp(vcpu.vm, sptep), sptep, leaf)
    fault.cause = leaf.cause
    return verdict


def fetch(vcpu: Vcpu, fault: PageFault, gw: GuestWalk, leaf: Leaf) -> int:
    """Build the way to the page that gw found and map it with leaf.access. Returns a verdict."""
    vm = vcpu.vm
    mmu = vcpu.mmu
    top = cpu_role_level(mmu.cpu_role)
    if top == 3:
        top = 2
    if is_gpte_changed(vcpu, vcpu.mmu, gw, top) or mmu.root_hpa == INVALID_PAGE:
        return RET_PF_RETRY
    if is_dummy_root(vm, mmu.root_hpa):
        make_request(vcpu, KVM_REQ_MMU_FREE_OBSOLETE_ROOTS)
        return RET_PF_RETRY
    step = walk_start(vcpu, mmu.root_hpa, fault.addr)
    if step == 0:
        return RET_PF_RETRY
    step = fetch_tables(vcpu, fault, gw, step)
    if step == 0:
        return RET_PF_RETRY
    adjust(vcpu, fault)
    if vm.trace.on:
        trace_spte_requested(vm.trace, fault.gfn, fault.pfn, fault.goal_level)
    step = fetch_direct_tables(vcpu, fault, leaf.access, step)
    verdict = install(vcpu, fault, leaf, step)
    if verdict != RET_PF_SPURIOUS:
        prefetch_gptes(vcpu, gw, walk_sptep(step, fault.addr), leaf)
    return verdict


def prefetch_gptes(vcpu: Vcpu, gw: GuestWalk, sptep: Hpa, leaf: Leaf) -> int:
    """Map the neighbours of sptep that the guest has mapped and used; the first that cannot be ends it."""
    vm = vcpu.vm
    sp = sptep_to_sp(vm, sptep)
    if role_level(sp.role) > 1 or vm.invalidation.is_in_progress():
        return 0
    if role_direct(sp.role):
        return prefetch_direct(vcpu, sp, sptep)
    mem = vm.memory
    fmt = vcpu.mmu.gpte
    leaf.host_writable = True
    leaf.prefetch = True
    leaf.write_fault = False
    place: Hpa = sptep & ~63
    for i in range(PTE_PREFETCH_NUM):
        if place != sptep and not is_shadow_present(mem.read_once(place)):
            gpte = gw.prefetch_ptes[i]
            if is_invalid_gpte(vcpu, gpte):
                zap_pte(vm, sp, place)
                return 0
            leaf.gfn = gpte_to_gfn(gpte)
            leaf.access = protect_clean(fmt, role_access(sp.role) & gpte_access(fmt, gpte), gpte)
            if not prefetch_one(vcpu, sp, place, leaf):
                return 0
        place += 8
    return 0
