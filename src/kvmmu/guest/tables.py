# SPDX-License-Identifier: GPL-2.0-only
"""Guest page tables, written as an operating system writes them: entry by entry, through stores that you supply.

A :class:`GuestTables` knows one paging mode and one root. It reads and stores words of guest memory through two
callables, so the same tables can be built from outside (the VMM's ``World.peek()`` and ``poke()``) and edited from
inside (a guest's own stores through a mapping of its tables, which the MMU may protect, emulate, or let go out of
sync)::

    world = World()
    world.add_slot(0, 0, 64 << 20)
    vcpu = world.create_vcpu()
    tables = world.tables("4-level", root=0x10000)
    tables.map(0x400000, 0x200000, flags=PT_PRESENT | PT_WRITABLE)
    world.load_registers(vcpu, tables.registers())

The modes are those of :mod:`~kvmmu.guest.layout`, which knows where entries lie and what they say. Nothing here flushes
a TLB: that is the guest's next step (``World.invlpg()``, ``World.mov_cr3()``), and forgetting it is a guest's right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .. import arguments
from ..addr import Gpa, Gva
from ..errors import GuestMisuse
from ..hw.bits import (
    CR0_ET,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    PT_FRAME,
    PT_NAMES,
    PT_PRESENT,
    PT_USER,
    PT_WRITABLE,
    describe_flags,
)
from ..hw.modes import (
    Limits,
)
from ..page_types import PAGE_SIZE
from .layout import MODE_NAMES, SIZE_1G, SIZE_2M, SIZE_4K, SIZE_4M, WIDEST_LIMITS, TableLayout
from .ranges import Mapping, table_ranges

__all__ = [
    "DEFAULT_FLAGS",
    "MODE_NAMES",
    "SIZE_1G",
    "SIZE_2M",
    "SIZE_4K",
    "SIZE_4M",
    "WIDEST_LIMITS",
    "ControlRegisters",
    "Element",
    "GuestTables",
    "TablePages",
]

#: What ``map()`` gives a page, and the tables above it, unless told otherwise.
DEFAULT_FLAGS = PT_PRESENT | PT_WRITABLE | PT_USER


@dataclass(frozen=True, slots=True)
class ControlRegisters:
    """The registers that choose a paging mode; what ``World.load_registers()`` takes."""

    cr0: int
    cr3: int
    cr4: int
    efer: int


@dataclass(frozen=True, slots=True)
class Element:
    """One step of a walk: the ``entry`` of ``level``, which lies at ``gpa``."""

    level: int
    gpa: Gpa
    entry: int

    def __repr__(self) -> str:
        flags = describe_flags(self.entry & 0xFFF, PT_NAMES)
        return f"<Element level {self.level} at {self.gpa:#x}: {self.entry:#x} {flags}>"


class TablePages:
    """Hands out the pages of ``[start, end)`` (gpas) one by one, for tables.

    :raises GuestMisuse: the bounds are not page aligned, or :meth:`take` finds no page left.
    """

    def __init__(self, start: Gpa | int, end: Gpa | int) -> None:
        arguments.numbers(start=start, end=end)
        if start % PAGE_SIZE or end % PAGE_SIZE or not start < end:
            raise GuestMisuse(f"table pages [{start:#x}, {end:#x}): bounds must be multiples of 0x1000, start first")
        self.start = start
        self.end = end
        self.next = start

    def take(self) -> Gpa:
        """The next page."""
        if self.next == self.end:
            raise GuestMisuse(
                f"all {(self.end - self.start) // PAGE_SIZE} table pages of [{self.start:#x}, {self.end:#x}) are in"
                " use; give the tables more room"
            )
        self.next += PAGE_SIZE
        return Gpa(self.next - PAGE_SIZE)


class GuestTables:
    """The page tables of one guest address space.

    :param mode: one of :data:`MODE_NAMES`.
    :param load: ``load(gpa, size)`` returns the word of ``size`` (4 or 8) bytes at ``gpa``.
    :param store: ``store(gpa, value, size)`` stores one.
    :param root: gpa of the root table: page aligned; 32 bytes aligned in mode ``pae``. It is used as it is.
    :param new_table: returns the gpa of a page for a further table (``TablePages.take``); it is cleared here.
    :param load_bytes: ``load_bytes(gpa, nr_bytes)`` returns bytes of one page; without it, whole tables are read by
        ``load``.
    :param store_bytes: ``store_bytes(gpa, data)`` stores bytes into one page; without it, tables are cleared and
        ranges mapped by ``store``, word by word, as a guest does it.
    :raises GuestMisuse: an unknown mode, or a misplaced root.
    """

    def __init__(
        self,
        mode: str,
        load: Callable[[Gpa, int], int],
        store: Callable[[Gpa, int, int], object],
        root: Gpa | int,
        new_table: Callable[[], Gpa],
        load_bytes: Callable[[Gpa, int], bytes] | None = None,
        store_bytes: Callable[[Gpa, bytes], object] | None = None,
    ) -> None:
        self.layout = TableLayout(mode)
        self.mode = self.layout.mode
        self.mode_name = mode
        for what, called in (("load", load), ("store", store), ("new_table", new_table)):
            arguments.function(what, called)
        for what, optional in (("load_bytes", load_bytes), ("store_bytes", store_bytes)):
            if optional is not None:
                arguments.function(what, optional)
        arguments.number("root", root)
        self.layout.check_root(root)
        self.load = load
        self.store = store
        self.root = Gpa(root)
        self.new_table = new_table
        self.load_bytes = load_bytes
        self.store_bytes = store_bytes

    def __repr__(self) -> str:
        return f"<GuestTables {self.mode_name} root {self.root:#x}>"

    # Registers.

    def registers(self, *, cr0: int = CR0_WP, cr4: int = 0, nx: bool = True) -> ControlRegisters:
        """Registers that make a vCPU use these tables.

        ``cr0`` and ``cr4`` are further bits (CR0.WP, CR4.SMEP ...); what the mode needs is added. ``nx`` sets EFER.NX.
        """
        arguments.numbers(cr0=cr0, cr4=cr4)
        efer = EFER_NX if arguments.flag("nx", nx) else 0
        if self.mode.levels >= 4:
            efer |= EFER_LME | EFER_LMA
        return ControlRegisters(CR0_PE | CR0_ET | CR0_PG | cr0, self.root, self.layout.cr4 | cr4, efer)

    # Editing.

    def map(
        self,
        gva: Gva | int,
        gpa: Gpa | int,
        size: int = SIZE_4K,
        flags: int = DEFAULT_FLAGS,
        table_flags: int = DEFAULT_FLAGS,
    ) -> Gpa:
        """Map the page of ``size`` bytes at ``gva`` to ``gpa`` with ``flags`` (``PT_*``; the page-size bit is added).

        Missing tables are made with ``table_flags``; those that exist are not touched, and neither is a TLB. Returns
        the gpa of the leaf entry.

        :raises GuestMisuse: a size that the mode lacks, an address that is not aligned or too wide for the mode, or a
            larger page in the way.
        """
        level = self.layout.level_of(size)
        arguments.number("gpa", gpa)
        self.layout.check_words(table_flags=table_flags)
        entry = self.layout.leaf(gva, gpa, level, flags)
        place = self._place(gva, level, table_flags)
        self.store(place, entry, self.mode.entry_size)
        return place

    def map_range(
        self, gva: Gva | int, gpa: Gpa | int, nr_bytes: int, size: int = SIZE_4K, flags: int = DEFAULT_FLAGS
    ) -> None:
        """:meth:`map` for each page of ``nr_bytes`` bytes, from the lowest on.

        The entries of one table are stored together where ``store_bytes`` is given.

        :raises GuestMisuse: as :meth:`map`, or ``nr_bytes`` is not a multiple of ``size``; nothing is mapped then.
            Where a larger page is in the way, or no page is left for a table, what lies below stays mapped.
        """
        level = self.layout.level_of(size)
        self.layout.check_gva(gva)
        arguments.numbers(gpa=gpa, nr_bytes=nr_bytes)
        if nr_bytes % size:
            raise GuestMisuse(f"map_range of {nr_bytes:#x} bytes: must be a multiple of the page size {size:#x}")
        if nr_bytes == 0:
            return
        self.layout.leaf(gva, gpa, level, flags)
        self.layout.leaf(gva + nr_bytes - size, gpa + nr_bytes - size, level, flags)
        if nr_bytes > self.layout.longest_range:
            raise GuestMisuse(f"map_range of {nr_bytes:#x} bytes at gva {gva:#x}: some of it is not canonical")
        offset = 0
        while offset < nr_bytes:
            offset += self._map_run(gva + offset, gpa + offset, nr_bytes - offset, level, flags)

    # Map what one table holds of a range, at most nr_bytes; returns how many bytes that was.
    def _map_run(self, gva: int, gpa: int, nr_bytes: int, level: int, flags: int) -> int:
        size = self.layout.size_of(level)
        place = self._place(gva, level, DEFAULT_FLAGS)
        if self.store_bytes is None:
            self.store(place, self.layout.leaf_word(gpa, level) | flags, self.mode.entry_size)
            return size
        count = min((PAGE_SIZE - place % PAGE_SIZE) // self.mode.entry_size, nr_bytes // size)
        self.store_bytes(place, self.layout.leaf_run(gpa, count, level, flags))
        return count * size

    def unmap(self, gva: Gva | int) -> Gpa:
        """Clear the leaf entry of ``gva``, of whatever size; the tables stay. Returns the gpa of the entry.

        :raises GuestMisuse: nothing is mapped there.
        """
        leaf = self.walk(gva)[-1]
        if not leaf.entry & PT_PRESENT:
            raise GuestMisuse(f"unmap gva {gva:#x}: nothing is mapped there (level {leaf.level}: {leaf.entry:#x})")
        self.store(leaf.gpa, 0, self.mode.entry_size)
        return leaf.gpa

    def set_entry(self, gva: Gva | int, level: int, entry: int) -> Gpa:
        """Store the word ``entry`` as the entry of ``gva`` at ``level``, whatever it means; returns its gpa.

        :raises GuestMisuse: a word wider than an entry, or no table of that level there.
        """
        self.layout.check_words(entry=entry)
        place = self.entry_gpa(gva, level)
        self.store(place, entry, self.mode.entry_size)
        return place

    def set_bits(self, gva: Gva | int, bits: int, level: int | None = None) -> int:
        """Set ``bits`` in the entry of ``gva`` at ``level`` (None: the leaf); returns the new entry."""
        self.layout.check_words(bits=bits)
        return self._change_bits(gva, level, bits, 0)

    def clear_bits(self, gva: Gva | int, bits: int, level: int | None = None) -> int:
        """Clear ``bits`` in the entry of ``gva`` at ``level`` (None: the leaf); returns the new entry."""
        self.layout.check_words(bits=bits)
        return self._change_bits(gva, level, 0, bits)

    def _change_bits(self, gva: Gva | int, level: int | None, to_set: int, to_clear: int) -> int:
        place = self.walk(gva)[-1].gpa if level is None else self.entry_gpa(gva, level)
        size = self.mode.entry_size
        entry = (self.load(place, size) | to_set) & ~to_clear
        self.store(place, entry, size)
        return entry

    # Looking.

    def walk(self, gva: Gva | int) -> list[Element]:
        """The entries on the way to ``gva``, top first, down to the leaf or the first that is not present."""
        self.layout.check_gva(gva)
        elements = []
        table = self.root
        for level in range(self.mode.levels, 0, -1):
            place = self.layout.entry_place(table, gva, level)
            entry = self.load(place, self.mode.entry_size)
            elements.append(Element(level, place, entry))
            if not entry & PT_PRESENT or self.layout.is_leaf(entry, level):
                break
            table = Gpa(entry & PT_FRAME)
        return elements

    def ranges(self, limits: Limits = WIDEST_LIMITS) -> Iterator[Mapping]:
        """All that the tables map, ascending, as ranges of pages that are alike; see :class:`~.ranges.Mapping`.

        ``limits`` are those of the CPU that uses the tables: they decide which bits are reserved. Tables are read as
        the iterator comes to them.
        """
        arguments.instance("limits", limits, Limits, "kvmmu.hw.modes.Limits says which bits are reserved")
        return table_ranges(self, limits)

    def table_words(self, table: Gpa, count: int) -> Sequence[int]:
        """The first ``count`` entries of the table at gpa ``table``."""
        arguments.number("table", table)
        arguments.number("count", count, PAGE_SIZE // self.mode.entry_size)
        size = self.mode.entry_size
        if self.load_bytes is None:
            return [self.load(Gpa(table + offset), size) for offset in range(0, count * size, size)]
        return memoryview(self.load_bytes(table, count * size)).cast("Q" if size == 8 else "I")

    def is_leaf(self, entry: int, level: int) -> bool:
        """Whether ``entry`` of ``level`` maps a page rather than a table."""
        arguments.numbers(entry=entry, level=level)
        return self.layout.is_leaf(entry, level)

    def entry_gpa(self, gva: Gva | int, level: int) -> Gpa:
        """Where the entry of ``gva`` at ``level`` lies.

        :raises GuestMisuse: no such level, or the tables above do not lead to it.
        """
        self.layout.check_gva(gva)
        arguments.whole("level", level)
        if not 1 <= level <= self.mode.levels:
            raise GuestMisuse(f"level {level}: mode {self.mode_name} has levels 1 to {self.mode.levels}")
        table = self.root
        for above in range(self.mode.levels, level, -1):
            entry = self.load(self.layout.entry_place(table, gva, above), self.mode.entry_size)
            if not entry & PT_PRESENT or self.layout.is_leaf(entry, above):
                what = "maps a page" if entry & PT_PRESENT else "is not present"
                raise GuestMisuse(f"gva {gva:#x} has no table of level {level}: its level {above} entry {what}")
            table = Gpa(entry & PT_FRAME)
        return self.layout.entry_place(table, gva, level)

    def entry(self, gva: Gva | int, level: int) -> int:
        """The entry of ``gva`` at ``level``; raises as :meth:`entry_gpa`."""
        return self.load(self.entry_gpa(gva, level), self.mode.entry_size)

    def level_of(self, size: int) -> int:
        """The level whose entries map pages of ``size`` bytes.

        :raises GuestMisuse: the mode has no such pages.
        """
        return self.layout.level_of(size)

    # Location of the entry of gva at level, with the tables above it made where they are missing.
    def _place(self, gva: int, level: int, table_flags: int) -> Gpa:
        size = self.mode.entry_size
        table = self.root
        for above in range(self.mode.levels, level, -1):
            place = self.layout.entry_place(table, gva, above)
            entry = self.load(place, size)
            if entry & PT_PRESENT and self.layout.is_leaf(entry, above):
                raise GuestMisuse(f"gva {gva:#x}: level {above} maps a larger page ({entry:#x}); unmap() it first")
            if not entry & PT_PRESENT:
                entry = self._make_table(above, table_flags)
                self.store(place, entry, size)
            table = Gpa(entry & PT_FRAME)
        return self.layout.entry_place(table, gva, level)

    # A cleared table, as the entry of level above that points to it.
    def _make_table(self, above: int, table_flags: int) -> int:
        table = self.new_table()
        if self.store_bytes is not None:
            self.store_bytes(table, bytes(PAGE_SIZE))
        else:
            for offset in range(0, PAGE_SIZE, self.mode.entry_size):
                self.store(Gpa(table + offset), 0, self.mode.entry_size)
        return table | self.layout.link_flags(above, table_flags)
