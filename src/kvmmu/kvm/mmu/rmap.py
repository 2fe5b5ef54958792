# SPDX-License-Identifier: GPL-2.0-only
"""Reverse maps: from a gfn to the sptes that map it, and from a shadow page to the sptes that point to it.

A list is one word, its head: 0 is empty; bit 0 clear is the location of the only spte; bit 0 set points to the head
descriptor. A descriptor is 16 words of physical memory, cut from frames that the VM owns:

    word 0      the next descriptor, 0 at the end
    word 1      entries in this descriptor, and << 32 the entries in all descriptors after it
    words 2-15  locations of sptes; only the head descriptor may be partly filled

To iterate, start with ``place = pte_list_first(head)`` and follow ``pte_list_next(vm, place)`` until 0; a place is
the location of the word that holds the spte's location (or the location itself with bit 0 set, for a list of one).
After a removal, start again. ``mmu_lock`` exclusive. Reference: "Reverse maps".
"""

from __future__ import annotations

from ...addr import Address, Gfn, Hpa, pfn_to_hpa
from ...errors import KvmBug
from ...hw.bits import PT_WRITABLE
from ...page_types import ONE, PAGE_SIZE
from ..memslots import Memslot
from ..requests import flush_remote_tlbs_gfn
from ..vm import Vm
from .bits import PTE_LIST_DESC_SIZE, PTE_LIST_EXT, RMAP_RECYCLE_THRESHOLD
from .change import age_spte, clear_track_bits, count_pages, update_spte
from .pages import set_translation, slot_of_sp, sp_gfn, sptep_index, sptep_to_sp
from .role import role_level
from .spte import is_accessed, is_mmu_writable, is_shadow_present, is_writable

_DESC_MASK = 0xFFFF_FFFF_FFFF_FF80
_COUNT_MASK = 0xFFFF_FFFF
_POINTER_MASK = 0xFFFF_FFFF_FFFF_FFF8


def alloc_desc(vm: Vm) -> Hpa:
    """From the free list, which takes one more frame of 32 descriptors when it is empty."""
    if vm.desc_free == 0:
        frame = pfn_to_hpa(vm.frames.alloc())
        vm.nr_desc_frames += 1
        offset = PAGE_SIZE
        while offset:
            offset -= PTE_LIST_DESC_SIZE
            free_desc(vm, frame + offset)
    desc = vm.desc_free
    vm.desc_free = vm.memory.read_once(desc)  # type: ignore[assignment]  # a free descriptor's word names the next
    return desc


def free_desc(vm: Vm, desc: Hpa) -> int:
    """Put descriptor ``desc`` on the free list."""
    vm.memory.write_once(desc, vm.desc_free)
    vm.desc_free = desc
    return 0


def pte_list_count(vm: Vm, head: Address) -> int:
    """Number of locations in the list ``head``."""
    if head == 0:
        return 0
    if head & 1 == 0:
        return 1
    word = vm.memory.read_once((head & _POINTER_MASK) + 8)
    return (word & _COUNT_MASK) + (word >> 32)


def pte_list_add(vm: Vm, head: Address, sptep: Hpa) -> Address:
    """Add ``sptep``; return the new head."""
    mem = vm.memory
    desc: Address
    if head == 0:
        return sptep
    if head & 1 == 0:
        desc = alloc_desc(vm)
        mem.write_once(desc, 0)
        mem.write_once(desc + 8, 2)
        mem.write_once(desc + 16, head)
        mem.write_once(desc + 24, sptep)
        return desc | ONE
    desc = head & _POINTER_MASK
    word = mem.read_once(desc + 8)
    count = word & _COUNT_MASK
    if count == PTE_LIST_EXT:
        new = alloc_desc(vm)
        total = count + (word >> 32)
        mem.write_once(new, desc)
        mem.write_once(new + 8, (total << 32) | 1)
        mem.write_once(new + 16, sptep)
        return new | ONE
    mem.write_once(desc + 16 + (count << 3), sptep)
    mem.write_once(desc + 8, word + 1)
    return head


def pte_list_remove(vm: Vm, head: Address, sptep: Hpa) -> Address:
    """Remove ``sptep``; return the new head. :class:`KvmBug` if it is not in the list."""
    mem = vm.memory
    if head == sptep and head != 0:
        return 0
    if head & 1 == 0:
        raise KvmBug(f"rmap: spte at {sptep:#x} is not in the list {head:#x}")
    first: Address = head & _POINTER_MASK
    desc: Address = first
    while desc:
        count = mem.read_once(desc + 8) & _COUNT_MASK
        i = 0
        while i < count:
            if mem.read_once(desc + 16 + (i << 3)) == sptep:
                return remove_from_desc(vm, first, desc, i)
            i += 1
        desc = mem.read_once(desc)
    raise KvmBug(f"rmap: spte at {sptep:#x} is not in the list {head:#x}")


def remove_from_desc(vm: Vm, first: Hpa, desc: Hpa, i: int) -> Address:
    """Fill the hole with the last entry of the head descriptor; free that one when it has no more."""
    mem = vm.memory
    word = mem.read_once(first + 8)
    last = (word & _COUNT_MASK) - 1
    mem.write_once(desc + 16 + (i << 3), mem.read_once(first + 16 + (last << 3)))
    if last:
        mem.write_once(first + 8, word - 1)
        return first | ONE
    more: Address = mem.read_once(first)
    free_desc(vm, first)
    return more | ONE if more else 0


