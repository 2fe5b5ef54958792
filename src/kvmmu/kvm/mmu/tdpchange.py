# SPDX-License-Identifier: GPL-2.0-only
"""The door through which every spte of the TDP MMU changes, and the coming and going of its tables.

Who holds ``mmu_lock`` shared changes an entry by cmpxchg and may lose against others; who holds it exclusively
exchanges what the CPU may change meanwhile and stores the rest. Either way :func:`handle_changed` follows: it tells the
event, counts, hands A and D of the old word to the frame, and takes apart the tables that fell off, which are freed
when no reader of ``vm.rcu`` can stand on them any more. Flushing is the caller's business.
Reference: "TDP MMU", setting, removing a table.
"""

from __future__ import annotations

from typing import Any

from ...addr import Gfn, Hpa, hpa_to_pfn, pages_per_level, pfn_to_hpa
from ...errors import KvmBug
from ...page_types import ENTRIES, NOTHING, U64
from ..requests import flush_remote_tlbs_gfn
from ..vm import Vm
from .bits import FROZEN_SPTE, SHADOW_NONPRESENT_VALUE
from .change import count_pages
from .mmutrace import trace_get_page, trace_prepare_zap_page, trace_tdp_mmu_spte_changed
from .nxpage import forget, is_disallowed
from .page import ShadowPage, make_page
from .pages import sptep_to_sp
from .role import role_level, role_smm, role_with_level
from .spte import (
    check_writable_triple,
    is_accessed,
    is_dirty,
    is_frozen,
    is_last,
    is_legal_triple,
    is_mmio,
    is_shadow_present,
    is_volatile,
    make_nonleaf,
    spte_to_child,
    spte_to_pfn,
)
from .tdpiter import TdpIter


def needs_xchg(vm: Vm, old_spte: int, level: int) -> bool:
    """Whether others than holders of ``mmu_lock`` may change ``old_spte``: a present leaf with bits that may turn."""
    return is_shadow_present(old_spte) and is_last(old_spte, level) and is_volatile(vm.fmt, old_spte)


def write_spte(vm: Vm, sptep: Hpa, old_spte: int, new_spte: int, level: int) -> int:
    """Store ``new_spte`` without any bookkeeping; return the word that it replaced. ``mmu_lock`` exclusive."""
    if needs_xchg(vm, old_spte, level):
        return vm.memory.xchg(sptep, new_spte)
    vm.memory.write_once(sptep, new_spte)
    return old_spte


def clear_bits(vm: Vm, it: TdpIter, mask: int) -> int:
    """Clear the bits of ``mask`` in the entry in hand, tell the event, and return the old word; no bookkeeping.

    ``mmu_lock`` exclusive. For bits that only say what happened (A), or whose loss is no loss of the page (W).
    """
    vm.mmu_lock.assert_exclusive()
    if needs_xchg(vm, it.old_spte, it.level):
        it.old_spte = vm.memory.fetch_and(it.sptep, ~mask & U64)
    else:
        vm.memory.write_once(it.sptep, it.old_spte & ~mask)
    if vm.trace.on:
        trace_tdp_mmu_spte_changed(vm.trace, it.as_id, it.gfn, it.level, it.old_spte, it.old_spte & ~mask)
    return it.old_spte


def try_exchange(vm: Vm, it: TdpIter, new_spte: int) -> bool:
    """Replace the entry in hand by cmpxchg; False: it has changed, and ``it.old_spte`` is what it is now."""
    if it.yielded or is_frozen(it.old_spte):
        raise KvmBug(f"an entry that is not the caller's to change: {it!r}")
    if vm.memory.cmpxchg(it.sptep, it.old_spte, new_spte):
        return True
    it.old_spte = vm.memory.read_once(it.sptep)
    return False


def set_spte_atomic(vm: Vm, it: TdpIter, new_spte: int) -> bool:
    """Change the entry in hand, ``mmu_lock`` held shared; False: others were quicker, as in :func:`try_exchange`."""
    vm.mmu_lock.assert_shared()
    if not try_exchange(vm, it, new_spte):
        return False
    handle_changed(vm, it.as_id, it.gfn, it.old_spte, new_spte, it.level)
    return True


def set_spte(vm: Vm, it: TdpIter, new_spte: int) -> int:
    """Change the entry in hand, ``mmu_lock`` held exclusively; ``it.old_spte`` is what was replaced."""
    if it.yielded:
        raise KvmBug(f"the walk has yielded: {it!r}")
    it.old_spte = set_spte_at(vm, it.as_id, it.sptep, it.old_spte, new_spte, it.gfn, it.level)
    return 0


