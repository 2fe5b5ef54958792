# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu info``: what a recording is of, and what it holds."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from .output import Interrupted, json_text, printable

if TYPE_CHECKING:
    from ..record.piece import Summary


def command(
    recording: Annotated[str, typer.Argument(metavar="FILE", help="A recording (.kmr), or the name of a bundled one.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a recording's machine and count its records."""
    from ..record.bundled import find_recording
    from ..record.piece import summarize

    reached = [0, 0]

    def note(position: int, total: int) -> None:
        reached[:] = position, total

    try:
        summary = summarize(str(find_recording(recording)), note)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted after counting {reached[0]} of {reached[1] or 'all'} records") from None
    if as_json:
        print(json_text("info", summary.to_dict()))
        return
    for name, value in _rows(summary):
        print(f"{name:<14} {printable(value)}")


# Name and value of each line, machine first.
def _rows(summary: Summary) -> list[tuple[str, str]]:
    header = summary.header
    rows = [
        ("format", ".".join(map(str, header.version))),
        ("recorded by", header.recorded_by or "unknown"),
        ("guest", shlex.join(header.command) or "unknown"),
        (
            "machine",
            f"{header.machine or 'unknown'}, CPU {header.cpu_model or 'unknown'}, QEMU {header.qemu or 'unknown'}",
        ),
        (
            "cpus",
            f"{header.cpus}, {header.maxphyaddr} physical address bits, {' '.join(header.features) or 'no features'}",
        ),
    ]
    for region in header.memory:
        where = f"{region.gpa:#013x} to {region.gpa + region.size:#013x}"
        rows.append(("memory", f"{where}  {region.kind}  {region.memory} at {region.offset:#x}"))
    began = f"at {header.start or 'unknown'}" + (f", gpa {header.entry:#x}" if header.entry is not None else "")
    if header.first:
        began = f"a piece, from record {header.first} of the whole"
    rows += [
        ("started", began),
        ("ended", summary.reason + (" (the recording is cut)" if summary.cut else "")),
        ("records", f"{summary.records:,}, decoded in {summary.decode_seconds:.3f} s"),
    ]
    rows += [(f"  {name}", f"{count:,}") for name, count in summary.kinds.most_common()]
    rows += [(f"  on cpu {cpu}", f"{summary.cpus[cpu]:,}") for cpu in range(header.cpus)]
    # A piece, and a recording without a trailer, do not know what the guest made.
    made = f" of {summary.seen:,} that the guest made" if summary.seen else ""
    rows += [
        (
            "accesses",
            f"{summary.accesses:,}{made}; {summary.user_share:.1%} by user code",
        ),
        *(("left out", f"{count:,} {reason}") for reason, count in (summary.left_out or {"stale": 0}).items()),
        *([("in SMM", f"{summary.smm:,} accesses (a replay leaves their records out)")] if summary.smm else []),
        ("CR3 values", f"{len(summary.cr3s):,}"),
    ]
    return rows
