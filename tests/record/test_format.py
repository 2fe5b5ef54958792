# SPDX-License-Identifier: GPL-2.0-only
"""What is written is read again, whatever the records and wherever the blocks end."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmmu.errors import RecordingError
from kvmmu.record import format as f
from kvmmu.record.encoder import Encoder, Registers
from kvmmu.record.format import FED_ALL, FED_CONTROL
from kvmmu.record.piece import cut, summarize
from kvmmu.record.reader import Reader
from kvmmu.record.writer import Writer

HEADER = f.Header(
    cpus=3,
    memory=(f.Region(0, 1 << 24, "ram"), f.Region(0xFFFC_0000, 1 << 18, "rom", "bios")),
    maxphyaddr=40,
    features=("nx", "la57"),
    command=("qemu", "-m", "16"),
)
TABLE = 0x5000
CPUS = st.integers(0, 2)
U64 = st.integers(0, 2**64 - 1)
ACCESS = st.integers(0, 31).map(
    lambda n: (n & 1) << 1 | (n & 2) << 1 | (n & 4) << 2 | (n & 8) << 5 | (n & 16) << 5  # W, U, F, AC, implicit
)
PAGES = st.one_of(st.sampled_from([0, 1, 2, 0xFFFF_FFFF_FFFF_F, 0xFFFF_8000_0000_0]), st.integers(0, 2**52 - 1))
#: A gva and the RAM (or device) address that it has, equal inside the page.
PLACES = st.tuples(PAGES, st.integers(0, 4095), st.integers(0, (1 << 12) - 1)).map(
    lambda p: (p[0] << 12 | p[1], p[2] << 12 | p[1])
)
IN_TABLE = st.tuples(PAGES, st.integers(0, 4095), st.binary(min_size=1, max_size=64)).map(
    lambda p: (p[0] << 12 | p[1], TABLE | p[1], p[2][: 4096 - p[1]])
)
RECORDS = st.one_of(
    st.tuples(st.just("access"), CPUS, ACCESS, PLACES),
    st.tuples(st.just("store"), CPUS, ACCESS, IN_TABLE),
    st.tuples(st.just("mmio"), CPUS, ACCESS, IN_TABLE),
    st.tuples(st.just("page"), CPUS, st.integers(0, 4095), st.binary(min_size=64, max_size=64)),
    st.tuples(st.just("regs"), CPUS, st.integers(1, 6), st.tuples(U64, U64, U64, U64, st.integers(0, 2**32 - 1))),
    st.tuples(st.just("invlpg"), CPUS, U64),
    st.tuples(st.just("invpcid"), CPUS, st.integers(0, 3), st.integers(0, 4095), U64),
    st.tuples(
        st.just("map"), CPUS, st.integers(0, 2**24), st.integers(1, 64), st.integers(0, 2), st.integers(0, 2**30)
    ),
)


def put(encoder: Any, record: Sequence[Any]) -> tuple[Any, ...]:
    """Encode ``record``; return what must be read."""
    name, cpu, *rest = record
    if name == "access":
        access, (gva, gpa) = rest
        encoder.access(cpu, access, gva, gpa)
        return (f.K_ACCESS, cpu, access, gva, gpa)
    if name in ("store", "mmio"):
        access, (gva, gpa, data) = rest
        if name == "mmio":
            gpa += 1 << 40
        (encoder.mmio if name == "mmio" else encoder.store)(cpu, access, gva, gpa, data)
        kind = f.K_MMIO if name == "mmio" else f.K_STORE
        return (kind, cpu, access, gva, gpa, len(data), int.from_bytes(data[:8], "little"), data)
    if name == "page":
        frame, seed = rest
        encoder.snapshot(cpu, frame << 12, seed * 64)
        return (f.K_PAGE, cpu, frame << 12, seed * 64)
    if name == "regs":
        what, words = rest
        encoder.set_regs(cpu, what, Registers(*words))
        return (f.K_REGS, cpu, what, words)
    if name == "invlpg":
        encoder.invlpg(cpu, rest[0])
        return (f.K_INVLPG, cpu, rest[0])
    if name == "invpcid":
        encoder.invpcid(cpu, *rest)
        return (f.K_INVPCID, cpu, *rest)
    frame, count, kind, offset = rest
    encoder.remap(cpu, (0x100_0000 + frame) << 12, count << 12, kind, (255, offset << 12))
    return (f.K_MAP, cpu, (0x100_0000 + frame) << 12, count << 12, kind, 255, offset << 12)


def got(reader: Any) -> tuple[Any, ...]:
    """The reader's current record in the form of :func:`put`."""
    kind, cpu = reader.kind, reader.cpu
    place = (reader.access, reader.gva, reader.gpa)
    if kind == f.K_ACCESS:
        return (kind, cpu, *place)
    if kind in (f.K_STORE, f.K_MMIO):
        return (kind, cpu, *place, reader.size, reader.value, reader.payload())
    if kind == f.K_PAGE:
        return (kind, cpu, reader.gpa, reader.payload())
    if kind == f.K_REGS:
        return (kind, cpu, reader.what, (reader.cr0, reader.cr3, reader.cr4, reader.efer, reader.pkru))
    if kind == f.K_INVLPG:
        return (kind, cpu, reader.gva)
    if kind == f.K_INVPCID:
        return (kind, cpu, reader.invpcid_type, reader.pcid, reader.gva)
    size, map_kind, memory, offset = struct.unpack("<QBBQ", reader.payload())
    assert (size, map_kind, memory, offset) == (reader.map_size, reader.map_kind, reader.map_memory, reader.map_offset)
    return (kind, cpu, reader.gpa, size, map_kind, memory, offset)


