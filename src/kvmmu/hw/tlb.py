# SPDX-License-Identifier: GPL-2.0-only
"""One CPU's TLB: what was translated, for whom, and since when.

An entry is four words: the page number, its owner, a stamp, and the translation word (TR_* of
:mod:`kvmmu.hw.bits`) that the access is judged by. Whether it lives, its owner and its stamp decide
(:mod:`kvmmu.hw.floors`): of all flushes only INVLPG touches entries.

A guest page larger than the entry that holds a piece of it (a 4M page, or a large page over small nested ones) is
invalidated as a whole by INVLPG of any of its addresses. Pieces carry the page's size, and have floors by page.

With ``tracks_gfns`` the TLB also knows the guest frame behind each entry, so that :meth:`Tlb.flush_gfns` finds what
came through a range of guest memory.

With ``keep_all`` nothing is ever evicted (:mod:`kvmmu.hw.kept`).
"""

from __future__ import annotations

from array import array

from ..addr import Gfn, Gva
from ..page_types import ONE
from .bits import TLB_PCID_SHIFT, TLB_SPACE_SHIFT, TR_GLOBAL, TR_LEVEL_SHIFT, TR_PIECE_SHIFT
from .cpumodel import CpuModel
from .floors import Floors
from .kept import KeptEntries, piece_shift

_WORDS = 4
# Floors of pieces of guest pages, by a hash of the page; two pages that share a floor are flushed together.
_NR_CELLS = 1024
# Sweep the frames of dead entries out when their number has doubled since, and not below this size.
_SWEEP_FROM = 4096


