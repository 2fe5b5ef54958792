# SPDX-License-Identifier: GPL-2.0-only
"""Scenario files: what the recorder's VMM set up, and what its guest did.

One statement per line, numbers as C literals, ``#`` begins a comment::

    mode long|pae|pse32|prot|real           initial CPU mode
    reg  cr0|cr3|cr4|efer VALUE             override of an initial register
    cap  NAME ARG                           KVM_ENABLE_CAP
    nocpuid FEATURE                         the guest's CPUID lacks it
    slot ID GPA SIZE [log] [ro] [thp] [nothp] [pop]
    mem8|mem4 GPA VALUE                     initial memory
    op   NAME A B                           one operation of the guest
    host ACTION ARGS                        by the VMM, before the next operation; "!ACTION": when KVM_RUN fails
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import RecordingError
from ..kvm.bits import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY

MODES = ("long", "pae", "pse32", "prot", "real")
REGISTERS = ("cr0", "cr3", "cr4", "efer")
SLOT_WORDS = ("log", "ro", "thp", "nothp", "pop")

#: Operation -> its code in the guest's list.
OPCODES = {
    "end": 0, "r1": 1, "r4": 2, "r8": 3, "w1": 4, "w4": 5, "w8": 6, "x": 7, "invlpg": 8, "cr3": 9, "cr0": 10,
    "cr4": 11, "wrmsr": 12, "wrpkru": 13, "flags": 14, "wloop": 15, "rloop": 16, "rdcr3": 17, "vmrun": 18,
    "ptloop": 19, "add": 20, "ur1": 0x21, "ur4": 0x22, "ur8": 0x23, "uw1": 0x24, "uw4": 0x25, "uw8": 0x26,
    "ux": 0x27, "uadd": 0x34,
}  # fmt: skip

_U64_END = 1 << 64


@dataclass(frozen=True, slots=True)
class SlotLine:
    """A memory slot: ``flags`` are KVM_MEM_*, the rest says what memory the VMM put behind it."""

    id: int
    gpa: int
    size: int
    flags: int
    is_huge: bool
    is_populated: bool


@dataclass(frozen=True, slots=True)
class Poke:
    """Initial memory: ``size`` bytes of ``value`` at ``gpa``."""

    gpa: int
    value: int
    size: int


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of the guest."""

    name: str
    a: int
    b: int


@dataclass(frozen=True, slots=True)
class HostAction:
    """What the VMM does before operation ``at``; ``is_on_fault``: when KVM_RUN fails with EFAULT instead."""

    at: int
    words: tuple[str, ...]
    is_on_fault: bool


@dataclass(slots=True)
class Scenario:
    """One scenario file."""

    name: str
    mode: str = "long"
    registers: dict[str, int] = field(default_factory=dict)
    caps: list[tuple[str, int]] = field(default_factory=list)
    without_cpuid: set[str] = field(default_factory=set)
    slots: list[SlotLine] = field(default_factory=list)
    memory: list[Poke] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    host: list[HostAction] = field(default_factory=list)


def read_scenario(path: Path) -> Scenario:
    """The scenario in file ``path``; its name is the file's without the suffix.

    :raises RecordingError: naming file and line, for a file that cannot be read or a statement that is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordingError(f"{path}: cannot be read: {error}") from None
    return parse_scenario(text, path.stem, str(path))


def parse_scenario(text: str, name: str, source: str) -> Scenario:
    """The scenario ``name`` written in ``text``; ``source`` is what errors call it.

    :raises RecordingError: naming source and line.
    """
    scenario = Scenario(name)
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        statement = _STATEMENTS.get(words[0])
        if statement is None:
            raise RecordingError(f"{source}:{number}: statement {words[0]!r}; known are {', '.join(_STATEMENTS)}")
        try:
            statement(scenario, words[1:])
        except (ValueError, IndexError) as error:
            reason = "a word is missing" if isinstance(error, IndexError) else error
            raise RecordingError(f"{source}:{number}: {line.strip()!r}: {reason}") from None
    return scenario


def number_of(word: str) -> int:
    """The value of a C literal of 64 bits: decimal, 0x..., or octal with a leading 0; ValueError if it is none."""
    is_octal = len(word) > 1 and word[0] == "0" and word.isdigit()
    value = int(word, 8 if is_octal else 0)
    if not 0 <= value < _U64_END:
        raise ValueError(f"{word}: must fit in 64 bits")
    return value


def _one_of(word: str, allowed: tuple[str, ...] | dict[str, int], what: str) -> str:
    if word not in allowed:
        raise ValueError(f"{what} {word!r}; known are {', '.join(allowed)}")
    return word


def _mode(scenario: Scenario, words: list[str]) -> None:
    scenario.mode = _one_of(words[0], MODES, "mode")


def _reg(scenario: Scenario, words: list[str]) -> None:
    scenario.registers[_one_of(words[0], REGISTERS, "register")] = number_of(words[1])


def _cap(scenario: Scenario, words: list[str]) -> None:
    scenario.caps.append((words[0], number_of(words[1])))


def _nocpuid(scenario: Scenario, words: list[str]) -> None:
    scenario.without_cpuid.add(words[0])


def _slot(scenario: Scenario, words: list[str]) -> None:
    slot_id, gpa, size = (number_of(word) for word in words[:3])
    extra = {_one_of(word, SLOT_WORDS, "slot word") for word in words[3:]}
    flags = (KVM_MEM_LOG_DIRTY_PAGES if "log" in extra else 0) | (KVM_MEM_READONLY if "ro" in extra else 0)
    scenario.slots.append(SlotLine(slot_id, gpa, size, flags, "thp" in extra, "pop" in extra))


def _mem8(scenario: Scenario, words: list[str]) -> None:
    scenario.memory.append(Poke(number_of(words[0]), number_of(words[1]), 8))


def _mem4(scenario: Scenario, words: list[str]) -> None:
    scenario.memory.append(Poke(number_of(words[0]), number_of(words[1]) & 0xFFFF_FFFF, 4))


def _op(scenario: Scenario, words: list[str]) -> None:
    name = _one_of(words[0], OPCODES, "operation")
    operands = [number_of(word) for word in words[1:3]] + [0, 0]
    scenario.ops.append(Op(name, operands[0], operands[1]))


def _host(scenario: Scenario, words: list[str]) -> None:
    is_on_fault = words[0].startswith("!")
    plain = (words[0].lstrip("!"), *words[1:])
    scenario.host.append(HostAction(len(scenario.ops), plain, is_on_fault))


_STATEMENTS: dict[str, Callable[[Scenario, list[str]], None]] = {
    "mode": _mode,
    "reg": _reg,
    "cap": _cap,
    "nocpuid": _nocpuid,
    "slot": _slot,
    "mem8": _mem8,
    "mem4": _mem4,
    "op": _op,
    "host": _host,
}
