# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu cut``: a piece of a recording that can be replayed by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    recording: Annotated[str, typer.Argument(metavar="FILE", help="The recording (.kmr).")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="OUT", help="The piece to write.")],
    first: Annotated[int, typer.Option("--from", metavar="N", min=0, help="First record of the piece.")] = 0,
    until: Annotated[
        int | None, typer.Option("--until", metavar="M", min=0, help="Record before which it ends.")
    ] = None,
    level: Annotated[int, typer.Option(min=1, max=22, help="zstd level: higher is smaller and slower.")] = 19,
) -> None:
    """Cut the records N to M out of FILE, with the registers and table pages that they need.

    Of a truncated FILE what is left can be saved this way.
    """
    from ..record.piece import cut

    trailer = cut(recording, output, first, until, level)
    print(f"{output}: {trailer.records} records, {Path(output).stat().st_size} bytes")
