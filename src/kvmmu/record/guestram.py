# SPDX-License-Identifier: GPL-2.0-only
"""Memory of a guest that QEMU and its plugin share: files without names."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

from ..errors import RecorderError


def make_memory(name: str, size: int) -> BinaryIO:
    """A sparse file of ``size`` bytes that has no name, so that nothing is left of it whatever ends the recorder.

    It lies in memory if the guest may touch all of it, else where more of it fits: in memory or in the directory for
    temporary files. Raises :class:`RecorderError`.
    """
    free = _available_memory()
    where = tempfile.gettempdir()
    try:
        if size <= free // 2 or shutil.disk_usage(where).free <= free:
            file: BinaryIO = os.fdopen(os.memfd_create(f"kvmmu-{name}"), "r+b", buffering=0)
        else:
            file = tempfile.TemporaryFile(dir=where, buffering=0)  # noqa: SIM115 (the caller closes it)
        file.truncate(size)
    except OSError as error:
        raise RecorderError(f"cannot make a file for {size} bytes of guest memory: {error.strerror}") from error
    return file


# Bytes that programs can still have.
def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0
