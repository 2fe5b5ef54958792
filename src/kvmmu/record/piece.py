# SPDX-License-Identifier: GPL-2.0-only
"""Look at a whole recording, and cut self-contained pieces out of one."""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, OutputError, RecorderError, RecordingError
from .encoder import Encoder, Registers
from .format import (
    K_ACCESS,
    K_INVLPG,
    K_INVPCID,
    K_MAP,
    K_MMIO,
    K_PAGE,
    K_REGS,
    K_STORE,
    K_USER,
    KIND_NAMES,
    MAP_IO,
    MAP_RAM,
    MEMORY_UNKNOWN,
    W_INIT,
    Header,
    Trailer,
)
from .memmap import OTHER, Change, MemoryMap
from .reader import Reader
from .writer import LEVEL, Writer

#: Records between two calls of a progress function.
PROGRESS_RECORDS = 20_000

# Name of a backing memory, offset in it.
_Place = tuple[str, int]


@dataclass(slots=True)
class Summary:
    """Facts about a recording, counted record by record.

    ``accesses`` are ACCESS, STORE and MMIO records, ``user`` those at CPL 3, ``cr3s`` the distinct values of CR3,
    ``decode_seconds`` the time that decoding alone took.
    """

    header: Header
    cut: bool
    reason: str
    records: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    cpus: Counter[int] = field(default_factory=Counter)
    accesses: int = 0
    user: int = 0
    cr3s: set[int] = field(default_factory=set)
    seen: int = 0
    stale: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    smm: int = 0
    decode_seconds: float = 0.0

    @property
    def user_share(self) -> float:
        """Part of the accesses that were made at CPL 3, 0 to 1."""
        return self.user / self.accesses if self.accesses else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The same facts for JSON."""
        header = self.header
        return {
            "format": ".".join(map(str, header.version)),
            "records": self.records,
            "kinds": {name: self.kinds[name] for name in KIND_NAMES[1:]},
            "cpus": {str(cpu): self.cpus[cpu] for cpu in range(header.cpus)},
            "accesses": self.accesses,
            "user_share": round(self.user_share, 6),
            "cr3s": len(self.cr3s),
            "seen": self.seen,
            "stale": self.stale,
            "left_out": self.left_out,
            "smm": self.smm,
            "cut": self.cut,
            "reason": self.reason,
            "decode_seconds": round(self.decode_seconds, 6),
            "machine": {
                "maxphyaddr": header.maxphyaddr,
                "features": list(header.features),
                "qemu": header.qemu,
                "machine": header.machine,
                "cpu": header.cpu_model,
                "command": list(header.command),
                "start": header.start,
                "entry": header.entry,
                "first": header.first,
                "recorded_by": header.recorded_by,
                "memory": [
                    {"gpa": r.gpa, "size": r.size, "kind": r.kind, "memory": r.memory, "offset": r.offset}
                    for r in header.memory
                ],
            },
        }


def summarize(path: str, progress: Callable[[int, int], None] | None = None) -> Summary:
    """Read the recording ``path`` to its end and count. ``progress`` is called now and then with the record reached
    and the number of records. Raises :class:`RecordingError`.
    """
    started = time.perf_counter()
    with Reader(path) as reader:
        while reader.skip(PROGRESS_RECORDS):
            pass
    seconds = time.perf_counter() - started
    with Reader(path) as reader:
        trailer: Trailer | None = reader.trailer
        reason = trailer.reason if trailer else reader.loss() or "unknown (no trailer)"
        summary = Summary(reader.header, bool(reader.cut), reason, decode_seconds=seconds)
        if trailer:
            summary.seen, summary.stale = trailer.seen, trailer.stale
            summary.left_out, summary.smm = trailer.reasons, trailer.smm
        while kind := reader.next():
            summary.kinds[KIND_NAMES[kind]] += 1
            summary.cpus[reader.cpu] += 1
            if progress is not None and reader.position % PROGRESS_RECORDS == 0:
                progress(reader.position, reader.total)
            if kind in (K_ACCESS, K_STORE, K_MMIO):
                summary.accesses += 1
                summary.user += (reader.access & K_USER) != 0
            elif kind == K_REGS:
                summary.cr3s.add(reader.cr3)
        summary.records = reader.position
    return summary


class Moment:
    """Everything that a recording has said up to some record and that later records build on.

    Table pages are kept by the memory behind them: two gpas may show the same bytes, and one gpa different bytes at
    different times.
    """

    def __init__(self, header: Header) -> None:
        self.header = header
        self.map = MemoryMap(header)
        self.regs: dict[int, Registers] = {}
        # Where each table page that was recorded lay when it was seen last, and what the memory there holds.
        self.seen: dict[int, _Place] = {}
        self.content: dict[_Place, bytearray] = {}

    def follow(self, reader: Reader) -> None:
        """Take in the reader's current record."""
        kind = reader.kind
        if reader.smm:
            return
        if kind == K_PAGE:
            self.content[self._see(reader.gpa)] = bytearray(reader.payload())
        elif kind == K_STORE:
            page = self.content.setdefault(self._see(reader.gpa & ~4095), bytearray(4096))
            at = reader.gpa & 4095
            page[at : at + reader.size] = reader.payload()
        elif kind == K_REGS:
            self.regs[reader.cpu] = Registers(reader.cr0, reader.cr3, reader.cr4, reader.efer, reader.pkru)
        elif kind == K_MAP:
            self.map.change(Change(reader.gpa, reader.map_size, reader.map_kind, reader.map_memory, reader.map_offset))

    # The place of the table page at gpa.
    def _see(self, gpa: int) -> _Place:
        region = self.map.find(gpa)
        place = (OTHER, gpa) if region is None else (region.memory, region.offset + gpa - region.gpa)
        self.seen[gpa] = place
        return place

    @property
    def records(self) -> int:
        """Number of records that :meth:`write` makes."""
        hidden = sum(self.map.find(gpa) is None for gpa in self.seen)
        return 2 * hidden + len(self.seen) + sum(1 for _ in self.map.changes_from(self.header)) + len(self.regs)

    def write(self, writer: Writer) -> None:
        """Begin a piece: table pages that are no memory any more, the map's changes, table pages, then registers.

        A page that is no memory is shown for a moment where it was: later records may bring it back, or store to it.
        """
        encoder = writer.encoder
        numbers = {name: number for number, name in enumerate(self.map.names)}
        for gpa, place in sorted(self.seen.items()):
            if self.map.find(gpa) is None:
                name, offset = place
                backing = (numbers[name], offset) if name in numbers else (MEMORY_UNKNOWN, 0)
                encoder.remap(0, gpa, 4096, MAP_RAM, backing)
                _flush_full(writer)
                encoder.snapshot(0, gpa, bytes(self.content[place]))
                _flush_full(writer)
                encoder.remap(0, gpa, 4096, MAP_IO, (MEMORY_UNKNOWN, 0))
                _flush_full(writer)
        for change in self.map.changes_from(self.header):
            encoder.remap(0, change.gpa, change.size, change.kind, (change.memory, change.offset))
            _flush_full(writer)
        for gpa, place in sorted(self.seen.items()):
            if self.map.find(gpa) is not None:
                encoder.snapshot(0, gpa, bytes(self.content[place]))
                _flush_full(writer)
        for cpu, registers in sorted(self.regs.items()):
            encoder.set_regs(cpu, W_INIT, registers)
            _flush_full(writer)


