# SPDX-License-Identifier: GPL-2.0-only
"""Party record on both builds: the same bytes for the same records, the same records from the same bytes."""

from __future__ import annotations

import random
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest

from twin.builds import Build, assert_twins_agree

RAW = struct.Struct("<BBHHHQQQ")
PAGES = [0, 1, 0xFFFFF, 0x7FFF_FFFF_F, 0xFFFF_8000_0000_0, 0xFFFF_FFFF_FFFF_F]


def stream(seed: int, records: int) -> bytes:
    """What a plugin might write."""
    rng = random.Random(seed)
    out = [RAW.pack(3, 0, 0, 0, 4096, 0, 0x5000, 0) + rng.randbytes(4096)]
    for _ in range(records):
        cpu, access = rng.randrange(3), rng.choice((0, 2, 4, 6, 16, 20, 256, 258, 512))
        offset, page, frame = rng.randrange(4096), rng.choice(PAGES), rng.randrange(4096)
        size = min(rng.randrange(1, 65), 4096 - offset)
        gva = page << 12 | offset
        out.append(
            rng.choice(
                (
                    RAW.pack(1, 0, cpu, access, 0, gva, frame << 12 | offset, 0),
                    RAW.pack(1, 0, cpu, access, 0, gva, (page & 0xFFF) << 12 | offset, 0),
                    RAW.pack(2, 0, cpu, access, size, gva, 0x5000 | offset, 0) + rng.randbytes(size),
                    RAW.pack(7, 0, cpu, access, size, gva, 0xFEE0_0000 | offset, 0) + rng.randbytes(size),
                    RAW.pack(4, rng.randrange(1, 7), cpu, 0, 40, 0, 0, 0) + rng.randbytes(36) + bytes(4),
                    RAW.pack(5, 0, cpu, 0, 0, rng.getrandbits(64), 0, 0),
                    RAW.pack(6, rng.randrange(4), cpu, 0, 0, gva, 0, rng.randrange(4096)),
                    RAW.pack(
                        8, rng.randrange(3), cpu, 255, 0, 0x7000, (frame + (1 << 20)) << 12, rng.randrange(1, 9) << 12
                    ),
                )
            )
        )
    return b"".join(out)


def header(build: Build) -> Any:
    form = build.room("record.format")
    return form.Header(cpus=3, memory=(form.Region(0, 1 << 24, "ram"),), maxphyaddr=40)


def written(build: Build, path: Path, seed: int) -> None:
    with build.room("record.writer").Writer(str(path), header(build), 1) as writer:
        data = stream(seed, 400)
        at = 0
        for end in (1000, 9000, len(data)):
            at, _ = writer.feed(data[:end], at)
            writer.flush()


def read(build: Build, path: Path) -> list[Any]:
    seen = []
    with build.room("record.reader").Reader(str(path)) as reader:
        while reader.next():
            seen.append(
                (repr(reader), reader.payload(), reader.position, reader.what, reader.invpcid_type, reader.pcid)
            )
    return seen


@pytest.mark.parametrize("seed", range(6))
def test_both_builds_write_and_read_the_same(seed: int) -> None:
    def program(build: Build) -> Any:
        with tempfile.TemporaryDirectory() as work:
            path = Path(work) / "x.kmr"
            written(build, path, seed)
            return path.read_bytes(), read(build, path)

    data, seen = assert_twins_agree(program)
    assert len(seen) == 401
    assert data.startswith(b"\x89KMR")


@pytest.mark.parametrize("seed", range(40))
def test_both_builds_say_the_same_of_a_damaged_block(seed: int) -> None:
    rng = random.Random(seed)
    columns = [rng.randbytes(rng.randrange(40)) for _ in range(7)]
    count = rng.randrange(1, max(2, len(columns[0])))

    def program(build: Build) -> Any:
        form = build.room("record.format")
        raw = form.COLUMN_LENGTHS.pack(*map(len, columns)) + b"".join(columns)
        head = header(build).to_json()
        with tempfile.TemporaryDirectory() as work:
            path = Path(work) / "x.kmr"
            blocks = [
                form.pack_block(b"HEAD", head, len(head), 0, 0),
                form.pack_block(b"RECS", raw, len(raw), count, 0),
            ]
            path.write_bytes(form.pack_prefix() + b"".join(blocks))
            try:
                return read(build, path)
            except build.room("errors").RecordingError as error:
                return str(error).replace(work, "")

    assert_twins_agree(program)


@pytest.mark.parametrize(
    "call",
    [
        lambda e: e.access(5, 0, 0, 0),
        lambda e: e.access(0, 1, 0, 0),
        lambda e: e.access(0, 0, 1, 2),
        lambda e: e.store(0, 0, 0xFFF, 0xFFF, b"12"),
        lambda e: e.snapshot(0, 1, bytes(4096)),
        lambda e: e.set_regs(0, 7, (0, 0, 0, 0, 0)),
        lambda e: e.feed(memoryview(RAW.pack(4, 1, 0, 0, 8, 0, 0, 0) + bytes(8)), 0, 40),
    ],
)
def test_both_builds_refuse_the_same(call: Any) -> None:
    assert_twins_agree(lambda build: call(build.room("record.encoder").Encoder(2)))
