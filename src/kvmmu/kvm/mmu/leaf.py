# SPDX-License-Identifier: GPL-2.0-only
"""Leaves: the word that maps a page, installing it, and installing its neighbours ahead of need.

``make_spte()`` builds the word, ``set_leaf()`` puts it where something else may be, ``prefetch_*()`` do so for entries
nobody asked for yet. ``mmu_lock`` exclusive throughout. Reference: "Installing SPTEs".
"""

from __future__ import annotations

from ...addr import Gfn, Hpa, Pfn, pfn_to_hpa
from ...errors import KvmBug
from ...host.bits import NO_PFN
from ...hw.bits import PT_PAGE_SIZE, PT_WRITABLE
from ...page_types import NOTHING
from ..bits import KVM_PFN_NOSLOT
from ..dirtylog import mark_page_dirty_in_slot
from ..memslots import Memslot
from ..requests import flush_remote_tlbs_gfn
from ..vcpu import Vcpu
from .bits import ACC_EXEC, ACC_USER, ACC_WRITE, PTE_PREFETCH_NUM, SPTE_MMU_PRESENT, SPTE_TDP_AD_DISABLED
from .change import update_spte
from .context import is_rsvd_spte
from .mmio import mark_mmio_spte
from .mmutrace import trace_set_spte
from .page import ShadowPage
from .pages import set_translation, sp_gfn, sptep_index, sptep_to_sp
from .rmap import drop_spte, rmap_add
from .role import role_access, role_ad_disabled, role_level
from .spte import (
    describe_spte,
    is_large,
    is_last,
    is_shadow_present,
    is_writable,
    mark_for_access_track,
    spte_to_child,
    spte_to_pfn,
)
from .unsync import try_to_unsync
from .verdict import (
    CAUSE_MAP,
    CAUSE_PERMISSION,
    CAUSE_REMAP,
    CAUSE_UNSYNC,
    RET_PF_EMULATE,
    RET_PF_FIXED,
    RET_PF_SPURIOUS,
    RET_PF_WRITE_PROTECTED,
)
from .zap import drop_parent_pte


class Leaf:
    """One leaf to be installed: what it maps, and how. One object serves a fault and its prefetched neighbours."""

    __slots__ = (
        "access",
        "can_unsync",
        "cause",
        "gfn",
        "host_writable",
        "pfn",
        "prefetch",
        "slot",
        "write_fault",
        "wrprot",
    )

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> int:
        """Do what ``__init__`` does, without a Python call (compiled rooms make objects with it)."""
        self.slot: Memslot | None = None
        self.gfn: Gfn = NOTHING
        self.pfn: Pfn = NOTHING
        self.access = 0
        self.host_writable = True
        self.prefetch = True
        self.can_unsync = True
        self.write_fault = False
        self.wrprot = False
        self.cause = 0
        return 0


def make_leaf() -> Leaf:
    """Leaf() for compiled rooms."""
    leaf = Leaf.__new__(Leaf)
    leaf.begin()
    return leaf