def check_range(path: str, total: int, first: int, until: int | None, verb: str) -> int:
    """The end of the records ``[first, until)``, None being all, of a recording that has ``total``.

    :raises ConfigError: it does not have them; the text says that it cannot ``verb`` them.
    """
    end = total if until is None else until
    if not 0 <= first < end or end > total:
        have = f"has the records 0 to {total - 1}" if total else "has no records"
        raise ConfigError(f"{path} {have}: cannot {verb} --from {first} --until {end}")
    return end


def cut(
    path: str,
    output: str,
    first: int = 0,
    until: int | None = None,
    level: int = LEVEL,
    progress: Callable[[int, int], None] | None = None,
) -> Trailer:
    """Write records ``first`` (inclusive) to ``until`` (exclusive, None: the end) of ``path`` to ``output``, and
    return the trailer.

    The piece is self-contained: it begins with the memory map's changes, table pages and registers as of ``first``;
    its header says which record of the whole it begins with (``first``) and how many records that beginning has
    (``preamble``). A truncated recording is read as far as its whole blocks go. ``output`` appears when it is whole,
    and not at all after an error. ``progress`` is called now and then with the record reached and the last one.

    :raises RecordingError: ``path`` cannot be used.
    :raises ConfigError: a range that ``path`` does not have, an ``output`` that cannot be written.
    :raises OutputError: ``output`` takes no more: the disk is full.
    """
    if Path(output).exists() and Path(output).samefile(path):
        raise ConfigError(f"{output} is the recording itself: write the piece to another file")
    with Reader(path) as reader:
        if reader.total == 0 and first == 0 and until is None:
            raise RecordingError(f"{path} has no records: there is nothing to cut")
        end = check_range(path, reader.total, first, until, "cut")
        moment = Moment(reader.header)
        while reader.position < first:
            _read_on(reader, end, progress)
            moment.follow(reader)
        with _new_file(output) as unfinished:
            try:
                return _write_piece(reader, unfinished, (first, end), moment, level, progress)
            except RecorderError as error:
                raise _cannot_write(output, error.__cause__ or error) from error


