# SPDX-License-Identifier: GPL-2.0-only
"""Memslots: which part of the process's address space is which part of the guest's physical memory.

A :class:`Memslot` is one mapping with its per-page arrays, a :class:`Memslots` a set of those of one address space (0
normal, 1 SMM). There are two sets for each: the one that is published, which does not change, and its *twin*, which an
update prepares and publishes in its turn (``regions.py``). Both hold the same slots between two updates, so that one
change costs the same few steps in each, however many slots there are. The arrays of a slot change under the locks of
the rooms that own their contents.

Per level an array has one element for each block that the slot touches: that of ``gfn`` at ``level`` is number
``(gfn >> 9(l-1)) - (base_gfn >> 9(l-1))``, which :meth:`Memslot.index` computes. Source: reference section "Memslot".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..addr import Gfn, Hva
from ..errors import KvmBug
from ..host.bits import SMALL_ARRAY_WORDS
from ..host.frames import SmallArrays, zeroed_array
from ..intervaltree import IntervalTree
from ..page_types import LEVEL_BITS, ONE, PAGE_SHIFT
from ..sync import Gate
from .bits import (
    KVM_HVA_ERR_BAD,
    KVM_HVA_ERR_RO_BAD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEMSLOT_INVALID,
    KVM_PFN_ERR_MASK,
    KVM_PFN_ERR_NOSLOT_MASK,
    KVM_PFN_NOSLOT,
    KVM_USER_MEM_SLOTS,
)


class Memslot:
    """One mapping: ``npages`` guest frames from ``base_gfn`` on lie at ``userspace_addr`` of the process.

    ``slot`` is the ioctl's number, id in bits 0-15 and address space in bits 16-31. The arrays are None until their
    ``alloc_*()`` is called; each of those raises :class:`MemoryError` when there is not enough.
    """

    __slots__ = (
        "as_id",
        "base_gfn",
        "dirty_array",
        "dirty_bitmap",
        "disallow_lpage",
        "end_gfn",
        "flags",
        "gfn_order",
        "gfn_write_track",
        "hva_order",
        "id",
        "npages",
        "nr_entries",
        "offset",
        "rmap",
        "rmap_array",
        "userspace_addr",
        "write_track_array",
    )

    def __init__(self, slot: int, flags: int, base_gfn: Gfn, npages: int, userspace_addr: Hva) -> None:
        self.id = slot & 0xFFFF
        self.as_id = slot >> 16
        self.flags = flags
        self.base_gfn = base_gfn
        self.npages = npages
        self.end_gfn = Gfn(base_gfn + npages)
        self.userspace_addr = userspace_addr
        self.gfn_order = [0, 0]
        self.hva_order = [0, 0]
        self.nr_entries = [0] * 4
        self.offset = [0] * 4
        for level in (1, 2, 3):
            shift = LEVEL_BITS * (level - 1)
            self.nr_entries[level] = ((base_gfn + npages - 1) >> shift) - (base_gfn >> shift) + 1
        self.offset[2] = 0
        self.offset[3] = self.nr_entries[2]
        self.offset[1] = self.nr_entries[2] + self.nr_entries[3]
        self.rmap_array: memoryview | None = None
        self.disallow_lpage: Any = None
        self.write_track_array: memoryview | None = None
        self.dirty_array: memoryview | None = None
        self._bind()

    # Look at the arrays as C words.
    def _bind(self) -> int:
        self.rmap: Any = self.rmap_array
        self.gfn_write_track: Any = self.write_track_array
        self.dirty_bitmap: Any = self.dirty_array
        return 0

    def alloc_rmap(self) -> None:
        """Give the slot empty reverse maps, unless it has them; slots_arch_lock once the slot is published."""
        if self.rmap_array is None:
            self.rmap_array = zeroed_array("Q", sum(self.nr_lpages(level) for level in (1, 2, 3)))
            self._bind()

    def alloc_lpage_info(self, arrays: SmallArrays) -> None:
        """Give the slot its ``disallow_lpage`` counts, set where a large page can never be; few are from ``arrays``."""
        count = self.nr_lpages(2) + self.nr_lpages(3)
        if count <= SMALL_ARRAY_WORDS:
            self.disallow_lpage = arrays.take_counts(count)
        else:
            self.disallow_lpage = zeroed_array("i", count)
        self._forbid_lpages()

    @property
    def lpage_array(self) -> Any:
        """The ``disallow_lpage`` counts of levels 2 and 3 for reports; None before they are there."""
        return self.disallow_lpage

    def alloc_write_track(self) -> None:
        """Give the slot write-track counts, unless it has them; slots_arch_lock once the slot is published."""
        if self.write_track_array is None:
            self.write_track_array = zeroed_array("H", self.npages)
            self._bind()

    def alloc_dirty_bitmap(self, all_set: bool = False) -> None:
        """Give the slot a dirty bitmap, clean or (``all_set``) full, and behind it scratch of the same size."""
        self.dirty_array = zeroed_array("Q", 2 * self.nr_dirty_words())
        if all_set:
            nr_full = (self.npages >> 6) << 3
            self.dirty_array.cast("B")[:nr_full] = b"\xff" * nr_full
            if self.npages & 63:
                self.dirty_array[self.npages >> 6] = (ONE << (self.npages & 63)) - 1
        self._bind()

    def use_dirty_bitmap_of(self, other: Memslot | None) -> None:
        """Share the dirty bitmap of ``other``; None: have none."""
        self.dirty_array = None if other is None else other.dirty_array
        self._bind()

    def share_arch(self, other: Memslot) -> None:
        """Use the rmap, lpage and write-track arrays of ``other``, a slot of the same place and size."""
        self.rmap_array = other.rmap_array
        self.disallow_lpage = other.disallow_lpage
        self.write_track_array = other.write_track_array
        self._bind()

    def copy(self) -> Memslot:
        """Another slot object for the same mapping, sharing every array."""
        slot = Memslot(self.id | self.as_id << 16, self.flags, self.base_gfn, self.npages, self.userspace_addr)
        slot.share_arch(self)
        slot.use_dirty_bitmap_of(self)
        return slot

    # Large pages are impossible in a first or last block that sticks out of the slot, and everywhere when gfn and hva
    # differ within the large page.
    def _forbid_lpages(self) -> int:
        for level in (2, 3):
            block = (ONE << (LEVEL_BITS * (level - 1))) - 1
            if self.base_gfn & block:
                self.disallow_lpage[self.offset[level]] = 1
            if self.end_gfn & block:
                self.disallow_lpage[self.offset[level] + self.nr_entries[level] - 1] = 1
            if (self.base_gfn ^ (self.userspace_addr >> PAGE_SHIFT)) & block:
                for i in range(self.nr_entries[level]):
                    self.disallow_lpage[self.offset[level] + i] = 1
        return 0

    def index(self, gfn: Gfn, level: int) -> int:
        """Number of the block of ``level`` that holds ``gfn``, counted from the slot's first such block.

        Its element in ``rmap`` and ``disallow_lpage`` is that plus ``offset[level]``; in ``gfn_write_track`` it is
        ``index(gfn, 1)`` itself.
        """
        return (gfn >> (LEVEL_BITS * (level - 1))) - (self.base_gfn >> (LEVEL_BITS * (level - 1)))

    def nr_lpages(self, level: int) -> int:
        """Number of blocks of ``level`` that the slot touches."""
        return self.nr_entries[level]

    def gfn_to_hva(self, gfn: Gfn) -> Hva:
        """Address of ``gfn`` in the process, whatever the slot's flags; ``gfn`` lies in the slot."""
        return self.userspace_addr + ((gfn - self.base_gfn) << PAGE_SHIFT)

    def gfn_to_hva_prot(self, gfn: Gfn, write: bool) -> Hva:
        """:meth:`gfn_to_hva`, or ``KVM_HVA_ERR_BAD`` (INVALID slot), ``KVM_HVA_ERR_RO_BAD`` (write to read-only)."""
        if self.flags & KVM_MEMSLOT_INVALID:
            return KVM_HVA_ERR_BAD
        if write and self.flags & KVM_MEM_READONLY:
            return KVM_HVA_ERR_RO_BAD
        return self.gfn_to_hva(gfn)

    def contains(self, gfn: Gfn) -> bool:
        """Whether ``gfn`` lies in the slot."""
        return self.base_gfn <= gfn < self.end_gfn

    def is_invalid(self) -> bool:
        """Whether the slot is being deleted or moved (``KVM_MEMSLOT_INVALID``)."""
        return self.flags & KVM_MEMSLOT_INVALID != 0

    def is_readonly(self) -> bool:
        """Whether guest writes are refused (``KVM_MEM_READONLY``)."""
        return self.flags & KVM_MEM_READONLY != 0

    def is_visible(self) -> bool:
        """Whether user space made the slot and it is not going away (``kvm_is_visible_memslot``)."""
        return self.id < KVM_USER_MEM_SLOTS and self.flags & KVM_MEMSLOT_INVALID == 0

    def is_dirty_logged(self) -> bool:
        """Whether writes are logged (``kvm_slot_dirty_track_enabled``)."""
        return self.flags & KVM_MEM_LOG_DIRTY_PAGES != 0

    def nr_disallowed(self, gfn: Gfn, level: int) -> int:
        """``disallow_lpage`` count of the block of ``level`` (2 or 3) that holds ``gfn``; needs the arrays."""
        return self.disallow_lpage[self.offset[level] + self.index(gfn, level)]  # type: ignore[no-any-return]  # words of an array made on demand

    def is_any_tracked(self, gfn: Gfn, count: int) -> bool:
        """Whether any of ``count`` gfns from ``gfn`` on, all in the slot, has a tracked table; for reports."""
        if self.write_track_array is None:
            return False
        at = self.index(gfn, 1)
        end = at + count
        while at < end:
            if self.gfn_write_track[at]:
                return True
            at += 1
        return False

    def rmap_word(self, gfn: Gfn, level: int) -> int:
        """Rmap head word of ``gfn`` at ``level``; 0 also while no rmaps are in use."""
        if self.rmap is None:
            return 0
        return self.rmap[self.offset[level] + self.index(gfn, level)]  # type: ignore[no-any-return]  # words of an array made on demand

    def nr_dirty_words(self) -> int:
        """64-bit words in the dirty bitmap, its scratch half not counted."""
        return (self.npages + 63) >> 6

    def __repr__(self) -> str:
        names = ("log-dirty", "readonly", "invalid")
        masks = (KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_MEMSLOT_INVALID)
        flags = "".join(f" {name}" for name, mask in zip(names, masks, strict=True) if self.flags & mask)
        place = f"gfn {self.base_gfn:#x}-{self.end_gfn:#x} hva {self.userspace_addr:#x}"
        return f"<Memslot {self.as_id}:{self.id} {place}{flags}>"


