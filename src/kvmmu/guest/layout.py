# SPDX-License-Identifier: GPL-2.0-only
"""How the page tables of each mode are laid out: where an entry lies, what its word says, which addresses there are.

Arithmetic only: a :class:`TableLayout` knows no memory and no root. :mod:`~kvmmu.guest.tables` writes tables with it.

===============  ======  ==========  ===================
mode             levels  page sizes  entry
===============  ======  ==========  ===================
``2-level``      2       4K          4 bytes
``2-level-pse``  2       4K, 4M      4 bytes, CR4.PSE
``pae``          3       4K, 2M      8 bytes, CR4.PAE
``4-level``      4       4K, 2M, 1G  8 bytes, EFER.LME
``5-level``      5       4K, 2M, 1G  8 bytes, CR4.LA57
===============  ======  ==========  ===================

Levels count from the bottom: 1 is the table whose entries map 4K pages.
"""

from __future__ import annotations

from array import array

from .. import arguments
from ..addr import Gpa
from ..errors import GuestMisuse
from ..hw.bits import (
    CR4_LA57,
    CR4_PAE,
    CR4_PSE,
    PT_FRAME,
    PT_PAGE_SIZE,
    PT_PRESENT,
    PT_PSE36_LOW,
    PT_PSE36_SHIFT,
)
from ..hw.modes import MODES, Limits, PagingMode
from ..page_types import PAGE_SIZE

SIZE_4K = 1 << 12
SIZE_2M = 1 << 21
SIZE_4M = 1 << 22
SIZE_1G = 1 << 30

_MODES = {mode.name: mode for mode in MODES if mode.levels and mode.is_guests}
#: The modes by name.
MODE_NAMES = tuple(_MODES)

_CR4 = {"2-level": 0, "2-level-pse": CR4_PSE, "pae": CR4_PAE, "4-level": CR4_PAE, "5-level": CR4_PAE | CR4_LA57}
#: Of the words of an array, by bytes per entry.
_TYPECODES = {4: "I", 8: "Q"}
_SIZE_NAMES = {SIZE_4K: "4K", SIZE_2M: "2M", SIZE_4M: "4M", SIZE_1G: "1G"}
#: Bits of a gpa that an 8-byte entry, and a 4M entry (PSE-36), can hold.
_GPA_BITS = 52
_PSE36_BITS = 40
#: Those of the CPU that reserves least.
WIDEST_LIMITS = Limits(_GPA_BITS, has_nx=True, has_gbpages=True)


def tables_mode(mode: PagingMode) -> str:
    """The name in this room of a row of :mod:`kvmmu.hw.modes`.

    :raises GuestMisuse: no guest has such tables of its own.
    """
    if mode.name in _MODES:
        return mode.name
    raise GuestMisuse(f"paging mode {mode.name}: there are {', '.join(_MODES)}")


