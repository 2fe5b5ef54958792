# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu info``: what a recording is of, and what it holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..record.piece import Summary


def command(
    recording: Annotated[str, typer.Argument(metavar="FILE", help="The recording (.kmr).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a recording's machine and count its records."""
    from ..record.piece import summarize

    summary = summarize(recording)
    if as_json:
        print(json.dumps(summary.to_dict(), indent=2))
        return
    for name, value in _rows(summary):
        print(f"{name:<14} {value}")


# Name and value of each line, machine first.
def _rows(summary: Summary) -> list[tuple[str, str]]:
    header = summary.header
    rows = [
        ("format", ".".join(map(str, header.version))),
        ("recorded by", header.recorded_by or "unknown"),
        ("guest", " ".join(header.command) or "unknown"),
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
    rows += [
        (
            "accesses",
            f"{summary.accesses:,} of {summary.seen:,} that the guest made; {summary.user_share:.1%} by user code",
        ),
        *(("left out", f"{count:,} {reason}") for reason, count in (summary.left_out or {"stale": 0}).items()),
        *([("in SMM", f"{summary.smm:,} accesses (a replay leaves their records out)")] if summary.smm else []),
        ("CR3 values", f"{len(summary.cr3s):,}"),
    ]
    return rows
