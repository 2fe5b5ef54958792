# SPDX-License-Identifier: GPL-2.0-only
"""Run a guest under QEMU with the plugin, and turn the plugin's stream into a recording.

QEMU writes records to a pipe; this process encodes, compresses and writes them. At the start, and when the host
bridge may have changed the memory map, the plugin stops the guest, and QEMU's monitor is asked. Whatever ends it (a
guest that powers off, Ctrl-C, a crash of the guest or of QEMU) the file ends in a trailer that says what happened;
after a full disk it ends in whole blocks and has no trailer.
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from .. import _build
from ..errors import RecorderError
from .build_plugin import build_plugin
from .format import MAP_IO, MAP_NAMES, MEMORY_UNKNOWN, RAW_CONTROL, RAW_HEAD, Header, Region, Trailer
from .kernel_image import entry_range
from .qemu import Prepared, find_qemu, prepare, quote_value
from .qmp import Qmp, cpu_facts, memory_map
from .writer import LEVEL, Writer

_HEAD = struct.Struct("<BBHHHQQQ")
_HELLO, _START, _SYNC, _END = range(RAW_CONTROL, RAW_CONTROL + 4)
_CHUNK = 1 << 20
_GUEST_ENDS = ("guest-shutdown", "guest-reset")


@dataclass(frozen=True, slots=True)
class Start:
    """What begins the recording: ``kernel`` (first instruction in the kernel image), ``firmware`` (the first one at
    all), ``user`` (the first at CPL 3), ``port`` (the guest's first OUT to I/O port ``port``).
    """

    when: str = "kernel"
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Start:
        """``kernel``, ``firmware``, ``user`` or ``port:NUMBER``. Raises :class:`RecorderError`."""
        when, _, number = text.partition(":")
        if when in ("kernel", "firmware", "user") and not number:
            return cls(when)
        try:
            port = int(number, 0)
        except ValueError:
            port = -1
        if when == "port" and 0 <= port <= 0xFFFF:
            return cls(when, port)
        raise RecorderError(
            f"a recording cannot start at {text!r}: must be kernel, firmware, user or port:NUMBER (0 to 0xffff)"
        )

    def __str__(self) -> str:
        return f"port:{self.port:#x}" if self.when == "port" else self.when


@dataclass(frozen=True, slots=True)
class Order:
    """A recording to make: the QEMU command line ``command`` into the file ``output``."""

    output: str
    command: tuple[str, ...]
    start: Start = Start()
    level: int = LEVEL


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a recording is: records and bytes in the file."""

    records: int
    size: int


def record(order: Order, say: Callable[[str], None], show: Callable[[Progress], None] | None = None) -> Trailer:
    """Run the guest to its end and return the recording's trailer.

    ``say`` gets sentences for the user (what was added to the command line), ``show`` the progress, a few times a
    second. Ctrl-C ends the guest and leaves a recording that says it is cut. Raises :class:`RecorderError`: no QEMU,
    one too old or that fails to start, no compiler, a guest that cannot be recorded or ends before the start, a file
    that cannot be written.
    """
    if not order.command:
        raise RecorderError("no guest: give QEMU's command line behind --")
    program, version = find_qemu(order.command[0])
    plugin = build_plugin()
    with tempfile.TemporaryDirectory(prefix="kvmmu-", dir=_work_parent(order)) as work:
        return _Session(order, (program, version), str(plugin), work).run(say, show)


# A place for the RAM file: memory if it fits there twice over, else the usual temporary directory.
def _work_parent(order: Order) -> str | None:
    shm = Path("/dev/shm")  # noqa: S108 (a directory of random name is made in it)
    words = prepare((*order.command,), "", "").ram_size
    if shm.is_dir() and os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 2 * words:
        return str(shm)
    return None


class _Session:
    """One run of QEMU: its process, its pipes, the writer once the recording has begun."""

    __slots__ = (
        "control",
        "interrupted",
        "order",
        "prepared",
        "process",
        "qmp",
        "regions",
        "show",
        "stream",
        "version",
        "work",
        "writer",
    )

    def __init__(self, order: Order, qemu: tuple[str, str], plugin: str, work: str) -> None:
        self.order = order
        self.work = work
        self.version = qemu[1]
        self.interrupted = False
        self.writer: Writer | None = None
        self.qmp: Qmp | None = None
        self.regions: tuple[Region, ...] = ()
        self.show: Callable[[Progress], None] | None = None
        read_end, out = os.pipe()
        answers, write_end = os.pipe()
        try:
            self.stream: BinaryIO = os.fdopen(read_end, "rb", buffering=0)
            self.control: BinaryIO = os.fdopen(write_end, "wb", buffering=0)
            self.prepared = self._prepare((qemu[0], *order.command[1:]), plugin, (out, answers))
            self.process = subprocess.Popen(self.prepared.command, pass_fds=(out, answers))
        except OSError as error:
            raise RecorderError(f"cannot start {qemu[0]}: {error.strerror or error}") from error
        finally:
            os.close(out)
            os.close(answers)

    def run(self, say: Callable[[str], None], show: Callable[[Progress], None] | None) -> Trailer:
        """Record to the end."""
        say("added to QEMU's command line: " + " ".join(self.prepared.added))
        self.show = show
        restore = self._catch_signals()
        try:
            try:
                end = self._pump()
            except RecorderError:
                # A QEMU that was told to end does not answer any more.
                if not self.interrupted:
                    raise
                end = (0, 0, 0, 0)
            return self._finish(end)
        except BaseException as error:
            self.process.kill()
            if self.writer is not None and not self.writer.file.closed:
                self.writer.finish(cut=True, reason=f"the recorder stopped: {error}")
            raise
        finally:
            self.process.wait()
            restore()
            self.stream.close()
            self.control.close()
            if self.qmp is not None:
                self.qmp.close()

    # Ctrl-C and SIGTERM end the guest, not the reading of what it still writes; the second one ends it harder.
    def _catch_signals(self) -> Callable[[], None]:
        def stop(number: int, frame: FrameType | None) -> None:
            self.process.kill() if self.interrupted else self.process.terminate()
            self.interrupted = True

        if threading.current_thread() is not threading.main_thread():
            return lambda: None
        before = [(number, signal.signal(number, stop)) for number in (signal.SIGINT, signal.SIGTERM)]

        def restore() -> None:
            for number, handler in before:
                signal.signal(number, handler)

        return restore

    # The command line, the RAM file, the plugin's arguments.
    def _prepare(self, command: tuple[str, ...], plugin: str, fds: tuple[int, int]) -> Prepared:
        first = prepare(command, "", self.work)
        start = self.order.start
        low, high = entry_range(first.kernel if start.when == "kernel" else None)
        arguments = {"ram": quote_value(first.ram_path), "out": fds[0], "control": fds[1]}
        if start.when == "port":
            arguments |= {"start": "port", "port": start.port}
        else:
            arguments |= {"start": "entry" if start.when == "kernel" else start.when, "lo": low, "hi": high}
        option = ",".join([quote_value(plugin), *(f"{name}={value}" for name, value in arguments.items())])
        if first.makes_ram:
            with open(first.ram_path, "wb") as ram:
                ram.truncate(first.ram_size)
        return prepare(command, option, self.work)

    # Read the stream to its end; return the END record's four numbers, zeros when there was none.
    def _pump(self) -> tuple[int, int, int, int]:
        pending = bytearray()
        end = (0, 0, 0, 0)
        while chunk := self.stream.read(_CHUNK):
            pending += chunk
            at = 0
            while True:
                if self.writer is not None:
                    at, _ = self.writer.feed(pending, at)
                if len(pending) - at < RAW_HEAD:
                    break
                kind, _, _, access, _, gva, gpa, value = _HEAD.unpack_from(pending, at)
                if kind < RAW_CONTROL:
                    break
                at += RAW_HEAD
                if kind == _START:
                    self._begin(gpa)
                elif kind == _SYNC:
                    self._sync()
                elif kind == _END:
                    end = (gva, gpa, access, value)
            del pending[:at]
            if self.show is not None and self.writer is not None:
                self.show(Progress(self.writer.records + self.writer.encoder.records, self.writer.written))
        return end

    # The plugin stands still at the first recorded instruction: write the header, tell it the memory map.
    def _begin(self, where: int) -> None:
        self.qmp = Qmp(f"{self.work}/qmp")
        self.regions = memory_map(self.qmp, self.prepared.ram_id)
        cpus, bits, features = cpu_facts(self.qmp)
        order, prepared = self.order, self.prepared
        header = Header(
            cpus=cpus,
            memory=tuple(sorted(self.regions, key=lambda region: (region.memory != "ram", region.gpa))),
            maxphyaddr=bits,
            features=features,
            qemu=self.version,
            machine=prepared.machine,
            cpu_model=prepared.cpu_model,
            command=order.command,
            start=str(order.start),
            entry=where if where < prepared.ram_size else None,
            recorded_by=f"kvmmu {_build.VERSION}",
        )
        self.writer = Writer(order.output, header, order.level)
        self._answer(())

    # The host bridge was written to: tell the plugin what of the memory map is different now.
    def _sync(self) -> None:
        if self.qmp is None:
            return
        now = memory_map(self.qmp, self.prepared.ram_id)
        changes = map_changes(self.regions, now)
        self.regions = now
        self._answer(changes)

    # Tell the plugin the memory map and what of it is new.
    def _answer(self, changes: tuple[Region, ...]) -> None:
        memories = self.writer.header.memories if self.writer is not None else ()
        lines = []
        for what, region in [*(("m", region) for region in self.regions), *(("c", region) for region in changes)]:
            memory = memories.index(region.memory) if region.memory in memories else MEMORY_UNKNOWN
            kind = MAP_NAMES.index(region.kind)
            lines.append(f"{what} {region.gpa:x} {region.size:x} {kind:x} {memory:x} {region.offset:x}\n")
        self.control.write("".join([*lines, ".\n"]).encode())

    # QEMU is gone: say in the trailer what ended it.
    def _finish(self, end: tuple[int, int, int, int]) -> Trailer:
        status = self.process.wait()
        if self.qmp is not None:
            self.qmp.drain()
        if self.writer is None:
            raise RecorderError(_why_nothing(status, self.interrupted, self.order.start))
        reason = self.qmp.shutdown_reason() if self.qmp is not None else None
        cut, text = _ending(reason, status, self.interrupted, (end[2], end[3]))
        return self.writer.finish(cut, text, end[0], end[1])


# What ended the guest, in words, and whether that cuts the recording short.
def _ending(reason: str | None, status: int, interrupted: bool, port: tuple[int, int]) -> tuple[bool, str]:
    if interrupted:
        return True, "interrupted"
    if reason is None:
        return True, f"QEMU ended by signal {-status}" if status < 0 else f"QEMU ended with status {status}"
    number, value = port
    asked = number in (0xCF9, 0x92) or (number == 0x64 and value & 0xFF == 0xFE) or 0x600 <= number < 0x700
    if reason == "guest-reset" and not asked:
        return True, "the guest crashed (reset without asking for it)"
    return reason not in _GUEST_ENDS, reason


def _why_nothing(status: int, interrupted: bool, start: Start) -> str:
    if interrupted:
        return "interrupted before the recording began; nothing was recorded"
    if status != 0:
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return f"QEMU failed to start or ended early with {how} (its own message is above); nothing was recorded"
    other = "" if start.when == "firmware" else "; --firmware records from the first instruction"
    return f"the guest ended before the recording's start ({start}); nothing was recorded{other}"


def map_changes(before: tuple[Region, ...], now: tuple[Region, ...]) -> tuple[Region, ...]:
    """Ranges whose meaning differs between two memory maps, as they are now; a range that is no memory any more has
    kind ``io``.
    """
    edges = sorted({edge for region in (*before, *now) for edge in (region.gpa, region.gpa + region.size)})
    changes: list[Region] = []
    for low, high in pairwise(edges):
        old, new = _piece(before, low, high), _piece(now, low, high)
        if old == new:
            continue
        last = changes[-1] if changes else None
        if last and last.gpa + last.size == low and _follows(last, new):
            changes[-1] = replace(last, size=last.size + new.size)
        else:
            changes.append(new)
    return tuple(changes)


# What a map says about a range that no edge divides.
def _piece(regions: tuple[Region, ...], low: int, high: int) -> Region:
    for region in regions:
        if region.gpa <= low and high <= region.gpa + region.size:
            return Region(low, high - low, region.kind, region.memory, region.offset + low - region.gpa)
    return Region(low, high - low, MAP_NAMES[MAP_IO], "", 0)


def _follows(last: Region, new: Region) -> bool:
    same = last.kind == new.kind and last.memory == new.memory
    return same and (last.kind == MAP_NAMES[MAP_IO] or last.offset + last.size == new.offset)


def complain(text: str) -> None:
    """Print a sentence for the user on standard error."""
    print(f"kvmmu: {text}", file=sys.stderr)