def make_spte(vcpu: Vcpu, sp: ShadowPage, leaf: Leaf, old_spte: int) -> int:
    """The word for leaf in sp, where old_spte is now; says in leaf.wrprot whether W was refused for a guest table."""
    fmt = vcpu.vm.fmt
    level = role_level(sp.role)
    access = leaf.access
    leaf.wrprot = False
    # Huge pages that may be fetched from are what the iTLB multihit bug needs.
    if level > 1 and vcpu.vm.policy.nx_huge_pages:
        access &= ~ACC_EXEC
    spte = SPTE_MMU_PRESENT | fmt.present_mask | fmt.me_value | pfn_to_hpa(leaf.pfn)
    # A page mapped ahead of need has not been accessed, and must not look so to whoever ages pages.
    if role_ad_disabled(sp.role):
        spte |= SPTE_TDP_AD_DISABLED
    elif not leaf.prefetch:
        spte |= fmt.accessed_mask
    spte |= fmt.x_mask if access & ACC_EXEC else fmt.nx_mask
    if access & ACC_USER:
        spte |= fmt.user_mask
    if level > 1:
        spte |= PT_PAGE_SIZE
    # Kept in the spte, because the host's permission may not be looked up again when W comes back without a fault.
    if leaf.host_writable:
        spte |= fmt.host_writable_mask
    else:
        access &= ~ACC_WRITE
    if access & ACC_WRITE:
        spte |= PT_WRITABLE | fmt.mmu_writable_mask
        # An old leaf with bit 1 set was allowed to be writable already: its D is left to the hardware.
        if not (is_last(old_spte, level) and is_writable(old_spte)):
            # No writable leaf of a guest table that kvm trusts to be in sync: the table goes out of sync first, or W
            # goes.
            if try_to_unsync(vcpu.vm, leaf.slot, leaf.gfn, leaf.can_unsync, leaf.prefetch):
                leaf.wrprot = True
                spte &= ~(PT_WRITABLE | fmt.mmu_writable_mask)
            # Set ahead of the write, for which the CPU would have to change the entry once more.
            elif not role_ad_disabled(sp.role):
                spte |= fmt.dirty_mask
    if leaf.prefetch:
        spte = mark_for_access_track(fmt, spte)
    if is_rsvd_spte(vcpu.mmu, spte, level):
        raise KvmBug(f"reserved bits in a new spte: {spte:#x} ({describe_spte(spte, fmt, level)})")
    # From here on the guest writes without any exit, so the log must have the page before the spte is there.
    if is_writable(spte) and leaf.slot is not None and leaf.slot.is_dirty_logged():
        mark_page_dirty_in_slot(vcpu.vm, vcpu, leaf.slot, leaf.gfn)
    return spte


def replace_present(vcpu: Vcpu, sp: ShadowPage, sptep: Hpa, leaf: Leaf) -> int:
    """Make room at sptep for leaf, and say what that means: the cause of a fault that installs it.

    CAUSE_MAP: nothing was there. CAUSE_REMAP: a table or another page was, and is dropped, so TLBs must be flushed.
    CAUSE_PERMISSION: the same page is mapped already.
    """
    vm = vcpu.vm
    level = role_level(sp.role)
    old = vm.memory.read_once(sptep)
    if not is_shadow_present(old):
        return CAUSE_MAP
    if level > 1 and not is_large(old):
        drop_parent_pte(vm, sptep_to_sp(vm, spte_to_child(old)), sptep)
        return CAUSE_REMAP
    if spte_to_pfn(old) != leaf.pfn:
        drop_spte(vm, sptep)
        return CAUSE_REMAP
    return CAUSE_PERMISSION


def set_leaf(vcpu: Vcpu, sp: ShadowPage, sptep: Hpa, leaf: Leaf) -> int:
    """Install leaf at sptep of sp. Returns FIXED, SPURIOUS, WRITE_PROTECTED, or EMULATE for an MMIO spte."""
    vm = vcpu.vm
    vm.mmu_lock.assert_exclusive()
    level = role_level(sp.role)
    # What maps something else goes first, even for MMIO, since update_spte() may only change the rights to one page.
    # MMIO is not present: neither rmap nor counters know it.
    found = replace_present(vcpu, sp, sptep, leaf)
    flush = found == CAUSE_REMAP
    leaf.cause = found
    if leaf.pfn == KVM_PFN_NOSLOT:
        vcpu.stat.pf_mmio_spte_created += 1
        mark_mmio_spte(vcpu, sptep, leaf.gfn, leaf.access)
        if flush:
            flush_remote_tlbs_gfn(vm, leaf.gfn, level)
        return RET_PF_EMULATE
    old = vm.memory.read_once(sptep)
    nr_unsync = vm.stat.mmu_unsync
    spte = make_spte(vcpu, sp, leaf, old)
    if vm.stat.mmu_unsync != nr_unsync:
        leaf.cause = CAUSE_UNSYNC
    # Another vCPU, or the fast path, was quicker with the very same word: nothing to tell the TLBs.
    if spte == old:
        verdict = RET_PF_SPURIOUS
    else:
        verdict = RET_PF_FIXED
        if update_spte(vm, sptep, spte):
            flush = True
        if vm.trace.on:
            trace_set_spte(vm.trace, vm.fmt, level, leaf.gfn, sptep, spte)
    # The leaf serves reads, the write in hand still cannot be done: it is emulated, or the mirror goes. So this
    # outranks SPURIOUS, which would let the guest try again forever.
    if leaf.wrprot and leaf.write_fault:
        verdict = RET_PF_WRITE_PROTECTED
    if flush:
        flush_remote_tlbs_gfn(vm, leaf.gfn, level)
    # The same page at the same place is in an rmap already; only the guest's rights, kept for resync, may be new. The
    # gfn stays that of this rmap: another may have the same page, the host's zero page most often.
    if found == CAUSE_PERMISSION:
        index = sptep_index(sptep)
        set_translation(vm, sp, index, sp_gfn(vm, sp, index), leaf.access)
    else:
        rmap_add(vm, leaf.slot, sptep, leaf.gfn, leaf.access)  # type: ignore[arg-type]  # what is mapped has a slot
    return verdict