class Memslots:
    """The slots of one address space between two updates.

    Only its generation changes after publication, once: :meth:`set_generation` ends the update. The first generation
    of an address space is its number, so that those of two spaces never meet.

    :meth:`inactive` is the set that the next update prepares: :meth:`start_update`, and :meth:`replace` there before
    the publication; after it the same :meth:`replace` in the set that was published before, once nobody reads it.
    Updates hold slots_lock.
    """

    __slots__ = ("as_id", "by_id", "generation", "gfn_tree", "hva_tree", "last_used_slot", "node_index", "twin")

    def __init__(self, as_id: int, generation: int | None = None, slots: Sequence[Memslot] = ()) -> None:
        self.as_id = as_id
        self.generation = as_id if generation is None else generation
        self.node_index = 0
        self.twin: Memslots | None = None
        self.gfn_tree = IntervalTree()
        self.hva_tree = IntervalTree()
        self.by_id: dict[int, Memslot] = {}
        self.last_used_slot: Memslot | None = None
        for slot in slots:
            self.replace(None, slot)

    def __repr__(self) -> str:
        slots = self.slots
        shown = "".join(f" {slot!r}" for slot in slots[:4])
        more = f" and {len(slots) - 4} more" if len(slots) > 4 else ""
        return f"<Memslots {self.as_id} generation {self.generation:#x} slots {len(slots)}{shown}{more}>"

    @property
    def slots(self) -> list[Memslot]:
        """All slots by ascending gfn."""
        return self.gfn_tree.owners()

    def nr_slots(self) -> int:
        """Number of slots."""
        return self.gfn_tree.nr

    # Updates.

    def inactive(self) -> Memslots:
        """The twin of this published set, with the same slots; slots_lock held (``kvm_get_inactive_memslots``)."""
        if self.twin is None:
            self.twin = Memslots(self.as_id, self.generation)
            self.twin.twin = self
            self.twin.node_index = 1 - self.node_index
            for slot in self.hva_tree.owners():
                self.twin.replace(None, slot)
        return self.twin

    def start_update(self, generation: int) -> None:
        """Give this set, which nobody sees yet, the generation that it is published with."""
        self.generation = generation

    def replace(self, old: Memslot | None, new: Memslot | None) -> int:
        """Take out ``old`` and put in ``new`` (None: nothing); nobody reads this set (``kvm_replace_memslot``).

        Return 0. :class:`KvmBug` if ``old`` is not in the set.
        """
        which = self.node_index
        if old is not None:
            if self.by_id.pop(old.id, None) is not old:
                raise KvmBug(f"{old!r} is not in set {which} of its address space")
            self.gfn_tree.remove(old.base_gfn, old.gfn_order[which])
            self.hva_tree.remove(old.userspace_addr, old.hva_order[which])
            if self.last_used_slot is old:
                self.last_used_slot = new
        if new is not None:
            hva = new.userspace_addr
            new.gfn_order[which] = self.gfn_tree.insert(new.base_gfn, new.end_gfn - 1, new)
            new.hva_order[which] = self.hva_tree.insert(hva, hva + (new.npages << PAGE_SHIFT) - 1, new)
            self.by_id[new.id] = new
        return 0

    # Lookups.

    def find(self, gfn: Gfn) -> Memslot | None:
        """The slot that holds ``gfn``, or None; tries the last one found first (``gfn_to_memslot``)."""
        slot = self.last_used_slot
        if slot is not None and slot.base_gfn <= gfn < slot.end_gfn:
            return slot
        slot = self.search(gfn)
        if slot is not None:
            self.last_used_slot = slot
        return slot

    def search(self, gfn: Gfn) -> Memslot | None:
        """:meth:`find` without touching the hint (``search_memslots``), for vCPUs, which keep one of their own."""
        return self.gfn_tree.find(gfn)  # type: ignore[no-any-return]  # the tree holds slots

    def find_id(self, slot_id: int) -> Memslot | None:
        """The slot with that id, or None (``id_to_memslot``)."""
        return self.by_id.get(slot_id)

    def gfn_to_hva(self, gfn: Gfn, write: bool) -> Hva:
        """Address of ``gfn`` in the process, or an error hva: no slot, an INVALID one, a write to a read-only one."""
        slot = self.find(gfn)
        if slot is None:
            return KVM_HVA_ERR_BAD
        return slot.gfn_to_hva_prot(gfn, write)

    def is_visible_gfn(self, gfn: Gfn) -> bool:
        """Whether a user's slot that is not going away holds ``gfn`` (``kvm_is_visible_gfn``)."""
        slot = self.find(gfn)
        return slot is not None and slot.is_visible()

    def in_hva_range(self, start: Hva, end: Hva) -> list[Memslot]:
        """Slots that overlap ``[start, end)``, by ascending hva; several may show the same memory."""
        return self.hva_tree.overlapping(start, end - 1)

    def overlaps(self, start_gfn: Gfn, end_gfn: Gfn, but_id: int) -> Memslot | None:
        """The first slot other than ``but_id`` that overlaps ``[start_gfn, end_gfn)``, or None."""
        for slot in self.gfn_tree.overlapping(start_gfn, end_gfn - 1):
            if slot.id != but_id:
                return slot  # type: ignore[no-any-return]  # the tree holds slots
        return None

    def read_generation(self, gate: Gate) -> int:
        """The generation, in-progress flag (bit 63) included; it may change once while the set is published."""
        if gate.armed:
            gate.announce("read", self, "generation")
        return self.generation

    def set_generation(self, gate: Gate, generation: int) -> int:
        """End the update that published this set; slots_lock held (:mod:`kvmmu.kvm.regions`)."""
        if gate.armed:
            gate.announce("write", self, "generation")
        self.generation = generation
        return 0


def is_error_hva(hva: Hva) -> bool:
    """Whether ``hva`` is an error word instead of an address of the process."""
    return hva >= KVM_HVA_ERR_BAD


def is_error_pfn(pfn: int) -> bool:
    """Whether ``pfn`` is an error word; ``KVM_PFN_NOSLOT`` is none."""
    return pfn & KVM_PFN_ERR_MASK != 0


def is_error_noslot_pfn(pfn: int) -> bool:
    """Whether ``pfn`` is an error word or ``KVM_PFN_NOSLOT``."""
    return pfn & KVM_PFN_ERR_NOSLOT_MASK != 0


def is_noslot_pfn(pfn: int) -> bool:
    """Whether ``pfn`` says that no slot holds the gfn: MMIO."""
    return pfn == KVM_PFN_NOSLOT
