# SPDX-License-Identifier: GPL-2.0-only
"""Compile the QEMU plugin from the package's own C source, once per source."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ..errors import RecorderError

SOURCE = Path(__file__).with_name("plugin.c")
_SOURCES = (SOURCE, SOURCE.with_name("plugin_api.h"), SOURCE.with_name("plugin_decode.h"))
_FLAGS = ("-O2", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden")


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/kvmmu``, else ``~/.cache/kvmmu``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvmmu"


def build_plugin() -> Path:
    """Path of the plugin, compiled if no earlier call has.

    The file's name has the hash of the source, so that another version of kvmmu builds its own. Raises
    :class:`RecorderError`: no compiler, a source that does not compile, a cache that cannot be written.
    """
    text = b"".join(source.read_bytes() for source in _SOURCES)
    digest = hashlib.sha256(text + " ".join(_FLAGS).encode()).hexdigest()[:16]
    built = cache_directory() / f"recorder-{digest}.so"
    if built.is_file():
        return built
    compiler = os.environ.get("CC") or "gcc"
    if shutil.which(compiler) is None:
        raise RecorderError(
            f"no C compiler ({compiler}) to build QEMU's plugin with: install gcc and libc6-dev, or set CC"
        )
    try:
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as work:
            fresh = Path(work) / "plugin.so"
            command = [compiler, *_FLAGS, "-o", str(fresh), str(SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RecorderError(f"{compiler} cannot build QEMU's plugin: {_first_error(done.stderr)}")
            fresh.replace(built)
    except OSError as error:
        raise RecorderError(f"cannot write QEMU's plugin to {built.parent}: {error.strerror or error}") from error
    return built


def _first_error(text: str) -> str:
    lines = [line for line in text.splitlines() if "error" in line] or text.splitlines() or ["it gave no reason"]
    return lines[0].strip()