class TableLayout:
    """The layout of the mode that is called ``name``; ``cr4`` are the bits of CR4 that it needs.

    :raises GuestMisuse: no such mode. Each check raises it too, with the rule that is broken.
    """

    __slots__ = ("cr4", "mode", "name")

    def __init__(self, name: str) -> None:
        mode = _MODES.get(name) if isinstance(name, str) else None
        if mode is None:
            raise GuestMisuse(f"paging mode {arguments.describe(name)}: there are {', '.join(_MODES)}")
        #: Its row in :mod:`kvmmu.hw.modes`.
        self.mode: PagingMode = mode
        self.name = name
        self.cr4 = _CR4[name]

    # Places.

    def entry_place(self, table: int, gva: int, level: int) -> Gpa:
        """Where the entry of ``gva`` lies, if ``table`` is its table of ``level``."""
        bits = self.mode.index_bits
        index = (gva >> (12 + bits * (level - 1))) & ((1 << bits) - 1)
        if self.mode.has_pdptrs and level == self.mode.levels:
            index &= 3
        return Gpa(table + index * self.mode.entry_size)

    def size_of(self, level: int) -> int:
        """Bytes that one entry of ``level`` translates."""
        return PAGE_SIZE << (self.mode.index_bits * (level - 1))

    def level_of(self, size: int) -> int:
        """The level whose entries map pages of ``size`` bytes; it is checked."""
        arguments.whole("size", size)
        sizes = {self.size_of(level): level for level in (1, *self.mode.large_levels)}
        if size not in sizes:
            names = ", ".join(f"{_SIZE_NAMES[known]} ({known:#x})" for known in sizes)
            raise GuestMisuse(f"page size {size:#x}: mode {self.name} has {names}")
        return sizes[size]

    @property
    def longest_range(self) -> int:
        """Bytes of the longest range of gvas without a hole: all, or one of the two canonical halves."""
        return 1 << (self._gva_bits() - (self.mode.levels >= 4))

    # Address bits that the tables translate.
    def _gva_bits(self) -> int:
        return 32 if self.mode.levels < 4 else 12 + 9 * self.mode.levels

    # Words.

    def is_leaf(self, entry: int, level: int) -> bool:
        """Whether ``entry`` of ``level`` maps a page rather than a table."""
        return level == 1 or (level in self.mode.large_levels and entry & PT_PAGE_SIZE != 0)

    def leaf(self, gva: int, gpa: int, level: int, flags: int) -> int:
        """The leaf that maps the page at ``gva`` to ``gpa``, all of it checked."""
        size = self.size_of(level)
        self.check_gva(gva)
        if gva % size or gpa % size:
            name = _SIZE_NAMES[size]
            raise GuestMisuse(f"map gva {gva:#x} to gpa {gpa:#x}: both must be multiples of {size:#x} ({name})")
        self.check_words(flags=flags)
        return self.leaf_word(gpa, level) | flags

    def leaf_word(self, gpa: int, level: int) -> int:
        """Frame bits of the leaf that maps ``gpa`` at ``level``, with the page-size bit; ``gpa`` is checked."""
        if self.mode.entry_size == 8:
            bits = _GPA_BITS
        else:
            bits = _PSE36_BITS if level == 2 else 32
        if gpa < 0 or gpa >> bits:
            raise GuestMisuse(f"gpa {gpa:#x}: an entry of level {level} in mode {self.name} holds {bits} bits")
        word = gpa
        if self.mode.entry_size == 4:
            word = (gpa & 0xFFFF_FFFF) | ((gpa >> PT_PSE36_SHIFT) & PT_PSE36_LOW if level == 2 else 0)
        return word | (PT_PAGE_SIZE if level > 1 else 0)

    def leaf_run(self, gpa: int, count: int, level: int, flags: int) -> bytes:
        """``count`` neighbouring leaves of pages that follow one another from ``gpa`` on, as they lie in a table."""
        size = self.size_of(level)
        typecode = _TYPECODES[self.mode.entry_size]
        if (level > 1 and self.mode.entry_size == 4) or flags & PT_FRAME:
            pages = range(gpa, gpa + count * size, size)
            return array(typecode, [self.leaf_word(page, level) | flags for page in pages]).tobytes()
        first = self.leaf_word(gpa, level) | flags
        return array(typecode, range(first, first + count * size, size)).tobytes()

    def link_flags(self, level: int, flags: int) -> int:
        """``flags`` as far as an entry of ``level`` that links a table has them: a PDPTE has neither W nor U."""
        return PT_PRESENT if self.mode.has_pdptrs and level == self.mode.levels else flags

    # Checks.

    def check_root(self, root: int) -> None:
        """CR3 must be able to hold ``root``."""
        align = 32 if self.mode.has_pdptrs else PAGE_SIZE
        bits = self.mode.root_bits[1] + 1
        if root % align or root >> bits:
            raise GuestMisuse(f"root {root:#x}: must be a multiple of {align:#x} below 2**{bits} in mode {self.name}")

    def check_gva(self, gva: int) -> None:
        """Bits above those that the mode translates must be copies of the highest (or 0, outside long mode)."""
        arguments.whole("gva", gva)
        if self.mode.levels < 4:
            if not 0 <= gva < 1 << 32:
                raise GuestMisuse(f"gva {gva:#x}: addresses of mode {self.name} have 32 bits")
            return
        bits = self._gva_bits()
        top = gva >> (bits - 1)
        if top not in (0, (1 << (65 - bits)) - 1):
            raise GuestMisuse(f"gva {gva:#x}: not canonical; bits 63 to {bits - 1} must be equal")

    def check_words(self, **words: int) -> None:
        """Words that go into entries must fit there; each is called by its name."""
        for what, word in words.items():
            if arguments.number(what, word) >> (8 * self.mode.entry_size):
                size = self.mode.entry_size
                raise GuestMisuse(f"{what} {word:#x}: entries of mode {self.name} have {size} bytes")
