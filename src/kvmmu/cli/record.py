# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu record``: run a guest under QEMU and record what an MMU must know."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .status import Status

if TYPE_CHECKING:
    from ..record.recorder import Progress


def command(
    guest: Annotated[list[str], typer.Argument(metavar="QEMU ...", help="Command line of the guest, behind --.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The recording to write (.kmr).")],
    firmware: Annotated[
        bool, typer.Option("--firmware", help="Record from the first instruction: --start firmware.")
    ] = False,
    start: Annotated[
        str,
        typer.Option(
            metavar="WHEN",
            help="What begins the recording: kernel (its first instruction), firmware, user (the first instruction "
            "at CPL 3), or port:N (the guest's first write to I/O port N).",
        ),
    ] = "kernel",
    level: Annotated[int, typer.Option(min=1, max=22, help="zstd level: higher is smaller and slower.")] = 19,
) -> Status | None:
    """Record a guest: kvmmu record -o boot.kmr -- qemu-system-x86_64 -m 256 -kernel bzImage ...

    Needs QEMU 10 or newer and a C compiler (the plugin is built once). What recording needs (a RAM file, the plugin,
    single-threaded TCG) is added to the command line, and said. Ctrl-C, or a guest that crashes, leaves a recording
    that says it is cut.
    """
    from ..record.recorder import Order, Start, complain, record

    order = Order(output, tuple(guest), Start.parse("firmware" if firmware else start), level)
    with ExitStack() as stack:
        trailer = record(order, complain, _progress(stack, guest))
    size = Path(output).stat().st_size
    print(
        f"{output}: {trailer.records} records of {trailer.seen} accesses seen, {size} bytes, ended by {trailer.reason}"
    )
    if trailer.cut:
        print(f"{output}: the recording is cut")
    return Status.INTERRUPTED if trailer.reason == "interrupted" else None


# A line with the number of records, redrawn; none where the guest itself writes to the terminal.
def _progress(stack: ExitStack, guest: list[str]) -> Callable[[Progress], None] | None:
    uses_terminal = "-nographic" in guest or any("stdio" in word for word in guest)
    if uses_terminal or not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    bar = Bar(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    stack.enter_context(bar)
    task = bar.add_task("the guest's firmware runs")

    def show(progress: Progress) -> None:
        bar.update(task, description=f"{progress.records:,} records, {progress.size:,} bytes")

    return show
