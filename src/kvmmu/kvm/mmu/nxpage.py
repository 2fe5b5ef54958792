# SPDX-License-Identifier: GPL-2.0-only
"""Tables that exist because the NX mitigation forbade a huge page, and the list of those that nothing else forbids.

The owner of ``nx_huge_page_disallowed`` and of the list ``vm.possible_nx_huge_pages``, oldest first, whose length is
the counter nx_lpage_splits. They change under ``mmu_lock``: held exclusively, or held shared and with
``tdp_mmu_pages_lock``. Reference: "Huge pages and the iTLB-multihit (NX) mitigation".
"""

from __future__ import annotations

from ..vm import Vm
from .bits import NO_PAGE
from .page import ShadowPage


def is_disallowed(vm: Vm, sp: ShadowPage) -> bool:
    """Whether a huge page was forbidden where ``sp`` is; ``mmu_lock`` held."""
    if vm.gate.armed:
        vm.gate.announce("read", sp, "nx_huge_page_disallowed")
    return sp.nx_huge_page_disallowed


def set_disallowed(vm: Vm, sp: ShadowPage, disallowed: bool) -> int:
    """Note whether the mitigation is why the new table ``sp`` exists."""
    if vm.gate.armed:
        vm.gate.announce("write", sp, "nx_huge_page_disallowed")
    sp.nx_huge_page_disallowed = disallowed
    return 0


def track_possible(vm: Vm, sp: ShadowPage) -> int:
    """Put ``sp`` at the end of the list, unless it is on it."""
    if sp.nx_next is not None:
        return 0
    if vm.gate.armed:
        vm.gate.announce("write", vm, "possible_nx_huge_pages")
    head = vm.possible_nx_huge_pages
    last = head.nx_prev
    sp.nx_prev = last
    sp.nx_next = head
    last.nx_next = sp
    head.nx_prev = sp
    vm.stat.nx_lpage_splits += 1
    return 0


def forget(vm: Vm, sp: ShadowPage) -> int:
    """``sp`` goes, or may be executable for good: the mitigation no longer counts it."""
    set_disallowed(vm, sp, False)
    if sp.nx_next is None:
        return 0
    if vm.gate.armed:
        vm.gate.announce("write", vm, "possible_nx_huge_pages")
    sp.nx_prev.nx_next = sp.nx_next
    sp.nx_next.nx_prev = sp.nx_prev
    sp.nx_next = None
    sp.nx_prev = NO_PAGE
    vm.stat.nx_lpage_splits -= 1
    return 0


def first_possible(vm: Vm) -> ShadowPage | None:
    """The oldest page on the list; None if it is empty. ``mmu_lock`` held exclusively."""
    vm.mmu_lock.assert_exclusive()
    first = vm.possible_nx_huge_pages.nx_next
    return None if first is vm.possible_nx_huge_pages else first
