# SPDX-License-Identifier: GPL-2.0-only
"""The entries of a TLB without bounds (``params.keep_all``): a dictionary in which they stay until they are flushed."""

from __future__ import annotations

from ..addr import Gva
from .bits import TR_LEVEL_SHIFT, TR_PIECE_SHIFT

# Sweep dead entries out when the dictionary has doubled since, and not below this size.
_SWEEP_FROM = 4096


class KeptEntries:
    """Entries by level, page number and owner, each with its stamp and translation word."""

    __slots__ = ("entries", "hit_key", "owners", "pieces", "sweep_at")

    def __init__(self) -> None:
        self.entries: dict[tuple[int, int, int], tuple[int, int]] = {}
        self.pieces: dict[tuple[int, int, int], set[tuple[int, int, int]]] = {}
        self.owners: set[int] = set()
        self.sweep_at = _SWEEP_FROM
        self.hit_key: tuple[int, int, int] | None = None

    def find(self, level: int, gva: Gva, owner: int, floor: int) -> int:
        """Translation word of the entry of this size and owner for ``gva``, or 0: none, or one from below ``floor``."""
        key = (level, gva >> (9 * level + 3), owner)
        found = self.entries.get(key)
        if found is None or found[0] < floor:
            return 0
        self.hit_key = key
        return found[1]

    def drop(self) -> int:
        """Forget the entry that :meth:`find` found last. Return 0."""
        self.entries.pop(self.hit_key, None)  # type: ignore[arg-type]  # find() has set it
        return 0

    def keep(self, gva: Gva, owner: int, translation: int, stamp: int) -> int:
        """Keep ``translation`` for ``gva``, in place of what the owner has there. Return 0."""
        level = (translation >> TR_LEVEL_SHIFT) & 3
        piece = (translation >> TR_PIECE_SHIFT) & 3
        key = (level, gva >> (9 * level + 3), owner)
        self.entries[key] = (stamp, translation)
        self.owners.add(owner)
        if piece:
            self.pieces.setdefault((piece, gva >> piece_shift(piece), owner), set()).add(key)
        return 0

    def is_full(self) -> bool:
        """Whether the dead entries among all of them may be worth a :meth:`sweep`."""
        return len(self.entries) >= self.sweep_at

    def sweep(self, floors: dict[int, int]) -> int:
        """Throw away what is dead by the ``floors`` of all owners. Return 0."""
        for key in list(self.entries):
            if self.entries[key][0] < floors[key[2]]:
                del self.entries[key]
        for page in list(self.pieces):
            self.pieces[page].intersection_update(self.entries)
            if not self.pieces[page]:
                del self.pieces[page]
        self.sweep_at = max(_SWEEP_FROM, 2 * len(self.entries))
        return 0

    def forget(self, gva: Gva, owner: int) -> int:
        """Drop one owner's entries for ``gva``, with all pieces of a guest page around it. Return 0."""
        for level in range(1, 4):
            self.entries.pop((level, gva >> (9 * level + 3), owner), None)
        for piece in range(1, 4) if self.pieces else ():
            for key in self.pieces.pop((piece, gva >> piece_shift(piece), owner), ()):
                entry = self.entries.get(key)
                if entry is not None and (entry[1] >> TR_PIECE_SHIFT) & 3 == piece:
                    del self.entries[key]
        return 0

    def clear(self) -> int:
        """Forget everything. Return 0."""
        self.entries.clear()
        self.pieces.clear()
        return 0


def piece_shift(piece: int) -> int:
    """Address bits below a guest page of this piece code: 2M, 4M, 1G."""
    if piece == 1:
        return 21
    return 22 if piece == 2 else 30
