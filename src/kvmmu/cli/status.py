# SPDX-License-Identifier: GPL-2.0-only
"""Exit statuses of every command: the one table, printed by ``kvmmu --help``."""

from __future__ import annotations

import errno
from enum import IntEnum

from ..errors import ConfigError, KvmmuError, OutOfFrames, OutputError, RecorderError, UserError


class Status(IntEnum):
    """What a command's end means to the shell."""

    OK = 0
    MISMATCH = 1
    USAGE = 2
    INPUT = 3
    RECORDER = 4
    BUG = 5
    INTERRUPTED = 130
    NO_READER = 141


# What a write says, and no other call that commands make.
_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EROFS, errno.ENXIO)

MEANINGS = {
    Status.OK: "done, and what was asked holds",
    Status.MISMATCH: "a mismatch was found: model and machine disagree",
    Status.USAGE: "the command line is wrong: an option, a parameter, a value",
    Status.INPUT: "input cannot be used: a recording, a file, slots",
    Status.RECORDER: "recording a guest failed, or output cannot be written: a full disk",
    Status.BUG: "a bug in kvmmu (a traceback is shown)",
    Status.INTERRUPTED: "interrupted",
    Status.NO_READER: "whoever read the output went away",
}


def is_refused_write(error: OSError) -> bool:
    """Whether standard output, which has no name, refuses what is written to it: full, beyond a limit, not writable."""
    return error.filename is None and not isinstance(error, KvmmuError) and error.errno in _WRITING


def status_of(error: KvmmuError | OSError) -> Status:
    """The status that ``error`` ends a command with."""
    if isinstance(error, RecorderError | OutputError):
        return Status.RECORDER
    if isinstance(error, ConfigError):
        return Status.USAGE
    if isinstance(error, OSError) and is_refused_write(error):
        return Status.RECORDER
    if isinstance(error, (UserError, OSError, OutOfFrames)):
        return Status.INPUT
    return Status.BUG


def describe_statuses() -> str:
    """The table as text, one status a line."""
    return "\n".join(f"{status.value:>3}  {meaning}" for status, meaning in MEANINGS.items())
