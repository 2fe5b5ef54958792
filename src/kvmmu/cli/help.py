# SPDX-License-Identifier: GPL-2.0-only
"""Help texts: usage, paragraphs, arguments and options, filled to the terminal's width."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from .output import wants_styles

#: Lines are at most this long, and at least that.
_WIDEST = 100
_NARROWEST = 40
#: Columns of names beside which a description begins on the same line.
_MOST_NAMES = 30


def help_text(ctx: Any, command: Any) -> str:
    """The help of a command that has options and arguments (Typer's objects)."""
    shown = [parameter for parameter in command.get_params(ctx) if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in shown if parameter.param_type_name == "argument"]
    options = [parameter for parameter in shown if parameter.param_type_name == "option"]
    usage = " ".join(["Usage:", ctx.command_path, "[OPTIONS]", *map(_argument_name, arguments)])
    parts = [usage, *paragraphs(command.help or "")]
    if arguments:
        parts.append(section("Arguments", ((_argument_name(one), _describe(one)) for one in arguments)))
    parts.append(section("Options", ((_option_names(one), _describe(one)) for one in options)))
    return "\n\n".join(parts) + "\n"


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a docstring, each filled."""
    return [_fill(" ".join(part.split())) for part in text.split("\n\n") if part.strip()]


def section(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """A title, then names and what they mean in two columns."""
    held = list(rows)
    names = [len(name) for name, _ in held if len(name) <= _MOST_NAMES]
    column = 4 + max(names, default=_MOST_NAMES)
    return "\n".join([_bold(f"{title}:"), *(line for name, text in held for line in _row(name, text, column))])


def _row(name: str, text: str, column: int) -> Iterator[str]:
    lines = textwrap.wrap(text, max(_width() - column, _NARROWEST // 2), break_long_words=False, break_on_hyphens=False)
    if len(name) > column - 4:
        yield f"  {_coloured(name)}"
        name = ""
    head = f"  {_coloured(name)}" + " " * (column - 2 - len(name))
    for line in lines or [""]:
        yield (head + line).rstrip()
        head = " " * column


def _argument_name(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name.upper()).strip("[]")
    return name if parameter.required else f"[{name}]"


def _option_names(parameter: Any) -> str:
    # The long name first, whatever order Typer has them in.
    opts = sorted([*parameter.opts, *parameter.secondary_opts], key=lambda name: not name.startswith("--"))
    names = ", ".join(opts)
    if getattr(parameter, "is_flag", False) or parameter.name == "help":
        return names
    value = parameter.metavar or parameter.name.upper()
    return f"{names}{value}" if value.startswith("[=") else f"{names} {value}"


def _describe(parameter: Any) -> str:
    text = str(parameter.help or "").strip()
    default = parameter.default
    if parameter.required:
        return text if parameter.param_type_name == "argument" else f"{text} Required."
    if default is None or isinstance(default, bool) or callable(default) or default == () or default == []:
        return text
    return f"{text} [default: {getattr(default, 'value', default)}]"


def _width() -> int:
    return min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)


def _fill(text: str) -> str:
    return textwrap.fill(text, _width(), break_long_words=False, break_on_hyphens=False)


# Colours only where somebody sees them, or FORCE_COLOR asks for them.
def _has_colours() -> bool:
    return wants_styles() and (bool(os.environ.get("FORCE_COLOR")) or sys.stdout.isatty())


def _bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if _has_colours() else text


def _coloured(text: str) -> str:
    return f"\x1b[36m{text}\x1b[0m" if text and _has_colours() else text
