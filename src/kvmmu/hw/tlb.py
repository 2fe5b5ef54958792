# SPDX-License-Identifier: GPL-2.0-only
"""One CPU's TLB: what was translated, for whom, and since when.

An entry is four words: the page number, its owner, a stamp, and the translation word (TR_* of
:mod:`kvmmu.hw.bits`) that the access is judged by. The owner is the address space (ASID or VPID), the PCID and the
global bit; a global entry has no PCID. The stamp is the TLB's clock at the fill.

A flush moves the clock and notes it as the *floor* of what it flushes; an entry lives while its stamp is not below
the floor that applies to it. So every flush is O(1), and only INVLPG touches entries. Floors that the current
context needs are kept in ``floor`` and ``global_floor``; :meth:`Tlb.switch` exchanges them. Clocks and floors have
64 bits and never wrap.

A guest page larger than the entry that holds a piece of it (a 4M page, or a large page over small nested ones) is
invalidated as a whole by INVLPG of any of its addresses. Pieces carry the page's size, and have floors by page.

With ``tracks_gfns`` the TLB also knows the guest frame behind each entry, so that :meth:`Tlb.flush_gfns` finds what
came through a range of guest memory.

With ``keep_all`` nothing is ever evicted: entries sit in a dictionary until a flush is demanded.
"""

from __future__ import annotations

from array import array

from ..addr import Gfn, Gva
from ..page_types import ONE
from .bits import TR_GLOBAL, TR_LEVEL_SHIFT, TR_PIECE_SHIFT
from .cpumodel import CpuModel

_WORDS = 4
_PCID_SHIFT = 1
_SPACE_SHIFT = 13
_GLOBAL_OWNER = 1
# Floors of pieces of guest pages, by a hash of the page; two pages that share a floor are flushed together.
_NR_CELLS = 1024
# With keep_all: sweep dead entries out when the dictionary has doubled since, and not below this size.
_SWEEP_FROM = 4096


