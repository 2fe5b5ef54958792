# SPDX-License-Identifier: GPL-2.0-only
"""What can go wrong, by who is at fault.

A guest's mistake is a value (a ``#PF``, a verdict), never an exception. What is raised is either the caller's
mistake (:class:`UserError` and its kinds: one clear line, a non-zero exit of the command) or a broken invariant of
the model (:class:`KvmBug`: a traceback, because it is ours).
"""

from __future__ import annotations


class KvmmuError(Exception):
    """Base of every exception that this package raises on purpose."""


class KvmBug(KvmmuError):
    """An impossible state: the model of the MMU broke one of its invariants (``WARN``/``BUG`` of the kernel)."""


class UserError(KvmmuError, ValueError):
    """The caller's mistake. The message names the value, the rule that it breaks, and the way out."""


class ConfigError(UserError):
    """A parameter or a combination of parameters that no machine has."""


class GuestMisuse(UserError):
    """A program drives its guest in a way that no guest can (an unaligned table, an unknown mode)."""


class RecordingError(UserError):
    """A recording that cannot be read: missing, truncated, of another format, corrupted, contradicting itself."""


class RecorderError(UserError):
    """Recording a guest cannot start or go on: no QEMU, one too old, a full disk."""


class OutputError(UserError):
    """Output that cannot be written: a full disk, a limit of the process, a device that refuses. Names the file."""


class OutOfFrames(KvmmuError, MemoryError):
    """Physical memory has no free frame (or no free 2M or 1G block) left; the text names what was asked for."""


class KvmIoctlError(OSError, UserError):
    """An ioctl that KVM refuses; ``errno`` is the kernel's, the text names the rule.

    Arguments are those of :class:`OSError`: the errno (positive) and the text.
    """
