# SPDX-License-Identifier: GPL-2.0-only
"""Zapping: how shadow pages go. Prepare (unlink, mark invalid), flush, free; never in another order.

``prepare_zap()`` unlinks and puts pages on a list, ``commit_zap()`` flushes remote TLBs (which also waits for lockless
walkers) and frees what is on it. Above these: recycling of the oldest pages at the page limit, the fast zap of
everything by generation, and the slow one at the end of the VM.
Reference: "Shadow pages" from zap_pte to zap_all.
"""

from __future__ import annotations

from errno import ENOSPC

from ...addr import Hpa
from ...errors import KvmBug
from ...page_types import PAGE_SIZE
from ..bits import KVM_REQ_MMU_FREE_OBSOLETE_ROOTS
from ..requests import flush_remote_tlbs, make_all_cpus_request
from ..vm import Vm
from .bits import KVM_MIN_FREE_MMU_PAGES, KVM_REFILL_PAGES, SHADOW_NONPRESENT_VALUE
from .change import clear_no_track
from .mmutrace import trace_prepare_zap_page, trace_zap_all_fast
from .nxpage import forget, is_disallowed
from .page import ShadowPage
from .pages import free_page, has_gptes, is_obsolete, list_del, mark_invalid, next_valid_gen, sptep_to_sp
from .rmap import drop_spte, pte_list_add, pte_list_first, pte_list_remove, pte_list_sptep
from .role import role_invalid, role_level
from .spte import is_last, is_mmio, is_shadow_present, spte_to_child
from .tdproots import invalidate_all_roots, zap_all_roots, zap_invalidated_roots
from .track import unaccount_shadowed
from .unsync import UnsyncWalk, is_unsync, unlink_unsync_page, unsync_walk


def add_parent_pte(vm: Vm, sp: ShadowPage, sptep: Hpa) -> int:
    """The entry at ``sptep`` links ``sp`` from now on."""
    vm.mmu_lock.assert_exclusive()
    sp.parent_ptes = pte_list_add(vm, sp.parent_ptes, sptep)
    return 0


def drop_parent_pte(vm: Vm, sp: ShadowPage, sptep: Hpa) -> int:
    """Unlink sp from the entry at sptep; sp itself stays as it is."""
    vm.mmu_lock.assert_exclusive()
    sp.parent_ptes = pte_list_remove(vm, sp.parent_ptes, sptep)
    return clear_no_track(vm, sptep)


def zap_pte(vm: Vm, sp: ShadowPage, sptep: Hpa) -> int:
    """Whatever sptep holds, it holds nothing afterwards. A child table stays active, hashed and reusable."""
    vm.mmu_lock.assert_exclusive()
    spte = vm.memory.read_once(sptep)
    if is_shadow_present(spte):
        if is_last(spte, role_level(sp.role)):
            drop_spte(vm, sptep)
        else:
            drop_parent_pte(vm, sptep_to_sp(vm, spte_to_child(spte)), sptep)
    elif is_mmio(vm.fmt, spte):
        clear_no_track(vm, sptep)
    return 0


def zap_unsync_children(vm: Vm, sp: ShadowPage, invalid_list: list[ShadowPage]) -> int:
    """Prepare-zap every unsync page below sp; the tables in between only lose their bits."""
    if role_level(sp.role) == 1 or sp.unsync_children == 0:
        return 0
    nr = 0
    walk = UnsyncWalk()
    while unsync_walk(vm, sp, walk):
        i = walk.first()
        while i < len(walk.pages):
            child = walk.pages[i]
            prepare_zap(vm, child, invalid_list)
            walk.clear_parents(vm)
            nr += 1
            i = walk.next(i)
    return nr


def unlink_children(vm: Vm, sp: ShadowPage) -> int:
    """Empty the table of ``sp``: leaves are dropped, child tables only unlinked."""
    mem = vm.memory
    sptep = sp.spt
    end = sptep + PAGE_SIZE
    while sptep < end:
        if mem.read_once(sptep) != SHADOW_NONPRESENT_VALUE:
            zap_pte(vm, sp, sptep)
        sptep += 8
    return 0


def unlink_parents(vm: Vm, sp: ShadowPage) -> int:
    """Clear every entry that links ``sp``."""
    while sp.parent_ptes:
        drop_parent_pte(vm, sp, pte_list_sptep(vm, pte_list_first(sp.parent_ptes)))
    return 0


def prepare_zap(vm: Vm, sp: ShadowPage, invalid_list: list[ShadowPage]) -> int:
    """Unlink ``sp`` and put it on ``invalid_list`` (a root in use only leaves the active list and turns invalid).

    ``mmu_lock`` exclusive; the caller commits the list. Return the number of pages put on the list; more than ``sp``
    itself (see ``is_unstable()``) means that an iteration of the active list must start again.
    """
    vm.mmu_lock.assert_exclusive()
    if vm.trace.on:
        trace_prepare_zap_page(vm.trace, sp)
    vm.stat.mmu_shadow_zapped += 1
    nr = zap_unsync_children(vm, sp, invalid_list)
    unlink_children(vm, sp)
    unlink_parents(vm, sp)
    if not role_invalid(sp.role) and has_gptes(sp):
        unaccount_shadowed(vm, sp)
    if is_unsync(vm, sp):
        unlink_unsync_page(vm, sp)
    zapped_root = False
    if sp.root_count == 0:
        nr += 1
        if not role_invalid(sp.role):
            list_del(sp)
        invalid_list.append(sp)
        vm.n_used_mmu_pages -= 1
    else:
        zapped_root = not is_obsolete(vm, sp)
        if not role_invalid(sp.role):
            list_del(sp)
    if is_disallowed(vm, sp):
        forget(vm, sp)
    mark_invalid(vm, sp)
    if zapped_root:
        make_all_cpus_request(vm, KVM_REQ_MMU_FREE_OBSOLETE_ROOTS)
    return nr


