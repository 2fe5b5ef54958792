# SPDX-License-Identifier: GPL-2.0-only
"""Ranges of gfns, between those who speak of them (the host's notifier, dirty logging, slot changes) and kvm's tables.

Each pass goes to the rmaps of the shadow pages, if there are any, then to the roots of the TDP MMU; that of a slot
which goes also to the pages that mirror tables in it. A *notifier* pass comes with ``mmu_lock`` held exclusively,
because its caller has more to do under it; it yields the lock all the same when others wait for it, with what it
zapped flushed before. A *slot* pass takes the lock itself, in the mode that each kind of table
needs. The pass over a mask of 64 pages comes with the lock held, as the dirty log's reader holds it from word to word;
its write protection goes to the TDP MMU first.
Reference: "MMU notifiers", handlers; "Dirty logging"; "Huge pages and the NX mitigation", collapse.
"""

from __future__ import annotations

from ...addr import Gfn
from ...page_types import ENTRIES, LEVEL_BITS, ONE
from ..bits import KVM_ADDRESS_SPACE_NUM
from ..memslots import Memslot
from ..requests import flush_remote_tlbs_memslot, flush_remote_tlbs_range
from ..vm import Vm
from .bits import KVM_MAX_HUGEPAGE_LEVEL
from .hugepage import max_mapping_level
from .page import ShadowPage
from .pages import first_gfn_sp, next_gfn_sp, sp_gfn, sptep_to_sp
from .rmap import (
    drop_spte,
    pte_list_first,
    pte_list_next,
    pte_list_sptep,
    rmap_age,
    rmap_write_protect,
    zap_rmap,
)
from .role import role_direct, role_level, role_smm
from .spte import is_last, is_shadow_present
from .tdppass import (
    age_leafs,
    collapse_tables,
    is_any_young,
    unmap_leafs,
    write_protect_leafs,
    write_protect_mask,
    zap_leafs,
)
from .tdpsplit import split_leafs
from .zap import flush_or_zap, prepare_zap


def unmap_gfn_range(vm: Vm, slot: Memslot, start_gfn: Gfn, end_gfn: Gfn) -> bool:
    """Zap the leaves of every level that map ``[start_gfn, end_gfn)`` of ``slot``; ``mmu_lock`` held exclusively.

    Return whether TLBs must be flushed before the lock is dropped.
    """
    vm.mmu_lock.assert_exclusive()
    flush = unmap_rmaps(vm, slot, start_gfn, end_gfn) if slot.rmap_array is not None else False
    return unmap_leafs(vm, slot, start_gfn, end_gfn, flush)


def age_gfn_range(vm: Vm, slot: Memslot, start_gfn: Gfn, end_gfn: Gfn) -> bool:
    """Make the leaves that map ``[start_gfn, end_gfn)`` of ``slot`` not accessed; ``mmu_lock`` held exclusively.

    Return whether any was accessed since it was last aged. No flush is needed for the structure's sake.
    """
    vm.mmu_lock.assert_exclusive()
    young = age_rmaps(vm, slot, start_gfn, end_gfn, False) if slot.rmap_array is not None else False
    return age_leafs(vm, slot, start_gfn, end_gfn) or young


def is_young_gfn_range(vm: Vm, slot: Memslot, start_gfn: Gfn, end_gfn: Gfn) -> bool:
    """Whether any leaf that maps ``[start_gfn, end_gfn)`` of ``slot`` was accessed; ``mmu_lock`` held exclusively."""
    vm.mmu_lock.assert_exclusive()
    if slot.rmap_array is not None and age_rmaps(vm, slot, start_gfn, end_gfn, True):
        return True
    return is_any_young(vm, slot, start_gfn, end_gfn)


def unmap_rmaps(vm: Vm, slot: Memslot, start_gfn: Gfn, end_gfn: Gfn) -> bool:
    """:func:`unmap_gfn_range` over the rmaps of ``slot``; yields ``mmu_lock`` when others wait, after a flush."""
    flush = False
    is_sparse = end_gfn - start_gfn > (vm.n_used_mmu_pages + 1) * ENTRIES
    for level in range(1, KVM_MAX_HUGEPAGE_LEVEL + 1):
        at = slot.offset[level] + slot.index(start_gfn, level)
        last = slot.offset[level] + slot.index(end_gfn - 1, level)
        if is_sparse:
            for mapped in mapped_rmaps(vm, slot, level, at, last):
                if zap_rmap(vm, slot, mapped):
                    flush = True
                if vm.gate.must_yield(vm.mmu_lock):
                    flush = yield_pass(vm, slot, start_gfn, level, mapped, flush)
            continue
        while at <= last:
            if zap_rmap(vm, slot, at):
                flush = True
            if vm.gate.must_yield(vm.mmu_lock):
                flush = yield_pass(vm, slot, start_gfn, level, at, flush)
            at += 1
    return flush