def write(path: Path, records: Sequence[Sequence[Any]], ends: frozenset[int] = frozenset()) -> list[tuple[Any, ...]]:
    """A recording of a table page and ``records``, with a block's end before each record of ``ends``."""
    with Writer(str(path), HEADER, level=1) as writer:
        expected = [put(writer.encoder, ("page", 0, TABLE >> 12, bytes(64)))]
        for index, record in enumerate(records):
            if index in ends or writer.encoder.full:
                writer.flush()
            expected.append(put(writer.encoder, record))
    return expected


@given(st.lists(RECORDS, max_size=40), st.frozensets(st.integers(0, 39), max_size=4))
def test_every_record_comes_back(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], ends: frozenset[int]
) -> None:
    path = tmp_path_factory.mktemp("kmr") / "x.kmr"
    expected = write(path, records, ends)
    with Reader(str(path)) as reader:
        assert reader.total == len(expected)
        assert not reader.cut
        for index, record in enumerate(expected):
            assert reader.next() == record[0]
            assert got(reader) == record
            assert reader.position == index + 1
        assert reader.next() == 0
        assert reader.next() == 0


@given(st.lists(RECORDS, min_size=2, max_size=30), st.data())
def test_a_piece_has_the_same_records_and_begins_with_what_they_need(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], data: st.DataObject
) -> None:
    work = tmp_path_factory.mktemp("kmr")
    expected = write(work / "x.kmr", records)
    first = data.draw(st.integers(0, len(expected) - 1))
    until = data.draw(st.integers(first + 1, len(expected)))
    cut(str(work / "x.kmr"), str(work / "piece.kmr"), first, until, level=1)
    with Reader(str(work / "piece.kmr")) as reader:
        assert reader.header.first == first
        preamble = reader.header.extra.get("preamble", 0)
        assert reader.total == preamble + until - first
        pages: dict[int, bytes] = {}
        for _ in range(preamble):
            if reader.next() == f.K_PAGE:
                pages[reader.gpa] = reader.payload()
        assert pages == table_pages(expected[:first])
        for record in expected[first:until]:
            reader.next()
            assert got(reader) == record
        assert reader.next() == 0


def table_pages(records: list[tuple[Any, ...]]) -> dict[int, bytes]:
    """What the table pages hold after ``records``."""
    pages: dict[int, bytearray] = {}
    for kind, *rest in records:
        if kind == f.K_PAGE:
            pages[rest[1]] = bytearray(rest[2])
        elif kind == f.K_STORE:
            gpa, data = rest[3], rest[6]
            pages[gpa & ~4095][gpa & 4095 : (gpa & 4095) + len(data)] = data
    return {gpa: bytes(page) for gpa, page in pages.items()}


def test_a_block_ends_when_it_is_full(tmp_path: Path) -> None:
    path = tmp_path / "x.kmr"
    with Writer(str(path), HEADER, level=1) as writer:
        for index in range(300):
            writer.encoder.snapshot(0, (index % 7) << 12, bytes(4096))
            assert writer.encoder.full == (index == 255)
            if writer.encoder.full:
                writer.flush()
        assert writer.blocks == 1
    assert summarize(str(path)).kinds["page"] == 300


