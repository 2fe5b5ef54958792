# SPDX-License-Identifier: GPL-2.0-only
"""The door through which every spte of the legacy MMU changes: set, update, clear.

What the hardware may change behind kvm (A, D, a lockless fix) is exchanged, not overwritten, and what the old word
knew of the page (accessed, dirty) is handed to the frame. ``mmu_lock`` exclusive throughout.
Reference: "Installing SPTEs", low-level writes.
"""

from __future__ import annotations

from ...addr import Hpa, hpa_to_pfn
from ...errors import KvmBug
from ...page_types import U64
from ..vm import Vm
from .bits import SHADOW_NONPRESENT_VALUE
from .role import role_level
from .spte import (
    ad_enabled,
    check_writable_triple,
    describe_spte,
    is_accessed,
    is_dirty,
    is_legal_triple,
    is_mmu_writable,
    is_shadow_present,
    is_volatile,
    is_writable,
    mark_for_access_track,
    spte_to_pfn,
)


def count_pages(vm: Vm, level: int, nr: int) -> int:
    """pages_4k, pages_2m, pages_1g by nr, which may be negative."""
    if level == 1:
        vm.stat.pages_4k += nr
    elif level == 2:
        vm.stat.pages_2m += nr
    else:
        vm.stat.pages_1g += nr
    return 0


def set_spte(vm: Vm, sptep: Hpa, new_spte: int) -> int:
    """Nonpresent to present, or to an MMIO spte."""
    vm.mmu_lock.assert_exclusive()
    old = vm.memory.read_once(sptep)
    if is_shadow_present(old):
        raise KvmBug(f"set over a present spte at {sptep:#x}: {describe_spte(old, vm.fmt, 1)} -> {new_spte:#x}")
    vm.memory.write_once(sptep, new_spte)
    return 0


def update_spte_no_track(vm: Vm, sptep: Hpa, new_spte: int) -> int:
    """Present to present of the same pfn, or a first install of a leaf; returns the old word.

    An illegal writable triple is a bug of kvm (the kernel looks at updates alone; first installs too is ours).
    """
    vm.mmu_lock.assert_exclusive()
    if not is_legal_triple(vm.fmt, new_spte):
        check_writable_triple(vm.fmt, new_spte)
    old = vm.memory.read_once(sptep)
    if not is_shadow_present(old):
        vm.memory.write_once(sptep, new_spte)
        return old
    if is_volatile(vm.fmt, old):
        old = vm.memory.xchg(sptep, new_spte)
    else:
        vm.memory.write_once(sptep, new_spte)
    if spte_to_pfn(old) != spte_to_pfn(new_spte):
        raise KvmBug(f"pfn changed in place at {sptep:#x}: {old:#x} -> {new_spte:#x}")
    return old


def update_spte(vm: Vm, sptep: Hpa, new_spte: int) -> bool:
    """As above, with the page told what was lost; returns whether TLBs must be flushed before mmu_lock is dropped."""
    fmt = vm.fmt
    old = update_spte_no_track(vm, sptep, new_spte)
    if not is_shadow_present(old):
        return False
    flush = is_mmu_writable(fmt, old) and not is_writable(new_spte)
    if is_accessed(fmt, old) and not is_accessed(fmt, new_spte):
        flush = True
        vm.frames.mark_accessed(spte_to_pfn(old))
    if is_dirty(fmt, old) and not is_dirty(fmt, new_spte):
        flush = True
        vm.frames.mark_dirty(spte_to_pfn(old))
    return flush


def age_spte(vm: Vm, sptep: Hpa, spte: int) -> int:
    """Make the accessed leaf ``spte`` not accessed: A is cleared, or without A bits the leaf made inaccessible."""
    vm.mmu_lock.assert_exclusive()
    fmt = vm.fmt
    if ad_enabled(spte) and fmt.accessed_mask:
        vm.memory.fetch_and(sptep, ~fmt.accessed_mask & U64)
        return 0
    # The W that tracking takes away is all that says of such a page that it may be dirty.
    if is_writable(spte):
        vm.frames.mark_dirty(spte_to_pfn(spte))
    update_spte_no_track(vm, sptep, mark_for_access_track(fmt, spte))
    return 0


def clear_track_bits(vm: Vm, sptep: Hpa) -> int:
    """A leaf goes: store the nonpresent value, account, hand A and D to the page. Returns the old word."""
    vm.mmu_lock.assert_exclusive()
    fmt = vm.fmt
    old = vm.memory.read_once(sptep)
    if is_shadow_present(old) and is_volatile(fmt, old):
        old = vm.memory.xchg(sptep, SHADOW_NONPRESENT_VALUE)
    else:
        vm.memory.write_once(sptep, SHADOW_NONPRESENT_VALUE)
    if not is_shadow_present(old):
        return old
    sp = vm.frames.owner(hpa_to_pfn(sptep))
    count_pages(vm, role_level(sp.role), -1)
    if is_accessed(fmt, old):
        vm.frames.mark_accessed(spte_to_pfn(old))
    if is_dirty(fmt, old):
        vm.frames.mark_dirty(spte_to_pfn(old))
    return old


def clear_no_track(vm: Vm, sptep: Hpa) -> int:
    """A nonleaf or an MMIO spte goes."""
    vm.mmu_lock.assert_exclusive()
    vm.memory.write_once(sptep, SHADOW_NONPRESENT_VALUE)
    return 0