def yield_pass(vm: Vm, slot: Memslot, start_gfn: Gfn, level: int, at: int, flush: bool) -> bool:
    """Drop ``mmu_lock`` and take it again behind rmap ``at`` of ``level``, in a pass that began at ``start_gfn``.

    ``flush`` says that there is something to flush, which is done before. Return that nothing is left of it: False.
    """
    if flush:
        # To the end of the block in hand; the kernel names only the first gfn of it.
        shift = LEVEL_BITS * (level - 1)
        end_gfn = ((slot.base_gfn >> shift) + at - slot.offset[level] + 1) << shift
        flush_remote_tlbs_range(vm, start_gfn, end_gfn - start_gfn)
    vm.mmu_lock.relax()
    return False


def zap_gfn_range(vm: Vm, start_gfn: Gfn, end_gfn: Gfn) -> None:
    """Zap the leaves that map ``[start_gfn, end_gfn)``, in all address spaces, as if the host took the pages back.

    Takes ``mmu_lock`` exclusively; reads the memslots inside ``srcu``. Faults on their way look again.
    """
    vm.srcu.read_lock()
    vm.mmu_lock.write_lock()
    vm.invalidation.begin()
    vm.invalidation.add_range(start_gfn, end_gfn)
    flush = False
    for as_id in range(KVM_ADDRESS_SPACE_NUM):
        for slot in vm.slots_of(as_id).slots:
            first = max(start_gfn, slot.base_gfn)
            end = min(end_gfn, slot.end_gfn)
            if slot.rmap_array is not None and first < end and unmap_rmaps(vm, slot, first, end):
                flush = True
    if zap_leafs(vm, start_gfn, end_gfn, flush):
        flush_remote_tlbs_range(vm, start_gfn, end_gfn - start_gfn)
    vm.invalidation.end()
    vm.mmu_lock.write_unlock()
    vm.srcu.read_unlock()


def zap_memslot(vm: Vm, slot: Memslot) -> None:
    """Zap what was built on ``slot``, which goes: the leaves that map it, the pages that mirror guest tables in it.

    Takes ``mmu_lock`` exclusively. Everything else stays, roots in use among it (without the quirk SLOT_ZAP_ALL).
    """
    vm.mmu_lock.write_lock()
    invalid_list: list[ShadowPage] = []
    flush = unmap_gfn_range(vm, slot, slot.base_gfn, slot.end_gfn)
    # As in the kernel, by gfn and not by page: the order is that of the guest's memory.
    if vm.n_used_mmu_pages:
        gfn: Gfn = slot.base_gfn
        while gfn < slot.end_gfn:
            sp = first_gfn_sp(vm, gfn)
            while sp is not None:
                following = sp.hash_next
                prepare_zap(vm, sp, invalid_list)
                sp = next_gfn_sp(vm, following, gfn)
            gfn += 1
    flush_or_zap(vm, invalid_list, flush)
    vm.mmu_lock.write_unlock()


def mapped_rmaps(vm: Vm, slot: Memslot, level: int, first: int, last: int) -> list[int]:
    """Numbers, ascending, of the rmaps ``first`` to ``last`` of ``slot``, all of ``level``, that have entries.

    They are found from the leaves: what is not mapped costs nothing. ``mmu_lock`` held exclusively.
    """
    vm.mmu_lock.assert_exclusive()
    found = set()
    sp = vm.active_mmu_pages.link_next
    while sp is not vm.active_mmu_pages:
        if role_level(sp.role) == level and role_smm(sp.role) == slot.as_id:
            for index in range(ENTRIES):
                spte = vm.memory.read_once(sp.spt + (index << 3))
                if is_shadow_present(spte) and is_last(spte, level):
                    gfn = sp_gfn(vm, sp, index)
                    if slot.contains(gfn):
                        at = slot.offset[level] + slot.index(gfn, level)
                        if first <= at <= last:
                            found.add(at)
        sp = sp.link_next
    return sorted(found)


def write_protect_slot(vm: Vm, slot: Memslot) -> bool:
    """Take W (not MMU-writable) from every leaf of ``slot``.

    Takes ``mmu_lock`` exclusively where there are rmaps, then shared for the TDP MMU. Return whether TLBs must be
    flushed; it may be done after the lock, see "What must be flushed when".
    """
    flush = False
    if slot.rmap_array is not None:
        vm.mmu_lock.write_lock()
        flush = write_protect_rmaps(vm, slot)
        vm.mmu_lock.write_unlock()
    if vm.policy.tdp_mmu:
        vm.mmu_lock.read_lock()
        if write_protect_leafs(vm, slot, 1):
            flush = True
        vm.mmu_lock.read_unlock()
    return flush


def split_slot(vm: Vm, slot: Memslot) -> None:
    """Split every huge page of ``slot`` to 4K; takes ``mmu_lock`` shared, and yields it. Only the TDP MMU does that."""
    if vm.policy.tdp_mmu:
        vm.mmu_lock.read_lock()
        split_leafs(vm, slot, slot.base_gfn, slot.end_gfn, 1)
        vm.mmu_lock.read_unlock()


