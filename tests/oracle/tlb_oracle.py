# SPDX-License-Identifier: GPL-2.0-only
"""What a CPU may have cached: a slow model of TLB and paging-structure caches as sets of what is allowed.

For each address of interest a :class:`Cached` holds, per level, every table that the CPU may believe to be the next on
the way (paging-structure caches), and every translation that it may use. The sets grow with each change of the guest's
tables, from what the tables say then (only entries with A set are cached), and shrink with the guest's flushes only.
An access is right if the tables as they are explain it (``access_oracle.predict()``), or a cached translation does.
A cached one explains no fault: a CPU that is refused by its TLB walks anew.

Source: Intel SDM volume 3, "Caching Translation Information"; no code is shared with the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from oracle import access_oracle
from oracle.access_oracle import Access, Machine

_RIGHTS = 0x8000_0000_0000_0006
_NX = 1 << 63
_PRESENT, _ACCESSED, _DIRTY, _GLOBAL = 1, 0x20, 0x40, 0x100


@dataclass(frozen=True)
class Translation:
    """A cached translation: where the page begins, its size in bits, rights as an entry's W, U and NX, and D."""

    gpa: int
    size_bits: int
    rights: int
    is_dirty: bool
    is_global: bool
    key: int

    def target(self, gva: int) -> int:
        return self.gpa + gva % 2**self.size_bits

    def allows(self, machine: Machine, access: Access) -> bool:
        """Whether the access can be made with it alone; a write through a clean one needs a walk that sets D."""
        if access.write and not self.is_dirty:
            return False
        return access_oracle._rights(machine, access, [self.rights], self.key)[0]


def combine(rights: int, entry: int) -> int:
    """Rights of a path and one entry more: W and U where both have them, NX where one has it."""
    return (rights & entry & 6) | ((rights | entry) & _NX)


@dataclass
class Cached:
    """What may be cached for one address in one context (PCID)."""

    gva: int
    #: By index of the structure (0: the root's): tables, with the rights of the way to them.
    tables: list[set[tuple[int, int]]] = field(default_factory=lambda: [set() for _ in range(5)])
    translations: set[Translation] = field(default_factory=set)

    def forget_tables(self) -> None:
        for level in self.tables:
            level.clear()

    def grow(self, machine: Machine, has_pge: bool) -> None:
        """Add what the tables say now."""
        gva = self.gva
        if machine.paging in ("32", "pae"):
            gva %= 2**32
        structures = access_oracle._STRUCTURES[machine.paging]
        width = 4 if machine.paging == "32" else 8
        root = access_oracle._field(machine.cr3, 12, 31 if width == 4 else machine.width - 1) << 12
        self.tables[0] = {(root, 6)}
        for depth, (name, low_bit, bits) in enumerate(structures):
            index = access_oracle._field(gva, low_bit, low_bit + bits - 1)
            for table, rights in self.tables[depth]:
                if name == "PDPTE-PAE":
                    entry = machine.pdptes[index] | _ACCESSED | 6
                    is_bad = not entry & _PRESENT
                else:
                    entry = machine.ram.load(table + index * width, width)
                    is_bad = not entry & _PRESENT or access_oracle._has_reserved(machine, name, entry)
                if is_bad or not entry & _ACCESSED:
                    continue
                below = combine(rights, entry if machine.paging != "32" else entry & 0xFFFF_FFFF)
                if access_oracle._maps_page(machine, name, entry):
                    self.translations.add(
                        Translation(
                            access_oracle._page_address(name, entry, low_bit, 0),
                            low_bit,
                            below,
                            bool(entry & _DIRTY),
                            has_pge and bool(entry & _GLOBAL),
                            access_oracle._field(entry, 59, 62) if width == 8 else 0,
                        )
                    )
                else:
                    self.tables[depth + 1].add((access_oracle._field(entry, 12, 51) << 12, below))


class Caches:
    """What one CPU may have cached for ``gvas`` (page addresses), per PCID."""

    def __init__(self, gvas: Iterable[int]) -> None:
        self.gvas = list(gvas)
        self.contexts: dict[int, dict[int, Cached]] = {}
        self.pcid = 0

    def current(self) -> dict[int, Cached]:
        """The current context."""
        if self.pcid not in self.contexts:
            self.contexts[self.pcid] = {gva: Cached(gva) for gva in self.gvas}
        return self.contexts[self.pcid]

    def grow(self, machine: Machine, has_pge: bool) -> None:
        """The tables, or what selects them, may have changed."""
        if machine.paging == "off":
            return
        for cached in self.current().values():
            cached.grow(machine, has_pge)

    def translations(self, gva: int) -> set[Translation]:
        """What may be used for the page ``gva`` now: its own PCID's, and global ones of all."""
        found = set(self.current()[gva].translations)
        for context in self.contexts.values():
            found |= {entry for entry in context[gva].translations if entry.is_global}
        return found

    # Flushes.

    def flush(self, is_gone: Callable[[int, Cached, Translation], bool], pcids: Iterable[int] | None = None) -> None:
        """Drop the paging-structure caches of ``pcids`` (None: all), and translations for which ``is_gone``."""
        for pcid, context in self.contexts.items():
            for cached in context.values():
                if pcids is None or pcid in pcids:
                    cached.forget_tables()
                cached.translations = {entry for entry in cached.translations if not is_gone(pcid, cached, entry)}

    def flush_all(self) -> None:
        self.contexts.clear()

    def flush_pcid(self, pcid: int) -> None:
        """One PCID, without global translations."""
        self.flush(lambda owner, _cached, entry: owner == pcid and not entry.is_global, [pcid])

    def flush_non_global(self) -> None:
        self.flush(lambda _owner, _cached, entry: not entry.is_global)

    def flush_current(self) -> None:
        """The current PCID, and global translations."""
        self.flush(lambda owner, _cached, entry: owner == self.pcid or entry.is_global, [self.pcid])

    def flush_page(self, gva: int, pcid: int, with_global: bool) -> None:
        """INVLPG (with global translations) or INVPCID of one page: whatever covers ``gva``."""

        def is_gone(owner: int, cached: Cached, entry: Translation) -> bool:
            is_there = cached.gva >> entry.size_bits == gva >> entry.size_bits
            return is_there and ((owner == pcid and not entry.is_global) or (entry.is_global and with_global))

        self.flush(is_gone, [pcid])
