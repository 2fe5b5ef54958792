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

from collections.abc import Iterator
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
from ..hw.modes import PagingMode, bit_range, is_large_level, paging_mode, reserved_bits
from ..record.format import Header
from ..record.reader import Reader
from .machine import features_of
from .past import NOW, CpuPast, Past, Root

#: Entries that one question looks at, the newest first; what lies beyond is not accepted. After so many in all
#: questions, a question gets few.
MOST_STEPS = 20_000
MOST_STEPS_IN_ALL = 1 << 24
FEW_STEPS = 256
# QEMU lets these bits pass in PDPTEs, and the replay clears them: see machine.clean_pdptes().
_PDPTE_LOW = 0x1E6


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
        self.past.advance(reader.position - 1)
        cpu = self.past.cpus[reader.cpu]
        self.left = MOST_STEPS if self.steps < MOST_STEPS_IN_ALL else FEW_STEPS
        gva = cpu.trim(reader.gva)
        mode = paging_mode(cpu.cr0, cpu.cr4, cpu.efer)
        if mode.levels == 0:
            yield Lawful(gva, True, True, True, 0, True)
            return
        gva &= bit_range(0, mode.gva_bits - 1)
        # The newest first: where the steps end, what is left out is old.
        roots = sorted(cpu.roots.values(), key=lambda root: root.left, reverse=True)
        top = bit_range(mode.root_bits[0], min(mode.root_bits[1], self.maxphyaddr - 1))
        after = max(cpu.first_floor(gva), self.past.known_from)
        for root in roots:
            start = Step(mode.levels, root.cr3 & top, -1, root.left, PT_WRITABLE | PT_USER, 0)
            yield from self._walk(cpu, root, mode, gva, after, start)

    def permitted(self, reader: Reader) -> Iterator[Lawful]:
        """Those of :meth:`lawful` that let the access in hand pass."""
        cpu = self.past.cpus[reader.cpu]
        for translation in self.lawful(reader):
            if is_permitted(cpu, translation, reader.access):
                yield translation

    # The translations below a step of a walk from `root`, by entries that were valid until later than `after`.
    def _walk(self, cpu: CpuPast, root: Root, mode: PagingMode, gva: int, after: int, step: Step) -> Iterator[Lawful]:
        level = step.level
        limits = self.limits[cpu.efer & EFER_NX != 0]
        shift = 12 + mode.index_bits * (level - 1)
        is_pdpte = mode.has_pdptrs and level == 3
        index = gva >> shift & bit_range(0, mode.index_bits - 1)
        place = step.table + (index & 3 if is_pdpte else index) * mode.entry_size
        for since, until, entry in self.past.values(place, mode.entry_size, root.loaded if is_pdpte else after):
            self.left -= 1
            self.steps += 1
            if self.left < 0:
                return
            if is_pdpte:
                if not since < root.loaded < until:
                    continue
                until = NOW
            elif until <= step.since:
                # Older ones ended before, too.
                return
            elif since >= root.left:
                continue
            is_large = bool(entry & PT_PAGE_SIZE) and not is_pdpte and is_large_level(mode, level, limits)
            reserved = reserved_bits(mode, level, is_large, limits)
            if not entry & PT_PRESENT or entry & (reserved & ~_PDPTE_LOW if is_pdpte else reserved):
                continue
            since, until = max(step.since, since), min(step.until, until)
            if until < since and cpu.dropped_between(root.pcid, until, since):
                continue
            allowed, nx = (step.allowed, step.nx) if is_pdpte else (step.allowed & entry, step.nx | entry)
            below = Step(level - 1, entry & PT_FRAME, since, until, allowed, nx)
            if level > 1 and not is_large:
                yield from self._walk(cpu, root, mode, gva, after, below)
            else:
                yield from self._leaf(cpu, root, mode, gva, entry, shift, below)

    # The translation of a leaf, if it may still be used.
    def _leaf(
        self, cpu: CpuPast, root: Root, mode: PagingMode, gva: int, entry: int, shift: int, step: Step
    ) -> Iterator[Lawful]:
        is_global = bool(cpu.cr4 & CR4_PGE and entry & PT_GLOBAL)
        if (not is_global and root.pcid != cpu.pcid) or step.until <= cpu.floor(is_global, shift, gva):
            return
        offset = bit_range(0, shift - 1)
        gpa = (entry & PT_FRAME & ~offset) | (gva & offset)
        if mode.entry_size == 4 and shift > 12:
            gpa |= (entry & PT_PSE36_LOW) << PT_PSE36_SHIFT
        pkey = entry >> PT_PKEY_SHIFT & 15 if mode.has_pkeys and cpu.cr4 & CR4_PKE else 0
        yield Lawful(
            gpa,
            bool(step.allowed & PT_WRITABLE),
            bool(step.allowed & PT_USER),
            not step.nx & PT_NX,
            pkey,
            step.until == NOW,
        )


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
