# SPDX-License-Identifier: GPL-2.0-only
"""Which shadow pages exist: the hash by gfn, the active list, their frames, and the way from an spte to its page.

Reference: "Data structures" (kvm_mmu_page), "Shadow pages" lookup and alloc.
"""

from __future__ import annotations

from ...addr import Address, Gfn, Hpa, gfn_to_gpa, gpa_to_gfn, hpa_to_pfn, pfn_to_hpa
from ...page_types import ENTRIES, INVALID_PAGE, NOTHING, U64
from ..memslots import Memslot
from ..vm import Vm
from .bits import ACC_ALL, NO_PAGE, ROLE_INVALID, SHADOW_NONPRESENT_VALUE
from .page import ShadowPage, make_page
from .role import role_access, role_direct, role_invalid, role_level, role_passthrough, role_smm

_GOLDEN_RATIO_64 = 0x61C8_8646_80B5_83EB


def hash_bucket(gfn: Gfn) -> int:
    """Bucket of ``gfn``: the top 12 bits of its product with the 64-bit golden ratio."""
    return ((gfn * _GOLDEN_RATIO_64) & U64) >> 52


def sptep_to_sp(vm: Vm, sptep: Hpa) -> ShadowPage:
    """The page whose table holds ``sptep`` (``page_private`` of its frame)."""
    sp: ShadowPage = vm.frames.owner(hpa_to_pfn(sptep))
    return sp


def sptep_index(sptep: Hpa) -> int:
    """Index of ``sptep`` in its table, 0 to 511."""
    return (sptep >> 3) & 511


def root_to_sp(vm: Vm, root: Hpa) -> ShadowPage | None:
    """The shadow page of ``root``; None for a special table, the dummy root, or no root."""
    if root == INVALID_PAGE:
        return None
    sp: ShadowPage | None = vm.frames.owner(hpa_to_pfn(root))
    return sp


def is_obsolete(vm: Vm, sp: ShadowPage) -> bool:
    """Zapped while in use, or made before the last fast zap-all; needs no lock."""
    if vm.gate.armed:
        vm.gate.announce("read", sp, "role")
    if role_invalid(sp.role):
        return True
    # The TDP MMU knows no generations: its roots turn invalid.
    if sp.is_tdp:
        return False
    if vm.gate.armed:
        vm.gate.announce("read", vm, "mmu_valid_gen")
    return sp.mmu_valid_gen != vm.mmu_valid_gen


def is_invalid_root(vm: Vm, root: ShadowPage) -> bool:
    """Whether the TDP MMU's ``root`` may not be taken any more; ``mmu_lock`` held."""
    if vm.gate.armed:
        vm.gate.announce("read", root, "role")
    return role_invalid(root.role)


def mark_invalid(vm: Vm, sp: ShadowPage) -> int:
    """``sp`` is zapped, and may live on as a root only; ``mmu_lock`` exclusive."""
    vm.mmu_lock.assert_exclusive()
    if vm.gate.armed:
        vm.gate.announce("write", sp, "role")
    sp.role |= ROLE_INVALID
    return 0


def next_valid_gen(vm: Vm) -> int:
    """Make every page that exists obsolete; ``mmu_lock`` exclusive."""
    vm.mmu_lock.assert_exclusive()
    if vm.gate.armed:
        vm.gate.announce("write", vm, "mmu_valid_gen")
    vm.mmu_valid_gen = 0 if vm.mmu_valid_gen else 1
    return 0


def clear_flood_count(vm: Vm, sp: ShadowPage) -> int:
    """The guest uses this table: what was written to it so far is no flood; needs no lock."""
    if vm.gate.armed:
        vm.gate.announce("write", sp, "write_flooding_count")
    sp.write_flooding_count = 0
    return 0


def count_flood(vm: Vm, sp: ShadowPage) -> int:
    """One more emulated write to the table that ``sp`` mirrors; return how many since its last use."""
    if vm.gate.armed:
        vm.gate.announce("add", sp, "write_flooding_count")
    sp.write_flooding_count += 1
    return sp.write_flooding_count


def has_gptes(sp: ShadowPage) -> bool:
    """Whether ``sp`` mirrors a guest table."""
    return not role_direct(sp.role) and not role_passthrough(sp.role)


def sp_gfn(vm: Vm, sp: ShadowPage, index: int) -> Gfn:
    """The gfn that entry ``index`` of ``sp`` maps."""
    if role_passthrough(sp.role):
        return sp.gfn
    if sp.shadowed_translation:
        word: Address = vm.memory.read_once(sp.shadowed_translation + (index << 3))
        return gpa_to_gfn(word)
    return sp.gfn + (index << ((role_level(sp.role) - 1) * 9))


