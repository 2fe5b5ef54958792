# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu dump``: the records of a recording as text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from .output import JSON_VERSION, Interrupted, complain

if TYPE_CHECKING:
    from ..record.reader import Reader


def command(
    recording: Annotated[str, typer.Argument(metavar="FILE", help="A recording (.kmr), or the name of a bundled one.")],
    first: Annotated[int, typer.Option("--from", metavar="N", min=0, help="First record to print.")] = 0,
    until: Annotated[
        int | None, typer.Option("--until", metavar="M", min=0, help="Record before which to stop; none: the end.")
    ] = None,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            metavar="KIND",
            help="Print only records of this kind: access, store, page, regs, invlpg, invpcid, mmio or map. May be "
            "given several times.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, a record a line.")] = False,
) -> None:
    """Print records as text, one a line: number, kind, CPU, then what the kind has.

    docs/recording-format.md describes the lines. Of a table page the text has the number of words that are not zero
    and a checksum; --json has the bytes.
    """
    from ..record.bundled import find_recording
    from ..record.describe import record_fields, record_line
    from ..record.format import KIND_NAMES
    from ..record.piece import check_range
    from ..record.reader import Reader

    wanted = _wanted(kinds or [], KIND_NAMES[1:])
    path = str(find_recording(recording))
    with Reader(path) as reader:
        if loss := reader.loss():
            complain(f"warning: {loss}")
        end = check_range(path, reader.total, first, until, "print") if reader.total or first or until else 0
        try:
            if as_json:
                for text in _json_lines(path, (record_fields(reader) for _ in _records(reader, first, end, wanted))):
                    sys.stdout.write(text)
            else:
                for _ in _records(reader, first, end, wanted):
                    sys.stdout.write(record_line(reader) + "\n")
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted at record {reader.position} of {end}") from None


def _wanted(kinds: list[str], names: tuple[str, ...]) -> set[int]:
    for kind in kinds:
        if kind not in names:
            raise ConfigError(f"--kind {kind}: no record is of that kind; take {', '.join(names)}")
    return {number for number, name in enumerate(names, 1) if not kinds or name in kinds}


# Let the reader hold each record that is wanted, one after the other.
def _records(reader: Reader, first: int, end: int, wanted: set[int]) -> Iterator[None]:
    while reader.position < end:
        kind = reader.next()
        if kind == 0:
            return
        if reader.position > first and kind in wanted:
            yield


# An object as in every command, with each record on a line of its own.
def _json_lines(path: str, records: Iterator[dict[str, Any]]) -> Iterator[str]:
    head = json.dumps({"version": JSON_VERSION, "command": "dump", "recording": path})
    yield head[:-1] + ', "records": ['
    separator = "\n"
    for fields in records:
        yield separator + json.dumps(fields)
        separator = ",\n"
    yield "\n]}\n"