def test_a_full_block_takes_no_more() -> None:
    encoder = Encoder(1)
    for _ in range(256):
        encoder.snapshot(0, 0, bytes(4096))
    with pytest.raises(RecordingError, match="full"):
        encoder.invlpg(0, 0)
    encoder.take()
    encoder.invlpg(0, 0)
    assert encoder.counted() == {"page": 256, "invlpg": 1}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda e: e.access(3, 0, 0, 0), "CPU 3"),
        (lambda e: e.access(0, 1, 0, 0), "access 0x1"),
        (lambda e: e.access(0, 0, 0x1001, 0x1002), "differ inside the page"),
        (lambda e: e.store(0, 2, 0xFFF, 0xFFF, b"12"), "2 bytes"),
        (lambda e: e.mmio(0, 2, 0, 0, b""), "0 bytes"),
        (lambda e: e.mmio(0, 2, 0, 0, bytes(65)), "65 bytes"),
        (lambda e: e.snapshot(0, 0x1001, bytes(4096)), "one page"),
        (lambda e: e.snapshot(0, 0x1000, bytes(4095)), "one page"),
        (lambda e: e.set_regs(0, 0, Registers(0, 0, 0, 0)), "cause 0"),
        (lambda e: e.remap(0, 0x1000, 0x1001, 1, (0, 0)), "whole pages"),
    ],
)
def test_a_record_that_cannot_be_is_refused_and_leaves_no_trace(call: Any, words: str) -> None:
    encoder = Encoder(3)
    encoder.access(1, 2, 0x1234, 0x5234)
    with pytest.raises(RecordingError, match=words):
        call(encoder)
    encoder.access(1, 2, 0x1234, 0x5234)
    other = Encoder(3)
    other.access(1, 2, 0x1234, 0x5234)
    other.access(1, 2, 0x1234, 0x5234)
    assert encoder.take() == other.take()


RAW = struct.Struct("<BBHHHQQQ")


def test_the_plugins_stream_becomes_the_same_records(tmp_path: Path) -> None:
    regs = struct.pack("<5Q", 1 << 31 | 1, TABLE, 1 << 5, 1 << 10, 7)
    stream = b"".join(
        [
            RAW.pack(f.K_PAGE, 0, 1, 0, 4096, 0, TABLE, 0) + bytes(range(256)) * 16,
            RAW.pack(f.K_REGS, f.W_CR3, 2, 0, 40, 0, 0, 0) + regs,
            RAW.pack(f.K_ACCESS, 0, 0, f.K_WRITE | f.K_AC, 0, 2**64 - 1, 0x6FFF, 0),
            RAW.pack(f.K_STORE, 0, 0, f.K_WRITE, 8, TABLE, TABLE, 0) + b"abcdefgh",
            RAW.pack(f.K_MMIO, 0, 1, 0, 4, 0xFEE00020, 0xFEE00020, 0) + b"1234",
            RAW.pack(f.K_INVLPG, 0, 1, 0, 0, 0xFFFF_8000_0000_1234, 0, 0),
            RAW.pack(f.K_INVPCID, 2, 1, 0, 0, 0x1234, 0, 9),
            RAW.pack(f.K_MAP, f.MAP_RAM, 0, 255, 0, 0x7000, 0xA0000, 0x20000),
        ]
    )
    with Writer(str(tmp_path / "x.kmr"), HEADER, level=1) as writer:
        at = 0
        for end in range(0, len(stream) + 1, 7):  # a pipe cuts anywhere
            at, control = writer.feed(stream[:end], at)
            assert not control
        at, control = writer.feed(stream + RAW.pack(64, 0, 0, 0, 0, 0, 0, 0), at)
        assert at == len(stream)
        assert control
        assert writer.encoder.stopped == FED_CONTROL
    with Reader(str(tmp_path / "x.kmr")) as reader:
        seen = []
        while reader.next():
            seen.append(got(reader))
    assert seen == [
        (f.K_PAGE, 1, TABLE, bytes(range(256)) * 16),
        (f.K_REGS, 2, f.W_CR3, (1 << 31 | 1, TABLE, 1 << 5, 1 << 10, 7)),
        (f.K_ACCESS, 0, f.K_WRITE | f.K_AC, 2**64 - 1, 0x6FFF),
        (f.K_STORE, 0, f.K_WRITE, TABLE, TABLE, 8, int.from_bytes(b"abcdefgh", "little"), b"abcdefgh"),
        (f.K_MMIO, 1, 0, 0xFEE00020, 0xFEE00020, 4, int.from_bytes(b"1234", "little"), b"1234"),
        (f.K_INVLPG, 1, 0xFFFF_8000_0000_1234),
        (f.K_INVPCID, 1, 2, 9, 0x1234),
        (f.K_MAP, 0, 0xA0000, 0x20000, f.MAP_RAM, 255, 0x7000),
    ]


def test_a_stream_that_the_plugin_cannot_have_written_is_refused() -> None:
    encoder = Encoder(1)
    with pytest.raises(RecordingError, match="kind 9"):
        encoder.feed(memoryview(RAW.pack(9, 0, 0, 0, 0, 0, 0, 0)), 0, 32)
    assert encoder.feed(memoryview(bytes(31)), 0, 31) == 0
    assert encoder.stopped == FED_ALL


