# SPDX-License-Identifier: GPL-2.0-only
"""What a recording's guest tables held at any moment since a CPU's last flush, and when that flush was.

A replay needs it only where model and machine translate differently. So nothing is kept while records are played:
:class:`Past` reads the recording a second time, by itself, when it is first asked, and from where it stopped when it
is asked again. A replay without such a disagreement pays nothing, any other at most one more reading.

Moments are record numbers. A value that record ``n`` overwrote was valid until ``n``; a flush in record ``f`` leaves
what was valid until later than ``f``. What is kept is bounded; where a bound is met the older half is forgotten, and
every moment before that counts as flushed, so that forgetting never allows more.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from ..hw.bits import (
    CR0_CD,
    CR0_NW,
    CR0_PG,
    CR3_PCID,
    CR4_LA57,
    CR4_PAE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PSE,
    CR4_SMEP,
    EFER_LMA,
    INVPCID_ADDRESS,
    INVPCID_ALL,
    INVPCID_CONTEXT,
    PT_ACCESSED,
    PT_DIRTY,
)
from ..page_types import PAGE_SIZE
from ..record.format import K_INVLPG, K_INVPCID, K_PAGE, K_REGS, K_STORE, W_CR3, W_INIT
from ..record.reader import Reader

#: A value that is still there is valid until then.
NOW = 1 << 63
#: Overwritten values, invalidated pages, moments at which paging-structure caches were dropped, and roots (the last
#: three: of one CPU) that are kept at most.
MOST_VALUES = 1 << 18
MOST_PAGES = 1 << 18
MOST_DROPS = 1 << 18
MOST_ROOTS = 1 << 12
#: Log2 of the sizes that a page can have.
PAGE_SHIFTS = (12, 21, 22, 30)

# Owner of global pages, and of moments at which the caches of all PCIDs were dropped.
_ANY_PCID = -1
_ALL_CR4 = CR4_PGE | CR4_LA57 | CR4_PAE | CR4_PSE
_RELOADS_CR0 = CR0_PG | CR0_CD | CR0_NW
_RELOADS_CR4 = CR4_PAE | CR4_PSE | CR4_PGE | CR4_SMEP


class Root:
    """A root table that a CPU used: ``pcid``, ``cr3``, the record that loaded it last and the one that left it."""

    __slots__ = ("cr3", "left", "loaded", "pcid")

    def __init__(self, pcid: int, cr3: int, loaded: int) -> None:
        self.pcid = pcid
        self.cr3 = cr3
        self.loaded = loaded
        self.left = NOW


class CpuPast:
    """One CPU: its registers, the roots that it used, and the moments at which it flushed.

    The rules are the least that a CPU must flush (Intel SDM volume 3, "Operations that Invalidate TLBs and
    Paging-Structure Caches"). A load of CR3 counts as a flush of its PCID: a recording does not say whether bit 63 kept
    it (QEMU, which has no PCIDs, flushes then, too). Registers that changed for an unknown reason (W_INIT) count as a
    flush of everything.
    """

    def __init__(self) -> None:
        self.cr0 = 0
        self.cr3 = 0
        self.cr4 = 0
        self.efer = 0
        self.pkru = 0
        self.pcid = 0
        # Moments: of everything; of all that is not global; of what is global; of one PCID.
        self.all = -1
        self.local = -1
        self.globals = -1
        self.pcids: dict[int, int] = {}
        # (PCID or _ANY_PCID for global ones, log2 of its size, page number) -> moment.
        self.pages: dict[tuple[int, int, int], int] = {}
        # PCID or _ANY_PCID -> moments, ascending.
        self.drops: dict[int, array[int]] = {}
        self.nr_drops = 0
        self.roots: dict[tuple[int, int], Root] = {}

    def trim(self, gva: int) -> int:
        """``gva`` with the bits that this mode has."""
        return gva if self.efer & EFER_LMA else gva & 0xFFFF_FFFF

    def floor(self, is_global: bool, shift: int, gva: int) -> int:
        """The last moment at which this CPU flushed the page of ``gva`` (2**``shift`` bytes) in its current context."""
        owner = _ANY_PCID if is_global else self.pcid
        page = self.pages.get((owner, shift, self.trim(gva) >> shift), -1)
        if is_global:
            return max(self.all, self.globals, page)
        return max(self.all, self.local, self.pcids.get(self.pcid, -1), page)

    def first_floor(self, gva: int) -> int:
        """The earliest that :meth:`floor` is, whatever page it turns out to be."""
        return min(self.floor(is_global, shift, gva) for is_global in (False, True) for shift in PAGE_SHIFTS)

    def dropped_between(self, pcid: int, after: int, before: int) -> bool:
        """Whether the paging-structure caches of ``pcid`` were dropped after the one moment and before the other."""
        for owner in (pcid, _ANY_PCID):
            moments = self.drops.get(owner)
            if moments:
                index = bisect_right(moments, after)
                if index < len(moments) and moments[index] < before:
                    return True
        return False

    def change_registers(self, reader: Reader, moment: int) -> None:
        """Take over the REGS record in hand, with the flushes that it stands for."""
        changed0, changed4 = self.cr0 ^ reader.cr0, self.cr4 ^ reader.cr4
        efer_lma = (self.efer ^ reader.efer) & EFER_LMA
        cr3 = reader.cr3
        is_new = bool(changed0 or changed4 or self.efer != reader.efer or self.cr3 != cr3)
        smep_on = changed4 & reader.cr4 & CR4_SMEP
        pcide_off = changed4 & self.cr4 & CR4_PCIDE
        is_mov_cr3 = reader.what == W_CR3
        unexplained = (reader.what == W_INIT and is_new) or (self.cr3 != cr3 and not is_mov_cr3)
        self.cr0, self.cr4, self.efer, self.pkru = reader.cr0, reader.cr4, reader.efer, reader.pkru
        has_pcid = self.cr4 & CR4_PCIDE and self.efer & EFER_LMA
        self._switch(cr3, cr3 & CR3_PCID if has_pcid else 0, moment)
        if is_mov_cr3 or unexplained or changed0 & _RELOADS_CR0 or changed4 & _RELOADS_CR4:
            self.roots[self.pcid, self.cr3].loaded = moment
        if unexplained or changed0 & CR0_PG or changed4 & _ALL_CR4 or pcide_off or efer_lma:
            self.flush_all(moment)
            return
        if smep_on:
            self.globals = moment
            self._flush_pcid(self.pcid, moment)
        if is_mov_cr3:
            self._flush_pcid(self.pcid, moment)

    def _switch(self, cr3: int, pcid: int, moment: int) -> None:
        old = self.roots.get((self.pcid, self.cr3))
        if old is not None and (pcid, cr3) != (self.pcid, self.cr3):
            old.left = moment
        self.pcid, self.cr3 = pcid, cr3
        root = self.roots.setdefault((pcid, cr3), Root(pcid, cr3, moment))
        root.left = NOW
        if len(self.roots) > MOST_ROOTS:
            self._forget_before(sorted(root.left for root in self.roots.values())[MOST_ROOTS // 2])

    def flush_all(self, moment: int) -> None:
        """Everything is flushed: every PCID, global pages too."""
        self.all = moment
        self.pcids.clear()
        self.pages.clear()
        self.drops.clear()
        self.nr_drops = 0
        current = self.pcid, self.cr3
        self.roots = {current: self.roots.get(current) or Root(*current, moment)}

    def _flush_pcid(self, pcid: int, moment: int) -> None:
        self.pcids[pcid] = moment
        self._drop(pcid, moment)

    def _flush_page(self, owner: int, gva: int, moment: int) -> None:
        for shift in PAGE_SHIFTS:
            self.pages[owner, shift, self.trim(gva) >> shift] = moment
        if len(self.pages) > MOST_PAGES:
            self._forget_before(sorted(self.pages.values())[MOST_PAGES // 2])

    def _drop(self, owner: int, moment: int) -> None:
        self.drops.setdefault(owner, array("Q")).append(moment)
        self.nr_drops += 1
        if self.nr_drops > MOST_DROPS:
            self._forget_before(
                sorted(moment for moments in self.drops.values() for moment in moments)[MOST_DROPS // 2]
            )

    # Let everything before this moment count as flushed.
    def _forget_before(self, moment: int) -> None:
        self.all = max(self.all, moment)
        self.pages = {page: when for page, when in self.pages.items() if when > moment}
        for owner, moments in list(self.drops.items()):
            del moments[: bisect_right(moments, moment)]
            if not moments:
                del self.drops[owner]
        self.nr_drops = sum(map(len, self.drops.values()))
        self.roots = {key: root for key, root in self.roots.items() if root.left > moment}

    def invlpg(self, gva: int, moment: int) -> None:
        """INVLPG: the page in the current PCID and as a global one, and all paging-structure caches of the PCID."""
        self._flush_page(self.pcid, gva, moment)
        self._flush_page(_ANY_PCID, gva, moment)
        self._drop(self.pcid, moment)

    def invpcid(self, kind: int, pcid: int, gva: int, moment: int) -> None:
        """INVPCID of type ``kind``."""
        if kind == INVPCID_ADDRESS:
            self._flush_page(pcid, gva, moment)
            self._drop(pcid, moment)
        elif kind == INVPCID_CONTEXT:
            self._flush_pcid(pcid, moment)
        elif kind == INVPCID_ALL:
            self.flush_all(moment)
        else:
            self.local = moment
            self._drop(_ANY_PCID, moment)


class History:
    """The older values of one entry, each with the times at which it was valid, for questions about one of them.

    However often the guest wrote two values in turn, each is here once, with moments to search in. It is filled when it
    is asked for, by what was overwritten since the question before.
    """

    __slots__ = ("_newest", "_pages", "homes", "spans")

    def __init__(self) -> None:
        # Value -> moments since when, and until when, it was valid; both ascending. Values by their first appearance.
        self.spans: dict[int, tuple[array[int], array[int]]] = {}
        self._newest = -1
        # Kind -> how many of the values are in it, and page -> values.
        self._pages: dict[int, tuple[int, dict[int, list[int]]]] = {}
        #: What the judge knows of where pages are at home: how many of a kind it has looked up, and home -> pages.
        self.homes: dict[tuple[int, int], tuple[int, dict[int, list[int]]]] = {}

    def fill(self, first: int, older: deque[tuple[int, int]], shift: int, mask: int) -> int:
        """Take over what ``older``, as in ``Past.overwritten``, has beyond what is known: ``shift`` and ``mask`` cut
        the entry out of a word; it was seen first at ``first``. Returns how many values that were.
        """
        fresh = []
        for until, word in reversed(older):
            if until <= self._newest:
                break
            fresh.append((until, word >> shift & mask))
        since = max(first, self._newest)
        for until, value in reversed(fresh):
            sinces, untils = self.spans.setdefault(value, (array("q"), array("q")))
            sinces.append(since)
            untils.append(until)
            since = self._newest = until
        return len(fresh)

    def pages(self, kind: int, page_of: Callable[[int], int]) -> dict[int, list[int]]:
        """Values by what ``page_of`` returns for them, which for one ``kind`` is always the same."""
        count, found = self._pages.get(kind, (0, {}))
        for value in islice(self.spans, count, None):
            found.setdefault(page_of(value), []).append(value)
        self._pages[kind] = len(self.spans), found
        return found


class Past:
    """Follows the recording ``path``; after :meth:`advance` it knows what the records before a position say."""

    def __init__(self, path: str) -> None:
        self.reader = Reader(path)
        self.cpus = [CpuPast() for _ in range(self.reader.header.cpus)]
        # Frame of each table -> its 512 words, and the record that showed it first.
        self.tables: dict[int, memoryview] = {}
        self.first_seen: dict[int, int] = {}
        # gpa of a word -> (until, value), ascending; and all of them in the order of `until`.
        self.overwritten: dict[int, deque[tuple[int, int]]] = {}
        self.order: deque[tuple[int, int]] = deque()
        # (gpa, size) of an entry that was asked for -> what was overwritten there.
        self.histories: dict[tuple[int, int], History] = {}
        # Moments of all flushes and register changes of all CPUs, ascending.
        self.flushes: array[int] = array("q")
        #: Moments before this one are forgotten.
        self.known_from = -1

    def close(self) -> None:
        """Close the recording."""
        self.reader.close()

    def advance(self, position: int) -> None:
        """Take over the records before ``position``, which never goes back."""
        reader = self.reader
        while reader.position < position:
            kind = reader.next()
            if kind == 0:
                return
            if reader.smm:
                continue
            moment = reader.position - 1
            if kind == K_STORE or kind == K_PAGE:
                self._write(reader, moment)
                continue
            if kind == K_REGS or kind == K_INVLPG or kind == K_INVPCID:
                self.flushes.append(moment)
            if kind == K_REGS:
                self.cpus[reader.cpu].change_registers(reader, moment)
            elif kind == K_INVLPG:
                self.cpus[reader.cpu].invlpg(reader.gva, moment)
            elif kind == K_INVPCID:
                self.cpus[reader.cpu].invpcid(reader.invpcid_type, reader.pcid, reader.gva, moment)

    def _write(self, reader: Reader, moment: int) -> None:
        frame = reader.gpa >> 12
        data = reader.payload()
        table = self.tables.get(frame)
        if table is None:
            if len(data) == PAGE_SIZE:
                self.tables[frame] = memoryview(bytearray(data)).cast("Q")
                self.first_seen[frame] = moment
            return
        offset = reader.gpa & 0xFFF
        held = table.cast("B")[offset : offset + len(data)]
        if held == data:
            return
        first, end = offset >> 3, (offset + len(data) + 7) >> 3
        before = table[first:end].tolist()
        held[:] = data
        for index, old in enumerate(before, first):
            if (old ^ table[index]) & ~(PT_ACCESSED | PT_DIRTY):
                self._note(frame << 12 | index << 3, old, moment)

    def _note(self, place: int, value: int, moment: int) -> None:
        self.overwritten.setdefault(place, deque()).append((moment, value))
        self.order.append((moment, place))
        if len(self.order) <= MOST_VALUES:
            return
        self.histories.clear()
        for _ in range(MOST_VALUES // 2):
            self.known_from, oldest = self.order.popleft()
            values = self.overwritten[oldest]
            values.popleft()
            if not values:
                del self.overwritten[oldest]

    def values(self, gpa: int, size: int, after: int) -> Iterator[tuple[int, int, int]]:
        """``(since, until, value)`` of the entry of ``size`` bytes at ``gpa``, newest first, while it was valid until
        later than ``after``; A and D as they were recorded. None at all: no record shows this table.
        """
        table = self.tables.get(gpa >> 12)
        if table is None:
            return
        place = gpa & ~7
        shift, mask = (0, (1 << 64) - 1) if size == 8 else ((gpa & 4) * 8, 0xFFFF_FFFF)
        until, value = NOW, table[(place & 0xFFF) >> 3]
        for since, older in reversed(self.overwritten.get(place, ())):
            yield since, until, value >> shift & mask
            until, value = since, older
            if until <= after:
                return
        yield max(self.first_seen[gpa >> 12], self.known_from), until, value >> shift & mask

    def history(self, gpa: int, size: int) -> tuple[History, int]:
        """The older values of the entry of ``size`` bytes at ``gpa``, and how many of them are new here. Those that
        were valid before ``known_from`` began then, if not later.
        """
        history = self.histories.get((gpa, size))
        if history is None:
            history = self.histories[gpa, size] = History()
        older = self.overwritten.get(gpa & ~7)
        if older is None:
            return history, 0
        shift, mask = (0, (1 << 64) - 1) if size == 8 else ((gpa & 4) * 8, 0xFFFF_FFFF)
        return history, history.fill(max(self.first_seen[gpa >> 12], self.known_from), older, shift, mask)

    def current(self, gpa: int, size: int) -> tuple[int, int] | None:
        """``(since, value)`` of the entry as it is; None: no record shows this table."""
        table = self.tables.get(gpa >> 12)
        if table is None:
            return None
        value = table[(gpa & 0xFFF) >> 3]
        if size == 4:
            value = value >> (gpa & 4) * 8 & 0xFFFF_FFFF
        older = self.overwritten.get(gpa & ~7)
        return older[-1][0] if older else max(self.first_seen[gpa >> 12], self.known_from), value

    def spans(self, history: History, value: int, after: int) -> Iterator[tuple[int, int]]:
        """``(since, until)`` of an older value of ``history``, the oldest first, while it was valid later than
        ``after``: of times between which nobody flushed anything or changed registers, the first alone.
        """
        sinces, untils = history.spans[value]
        index = bisect_right(untils, after)
        while index < len(untils):
            until = untils[index]
            yield sinces[index], until
            flush = bisect_left(self.flushes, until)
            if flush == len(self.flushes):
                return
            index = bisect_right(untils, self.flushes[flush], index + 1)

    def content(self, gpa: int, size: int) -> bytes | None:
        """What the records say of ``size`` bytes at ``gpa``, within one page; None: it is no table that they show."""
        table = self.tables.get(gpa >> 12)
        return None if table is None else bytes(table.cast("B")[gpa & 0xFFF : (gpa & 0xFFF) + size])
