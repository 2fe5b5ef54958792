# SPDX-License-Identifier: GPL-2.0-only
"""Scripted guests: a list of steps that one vCPU executes, and what came of each.

A program is data, so that it can be printed, shrunk, and run on two builds of the package to compare the results::

    program = [
        Map(0x400000, 0x200000, flags=PT_PRESENT | PT_USER),
        Access("write", 0x400000, data=b"hello"),
        SetBits(0x400000, PT_WRITABLE),
        Invlpg(0x400000),
        Access("write", 0x400000, data=b"hello"),
    ]
    for step, result in zip(program, run(program, world, vcpu, tables)):
        print(step, "->", result)

Every step is what a guest can do, nothing else: page-table edits are stores of whole entries through ``tables``
(made by ``World.tables(..., vcpu=vcpu, window=gva)``, they go through the guest's own mapping of its tables and meet
write protection; without a vCPU they are the VMM's). The results are values with a stable ``repr``: an access gives
what ``World.read()`` and its sisters return, an instruction ``"done"`` or ``"#GP"``, an edit the gpa of the entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import GuestMisuse
from .tables import DEFAULT_FLAGS, SIZE_4K, GuestTables

DONE = "done"
GP = "#GP"


class Machine(Protocol):
    """What a program needs of the machine: ``World`` has it. Instructions return False for ``#GP``."""

    def read(self, vcpu: Any, gva: int, size: int = 8, *, user: bool = False) -> object:
        """A load."""

    def write(self, vcpu: Any, gva: int, data: bytes | int, size: int = 8, *, user: bool = False) -> object:
        """A store."""

    def fetch(self, vcpu: Any, gva: int, size: int = 1, *, user: bool = False) -> object:
        """An instruction fetch."""

    def mov_cr0(self, vcpu: Any, value: int) -> bool:
        """MOV to CR0."""

    def mov_cr3(self, vcpu: Any, value: int) -> bool:
        """MOV to CR3."""

    def mov_cr4(self, vcpu: Any, value: int) -> bool:
        """MOV to CR4."""

    def wrmsr_efer(self, vcpu: Any, value: int) -> bool:
        """WRMSR to EFER."""

    def wrpkru(self, vcpu: Any, value: int) -> bool:
        """WRPKRU."""

    def invlpg(self, vcpu: Any, gva: int) -> bool:
        """INVLPG."""

    def invpcid(self, vcpu: Any, kind: int, pcid: int = 0, gva: int = 0) -> bool:
        """INVPCID."""


class Step(Protocol):
    """One thing that a guest does."""

    def run(self, machine: Machine, vcpu: Any, tables: GuestTables) -> object:
        """Do it; return what came of it."""


@dataclass(frozen=True, slots=True)
class Access:
    """A ``read``, ``write`` or ``fetch`` of ``size`` bytes (a write: of ``data``) at ``gva``, by user or supervisor."""

    kind: str
    gva: int
    size: int = 8
    data: bytes = b""
    user: bool = False

    def run(self, machine: Machine, vcpu: Any, tables: GuestTables) -> object:
        """The machine's account of the access.

        :raises GuestMisuse: an unknown kind.
        """
        if self.kind == "read":
            return machine.read(vcpu, self.gva, self.size, user=self.user)
        if self.kind == "write":
            return machine.write(vcpu, self.gva, self.data or bytes(self.size), user=self.user)
        if self.kind == "fetch":
            return machine.fetch(vcpu, self.gva, self.size, user=self.user)
        raise GuestMisuse(f"access {self.kind!r}: a guest makes read, write and fetch")


@dataclass(frozen=True, slots=True)
class Map:
    """``tables.map()``."""

    gva: int
    gpa: int
    size: int = SIZE_4K
    flags: int = DEFAULT_FLAGS

    def run(self, machine: Machine, vcpu: Any, tables: GuestTables) -> object:
        """The gpa of the leaf entry."""
        return tables.map(self.gva, self.gpa, self.size, self.flags)


