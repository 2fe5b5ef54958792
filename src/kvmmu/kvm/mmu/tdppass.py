# SPDX-License-Identifier: GPL-2.0-only
"""Passes of the TDP MMU over ranges of gfns: zap leaves, age, write-protect, collapse.

``gfnrange`` calls each where it goes to the reverse maps of the legacy MMU too. A pass visits every root that maps the
slot's address space, in the order of the list, and its entries ascending; each change tells its event, what is as it
should be tells nothing. Under ``mmu_lock`` held shared a lost race looks at the entry again. Only what a docstring says
yields does. Reference: "TDP MMU", zap, collapse, dirty / wrprot; "Fast page fault, access tracking", aging.
"""

from __future__ import annotations

from ...addr import Gfn
from ...hw.bits import PT_WRITABLE
from ...page_types import ONE
from ..memslots import Memslot
from ..vm import Vm
from .bits import KVM_MAX_HUGEPAGE_LEVEL, SHADOW_NONPRESENT_VALUE
from .hugepage import max_mapping_level
from .mmutrace import trace_tdp_mmu_spte_changed
from .page import ShadowPage
from .pages import is_invalid_root
from .role import role_smm
from .spte import (
    ad_enabled,
    is_accessed,
    is_last,
    is_shadow_present,
    is_writable,
    mark_for_access_track,
    spte_to_pfn,
)
from .tdpchange import clear_bits, set_spte, set_spte_atomic, write_spte, zap_spte_atomic
from .tdpiter import TdpIter, make_iter, yield_walk
from .tdproots import next_root

# Passes that no filter by address space restricts.
_ANY_SPACE = -1


def is_leaf(it: TdpIter) -> bool:
    """Whether the entry in hand maps a page."""
    return is_shadow_present(it.old_spte) and is_last(it.old_spte, it.level)


# Zap.


def zap_leafs_below(vm: Vm, root: ShadowPage, start_gfn: Gfn, end_gfn: Gfn, flush: bool) -> bool:
    """Zap the leaves below ``root`` that map ``[start_gfn, end_gfn)``, tables stay; ``mmu_lock`` exclusive, yielded.

    ``flush``: one is pending already. Return whether one is when this is done; a yield flushes what is pending.
    """
    end: Gfn = min(end_gfn, vm.max_gfn + 1)
    it = make_iter()
    vm.rcu.read_lock()
    it.start(vm.memory, root, 1, start_gfn)
    while it.valid and it.gfn < end:
        if yield_walk(vm, it, flush):
            flush = False
        elif is_leaf(it):
            set_spte(vm, it, SHADOW_NONPRESENT_VALUE)
            # No vCPU runs with an invalid root, and the next one that is loaded comes with a flush.
            if not is_invalid_root(vm, root):
                flush = True
        it.next(vm.memory)
    vm.rcu.read_unlock()
    return flush


def zap_leafs(vm: Vm, start_gfn: Gfn, end_gfn: Gfn, flush: bool) -> bool:
    """:func:`zap_leafs_below` every valid root, of all address spaces."""
    vm.mmu_lock.assert_exclusive()
    root = next_root(vm, None, _ANY_SPACE, True)
    while root is not None:
        flush = zap_leafs_below(vm, root, start_gfn, end_gfn, flush)
        root = next_root(vm, root, _ANY_SPACE, True)
    return flush


def unmap_leafs(vm: Vm, slot: Memslot, start_gfn: Gfn, end_gfn: Gfn, flush: bool) -> bool:
    """:func:`zap_leafs_below` every root of the address space of ``slot``; invalid ones, which still map, too."""
    vm.mmu_lock.assert_exclusive()
    root = next_root(vm, None, slot.as_id, False)
    while root is not None:
        flush = zap_leafs_below(vm, root, start_gfn, end_gfn, flush)
        root = next_root(vm, root, slot.as_id, False)
    return flush


# Age.


def age_leafs(vm: Vm, slot: Memslot, start_gfn: Gfn, end_gfn: Gfn) -> bool:
    """Make the leaves that map ``[start_gfn, end_gfn)`` of ``slot`` not accessed; whether any was.

    ``mmu_lock`` exclusive; all roots, nothing yields. The caller tells the host, or flushes.
    """
    return age_roots(vm, slot, start_gfn, end_gfn, False)


