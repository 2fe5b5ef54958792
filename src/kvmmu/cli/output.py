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

if TYPE_CHECKING:
    from rich.console import Console

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
        # What has no name is standard output; the ioctls' refusals say all by themselves.
        return error.strerror if isinstance(error, KvmmuError) else f"cannot write: {error.strerror}"
    return " ".join(str(error).split())


def complain(text: str) -> None:
    """Say ``text`` on standard error: always one line, whatever a file or a name in it holds."""
    print(f"kvmmu: {printable(text)}", file=sys.stderr)
