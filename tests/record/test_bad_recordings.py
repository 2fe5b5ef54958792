# SPDX-License-Identifier: GPL-2.0-only
"""Each way in which a recording can be bad has its one clear line."""

from __future__ import annotations

import json
import os
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from kvmmu.cli import main
from kvmmu.errors import ConfigError, RecorderError, RecordingError
from kvmmu.record import format as f
from kvmmu.record.blocks import BlockFile
from kvmmu.record.encoder import Encoder, Registers
from kvmmu.record.piece import cut
from kvmmu.record.reader import Reader
from kvmmu.record.writer import Writer

HEADER = f.Header(cpus=2, memory=(f.Region(0, 1 << 20, "ram"), f.Region(0xF000_0000, 4096, "rom", "r")), maxphyaddr=40)


def write(path: Path, blocks: int = 3, header: f.Header = HEADER) -> Path:
    """A good recording with ``blocks`` blocks of four records."""
    with Writer(str(path), header) as writer:
        for block in range(blocks):
            writer.encoder.snapshot(0, block << 12, bytes(4096))
            writer.encoder.set_regs(0, f.W_CR3, Registers(1, block, 0, 0))
            writer.encoder.store(0, 2, block << 12, block << 12, b"12345678")
            writer.encoder.access(1, 0, 0x1234, 0x5234)
            writer.flush()
    return path


def places(path: Path) -> list[tuple[bytes, int, int]]:
    """(kind, where the head is, stored bytes) of each block."""
    data, at, found = path.read_bytes(), 16, []
    while at < len(data):
        kind, _, stored, *_ = f.BLOCK.unpack_from(data, at)
        found.append((kind, at, stored))
        at += 32 + stored
    return found


def read_all(path: Path) -> int:
    """Records read to the end."""
    with Reader(str(path)) as reader:
        while reader.next():
            pass
        return int(reader.position)


