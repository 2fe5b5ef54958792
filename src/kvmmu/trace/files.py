# SPDX-License-Identifier: GPL-2.0-only
"""Event files: ftrace text, JSON lines and Parquet, chosen by the file's suffix.

A writer is a sink: attach it to a :class:`~kvmmu.tracepoint.Trace`, set :attr:`EventWriter.position` as the replay
goes on, and close it at the end, also after an interrupt: what came before is then in the file, in whole lines or
whole groups. Text and JSON appear group by group; a Parquet file appears when it is closed (see ``parquet``).
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Protocol, Self

from ..errors import OutputError, UserError
from ..tracepoint import EVENTS, Event, VcpuEvent, event_cause, vcpu_of
from .text import FTRACE_HEADER, format_line, parse_line

#: (position, cpu, event): what a file keeps of each event.
Row = tuple[int, int, Event]

# The event that has a cause, told when the fault has been handled: the writer waits for it, up to so many groups.
_FAULT = "kvm_page_fault"
_MOST_GROUPS = 16


class _Stream(Protocol):
    """A file that takes groups of rows; `write` with the first_seq of the last group replaces that group."""

    def write(self, rows: Sequence[Row], first_seq: int) -> None: ...
    def finish(self) -> None: ...
    def abandon(self) -> None: ...


class _LineStream:
    # Lines at a known offset: a group whose write was interrupted is written again over its own beginning.
    __slots__ = ("_encode", "_fd", "_first_seq", "_is_seekable", "_size", "_start")

    def __init__(self, path: Path, header: str, encode: Callable[[int, Row], str]) -> None:
        self._encode = encode
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._is_seekable = True
        try:
            os.lseek(self._fd, 0, os.SEEK_CUR)
        except OSError:
            self._is_seekable = False
        self._first_seq = -1
        self._start = 0
        try:
            self._size = self._put(header.encode(), 0)
        except OSError:
            self.finish()
            raise

    def write(self, rows: Sequence[Row], first_seq: int) -> None:
        if first_seq != self._first_seq:
            self._start, self._first_seq = self._size, first_seq
        lines = [self._encode(first_seq + i, row) for i, row in enumerate(rows)]
        self._size = self._put("".join(lines).encode(), self._start)

    def _put(self, data: bytes, offset: int) -> int:
        view = memoryview(data)
        while view:
            done = os.pwrite(self._fd, view, offset) if self._is_seekable else os.write(self._fd, view)
            view = view[done:]
            offset += done
        return offset

    def finish(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    # What is in the file stays: whole groups, and perhaps the beginning of one more, cut off here.
    def abandon(self) -> None:
        if self._fd >= 0 and self._is_seekable:
            with suppress(OSError):
                os.ftruncate(self._fd, self._start)
        self.finish()


def _ftrace_line(_: int, row: Row) -> str:
    position, cpu, event = row
    return format_line(event, position, cpu) + "\n"


def _json_line(seq: int, row: Row) -> str:
    position, cpu, event = row
    name = event[0]
    system, fields = EVENTS[name]
    record: dict[str, object] = {"seq": seq, "position": position, "cpu": cpu, "vcpu": vcpu_of(event)}
    record |= {"event": name, "system": system}
    record |= dict(zip(fields, event[1:], strict=True))
    if name == _FAULT:
        record["cause"] = event_cause(event)
    return json.dumps(record, default=bytes.hex) + "\n"


def _open_ftrace(path: Path) -> _Stream:
    return _LineStream(path, FTRACE_HEADER, _ftrace_line)


def _open_jsonl(path: Path) -> _Stream:
    return _LineStream(path, "", _json_line)


def _open_parquet(path: Path) -> _Stream:
    from .parquet import ParquetStream

    return ParquetStream(path)


#: Suffix -> (how to open it, events in a group).
_KINDS: dict[str, tuple[Callable[[Path], _Stream], int]] = {
    ".ftrace": (_open_ftrace, 4096),
    ".txt": (_open_ftrace, 4096),
    ".jsonl": (_open_jsonl, 4096),
    ".parquet": (_open_parquet, 1 << 16),
}

#: Suffixes of event files.
SUFFIXES = tuple(_KINDS)


def _kind_of(path: Path) -> tuple[Callable[[Path], _Stream], int]:
    kind = _KINDS.get(path.suffix)
    if kind is None:
        known = ", ".join(SUFFIXES)
        raise UserError(f"{path}: an event file's suffix says its form, and {path.suffix!r} is none of {known}")
    return kind


# What is no fault of the name: there is a file, and it takes no more.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _cannot_write(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error).partition("\n")[0]
    hint = ": free some space, or write the events elsewhere" if error.errno in _FULL[:2] else ""
    return OutputError(f"{path}: cannot write events: {reason}{hint}")


class EventWriter:
    """A sink that writes events to a file; its form is the suffix: .ftrace or .txt (text), .jsonl, .parquet.

    ``position`` is the number of the record that is played and ``cpu`` the vCPU that plays it: the caller keeps them
    up to date, and each event is written with them. ``count`` is the number of events so far. Raises UserError
    when the suffix is unknown or the file cannot be made, OutputError when it cannot be written; after that the writer
    takes no more events.
    """

    __slots__ = ("_fault", "_group", "_is_open", "_rows", "_seq", "_stream", "cpu", "path", "position")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.position = 0
        self.cpu = 0
        self._rows: list[Row] = []
        # Which of the rows is the newest fault; -1: none.
        self._fault = -1
        self._seq = 0
        open_stream, self._group = _kind_of(self.path)
        self._is_open = False
        try:
            self._stream = open_stream(self.path)
        except OSError as error:
            refusal = _cannot_write(self.path, error)
            raise refusal if error.errno in _FULL else UserError(*refusal.args) from error
        self._is_open = True

    def __call__(self, event: Event) -> None:
        """Take ``event``; every now and then this writes a group."""
        if event[0] == _FAULT:
            self._fault = len(self._rows)
        self._rows.append((self.position, self.cpu, event))
        if len(self._rows) >= self._group:
            self._write(self._nr_decided())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def count(self) -> int:
        """Events written or waiting to be."""
        return self._seq + len(self._rows)

    def flush(self) -> None:
        """Hand the waiting events to the file; the cause of a fault that is being handled stays unknown there."""
        self._write(len(self._rows))

    # How many rows can be written: those before a fault that is still handled, as long as not too many wait for it.
    def _nr_decided(self) -> int:
        rows = self._rows
        if self._fault < 0 or len(rows) >= _MOST_GROUPS * self._group:
            return len(rows)
        event = rows[self._fault][2]
        return self._fault if isinstance(event, VcpuEvent) and event.cause is None else len(rows)

    def _write(self, count: int) -> None:
        if not self._is_open:
            raise UserError(f"{self.path}: this event file is closed and takes no more events")
        rows = self._rows[:count]
        try:
            if rows:
                self._stream.write(rows, self._seq)
        except OSError as error:
            self._fail(error)
        self._rows, self._seq, self._fault = self._rows[count:], self._seq + count, max(self._fault - count, -1)

    def close(self) -> None:
        """Write what is left and end the file; a second call does nothing."""
        if not self._is_open:
            return
        self.flush()
        try:
            self._stream.finish()
        except OSError as error:
            self._fail(error)
        self._is_open = False

    # What the disk refuses leaves the file closed.
    def _fail(self, error: OSError) -> NoReturn:
        self._is_open = False
        self._stream.abandon()
        raise _cannot_write(self.path, error) from error


def read_event_file(path: str | os.PathLike[str]) -> Iterator[Row]:
    """(position, cpu, event) of each event in a file that :class:`EventWriter` made; text carries less (``text``).

    Lines of a text that are no events are passed over. Raises UserError for an unknown suffix, a file that cannot be
    read, and a line of JSON that is not an event's.
    """
    place = Path(path)
    _, group = _kind_of(place)
    if not place.is_file():
        raise UserError(f"{place}: no such event file")
    if place.suffix == ".parquet":
        from .parquet import read_parquet_rows

        yield from read_parquet_rows(place, group)
        return
    decode = _read_json if place.suffix == ".jsonl" else parse_line
    with place.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = decode(line)
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(f"{place}, line {number}: not an event as EventWriter writes it: {error}") from error
            if row is not None:
                yield row


def _read_json(line: str) -> Row | None:
    record = json.loads(line)
    name = record["event"]
    values = [record[field] for field in EVENTS[name][1]]
    if name == "kvm_emulate_insn":
        values[3] = bytes.fromhex(values[3])
    # Files of before events knew their vCPU, or their cause, do not tell it.
    return record["position"], record["cpu"], VcpuEvent((name, *values), record.get("vcpu"), record.get("cause"))