def set_spte_at(vm: Vm, as_id: int, sptep: Hpa, old_spte: int, new_spte: int, gfn: Gfn, level: int) -> int:
    """:func:`set_spte` for an entry that no walk stands on; return the word that was replaced."""
    vm.mmu_lock.assert_exclusive()
    if is_frozen(old_spte) or is_frozen(new_spte):
        raise KvmBug(f"frozen under an exclusive lock: {old_spte:#x} -> {new_spte:#x} at {sptep:#x}")
    old_spte = write_spte(vm, sptep, old_spte, new_spte, level)
    handle_changed(vm, as_id, gfn, old_spte, new_spte, level)
    return old_spte


def zap_spte_atomic(vm: Vm, it: TdpIter) -> bool:
    """Empty the entry in hand and flush, ``mmu_lock`` held shared; False as in :func:`try_exchange`.

    The entry is frozen until TLBs are flushed, so that nobody maps anything there while old translations live.
    """
    vm.mmu_lock.assert_shared()
    if not try_exchange(vm, it, FROZEN_SPTE):
        return False
    flush_remote_tlbs_gfn(vm, it.gfn, it.level)
    vm.memory.write_once(it.sptep, SHADOW_NONPRESENT_VALUE)
    handle_changed(vm, it.as_id, it.gfn, it.old_spte, SHADOW_NONPRESENT_VALUE, it.level)
    return True


def handle_changed(vm: Vm, as_id: int, gfn: Gfn, old_spte: int, new_spte: int, level: int) -> int:
    """All that follows from an entry of ``level`` for ``gfn`` having changed; ``mmu_lock`` held in either mode.

    :class:`KvmBug` for a change that no caller may make. Dirty bitmaps are the business of whoever made it writable.
    """
    fmt = vm.fmt
    was_present = is_shadow_present(old_spte)
    is_present = is_shadow_present(new_spte)
    was_leaf = was_present and is_last(old_spte, level)
    is_leaf = is_present and is_last(new_spte, level)
    same_pfn = spte_to_pfn(old_spte) == spte_to_pfn(new_spte)
    if was_leaf and is_leaf and not same_pfn:
        raise KvmBug(f"pfn changed in place: gfn {gfn:#x} level {level} {old_spte:#x} -> {new_spte:#x}")
    if old_spte == new_spte:
        return 0
    if vm.trace.on:
        trace_tdp_mmu_spte_changed(vm.trace, as_id, gfn, level, old_spte, new_spte)
    if is_leaf and not is_legal_triple(fmt, new_spte):
        check_writable_triple(fmt, new_spte)
    if not was_present and not is_present:
        # From nothing to nothing only MMIO comes and goes, and the frozen word of a table that is taken apart.
        if not is_frozen(new_spte) and not is_mmio(fmt, old_spte) and not is_mmio(fmt, new_spte):
            raise KvmBug(f"an empty entry changed: gfn {gfn:#x} level {level} {old_spte:#x} -> {new_spte:#x}")
        return 0
    if is_leaf != was_leaf:
        count_pages(vm, level, 1 if is_leaf else -1)
    if was_leaf and is_dirty(fmt, old_spte) and not (is_present and same_pfn and is_dirty(fmt, new_spte)):
        vm.frames.mark_dirty(spte_to_pfn(old_spte))
    if was_present and not was_leaf:
        if is_leaf or not is_present:
            remove_table(vm, sptep_to_sp(vm, spte_to_child(old_spte)))
        elif not same_pfn:
            raise KvmBug(f"a table was exchanged: gfn {gfn:#x} level {level} {old_spte:#x} -> {new_spte:#x}")
    if was_leaf and is_accessed(fmt, old_spte) and not (is_present and same_pfn and is_accessed(fmt, new_spte)):
        vm.frames.mark_accessed(spte_to_pfn(old_spte))
    return 0


