# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu params``: the parameters that ``--set`` takes."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ..params import PARAMETERS, Parameter, Value

#: Version of the ``--json`` form.
JSON_VERSION = 1


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the parameters: name, default, the kernel's name, what values mean."""
    if as_json:
        typer.echo(json.dumps({"version": JSON_VERSION, "parameters": [_row(parameter) for parameter in PARAMETERS]}))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("default", no_wrap=True)
    table.add_column("kernel name", no_wrap=True)
    table.add_column("meaning")
    for parameter in PARAMETERS:
        table.add_row(
            parameter.name,
            parameter.show(parameter.default),
            parameter.kernel or "-",
            f"{parameter.meaning} ({parameter.describe_allowed()})",
        )
    Console(highlight=False).print(table)


def _row(parameter: Parameter) -> dict[str, Value | None]:
    return {
        "name": parameter.name,
        "default": parameter.default,
        "kernel": parameter.kernel or None,
        "meaning": parameter.meaning,
        "values": parameter.describe_allowed(),
    }
