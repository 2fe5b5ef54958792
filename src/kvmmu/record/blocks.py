# SPDX-License-Identifier: GPL-2.0-only
"""A recording as a file of blocks: opened, checked and unpacked one block at a time.

Opening scans the block heads (32 bytes each, no decompression), so that a truncated file is refused before a long
replay has begun, and the number of records is known for a progress bar.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from ..errors import RecordingError
from .format import (
    BLOCK_RECORDS,
    BLOCK_SIZE,
    CODEC_NONE,
    CODEC_ZSTD,
    COLUMN_LENGTHS,
    HEAD,
    MAGIC,
    MAJOR,
    MAX_BLOCK,
    MAX_JSON,
    PREFIX,
    RECS,
    TAIL,
    BlockHead,
    Header,
    Trailer,
    unpack_block_head,
)

#: Zero bytes behind a block's columns, so that a decoder may read one whole record past a damaged column's end
#: before it notices.
PADDING = 256


class BlockFile:
    """The blocks of one recording.

    ``header``, ``trailer`` (None when the file has none), ``total`` (records in the whole blocks), ``damage`` (None,
    or the sentence that says how the file is truncated: it is read up to its last whole block then). Raises
    :class:`RecordingError` for everything that is not a readable recording, and for a truncated one without a record.
    """

    __slots__ = ("damage", "end", "file", "header", "number", "path", "total", "trailer")

    def __init__(self, path: str) -> None:
        self.path = path
        self.damage: str | None = None
        self.trailer: Trailer | None = None
        self.total = 0
        self.number = 0
        self.file = _open(path)
        try:
            version = self._read_prefix()
            self.header = self._read_header(version)
            start = self.file.tell()
            # Where the last whole block ends.
            self.end = start
            self._scan()
            if self.damage is not None and self.total == 0:
                raise RecordingError(self._truncated())
            self.file.seek(start)
            self.number = 1
        except OSError as error:
            self.file.close()
            raise RecordingError(f"cannot read the recording {path}: {error.strerror or error}") from error
        except BaseException:
            self.file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def loss(self) -> str | None:
        """One sentence if the file ends inside a block, None otherwise."""
        if self.damage is None:
            return None
        return f"{self._truncated()}; what is before it, {self.total:,} records, is read"

    def next_records(self) -> tuple[bytearray, int] | None:
        """Raw bytes (and :data:`PADDING` zeros) of the next block of records, and their number; None at the end."""
        while True:
            where = self.file.tell()
            head = None if where >= self.end else self._read_head()
            if head is None or head.kind == TAIL:
                self.file.seek(where)
                return None
            stored = self.file.read(head.stored)
            if head.kind == RECS:
                raw = bytearray(self._unpack(head, stored, where))
                if len(raw) < COLUMN_LENGTHS.size:
                    raise RecordingError(f"{self._place(where)} is corrupted: it is too short to hold records")
                raw.extend(bytes(PADDING))
                self.number += 1
                return raw, head.records
            self.number += 1

    # Check the magic and the version.
    def _read_prefix(self) -> tuple[int, int]:
        data = self.file.read(PREFIX.size)
        if data[: len(MAGIC)] != MAGIC[: len(data)] or not data:
            raise RecordingError(
                f"{self.path} is not a kvmmu recording: it begins with {data[:8].hex(' ') or 'nothing'}, "
                f"a recording with {MAGIC.hex(' ')}"
            )
        if len(data) < PREFIX.size:
            raise RecordingError(f"{self.path} is truncated: it ends after {len(data)} bytes, inside its first 16")
        _, major, minor, _ = PREFIX.unpack(data)
        if major != MAJOR:
            raise RecordingError(
                f"{self.path} has recording format {major}.{minor}, this kvmmu reads {MAJOR}.x: "
                f"{'use a newer kvmmu' if major > MAJOR else 'record it again'}"
            )
        return major, minor

    def _read_header(self, version: tuple[int, int]) -> Header:
        where = self.file.tell()
        head = self._read_head()
        if head is None:
            raise RecordingError(f"{self.path} is truncated: it ends inside its header")
        if head.kind != HEAD:
            raise RecordingError(f"{self._place(where)} is {head.kind!r}, must be the header")
        stored = self.file.read(head.stored)
        if len(stored) < head.stored:
            raise RecordingError(f"{self.path} is truncated: it ends inside its header")
        return Header.from_json(self._unpack(head, stored, where), version, self.path)

    # Walk the block heads to the end of the file: count records, find the trailer, notice truncation.
    def _scan(self) -> None:
        size = self.file.seek(0, io.SEEK_END)
        self.file.seek(PREFIX.size)
        while self.file.tell() < size:
            where = self.file.tell()
            if size - where < BLOCK_SIZE:
                self.damage = f"its block {self.number} at byte {where} ends after {size - where} bytes of its head"
                return
            head = cast(BlockHead, self._read_head())
            left = size - self.file.tell()
            if head.stored > left:
                self.damage = f"its block {self.number} at byte {where} needs {head.stored} bytes, {left} are there"
                return
            if head.kind == TAIL:
                self._read_trailer(head, where, size)
                return
            if head.kind == RECS:
                self.total += head.records
            elif head.kind != HEAD and not head.may_skip:
                raise RecordingError(self._unknown(head, where))
            self.end = self.file.seek(head.stored, io.SEEK_CUR)
            self.number += 1

    def _read_trailer(self, head: BlockHead, where: int, size: int) -> None:
        trailer = Trailer.from_json(self._unpack(head, self.file.read(head.stored), where), self.path)
        if trailer.records != self.total:
            raise RecordingError(
                f"{self.path} contradicts itself: its trailer counts {trailer.records} records, it holds {self.total}"
            )
        if self.file.tell() != size:
            raise RecordingError(f"{self.path} is corrupted: {size - self.file.tell()} bytes follow its trailer")
        self.trailer = trailer

    # The head at the current place; None at the end of the file and inside a truncated head.
    def _read_head(self) -> BlockHead | None:
        where = self.file.tell()
        data = self.file.read(BLOCK_SIZE)
        if len(data) < BLOCK_SIZE:
            return None
        head = unpack_block_head(data)
        if head is None:
            raise RecordingError(f"{self._place(where)} is corrupted: the checksum of its head is wrong")
        limit = MAX_JSON if head.kind in (HEAD, TAIL) else MAX_BLOCK
        if head.stored > MAX_BLOCK or head.raw > limit:
            raise RecordingError(
                f"{self._place(where)} has {head.stored} bytes and unpacks to {head.raw}, the format's limits are"
                f" {MAX_BLOCK} and {limit}"
            )
        if head.kind == RECS and (head.records > BLOCK_RECORDS or head.records > head.raw):
            raise RecordingError(f"{self._place(where)} cannot hold {head.records} records in {head.raw} bytes")
        return head

    # Check and decompress a block's bytes.
    def _unpack(self, head: BlockHead, stored: bytes, where: int) -> bytes:
        if len(stored) < head.stored:
            raise RecordingError(self._truncated())
        if zlib.crc32(stored) != head.crc:
            raise RecordingError(f"{self._place(where)} is corrupted: the checksum of its {head.stored} bytes is wrong")
        if head.codec == CODEC_NONE:
            raw = stored
        elif head.codec == CODEC_ZSTD:
            try:
                raw = _decompress(stored, head.raw)
            except (zstandard.ZstdError, MemoryError) as error:
                raise RecordingError(f"{self._place(where)} is corrupted: {error}") from error
        else:
            raise RecordingError(f"{self._place(where)} has codec {head.codec}, this kvmmu knows 0 (none) and 1 (zstd)")
        if len(raw) != head.raw:
            raise RecordingError(f"{self._place(where)} is corrupted: it unpacks to {len(raw)} bytes, not {head.raw}")
        return raw

    def _place(self, where: int) -> str:
        return f"{self.path}: block {self.number} at byte {where}"

    def _unknown(self, head: BlockHead, where: int) -> str:
        return f"{self._place(where)} is of the unknown kind {head.kind!r} and may not be skipped: use a newer kvmmu"

    def _truncated(self) -> str:
        return f"{self.path} is truncated: {self.damage or 'it ended while it was read'}"


# Unpack a frame that must hold `size` bytes. Its own head is asked first: the library allocates what that claims,
# whatever limit it is given.
def _decompress(stored: bytes, size: int) -> bytes:
    claimed = zstandard.get_frame_parameters(stored).content_size
    if claimed not in (size, zstandard.CONTENTSIZE_UNKNOWN):
        raise zstandard.ZstdError(f"its frame claims {claimed} bytes, its head {size}")
    return zstandard.ZstdDecompressor(max_window_size=MAX_BLOCK).decompress(stored, max_output_size=size)


def _open(path: str) -> BinaryIO:
    try:
        if Path(path).is_dir():
            raise RecordingError(f"{path} is a directory, a recording is a file (.kmr)")
        if Path(path).exists() and not Path(path).is_file():
            raise RecordingError(f"{path} is a device or a pipe, a recording is a file (.kmr)")
        return open(path, "rb")
    except OSError as error:
        raise RecordingError(f"cannot read the recording {path}: {error.strerror or error}") from error
