# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu decode``: what words mean, alone or in a pasted splat, an oops, a dump or a whole trace."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from ..decode.gpte import MODE_NAMES
from ..decode.layouts import layout_of, parse_version
from ..decode.number import parse_number
from ..decode.reading import Machine, Reading
from ..decode.spte import Format
from ..decode.words import Context, Kind, read_word
from ..errors import ConfigError, UserError
from ..kvm.cpuid import CpuFeatures, parse_cpu
from .output import json_text

if TYPE_CHECKING:
    from ..decode.annotate import Annotator

Mode = StrEnum("Mode", {name.upper().replace("-", "_"): name for name in MODE_NAMES})  # type: ignore[misc]  # members come from a table

#: Options that a kind of word has a meaning for.
_USED = {
    Kind.SPTE: {"--kernel", "--format", "--level", "--maxphyaddr", "--l1tf", "--cache-bits"},
    Kind.ROLE: {"--kernel"},
    Kind.PFERR: {"--format"},
    Kind.QUAL: set[str](),
    Kind.GPTE: {"--level", "--mode", "--maxphyaddr", "--cpu"},
}
#: Bytes of a line that are read at once, and characters of a text without words that wait for one.
_MOST_LINE = 1 << 16
_MOST_WAITING = 32 << 20
_LINE_OVERHEAD = 100
_FILE_SUFFIXES = (".txt", ".log", ".trace", ".ftrace", ".out", ".dat", ".data")
#: How binary files begin, and what to do about them.
_BINARY = {
    b"\x17\x08\x44tracing": "a binary trace: decode what `trace-cmd report` makes of it",
    b"PERFILE2": "a binary trace: decode what `perf script` makes of it",
    b"\xfd7zXZ\0": "compressed: unpack it first",
    b"\x1f\x8b": "compressed: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed: unpack it first",
}


