# SPDX-License-Identifier: GPL-2.0-only
"""Roots of the TDP MMU: one for each role that vCPUs use, shared among them, and how whole trees go.

A root is used by vCPUs and, until it is invalid, by the TDP MMU itself: its ``root_count`` says by how many. A memslot
update makes every root invalid under ``mmu_lock`` held exclusively, which schedules it, and zaps the scheduled ones
with the lock held shared; the vCPUs drop theirs at their next entry. The last user unlinks the root, readers of ``vm.rcu``
may still stand on it. The list changes under ``tdp_mmu_pages_lock``. Reference: "TDP MMU", roots, zap.
"""

from __future__ import annotations

from ...addr import Gfn, Hpa
from ...errors import KvmBug
from ...page_types import ENTRIES, NOTHING
from ..vcpu import Vcpu
from ..vm import Vm
from .bits import KVM_MAX_HUGEPAGE_LEVEL, SHADOW_NONPRESENT_VALUE
from .page import ShadowPage
from .pages import is_invalid_root, mark_invalid, sptep_to_sp
from .role import role_level, role_smm
from .spte import is_last, is_shadow_present, spte_to_child
from .tdpchange import alloc_table, clear_table, free_unlinked, init_table, set_spte, set_spte_atomic
from .tdpiter import make_iter, yield_walk


def hold_root(vm: Vm, root: ShadowPage) -> bool:
    """One more user of ``root``; False if it has none any more, and so is about to go. Needs no lock, inside RCU."""
    if vm.gate.armed:
        vm.gate.announce("add", root, "root_count")
    if root.root_count == 0:
        return False
    root.root_count += 1
    return True


def drop_root(vm: Vm, root: ShadowPage) -> int:
    """One user less; with the last the root goes, which must be invalid by then."""
    if vm.gate.armed:
        vm.gate.announce("add", root, "root_count")
    root.root_count -= 1
    if root.root_count:
        return 0
    if not root.is_tdp or not is_invalid_root(vm, root):
        raise KvmBug(f"the last user of a valid root left: {root!r}")
    vm.tdp_mmu_pages_lock.lock()
    if vm.gate.armed:
        vm.gate.announce("write", vm, "tdp_mmu_roots")
    # Its own link stays: who stands on it goes on from there.
    root.link_prev.link_next = root.link_next
    root.link_next.link_prev = root.link_prev
    vm.tdp_mmu_pages_lock.unlock()
    return vm.rcu.call(free_unlinked, (vm, root))


def next_root(vm: Vm, previous: ShadowPage | None, as_id: int, only_valid: bool) -> ShadowPage | None:
    """The root after ``previous`` (None: the first) of address space ``as_id`` (-1: of any), with a user more.

    ``mmu_lock`` held, and may be dropped between two calls; the user of ``previous`` is put. A caller that stops early
    puts the last one itself. None: that was the last.
    """
    vm.mmu_lock.assert_held()
    vm.rcu.read_lock()
    if vm.gate.armed:
        vm.gate.announce("read", vm, "tdp_mmu_roots")
    root = vm.tdp_mmu_roots.link_next if previous is None else previous.link_next
    while root is not vm.tdp_mmu_roots:
        if (as_id < 0 or role_smm(root.role) == as_id) and not (only_valid and is_invalid_root(vm, root)):
            if hold_root(vm, root):
                break
        root = root.link_next
    vm.rcu.read_unlock()
    if previous is not None:
        drop_root(vm, previous)
    return None if root is vm.tdp_mmu_roots else root


def find_root(vm: Vm, role: int) -> ShadowPage | None:
    """The valid root of ``role``, with a user more; ``mmu_lock`` held. None: there is none."""
    root = next_root(vm, None, role_smm(role), True)
    while root is not None:
        if root.role == role:
            return root
        root = next_root(vm, root, role_smm(role), True)
    return None


def take_root(vcpu: Vcpu) -> int:
    """Give ``vcpu.mmu`` the root of its role, made unless another vCPU has it; takes ``mmu_lock`` shared. Return 0."""
    vm = vcpu.vm
    mmu = vcpu.mmu
    vm.mmu_lock.read_lock()
    root = find_root(vm, mmu.root_role)
    if root is None:
        vm.tdp_mmu_pages_lock.lock()
        # Another vCPU may have made it since.
        root = find_linked(vm, mmu.root_role)
        if root is not None:
            hold_root(vm, root)
        else:
            root = alloc_table(vm)
            clear_table(vm, root)
            init_table(vm, root, NOTHING, mmu.root_role, NOTHING)
            link_root(vm, root)
        vm.tdp_mmu_pages_lock.unlock()
    vm.mmu_lock.read_unlock()
    mmu.root_hpa = root.spt
    mmu.root_pgd = NOTHING
    return 0


def find_linked(vm: Vm, role: int) -> ShadowPage | None:
    """The root of ``role`` on the list; ``tdp_mmu_pages_lock`` held. An invalid one has another role."""
    vm.tdp_mmu_pages_lock.assert_held()
    root = vm.tdp_mmu_roots.link_next
    while root is not vm.tdp_mmu_roots:
        if root.role == role:
            return root
        root = root.link_next
    return None