def _write_piece(
    reader: Reader,
    output: str,
    places: tuple[int, int],
    moment: Moment,
    level: int,
    progress: Callable[[int, int], None] | None,
) -> Trailer:
    first, end = places
    header: Header = reader.header
    extra = header.extra | ({"preamble": moment.records} if first else {})
    with Writer(output, replace(header, first=header.first + first, extra=extra), level) as writer:
        if first:
            moment.write(writer)
        while reader.position < end:
            _read_on(reader, end, progress)
            copy_record(reader, writer.encoder)
            _flush_full(writer)
        return _finish_piece(reader, writer, end)


def _read_on(reader: Reader, end: int, progress: Callable[[int, int], None] | None) -> None:
    if reader.next() == 0:
        raise RecordingError(f"{reader.path} ends at record {reader.position}, before record {end}")
    if progress is not None and reader.position % PROGRESS_RECORDS == 0:
        progress(reader.position, end)


def _cannot_write(output: str, error: BaseException) -> OutputError:
    reason = error.strerror if isinstance(error, OSError) else None
    return OutputError(f"{output}: cannot be written: {reason or error}; there is no piece")


# A name to write to in the place of `output`, which it becomes at the end; what is no file is written to directly.
@contextmanager
def _new_file(output: str) -> Iterator[str]:
    path = Path(output)
    if path.is_dir():
        raise ConfigError(f"--output {output}: is a directory, name a file")
    if path.exists() and not path.is_file():
        yield output
        return
    try:
        path = path.resolve()
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
        unfinished.touch()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _cannot_write(output, error) from error
        raise ConfigError(f"--output {output}: cannot be written: {error.strerror or error}") from error
    try:
        yield str(unfinished)
        try:
            unfinished.replace(path)
        except OSError as error:
            raise _cannot_write(output, error) from error
    finally:
        unfinished.unlink(missing_ok=True)


def copy_record(reader: Reader, encoder: Encoder) -> None:
    """Encode the reader's current record again."""
    kind, cpu = reader.kind, reader.cpu
    encoder.smm = reader.smm
    if kind == K_ACCESS:
        encoder.access(cpu, reader.access, reader.gva, reader.gpa)
    elif kind == K_STORE:
        encoder.store(cpu, reader.access, reader.gva, reader.gpa, reader.payload())
    elif kind == K_MMIO:
        encoder.mmio(cpu, reader.access, reader.gva, reader.gpa, reader.payload())
    elif kind == K_PAGE:
        encoder.snapshot(cpu, reader.gpa, reader.payload())
    elif kind == K_REGS:
        encoder.set_regs(cpu, reader.what, Registers(reader.cr0, reader.cr3, reader.cr4, reader.efer, reader.pkru))
    elif kind == K_INVLPG:
        encoder.invlpg(cpu, reader.gva)
    elif kind == K_INVPCID:
        encoder.invpcid(cpu, reader.invpcid_type, reader.pcid, reader.gva)
    elif kind == K_MAP:
        encoder.remap(cpu, reader.gpa, reader.map_size, reader.map_kind, (reader.map_memory, reader.map_offset))


# A piece that reaches the end of its recording ends as that one did.
def _finish_piece(reader: Reader, writer: Writer, end: int) -> Trailer:
    whole: Trailer | None = reader.trailer
    if end < reader.total:
        return writer.finish(reason="the piece ends here")
    return writer.finish(bool(reader.cut), whole.reason if whole else "the recording has no trailer")


def _flush_full(writer: Writer) -> None:
    if writer.encoder.full:
        writer.flush()
