# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu record``: run a guest under QEMU and record what an MMU must know."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError, RecorderError
from .output import make_console, shows_progress
from .status import Status

if TYPE_CHECKING:
    from ..record.format import Trailer
    from ..record.recorder import Progress, Start


def command(
    guest: Annotated[list[str], typer.Argument(metavar="QEMU ...", help="Command line of the guest, behind --.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The recording to write (.kmr).")],
    firmware: Annotated[
        bool, typer.Option("--firmware", help="Record from the first instruction: --start firmware.")
    ] = False,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help="What begins the recording: kernel (its first instruction), firmware, user (the first instruction "
            "at CPL 3), or port:N (the guest's first write to I/O port N). [default: kernel]",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option("--for", metavar="SECONDS", help="End the guest this long after QEMU's start (wall time)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    level: Annotated[
        int, typer.Option(metavar="1-22", min=1, max=22, help="zstd level: higher is smaller and slower.")
    ] = 19,
) -> Status | None:
    """Record a guest: kvmmu record -o boot.kmr -- qemu-system-x86_64 -m 256 -kernel bzImage ...

    Needs QEMU 10 or newer and a C compiler (the plugin is built once). What recording needs (files for the guest's
    memory, the plugin, single-threaded TCG) is added to the command line, and said. Ctrl-C, --for, or a guest that
    crashes, leaves a recording that says it is cut; a second Ctrl-C, after a second, kills a QEMU that does not end.
    A recorder that is killed leaves what was seen until a second before. Ends with status 4 when QEMU dies.
    """
    from ..record.recorder import Order, complain, record

    if seconds is not None and not 0 < seconds < 1e9:
        raise ConfigError(f"--for {seconds:g}: must be a number of seconds above 0")
    if firmware and start not in (None, "firmware"):
        raise ConfigError(f"--start {start}: --firmware says another beginning; give one of them")
    when = _parse_start("firmware" if firmware else start or "kernel")
    order = Order(output, tuple(guest), when, level, force, seconds)
    with ExitStack() as stack:
        trailer = record(order, complain, _progress(stack, guest))
    size = Path(output).stat().st_size
    print(
        f"{output}: {trailer.records} records of {trailer.seen} accesses seen, {size} bytes, ended by {trailer.reason}"
    )
    if trailer.smm:
        print(f"{output}: {trailer.smm} accesses were made in SMM; their records are marked, a replay leaves them out")
    if trailer.cut:
        print(f"{output}: the recording is cut")
    warning = trailer.warning()
    if warning:
        complain(f"warning: {warning}")
    return _status_of(trailer)


# A value of --start that does not exist is a usage error here.
def _parse_start(text: str) -> Start:
    from ..record.recorder import Start

    try:
        return Start.parse(text)
    except RecorderError as error:
        raise ConfigError(f"--start {text}: {error}") from error


# Nothing is wrong when the guest ended, or when it was ended as --for says.
def _status_of(trailer: Trailer) -> Status | None:
    from ..record.recorder import INTERRUPTED, QEMU_ENDED

    if trailer.reason == INTERRUPTED:
        return Status.INTERRUPTED
    return Status.RECORDER if trailer.reason.startswith(QEMU_ENDED) else None


# A line with the number of records, redrawn; none where the guest itself writes to the terminal.
def _progress(stack: ExitStack, guest: list[str]) -> Callable[[Progress], None] | None:
    uses_terminal = "-nographic" in guest or any("stdio" in word for word in guest)
    if uses_terminal or not shows_progress():
        return None
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    bar = Bar(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=make_console(to_stderr=True),
        transient=True,
    )
    stack.enter_context(bar)
    task = bar.add_task("the guest's firmware runs")

    def show(progress: Progress) -> None:
        bar.update(task, description=f"{progress.records:,} records, {progress.size:,} bytes")

    return show
