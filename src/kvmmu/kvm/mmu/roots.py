# SPDX-License-Identifier: GPL-2.0-only
"""Roots: making one for the guest's CR3, keeping the last three, dropping those that must not be used any more.

A root is a shadow page, or a table without one: the PAE root (four entries) and, for a CR3 outside every slot, the
dummy root (the zero page). Reference: "Roots, CR3, PCID, invalidation instructions".
"""

from __future__ import annotations

from ...addr import Gfn, Hpa, hpa_to_pfn, pfn_to_hpa
from ...errors import KvmBug
from ...hw.bits import PT_PRESENT
from ...page_types import ENTRIES, INVALID_PAGE, NOTHING, ONE
from ..bits import KVM_ADDRESS_SPACE_NUM, KVM_REQ_LOAD_MMU_PGD, KVM_REQ_MMU_SYNC, KVM_REQ_TLB_FLUSH_CURRENT
from ..requests import make_request
from ..vcpu import Vcpu
from ..vm import Vm
from .bits import KVM_MMU_NUM_PREV_ROOTS, KVM_MMU_ROOT_CURRENT, KVM_MMU_ROOTS_ALL
from .context import Mmu
from .gpte import gpte_to_gfn
from .mmio import clear_any_gva
from .page import ShadowPage
from .pagefault import topup_caches
from .pages import clear_flood_count, is_obsolete, root_to_sp
from .resync import is_unsync_root, sync_roots
from .role import cpu_role_level, role_direct, role_invalid, role_level, role_with_level, role_with_quadrant
from .shadow import get_page
from .shadowwalk import is_dummy_root, is_tdp_mmu_active
from .spte import spte_to_child
from .tdproots import drop_root, take_root
from .walker import guest_pgd, read_pdptr
from .zap import commit_zap, make_pages_available, prepare_zap


def create_mmu(vcpu: Vcpu) -> None:
    """Give a new vCPU its PAE root, a table of four entries, all absent."""
    vcpu.root_mmu.pae_root = pfn_to_hpa(vcpu.vm.frames.alloc())
    vcpu.vm.memory.fill_words(vcpu.root_mmu.pae_root, 0, ENTRIES)


def destroy_mmu(vcpu: Vcpu) -> None:
    """Free every root of a vCPU that goes, and its PAE root."""
    free_roots(vcpu.vm, vcpu.root_mmu, KVM_MMU_ROOTS_ALL)
    free_roots(vcpu.vm, vcpu.guest_mmu, KVM_MMU_ROOTS_ALL)
    vcpu.vm.frames.put(hpa_to_pfn(vcpu.root_mmu.pae_root))
    vcpu.root_mmu.pae_root = Hpa(0)


def alloc_root(vcpu: Vcpu, gfn: Gfn, quadrant: int, level: int) -> Hpa:
    """One more user of the page of (gfn, quadrant, level) as a root."""
    role = role_with_quadrant(role_with_level(vcpu.mmu.root_role, level), quadrant)
    sp = get_page(vcpu, gfn, role)
    sp.root_count += 1
    return sp.spt


def alloc_direct_roots(vcpu: Vcpu) -> int:
    """Make the root of a direct MMU: one page, or four of level 2 behind the PAE root; ``mmu_lock`` exclusive."""
    mmu = vcpu.mmu
    vm = vcpu.vm
    level = role_level(mmu.root_role)
    if level >= 4:
        mmu.root_hpa = alloc_root(vcpu, NOTHING, 0, level)
    else:
        for i in range(4):
            root = alloc_root(vcpu, i << 18, 0, 2)  # type: ignore[arg-type]  # the gfn of each GiB
            entry = root | PT_PRESENT | vm.fmt.me_value
            vm.memory.write_once(mmu.pae_root + (i << 3), entry)
        mmu.root_hpa = mmu.pae_root
    mmu.root_pgd = NOTHING
    return 0


def alloc_shadow_roots(vcpu: Vcpu) -> int:
    """Roots for the guest's CR3. 0 or a negative errno."""
    mmu = vcpu.mmu
    vm = vcpu.vm
    slots = vcpu.memslots()
    pgd = guest_pgd(vcpu, mmu)
    root_gfn = gpte_to_gfn(pgd)
    if not slots.is_visible_gfn(root_gfn):
        mmu.root_hpa = pfn_to_hpa(vm.frames.zero_pfn)
        return 0
    entries: list[int] = []
    if cpu_role_level(mmu.cpu_role) == 3:
        entries = visible_pdptrs(vcpu)
    first_shadow_root(vm)
    vm.mmu_lock.write_lock()
    ret = make_pages_available(vm)
    if ret == 0:
        if cpu_role_level(mmu.cpu_role) >= 4:
            mmu.root_hpa = alloc_root(vcpu, root_gfn, 0, role_level(mmu.root_role))
        else:
            alloc_pae_roots(vcpu, root_gfn, entries)
        mmu.root_pgd = pgd
    vm.mmu_lock.write_unlock()
    return ret


