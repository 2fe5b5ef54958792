# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu params``: the parameters that ``--set`` takes."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.table import Table

from ..params import PARAMETERS, Parameter, Value
from .output import json_text, make_console, print_table

# Characters that a meaning has on each of its lines, at least.
_MEANING = 40


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the parameters: name, default, the kernel's name, what values mean."""
    if as_json:
        print(json_text("params", {"parameters": [_row(parameter) for parameter in PARAMETERS]}))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("default", no_wrap=True)
    table.add_column("kernel name", no_wrap=True)
    table.add_column("meaning", min_width=_MEANING)
    for parameter in PARAMETERS:
        table.add_row(
            parameter.name,
            parameter.show(parameter.default),
            parameter.kernel or "-",
            f"{parameter.meaning} ({parameter.describe_allowed()})",
        )
    print_table(make_console(soft_wrap=False), table)


def _row(parameter: Parameter) -> dict[str, Value | None]:
    return {
        "name": parameter.name,
        "default": parameter.default,
        "kernel": parameter.kernel or None,
        "meaning": parameter.meaning,
        "values": parameter.describe_allowed(),
    }
