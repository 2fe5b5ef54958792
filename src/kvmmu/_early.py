# SPDX-License-Identifier: GPL-2.0-only
"""Ctrl-C while the program is still being loaded: one line and the status of an interruption, no traceback.

Importing the package takes longer than a user needs to change their mind. It is imported first of all by
``kvmmu/__init__.py``, and does nothing unless the process is the program ``kvmmu``.
"""

from __future__ import annotations

# The signal module imports what takes longest; its C half is part of the interpreter.
import _signal  # type: ignore[import-not-found]  # typeshed leaves it out
import os
import sys

_INTERRUPTED = 130


def is_program() -> bool:
    """Whether this process runs the program (``kvmmu``, ``python -m kvmmu``), not somebody's import."""
    name = sys.argv[0].rpartition("/")[2] if getattr(sys, "argv", None) else ""
    words = sys.orig_argv
    return name == "kvmmu" or (name == "-m" and "-m" in words and words[words.index("-m") + 1 :][:1] == ["kvmmu"])


def end_early(number: int, frame: object) -> None:
    """The handler of SIGINT until a command begins."""
    os.write(2, b"kvmmu: interrupted before anything was done\n")
    os._exit(_INTERRUPTED)


def listen() -> None:
    """Take SIGINT over, unless it is ignored (a job in the background)."""
    if is_program() and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, end_early)


def begin() -> bool:
    """A command begins: SIGINT is KeyboardInterrupt again. Returns whether :func:`listen` had taken it over."""
    if _signal.getsignal(_signal.SIGINT) is not end_early:
        return False
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    return True


def end() -> None:
    """What was asked is done and said: nothing is left to interrupt."""
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)


listen()