def pte_list_first(head: Address) -> Address:
    """The place of the first entry of ``head``; 0 if there is none."""
    if head == 0:
        return 0
    if head & 1 == 0:
        return head | ONE
    return (head & _POINTER_MASK) + 16


def pte_list_sptep(vm: Vm, place: Address) -> Address:
    """The spte location at ``place``."""
    if place & 1:
        return place & _POINTER_MASK
    return vm.memory.read_once(place)


def pte_list_next(vm: Vm, place: Address) -> Address:
    """The place after ``place``; 0 at the end. :class:`KvmBug` if that was in no list's descriptor."""
    if place & 1:
        return 0
    desc: Address = place & _DESC_MASK
    place += 8
    count = vm.memory.read_once(desc + 8) & _COUNT_MASK
    if count > PTE_LIST_EXT:
        raise KvmBug(f"rmap: {count} entries in the descriptor at {desc:#x}, which holds {PTE_LIST_EXT}")
    if place < desc + 16 + (count << 3):
        return place
    more = vm.memory.read_once(desc)
    return more + 16 if more else 0


def rmap_add(vm: Vm, slot: Memslot, sptep: Hpa, gfn: Gfn, access: int) -> int:
    """A leaf was installed at sptep: note its translation, count it, enter it into the rmap of its gfn and level.

    ``mmu_lock`` exclusive. More than 1000 entries before it, and all of them go again.
    """
    vm.mmu_lock.assert_exclusive()
    sp = sptep_to_sp(vm, sptep)
    level = role_level(sp.role)
    set_translation(vm, sp, sptep_index(sptep), gfn, access)
    count_pages(vm, level, 1)
    at = slot.offset[level] + slot.index(gfn, level)
    head = slot.rmap[at]
    count = pte_list_count(vm, head)
    slot.rmap[at] = pte_list_add(vm, head, sptep)
    if count > vm.stat.max_mmu_rmap_size:
        vm.stat.max_mmu_rmap_size = count
    if count > RMAP_RECYCLE_THRESHOLD:
        zap_rmap(vm, slot, at)
        flush_remote_tlbs_gfn(vm, gfn, level)
    return 0


def rmap_remove(vm: Vm, sptep: Hpa) -> int:
    """The inverse of rmap_add(), by the page's own idea of gfn, level and address space."""
    vm.mmu_lock.assert_exclusive()
    sp = sptep_to_sp(vm, sptep)
    gfn = sp_gfn(vm, sp, sptep_index(sptep))
    slot = slot_of_sp(vm, sp, gfn)
    if slot is None:
        raise KvmBug(f"rmap: no slot for gfn {gfn:#x} of the spte at {sptep:#x} in {sp!r}")
    at = slot.offset[role_level(sp.role)] + slot.index(gfn, role_level(sp.role))
    slot.rmap[at] = pte_list_remove(vm, slot.rmap[at], sptep)
    return 0


def drop_spte(vm: Vm, sptep: Hpa) -> int:
    """Clear the leaf at ``sptep`` and leave its rmap; ``mmu_lock`` exclusive; the caller flushes."""
    old = clear_track_bits(vm, sptep)
    if is_shadow_present(old):
        rmap_remove(vm, sptep)
    return 0


def zap_rmap(vm: Vm, slot: Memslot, at: int) -> bool:
    """Clear every leaf of one rmap and empty it; returns whether there was any."""
    head = slot.rmap[at]
    if head == 0:
        return False
    place = pte_list_first(head)
    while place:
        clear_track_bits(vm, pte_list_sptep(vm, place))
        place = pte_list_next(vm, place)
    slot.rmap[at] = 0
    if head & 1:
        desc: Address = head & _POINTER_MASK
        while desc:
            more: Address = vm.memory.read_once(desc)
            free_desc(vm, desc)
            desc = more
    return True


def spte_write_protect(vm: Vm, sptep: Hpa, pt_protect: bool) -> bool:
    """Clear W, and for a guest table (pt_protect) MMU-writable too; returns whether TLBs must be flushed."""
    spte = vm.memory.read_once(sptep)
    if not is_writable(spte) and not (pt_protect and is_mmu_writable(vm.fmt, spte)):
        return False
    if pt_protect:
        spte &= ~vm.fmt.mmu_writable_mask
    spte &= ~PT_WRITABLE
    return update_spte(vm, sptep, spte)


def rmap_write_protect(vm: Vm, head: Address, pt_protect: bool) -> bool:
    """Write-protect every leaf of one rmap; returns whether TLBs must be flushed."""
    flush = False
    place = pte_list_first(head)
    while place:
        if spte_write_protect(vm, pte_list_sptep(vm, place), pt_protect):
            flush = True
        place = pte_list_next(vm, place)
    return flush


def rmap_age(vm: Vm, head: Address, only_test: bool) -> bool:
    """Make every leaf of one rmap not accessed; returns whether any was. ``only_test``: only look, up to the first."""
    young = False
    place = pte_list_first(head)
    while place:
        sptep = pte_list_sptep(vm, place)
        spte = vm.memory.read_once(sptep)
        if is_accessed(vm.fmt, spte):
            if only_test:
                return True
            young = True
            age_spte(vm, sptep, spte)
        place = pte_list_next(vm, place)
    return young


def write_protect_gfn(vm: Vm, slot: Memslot, gfn: Gfn, min_level: int) -> bool:
    """Protect a guest table: every leaf that maps gfn at min_level and above. Returns whether TLBs must be flushed."""
    done = False
    for level in range(min_level, 4):
        if rmap_write_protect(vm, slot.rmap[slot.offset[level] + slot.index(gfn, level)], True):
            done = True
    return done