class Tlb(Floors):
    """A set-associative TLB with 4K, 2M and 1G entries, or one without bounds (``params.keep_all``).

    ``hits``, ``misses`` and ``evictions`` (live entries that made room for others) count from creation on.
    """

    __slots__ = (
        "cells",
        "evictions",
        "gfns",
        "hit_index",
        "hits",
        "keep_all",
        "kept",
        "misses",
        "next_way",
        "set_mask",
        "slots",
        "start",
        "sweep_at",
        "tracks_gfns",
        "used",
        "used_pieces",
        "ways",
    )

    def __init__(self, params: CpuModel) -> None:
        Floors.__init__(self)
        self.keep_all = params.keep_all
        self.kept = KeptEntries()
        self.tracks_gfns = params.tracks_gfns
        self.gfns: dict[tuple[int, int, int], int] = {}
        self.sweep_at = _SWEEP_FROM
        self.hit_index = 0
        sizes = (0, 0, 0) if params.keep_all else (params.tlb_entries_4k, params.tlb_entries_2m, params.tlb_entries_1g)
        self.slots = memoryview(array("Q", bytes(8 * _WORDS * (sum(sizes) or 1))))
        self.ways = params.tlb_ways
        self.start = [0, 0, sizes[0] * _WORDS, (sizes[0] + sizes[1]) * _WORDS]
        self.set_mask = [0] + [max(size // params.tlb_ways, 1) - 1 for size in sizes]
        self.next_way = [0] * 4
        self.used = [0] * 4
        self.used_pieces = False
        self.cells = memoryview(array("Q", bytes(8 * _NR_CELLS)))
        self.hits = 0
        self.misses = 0
        self.evictions = 0

    # Lookup and fill.

    def find(self, gva: Gva) -> int:
        """Translation word of a live entry for ``gva`` in the current context, or 0; counts a hit or a miss.

        A caller that may not use it takes the hit back with :meth:`drop`.
        """
        if self.keep_all:
            return self._find_kept(gva)
        level = 1
        while level <= 3:
            if self.used[level]:
                index = self._find_slot(level, gva)
                if index >= 0:
                    self.hit_index = index
                    self.hits += 1
                    return self.slots[index + 3]
            level += 1
        self.misses += 1
        return 0

    def peek(self, gva: Gva) -> int:
        """What :meth:`find` would answer, without a trace: nothing is counted, nothing remembered for :meth:`drop`."""
        hits, misses = self.hits, self.misses
        index = self.hit_index
        key = self.kept.hit_key
        translation = self.find(gva)
        self.hits, self.misses = hits, misses
        self.hit_index = index
        self.kept.hit_key = key
        return translation

    # Index of the live entry of this size for gva, or -1.
    def _find_slot(self, level: int, gva: Gva) -> int:
        vpn = gva >> (9 * level + 3)
        index = self.start[level] + (vpn & self.set_mask[level]) * self.ways * _WORDS
        end = index + self.ways * _WORDS
        while index < end:
            if self.slots[index] == vpn:
                owner = self.slots[index + 1]
                stamp = self.slots[index + 2]
                is_live = (owner == self.owner and stamp >= self.floor) or (
                    owner == self.global_owner and stamp >= self.global_floor
                )
                if is_live and not (self.used_pieces and self._is_cut(gva, index)):
                    return index
            index += _WORDS
        return -1

    # Whether this entry is a piece of a guest page that INVLPG invalidated since.
    def _is_cut(self, gva: Gva, index: int) -> bool:
        piece = (self.slots[index + 3] >> TR_PIECE_SHIFT) & 3
        return piece != 0 and self.slots[index + 2] < self.cells[_cell(piece, gva)]

    def drop(self) -> int:
        """Forget the entry that :meth:`find` returned last: it does not allow the access. Return 0."""
        self.hits -= 1
        self.misses += 1
        if self.keep_all:
            self.kept.drop()
        else:
            self.slots[self.hit_index + 2] = 0
        return 0

    def fill(self, gva: Gva, translation: int) -> int:
        """Keep ``translation`` (its level, owner's global bit and piece size are in the word) for ``gva``; return 0."""
        level = (translation >> TR_LEVEL_SHIFT) & 3
        owner = self.global_owner if translation & TR_GLOBAL else self.owner
        self.used[level] = 1
        if (translation >> TR_PIECE_SHIFT) & 3:
            self.used_pieces = True
        if self.keep_all:
            if self.kept.is_full():
                self._sweep()
            return self.kept.keep(gva, owner, translation, self.clock)
        vpn = gva >> (9 * level + 3)
        index = self._victim(level, vpn, owner)
        self.slots[index] = vpn
        self.slots[index + 1] = owner
        self.slots[index + 2] = self.clock
        self.slots[index + 3] = translation
        return 0

    # The slot to fill: that of the same page and owner, else a dead one, else the next in turn.
    def _victim(self, level: int, vpn: int, owner: int) -> int:
        first = self.start[level] + (vpn & self.set_mask[level]) * self.ways * _WORDS
        dead = -1
        index = first
        while index < first + self.ways * _WORDS:
            if self.slots[index] == vpn and self.slots[index + 1] == owner:
                return index
            if dead < 0 and self._is_dead(index):
                dead = index
            index += _WORDS
        if dead >= 0:
            return dead
        self.evictions += 1
        self.next_way[level] = (self.next_way[level] + 1) & (self.ways - 1)
        return first + self.next_way[level] * _WORDS

    # Dead for sure; an entry of a context that is not current counts as living unless all is flushed.
    def _is_dead(self, index: int) -> bool:
        stamp = self.slots[index + 2]
        owner = self.slots[index + 1]
        if owner == self.owner:
            return stamp < self.floor
        if owner == self.global_owner:
            return stamp < self.global_floor
        return stamp < self.all_floor

    # The same without bounds.

    def _find_kept(self, gva: Gva) -> int:
        level = 1
        while level <= 3:
            if self.used[level]:
                translation = self.kept.find(level, gva, self.owner, self.floor) or self.kept.find(
                    level, gva, self.global_owner, self.global_floor
                )
                if translation:
                    self.hits += 1
                    return translation
            level += 1
        self.misses += 1
        return 0

    # Entries of flushed contexts stay until their number pays for a pass over all of them.
    def _sweep(self) -> int:
        return self.kept.sweep({owner: self.floor_of(owner) for owner in self.kept.owners})

    # Looking at all of it, and flushes by guest frame.

    def entries(self) -> list[tuple[int, int, int, int]]:
        """Level, page number (gva by the size of its level), owner and translation word of each live entry.

        The owner is ``space << 13 | pcid << 1``, or ``space << 13 | 1`` of a global entry.
        """
        if self.keep_all:
            kept = [
                (*key, translation)
                for key, (stamp, translation) in self.kept.entries.items()
                if stamp >= self.floor_of(key[2])
            ]
            return sorted(kept)
        found = []
        for level in (1, 2, 3):
            first = self.start[level]
            for index in range(first, first + (self.set_mask[level] + 1) * self.ways * _WORDS, _WORDS):
                vpn = self.slots[index]
                owner = self.slots[index + 1]
                stamp = self.slots[index + 2]
                is_live = stamp != 0 and stamp >= self.floor_of(owner)
                if is_live and not (self.used_pieces and self._is_cut(Gva(vpn << (9 * level + 3)), index)):
                    found.append((level, vpn, owner, self.slots[index + 3]))
        return sorted(found)

    def note_gfn(self, gva: Gva, gfn: Gfn, translation: int) -> int:
        """Remember that what was just filled for ``gva`` goes through guest frame ``gfn``. Return 0."""
        level = (translation >> TR_LEVEL_SHIFT) & 3
        owner = self.global_owner if translation & TR_GLOBAL else self.owner
        if len(self.gfns) >= self.sweep_at:
            live = {entry[:3] for entry in self.entries()}
            self.gfns = {key: frame for key, frame in self.gfns.items() if key in live}
            self.sweep_at = max(_SWEEP_FROM, 2 * len(self.gfns))
        size = ONE << (9 * (level - 1))
        self.gfns[level, gva >> (9 * level + 3), owner] = gfn & ~(size - 1)
        return 0

    def flush_gfns(self, gfn: Gfn, nr_pages: int) -> int:
        """Flush the entries that go through ``nr_pages`` guest frames from ``gfn`` on, in every context. Return 0."""
        self.tick()
        for level, vpn, owner, _ in self.entries():
            first = self.gfns[level, vpn, owner]
            if first < gfn + nr_pages and gfn < first + (ONE << (9 * (level - 1))):
                if self.keep_all:
                    self.kept.entries.pop((level, vpn, owner), None)
                else:
                    self._forget_slot(level, vpn << (9 * level + 3), owner)  # type: ignore[arg-type]  # a tag's gva
        return 0

    # Flushes.

    def flush_all(self) -> int:
        """Flush everything: every address space, global entries included. Return 0."""
        self.kept.clear()
        self.used = [0] * 4
        self.used_pieces = False
        return self.raise_all()

    def invlpg(self, gva: Gva) -> int:
        """Flush the page of ``gva``, of any size: the current PCID's entries and global ones. Return 0."""
        self.tick()
        self._forget(gva, self.owner)
        return self._forget(gva, self.global_owner)

    def invlpg_pcid(self, pcid: int, gva: Gva) -> int:
        """Flush the page of ``gva`` in one PCID of the current space; global entries stay. Return 0."""
        self.tick()
        return self._forget(gva, (ONE * self.space << TLB_SPACE_SHIFT) | (ONE * pcid << TLB_PCID_SHIFT))

    def invlpg_space(self, gva: Gva) -> int:
        """Flush the page of ``gva``, of any size, under every PCID of the current space and if global. Return 0."""
        self.tick()
        if self.keep_all:
            for owner in self.kept.owners:
                if owner >> TLB_SPACE_SHIFT == self.space:
                    self.kept.forget(gva, owner)
            return 0
        piece = 1
        while piece <= 3 and self.used_pieces:
            self.cells[_cell(piece, gva)] = self.clock
            piece += 1
        level = 1
        while level <= 3:
            if self.used[level]:
                self._forget_slot_space(level, gva)
            level += 1
        return 0

    # Drop one owner's entries of the page that holds gva, with all pieces of a guest page around it.
    def _forget(self, gva: Gva, owner: int) -> int:
        if self.keep_all:
            return self.kept.forget(gva, owner)
        piece = 1
        while piece <= 3 and self.used_pieces:
            self.cells[_cell(piece, gva)] = self.clock
            piece += 1
        level = 1
        while level <= 3:
            if self.used[level]:
                self._forget_slot(level, gva, owner)
            level += 1
        return 0

    def _forget_slot(self, level: int, gva: Gva, owner: int) -> int:
        vpn = gva >> (9 * level + 3)
        index = self.start[level] + (vpn & self.set_mask[level]) * self.ways * _WORDS
        end = index + self.ways * _WORDS
        while index < end:
            if self.slots[index] == vpn and self.slots[index + 1] == owner:
                self.slots[index + 2] = 0
            index += _WORDS
        return 0

    def _forget_slot_space(self, level: int, gva: Gva) -> int:
        vpn = gva >> (9 * level + 3)
        index = self.start[level] + (vpn & self.set_mask[level]) * self.ways * _WORDS
        end = index + self.ways * _WORDS
        while index < end:
            if self.slots[index] == vpn and self.slots[index + 1] >> TLB_SPACE_SHIFT == self.space:
                self.slots[index + 2] = 0
            index += _WORDS
        return 0


def _cell(piece: int, gva: Gva) -> int:
    return ((gva >> piece_shift(piece)) + 341 * piece) & (_NR_CELLS - 1)
