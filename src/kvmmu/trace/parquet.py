# SPDX-License-Identifier: GPL-2.0-only
"""Events as polars data frames and Parquet files: one wide table, streamed.

Columns: ``seq`` (number of the event), ``position`` (number of the record that caused it), ``cpu`` (whose record
that was), ``vcpu`` (which vCPU worked; null: the process), ``event``, ``system``, ``cause`` (why a fault happened; null
for other events), then every field that any event has; a field that the row's event has not is null. Addresses,
frame numbers, entries and ids are UInt64.

polars writes a Parquet file as a whole, so a stream is written as numbered parts in a directory beside the file,
each of one group of events, and joined by polars' streaming engine at the end: memory holds one group. After an
interrupt the parts written so far are joined as well. A killed process leaves the parts, each a Parquet file.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from ..tracepoint import EVENTS, Event, VcpuEvent, event_cause, vcpu_of

#: (position, cpu, event): what a file keeps of each event.
Row = tuple[int, int, Event]

_BOOLEAN = frozenset({
    "unsync", "created", "r", "x", "has_error", "reinjected", "immediate_exit", "write", "gpa_match", "failed",
})  # fmt: skip
_SIGNED = {"u": pl.Int8(), "ret": pl.Int32(), "errno": pl.Int32()}


def _column_type(field: str) -> pl.DataType:
    if field in _BOOLEAN:
        return pl.Boolean()
    if field == "insn":
        return pl.Binary()
    return _SIGNED.get(field, pl.UInt64())


def _make_schema() -> dict[str, pl.DataType]:
    schema: dict[str, pl.DataType] = {
        "seq": pl.UInt64(),
        "position": pl.UInt64(),
        "cpu": pl.UInt64(),
        "vcpu": pl.UInt32(),
        "event": pl.String(),
        "system": pl.String(),
        "cause": pl.String(),
    }
    for _, fields in EVENTS.values():
        schema |= {field: _column_type(field) for field in fields}
    return schema


#: Column -> type of the wide table.
SCHEMA = _make_schema()


def _column(field: str, values: Iterable[object]) -> pl.Series:
    kind = SCHEMA[field]
    if isinstance(kind, pl.Boolean):
        return pl.Series(field, [bool(value) for value in values], dtype=kind)
    return pl.Series(field, list(values), dtype=kind)


def _frame_of_name(name: str, rows: Sequence[tuple[int, Row]]) -> pl.DataFrame:
    system, fields = EVENTS[name]
    columns = [
        _column("seq", (seq for seq, _ in rows)),
        _column("position", (row[0] for _, row in rows)),
        _column("cpu", (row[1] for _, row in rows)),
        _column("vcpu", (vcpu_of(row[2]) for _, row in rows)),
        _column("cause", (event_cause(row[2]) for _, row in rows)),
    ]
    columns += [_column(field, (row[2][1 + i] for _, row in rows)) for i, field in enumerate(fields)]
    frame = pl.DataFrame(columns)
    return frame.with_columns(event=pl.lit(name), system=pl.lit(system))


def rows_to_frame(rows: Sequence[Row], first_seq: int = 0) -> pl.DataFrame:
    """The wide table of ``rows``; the first event has number ``first_seq``."""
    by_name: dict[str, list[tuple[int, Row]]] = {}
    for seq, row in enumerate(rows, first_seq):
        by_name.setdefault(row[2][0], []).append((seq, row))
    frames = [_frame_of_name(name, named) for name, named in by_name.items()]
    return pl.concat([pl.DataFrame(schema=SCHEMA), *frames], how="diagonal").sort("seq")


def to_frame(events: Iterable[Event]) -> pl.DataFrame:
    """The wide table of events that were kept in memory (a ring, a list); positions are their numbers."""
    return rows_to_frame([(seq, 0, event) for seq, event in enumerate(events)])


def frame_rows(frame: pl.DataFrame) -> Iterator[Row]:
    """The events of a wide table, with their positions, in the table's order."""
    for row in frame.iter_rows(named=True):
        name = row["event"]
        event = (name, *(row[field] for field in EVENTS[name][1]))
        # A file of before events knew their vCPU, or their cause, has no such column.
        yield row["position"], row["cpu"], VcpuEvent(event, row.get("vcpu"), row.get("cause"))


# polars reports some refusals of the disk as errors of its own.
@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except pl.exceptions.PolarsError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise OSError(str(error)) from error
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


class ParquetStream:
    """A Parquet file that is written group by group. Raises OSError when the disk refuses."""

    __slots__ = ("_path", "_parts")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parts = Path(tempfile.mkdtemp(prefix=f"{path.name}.", suffix=".parts", dir=path.parent))

    def write(self, rows: Sequence[Row], first_seq: int) -> None:
        """Append one group; the same ``first_seq`` again replaces that group (after an interrupt)."""
        part = self._parts / f"{first_seq:020}.parquet"
        unfinished = part.with_suffix(".tmp")
        frame = rows_to_frame(rows, first_seq)
        with _disk_errors():
            frame.write_parquet(unfinished, compression="zstd")
        unfinished.replace(part)

    def finish(self) -> None:
        """Join the parts into the file, which appears whole or not at all."""
        joined = self._parts / "joined"
        parts = sorted(self._parts.glob("*.parquet"))
        with _disk_errors():
            if parts:
                pl.scan_parquet(parts).sink_parquet(joined, compression="zstd", maintain_order=True)
            else:
                pl.DataFrame(schema=SCHEMA).write_parquet(joined)
        joined.replace(self._path)
        self.abandon()

    def abandon(self) -> None:
        """Remove what was written so far."""
        shutil.rmtree(self._parts, ignore_errors=True)


def read_parquet_rows(path: Path, group: int) -> Iterator[Row]:
    """The events of a Parquet file, read ``group`` at a time."""
    start = 0
    while True:
        frame = pl.scan_parquet(path).slice(start, group).collect()
        yield from frame_rows(frame)
        start += group
        if frame.height < group:
            return
