# SPDX-License-Identifier: GPL-2.0-only
"""Transcripts of real KVM: the normalised trace of one run, and what the VMM printed about it.

A trace (``NAME.MODE.norm.xz``, or without ``.xz``) is cut into steps. A step begins with an input, which the world
outside the MMU decided: a mark of the VMM (``== op 3 w4 401000 2222``) or an exit of the guest; it holds the events
that followed. The results (``NAME.MODE.res.xz``) are tables as they were at the marks that asked for them, counters,
and what the guest's operations found.
"""

from __future__ import annotations

import lzma
import re
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import RecordingError

#: Longest text that a file may hold, in bytes.
MAX_TEXT = 256 << 20

_EXIT = re.compile(r"exit (.+?) rip=0x([0-9a-f]+) info1=([0-9a-f]+) info2=([0-9a-f]+) intr=([0-9a-f]+) err=([0-9a-f]+)")
_SPT = re.compile(r"spt L(\d) ([0-9a-f]+) ([0-9a-f]+) at ([0-9a-f]+)")
_SPT_ROOT = re.compile(r"spt root=([0-9a-f]+) level=(\d+)")
_RESULT = re.compile(r"res (\d+) (\w+) a=([0-9a-f]+) b=([0-9a-f]+) -> (ok|FAULT) ([0-9a-f]+)")
_FAULT = re.compile(r"vec=(\d+) err=([0-9a-f]+) cr2=([0-9a-f]+)")
_STAT = re.compile(r"stat (?:vcpu0/)?(\w+) (-?\d+)")
_DIRTY = re.compile(r"dirty slot=(\d+):((?: [0-9a-f]+)*)")


@dataclass(frozen=True, slots=True)
class Exit:
    """One exit, as kvm_exit tells it; ``intr`` and ``err`` are what the exit interrupted (exit_int_info)."""

    reason: str
    rip: int
    info1: int
    info2: int
    intr: int
    err: int


@dataclass(slots=True)
class Step:
    """One input (``exit``, or None for the mark in ``text``) at line ``number``, and the events after it."""

    number: int
    text: str
    exit: Exit | None
    events: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Spte:
    """One entry of a dumped table: the first address that it covers, its word, where it is."""

    level: int
    address: int
    word: int
    sptep: int


@dataclass(slots=True)
class TableDump:
    """The live tables below ``root`` at one moment; no entries if no root had been loaded."""

    root: int
    level: int
    entries: list[Spte] = field(default_factory=list)


@dataclass(slots=True)
class Counters:
    """The counters at one moment: those that were not 0, and the lines of mmu_rmaps_stat by level."""

    values: dict[str, int] = field(default_factory=dict)
    rmaps: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """What operation ``index`` left in its entry: the result word, and for a fault CR2."""

    index: int
    op: str
    is_fault: bool
    value: int
    cr2: int


@dataclass(slots=True)
class Transcript:
    """One recorded run; dumps, counters and dirty logs are in the order in which they were asked for."""

    name: str
    mode: str
    steps: list[Step]
    dumps: list[TableDump] = field(default_factory=list)
    counters: list[Counters] = field(default_factory=list)
    dirty_logs: list[tuple[int, list[int]]] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)


def read_transcript(folder: Path, name: str, mode: str) -> Transcript:
    """The transcript of scenario ``name`` with kvm loaded as ``mode`` (shadow, tdp, tdplegacy) in ``folder``.

    :raises RecordingError: naming file and line.
    """
    trace = _existing(folder / f"{name}.{mode}.norm")
    transcript = Transcript(name, mode, parse_trace(_read(trace), str(trace)))
    results = _existing(folder / f"{name}.{mode}.res")
    parse_results(transcript, _read(results), str(results))
    return transcript