def refused(path: Path) -> str:
    """The one line that reading ``path`` ends with."""
    with pytest.raises(RecordingError) as caught:
        read_all(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_good_one_is_read(tmp_path: Path) -> None:
    assert read_all(write(tmp_path / "x.kmr")) == 12


def test_no_file(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.kmr")
    assert "directory" in refused(tmp_path)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 something else entirely", b"\x89KMR\n\x1a\n\0" + bytes(100)])
def test_wrong_magic(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.kmr").write_bytes(data)
    assert "is not a kvmmu recording" in refused(tmp_path / "x.kmr")


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = write(tmp_path / "x.kmr")
    data = path.read_bytes()
    ends = {at for _, at, _ in places(path)} | {len(data)}
    starts = sorted(at for kind, at, _ in places(path) if kind != f.HEAD)
    for end in range(1, len(data)):
        path.write_bytes(data[:end])
        if end in ends and end >= starts[0]:
            with Reader(str(path)) as reader:
                assert reader.cut
                assert reader.trailer is None
            assert read_all(path) == 4 * (starts.index(end))
        elif end < starts[1]:
            assert "is truncated" in refused(path)
        elif end < len(data):
            with Reader(str(path)) as reader:
                assert reader.cut
                assert "is truncated: its block" in (reader.loss() or "")
            assert read_all(path) == 4 * sum(start <= end for start in starts[1:])


def test_one_that_ends_inside_a_block_is_read_up_to_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.kmr")
    third = [at for kind, at, _ in places(path) if kind == f.RECS][2]
    path.write_bytes(path.read_bytes()[: third + 40])
    assert main(["info", str(path)]) == 0
    assert "x.kmr is truncated: its block 3 at byte" in capsys.readouterr().out
    assert main(["dump", str(path)]) == 0
    assert "x.kmr is truncated: its block 3 at byte" in capsys.readouterr().err
    trailer = cut(str(path), str(tmp_path / "saved.kmr"))
    assert trailer.records == 8
    assert trailer.cut
    assert read_all(tmp_path / "saved.kmr") == 8


@pytest.mark.parametrize("version", [(2, 0), (0, 9)])
def test_another_major_version_is_refused(tmp_path: Path, version: tuple[int, int]) -> None:
    path = write(tmp_path / "x.kmr")
    data = bytearray(path.read_bytes())
    struct.pack_into("<HH", data, 8, *version)
    path.write_bytes(data)
    assert f"recording format {version[0]}.{version[1]}, this kvmmu reads 1.x" in refused(path)


def test_a_newer_minor_version_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.kmr", header=f.Header(**{**header_fields(HEADER), "extra": {"from_tomorrow": [1]}}))
    data = bytearray(path.read_bytes())
    struct.pack_into("<HH", data, 8, 1, 7)
    at = places(path)[1][1]
    data[at:at] = block(b"MORE", b"unknown", flags=f.MAY_SKIP)
    path.write_bytes(data)
    with Reader(str(path)) as reader:
        assert reader.header.version == (1, 7)
        assert reader.header.extra == {"from_tomorrow": [1]}
    assert read_all(path) == 12


def test_an_unknown_block_that_may_not_be_skipped_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.kmr")
    data = bytearray(path.read_bytes())
    at = places(path)[1][1]
    data[at:at] = block(b"MORE", b"unknown")
    path.write_bytes(data)
    assert "unknown kind b'MORE' and may not be skipped" in refused(path)


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "x.kmr", blocks=2)
    good = path.read_bytes()
    for at in range(16, len(good)):
        data = bytearray(good)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        assert "corrupted" in refused(path) or "truncated" in refused(path)


def test_a_corrupted_block_is_named_when_it_is_reached(tmp_path: Path) -> None:
    path = write(tmp_path / "x.kmr")
    data = bytearray(path.read_bytes())
    second = [at for kind, at, _ in places(path) if kind == f.RECS][1]
    data[second + 40] ^= 1
    path.write_bytes(data)
    with Reader(str(path)) as reader:
        assert reader.skip(4) == 4
        with pytest.raises(RecordingError, match=f"block 2 at byte {second} is corrupted: the checksum"):
            reader.next()


def test_a_wrong_total_is_a_contradiction(tmp_path: Path) -> None:
    path = write(tmp_path / "x.kmr")
    at = places(path)[-1][1]
    path.write_bytes(path.read_bytes()[:at] + block(f.TAIL, json.dumps({"records": 13}).encode()))
    assert "its trailer counts 13 records, it holds 12" in refused(path)
    path.write_bytes(path.read_bytes()[:at] + block(f.TAIL, b'{"records": 12}') + b"more")
    assert "4 bytes follow its trailer" in refused(path)


def test_a_block_that_unpacks_to_something_else_is_corrupted(tmp_path: Path) -> None:
    path = write(tmp_path / "x.kmr")
    at = places(path)[1][1]
    path.write_bytes(path.read_bytes()[:at] + block(f.RECS, b"no zstandard", codec=1, records=1))
    assert "is corrupted" in refused(path)
    path.write_bytes(path.read_bytes()[:at] + block(f.RECS, b"x" * 40, codec=9, records=1))
    assert "has codec 9" in refused(path)
    path.write_bytes(path.read_bytes()[:at] + block(f.RECS, b"x", records=1))
    assert "too short to hold records" in refused(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cpus": 0}, "cpus is 0"),
        ({"cpus": "two"}, "cpus is 'two'"),
        ({"maxphyaddr": 53}, "maxphyaddr is 53"),
        ({"memory": []}, "no memory region"),
        ({"memory": [{"gpa": 0, "size": 4095, "kind": "ram"}]}, "4K pages"),
        ({"memory": [{"gpa": 0, "size": 4096, "kind": "io"}]}, "must be ram or rom"),
        ({"memory": [{"gpa": 0, "size": 8192, "kind": "ram"}, {"gpa": 4096, "size": 4096, "kind": "rom"}]}, "overlaps"),
        ({"memory": [{"gpa": 1 << 40, "size": 4096, "kind": "ram"}]}, "the CPU's addresses end at 0x10000000000"),
        ({"memory": 5}, "must be a list of at most 1024 regions"),
        ({"memory": [5]}, "must be a mapping"),
        ({"memory": [{"gpa": n << 12, "size": 4096, "kind": "ram"} for n in range(1025)]}, "at most 1024 regions"),
        ({"memory": [{"gpa": 0, "size": 4096, "kind": "rom"}]}, "none of its memory regions is RAM"),
        ({"memory": [{"gpa": "0", "size": 4096, "kind": "ram"}]}, "gpa of a memory region is '0'"),
        ({"memory": [{"gpa": 0, "size": 4096, "kind": "ram", "memory": ["ram"]}]}, "must be a name"),
        ({"memory": [{"gpa": 0, "size": 4096, "kind": "ram", "offset": 1 << 60}]}, "more than 0xc000000000 bytes"),
        ({"memory": [{"gpa": n << 12, "size": 4096, "kind": "ram", "memory": str(n)} for n in range(256)]}, "256 back"),
        ({"cpus": 1025}, "cpus is 1025, must be 1 to 1024"),
        ({"cpus": True}, "cpus is True"),
        ({"cpus": 1.0}, "cpus is 1.0"),
        ({"maxphyaddr": None}, "maxphyaddr is None"),
        ({"entry": "0x100000"}, "entry is '0x100000'"),
        ({"first": -1}, "first is -1"),
        ({"machine": 5}, "machine is 5, must be text"),
        ({"command": "qemu"}, "command is 'qemu', must be a list of text"),
        ({"features": [1]}, "features is [1], must be a list of text"),
    ],
)
def test_a_header_that_no_machine_has_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    facts = json.loads(HEADER.to_json()) | change
    path = tmp_path / "x.kmr"
    path.write_bytes(f.pack_prefix() + block(f.HEAD, json.dumps(facts).encode()))
    assert words in refused(path)


def test_a_header_without_a_key_or_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.kmr"
    for text in (b'{"cpus": 1}', b"[]", b"{", b'"', b"\xff", b"5", b'{"cpus": ' + b"9" * 5000 + b"}"):
        path.write_bytes(f.pack_prefix() + block(f.HEAD, text))
        assert "its header cannot be used" in refused(path)


@pytest.mark.parametrize("sign", [b"[", b'{"a":', b'{"":[', b'["\\"",'])
def test_a_header_that_is_too_deep_is_refused(tmp_path: Path, sign: bytes) -> None:
    path = tmp_path / "x.kmr"
    facts = HEADER.to_json()[:-1] + b', "more": ' + sign * 200_000
    path.write_bytes(f.pack_prefix() + block(f.HEAD, facts[: f.MAX_JSON]))
    assert "its JSON is more than 32 deep" in refused(path)


def test_brackets_in_text_are_not_depth(tmp_path: Path) -> None:
    path = write(tmp_path / "x.kmr", header=f.Header(**{**header_fields(HEADER), "machine": '[[{"' * 100 + "\\"}))
    assert read_all(path) == 12


def test_text_that_never_ends_costs_no_time(tmp_path: Path) -> None:
    path = tmp_path / "x.kmr"
    path.write_bytes(f.pack_prefix() + block(f.HEAD, b'\\"' * (f.MAX_JSON // 2)))
    started = time.monotonic()
    refused(path)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("totals", "words"),
    [
        (b"[]", "must be an object"),
        (b'{"records": "12"}', "records is '12'"),
        (b'{"records": 12, "counts": 5}', "counts is 5"),
        (b'{"records": 12, "counts": {"access": "many"}}', "the count of 'access' is 'many'"),
        (b'{"records": 12, "cut": 1}', "must be a truth and text"),
        (b'{"records": 12, "reason": 1}', "must be a truth and text"),
        (b'{"records": 12, "seen": null}', "seen is None"),
        (b'{"records": 12, "x": ' + b"[" * 100_000, "more than 32 deep"),
    ],
)
def test_a_trailer_that_is_none_is_refused(tmp_path: Path, totals: bytes, words: str) -> None:
    path = write(tmp_path / "x.kmr")
    at = places(path)[-1][1]
    path.write_bytes(path.read_bytes()[:at] + block(f.TAIL, totals))
    assert words in refused(path)


def head_of(kind: bytes, stored: bytes, raw: int, records: int = 0, size: int | None = None) -> bytes:
    """A block whose head says what it likes of its bytes."""
    length = len(stored) if size is None else size
    head = f.BLOCK.pack(kind, 0, length, raw, records, zlib.crc32(stored), f.CODEC_ZSTD)
    return head + f.BLOCK_CRC.pack(zlib.crc32(head)) + stored


def frame_claiming(size: int) -> bytes:
    """A zstandard frame whose head claims ``size`` bytes, with one empty raw block."""
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size) + b"\x01\x00\x00"


def memory_peak(path: Path) -> int:
    """Bytes that refusing ``path`` took at most, as Python's allocators count them."""
    tracemalloc.start()
    try:
        refused(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [1 << 62, 1 << 31, 1 << 24, 41])
def test_a_frame_that_claims_another_size_is_refused_before_it_is_unpacked(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.kmr"
    frame = frame_claiming(size)
    path.write_bytes(f.pack_prefix() + block(f.HEAD, HEADER.to_json()) + head_of(f.RECS, frame, 40, 1))
    assert f"its frame claims {size} bytes, its head 40" in refused(path)
    assert memory_peak(path) < 8 << 20


def test_a_block_that_unpacks_to_more_than_it_says_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.kmr"
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    frame = compressor.compress(bytes(1 << 28))
    path.write_bytes(f.pack_prefix() + block(f.HEAD, HEADER.to_json()) + head_of(f.RECS, frame, 40, 1))
    assert "is corrupted" in refused(path)
    assert memory_peak(path) < 8 << 20


@pytest.mark.parametrize(
    ("kind", "raw", "records", "words"),
    [
        (f.RECS, f.MAX_BLOCK + 1, 1, "the format's limits are"),
        (f.TAIL, f.MAX_JSON + 1, 0, "the format's limits are"),
        (f.RECS, 1 << 20, f.BLOCK_RECORDS + 1, "cannot hold 131073 records"),
        (f.RECS, 100, 101, "cannot hold 101 records in 100 bytes"),
    ],
)
def test_a_head_beyond_the_limits_is_refused_before_its_bytes(
    tmp_path: Path, kind: bytes, raw: int, records: int, words: str
) -> None:
    path = tmp_path / "x.kmr"
    path.write_bytes(f.pack_prefix() + block(f.HEAD, HEADER.to_json()) + head_of(kind, b"never read", raw, records))
    assert words in refused(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is a device or a pipe" in refused(tmp_path / "pipe")


def seen(encoder: Any) -> None:
    encoder.snapshot(0, 0x1000, bytes(4096))


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        (lambda e: e.store(0, 2, 0x5000, 0x5000, b"1"), "whose page was never recorded"),
        (lambda e: e.store(0, 2, 0, 1 << 41, b"1"), "whose page was never recorded"),
        (lambda e: e.access(0, 0, 0, 1 << 20), "which the memory map says is not memory"),
        (lambda e: e.access(0, 0, 0, 1 << 50), "which the memory map says is not memory"),
        (lambda e: e.mmio(0, 0, 0x3000, 0x3000, b"1"), "which the memory map says is RAM"),
        (lambda e: e.snapshot(0, 0xE000_0000, bytes(4096)), "which the memory map says is not memory"),
        (lambda e: e.remap(0, 0x1000, 0x1000, 7, (0, 0)), "become kind 7"),
        (lambda e: e.remap(0, 0x1000, 0x1000, 1, (9, 0)), "of memory 9"),
        (lambda e: e.remap(0, 0x1000, 1 << 52, 1, (0, 0)), "become kind 1"),
        (lambda e: e.remap(0, 1 << 51, 1 << 52, 0, (0, 0)), "become kind 0"),
        (lambda e: e.remap(0, 0x1000, 0x1000, 1, (0, 1 << 42)), "of a memory, which ends before"),
        (lambda e: e.mmio(0, 0, 0, 1 << 53, b"1"), "no CPU has more than 52 physical address bits"),
        (lambda e: [e.remap(0, 1 << 32 | n << 13, 0x1000, 1, (255, 0)) for n in range(2048)], "more than 4096 ranges"),
        (lambda e: [e.remap(0, 0x3000, 0x1000, 0, (255, 0)), e.access(0, 0, 0, 0x3000)], "is not memory"),
    ],
)
def test_content_that_contradicts_itself(tmp_path: Path, fill: Callable[[Any], Any], words: str) -> None:
    path = tmp_path / "x.kmr"
    with Writer(str(path), HEADER) as writer:
        seen(writer.encoder)
        fill(writer.encoder)
    text = refused(path)
    assert words in text
    assert "contradicts itself at record" in text


def test_what_a_map_change_allows(tmp_path: Path) -> None:
    path = tmp_path / "x.kmr"
    with Writer(str(path), HEADER) as writer:
        writer.encoder.remap(0, 0xA0_0000, 0x2000, f.MAP_RAM, (0, 0x1000))
        writer.encoder.remap(0, 1 << 45, 0x1000, f.MAP_RAM, (255, 0))
        writer.encoder.access(0, 0, 0, 0xA0_1000)
        writer.encoder.access(0, 0, 0, 1 << 45)
        writer.encoder.mmio(0, 0, 0, 0xF000_0000, b"1")  # a device may catch writes to ROM
    assert read_all(path) == 5


def raw_block(columns: list[bytes]) -> bytes:
    return f.COLUMN_LENGTHS.pack(*map(len, columns)) + b"".join(columns)


@pytest.mark.parametrize(
    ("columns", "records", "words"),
    [
        ([b"", b"", b"", b"", b"", b"", b""], 1, "do not hold"),
        ([b"\x01", b"", b"", b"", b"", b"", b""], 1, "do not hold"),
        ([b"\x01", b"\xff" * 3, b"\0\0", b"\0", b"", b"", b""], 1, "do not hold"),
        ([b"\x09", b"\x02", b"\0\0", b"", b"", b"", b""], 1, "translation that none before it gave"),
        ([b"\x81\x14", b"\0", b"\0\0", b"\0", b"", b"", b""], 1, "a record of CPU 5"),
        ([b"\x81\x80", b"\0", b"\0\0", b"\0", b"", b"", b""], 1, "do not hold"),
        ([b"\x02", b"\0", b"\0\0", b"\0", b"\x41", b"x" * 65, b""], 1, "65 bytes at gpa"),
        ([b"\x02", b"\0", b"\xff\x0f", b"\0", b"\x02", b"xx", b""], 1, "2 bytes at gpa"),
        ([b"\x02", b"\0", b"\0\0", b"\0", b"\x08", b"x", b""], 1, "do not hold"),
        ([b"\x03", b"", b"", b"\0", b"", b"", b"x"], 1, "do not hold"),
        ([b"\x04", b"", b"", b"", b"\x09\0", b"", b""], 1, "unknown cause 9"),
        ([b"\x04", b"", b"", b"", b"\x02\x1f", b"", b""], 1, "do not hold"),
        ([b"\x06", b"\0", b"\0\0", b"", b"", b"", b""], 1, "do not hold"),
        ([b"\x00", b"", b"", b"\0", b"\0\0\0\0", b"", b""], 1, "0 pages"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path: Path, columns: list[bytes], records: int, words: str) -> None:
    path = tmp_path / "x.kmr"
    head = block(f.HEAD, HEADER.to_json())
    path.write_bytes(f.pack_prefix() + head + block(f.RECS, raw_block(columns), records=records))
    assert words in refused(path)


def test_columns_longer_than_their_block_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.kmr"
    raw = f.COLUMN_LENGTHS.pack(1, 2**31, 0, 0, 0, 0, 0) + b"\x01"
    path.write_bytes(f.pack_prefix() + block(f.HEAD, HEADER.to_json()) + block(f.RECS, raw, records=1))
    assert "columns are longer than the block" in refused(path)


@pytest.mark.parametrize(("first", "until"), [(5, 5), (7, 3), (0, 13), (12, None)])
def test_a_piece_that_is_not_there(tmp_path: Path, first: int, until: int | None) -> None:
    path = write(tmp_path / "x.kmr")
    with pytest.raises(ConfigError, match="has the records 0 to 11: cannot cut"):
        cut(str(path), str(tmp_path / "piece.kmr"), first, until)


def test_a_recording_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RecorderError, match=r"cannot write the recording .*No such file"):
        Writer(str(tmp_path / "no" / "x.kmr"), HEADER)


class Disk:
    """A file on a disk with ``room`` bytes left."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        part = data[: self.room]
        self.room -= len(part)
        return int(self.file.write(part))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_full_disk_leaves_whole_blocks(tmp_path: Path) -> None:
    path = tmp_path / "x.kmr"
    writer = Writer(str(path), HEADER)
    writer.encoder.invlpg(0, 0)
    writer.flush()
    writer.file = Disk(writer.file, 40)  # type: ignore[assignment]
    writer.encoder.snapshot(0, 0, bytes(range(256)) * 16)
    with pytest.raises(RecorderError, match="the disk is full; it holds the first 1 records and says that it is cut"):
        writer.flush()
    with Reader(str(path)) as reader:
        assert reader.cut
        assert reader.total == 1
    assert read_all(path) == 1


def test_a_full_disk_leaves_no_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "x.kmr"
    writer = Writer(str(path), HEADER)
    writer.file = Disk(writer.file, 40)  # type: ignore[assignment]
    writer.encoder.snapshot(0, 0, bytes(range(256)) * 16)
    with pytest.raises(RecorderError, match="nothing was recorded"):
        writer.flush()
    assert not path.exists()


def test_a_device_that_is_full_is_not_removed() -> None:
    with pytest.raises(RecorderError, match="the disk is full"):
        Writer("/dev/full", HEADER)
    assert Path("/dev/full").exists()


def test_an_exception_marks_a_recording_as_cut(tmp_path: Path) -> None:
    path = tmp_path / "x.kmr"
    writer = Writer(str(path), HEADER)
    writer.encoder.invlpg(0, 0)
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with Reader(str(path)) as reader:
        assert reader.cut
        assert reader.trailer is not None
        assert reader.trailer.reason == "stopped by KeyboardInterrupt"


def test_an_encoder_for_no_cpu_is_refused() -> None:
    with pytest.raises(RecordingError, match="0 CPUs"):
        Encoder(0)


def test_closing_a_file_twice_is_fine(tmp_path: Path) -> None:
    blocks = BlockFile(str(write(tmp_path / "x.kmr")))
    blocks.close()
    blocks.close()


def block(kind: bytes, raw: bytes, flags: int = 0, codec: int = 0, records: int = 0) -> bytes:
    """A whole block, not compressed, with right checksums."""
    head = f.BLOCK.pack(kind, flags, len(raw), len(raw), records, zlib.crc32(raw), codec)
    return head + f.BLOCK_CRC.pack(zlib.crc32(head)) + raw


def header_fields(header: f.Header) -> dict[str, Any]:
    return {name: getattr(header, name) for name in header.__dataclass_fields__}


def test_a_piece_never_overwrites_its_recording(tmp_path: Path) -> None:
    path = write(tmp_path / "whole.kmr")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="is the recording itself"):
        cut(str(path), str(path), 0, 5)
    assert path.read_bytes() == before


def test_a_piece_that_cannot_be_written_is_an_option(tmp_path: Path) -> None:
    path = write(tmp_path / "x.kmr")
    with pytest.raises(ConfigError, match=r"--output .*No such file"):
        cut(str(path), str(tmp_path / "no" / "piece.kmr"))
    with pytest.raises(ConfigError, match="is a directory"):
        cut(str(path), str(tmp_path))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RecordingError])
def test_a_cut_that_ends_early_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "x.kmr"
    with Writer(str(path), HEADER) as writer:
        for page in range(50_000):
            writer.encoder.access(0, 0, page << 12, 0x1000)
    (tmp_path / "old.kmr").write_bytes(b"old")

    def stop(position: int, end: int) -> None:
        assert (position, end) == (20_000, 50_000)
        raise error

    for name in ("new.kmr", "old.kmr"):
        with pytest.raises(error):
            cut(str(path), str(tmp_path / name), 5, None, 1, stop)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["old.kmr", "x.kmr"]
    assert (tmp_path / "old.kmr").read_bytes() == b"old"


def test_an_empty_recording_cannot_be_cut(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="has no records"):
        cut(str(write(tmp_path / "x.kmr", blocks=0)), str(tmp_path / "piece.kmr"))


def test_a_piece_keeps_what_two_addresses_show(tmp_path: Path) -> None:
    path = tmp_path / "x.kmr"
    with Writer(str(path), HEADER) as writer:
        encoder = writer.encoder
        encoder.remap(0, 0xA0_0000, 0x1000, f.MAP_RAM, (0, 0x5000))
        encoder.snapshot(0, 0x5000, bytes(4096))
        encoder.snapshot(0, 0xA0_0000, bytes(4096))
        encoder.store(0, 2, 8, 0xA0_0008, b"alias")
        encoder.access(0, 0, 0, 0)
    cut(str(path), str(tmp_path / "piece.kmr"), 4)
    pages = {}
    with Reader(str(tmp_path / "piece.kmr")) as reader:
        while kind := reader.next():
            if kind == f.K_PAGE:
                pages[reader.gpa] = reader.payload()[8:13]
    assert pages == {0x5000: b"alias", 0xA0_0000: b"alias"}
