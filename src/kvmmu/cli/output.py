# SPDX-License-Identifier: GPL-2.0-only
"""What commands share when they print: consoles, JSON, text that comes from files.

``--json`` has one shape in all commands: one object whose first keys are ``version`` (raised when a key changes its
meaning, not for a new one) and ``command``.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from ..errors import KvmmuError
from .status import is_refused_write

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# What is between two columns of a table, at most.
_COLUMN_GAP = 3
#: Version of every command's ``--json`` form.
JSON_VERSION = 1


class Interrupted(Exception):
    """A command was interrupted; the text says how far it came and what it leaves. Its status is INTERRUPTED."""


def wants_styles() -> bool:
    """Whether NO_COLOR (https://no-color.org) lets a terminal show more than plain text."""
    return not os.environ.get("NO_COLOR")


def make_console(to_stderr: bool = False, soft_wrap: bool = True) -> Console:
    """A console that prints nothing but text when NO_COLOR is set; ``soft_wrap``: it never breaks lines by itself."""
    from rich.console import Console

    return Console(
        stderr=to_stderr, highlight=False, soft_wrap=soft_wrap, color_system="auto" if wants_styles() else None
    )


def print_table(console: Console, table: Table) -> None:
    """Print ``table``, wider than the terminal if it must be: rich would leave out what does not fit."""
    needed = 0
    for column in table.columns:
        cells = [str(column.header), *map(str, column.cells)]
        parts = cells if column.no_wrap else [word for cell in cells for word in cell.split()]
        needed += max([column.min_width or 0, *map(len, parts)]) + _COLUMN_GAP
    # A width that print() is given is never beyond the console's own.
    width = console.width
    console.width = max(width, needed)
    console.print(table)
    console.width = width


def shows_progress() -> bool:
    """Whether somebody sees a progress bar on standard error, and may get the codes that move the cursor."""
    return wants_styles() and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def json_text(command: str, facts: dict[str, Any]) -> str:
    """``facts`` of ``command`` as the JSON object that ``--json`` prints."""
    return json.dumps({"version": JSON_VERSION, "command": command} | facts, indent=2)


def printable(text: str) -> str:
    """``text`` from a file, for one line of a terminal: what is no printable character appears as its escape."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def one_line(error: KvmmuError | OSError) -> str:
    """What ``error`` says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        if error.filename:
            return f"{error.filename}: {error.strerror}"
        # The ioctls' refusals say all by themselves.
        return f"cannot write: {error.strerror}" if is_refused_write(error) else error.strerror
    return " ".join(str(error).split())


def complain(text: str) -> None:
    """Say ``text`` on standard error: always one line, whatever a file or a name in it holds."""
    print(f"kvmmu: {printable(text)}", file=sys.stderr)
