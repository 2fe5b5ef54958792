# SPDX-License-Identifier: GPL-2.0-only
"""Write a recording: blocks compressed with zstandard, whole blocks only, a trailer at the end."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import zstandard

from ..errors import ConfigError, RecorderError
from .encoder import Encoder
from .format import CODEC_ZSTD, FED_CONTROL, FED_FULL, HEAD, RECS, TAIL, Header, Trailer, pack_block, pack_prefix

#: zstandard level of bundled recordings and of ``kvmmu record``.
LEVEL = 19


def claim_output(path: str, force: bool = False) -> BinaryIO:
    """The file ``path``, open for a recording and locked against another one.

    Nothing is changed yet but that the file exists. Raises :class:`ConfigError`: there is such a file and ``force`` is
    not set, another recording is being written to it, or it cannot be written.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)
    except OSError as error:
        raise ConfigError(f"cannot write the recording {path}: {error.strerror or error}") from error
    status = os.fstat(file.fileno())
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(f"{path}: another recording is being written to it") from None
    except OSError:
        pass  # a file system without locks
    if stat.S_ISREG(status.st_mode) and status.st_size and not force:
        file.close()
        raise ConfigError(f"{path} exists; --force replaces it")
    return file


def release_output(path: str, file: BinaryIO) -> None:
    """Close the file of :func:`claim_output` that nothing was written to; an empty one goes."""
    if not file.closed:
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            Path(path).unlink(missing_ok=True)
        file.close()


class Writer:
    """The recording that is being written to ``path``.

    Add records through :attr:`encoder` (its methods are the record kinds) and call :meth:`flush` when its ``full`` is
    set, or hand the plugin's stream to :meth:`feed`, which does both. :meth:`finish` writes the trailer; leaving the
    ``with`` block does it too, and marks the recording as cut when an exception leaves it. ``file`` is what
    :func:`claim_output` gave for ``path``; without it the file is made, or replaced.

    Raises :class:`RecorderError` when the file cannot be written (no directory, a full disk). What was written before
    is whole blocks: a readable recording without a trailer, which says that it is cut. A file without one record is
    removed.
    """

    __slots__ = ("blocks", "encoder", "file", "header", "level", "path", "records", "written")

    def __init__(self, path: str, header: Header, level: int = LEVEL, file: BinaryIO | None = None) -> None:
        self.path = str(path)
        self.header = header
        self.level = level
        self.encoder = Encoder(header.cpus)
        self.records = 0
        self.blocks = 0
        self.written = 0
        try:
            header.check()
        except ValueError as error:
            raise RecorderError(f"this machine cannot be recorded: {error}") from error
        try:
            if file is None:
                file = open(self.path, "wb", buffering=0)  # noqa: SIM115 (closed by finish())
            elif stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                file.truncate(0)
        except OSError as error:
            raise RecorderError(f"cannot write the recording {path}: {error.strerror or error}") from error
        self.file = file
        self._write(pack_prefix())
        self._write_block(HEAD, header.to_json(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.file.closed:
            self.finish(cut=error is not None, reason=f"stopped by {kind.__name__}" if kind else "")

    def feed(self, stream: bytes | bytearray | memoryview, start: int = 0) -> tuple[int, bool]:
        """Encode the plugin's ``stream`` from byte ``start``; return where it stopped and whether a control record is
        there.
        """
        view = memoryview(stream)
        at = start
        while True:
            at = self.encoder.feed(view, at, len(view))
            if self.encoder.full:
                self.flush()
            if self.encoder.stopped != FED_FULL:
                return at, self.encoder.stopped == FED_CONTROL

    def flush(self) -> None:
        """Write the block that is being filled, if it holds anything."""
        records = self.encoder.records
        if records:
            self._write_block(RECS, self.encoder.take(), records)
            self.records += records
            self.blocks += 1

    def finish(
        self,
        cut: bool = False,
        reason: str = "",
        seen: int = 0,
        stale: int = 0,
        left_out: dict[str, int] | None = None,
        smm: int = 0,
    ) -> Trailer:
        """Write what is left and the trailer, close the file, return the trailer."""
        self.flush()
        trailer = Trailer(self.records, self.encoder.counted(), cut, reason, seen, stale, left_out or {}, smm)
        self._write_block(TAIL, trailer.to_json(), 0)
        self.file.close()
        return trailer

    # Compress and write one block.
    def _write_block(self, kind: bytes, raw: bytes, records: int) -> None:
        stored = zstandard.ZstdCompressor(level=self.level).compress(raw)
        self._write(pack_block(kind, stored, len(raw), records, CODEC_ZSTD))

    # Write all of `data`, or go back to the last whole block and raise.
    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self.file.write(view) :]
        except OSError as error:
            raise RecorderError(self._give_up(error)) from error
        self.written += len(data)

    def _give_up(self, error: OSError) -> str:
        if self.records == 0:
            self.file.close()
            if Path(self.path).is_file():
                Path(self.path).unlink()
            left = "nothing was recorded"
        else:
            if stat.S_ISREG(os.fstat(self.file.fileno()).st_mode):
                self.file.truncate(self.written)
            self.file.close()
            left = f"it holds the first {self.records} records and says that it is cut"
        full = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror or error)
        return f"cannot go on writing {self.path}: {full}; {left}"