def visible_pdptrs(vcpu: Vcpu) -> list[int]:
    """The guest's four PDPTEs, those that lie in no slot as if not present."""
    slots = vcpu.memslots()
    entries = []
    for i in range(4):
        entry = read_pdptr(vcpu, vcpu.mmu, i)
        if entry & PT_PRESENT and not slots.is_visible_gfn(gpte_to_gfn(entry)):
            entry = 0
        entries.append(entry)
    return entries


def alloc_pae_roots(vcpu: Vcpu, root_gfn: Gfn, pdptrs: list[int]) -> int:
    """Four roots of level 2: the tables of the guest's PDPTEs, or the four quarters of its page directory."""
    mmu = vcpu.mmu
    vm = vcpu.vm
    for i in range(4):
        gfn = root_gfn
        if pdptrs:
            entry = pdptrs[i]
            gfn = gpte_to_gfn(entry)
            if entry & PT_PRESENT == 0:
                vm.memory.write_once(mmu.pae_root + (i << 3), 0)
                continue
        root = alloc_root(vcpu, gfn, 0 if pdptrs else i, 2)
        vm.memory.write_once(mmu.pae_root + (i << 3), root | PT_PRESENT | vm.fmt.me_value)
    mmu.root_hpa = mmu.pae_root
    return 0


def first_shadow_root(vm: Vm) -> None:
    """Before the VM's first shadow root: give every slot rmap and write-track arrays, then publish the fact."""
    if vm.is_shadow_root_allocated():
        return
    vm.slots_arch_lock.lock()
    for as_id in range(KVM_ADDRESS_SPACE_NUM):
        slots = vm.slots_of(as_id)
        for slot in slots.slots:
            slot.alloc_rmap()
            slot.alloc_write_track()
    vm.set_shadow_root_allocated()
    vm.slots_arch_lock.unlock()


def load(vcpu: Vcpu) -> int:
    """Give ``vcpu`` a root and make its CPU use it (``kvm_mmu_load``); 0, or a negative errno that ends KVM_RUN."""
    vm = vcpu.vm
    ret = topup_caches(vm)
    if ret:
        return ret
    if is_tdp_mmu_active(vcpu):
        ret = take_root(vcpu)
    elif role_direct(vcpu.mmu.root_role):
        vm.mmu_lock.write_lock()
        ret = make_pages_available(vm)
        if ret == 0:
            alloc_direct_roots(vcpu)
        vm.mmu_lock.write_unlock()
    else:
        ret = alloc_shadow_roots(vcpu)
    if ret:
        return ret
    sync_roots(vcpu)
    vm.vendor.load_mmu_pgd(vcpu)
    # Where the root came from, and what the TLB holds of it, is unknown.
    vm.vendor.flush_tlb_current(vcpu)
    return 0


def put_root(vm: Vm, root: Hpa, invalid_list: list[ShadowPage]) -> int:
    """One user of root less; a root that was zapped while in use goes with the last."""
    sp = root_to_sp(vm, root)
    if sp is None or sp.root_count <= 0:
        raise KvmBug(f"root {root:#x} is not in use: {sp!r}")
    if sp.is_tdp:
        vm.mmu_lock.assert_shared()
        return drop_root(vm, sp)
    vm.mmu_lock.assert_exclusive()
    sp.root_count -= 1
    if sp.root_count == 0 and role_invalid(sp.role):
        prepare_zap(vm, sp, invalid_list)
    return 0


def free_current(vm: Vm, mmu: Mmu, invalid_list: list[ShadowPage]) -> int:
    """Drop the current root, whatever kind it is; ``mmu_lock`` exclusive, or shared for one of the TDP MMU."""
    mem = vm.memory
    if is_dummy_root(vm, mmu.root_hpa):
        pass
    elif root_to_sp(vm, mmu.root_hpa) is not None:
        put_root(vm, mmu.root_hpa, invalid_list)
    else:
        for i in range(4):
            entry = mem.read_once(mmu.pae_root + (i << 3))
            if entry:
                put_root(vm, spte_to_child(entry), invalid_list)
                mem.write_once(mmu.pae_root + (i << 3), 0)
    mmu.root_hpa = INVALID_PAGE
    mmu.root_pgd = NOTHING
    return 0


def free_roots(vm: Vm, mmu: Mmu, roots: int) -> int:
    """Drop the selected roots (bit 0 current, bit 1 + i previous i).

    Takes ``mmu_lock`` if there is one of them: shared if they are the TDP MMU's, else exclusively.
    """
    wanted = roots & 1 != 0 and mmu.root_hpa != INVALID_PAGE
    for i in range(3):
        if (roots >> (i + 1)) & 1 and mmu.prev_hpa[i] != INVALID_PAGE:
            wanted = True
    if not wanted:
        return 0
    invalid_list: list[ShadowPage] = []
    is_tdp = vm.policy.tdp_mmu and role_direct(mmu.root_role)
    if is_tdp:
        vm.mmu_lock.read_lock()
    else:
        vm.mmu_lock.write_lock()
    for i in range(3):
        if (roots >> (i + 1)) & 1 and mmu.prev_hpa[i] != INVALID_PAGE:
            put_root(vm, mmu.prev_hpa[i], invalid_list)
            mmu.prev_hpa[i] = INVALID_PAGE
    if roots & 1 and mmu.root_hpa != INVALID_PAGE:
        free_current(vm, mmu, invalid_list)
    if is_tdp:
        vm.mmu_lock.read_unlock()
    else:
        commit_zap(vm, invalid_list)
        vm.mmu_lock.write_unlock()
    return 0