class Tlb:
    """A set-associative TLB with 4K, 2M and 1G entries, or one without bounds (``params.keep_all``).

    ``hits``, ``misses``, ``evictions`` (live entries that made room for others) and ``flushes`` (flush operations,
    INVLPG among them) count from creation on.
    """

    __slots__ = (
        "all_floor",
        "cells",
        "clock",
        "evictions",
        "floor",
        "flushes",
        "gfns",
        "global_floor",
        "global_floors",
        "global_owner",
        "hit_index",
        "hit_key",
        "hits",
        "keep_all",
        "kept",
        "kept_owners",
        "kept_pieces",
        "local_floors",
        "misses",
        "next_way",
        "owner",
        "pcid",
        "pcid_floors",
        "set_mask",
        "slots",
        "space",
        "start",
        "sweep_at",
        "tracks_gfns",
        "used",
        "used_pieces",
        "ways",
    )

    def __init__(self, params: CpuModel) -> None:
        self.keep_all = params.keep_all
        self.kept: dict[tuple[int, int, int], tuple[int, int]] = {}
        self.sweep_at = _SWEEP_FROM
        self.hit_key: tuple[int, int, int] | None = None
        self.tracks_gfns = params.tracks_gfns
        self.gfns: dict[tuple[int, int, int], int] = {}
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
        self.kept_pieces: dict[tuple[int, int, int], set[tuple[int, int, int]]] = {}
        self.kept_owners: set[int] = set()
        self.clock = 1
        self.all_floor = 1
        self.global_floors: dict[int, int] = {}
        self.local_floors: dict[int, int] = {}
        self.pcid_floors: dict[int, int] = {}
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self.flushes = 0
        self.space = 0
        self.pcid = 0
        self.switch(0, 0)

    def switch(self, space: int, pcid: int) -> int:
        """Make (``space``, ``pcid``) the context that lookups and fills belong to; flushes nothing. Return 0."""
        self.space = space
        self.pcid = pcid
        self.owner = (ONE * space << _SPACE_SHIFT) | (ONE * pcid << _PCID_SHIFT)
        self.global_owner = (ONE * space << _SPACE_SHIFT) | _GLOBAL_OWNER
        self.floor = self._floor_of(self.owner)
        self.global_floor = self._floor_of(self.global_owner)
        return 0

    # The clock value below which entries of this owner are dead.
    def _floor_of(self, owner: int) -> int:
        space = owner >> _SPACE_SHIFT
        if owner & _GLOBAL_OWNER:
            return max(self.all_floor, self.global_floors.get(space, 0))
        return max(self.all_floor, self.local_floors.get(space, 0), self.pcid_floors.get(owner, 0))

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
        hits = self.hits
        misses = self.misses
        index = self.hit_index
        key = self.hit_key
        translation = self.find(gva)
        self.hits = hits
        self.misses = misses
        self.hit_index = index
        self.hit_key = key
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
            self.kept.pop(self.hit_key, None)  # type: ignore[arg-type]  # find() has set it
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
            return self._keep(gva, owner, translation)
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
                translation = self._probe_kept(level, gva, self.owner, self.floor) or self._probe_kept(
                    level, gva, self.global_owner, self.global_floor
                )
                if translation:
                    self.hits += 1
                    return translation
            level += 1
        self.misses += 1
        return 0

    def _probe_kept(self, level: int, gva: Gva, owner: int, floor: int) -> int:
        key = (level, gva >> (9 * level + 3), owner)
        found = self.kept.get(key)
        if found is None or found[0] < floor:
            return 0
        self.hit_key = key
        return found[1]

    def _keep(self, gva: Gva, owner: int, translation: int) -> int:
        level = (translation >> TR_LEVEL_SHIFT) & 3
        piece = (translation >> TR_PIECE_SHIFT) & 3
        key = (level, gva >> (9 * level + 3), owner)
        if len(self.kept) >= self.sweep_at:
            self._sweep()
        self.kept[key] = (self.clock, translation)
        self.kept_owners.add(owner)
        if piece:
            self.kept_pieces.setdefault((piece, gva >> _piece_shift(piece), owner), set()).add(key)
        return 0

    # Entries of flushed contexts stay in the dictionary until their number pays for a pass over it.
    def _sweep(self) -> int:
        for key in list(self.kept):
            if self.kept[key][0] < self._floor_of(key[2]):
                del self.kept[key]
        for page in list(self.kept_pieces):
            self.kept_pieces[page].intersection_update(self.kept)
            if not self.kept_pieces[page]:
                del self.kept_pieces[page]
        self.sweep_at = max(_SWEEP_FROM, 2 * len(self.kept))
        return 0

    # Drop one owner's entries for gva, with all pieces of a guest page around it.
    def _forget_kept(self, gva: Gva, owner: int) -> int:
        for level in range(1, 4):
            self.kept.pop((level, gva >> (9 * level + 3), owner), None)
        for piece in range(1, 4) if self.used_pieces else ():
            for key in self.kept_pieces.pop((piece, gva >> _piece_shift(piece), owner), ()):
                entry = self.kept.get(key)
                if entry is not None and (entry[1] >> TR_PIECE_SHIFT) & 3 == piece:
                    del self.kept[key]
        return 0

    # Looking at all of it, and flushes by guest frame.

    def entries(self) -> list[tuple[int, int, int, int]]:
        """Level, page number (gva by the size of its level), owner and translation word of each live entry.

        The owner is ``space << 13 | pcid << 1``, or ``space << 13 | 1`` of a global entry.
        """
        if self.keep_all:
            kept = [
                (*key, translation)
                for key, (stamp, translation) in self.kept.items()
                if stamp >= self._floor_of(key[2])
            ]
            return sorted(kept)
        found = []
        for level in (1, 2, 3):
            first = self.start[level]
            for index in range(first, first + (self.set_mask[level] + 1) * self.ways * _WORDS, _WORDS):
                vpn = self.slots[index]
                owner = self.slots[index + 1]
                stamp = self.slots[index + 2]
                is_live = stamp != 0 and stamp >= self._floor_of(owner)
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
        self._tick()
        for level, vpn, owner, _ in self.entries():
            first = self.gfns[level, vpn, owner]
            if first < gfn + nr_pages and gfn < first + (ONE << (9 * (level - 1))):
                if self.keep_all:
                    self.kept.pop((level, vpn, owner), None)
                else:
                    self._forget_slot(level, vpn << (9 * level + 3), owner)  # type: ignore[arg-type]  # a tag's gva
        return 0

    # Flushes.

    def flush_all(self) -> int:
        """Flush everything: every address space, global entries included. Return 0."""
        self._tick()
        self.all_floor = self.clock
        self.global_floors.clear()
        self.local_floors.clear()
        self.pcid_floors.clear()
        self.kept.clear()
        self.kept_pieces.clear()
        self.used = [0] * 4
        self.used_pieces = False
        return self._refresh()

    def flush_space(self, space: int) -> int:
        """Flush all of one address space (ASID, VPID), global entries included. Return 0."""
        self._tick()
        self.global_floors[space] = self.clock
        self.local_floors[space] = self.clock
        return self._refresh()

    def flush_non_global(self) -> int:
        """Flush every PCID of the current space except its global entries. Return 0."""
        self._tick()
        self.local_floors[self.space] = self.clock
        return self._refresh()

    def flush_pcid(self, pcid: int) -> int:
        """Flush one PCID of the current space except its global entries. Return 0."""
        self._tick()
        self.pcid_floors[(ONE * self.space << _SPACE_SHIFT) | (ONE * pcid << _PCID_SHIFT)] = self.clock
        return self._refresh()

    def flush_current(self) -> int:
        """Flush the current PCID and the global entries of the current space. Return 0."""
        self._tick()
        self.pcid_floors[self.owner] = self.clock
        self.global_floors[self.space] = self.clock
        return self._refresh()

    def invlpg(self, gva: Gva) -> int:
        """Flush the page of ``gva``, of any size: the current PCID's entries and global ones. Return 0."""
        self._tick()
        self._forget(gva, self.owner)
        return self._forget(gva, self.global_owner)

    def invlpg_pcid(self, pcid: int, gva: Gva) -> int:
        """Flush the page of ``gva`` in one PCID of the current space; global entries stay. Return 0."""
        self._tick()
        return self._forget(gva, (ONE * self.space << _SPACE_SHIFT) | (ONE * pcid << _PCID_SHIFT))

    def invlpg_space(self, gva: Gva) -> int:
        """Flush the page of ``gva``, of any size, under every PCID of the current space and if global. Return 0."""
        self._tick()
        if self.keep_all:
            for owner in [owner for owner in self.kept_owners if owner >> _SPACE_SHIFT == self.space]:
                self._forget_kept(gva, owner)
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

    def _tick(self) -> int:
        self.clock += 1
        self.flushes += 1
        return 0

    def _refresh(self) -> int:
        self.floor = self._floor_of(self.owner)
        self.global_floor = self._floor_of(self.global_owner)
        return 0

    # Drop one owner's entries of the page that holds gva, with all pieces of a guest page around it.
    def _forget(self, gva: Gva, owner: int) -> int:
        if self.keep_all:
            return self._forget_kept(gva, owner)
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
            if self.slots[index] == vpn and self.slots[index + 1] >> _SPACE_SHIFT == self.space:
                self.slots[index + 2] = 0
            index += _WORDS
        return 0


# Address bits below a guest page of this piece code: 2M, 4M, 1G.
def _piece_shift(piece: int) -> int:
    if piece == 1:
        return 21
    return 22 if piece == 2 else 30


def _cell(piece: int, gva: Gva) -> int:
    return ((gva >> _piece_shift(piece)) + 341 * piece) & (_NR_CELLS - 1)