def is_any_young(vm: Vm, slot: Memslot, start_gfn: Gfn, end_gfn: Gfn) -> bool:
    """Whether any leaf that maps ``[start_gfn, end_gfn)`` of ``slot`` was accessed; as above, and nothing changes."""
    return age_roots(vm, slot, start_gfn, end_gfn, True)


def age_roots(vm: Vm, slot: Memslot, start_gfn: Gfn, end_gfn: Gfn, only_test: bool) -> bool:
    """Age (or only look at) the leaves of every root of the address space of ``slot``; ``mmu_lock`` exclusive."""
    vm.mmu_lock.assert_exclusive()
    young = False
    root = vm.tdp_mmu_roots.link_next
    while root is not vm.tdp_mmu_roots:
        if role_smm(root.role) == slot.as_id:
            if age_below(vm, root, start_gfn, end_gfn, only_test):
                young = True
        root = root.link_next
    return young


def age_below(vm: Vm, root: ShadowPage, start_gfn: Gfn, end_gfn: Gfn, only_test: bool) -> bool:
    """Age (or only look at) the leaves of one root."""
    young = False
    it = make_iter()
    vm.rcu.read_lock()
    it.start(vm.memory, root, 1, start_gfn)
    while it.valid and it.gfn < end_gfn:
        if is_leaf(it) and is_accessed(vm.fmt, it.old_spte):
            young = True
            if not only_test:
                age_leaf(vm, it)
        it.next(vm.memory)
    vm.rcu.read_unlock()
    return young


def age_leaf(vm: Vm, it: TdpIter) -> int:
    """Make the accessed leaf in hand not accessed: A is cleared, or without A bits the leaf made inaccessible."""
    if ad_enabled(it.old_spte) and vm.fmt.accessed_mask:
        clear_bits(vm, it, vm.fmt.accessed_mask)
        return 0
    # The W that tracking takes away is all that says of such a page that it may be dirty.
    if is_writable(it.old_spte):
        vm.frames.mark_dirty(spte_to_pfn(it.old_spte))
    new_spte = mark_for_access_track(vm.fmt, it.old_spte)
    it.old_spte = write_spte(vm, it.sptep, it.old_spte, new_spte, it.level)
    if vm.trace.on:
        trace_tdp_mmu_spte_changed(vm.trace, it.as_id, it.gfn, it.level, it.old_spte, new_spte)
    return 0


# Write-protect.


def write_protect_leafs(vm: Vm, slot: Memslot, min_level: int) -> bool:
    """Take W (not MMU-writable) from every leaf of ``slot`` of ``min_level`` and above; whether any changed.

    ``mmu_lock`` shared, and yielded.
    """
    vm.mmu_lock.assert_shared()
    changed = False
    root = next_root(vm, None, slot.as_id, True)
    while root is not None:
        if write_protect_below(vm, root, slot.base_gfn, slot.end_gfn, min_level):
            changed = True
        root = next_root(vm, root, slot.as_id, True)
    return changed


def write_protect_below(vm: Vm, root: ShadowPage, start_gfn: Gfn, end_gfn: Gfn, min_level: int) -> bool:
    """:func:`write_protect_leafs` for the range and one root."""
    changed = False
    it = make_iter()
    vm.rcu.read_lock()
    it.start(vm.memory, root, min_level, start_gfn)
    while it.valid and it.gfn < end_gfn:
        if yield_walk(vm, it, False) or not is_leaf(it) or not is_writable(it.old_spte):
            it.next(vm.memory)
        elif set_spte_atomic(vm, it, it.old_spte & ~PT_WRITABLE):
            changed = True
            it.next(vm.memory)
    vm.rcu.read_unlock()
    return changed