def test_the_header_keeps_what_it_does_not_know(tmp_path: Path) -> None:
    header = f.Header(cpus=1, memory=(f.Region(0, 4096, "ram"),), maxphyaddr=36, entry=0x100000, extra={"colour": 7})
    with Writer(str(tmp_path / "x.kmr"), header) as writer:
        writer.encoder.invlpg(0, 0)
        writer.finish(cut=True, reason="interrupted", seen=99, stale=3)
    with Reader(str(tmp_path / "x.kmr")) as reader:
        assert reader.header == header
        assert reader.header.extra == {"colour": 7}
        assert reader.cut
        assert reader.trailer == f.Trailer(1, {"invlpg": 1}, True, "interrupted", 99, 3)


def test_the_words_of_an_access_are_those_of_the_cpu() -> None:
    from kvmmu.hw import cpu

    for name in ("K_WRITE", "K_USER", "K_FETCH", "K_AC", "K_IMPLICIT"):
        if hasattr(cpu, name):
            assert getattr(cpu, name) == getattr(f, name)


def test_records_of_smm_are_marked_and_have_a_map_of_their_own(tmp_path: Path) -> None:
    """Marked ones do not change what the others rely on; a piece keeps the marks and begins without them."""
    path = str(tmp_path / "x.kmr")
    header = f.Header(1024, (f.Region(0, 1 << 20, "ram"),), 40)
    with Writer(path, header) as writer:
        encoder: Any = writer.encoder
        encoder.access(1023, 0, 0x1000, 0x1000)
        encoder.smm = 1
        encoder.remap(1023, 0x3000_0000, 4096, f.MAP_RAM, (f.MEMORY_UNKNOWN, 0))
        encoder.set_regs(1023, f.W_INIT, Registers(0x10, 0, 0, 0, 0))
        encoder.snapshot(1023, 0x5000, bytes(4096))
        encoder.access(1023, f.K_WRITE | f.K_AC, 0x2000, 0x3000_0000)
        encoder.store(1023, f.K_WRITE, 0x6000, 0x6000, b"1234")
        encoder.smm = 0
        encoder.access(1, 0, 0x1000, 0x1000)
    seen = []
    with Reader(path) as reader:
        while kind := reader.next():
            seen.append((kind, reader.cpu, bool(reader.smm), reader.access))
            assert (" in SMM" in repr(reader)) == reader.smm
    assert [(smm, cpu) for _, cpu, smm, _ in seen] == [(False, 1023), *[(True, 1023)] * 5, (False, 1)]
    assert seen[4][3] == f.K_WRITE | f.K_AC
    piece = str(tmp_path / "p.kmr")
    cut(path, piece, 4, 7)
    with Reader(piece) as reader:
        marks = []
        while reader.next():
            marks.append(bool(reader.smm))
    assert marks == [True, True, False]
    # Without the mark the same access is one to no memory.
    with Writer(path, header) as writer:
        writer.encoder.access(0, 0, 0x2000, 0x3000_0000)
    with Reader(path) as reader, pytest.raises(RecordingError, match="which the memory map says is not memory"):
        reader.next()


def test_the_plugin_marks_smm_in_its_stream(tmp_path: Path) -> None:
    head = struct.Struct("<BBHHHQQQ")
    stream = head.pack(f.K_ACCESS, 128, 0, 0, 0, 0x1000, 0x1000, 0) + head.pack(f.K_INVPCID, 128 | 2, 0, 0, 0, 0, 0, 1)
    stream += head.pack(f.K_INVPCID, 2, 0, 0, 0, 0, 0, 1)
    with Writer(str(tmp_path / "x.kmr"), HEADER) as writer:
        writer.feed(stream)
    with Reader(str(tmp_path / "x.kmr")) as reader:
        read = [(reader.next(), bool(reader.smm), reader.invpcid_type) for _ in range(3)]
    assert read == [(f.K_ACCESS, True, 0), (f.K_INVPCID, True, 2), (f.K_INVPCID, False, 2)]


def test_memory_that_may_be_plugged_in_is_in_the_header(tmp_path: Path) -> None:
    header = f.Header(1, (f.Region(0, 1 << 20, "ram"),), 40, backends={"m1": 1 << 20}, memory_end=3 << 32)
    assert header.memories == ("ram", "m1")
    assert header.memory_sizes() == {"ram": 1 << 20, "m1": 1 << 20}
    path = str(tmp_path / "x.kmr")
    with Writer(path, header) as writer:
        writer.encoder.remap(0, 2 << 32, 1 << 20, f.MAP_RAM, (1, 0))
        writer.encoder.snapshot(0, 2 << 32, bytes(4096))
    with Reader(path) as reader:
        assert reader.header == header
        assert reader.skip(9) == 2
    for wrong in ({"backends": {"m1": 0}}, {"backends": {"m1": "1G"}}, {"memory_end": -1}, {"memory_end": 2 << 40}):
        with pytest.raises(ValueError, match=r"the size of 'm1' is|memory_end is"):
            f.Header(1, (f.Region(0, 1 << 20, "ram"),), 40, **wrong).check()  # type: ignore[arg-type]