def prefetch_slot(vcpu: Vcpu, gfn: Gfn, access: int) -> Memslot | None:
    """The slot of gfn, unless it must not be mapped ahead of need: going away, or logged and writable."""
    slot = vcpu.gfn_to_memslot(gfn)
    if slot is None or slot.is_invalid() or (access & ACC_WRITE and slot.is_dirty_logged()):
        return None
    return slot


def prefetch_one(vcpu: Vcpu, sp: ShadowPage, sptep: Hpa, leaf: Leaf) -> bool:
    """Map leaf.gfn if the host has its page writable at hand; False: stop prefetching."""
    leaf.slot = prefetch_slot(vcpu, leaf.gfn, leaf.access)
    if leaf.slot is None or leaf.slot.is_readonly():
        return False
    # Asked for writing even where the guest only reads: what is mapped ahead must never need the host's help, and a
    # zero page or one due for copy on write does. The first failure ends it all: guessing may not cost more than it
    # saves.
    pfn = vcpu.vm.mm.gup_fast(leaf.slot.gfn_to_hva(leaf.gfn), True)
    if pfn == NO_PFN:
        return False
    leaf.pfn = pfn
    set_leaf(vcpu, sp, sptep, leaf)
    vcpu.vm.frames.put(pfn)
    return True


def prefetch_run(vcpu: Vcpu, sp: ShadowPage, start: Hpa, end: Hpa) -> bool:
    """Map the run of nonpresent entries [start, end) of a direct page; a short result maps what it got."""
    mm = vcpu.vm.mm
    access = role_access(sp.role)
    gfn = sp_gfn(vcpu.vm, sp, sptep_index(start))
    nr = (end - start) >> 3
    slot = prefetch_slot(vcpu, gfn, access)
    # A run that leaves the slot is given up as a whole, as the kernel does, though its first part could be mapped.
    if slot is None or slot.is_readonly() or gfn + nr > slot.end_gfn:
        return False
    leaf = make_leaf()
    leaf.slot = slot
    leaf.access = access
    i = 0
    while i < nr:
        pfn = mm.gup_fast(slot.gfn_to_hva(gfn + i), True)
        if pfn == NO_PFN:
            break
        leaf.gfn = gfn + i
        leaf.pfn = pfn
        set_leaf(vcpu, sp, start + (i << 3), leaf)
        vcpu.vm.frames.put(pfn)
        i += 1
    return i != 0


def prefetch_direct(vcpu: Vcpu, sp: ShadowPage, sptep: Hpa) -> int:
    """The neighbours of sptep in the direct page sp, as maximal runs of nonpresent entries."""
    mem = vcpu.vm.memory
    # The aligned group of eight entries is one cache line of the table. The faulting entry breaks a run like a present
    # one: it gets its own leaf, with A and with the fault's rights.
    place: Hpa = sptep & ~63
    end = place + PTE_PREFETCH_NUM * 8
    start: Hpa = NOTHING
    while place < end:
        if place == sptep or is_shadow_present(mem.read_once(place)):
            if start and not prefetch_run(vcpu, sp, start, place):
                return 0
            start = NOTHING
        elif start == 0:
            start = place
        place += 8
    if start:
        prefetch_run(vcpu, sp, start, place)
    return 0
