# SPDX-License-Identifier: GPL-2.0-only
"""A page walk of its own over a recording: does it explain every address that the machine used?

Shares nothing with ``kvmmu.hw``: tables are a dict of bytearrays, masks are worked out from the level, permissions
are a list of questions. It is slow and plain on purpose.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

READ, WRITE, USER, FETCH, AC, IMPLICIT = 0, 2, 4, 16, 256, 512


@dataclass
class Findings:
    """What a walk over a recording found; ``wrong`` has the first few disagreements as text."""

    kinds: Counter[str] = field(default_factory=Counter)
    paging: Counter[str] = field(default_factory=Counter)
    user: int = 0
    cr3s: set[tuple[int, int]] = field(default_factory=set)
    differ: int = 0
    missing: int = 0
    forbidden: int = 0
    wrong: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if len(self.wrong) < 10:
            self.wrong.append(text)

    @property
    def accesses(self) -> int:
        return self.kinds["access"] + self.kinds["store"] + self.kinds["mmio"]

    @property
    def bad(self) -> int:
        return self.differ + self.missing + self.forbidden


class Machine:
    """Table pages and registers as a recording tells them."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.regs: dict[int, tuple[int, int, int, int, int]] = {}

    def mode(self, cpu: int) -> str:
        cr0, _, cr4, efer, _ = self.regs.get(cpu, (0, 0, 0, 0, 0))
        if cr0 >> 31 & 1 == 0:
            return "none"
        if cr4 >> 5 & 1 == 0:
            return "2-level"
        if efer >> 10 & 1 == 0:
            return "pae"
        return "5-level" if cr4 >> 12 & 1 else "4-level"

    def entry(self, gpa: int, size: int) -> int | None:
        page = self.pages.get(gpa // 4096)
        return None if page is None else int.from_bytes(page[gpa % 4096 : gpa % 4096 + size], "little")

    def walk(self, cpu: int, gva: int) -> tuple[int | None, list[int], bool]:
        """(gpa or None, entries that permit, whether a table was missing)."""
        mode = self.mode(cpu)
        if mode == "none":
            return gva, [], False
        cr3, cr4 = self.regs[cpu][1], self.regs[cpu][2]
        if mode == "2-level":
            return self.walk_words(cr3, gva, bool(cr4 >> 4 & 1))
        bits = {"pae": (2, 9, 9), "4-level": (9,) * 4, "5-level": (9,) * 5}[mode]
        table = cr3 // 32 * 32 if mode == "pae" else cr3 % 2**52 // 4096 * 4096
        low = 12 + sum(bits)
        path: list[int] = []
        for depth, width in enumerate(bits):
            low -= width
            value = self.entry(table + 8 * (gva // 2**low % 2**width), 8)
            if value is None:
                return None, path, True
            if value % 2 == 0:
                return None, path, False
            root_of_pae = mode == "pae" and depth == 0
            if not root_of_pae:
                path.append(value)
            table = value % 2**52 // 4096 * 4096
            last = depth == len(bits) - 1
            if last or (value >> 7 & 1 and low <= 30 and not root_of_pae):
                return table // 2**low * 2**low + gva % 2**low, path, False
        raise AssertionError("a walk ends at its last level")

    def walk_words(self, cr3: int, gva: int, pse: bool) -> tuple[int | None, list[int], bool]:
        directory = self.entry(cr3 // 4096 * 4096 + 4 * (gva >> 22 & 1023), 4)
        if directory is None or directory % 2 == 0:
            return None, [], directory is None
        if pse and directory >> 7 & 1:
            high = (directory >> 13 & 0xFF) << 32
            return high + directory // 2**22 * 2**22 + gva % 2**22, [directory], False
        leaf = self.entry(directory // 4096 * 4096 + 4 * (gva >> 12 & 1023), 4)
        if leaf is None or leaf % 2 == 0:
            return None, [directory], leaf is None
        return leaf // 4096 * 4096 + gva % 4096, [directory, leaf], False

    def forbids(self, cpu: int, access: int, path: list[int]) -> str | None:
        """The rule that the access breaks, None when it is allowed."""
        cr0, _, cr4, efer, pkru = self.regs[cpu]
        wide = bool(efer >> 11 & 1) and self.mode(cpu) != "2-level"
        user_page = all(value >> 2 & 1 for value in path)
        writable = all(value >> 1 & 1 for value in path)
        executable = not (wide and any(value >> 63 & 1 for value in path))
        user = bool(access & USER)
        if user and not user_page:
            return "a user access to a supervisor page"
        if access & WRITE and not writable and (user or cr0 >> 16 & 1):
            return "a write to a read-only page"
        if access & FETCH:
            if not executable:
                return "a fetch from a no-execute page"
            return "SMEP" if cr4 >> 20 & 1 and user_page and not user else None
        if not user and user_page and cr4 >> 21 & 1 and (access & IMPLICIT or not access & AC):
            return "SMAP"
        if user_page and cr4 >> 22 & 1 and self.mode(cpu) in ("4-level", "5-level"):
            key = path[-1] >> 59 & 15
            denied = pkru >> 2 * key & 3
            if denied & 1 or (denied & 2 and access & WRITE and (user or cr0 >> 16 & 1)):
                return "a protection key"
        return None


def check_recording(reader: Any, until: int | None = None) -> Findings:
    """Walk each access of ``reader`` (a :class:`kvmmu.record.reader.Reader`) up to record ``until``."""
    # SMM has registers and tables of its own.
    machines, found = (Machine(), Machine()), Findings()
    names = ("end", "access", "store", "page", "regs", "invlpg", "invpcid", "mmio", "map")
    while (until is None or reader.position < until) and (kind := reader.next()):
        found.kinds[names[kind]] += 1
        machine = machines[reader.smm]
        if kind == 3:
            machine.pages[reader.gpa // 4096] = bytearray(reader.payload())
        elif kind == 4:
            machine.regs[reader.cpu] = (reader.cr0, reader.cr3, reader.cr4, reader.efer, reader.pkru)
            found.cr3s.add((reader.cpu, reader.cr3))
        if kind in (1, 2, 7):
            check_access(machine, reader, found)
        if kind == 2:
            page = machine.pages[reader.gpa // 4096]
            page[reader.gpa % 4096 : reader.gpa % 4096 + reader.size] = reader.payload()
    return found


def check_access(machine: Machine, reader: Any, found: Findings) -> None:
    found.paging[machine.mode(reader.cpu)] += 1
    found.user += bool(reader.access & USER)
    gpa, path, missing = machine.walk(reader.cpu, reader.gva)
    where = f"record {reader.position - 1}: cpu {reader.cpu} gva {reader.gva:#x} access {reader.access:#x}"
    if missing:
        found.missing += 1
        found.note(f"{where}: a table of its walk was never recorded")
    elif gpa != reader.gpa:
        found.differ += 1
        found.note(
            f"{where}: the machine used {reader.gpa:#x}, the tables say {gpa and hex(gpa)}, {[hex(v) for v in path]}"
        )
    elif path and (rule := machine.forbids(reader.cpu, reader.access, path)):
        found.forbidden += 1
        found.note(f"{where}: {rule} {[hex(value) for value in path]}")
