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

import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .. import _early
from .._build import VERSION, build_info
from ..errors import KvmBug, KvmmuError
from .help import help_text, paragraphs, section
from .output import Interrupted, complain, one_line
from .status import Status, describe_statuses, status_of

#: Every command, in the order of ``kvmmu --help``.
COMMANDS = ("run", "record", "recordings", "info", "dump", "tables", "cut", "params", "decode", "conformance")


#: Options that may stand without a value, and what they mean then.
_ALONE = {"--audit": "--audit=changed"}


class _Command(TyperCommand):
    """A command whose help is ours: Typer's names types and breaks lines inside sentences."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Typer knows no option whose value may be missing."""
        end = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [*(_ALONE.get(one, one) for one in args[:end]), *args[end:]])

    def format_help(self, ctx: Any, formatter: Any) -> None:
        typer.echo(help_text(ctx, self), nl=False, color=True)


class _Commands(TyperGroup):
    """The commands of :data:`COMMANDS`, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f".{cmd_name}", __package__)
        app = typer.Typer(add_completion=False, context_settings=_HELP, pretty_exceptions_enable=False)
        app.command(cmd_name, cls=_Command)(module.command)
        return typer.main.get_command(app)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """What commands there are, and what their ends mean."""
        parts = [
            f"Usage: {ctx.command_path} [OPTIONS] COMMAND ...",
            *paragraphs(self.help or ""),
            section("Commands", ((name, self._summary(ctx, name)) for name in COMMANDS)),
            section("Options", [("--version", "Print version and build, and exit."), ("--help, -h", _HELP_TEXT)]),
            section("Exit statuses", []) + f"\n{describe_statuses()}",
        ]
        typer.echo("\n\n".join(parts), color=True)

    # The first paragraph of a command's help.
    def _summary(self, ctx: Any, name: str) -> str:
        return " ".join((self.get_command(ctx, name).help or "").split("\n\n")[0].split())


_HELP = {"help_option_names": ["-h", "--help"]}
_HELP_TEXT = "Show this message, or that of a command, and exit."


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
    is_heard = _open_streams()
    is_program = False
    try:
        is_program = _early.begin()
        status = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        status = Status.NO_READER
    except OSError as error:
        status = _complain(one_line(error), status_of(error))
        _drop_output()
    if status == Status.NO_READER:
        _drop_output()
    if status == Status.OK and not is_heard:
        status = Status.NO_READER
    if is_program:
        _early.end()
    return int(status)


# Streams that the shell closed are None in Python: let them lead nowhere. False if nobody can read what is printed.
def _open_streams() -> bool:
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for the life of the process)
    if sys.stdout is not None:
        # What the terminal's encoding lacks, and bytes of a file's name that are no text, appear as escapes.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        return True
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return False


# Python flushes standard output once more at exit, and must find a place for it.
def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = _make_app().main(args=arguments, prog_name="kvmmu", standalone_mode=False)
    except Interrupted as end:
        return _complain(str(end), Status.INTERRUPTED)
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
        return _complain(one_line(error), status_of(error))
    except Exception as error:  # noqa: BLE001 - the last resort: every end of a command has a status of the table
        return _unexpected(error)
    if isinstance(result, Status) or not isinstance(result, int):
        return result or Status.OK
    # What Typer makes of an interruption, without a word.
    return _complain("interrupted", Status.INTERRUPTED) if result == Status.INTERRUPTED else result


def _unexpected(error: Exception) -> int:
    # Typer keeps the class of its usage errors to itself, but each carries its exit status and can show itself.
    show = getattr(error, "show", None)
    if show is not None:
        text = str(getattr(error, "format_message", lambda: "")())
        # Help shown for want of arguments is an error without a text.
        for theirs, ours in _WORDS:
            text = text.replace(theirs, ours)
        # Typer's context knows which command was meant.
        command = getattr(getattr(error, "ctx", None), "command_path", "kvmmu")
        return _complain(f"{text.rstrip('.')} ({command} --help)", Status.USAGE) if text else Status.USAGE
    if isinstance(error, typer.Abort):
        return _complain("interrupted", Status.INTERRUPTED)
    if isinstance(error, MemoryError):
        return _complain("there is not enough memory for this", Status.INPUT)
    traceback.print_exception(error)
    return _complain("this is a bug in kvmmu, please report it with the text above", Status.BUG)


def _complain(text: str, status: Status) -> Status:
    complain(text)
    return status


# What the library says of a wrong value, and what we say.
_WORDS = (
    ("Value error, ", ""),
    ("Input should be a valid integer, unable to parse string as an integer", "must be a whole number"),
    ("Input should be", "must be"),
)