def sp_access(vm: Vm, sp: ShadowPage, index: int) -> int:
    """The access triple that the guest allows for entry ``index`` of ``sp``."""
    if sp.shadowed_translation:
        return vm.memory.read_once(sp.shadowed_translation + (index << 3)) & ACC_ALL
    return role_access(sp.role)


def set_translation(vm: Vm, sp: ShadowPage, index: int, gfn: Gfn, access: int) -> int:
    """Note what the guest's entry ``index`` translates to; nothing to note for a page without the array."""
    if sp.shadowed_translation:
        vm.memory.write_once(sp.shadowed_translation + (index << 3), gfn_to_gpa(gfn) | access)
    return 0


def bucket_head(vm: Vm, gfn: Gfn) -> ShadowPage | None:
    """Newest page in the bucket of ``gfn``, whatever its gfn; follow ``hash_next`` for the rest."""
    return vm.mmu_page_hash[hash_bucket(gfn)]


def next_gfn_sp(vm: Vm, sp: ShadowPage | None, gfn: Gfn) -> ShadowPage | None:
    """First of ``sp`` and its successors in the bucket that is valid, mirrors a guest table and has this gfn."""
    while sp is not None:
        if sp.gfn == gfn and has_gptes(sp) and not is_obsolete(vm, sp):
            return sp
        sp = sp.hash_next
    return None


def first_gfn_sp(vm: Vm, gfn: Gfn) -> ShadowPage | None:
    """Newest valid page that mirrors a guest table at ``gfn``; go on with ``next_gfn_sp(vm, sp.hash_next, gfn)``."""
    return next_gfn_sp(vm, vm.mmu_page_hash[hash_bucket(gfn)], gfn)


def alloc_page(vm: Vm, gfn: Gfn, role: int) -> ShadowPage:
    """Header, table filled with the nonpresent value, and a translation array for indirect pages up to level 3."""
    vm.mmu_lock.assert_exclusive()
    pfn = vm.frames.alloc()
    spt = pfn_to_hpa(pfn)
    vm.memory.fill_words(spt, SHADOW_NONPRESENT_VALUE, ENTRIES)
    sp = make_page(gfn, role, spt)
    if not role_direct(role) and role_level(role) <= 3:
        sp.shadowed_translation = pfn_to_hpa(vm.frames.alloc())
    vm.frames.set_owner(pfn, sp)
    sp.mmu_valid_gen = vm.mmu_valid_gen
    head = vm.active_mmu_pages
    newest = head.link_next
    sp.link_next = newest
    sp.link_prev = head
    newest.link_prev = sp
    head.link_next = sp
    vm.n_used_mmu_pages += 1
    bucket = hash_bucket(gfn)
    first = vm.mmu_page_hash[bucket]
    sp.hash_next = first
    if first is not None:
        first.hash_prev = sp
    vm.mmu_page_hash[bucket] = sp
    return sp


def list_del(sp: ShadowPage) -> int:
    """Take sp off the active list."""
    sp.link_prev.link_next = sp.link_next
    sp.link_next.link_prev = sp.link_prev
    sp.link_next = NO_PAGE
    sp.link_prev = NO_PAGE
    return 0


def free_page(vm: Vm, sp: ShadowPage) -> int:
    """Out of the hash, frames back. The caller has unlinked, flushed, and taken sp off the active list."""
    vm.mmu_lock.assert_exclusive()
    if sp.hash_prev is not None:
        sp.hash_prev.hash_next = sp.hash_next
    else:
        bucket = hash_bucket(sp.gfn)
        vm.mmu_page_hash[bucket] = sp.hash_next
    if sp.hash_next is not None:
        sp.hash_next.hash_prev = sp.hash_prev
    sp.hash_next = None
    sp.hash_prev = None
    vm.frames.set_owner(hpa_to_pfn(sp.spt), None)
    vm.frames.put(hpa_to_pfn(sp.spt))
    if sp.shadowed_translation:
        vm.frames.put(hpa_to_pfn(sp.shadowed_translation))
        sp.shadowed_translation = NOTHING
    return 0


def slot_of_sp(vm: Vm, sp: ShadowPage, gfn: Gfn) -> Memslot | None:
    """The slot that accounts for what sp does to gfn: always by the page's own address space."""
    return vm.gfn_to_memslot(gfn, role_smm(sp.role))