def remove_table(vm: Vm, sp: ShadowPage) -> int:
    """Take apart the table ``sp``, which nothing links any more, with all below it; its frame goes after its readers.

    With ``mmu_lock`` held shared every entry is frozen, empty ones too: a fault that is already in the table must not
    fill what nobody will look at again.
    """
    mem = vm.memory
    level = role_level(sp.role)
    if vm.trace.on:
        trace_prepare_zap_page(vm.trace, sp)
    unaccount_table(vm, sp)
    sptep = sp.spt
    gfn = sp.gfn
    for _ in range(ENTRIES):
        if not vm.mmu_lock.is_exclusive():
            old = freeze(vm, sptep)
            handle_changed(vm, role_smm(sp.role), gfn, old, FROZEN_SPTE, level)
        else:
            old = mem.read_once(sptep)
            # Nobody can fill an empty entry now, and MMIO dies by its generation.
            if is_shadow_present(old):
                old = write_spte(vm, sptep, old, FROZEN_SPTE, level)
                handle_changed(vm, role_smm(sp.role), gfn, old, FROZEN_SPTE, level)
        sptep += 8
        gfn += pages_per_level(level)
    vm.rcu.call(free_unlinked, (vm, sp))
    return 0


def freeze(vm: Vm, sptep: Hpa) -> int:
    """Freeze an entry of a table that was unlinked and return its last word; another's frozen word is waited for."""
    old = vm.memory.xchg(sptep, FROZEN_SPTE)
    while is_frozen(old):
        if not vm.gate.armed:
            raise KvmBug(f"the entry at {sptep:#x} is frozen, and nobody else runs")
        vm.gate.announce("cpu_relax", vm.memory, sptep)
        old = vm.memory.xchg(sptep, FROZEN_SPTE)
    return old


# Tables: made, linked, gone.


def alloc_table(vm: Vm) -> ShadowPage:
    """A table that nobody links yet, its entries undefined; needs no lock."""
    return make_page(NOTHING, 0, pfn_to_hpa(vm.frames.alloc()))


def init_table(vm: Vm, sp: ShadowPage, gfn: Gfn, role: int, ptep: Hpa) -> int:
    """Make ``sp`` the table of ``role`` for the gfns from ``gfn`` on, to be linked at ``ptep`` (0: a root)."""
    sp.gfn = gfn
    sp.role = role
    sp.ptep = ptep
    sp.is_tdp = True
    vm.frames.set_owner(hpa_to_pfn(sp.spt), sp)
    if vm.trace.on:
        trace_get_page(vm.trace, sp, True)
    return 0


def init_child(vm: Vm, sp: ShadowPage, it: TdpIter) -> int:
    """Make ``sp`` the table to be linked by the entry in hand: its role is the linking table's, a level down."""
    parent = sptep_to_sp(vm, it.sptep)
    return init_table(vm, sp, it.gfn, role_with_level(parent.role, role_level(parent.role) - 1), it.sptep)


def clear_table(vm: Vm, sp: ShadowPage) -> int:
    """Empty every entry of ``sp``, which nobody else can see yet."""
    return vm.memory.fill_words(sp.spt, SHADOW_NONPRESENT_VALUE, ENTRIES)


def link_table(vm: Vm, it: TdpIter, sp: ShadowPage) -> bool:
    """Let the entry in hand link ``sp``; ``mmu_lock`` in either mode. False: others were quicker (held shared only)."""
    spte = make_nonleaf(vm.fmt, sp.spt, vm.fmt.accessed_mask == 0)
    if vm.mmu_lock.is_exclusive():
        set_spte(vm, it, spte)
    elif not set_spte_atomic(vm, it, spte):
        return False
    return account_tables(vm, 1)


def account_tables(vm: Vm, nr: int) -> bool:
    """``nr`` more tables (or fewer) are linked; return True."""
    if vm.gate.armed:
        vm.gate.announce("add", vm, "tdp_mmu_pages")
    vm.tdp_mmu_pages += nr
    return True


def unaccount_table(vm: Vm, sp: ShadowPage) -> int:
    """The table ``sp`` is unlinked; the NX mitigation no longer counts it."""
    account_tables(vm, -1)
    if is_disallowed(vm, sp):
        vm.tdp_mmu_pages_lock.lock()
        forget(vm, sp)
        vm.tdp_mmu_pages_lock.unlock()
    return 0


def free_table(vm: Vm, sp: ShadowPage) -> int:
    """Give back the frame of ``sp``, which nobody can reach."""
    return vm.frames.put(hpa_to_pfn(sp.spt))


def free_unlinked(what: tuple[Vm, ShadowPage]) -> Any:
    """:func:`free_table` as ``vm.rcu`` calls it."""
    vm, sp = what
    return free_table(vm, sp)