# The file as it is, or compressed.
def _existing(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.xz")
    return path if path.exists() and not packed.exists() else packed


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.suffix == ".xz":
            unpack = lzma.LZMADecompressor()
            data = unpack.decompress(data, MAX_TEXT)
            if not unpack.eof:
                cause = "it unpacks to more than 256 MiB" if len(data) == MAX_TEXT else "it is cut"
                raise RecordingError(f"{path}: cannot be read: {cause}")
        if len(data) > MAX_TEXT:
            raise RecordingError(f"{path}: cannot be read: it is longer than 256 MiB")
        return data.decode()
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RecordingError(f"{path}: cannot be read: {reason}") from None


def parse_trace(text: str, source: str) -> list[Step]:
    """The steps of a normalised trace; lines of function probes (``x_``) are left out.

    :raises RecordingError: naming ``source`` and line.
    """
    steps: list[Step] = []
    for number, line in enumerate(text.splitlines(), 1):
        body = line.strip()
        if not body or body.startswith("x_"):
            continue
        if line.startswith("== "):
            steps.append(Step(number, line[3:].strip(), None))
        elif body.startswith("exit "):
            steps.append(Step(number, body, _parse_exit(body, f"{source}:{number}")))
        elif steps:
            steps[-1].events.append(body)
        else:
            raise RecordingError(f"{source}:{number}: an event before the first mark: {body!r}")
    if not steps:
        raise RecordingError(f"{source}: holds no marks: is it a normalised trace?")
    return steps


def _parse_exit(body: str, place: str) -> Exit:
    match = _EXIT.fullmatch(body)
    if match is None:
        raise RecordingError(f"{place}: not an exit of the normalised form: {body!r}")
    reason, *words = match.groups()
    rip, info1, info2, intr, err = (int(word, 16) for word in words)
    return Exit(reason, rip, info1, info2, intr, err)


def parse_results(transcript: Transcript, text: str, source: str) -> None:
    """Read what the VMM printed into ``transcript``; lines that only repeat marks are left out.

    :raises RecordingError: naming ``source`` and line.
    """
    is_counting = False
    for number, line in enumerate(text.splitlines(), 1):
        word = line.split(maxsplit=1)[0] if line.strip() else ""
        is_counter = word in ("stat", "rmaps")
        if is_counter and not is_counting:
            transcript.counters.append(Counters())
        is_counting = is_counter
        try:
            _parse_result_line(transcript, word, line.strip())
        except (ValueError, IndexError, AttributeError):
            raise RecordingError(f"{source}:{number}: not a line of its form: {line!r}") from None


def _parse_result_line(transcript: Transcript, word: str, line: str) -> None:
    if word == "spt":
        _parse_spt(transcript, line)
    elif word == "stat":
        stat = _whole(_STAT, line)
        transcript.counters[-1].values[stat[1]] = int(stat[2])
    elif word == "rmaps":
        _, _, rest = line.partition("Level=")
        if rest:
            level, *counts = rest.split()
            transcript.counters[-1].rmaps[level.rstrip(":")] = [int(count) for count in counts]
    elif word == "dirty":
        match = _DIRTY.fullmatch(line)
        if match:
            transcript.dirty_logs.append((int(match[1]), [int(page, 16) for page in match[2].split()]))
    elif word == "res":
        index, op, _, _, how, value = _whole(_RESULT, line).groups()
        transcript.results.append(Result(int(index), op, how == "FAULT", int(value, 16), 0))
    elif word.startswith("vec="):
        last = transcript.results.pop()
        cr2 = int(_whole(_FAULT, line)[3], 16)
        transcript.results.append(Result(last.index, last.op, True, last.value, cr2))


# All of line, which must have this form.
def _whole(form: re.Pattern[str], line: str) -> re.Match[str]:
    match = form.fullmatch(line)
    if match is None:
        raise ValueError(line)
    return match


def _parse_spt(transcript: Transcript, line: str) -> None:
    root = _SPT_ROOT.fullmatch(line)
    if root:
        transcript.dumps.append(TableDump(int(root[1], 16), int(root[2])))
        return
    level, address, word, sptep = _whole(_SPT, line).groups()
    transcript.dumps[-1].entries.append(Spte(int(level), int(address, 16), int(word, 16), int(sptep, 16)))