def split_gfn_range(vm: Vm, slot: Memslot, start_gfn: Gfn, end_gfn: Gfn) -> int:
    """Split the huge pages that map ``[start_gfn, end_gfn)`` of ``slot`` to 4K; ``mmu_lock`` exclusive, and yielded."""
    vm.mmu_lock.assert_exclusive()
    if vm.policy.tdp_mmu:
        split_leafs(vm, slot, start_gfn, end_gfn, 1)
    return 0


def collapse_slot(vm: Vm, slot: Memslot) -> bool:
    """Zap what of ``slot`` a larger page could replace: leaves of shadow pages, whole tables of the TDP MMU.

    Takes ``mmu_lock`` exclusively where there are rmaps, then shared for the TDP MMU. What went is no longer in any
    TLB. Return whether leaves of shadow pages went since the lock was last yielded.
    """
    changed = False
    if slot.rmap_array is not None:
        vm.mmu_lock.write_lock()
        changed = zap_collapsible(vm, slot)
        if changed:
            flush_remote_tlbs_memslot(vm, slot)
        vm.mmu_lock.write_unlock()
    if vm.policy.tdp_mmu:
        vm.mmu_lock.read_lock()
        collapse_tables(vm, slot)
        vm.mmu_lock.read_unlock()
    return changed


def write_protect_masked(vm: Vm, slot: Memslot, base_gfn: Gfn, mask: int) -> int:
    """Take W from the 4K leaves of the gfns whose bit is set in ``mask`` (bit 0: ``base_gfn``); the caller flushes.

    ``mmu_lock`` held exclusively. Larger leaves are left alone: a logged slot has none that can be written, unless its
    log began with every page written; those are protected first (``dirty.protect_again``).
    """
    vm.mmu_lock.assert_exclusive()
    write_protect_mask(vm, slot, base_gfn, mask)
    if slot.rmap_array is None:
        return 0
    for i in range(64):
        if (mask >> i) & ONE:
            gfn: Gfn = base_gfn + i
            rmap_write_protect(vm, slot.rmap[slot.offset[1] + slot.index(gfn, 1)], False)
    return 0


# The passes over rmaps.


def age_rmaps(vm: Vm, slot: Memslot, start_gfn: Gfn, end_gfn: Gfn, only_test: bool) -> bool:
    """:func:`age_gfn_range` over the rmaps of ``slot``; ``only_test`` changes nothing, and stops at the first hit."""
    young = False
    for level in range(1, KVM_MAX_HUGEPAGE_LEVEL + 1):
        at = slot.offset[level] + slot.index(start_gfn, level)
        last = slot.offset[level] + slot.index(end_gfn - 1, level)
        while at <= last:
            if slot.rmap[at] and rmap_age(vm, slot.rmap[at], only_test):
                if only_test:
                    return True
                young = True
            at += 1
    return young


def write_protect_rmaps(vm: Vm, slot: Memslot) -> bool:
    """:func:`write_protect_slot` over the rmaps of ``slot``, lock held."""
    flush = False
    for level in range(1, KVM_MAX_HUGEPAGE_LEVEL + 1):
        at = slot.offset[level]
        end = at + slot.nr_entries[level]
        while at < end:
            if slot.rmap[at] and rmap_write_protect(vm, slot.rmap[at], False):
                flush = True
            # TLBs are flushed when all is done: nothing that went from here is used for something else meanwhile.
            if vm.gate.must_yield(vm.mmu_lock):
                vm.mmu_lock.relax()
            at += 1
    return flush


def zap_one_collapsible(vm: Vm, slot: Memslot, at: int) -> bool:
    """Zap the first leaf of one rmap that a larger page could replace; False: there is none (any more)."""
    place = pte_list_first(slot.rmap[at])
    while place:
        sptep = pte_list_sptep(vm, place)
        sp = sptep_to_sp(vm, sptep)
        if role_direct(sp.role) and slot.contains(sp.gfn):
            if role_level(sp.role) < max_mapping_level(vm, slot, sp.gfn, KVM_MAX_HUGEPAGE_LEVEL):
                drop_spte(vm, sptep)
                return True
        place = pte_list_next(vm, place)
    return False


def zap_collapsible(vm: Vm, slot: Memslot) -> bool:
    """:func:`collapse_slot` over the rmaps of ``slot``, lock held; the caller flushes if this says so."""
    flush = False
    for level in range(1, KVM_MAX_HUGEPAGE_LEVEL):
        at = slot.offset[level]
        end = at + slot.nr_entries[level]
        while at < end:
            while zap_one_collapsible(vm, slot, at):
                flush = True
            if vm.gate.must_yield(vm.mmu_lock):
                flush = yield_pass(vm, slot, slot.base_gfn, level, at, flush)
            at += 1
    return flush
