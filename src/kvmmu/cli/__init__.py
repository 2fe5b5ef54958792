# SPDX-License-Identifier: GPL-2.0-only
"""The program ``kvmmu``: one command per file, found through one table.

A command called ``name`` is the module ``cli/name.py`` with a function ``command()``: its annotated parameters are
the command's options in Typer's sense, its docstring is the help text. A row in :data:`COMMANDS` makes it known.

``command()`` prints its results to standard output and returns a :class:`~kvmmu.cli.status.Status`, or nothing for
"done". It raises what the library raises: :func:`main` turns a user's mistake into one line on standard error and
the exit status of :mod:`kvmmu.cli.status`, and shows the traceback of a bug. Rooms that are slow to import (data
frames, compiled rooms) are imported inside ``command()``, so that ``kvmmu --version`` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .._build import VERSION, build_info
from ..errors import KvmBug, KvmmuError
from .status import Status, describe_statuses, status_of

#: Every command, in the order of ``kvmmu --help``.
COMMANDS = ("run", "record", "info", "cut", "params", "decode")


class _Commands(TyperGroup):
    """The commands of :data:`COMMANDS`, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f".{cmd_name}", __package__)
        app = typer.Typer(add_completion=False, context_settings=_HELP, pretty_exceptions_enable=False)
        app.command(cmd_name)(module.command)
        command = typer.main.get_command(app)
        for parameter in command.params:
            # Help would name Python's type beside what the metavar says.
            if parameter.param_type_name == "argument" and parameter.nargs == -1:
                parameter.display_type = lambda _: ""  # type: ignore[attr-defined]
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """An epilog would lose its lines."""
        super().format_help(ctx, formatter)
        typer.echo(f" Exit statuses\n\n{describe_statuses()}\n")


_HELP = {"help_option_names": ["-h", "--help"]}


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"kvmmu {VERSION}, {build_info()}")
        raise typer.Exit


def _top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print version and build, and exit."),
    ] = False,
) -> None:
    """The Linux 6.12 KVM x86 MMU outside the kernel: record real machines, replay them through it, see every entry."""


def _make_app() -> Any:
    app = typer.Typer(
        cls=_Commands,
        add_completion=False,
        context_settings=_HELP,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_top)
    return typer.main.get_command(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``kvmmu`` with ``arguments`` (default: the process's own) and return its exit status; never raises."""
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        status = Status.NO_READER
    if status == Status.NO_READER:
        # Python flushes standard output once more at exit, and must find it open.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(status)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = _make_app().main(args=arguments, prog_name="kvmmu", standalone_mode=False)
    except KeyboardInterrupt:
        return _complain("interrupted", Status.INTERRUPTED)
    except SystemExit as end:
        # Typer and Rich end a closed pipe with status 1, which means a mismatch here.
        if isinstance(end.__context__, BrokenPipeError):
            return Status.NO_READER
        raise
    except BrokenPipeError:
        return Status.NO_READER
    except KvmBug:
        traceback.print_exc()
        return _complain("this is a bug in kvmmu, please report it with the text above", Status.BUG)
    except (KvmmuError, OSError) as error:
        return _complain(_one_line(error), status_of(error))
    except Exception as error:  # noqa: BLE001 - the last resort: every end of a command has a status of the table
        return _unexpected(error)
    return int(result) if isinstance(result, int) else Status.OK


def _unexpected(error: Exception) -> int:
    # Typer keeps the class of its usage errors to itself, but each carries its exit status and can show itself.
    show = getattr(error, "show", None)
    if show is not None:
        text = str(getattr(error, "format_message", lambda: "")())
        # Help shown for want of arguments is an error without a text.
        return _complain(f"{text.rstrip('.')} (kvmmu --help)", Status.USAGE) if text else Status.USAGE
    if isinstance(error, typer.Abort):
        return _complain("interrupted", Status.INTERRUPTED)
    traceback.print_exception(error)
    return _complain("this is a bug in kvmmu, please report it with the text above", Status.BUG)


def _one_line(error: KvmmuError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def _complain(text: str, status: Status) -> int:
    print(f"kvmmu: {text}", file=sys.stderr)
    return status
