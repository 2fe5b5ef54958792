# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu recordings``: the recordings that come with the package."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from .output import json_text


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the bundled recordings: name, guest, records, bytes.

    run, info, dump, tables and cut take such a name in place of a file.
    """
    from ..record.bundled import GUESTS, bundled

    rows = [_facts(name, GUESTS.get(name, ""), path) for name, path in bundled().items()]
    if as_json:
        print(json_text("recordings", {"recordings": rows}))
        return
    width = max((len(row["name"]) for row in rows), default=4)
    print(f"{'name':<{width}}  {'records':>9}  {'bytes':>9}  guest")
    for row in rows:
        print(f"{row['name']:<{width}}  {row['records']:>9,}  {row['bytes']:>9,}  {row['guest']}")


def _facts(name: str, guest: str, path: Path) -> dict[str, Any]:
    from ..record.blocks import BlockFile

    with closing(BlockFile(str(path))) as file:
        return {
            "name": name,
            "guest": guest or " ".join(file.header.command),
            "records": file.total,
            "bytes": path.stat().st_size,
            "path": str(path),
        }