def write_protect_mask(vm: Vm, slot: Memslot, base_gfn: Gfn, mask: int) -> int:
    """Take W from the 4K leaves of the gfns whose bit is set in ``mask`` (bit 0: ``base_gfn``); ``mmu_lock`` exclusive.

    The frames are marked dirty: what was written before is in the log, not in the new word.
    """
    vm.mmu_lock.assert_exclusive()
    root = vm.tdp_mmu_roots.link_next
    while root is not vm.tdp_mmu_roots:
        if role_smm(root.role) == slot.as_id and not is_invalid_root(vm, root):
            write_protect_mask_below(vm, root, base_gfn, mask)
        root = root.link_next
    return 0


def write_protect_mask_below(vm: Vm, root: ShadowPage, base_gfn: Gfn, mask: int) -> int:
    """:func:`write_protect_mask` for one root."""
    first = 0
    while (mask >> first) & ONE == 0:
        first += 1
    it = make_iter()
    vm.rcu.read_lock()
    it.start(vm.memory, root, 1, base_gfn + first)
    while it.valid and it.gfn < base_gfn + 64 and mask:
        if is_leaf(it) and it.level == 1 and (mask >> (it.gfn - base_gfn)) & ONE:
            mask &= ~(ONE << (it.gfn - base_gfn))
            if is_writable(it.old_spte):
                clear_bits(vm, it, PT_WRITABLE)
                vm.frames.mark_dirty(spte_to_pfn(it.old_spte))
        it.next(vm.memory)
    vm.rcu.read_unlock()
    return 0


def write_protect_leaf(vm: Vm, slot: Memslot, gfn: Gfn, min_level: int) -> bool:
    """Take W and MMU-writable from the leaf of ``min_level`` or above that maps ``gfn``; whether TLBs must be flushed.

    ``mmu_lock`` exclusive. The fast page fault cannot undo it.
    """
    vm.mmu_lock.assert_exclusive()
    changed = False
    root = vm.tdp_mmu_roots.link_next
    while root is not vm.tdp_mmu_roots:
        if role_smm(root.role) == slot.as_id and not is_invalid_root(vm, root):
            if write_protect_leaf_below(vm, root, gfn, min_level):
                changed = True
        root = root.link_next
    return changed


def write_protect_leaf_below(vm: Vm, root: ShadowPage, gfn: Gfn, min_level: int) -> bool:
    """:func:`write_protect_leaf` for one root."""
    changed = False
    it = make_iter()
    vm.rcu.read_lock()
    it.start(vm.memory, root, min_level, gfn)
    while it.valid and it.gfn <= gfn:
        if is_leaf(it):
            new_spte = it.old_spte & ~(PT_WRITABLE | vm.fmt.mmu_writable_mask)
            if new_spte == it.old_spte:
                break
            set_spte(vm, it, new_spte)
            changed = True
        it.next(vm.memory)
    vm.rcu.read_unlock()
    return changed


# Collapse.


def collapse_tables(vm: Vm, slot: Memslot) -> int:
    """Zap each table of ``slot`` that a huge page could replace, a flush each; ``mmu_lock`` shared, and yielded."""
    vm.mmu_lock.assert_shared()
    root = next_root(vm, None, slot.as_id, True)
    while root is not None:
        collapse_below(vm, root, slot)
        root = next_root(vm, root, slot.as_id, True)
    return 0


def collapse_below(vm: Vm, root: ShadowPage, slot: Memslot) -> int:
    """:func:`collapse_tables` for one root."""
    it = make_iter()
    vm.rcu.read_lock()
    it.start(vm.memory, root, 2, slot.base_gfn)
    while it.valid and it.gfn < slot.end_gfn:
        if yield_walk(vm, it, False) or not is_collapsible(vm, it, slot) or zap_spte_atomic(vm, it):
            it.next(vm.memory)
    vm.rcu.read_unlock()
    return 0


def is_collapsible(vm: Vm, it: TdpIter, slot: Memslot) -> bool:
    """Whether the entry in hand links a table in whose place ``slot`` and host allow a huge page."""
    if it.level > KVM_MAX_HUGEPAGE_LEVEL or not is_shadow_present(it.old_spte) or is_last(it.old_spte, it.level):
        return False
    # First this: a block that begins before the slot has no place in its arrays.
    if not slot.contains(it.gfn):
        return False
    return max_mapping_level(vm, slot, it.gfn, KVM_MAX_HUGEPAGE_LEVEL) >= it.level
