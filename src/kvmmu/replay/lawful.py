# SPDX-License-Identifier: GPL-2.0-only
"""Which translations a CPU may use: those of the guest's tables now, or at a moment since its last flush of the page.

A guest that edits present entries without a flush leaves both translations valid until it flushes, and two machines may
choose differently: a TLB may keep an entry or lose it at any time. What a walk may have found is this:

* it read one entry a level, from the top down, each at a moment not before that of the level above: a CPU keeps upper
  entries in paging-structure caches and reads lower ones later;
* all moments lie after the CPU's last flush that covers the page (:mod:`kvmmu.replay.past`), and no flush of
  its paging-structure caches lies between the first and the last;
* the root is one that the CPU used with this PCID (for a global page: with any) in that time, read while it was in use;
* PDPTEs of PAE paging are those that memory held when the CPU loaded them;
* each entry is present and breaks no rule of reserved bits, and the access is judged by the registers in force.

A fault is lawful if the tables as they are forbid the access: no entry that is not present, or denies, is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from ..hw.bits import (
    ACCESS_AC,
    ACCESS_FETCH,
    ACCESS_IMPLICIT,
    ACCESS_USER,
    ACCESS_WRITE,
    CR0_WP,
    CR4_PGE,
    CR4_PKE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_NX,
    PKRU_AD,
    PKRU_WD,
    PT_FRAME,
    PT_GLOBAL,
    PT_NX,
    PT_PAGE_SIZE,
    PT_PKEY_SHIFT,
    PT_PRESENT,
    PT_PSE36_LOW,
    PT_PSE36_SHIFT,
    PT_USER,
    PT_WRITABLE,
)
from ..hw.modes import Limits, PagingMode, bit_range, is_large_level, paging_mode, reserved_bits
from ..record.format import Header
from ..record.reader import Reader
from .machine import features_of
from .past import NOW, CpuPast, History, Past, Root

#: Entries that one question looks at, the newest first; what lies beyond is not accepted. After so many in all
#: questions, a question gets few.
MOST_STEPS = 20_000
MOST_STEPS_IN_ALL = 1 << 24
FEW_STEPS = 256
# QEMU lets these bits pass in PDPTEs, and the replay clears them: see machine.clean_pdptes().
_PDPTE_LOW = 0x1E6
# The page of an entry that maps none.
_LINK = -1


class Lawful(NamedTuple):
    """One translation that the CPU may use: page and rights; ``is_current``: that of the tables as they are."""

    gpa: int
    is_writable: bool
    is_user: bool
    is_executable: bool
    pkey: int
    is_current: bool

    def __str__(self) -> str:
        rights = f"{'w' if self.is_writable else '-'}{'u' if self.is_user else '-'}{'x' if self.is_executable else '-'}"
        return (
            f"gpa {self.gpa:#x} {rights}"
            + (f" key {self.pkey}" if self.pkey else "")
            + ("" if self.is_current else " (older)")
        )


class Step(NamedTuple):
    """Where a walk is: the entries so far were all valid in part of ``since`` to ``until`` (not in this order if an
    upper one is kept), allow ``allowed`` and say NX in ``nx``.
    """

    level: int
    table: int
    since: int
    until: int
    allowed: int
    nx: int


class Goal(NamedTuple):
    """What a search looks for: a translation to gpa ``where``; or to one for which ``home_of`` returns ``where``."""

    where: int
    home_of: Callable[[int], int] | None


class Question(NamedTuple):
    """What is the same at each step of a walk from ``root``: of entries that were valid later than ``after``."""

    cpu: CpuPast
    root: Root
    mode: PagingMode
    gva: int
    after: int


class Judge:
    """Answers for the recording ``path``, whose machine ``header`` describes."""

    def __init__(self, path: str, header: Header) -> None:
        self.past = Past(path)
        self.maxphyaddr = header.maxphyaddr
        features = features_of(header)
        self.limits = [features.limits(has_nx=has_nx, widest=header.maxphyaddr) for has_nx in (False, True)]
        self.left = 0
        self.steps = 0

    def lawful(self, reader: Reader) -> Iterator[Lawful]:
        """Every translation that the CPU of the access in hand may use for its gva; that of the tables as they are, if
        they have one, comes first.
        """
        for question, start in self._questions(reader):
            if start.level == 0:
                yield Lawful(question.gva, True, True, True, 0, True)
            else:
                yield from self._walk(question, start)

    def permits_now(self, reader: Reader) -> bool:
        """Whether the tables as they are let the access in hand pass."""
        return any(self._search(reader, None))

    def permits(self, reader: Reader, gpa: int) -> bool:
        """Whether one of :meth:`lawful` that goes to ``gpa`` lets the access in hand pass."""
        return any(self._search(reader, Goal(gpa, None)))

    def permits_home(self, reader: Reader, where: int, home_of: Callable[[int], int]) -> bool:
        """Whether one of :meth:`lawful` that goes to another gpa than the machine did, which is at home at ``where``,
        lets the access in hand pass. ``home_of`` always says the same of a gpa until :meth:`forget_homes`.
        """
        return any(page.gpa != reader.gpa for page in self._search(reader, Goal(where, home_of)))

    def forget_homes(self) -> None:
        """Gpas may be at home elsewhere than before."""
        for history in self.past.histories.values():
            history.homes.clear()

    # Where the walks begin for the access in hand, the roots that were used last first: where the steps end, what is
    # left out is old.
    def _questions(self, reader: Reader) -> Iterator[tuple[Question, Step]]:
        self.past.advance(reader.position - 1)
        cpu = self.past.cpus[reader.cpu]
        self.left = MOST_STEPS if self.steps < MOST_STEPS_IN_ALL else FEW_STEPS
        gva = cpu.trim(reader.gva)
        mode = paging_mode(cpu.cr0, cpu.cr4, cpu.efer)
        gva &= bit_range(0, mode.gva_bits - 1)
        top = bit_range(mode.root_bits[0], min(mode.root_bits[1], self.maxphyaddr - 1))
        after = max(cpu.first_floor(gva), self.past.known_from)
        roots = sorted(cpu.roots.values(), key=lambda root: root.left, reverse=True)
        for root in roots if mode.levels else roots[:1]:
            start = Step(mode.levels, root.cr3 & top, -1, root.left, PT_WRITABLE | PT_USER, 0)
            yield Question(cpu, root, mode, gva, after), start

    # The translations below a step of a walk.
    def _walk(self, question: Question, step: Step) -> Iterator[Lawful]:
        root, size = question.root, question.mode.entry_size
        is_pdpte = _is_pdpte(question.mode, step.level)
        after = root.loaded if is_pdpte else question.after
        for since, until, entry in self.past.values(_place(question, step), size, after):
            self.left -= 1
            self.steps += 1
            if self.left < 0:
                return
            if not is_pdpte and until <= step.since:
                # Older ones ended before, too.
                return
            below = self._below(question, step, since, until, entry)
            if below is None:
                continue
            if _is_link(question.mode, step.level, entry, self.limits[0]):
                yield from self._walk(question, below)
            else:
                yield from self._leaf(question, entry, step.level, below)

    # The lawful translations of the access in hand that let it pass and are what `goal` looks for; None: that of the
    # tables as they are. It finds what lawful() does, but looks entries up instead of going through all there were.
    def _search(self, reader: Reader, goal: Goal | None) -> Iterator[Lawful]:
        cpu = self.past.cpus[reader.cpu]
        for question, start in self._questions(reader):
            if start.level == 0:
                found: Iterator[Lawful] = iter((Lawful(question.gva, True, True, True, 0, True),))
            else:
                found = self._descend(question, start, goal)
            for page in found:
                if is_permitted(cpu, page, reader.access) and (
                    goal is None or goal.where == (goal.home_of(page.gpa) if goal.home_of else page.gpa)
                ):
                    yield page
            if goal is None:
                return

    # The translations below a step of a walk that may be what `goal` looks for.
    def _descend(self, question: Question, step: Step, goal: Goal | None) -> Iterator[Lawful]:
        past, size = self.past, question.mode.entry_size
        place = _place(question, step)
        current = past.current(place, size)
        if current is None:
            return
        yield from self._go_on(question, step, goal, (current[0], NOW), current[1])
        if goal is None:
            return
        history, fresh = past.history(place, size)
        self.steps += fresh
        after = question.after
        if _is_pdpte(question.mode, step.level):
            after = question.root.loaded
        elif step.since > after:
            after = step.since
        for value in self._candidates(question, step.level, history, goal):
            for since, until in past.spans(history, value, after):
                if self.left < 0:
                    return
                yield from self._go_on(question, step, goal, (max(since, past.known_from), until), value)

    def _go_on(
        self, question: Question, step: Step, goal: Goal | None, span: tuple[int, int], entry: int
    ) -> Iterator[Lawful]:
        self.left -= 1
        self.steps += 1
        below = self._below(question, step, *span, entry)
        if below is None or self.left < 0:
            return
        if _is_link(question.mode, step.level, entry, self.limits[0]):
            yield from self._descend(question, below, goal)
        else:
            yield from self._leaf(question, entry, step.level, below)

    # The older values of an entry that may lead to the goal: those that link a table, and those that map its page.
    def _candidates(self, question: Question, level: int, history: History, goal: Goal) -> Iterator[int]:
        mode, limits = question.mode, self.limits[0]
        shift = _shift(mode, level)

        def page_of(value: int) -> int:
            return _LINK if _is_link(mode, level, value, limits) else _page(mode, shift, value)

        pages = history.pages(mode.number << 8 | level, page_of)
        offset = question.gva & bit_range(0, shift - 1)
        yield from pages.get(_LINK, ())
        if goal.home_of is None:
            yield from pages.get(goal.where - offset, ())
            return
        key = mode.number << 8 | level, offset >> 12
        count, homes = history.homes.get(key, (0, {}))
        for page in islice(pages, count, None):
            self.steps += 1
            if page != _LINK:
                homes.setdefault(goal.home_of(page + offset), []).append(page)
        history.homes[key] = len(pages), homes
        for page in homes.get(goal.where, ()):
            yield from pages[page]

    # Where a walk is below an entry that was valid from `since` until `until`; None: nowhere, or not in time.
    def _below(self, question: Question, step: Step, since: int, until: int, entry: int) -> Step | None:
        cpu, root, mode, level = question.cpu, question.root, question.mode, step.level
        limits = self.limits[cpu.efer & EFER_NX != 0]
        is_pdpte = _is_pdpte(mode, level)
        if is_pdpte:
            if not since < root.loaded < until:
                return None
            until = NOW
        elif until <= step.since or since >= root.left:
            return None
        is_large = level > 1 and not _is_link(mode, level, entry, limits)
        reserved = reserved_bits(mode, level, is_large, limits)
        if not entry & PT_PRESENT or entry & (reserved & ~_PDPTE_LOW if is_pdpte else reserved):
            return None
        since, until = max(step.since, since), min(step.until, until)
        if until < since and cpu.dropped_between(root.pcid, until, since):
            return None
        allowed, nx = (step.allowed, step.nx) if is_pdpte else (step.allowed & entry, step.nx | entry)
        return Step(level - 1, entry & PT_FRAME, since, until, allowed, nx)

    # The translation of a leaf, if it may still be used; `step` is below it.
    def _leaf(self, question: Question, entry: int, level: int, step: Step) -> Iterator[Lawful]:
        cpu, mode, gva = question.cpu, question.mode, question.gva
        shift = _shift(mode, level)
        is_global = bool(cpu.cr4 & CR4_PGE and entry & PT_GLOBAL)
        if (not is_global and question.root.pcid != cpu.pcid) or step.until <= cpu.floor(is_global, shift, gva):
            return
        pkey = entry >> PT_PKEY_SHIFT & 15 if mode.has_pkeys and cpu.cr4 & CR4_PKE else 0
        yield Lawful(
            _page(mode, shift, entry) | gva & bit_range(0, shift - 1),
            bool(step.allowed & PT_WRITABLE),
            bool(step.allowed & PT_USER),
            not step.nx & PT_NX,
            pkey,
            step.until == NOW,
        )


# Log2 of what an entry of a level translates.
def _shift(mode: PagingMode, level: int) -> int:
    return 12 + mode.index_bits * (level - 1)


def _is_pdpte(mode: PagingMode, level: int) -> bool:
    return mode.has_pdptrs and level == 3


# Whether an entry, if it is present, links a table and maps no page.
def _is_link(mode: PagingMode, level: int, entry: int, limits: Limits) -> bool:
    return level > 1 and (not entry & PT_PAGE_SIZE or _is_pdpte(mode, level) or not is_large_level(mode, level, limits))


# Where the entry is that a walk reads at a step.
def _place(question: Question, step: Step) -> int:
    mode = question.mode
    index = question.gva >> _shift(mode, step.level) & bit_range(0, mode.index_bits - 1)
    return step.table + (index & 3 if _is_pdpte(mode, step.level) else index) * mode.entry_size


# First byte of the page of 2**shift bytes that a leaf maps.
def _page(mode: PagingMode, shift: int, entry: int) -> int:
    page = entry & PT_FRAME & ~bit_range(0, shift - 1)
    if mode.entry_size == 4 and shift > 12:
        page |= (entry & PT_PSE36_LOW) << PT_PSE36_SHIFT
    return page


def is_permitted(cpu: CpuPast, page: Lawful, access: int) -> bool:
    """Whether ``page`` lets ``access`` (ACCESS_* bits) pass under the registers of ``cpu``."""
    is_user = bool(access & ACCESS_USER) and not access & ACCESS_IMPLICIT
    if is_user and not page.is_user:
        return False
    if access & ACCESS_FETCH:
        return page.is_executable and (is_user or not page.is_user or not cpu.cr4 & CR4_SMEP)
    is_write = bool(access & ACCESS_WRITE)
    needs_writable = is_write and (is_user or bool(cpu.cr0 & CR0_WP))
    if needs_writable and not page.is_writable:
        return False
    if not is_user and page.is_user and cpu.cr4 & CR4_SMAP and access & (ACCESS_AC | ACCESS_IMPLICIT) != ACCESS_AC:
        return False
    denied = PKRU_AD | PKRU_WD if needs_writable else PKRU_AD
    return not (page.is_user and cpu.cr4 & CR4_PKE and cpu.pkru >> 2 * page.pkey & denied)
