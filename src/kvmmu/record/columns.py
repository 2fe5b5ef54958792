# SPDX-License-Identifier: GPL-2.0-only
"""The columns of one block being filled: what records are made of, byte by byte, each kind of thing in its own column.

Pages and frames are written as differences to the last one, and a frame only where the translation is not the one last
seen in its slot of the prediction. Which record consists of what is :mod:`~kvmmu.record.encoder`'s, which also sees to
it that no column runs over: it takes the block as soon as :meth:`Columns.is_nearly_full` says so.
"""

from __future__ import annotations

from array import array

from ..page_types import U64
from .format import BLOCK_RECORDS, CACHE_MIX, CACHE_SHIFT, CACHE_SLOTS, COLUMN_LENGTHS

# Room for one more record of any kind in every column but the last two, whose records are longer.
_SPARE = 128
_CONTENT = 256 * 4096
_DATA = 1048576
_CAPACITY = BLOCK_RECORDS * 10


class Columns:
    """Seven columns, how much of each is filled, and what the next entries are relative to."""

    __slots__ = (
        "at_content",
        "at_data",
        "at_frame",
        "at_number",
        "at_offset",
        "at_page",
        "at_token",
        "content",
        "data",
        "frame",
        "last_frame",
        "last_page",
        "number",
        "offset",
        "page",
        "predicted_frame",
        "predicted_page",
        "state",
        "token",
    )

    def __init__(self) -> None:
        self.token = memoryview(bytearray(_CAPACITY))
        self.page = memoryview(bytearray(_CAPACITY))
        self.offset = memoryview(bytearray(_CAPACITY))
        self.frame = memoryview(bytearray(_CAPACITY))
        self.number = memoryview(bytearray(_CAPACITY))
        self.data = memoryview(bytearray(_DATA))
        self.content = memoryview(bytearray(_CONTENT))
        self.predicted_page = memoryview(array("Q", [0]) * CACHE_SLOTS)
        self.predicted_frame = memoryview(array("Q", [0]) * CACHE_SLOTS)
        self.reset()

    def reset(self) -> int:
        """Empty them: nothing is relative to an earlier block."""
        self.at_token = self.at_page = self.at_offset = self.at_frame = 0
        self.at_number = self.at_data = self.at_content = 0
        self.last_page = self.last_frame = 0
        self.state = 0
        for index in range(CACHE_SLOTS):
            self.predicted_page[index] = U64
        return 0

    def is_nearly_full(self) -> bool:
        """Whether one more record might not fit."""
        return self.at_content == _CONTENT or self.at_data + _SPARE > _DATA or self.at_number + _SPARE > _CAPACITY

    def take(self) -> bytes:
        """The block's raw bytes: the columns' lengths, then the columns."""
        columns = [
            bytes(self.token[: self.at_token]),
            bytes(self.page[: self.at_page]),
            bytes(self.offset[: self.at_offset]),
            bytes(self.frame[: self.at_frame]),
            bytes(self.number[: self.at_number]),
            bytes(self.data[: self.at_data]),
            bytes(self.content[: self.at_content]),
        ]
        return COLUMN_LENGTHS.pack(*[len(column) for column in columns]) + b"".join(columns)

    def put_token(self, token: int, state: int) -> int:
        """Begin a record without a place; ``state`` (CPU and rare access bits) follows the token where it is new."""
        at = self.at_token
        self.at_token += 1
        if state != self.state:
            token |= 128
            self._put_state(state)
        self.token[at] = token
        return 0

    def put_placed_token(self, token: int, state: int, gva: int, gpa: int) -> int:
        """As :meth:`put_token`, for a record that has a translation."""
        at = self.at_token
        self.at_token += 1
        if state != self.state:
            token |= 128
            self._put_state(state)
        self.token[at] = token | self._put_place(gva, gpa)
        return 0

    def _put_state(self, state: int) -> int:
        self.state = state
        while state > 127:
            self.token[self.at_token] = (state & 127) | 128
            self.at_token += 1
            state >>= 7
        self.token[self.at_token] = state
        self.at_token += 1
        return 0

    # Write page and offset, and the frame unless it is the predicted one; return the token's bit that says so.
    def _put_place(self, gva: int, gpa: int) -> int:
        self.put_gva(gva)
        page = gva >> 12
        frame = gpa >> 12
        slot = ((page * CACHE_MIX) & U64) >> CACHE_SHIFT
        if self.predicted_page[slot] == page and self.predicted_frame[slot] == frame:
            return 8
        self.predicted_page[slot] = page
        self.predicted_frame[slot] = frame
        self.put_frame(frame)
        return 0

    def put_gva(self, gva: int) -> int:
        """Write page and offset of ``gva``."""
        page = gva >> 12
        value = _zigzag((page - self.last_page) & U64)
        self.last_page = page
        while value > 127:
            self.page[self.at_page] = (value & 127) | 128
            self.at_page += 1
            value >>= 7
        self.page[self.at_page] = value
        self.at_page += 1
        self.offset[self.at_offset] = (gva >> 4) & 255
        self.offset[self.at_offset + 1] = gva & 15
        self.at_offset += 2
        return 0

    def put_frame(self, frame: int) -> int:
        """Write the number of a frame."""
        value = _zigzag((frame - self.last_frame) & U64)
        self.last_frame = frame
        while value > 127:
            self.frame[self.at_frame] = (value & 127) | 128
            self.at_frame += 1
            value >>= 7
        self.frame[self.at_frame] = value
        self.at_frame += 1
        return 0

    def put_number(self, value: int) -> int:
        """Write any other number, seven bits a byte."""
        while value > 127:
            self.number[self.at_number] = (value & 127) | 128
            self.at_number += 1
            value >>= 7
        self.number[self.at_number] = value
        self.at_number += 1
        return 0

    def put_byte(self, value: int) -> int:
        """Write a number that is always one byte, 0 to 255."""
        self.number[self.at_number] = value
        self.at_number += 1
        return 0

    def put_data(self, data: bytes | memoryview, start: int, size: int) -> int:
        """Write ``size`` bytes, at ``start`` of ``data``, that an access moved."""
        index = 0
        while index < size:
            self.data[self.at_data + index] = data[start + index]
            index += 1
        self.at_data += size
        return 0

    def put_page(self, data: bytes | memoryview, start: int) -> int:
        """Write the 4096 bytes of a page, at ``start`` of ``data``."""
        index = 0
        while index < 4096:
            self.content[self.at_content + index] = data[start + index]
            index += 1
        self.at_content += 4096
        return 0


# A signed 64-bit difference with the sign in bit 0: small both ways.
def _zigzag(value: int) -> int:
    if value >> 63:
        return ((value << 1) & U64) ^ U64
    return value << 1
