# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu conformance``: recordings of real KVM, played into the model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, RecordingError
from .output import Interrupted, complain, json_text, printable
from .status import Status

if TYPE_CHECKING:
    from ..conformance.suite import Verdict

_KINDS = ("results", "counters", "dirty", "tables")


def command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="Folders of NAME.scn, NAME.MODE.norm[.xz] and NAME.MODE.res[.xz], or such files.",
        ),
    ],
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode",
            metavar="shadow|tdp|tdp-legacy",
            help="Play only recordings of this one (tdp-legacy is tdplegacy in files' names).",
        ),
    ] = None,
    is_exact: Annotated[
        bool, typer.Option("--exact", help="Let not even the flushes of a pass differ that KVM's timer interrupted.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> Status:
    """Play recordings of real KVM and compare: events, guest results, counters, dirty bitmaps, tables.

    The recorded exits are given to the model; what it does must be what KVM did. Of each recording that differs the
    first difference is shown, recorded and model side by side. Status 0 only if all are equal; 1: some differ; 3: none
    differs, but some cannot be played.
    """
    from ..conformance.suite import FAMILIES, find, play

    if mode is not None and mode not in FAMILIES:
        raise ConfigError(f"--mode {mode}: use {', '.join(FAMILIES)}")
    recordings, problems = find(paths, mode)
    if not recordings and not problems:
        raise RecordingError(f"{', '.join(map(str, paths))}: there is no recording of mode {mode}")
    verdicts: list[Verdict] = []
    width = max([len(f"{recording.name} {recording.mode}") for recording in recordings], default=0)
    try:
        for verdict in play(recordings, is_exact):
            verdicts.append(verdict)
            if not as_json:
                _print(verdict, width)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted after {len(verdicts)} of {len(recordings)} recordings") from None
    if as_json:
        totals = _totals(verdicts) | {"problems": problems}
        print(json_text("conformance", totals | {"recordings": [_facts(verdict) for verdict in verdicts]}))
    else:
        totals = _totals(verdicts)
        print(f"{totals['equal']} of {len(verdicts)} recordings are equal" + _rest(totals, problems))
    for problem in problems:
        complain(problem)
    if totals["different"]:
        return Status.MISMATCH
    return Status.INPUT if problems or totals["not_played"] else Status.OK


def _rest(totals: dict[str, Any], problems: list[str]) -> str:
    parts = [f"{totals['different']} differ"] if totals["different"] else []
    parts += [f"{totals['not_played']} cannot be played"] if totals["not_played"] else []
    parts += [f"{len(problems)} scenarios or traces are alone"] if problems else []
    return "".join(f", {part}" for part in parts)


def _totals(verdicts: list[Verdict]) -> dict[str, Any]:
    equal = sum(verdict.is_equal for verdict in verdicts)
    not_played = sum(bool(verdict.problem) for verdict in verdicts)
    return {"equal": equal, "different": len(verdicts) - equal - not_played, "not_played": not_played}


def _print(verdict: Verdict, width: int) -> None:
    from ..conformance.suite import side_by_side

    title = printable(f"{verdict.recording.name} {verdict.recording.mode}")
    if verdict.outcome is None:
        print(f"{title:<{width}}  cannot be played: {printable(verdict.problem)}")
        return
    outcome = verdict.outcome
    what = f"{outcome.nr_equal_events:,} of {verdict.nr_events:,} events"
    what += f", {outcome.nr_dumps - outcome.nr_dumps_skipped} dumps, {outcome.nr_counters} sets of counters"
    what += f", {outcome.nr_dirty_logs} dirty logs, {outcome.nr_results} results, {outcome.nr_faults} faults of the CPU"
    if outcome.nr_dumps_skipped:
        what += f"; {outcome.nr_dumps_skipped} dumps of freed tables left out"
    if outcome.nr_yield_flushes:
        many = "es" if outcome.nr_yield_flushes > 1 else ""
        what += f"; {outcome.nr_yield_flushes} flush{many} more, of interrupted passes"
    print(f"{title:<{width}}  {'equal' if verdict.is_equal else 'DIFFERS'}: {what}")
    if verdict.first is not None:
        for line in side_by_side(verdict.first, max(80, shutil.get_terminal_size((160, 24)).columns)):
            print(f"  {printable(line)}")
        nr_more = len(outcome.differences) - 1
        if nr_more:
            print(f"  and {nr_more} more")


def _facts(verdict: Verdict) -> dict[str, Any]:
    outcome, first = verdict.outcome, verdict.first
    facts: dict[str, Any] = {
        "name": verdict.recording.name,
        "mode": verdict.recording.mode,
        "events": verdict.nr_events,
        "equal": outcome.nr_equal_events if outcome is not None else 0,
    }
    facts |= {f"{kind}_equal": verdict.agrees_on(kind) for kind in _KINDS}
    facts |= {"predicted": False, "first_difference": None, "problem": verdict.problem or None}
    if first is not None:
        facts["first_difference"] = {
            "line": first.line,
            "place": first.place,
            "what": first.what,
            "recorded": first.expected,
            "model": first.got,
            "context": {"before": first.before, "recorded": first.recorded, "model": first.model},
        }
    facts["compared"] = {
        "exits": outcome.nr_exits if outcome is not None else 0,
        "faults": outcome.nr_faults if outcome is not None else 0,
        "dumps": outcome.nr_dumps - outcome.nr_dumps_skipped if outcome is not None else 0,
        "dumps_left_out": outcome.nr_dumps_skipped if outcome is not None else 0,
        "counters": outcome.nr_counters if outcome is not None else 0,
        "dirty_logs": outcome.nr_dirty_logs if outcome is not None else 0,
        "results": outcome.nr_results if outcome is not None else 0,
        "yield_flushes": outcome.nr_yield_flushes if outcome is not None else 0,
    }
    return facts
