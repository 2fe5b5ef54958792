# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu run``: replay a recording through the MMU and verify it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError, KvmBug, KvmmuError, RecordingError
from .output import Interrupted, json_text, make_console, printable, shows_progress
from .status import Status

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..replay.player import Player
    from ..replay.result import Result


def command(
    recording: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECORDING]",
            help="A recording (.kmr), or the name of a bundled one (kvmmu recordings); none: linux-6.12-boot.",
        ),
    ] = None,
    mmu: Annotated[
        str,
        typer.Option(
            metavar="none|shadow|tdp-legacy",
            help="none: no kvm, the CPU walks the guest's own tables; shadow: shadow paging; tdp-legacy: nested paging "
            "with the legacy direct MMU.",
        ),
    ] = "shadow",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="PARAM=VALUE", help="Set a parameter (see kvmmu params).")
    ] = None,
    first: Annotated[
        int, typer.Option("--from", metavar="N", min=0, help="Verify from record N on; those before leave their state.")
    ] = 0,
    until: Annotated[int | None, typer.Option("--until", metavar="N", min=0, help="Stop before record N.")] = None,
    break_cause: Annotated[
        str | None, typer.Option("--break", metavar="CAUSE", help="Stop at the first fault of this cause.")
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="Check every invariant each 100,000 records, not only at the end.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    events: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write tracepoint events: .txt (ftrace), .jsonl or .parquet."),
    ] = None,
) -> Status:
    """Replay a recorded machine: every access through TLB, hardware walk and fault path, every translation verified.

    Ends with status 1 if model and machine disagree about a translation, which is then shown entry by entry.
    """
    from ..record.bundled import find_recording
    from ..replay.replay import Options, bundled_recording, replay

    options = Options(mmu, tuple(settings or ()), first, until, break_cause, audit, events)
    path = find_recording(recording) if recording is not None else bundled_recording()
    try:
        with ExitStack() as stack:
            result = replay(path, options, _progress(stack, path, options.until))
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted before a record of {path} was verified") from None
    except (ConfigError, KvmBug):
        raise
    except (KvmmuError, MemoryError) as error:
        raise _name_file(path, error) from error
    if result.warning:
        print(f"kvmmu: warning: {result.warning}", file=sys.stderr)
    if as_json:
        print(json_text("run", result.to_json()))
    else:
        _print(result)
    if result.stopped == "interrupted":
        return Status.INTERRUPTED
    return Status.MISMATCH if result.mismatches else Status.OK


# The mistake is the recording's: whatever notices it, the line names the file.
def _name_file(path: Path, error: KvmmuError | MemoryError) -> KvmmuError | OSError:
    text = str(error) or "there is not enough memory for it"
    if isinstance(error, KvmmuError) and str(path) in text:
        return error
    return RecordingError(f"{path}: {text}")


def _progress(stack: ExitStack, path: Path, until: int | None) -> Callable[[Player], None] | None:
    # A bar with the rate on standard error; none where nobody sees it.
    if not shows_progress():
        return None
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    bar = stack.enter_context(Progress(*columns, console=make_console(to_stderr=True), transient=True))
    task = bar.add_task(path.name, total=None, rate="")

    def show(player: Player) -> None:
        speed = bar.tasks[0].speed or bar.tasks[0].finished_speed or 0.0
        total = min(until or player.reader.total, player.reader.total)
        bar.update(task, total=total, completed=player.reader.position, rate=f"{speed:,.0f} records/s")

    return show


def _print(result: Result) -> None:
    console = make_console()
    _print_totals(console, result)
    if result.faults:
        console.print(_faults_table(result))
    if result.shadow_pages:
        console.print(_pages_table(result))
    if result.counters:
        console.print(_counters_table(result))
    for mismatch in result.details:
        for line in mismatch.lines():
            console.print(printable(line), markup=False)
    if result.mismatches > len(result.details):
        console.print(f"... and {result.mismatches - len(result.details)} more mismatches")


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        if number == 0:
            table.add_column(column, overflow="fold")
        else:
            table.add_column(column, justify="right", no_wrap=True)
    return table


def _print_totals(console: Console, result: Result) -> None:
    played = result.position - result.first
    rate = f"{played / result.seconds:,.0f} records/s" if result.seconds else "-"
    table = _table(f"{printable(Path(result.recording).name)} through {result.mmu}", "", "")
    table.show_header = False
    rows = [
        ("records", f"{played:,} ({_why(result)})"),
        ("accesses verified", f"{result.accesses:,}"),
        ("stores to guest tables", f"{result.stores:,} ({result.emulated_stores:,} emulated)"),
        ("faults", f"{sum(result.faults.values()):,}"),
        ("exits", f"{result.exits:,}"),
        ("mismatches", f"{result.mismatches:,}"),
        *(
            [("lawful TLB differences", f"{result.tlb_differences:,} (no flush since an edit)")]
            if result.tlb_differences
            else []
        ),
        *([("records in SMM, left out", f"{result.smm_records:,}")] if result.smm_records else []),
        ("audits, all clean", f"{result.audits}"),
        ("time", f"{result.seconds:.2f} s, {rate}"),
        ("memory used", f"{result.peak_rss_bytes / 2**20:.0f} MiB"),
        ("build", result.build),
    ]
    for name, value in rows:
        if result.mmu != "none" or name not in ("faults", "exits", "audits, all clean"):
            table.add_row(name, value)
    console.print(table)


def _why(result: Result) -> str:
    texts = {
        "end": "to the end of a recording that was cut" if result.cut else "to the end",
        "limit": "to the limit asked for",
        "break": "stopped at the fault asked for",
        "interrupted": f"interrupted at record {result.position}",
    }
    return texts[result.stopped]


def _faults_table(result: Result) -> Table:
    total = sum(result.faults.values())
    table = _table("faults by cause", "cause", "faults", "share")
    for cause, count in sorted(result.faults.items(), key=lambda item: -item[1]):
        table.add_row(cause, f"{count:,}", f"{100 * count / total:.1f} %")
    return table


def _pages_table(result: Result) -> Table:
    table = _table("shadow pages at the end", "role", "level", "pages")
    for pages in result.shadow_pages:
        table.add_row(pages.description, str(pages.level), f"{pages.count:,}")
    return table


def _counters_table(result: Result) -> Table:
    table = _table("counters", "kvm_stat name", "value")
    for name, value in result.counters.items():
        if value:
            table.add_row(name, f"{value:,}")
    return table