@dataclass(frozen=True, slots=True)
class Unmap:
    """``tables.unmap()``."""

    gva: int

    def run(self, machine: Machine, vcpu: Any, tables: GuestTables) -> object:
        """The gpa of the leaf entry."""
        return tables.unmap(self.gva)


@dataclass(frozen=True, slots=True)
class SetEntry:
    """``tables.set_entry()``: any word at any level."""

    gva: int
    level: int
    entry: int

    def run(self, machine: Machine, vcpu: Any, tables: GuestTables) -> object:
        """The gpa of the entry."""
        return tables.set_entry(self.gva, self.level, self.entry)


@dataclass(frozen=True, slots=True)
class SetBits:
    """``tables.set_bits()`` at ``level``; 0 means the leaf."""

    gva: int
    bits: int
    level: int = 0

    def run(self, machine: Machine, vcpu: Any, tables: GuestTables) -> object:
        """The new entry."""
        return tables.set_bits(self.gva, self.bits, self.level or None)


@dataclass(frozen=True, slots=True)
class ClearBits:
    """``tables.clear_bits()`` at ``level``; 0 means the leaf."""

    gva: int
    bits: int
    level: int = 0

    def run(self, machine: Machine, vcpu: Any, tables: GuestTables) -> object:
        """The new entry."""
        return tables.clear_bits(self.gva, self.bits, self.level or None)


@dataclass(frozen=True, slots=True)
class Invlpg:
    """INVLPG."""

    gva: int

    def run(self, machine: Machine, vcpu: Any, tables: GuestTables) -> object:
        """``"done"``."""
        return _outcome(machine.invlpg(vcpu, self.gva))


@dataclass(frozen=True, slots=True)
class Invpcid:
    """INVPCID of type ``kind``: 0 one address, 1 one PCID, 2 everything, 3 everything but global pages."""

    kind: int
    pcid: int = 0
    gva: int = 0

    def run(self, machine: Machine, vcpu: Any, tables: GuestTables) -> object:
        """``"done"`` or ``"#GP"``."""
        return _outcome(machine.invpcid(vcpu, self.kind, self.pcid, self.gva))


@dataclass(frozen=True, slots=True)
class MovCr0:
    """MOV to CR0."""

    value: int

    def run(self, machine: Machine, vcpu: Any, tables: GuestTables) -> object:
        """``"done"`` or ``"#GP"``."""
        return _outcome(machine.mov_cr0(vcpu, self.value))


@dataclass(frozen=True, slots=True)
class MovCr3:
    """MOV to CR3; bit 63 with CR4.PCIDE keeps the TLB."""

    value: int

    def run(self, machine: Machine, vcpu: Any, tables: GuestTables) -> object:
        """``"done"`` or ``"#GP"``."""
        return _outcome(machine.mov_cr3(vcpu, self.value))


@dataclass(frozen=True, slots=True)
class MovCr4:
    """MOV to CR4."""

    value: int

    def run(self, machine: Machine, vcpu: Any, tables: GuestTables) -> object:
        """``"done"`` or ``"#GP"``."""
        return _outcome(machine.mov_cr4(vcpu, self.value))


@dataclass(frozen=True, slots=True)
class WrmsrEfer:
    """WRMSR to EFER."""

    value: int

    def run(self, machine: Machine, vcpu: Any, tables: GuestTables) -> object:
        """``"done"`` or ``"#GP"``."""
        return _outcome(machine.wrmsr_efer(vcpu, self.value))


@dataclass(frozen=True, slots=True)
class Wrpkru:
    """WRPKRU."""

    value: int

    def run(self, machine: Machine, vcpu: Any, tables: GuestTables) -> object:
        """``"done"``."""
        return _outcome(machine.wrpkru(vcpu, self.value))


def run(program: Iterable[Step], machine: Machine, vcpu: Any, tables: GuestTables) -> list[object]:
    """Execute ``program`` on ``vcpu`` of ``machine``, editing ``tables``; return the result of each step.

    :raises GuestMisuse: a step that no guest can make, or, for tables that are edited by guest stores, one that faults.
    """
    return [step.run(machine, vcpu, tables) for step in program]


def _outcome(is_done: bool) -> str:
    return DONE if is_done else GP