def is_unstable(sp: ShadowPage, nr: int) -> bool:
    """Whether a ``prepare_zap(sp)`` that returned ``nr`` zapped more than ``sp``, so that saved list positions died."""
    return nr > (0 if sp.root_count else 1)


def commit_zap(vm: Vm, invalid_list: list[ShadowPage]) -> int:
    """Flush remote TLBs, then free every page on ``invalid_list`` and empty it; ``mmu_lock`` exclusive."""
    vm.mmu_lock.assert_exclusive()
    if not invalid_list:
        return 0
    flush_remote_tlbs(vm)
    i = len(invalid_list)
    while i:
        i -= 1
        sp = invalid_list[i]
        if not role_invalid(sp.role) or sp.root_count:
            raise KvmBug(f"freeing a page in use: {sp!r}")
        free_page(vm, sp)
    invalid_list.clear()
    return 0


def flush_or_zap(vm: Vm, invalid_list: list[ShadowPage], flush: bool) -> int:
    """One flush serves both needs."""
    if invalid_list:
        return commit_zap(vm, invalid_list)
    if flush:
        flush_remote_tlbs(vm)
    return 0


def available_pages(vm: Vm) -> int:
    """Pages that may still be made before the limit."""
    if vm.n_max_mmu_pages > vm.n_used_mmu_pages:
        return vm.n_max_mmu_pages - vm.n_used_mmu_pages
    return 0


def zap_oldest(vm: Vm, nr_to_zap: int) -> int:
    """Zap from the tail of the active list, in order of creation, sparing roots in use; ``mmu_lock`` exclusive.

    Return how many.
    """
    vm.mmu_lock.assert_exclusive()
    invalid_list: list[ShadowPage] = []
    total = 0
    sp = vm.active_mmu_pages.link_prev
    while sp is not None and sp is not vm.active_mmu_pages:
        older = sp.link_prev
        if sp.root_count == 0:
            nr = prepare_zap(vm, sp, invalid_list)
            total += nr
            if total >= nr_to_zap:
                break
            if nr > 1:
                older = vm.active_mmu_pages.link_prev
        sp = older
    commit_zap(vm, invalid_list)
    vm.stat.mmu_recycled += total
    return total


def make_pages_available(vm: Vm) -> int:
    """Before a fault links tables: recycle when fewer than 5 pages are free. 0 or a negative errno."""
    available = available_pages(vm)
    if available >= KVM_MIN_FREE_MMU_PAGES:
        return 0
    zap_oldest(vm, KVM_REFILL_PAGES - available)
    if available_pages(vm) == 0:
        return -ENOSPC
    return 0


def change_mmu_pages(vm: Vm, goal: int) -> None:
    """Set the limit of shadow pages to ``goal``, zapping the oldest down to it; takes ``mmu_lock`` exclusively."""
    vm.mmu_lock.write_lock()
    if vm.n_used_mmu_pages > goal:
        zap_oldest(vm, vm.n_used_mmu_pages - goal)
        goal = vm.n_used_mmu_pages
    vm.n_max_mmu_pages = goal
    vm.mmu_lock.write_unlock()


def zap_all_fast(vm: Vm) -> None:
    """Make every page obsolete by toggling the generation, then zap them, oldest first; then what TDP roots hold.

    Caller holds ``slots_lock``; takes ``mmu_lock`` exclusively, then shared. Roots in use are freed by their vCPUs.
    """
    vm.slots_lock.assert_held()
    vm.mmu_lock.write_lock()
    if vm.trace.on:
        trace_zap_all_fast(vm.trace, vm.mmu_valid_gen, vm.n_used_mmu_pages)
    next_valid_gen(vm)
    # Before the request, and under the same lock: who serves it must find the roots invalid.
    invalidate_all_roots(vm)
    make_all_cpus_request(vm, KVM_REQ_MMU_FREE_OBSOLETE_ROOTS)
    zap_obsolete_pages(vm)
    vm.mmu_lock.write_unlock()
    zap_invalidated_roots(vm)


def zap_obsolete_pages(vm: Vm) -> None:
    """New pages are made at the head, so the obsolete ones are the tail; stop at the first of today."""
    invalid_list: list[ShadowPage] = []
    sp = vm.active_mmu_pages.link_prev
    while sp is not None and sp is not vm.active_mmu_pages and is_obsolete(vm, sp):
        older = sp.link_prev
        if role_invalid(sp.role):
            raise KvmBug(f"an invalid page is on the active list: {sp!r}")
        if is_unstable(sp, prepare_zap(vm, sp, invalid_list)):
            older = vm.active_mmu_pages.link_prev
        sp = older
    commit_zap(vm, invalid_list)


def zap_all(vm: Vm) -> None:
    """Zap every active page, newest first, and all TDP roots: the end of the VM; takes ``mmu_lock`` exclusively."""
    vm.mmu_lock.write_lock()
    invalid_list: list[ShadowPage] = []
    sp = vm.active_mmu_pages.link_next
    while sp is not None and sp is not vm.active_mmu_pages:
        newer = sp.link_next
        if is_unstable(sp, prepare_zap(vm, sp, invalid_list)):
            newer = vm.active_mmu_pages.link_next
        sp = newer
    commit_zap(vm, invalid_list)
    zap_all_roots(vm)
    vm.mmu_lock.write_unlock()