def link_root(vm: Vm, root: ShadowPage) -> int:
    """The new ``root`` has two users, a vCPU and the TDP MMU, and comes first in the list."""
    vm.tdp_mmu_pages_lock.assert_held()
    root.root_count = 2
    if vm.gate.armed:
        vm.gate.announce("write", vm, "tdp_mmu_roots")
    head = vm.tdp_mmu_roots
    first = head.link_next
    root.link_next = first
    root.link_prev = head
    first.link_prev = root
    head.link_next = root
    return 0


def invalidate_all_roots(vm: Vm) -> int:
    """No vCPU may take a root that exists now: each valid one becomes invalid and is scheduled; ``mmu_lock`` exclusive.

    The TDP MMU's own use of it passes to :func:`zap_invalidated_roots`.
    """
    vm.mmu_lock.assert_exclusive()
    root = vm.tdp_mmu_roots.link_next
    while root is not vm.tdp_mmu_roots:
        if not is_invalid_root(vm, root):
            root.scheduled_to_zap = True
            mark_invalid(vm, root)
        root = root.link_next
    return 0


def zap_invalidated_roots(vm: Vm) -> int:
    """Zap each scheduled root and end the TDP MMU's use of it; takes ``mmu_lock`` shared, and yields it.

    No flush: whoever takes a new root flushes, and until then no vCPU may run.
    """
    vm.mmu_lock.read_lock()
    root = next_root(vm, None, -1, False)
    while root is not None:
        if root.scheduled_to_zap:
            root.scheduled_to_zap = False
            zap_root(vm, root)
            # Only now: while it is zapped the notifier must find it.
            drop_root(vm, root)
        root = next_root(vm, root, -1, False)
    vm.mmu_lock.read_unlock()
    return 0


def zap_all_roots(vm: Vm) -> int:
    """Zap every root, invalid ones too: the process or the VM ends. ``mmu_lock`` exclusive, and yielded."""
    vm.mmu_lock.assert_exclusive()
    root = next_root(vm, None, -1, False)
    while root is not None:
        zap_root(vm, root)
        root = next_root(vm, root, -1, False)
    return 0


def zap_root(vm: Vm, root: ShadowPage) -> int:
    """Zap all below ``root``, smallest pages first, so that no step takes long; ``mmu_lock`` held, and yielded.

    The caller is a user of the root; the caller flushes if it must.
    """
    vm.mmu_lock.assert_held()
    vm.rcu.read_lock()
    for level in range(1, KVM_MAX_HUGEPAGE_LEVEL + 1):
        zap_level(vm, root, level)
    zap_level(vm, root, role_level(root.role))
    vm.rcu.read_unlock()
    return 0


def zap_level(vm: Vm, root: ShadowPage, level: int) -> int:
    """Empty every present entry of ``level`` below ``root``, leaf or table."""
    end: Gfn = vm.max_gfn + 1
    it = make_iter()
    it.start(vm.memory, root, level, NOTHING)
    while it.valid and it.gfn < end:
        if yield_walk(vm, it, False) or not is_shadow_present(it.old_spte) or it.level > level:
            it.next(vm.memory)
        elif vm.mmu_lock.is_exclusive():
            set_spte(vm, it, SHADOW_NONPRESENT_VALUE)
            it.next(vm.memory)
        elif set_spte_atomic(vm, it, SHADOW_NONPRESENT_VALUE):
            it.next(vm.memory)
    return 0


def uninit(vm: Vm) -> int:
    """The VM ends, and its vCPUs have dropped their roots: every root goes (``kvm_mmu_uninit_tdp_mmu``)."""
    vm.mmu_lock.write_lock()
    invalidate_all_roots(vm)
    vm.mmu_lock.write_unlock()
    zap_invalidated_roots(vm)
    if vm.tdp_mmu_pages or vm.tdp_mmu_roots.link_next is not vm.tdp_mmu_roots:
        raise KvmBug(f"{vm.tdp_mmu_pages} tables of the TDP MMU outlive the VM: {vm!r}")
    return 0


def all_tables(vm: Vm) -> list[ShadowPage]:
    """Every table of the TDP MMU, newest root first, each before those that it links: for people who look."""
    found: list[ShadowPage] = []
    root = vm.tdp_mmu_roots.link_next
    while root is not vm.tdp_mmu_roots:
        add_tables(vm, root, found)
        root = root.link_next
    return found


def add_tables(vm: Vm, sp: ShadowPage, found: list[ShadowPage]) -> int:
    """Append ``sp`` and all tables below it to ``found``."""
    found.append(sp)
    level = role_level(sp.role)
    if level == 1:
        return 0
    for i in range(ENTRIES):
        spte = vm.memory.read_once(Hpa(sp.spt + (i << 3)))
        if is_shadow_present(spte) and not is_last(spte, level):
            add_tables(vm, sptep_to_sp(vm, spte_to_child(spte)), found)
    return 0
