# SPDX-License-Identifier: GPL-2.0-only
"""Recordings that are wrong in random ways, with right checksums, so that what lies behind those is reached."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

from kvmmu.record import format as f

Block = tuple[bytes, bytes, int]  # kind, unpacked bytes, records


def blocks_of(data: bytes) -> list[Block]:
    """The blocks of a good recording."""
    at, found = 16, []
    while at < len(data):
        kind, _, stored, _, records, _, codec = f.BLOCK.unpack_from(data, at)
        raw = data[at + 32 : at + 32 + stored]
        found.append((kind, zstandard.ZstdDecompressor().decompress(raw) if codec else raw, records))
        at += 32 + stored
    return found


def pack(blocks: list[Block]) -> bytes:
    """A recording of these blocks, with right checksums."""
    return f.pack_prefix() + b"".join(
        f.pack_block(kind, raw, len(raw), records, f.CODEC_NONE) for kind, raw, records in blocks
    )


def mutant(good: bytes, chosen: random.Random) -> bytes:
    """``good`` with one thing, or a few, changed."""
    return chosen.choice(_WAYS)(good, chosen)


def _flip_bytes(good: bytes, chosen: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(chosen.randint(1, 4)):
        data[chosen.randrange(len(data))] = chosen.randrange(256)
    return bytes(data)


def _truncate(good: bytes, chosen: random.Random) -> bytes:
    return good[: chosen.randrange(len(good))]


# Columns of records: bytes changed, taken out or put in, with lengths that still add up.
def _change_columns(good: bytes, chosen: random.Random) -> bytes:
    blocks = blocks_of(good)
    index = chosen.choice([number for number, block in enumerate(blocks) if block[0] == f.RECS])
    kind, raw, records = blocks[index]
    lengths = f.COLUMN_LENGTHS.unpack_from(raw)
    columns, at = [], f.COLUMN_LENGTHS.size
    for length in lengths:
        columns.append(bytearray(raw[at : at + length]))
        at += length
    for _ in range(chosen.randint(1, 3)):
        column = chosen.choice(columns)
        place = chosen.randrange(len(column) + 1)
        how = chosen.randrange(3)
        if how == 0 and place < len(column):
            column[place] = chosen.choice((0, 0x7F, 0x80, 0xFF, chosen.randrange(256), column[place] ^ 1))
        elif how == 1:
            column[place:place] = chosen.randbytes(chosen.randint(1, 9))
        else:
            del column[place : place + chosen.randint(1, 9)]
    raw = f.COLUMN_LENGTHS.pack(*map(len, columns)) + b"".join(columns)
    blocks[index] = (kind, raw, chosen.choice((records, records, records, records + 1, 1, f.BLOCK_RECORDS)))
    return pack(blocks)


# Values that records have, without moving any other: offsets, registers and sizes, stored bytes, table entries.
def _change_values(good: bytes, chosen: random.Random) -> bytes:
    blocks = blocks_of(good)
    index = chosen.choice([number for number, block in enumerate(blocks) if block[0] == f.RECS])
    kind, raw, records = blocks[index]
    data = bytearray(raw)
    lengths = f.COLUMN_LENGTHS.unpack_from(raw)
    columns = [number for number in (2, 4, 5, 6) if lengths[number]]
    for _ in range(chosen.randint(1, 3)):
        column = chosen.choice(columns)
        start = f.COLUMN_LENGTHS.size + sum(lengths[:column])
        data[start + chosen.randrange(lengths[column])] ^= 1 << chosen.randrange(7)
    blocks[index] = (kind, bytes(data), records)
    return pack(blocks)


def _change_lengths(good: bytes, chosen: random.Random) -> bytes:
    blocks = blocks_of(good)
    index = chosen.choice([number for number, block in enumerate(blocks) if block[0] == f.RECS])
    kind, raw, records = blocks[index]
    data = bytearray(raw)
    struct.pack_into("<I", data, 4 * chosen.randrange(7), chosen.choice((0, 1, len(raw), 2**31, 2**32 - 1)))
    blocks[index] = (kind, bytes(data), records)
    return pack(blocks)


_VALUES = (
    None,
    True,
    -1,
    0,
    1,
    255,
    4096,
    1 << 32,
    1 << 51,
    1 << 64,
    1.5,
    "",
    "x",
    "\x1b[31m\ud800",
    [],
    [[]],
    {},
    [1],
)


# One value of a JSON block becomes something else.
def _change_json(good: bytes, chosen: random.Random) -> bytes:
    blocks = blocks_of(good)
    index = chosen.choice([number for number, block in enumerate(blocks) if block[0] != f.RECS])
    kind, raw, _ = blocks[index]
    facts = json.loads(raw)
    holder: Any = facts
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = chosen.choice(keys)
        inner = holder[key]
        if isinstance(inner, (dict, list)) and inner and chosen.random() < 0.8:
            holder = inner
            continue
        if isinstance(holder, dict) and chosen.random() < 0.2:
            del holder[key]
        else:
            holder[key] = chosen.choice(_VALUES)
        break
    blocks[index] = (kind, json.dumps(facts).encode(), 0)
    return pack(blocks)


def _change_head(good: bytes, chosen: random.Random) -> bytes:
    data = bytearray(good)
    starts, at = [], 16
    while at < len(data):
        starts.append(at)
        at += 32 + f.BLOCK.unpack_from(data, at)[2]
    at = chosen.choice(starts)
    fields = list(f.BLOCK.unpack_from(data, at))
    which = chosen.randrange(len(fields))
    numbers = (0, 1, 2, 100, 1 << 20, 1 << 24, 1 << 31, 2**32 - 1)
    fields[which] = chosen.choice((f.HEAD, f.RECS, f.TAIL, b"MORE")) if which == 0 else chosen.choice(numbers)
    head = f.BLOCK.pack(*fields)
    data[at : at + 32] = head + f.BLOCK_CRC.pack(zlib.crc32(head))
    return bytes(data)


def _shuffle_blocks(good: bytes, chosen: random.Random) -> bytes:
    blocks = blocks_of(good)
    how = chosen.randrange(3)
    index = chosen.randrange(len(blocks))
    if how == 0:
        del blocks[index]
    elif how == 1:
        blocks.insert(chosen.randrange(len(blocks) + 1), blocks[index])
    else:
        chosen.shuffle(blocks)
    return pack(blocks)


_WAYS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip_bytes,
    _truncate,
    *[_change_columns] * 5,
    *[_change_values] * 6,
    _change_lengths,
    *[_change_json] * 3,
    _change_head,
    _shuffle_blocks,
)


def write(path: Path, good: bytes, seed: int) -> Path:
    """The mutant of number ``seed``."""
    path.write_bytes(mutant(good, random.Random(seed)))
    return path