def command(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="KIND WORD... | TEXT | FILE | -",
            help="spte, role, pferr (an error_code), qual (an exit qualification) or gpte, and words; or any text with "
            "words in it, as arguments, in a file, or on standard input (-).",
            show_default=False,
        ),
    ],
    kernel: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="The kernel the words are of, such as 5.10. [default: 6.12, and others]"),
    ] = None,
    table_format: Annotated[
        Format | None,
        typer.Option("--format", metavar="|".join(Format), help="Whose tables or faults; none: each that makes sense."),
    ] = None,
    level: Annotated[
        int | None, typer.Option(metavar="1-5", help="Of an entry: the level of its table, 1 = 4K ...")
    ] = None,
    mode: Annotated[
        Mode | None, typer.Option(metavar="|".join(MODE_NAMES), help="Of a guest's entry: its paging mode.")
    ] = None,
    maxphyaddr: Annotated[
        int | None,
        typer.Option(metavar="BITS", help="Physical address bits: those above are reserved. [default: not known]"),
    ] = None,
    l1tf: Annotated[
        bool, typer.Option("--l1tf", help="The host mitigates L1TF: the gfn of an MMIO spte is kept in two places.")
    ] = False,
    cache_bits: Annotated[
        int | None,
        typer.Option(metavar="BITS", help="With --l1tf: address bits of the L1 cache. [default: MAXPHYADDR or 44]"),
    ] = None,
    cpu: Annotated[
        str | None,
        typer.Option(
            metavar="FEATURE=VALUE,...|none",
            help="Of a guest's entry: what its CPU has, such as nx=off,maxphyaddr=36 (nx, gbpages, pse36, pku, la57, "
            "lm, amd, maxphyaddr); none: a guest without CPUID. [default: not known]",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what words mean: sptes, roles, error codes, guest entries of any kernel; alone, or in any text.

    In a text each line is followed by its words, with kernel, format and level from the text around them; a trace ends
    with a summary. What breaks a rule is told with the rule, what is ambiguous with each reading.
    """
    context = _context(kernel, table_format, level, mode, Machine(maxphyaddr, l1tf, cache_bits, _cpu(cpu)))
    if arguments[0] in set(Kind):
        _decode_words(Kind(arguments[0]), arguments[1:], context, as_json)
        return
    _decode_text(_lines(arguments), context, as_json)


# ---- options


def _context(
    kernel: str | None, table_format: Format | None, level: int | None, mode: Mode | None, machine: Machine
) -> Context:
    if level is not None and not 1 <= level <= 5:
        raise ConfigError(f"--level {level}: a table has a level of 1 to 5")
    if machine.maxphyaddr is not None and not 32 <= machine.maxphyaddr <= 52:
        raise ConfigError(f"--maxphyaddr {machine.maxphyaddr}: a CPU has 32 to 52 physical address bits")
    said = machine.cpu.maxphyaddr if machine.cpu is not None else None
    if machine.maxphyaddr is not None and said is not None:
        raise ConfigError(f"--maxphyaddr {machine.maxphyaddr}: --cpu says that there are {said} bits; take one of both")
    if machine.cache_bits is not None and not machine.l1tf:
        raise ConfigError("--cache-bits: has a meaning with --l1tf alone")
    if machine.cache_bits is not None and not 32 <= machine.cache_bits <= 46:
        raise ConfigError(f"--cache-bits {machine.cache_bits}: an L1 cache with the bug sees 32 to 46 address bits")
    paging = MODE_NAMES[mode] if mode is not None else None
    if paging is not None and level is not None and level > paging.levels:
        raise ConfigError(f"--level {level}: a table of mode {mode} has a level of 1 to {paging.levels}")
    layout = layout_of(parse_version(kernel)) if kernel is not None else None
    return Context(layout, machine, table_format, level, paging)


# Features that no bit of an entry depends on are refused, not ignored.
def _cpu(text: str | None) -> CpuFeatures | None:
    if text is None:
        return None
    start = CpuFeatures(amd=False)
    cpu = parse_cpu(text, start)
    for name in ("smep", "smap", "pcid"):
        if cpu.has_cpuid and not getattr(cpu, name):
            raise ConfigError(f"--cpu {name}=off: has no meaning for a gpte")
    return cpu


def _check_used(kind: Kind, context: Context) -> None:
    given = {
        "--kernel": context.layout,
        "--format": context.format,
        "--level": context.level,
        "--mode": context.mode,
        "--maxphyaddr": context.machine.maxphyaddr,
        "--l1tf": context.machine.l1tf or None,
        "--cpu": context.machine.cpu,
    }
    for option, value in given.items():
        if value is not None and option not in _USED[kind]:
            raise ConfigError(f"{option}: has no meaning for a {kind}")


# ---- words


def _decode_words(kind: Kind, words: Sequence[str], context: Context, as_json: bool) -> None:
    if not words:
        raise ConfigError(f"decode {kind}: a word is missing; write it like 0x8000000000000e67 or e67")
    _check_used(kind, context)
    bits = 32 if kind is Kind.GPTE and context.mode is not None and context.mode.entry_size == 4 else 64
    numbers = [parse_number(word, bits) for word in words]
    decoded = [(number, read_word(kind, number, context)) for number in numbers]
    if as_json:
        rows = [
            {"kind": str(kind), "text": number.text, "word": f"{number.value:#x}",
             "readings": [reading.to_json() for reading in readings]}
            for number, readings in decoded
        ]  # fmt: skip
        print(json_text("decode", {"words": rows}))
        return
    for number, readings in decoded:
        if len(decoded) > 1:
            typer.echo(f"{number.text}:")
        for line in _word_lines(readings):
            typer.echo(f"  {line}" if len(decoded) > 1 else line)


def _word_lines(readings: Sequence[Reading]) -> Iterator[str]:
    for reading in readings:
        lines = reading.lines()
        if len(readings) > 1:
            yield f"as {reading.kind}: {lines[0]}"
            yield from (f"  {line.lstrip()}" for line in lines[1:])
        else:
            yield from lines


# ---- text


def _lines(arguments: Sequence[str]) -> Iterable[str]:
    if list(arguments) == ["-"]:
        if sys.stdin is None:
            raise UserError("standard input is closed: give a text, or the name of a file")
        return _text_lines(sys.stdin.buffer, "standard input")
    path = Path(arguments[0])
    if len(arguments) == 1 and _is_file_name(arguments[0]):
        return _file_lines(path)
    separator = "\n" if any("\n" in part for part in arguments) else " "
    # An argument may hold bytes that are no text.
    return separator.join(arguments).encode("utf-8", "surrogateescape").decode("utf-8", "replace").splitlines()


def _is_file_name(text: str) -> bool:
    if len(text) > 1024 or "\n" in text:
        return False
    if os.path.exists(text):  # noqa: PTH110 - false for every text that no file can be called
        return True
    return " " not in text and (text.endswith(_FILE_SUFFIXES) or "/" in text)


def _file_lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        yield from _text_lines(file, str(path))


# A line without an end is read in pieces.
def _text_lines(file: BinaryIO, name: str) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: file.readline(_MOST_LINE), b"")):
        if number == 0:
            for magic, advice in _BINARY.items():
                if line.startswith(magic):
                    raise UserError(f"{name}: {advice}")
            if line.count(0) == len(line):
                raise UserError(f"{name}: begins with zeros, is no text")
        yield line.decode("utf-8", "replace")


def _decode_text(lines: Iterable[str], context: Context, as_json: bool) -> None:
    from ..decode.annotate import Annotator

    annotator = Annotator(context)
    if as_json:
        found = [line.to_json() for line in annotator.annotate(lines) if line.words or line.remarks]
        _check_found(annotator)
        is_trace = bool(annotator.summary.events)
        summary = annotator.summary.to_json(annotator.counts) if is_trace else None
        print(json_text("decode", {"lines": found, "summary": summary}))
        return
    # Nothing is printed of a text without words, unless it is too long to be kept.
    waiting: list[str] = []
    size = 0
    for line in annotator.annotate(lines):
        waiting.append(line.line)
        waiting += [f"    {text}" for word in line.words for text in word.lines()]
        waiting += [f"    {remark}" for remark in line.remarks]
        size += len(line.line) + _LINE_OVERHEAD
        if annotator.nr_words or annotator.summary.events or size > _MOST_WAITING:
            typer.echo("\n".join(waiting))
            waiting = []
    _check_found(annotator)
    if waiting:
        typer.echo("\n".join(waiting))
    if annotator.summary.events:
        typer.echo("")
        for text in annotator.summary.lines(annotator.counts):
            typer.echo(text)


def _check_found(annotator: Annotator) -> None:
    if not annotator.nr_words and not annotator.summary.events:
        raise UserError("no word found in the text; say what a word is: kvmmu decode spte|role|pferr|qual|gpte WORD")