def is_usable(vm: Vm, mmu: Mmu, pgd: int) -> bool:
    """Whether the current root serves pgd in the current mode."""
    if mmu.root_hpa == INVALID_PAGE:
        return False
    if not role_direct(mmu.root_role) and mmu.root_pgd != pgd:
        return False
    sp = root_to_sp(vm, mmu.root_hpa)
    return sp is not None and sp.role == mmu.root_role


def swap_prev(mmu: Mmu, i: int) -> int:
    """Exchange the current root with previous root ``i``."""
    hpa = mmu.root_hpa
    pgd = mmu.root_pgd
    mmu.root_hpa = mmu.prev_hpa[i]
    mmu.root_pgd = mmu.prev_pgd[i]
    mmu.prev_hpa[i] = hpa
    mmu.prev_pgd[i] = pgd
    return 0


def find_cached_root(vm: Vm, mmu: Mmu, pgd: int) -> bool:
    """Make the root of pgd the current one if it is cached, keeping the others most recent first."""
    if mmu.root_hpa != INVALID_PAGE and root_to_sp(vm, mmu.root_hpa) is None:
        free_roots(vm, mmu, 1)
    if mmu.root_hpa != INVALID_PAGE:
        if is_usable(vm, mmu, pgd):
            return True
        for i in range(3):
            swap_prev(mmu, i)
            if is_usable(vm, mmu, pgd):
                return True
        free_roots(vm, mmu, 1)
        return False
    for i in range(3):
        swap_prev(mmu, i)
        if is_usable(vm, mmu, pgd):
            for j in range(i, 2):
                mmu.prev_hpa[j] = mmu.prev_hpa[j + 1]
                mmu.prev_pgd[j] = mmu.prev_pgd[j + 1]
            mmu.prev_hpa[2] = INVALID_PAGE
            return True
        swap_prev(mmu, i)
    return False


def new_pgd(vcpu: Vcpu, pgd: int) -> int:
    """The guest loads another CR3 (``kvm_mmu_new_pgd``): reuse a cached root, or have none until the next entry."""
    vm = vcpu.vm
    mmu = vcpu.mmu
    if not find_cached_root(vm, mmu, pgd):
        return 0
    make_request(vcpu, KVM_REQ_LOAD_MMU_PGD)
    if vm.policy.flush_on_reuse:
        make_request(vcpu, KVM_REQ_MMU_SYNC)
        make_request(vcpu, KVM_REQ_TLB_FLUSH_CURRENT)
    clear_any_gva(vcpu)
    if not role_direct(mmu.root_role):
        sp = root_to_sp(vm, mmu.root_hpa)
        clear_flood_count(vm, sp)  # type: ignore[arg-type]  # a root that is not direct has a page
    return 0


def is_obsolete_root(vm: Vm, root: Hpa) -> bool:
    """Special tables and the dummy root always count as obsolete: what they hold cannot be told."""
    if root == INVALID_PAGE:
        return False
    sp = root_to_sp(vm, root)
    return sp is None or is_obsolete(vm, sp)


def free_obsolete_roots(vcpu: Vcpu) -> int:
    """Drop the roots that were zapped or made before the last fast zap-all, of both contexts that have roots."""
    free_obsolete_of(vcpu.vm, vcpu.root_mmu)
    return free_obsolete_of(vcpu.vm, vcpu.guest_mmu)


def free_obsolete_of(vm: Vm, mmu: Mmu) -> int:
    """Drop the obsolete roots among the current and the previous ones of ``mmu``."""
    roots = KVM_MMU_ROOT_CURRENT if is_obsolete_root(vm, mmu.root_hpa) else 0
    for i in range(KVM_MMU_NUM_PREV_ROOTS):
        if is_obsolete_root(vm, mmu.prev_hpa[i]):
            roots |= ONE << (i + 1)
    return free_roots(vm, mmu, roots)


def sync_prev_roots(vcpu: Vcpu) -> int:
    """Previous roots that hide unsync pages are dropped rather than synced (``kvm_mmu_sync_prev_roots``)."""
    roots = 0
    for i in range(3):
        if vcpu.mmu.prev_hpa[i] != INVALID_PAGE and is_unsync_root(vcpu.vm, vcpu.mmu.prev_hpa[i]):
            roots |= ONE << (i + 1)
    return free_roots(vcpu.vm, vcpu.mmu, roots)


def unload(vcpu: Vcpu) -> None:
    """Drop all roots and the gva half of the MMIO record (``kvm_mmu_unload``); the next entry loads a new root."""
    free_roots(vcpu.vm, vcpu.root_mmu, KVM_MMU_ROOTS_ALL)
    free_roots(vcpu.vm, vcpu.guest_mmu, KVM_MMU_ROOTS_ALL)
    clear_any_gva(vcpu)
