# SPDX-License-Identifier: GPL-2.0-only
"""Look at a whole recording, and cut self-contained pieces out of one."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import RecordingError
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
    W_INIT,
    Header,
    Trailer,
)
from .reader import Reader
from .writer import LEVEL, Writer


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
        """The same facts for JSON; ``version`` changes when a key changes its meaning."""
        header = self.header
        return {
            "version": 1,
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


def summarize(path: str) -> Summary:
    """Read the recording ``path`` to its end and count. Raises :class:`RecordingError`."""
    started = time.perf_counter()
    with Reader(path) as reader:
        reader.skip(reader.total)
    seconds = time.perf_counter() - started
    with Reader(path) as reader:
        trailer: Trailer | None = reader.trailer
        reason = trailer.reason if trailer else "unknown (no trailer)"
        summary = Summary(reader.header, bool(reader.cut), reason, decode_seconds=seconds)
        if trailer:
            summary.seen, summary.stale = trailer.seen, trailer.stale
            summary.left_out, summary.smm = trailer.reasons, trailer.smm
        while kind := reader.next():
            summary.kinds[KIND_NAMES[kind]] += 1
            summary.cpus[reader.cpu] += 1
            if kind in (K_ACCESS, K_STORE, K_MMIO):
                summary.accesses += 1
                summary.user += (reader.access & K_USER) != 0
            elif kind == K_REGS:
                summary.cr3s.add(reader.cr3)
        summary.records = reader.position
    return summary


@dataclass(slots=True)
class Moment:
    """Everything that a recording has said up to some record and that later records build on."""

    pages: dict[int, bytearray] = field(default_factory=dict)
    regs: dict[int, Registers] = field(default_factory=dict)
    maps: dict[tuple[int, int], tuple[int, int, int]] = field(default_factory=dict)

    def follow(self, reader: Reader) -> None:
        """Take in the reader's current record."""
        kind = reader.kind
        if reader.smm:
            return
        if kind == K_PAGE:
            self.pages[reader.gpa] = bytearray(reader.payload())
        elif kind == K_STORE:
            page, at = self.pages[reader.gpa & ~4095], reader.gpa & 4095
            page[at : at + reader.size] = reader.payload()
        elif kind == K_REGS:
            self.regs[reader.cpu] = Registers(reader.cr0, reader.cr3, reader.cr4, reader.efer, reader.pkru)
        elif kind == K_MAP:
            # The last word on a range comes last.
            self.maps.pop((reader.gpa, reader.map_size), None)
            self.maps[reader.gpa, reader.map_size] = (reader.map_kind, reader.map_memory, reader.map_offset)

    @property
    def records(self) -> int:
        """Number of records that :meth:`write` makes."""
        return len(self.maps) + len(self.pages) + len(self.regs)

    def write(self, writer: Writer) -> None:
        """Begin a piece: the memory map's changes, the table pages, then the registers that use them."""
        for (gpa, size), (kind, memory, offset) in self.maps.items():
            writer.encoder.remap(0, gpa, size, kind, (memory, offset))
            _flush_full(writer)
        for gpa, page in sorted(self.pages.items()):
            writer.encoder.snapshot(0, gpa, bytes(page))
            _flush_full(writer)
        for cpu, registers in sorted(self.regs.items()):
            writer.encoder.set_regs(cpu, W_INIT, registers)
            _flush_full(writer)


def cut(path: str, output: str, first: int = 0, until: int | None = None, level: int = LEVEL) -> Trailer:
    """Write records ``first`` (inclusive) to ``until`` (exclusive, None: the end) of ``path`` to ``output``, and
    return the trailer.

    The piece is self-contained: it begins with the memory map's changes, table pages and registers as of ``first``;
    its header says which record of the whole it begins with (``first``) and how many records that beginning has
    (``preamble``). A truncated recording is read as far as its whole blocks go. Raises :class:`RecordingError` for a
    range that ``path`` does not have.
    """
    if Path(output).exists() and Path(output).samefile(path):
        raise RecordingError(f"{output} is the recording itself: write the piece to another file")
    with Reader(path, salvage=True) as reader:
        end = reader.total if until is None else until
        if not 0 <= first < end or end > reader.total:
            raise RecordingError(f"{path} has the records 0 to {reader.total}: cannot cut --from {first} --until {end}")
        moment = Moment()
        while reader.position < first:
            reader.next()
            moment.follow(reader)
        header: Header = reader.header
        extra = header.extra | ({"preamble": moment.records} if first else {})
        with Writer(output, replace(header, first=header.first + first, extra=extra), level) as writer:
            if first:
                moment.write(writer)
            while reader.position < end:
                if reader.next() == 0:
                    raise RecordingError(f"{path} ends at record {reader.position}, before record {end}")
                copy_record(reader, writer.encoder)
                _flush_full(writer)
            return _finish_piece(reader, writer, end)


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
