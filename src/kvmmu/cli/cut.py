# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu cut``: a piece of a recording that can be replayed by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .output import Interrupted, json_text


def command(
    recording: Annotated[str, typer.Argument(metavar="FILE", help="A recording (.kmr), or the name of a bundled one.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="OUT", help="The piece to write.")],
    first: Annotated[int, typer.Option("--from", metavar="N", min=0, help="First record of the piece.")] = 0,
    until: Annotated[
        int | None, typer.Option("--until", metavar="M", min=0, help="Record before which it ends; none: the end.")
    ] = None,
    level: Annotated[
        int, typer.Option(metavar="1-22", min=1, max=22, help="zstd level: higher is smaller and slower.")
    ] = 19,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Cut the records N to M out of FILE, with the registers and table pages that they need.

    Of a truncated FILE what is left is cut. OUT appears when it is whole.
    """
    from ..record.bundled import find_recording
    from ..record.piece import cut

    reached = [0, until]

    def note(position: int, end: int) -> None:
        reached[:] = position, end

    try:
        trailer = cut(str(find_recording(recording)), output, first, until, level, note)
    except KeyboardInterrupt:
        place = f" of {reached[1]}" if reached[1] is not None else ""
        raise Interrupted(f"interrupted at record {reached[0]}{place}: {output} is not written") from None
    path = Path(output)
    size = path.stat().st_size if path.is_file() else 0
    if as_json:
        print(json_text("cut", {"recording": recording, "output": output, "records": trailer.records, "bytes": size}))
    else:
        print(f"{output}: {trailer.records} records, {size} bytes")
