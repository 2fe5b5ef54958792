# SPDX-License-Identifier: GPL-2.0-only
"""Where the next value of each column of a block is, and how a value is spelled; the counterpart of ``columns``.

A block's columns lie in one buffer, one behind the other. Each has a cursor, which what reads a value moves on, and an
end. Nothing looks whether a cursor is still within its column before it reads (the buffer ends with padding); whoever
reads compares the two afterwards, and calls :meth:`Cursors.overrun`. ``docs/recording-format.md`` describes them.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NoReturn

from ..errors import RecordingError
from ..page_types import U64
from .blocks import PADDING
from .format import COLUMN_LENGTHS, END_FRAME, MAX_PHYSICAL_BITS


class Cursors:
    """The block in hand of the recording ``path``, empty at first. ``position`` counts the records read so far."""

    __slots__ = (
        "at_content",
        "at_data",
        "at_frame",
        "at_number",
        "at_offset",
        "at_page",
        "at_token",
        "end_content",
        "end_data",
        "end_frame",
        "end_number",
        "end_offset",
        "end_page",
        "end_token",
        "last_frame",
        "last_page",
        "path",
        "position",
        "raw",
    )

    def __init__(self, path: str) -> None:
        self.path = path
        self.position = 0
        self.raw = memoryview(bytearray(COLUMN_LENGTHS.size))
        self.last_page = self.last_frame = 0

    def load(self, raw: bytearray) -> int:
        """Take the block ``raw`` in hand, with every cursor at the beginning of its column. Return 0."""
        cursors = list(accumulate(COLUMN_LENGTHS.unpack_from(raw), initial=COLUMN_LENGTHS.size))
        self.raw = memoryview(raw)
        self.at_token, self.at_page, self.at_offset, self.at_frame, self.at_number, self.at_data, self.at_content, _ = (
            cursors
        )
        _, self.end_token, self.end_page, self.end_offset, self.end_frame, self.end_number, self.end_data, end = cursors
        self.end_content = end
        if end + PADDING > len(raw):
            self.contradict("a block's columns are longer than the block")
        self.last_page = self.last_frame = 0
        return 0

    def read_number(self) -> int:
        """A varint of the number column: 7 bits a byte, low ones first."""
        at = self.at_number
        byte = self.raw[at]
        at += 1
        value: int = byte & 127
        shift = 7
        while byte >= 128 and shift < 70:
            byte = self.raw[at]
            at += 1
            value |= ((byte & 127) << shift) & U64
            shift += 7
        self.at_number = at
        return value

    def read_gva(self) -> int:
        """A gva: its page as a signed difference to the last one, and its offset in the page."""
        at = self.at_page
        byte = self.raw[at]
        at += 1
        value: int = byte & 127
        shift = 7
        while byte >= 128 and shift < 70:
            byte = self.raw[at]
            at += 1
            value |= ((byte & 127) << shift) & U64
            shift += 7
        self.at_page = at
        half = value >> 1
        page = (self.last_page + (half ^ U64 if value & 1 else half)) & U64
        self.last_page = page
        at = self.at_offset
        self.at_offset = at + 2
        if self.at_page > self.end_page or at + 2 > self.end_offset:
            self.overrun()
        low: int = self.raw[at]
        low = (low << 4) | (self.raw[at + 1] & 15)
        return ((page << 12) & U64) | low

    def read_frame(self) -> int:
        """A frame number: a signed difference to the last one written."""
        at = self.at_frame
        byte = self.raw[at]
        at += 1
        value: int = byte & 127
        shift = 7
        while byte >= 128 and shift < 70:
            byte = self.raw[at]
            at += 1
            value |= ((byte & 127) << shift) & U64
            shift += 7
        self.at_frame = at
        half = value >> 1
        frame = (self.last_frame + (half ^ U64 if value & 1 else half)) & U64
        self.last_frame = frame
        if at > self.end_frame:
            self.overrun()
        if frame >= END_FRAME:
            self.contradict(f"frame {frame:#x}, no CPU has more than {MAX_PHYSICAL_BITS} physical address bits")
        return frame

    def overrun(self) -> NoReturn:
        """A cursor ran over its column's end: the block holds other records than its token column says."""
        self.contradict("a block's columns do not hold what its records need")

    def contradict(self, what: str) -> NoReturn:
        """Raise :class:`RecordingError` for the record in hand."""
        raise RecordingError(f"{self.path} contradicts itself at record {self.position}: {what}")
