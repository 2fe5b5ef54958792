# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu run``: replay a recording through the MMU and verify it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError, KvmBug, KvmmuError
from .output import Interrupted, complain, json_text, make_console, one_line, shows_progress
from .runtables import Outcome, print_findings, print_outcomes, print_result
from .status import Status, status_of

if TYPE_CHECKING:
    from ..replay.player import Player
    from ..replay.replay import Options
    from ..replay.result import Result


def command(
    recordings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECORDING ...]",
            help="Recordings (.kmr), or names of bundled ones (kvmmu recordings); none: linux-6.12-boot.",
        ),
    ] = None,
    mmu: Annotated[
        str,
        typer.Option(
            metavar="none|shadow|tdp|tdp-legacy",
            help="none: no kvm, the CPU walks the guest's own tables; shadow: shadow paging; tdp: nested paging with "
            "the TDP MMU; tdp-legacy: nested paging with the legacy direct MMU.",
        ),
    ] = "shadow",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="PARAM=VALUE", help="Set a parameter (see kvmmu params).")
    ] = None,
    cpu: Annotated[
        str | None,
        typer.Option(
            metavar="FEATURE=VALUE,...|none",
            help="Give the guest another CPUID than the recorded machine's: maxphyaddr=N, gbpages=off ...; none: none.",
        ),
    ] = None,
    first: Annotated[
        int, typer.Option("--from", metavar="N", min=0, help="Verify from record N on; those before leave their state.")
    ] = 0,
    until: Annotated[int | None, typer.Option("--until", metavar="N", min=0, help="Stop before record N.")] = None,
    break_cause: Annotated[
        str | None, typer.Option("--break", metavar="CAUSE", help="Stop at the first fault of this cause, and show it.")
    ] = None,
    audit: Annotated[
        str | None,
        typer.Option(
            metavar="[=changed|full]",
            help="Check the invariants each 100,000 records, not only at the end: of what changed since the check "
            "before, or (--audit=full) all of them.",
        ),
    ] = None,
    interval: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Count for each N records as well (of several recordings: in --json)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    events: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write tracepoint events: .txt (ftrace), .jsonl or .parquet."),
    ] = None,
) -> Status:
    """Replay a recorded machine: every access through TLB, hardware walk and fault path, every translation verified.

    Ends with status 1 if model and machine disagree about a translation, which is then shown entry by entry. Of one
    recording everything is shown; of several only what is wrong, and one table at the end. One that cannot be used
    does not stop the others; the status is 1 if any has a mismatch, otherwise that of the first that failed.
    """
    from ..record.bundled import find_recording
    from ..replay.replay import Options, bundled_recording

    options = Options(mmu, tuple(settings or ()), first, until, break_cause, audit, events, interval or 0, cpu=cpu)
    options.check()
    if recordings is not None and len(recordings) > 1:
        return _run_several(recordings, options, as_json=as_json)
    result = _replay(find_recording(recordings[0]) if recordings else bundled_recording(), options)
    if result.warning:
        complain(f"warning: {result.warning}")
    if as_json:
        print(json_text("run", result.to_json()))
    else:
        print_result(result)
    if result.stopped == "interrupted":
        return Status.INTERRUPTED
    return Status.MISMATCH if result.mismatches else Status.OK


def _run_several(names: list[str], options: Options, *, as_json: bool) -> Status:
    if options.events is not None:
        raise ConfigError(f"--events {options.events}: a file takes the events of one recording, not of {len(names)}")
    outcomes: list[Outcome] = []
    for name in names:
        outcome = _outcome(name, options)
        outcomes.append(outcome)
        if outcome.error:
            complain(outcome.error)
        elif outcome.result is not None and outcome.result.warning:
            warning = outcome.result.warning
            complain(f"warning: {warning if name in warning else f'{name}: {warning}'}")
        if not as_json:
            print_findings(outcome)
        if outcome.status is Status.INTERRUPTED:
            outcomes += [Outcome(left, None, status=Status.INTERRUPTED) for left in names[len(outcomes) :]]
            break
    mismatches = sum(one.result.mismatches for one in outcomes if one.result is not None)
    if as_json:
        facts = {"mismatches": mismatches, "results": [one.to_json() for one in outcomes]}
        print(json_text("run", facts))
    else:
        print_outcomes(outcomes)
    statuses = [one.status for one in outcomes if one.status is not Status.OK]
    if Status.INTERRUPTED in statuses:
        return Status.INTERRUPTED
    return Status.MISMATCH if mismatches else statuses[0] if statuses else Status.OK


# A recording that cannot be used is no reason to know nothing of the others; a bug is.
def _outcome(name: str, options: Options) -> Outcome:
    from ..record.bundled import find_recording

    try:
        result = _replay(find_recording(name), options)
    except Interrupted as end:
        return Outcome(name, None, str(end), Status.INTERRUPTED)
    except KvmBug:
        raise
    except (KvmmuError, OSError) as error:
        text = one_line(error)
        return Outcome(name, None, text if name in text else f"{name}: {text}", status_of(error))
    return Outcome(name, result, status=Status.INTERRUPTED if result.stopped == "interrupted" else Status.OK)


def _replay(path: Path, options: Options) -> Result:
    from ..replay.replay import replay_file

    try:
        with ExitStack() as stack:
            return replay_file(path, options, _progress(stack, path, options.until))
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted before a record of {path} was verified") from None


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
