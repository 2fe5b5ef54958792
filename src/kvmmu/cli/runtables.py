# SPDX-License-Identifier: GPL-2.0-only
"""What ``kvmmu run`` prints: the report of one recording, the table of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import make_console, print_table, printable
from .status import Status

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..replay.result import Result


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one recording of several: its ``result``, or why there is none."""

    name: str
    result: Result | None
    error: str = ""
    status: Status = Status.OK

    def to_json(self) -> dict[str, Any]:
        """The result, or the error with the status that it would have ended the command with."""
        if self.result is not None:
            return self.result.to_json()
        return {"recording": self.name, "error": self.error, "status": int(self.status)}


def print_outcomes(outcomes: Sequence[Outcome]) -> None:
    """The table that a run of several recordings ends with: a line for each, then the sums."""
    rows: list[tuple[str, ...]] = [("recording", "records", "accesses", "faults", "mismatches", "time", "ended")]
    sums = [0, 0, 0, 0]
    seconds = 0.0
    for one in outcomes:
        result = one.result
        if result is None:
            rows.append((printable(one.name), *"-----", _NOT_DONE[one.status]))
            continue
        numbers = (result.position - result.first, result.accesses, sum(result.faults.values()), result.mismatches)
        sums = [before + number for before, number in zip(sums, numbers, strict=True)]
        seconds += result.seconds
        counts = (f"{number:,}" for number in numbers)
        rows.append((printable(one.name), *counts, f"{result.seconds:.2f} s", _why(result)))
    rows.append(("all", *(f"{number:,}" for number in sums), f"{seconds:.2f} s", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *words, end in rows:
        cells = (word.rjust(width) for word, width in zip(words, widths[1:], strict=False))
        print("  ".join((name.ljust(widths[0]), *cells, end)).rstrip())


_NOT_DONE = {
    Status.INPUT: "cannot be used",
    Status.USAGE: "the options do not fit it",
    Status.RECORDER: "a disk is full",
    Status.INTERRUPTED: "not replayed",
}


def print_findings(outcome: Outcome) -> None:
    """Of one recording of several: its mismatches, and the fault that it stopped at."""
    result = outcome.result
    if result is None or not (result.details or result.fault):
        return
    console = make_console()
    console.print(f"{printable(outcome.name)}:", markup=False)
    _print_details(console, result)


def print_result(result: Result) -> None:
    """The report of one recording."""
    console = make_console()
    _print_totals(console, result)
    if result.faults:
        print_table(console, _faults_table(result))
    if result.shadow_pages:
        print_table(console, _pages_table(result))
    if result.counters:
        print_table(console, _counters_table(result))
    if result.intervals:
        print_table(console, _intervals_table(result))
    _print_details(console, result)


def _print_details(console: Console, result: Result) -> None:
    for mismatch in result.details:
        for line in mismatch.lines():
            console.print(printable(line), markup=False)
    if result.mismatches > len(result.details):
        console.print(f"... and {result.mismatches - len(result.details)} more mismatches")
    if result.fault is not None:
        for line in result.fault.lines():
            console.print(printable(line), markup=False)


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
    print_table(console, table)


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


def _intervals_table(result: Result) -> Table:
    causes = list(result.faults)
    table = _table("per interval", "from record", "until", "accesses", "stores", *causes)
    for one in result.intervals:
        faults = [f"{one.faults.get(cause, 0):,}" for cause in causes]
        table.add_row(f"{one.first:,}", f"{one.until:,}", f"{one.accesses:,}", f"{one.stores:,}", *faults)
    return table
