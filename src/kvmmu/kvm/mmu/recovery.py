# SPDX-License-Identifier: GPL-2.0-only
"""Recovery of huge pages that the NX mitigation split: one pass of the kernel's worker, made when it is asked for.

Some of the tables that nothing else forbids to be huge pages are zapped, oldest first; the next access that is no fetch
maps a huge page there. The kernel's worker makes a pass per hour or so; here time does not pass by itself.
Reference: "Huge pages and the iTLB-multihit (NX) mitigation", recovery worker.
"""

from __future__ import annotations

from ..vm import Vm
from .bits import SHADOW_NONPRESENT_VALUE
from .nxpage import first_possible, forget
from .page import ShadowPage
from .role import role_level, role_smm
from .tdpchange import set_spte_at
from .zap import flush_or_zap, prepare_zap


def recover_nx_huge_pages(vm: Vm) -> int:
    """Zap one in ``nx_huge_pages_recovery_ratio`` of the listed tables, rounded up; return how many left the list.

    Takes ``mmu_lock`` exclusively, and yields it; reads the memslots inside ``srcu``. Where the slot is logged the
    table would come back at once: it is only taken off the list.
    """
    ratio = vm.policy.nx_recovery_ratio
    to_zap = (vm.stat.nx_lpage_splits + ratio - 1) // ratio if ratio and vm.policy.nx_huge_pages else 0
    invalid_list: list[ShadowPage] = []
    flush = False
    done = 0
    vm.srcu.read_lock()
    vm.mmu_lock.write_lock()
    # What is unlinked must live until TLBs are flushed.
    vm.rcu.read_lock()
    while done < to_zap:
        sp = first_possible(vm)
        if sp is None:
            break
        done += 1
        if is_slot_logged(vm, sp):
            forget(vm, sp)
        elif sp.is_tdp:
            zap_linked(vm, sp)
            flush = True
        else:
            prepare_zap(vm, sp, invalid_list)
        if vm.gate.must_yield(vm.mmu_lock):
            flush_or_zap(vm, invalid_list, flush)
            flush = False
            vm.rcu.read_unlock()
            vm.mmu_lock.relax()
            vm.rcu.read_lock()
    flush_or_zap(vm, invalid_list, flush)
    vm.rcu.read_unlock()
    vm.mmu_lock.write_unlock()
    vm.srcu.read_unlock()
    return done


def is_slot_logged(vm: Vm, sp: ShadowPage) -> bool:
    """Whether the slot that ``sp`` maps is logged."""
    if vm.nr_memslots_dirty_logging == 0:
        return False
    slot = vm.gfn_to_memslot(sp.gfn, role_smm(sp.role))
    return slot is not None and slot.is_dirty_logged()


def zap_linked(vm: Vm, sp: ShadowPage) -> int:
    """Empty the entry that links the TDP MMU's table ``sp``, which is no root; the caller flushes."""
    old = vm.memory.read_once(sp.ptep)
    set_spte_at(vm, role_smm(sp.role), sp.ptep, old, SHADOW_NONPRESENT_VALUE, sp.gfn, role_level(sp.role) + 1)
    return 0
