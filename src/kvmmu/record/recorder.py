# SPDX-License-Identifier: GPL-2.0-only
"""Run a guest under QEMU with the plugin, and turn the plugin's stream into a recording.

QEMU writes records to a pipe; this process encodes, compresses and writes them. At the start, and when the memory map
may have changed, the plugin stops the guest, and QEMU's monitor is asked. Whatever ends it (a guest that powers off,
Ctrl-C, a crash of the guest or of QEMU) the file ends in a trailer that says what happened; after a full disk, or when
this process is killed, it ends in whole blocks and has no trailer.
"""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType
from typing import BinaryIO

from .. import _build
from ..errors import RecorderError
from .build_plugin import build_plugin
from .format import LEFT_OUT, MAP_NAMES, MEMORY_UNKNOWN, RAW_CONTROL, RAW_HEAD, Header, Region, Trailer
from .guestram import make_memory
from .kernel_image import entry_range
from .memmap import map_changes
from .qemu import Survey, find_qemu, prepare, quote_value, survey
from .qmp import Qmp, cpu_facts, hotplug_end, memory_map
from .writer import LEVEL, Writer, claim_output, release_output

_HEAD = struct.Struct("<BBHHHQQQ")
_HELLO, _START, _SYNC, _END, _COUNTED = range(RAW_CONTROL, RAW_CONTROL + 5)
#: The plugin's counts: what it left out by reason, what it saw, what of that was in system management mode.
_COUNTS = struct.Struct(f"<{len(LEFT_OUT) + 2}Q")
_CHUNK = 1 << 20
#: Seconds: between two looks at the clock, that a block waits to be written, within which two signals are one wish,
#: that QEMU has to end.
_TICK = 0.1
_BLOCK_SECONDS = 0.6
_SAME_WISH = 1.0
_PATIENCE = 10.0
#: Beginnings of a trailer's ``reason``.
INTERRUPTED = "interrupted"
QEMU_ENDED = "QEMU ended"
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
    """A recording to make: the QEMU command line ``command`` into the file ``output``.

    ``force`` replaces an ``output`` that exists; after ``seconds`` of wall time from QEMU's start the guest is ended.
    """

    output: str
    command: tuple[str, ...]
    start: Start = Start()
    level: int = LEVEL
    force: bool = False
    seconds: float | None = None


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
    that cannot be written; :class:`ConfigError`: an output that exists (without ``force``) or that another recording is
    being written to.
    """
    if not order.command:
        raise RecorderError("no guest: give QEMU's command line behind --")
    facts = survey(order.command)
    kernel = facts.kernel if order.start.when == "kernel" else None
    entry = entry_range(kernel)
    if kernel is not None and entry[0] >= facts.ram_size > 0:
        raise RecorderError(
            f"the first {facts.ram_size:#x} bytes of memory do not reach to {entry[0]:#x}, where the kernel is entered:"
            " give the guest, or its first NUMA node, more"
        )
    program, version = find_qemu(order.command[0])
    plugin = build_plugin()
    output = claim_output(order.output, order.force)
    try:
        with ExitStack() as stack:
            session = _Session(order, facts, (program, version), output)
            session.start(stack, str(plugin), entry)
            return session.run(say, show)
    finally:
        release_output(order.output, output)


class _Session:
    """One run of QEMU: its process, its pipes, the writer once the recording has begun."""

    __slots__ = (
        "asked",
        "control",
        "counts",
        "deadline",
        "ended",
        "facts",
        "flushed",
        "interrupted",
        "monitor",
        "order",
        "output",
        "port",
        "prepared",
        "process",
        "qemu",
        "qmp",
        "regions",
        "show",
        "stream",
        "writer",
    )

    def __init__(self, order: Order, facts: Survey, qemu: tuple[str, str], output: BinaryIO) -> None:
        self.order = order
        self.facts = facts
        self.qemu = qemu
        self.output = output
        # When and why QEMU was asked to end; when it is killed if it does not.
        self.asked: float | None = None
        self.interrupted = False
        self.ended = ""
        self.deadline = math.inf
        # What the plugin has counted so far, and the guest's last OUT.
        self.counts: tuple[int, ...] = (0,) * (len(LEFT_OUT) + 2)
        self.port = (0, 0)
        self.flushed = 0.0
        self.writer: Writer | None = None
        self.qmp: Qmp | None = None
        self.regions: tuple[Region, ...] = ()
        self.show: Callable[[Progress], None] | None = None

    def start(self, stack: ExitStack, plugin: str, entry: tuple[int, int]) -> None:
        """Start QEMU, its pipes and files belong to ``stack``.

        Nothing of it has a name in a file system: whatever ends this process, nothing is left behind.
        """
        read_end, out = os.pipe()
        self.stream = stack.enter_context(os.fdopen(read_end, "rb", buffering=0))
        out_file = stack.enter_context(os.fdopen(out, "wb", buffering=0))
        answers, write_end = os.pipe()
        self.control = stack.enter_context(os.fdopen(write_end, "wb", buffering=0))
        answers_file = stack.enter_context(os.fdopen(answers, "rb", buffering=0))
        self.monitor, theirs = socket.socketpair()
        stack.enter_context(self.monitor)
        stack.enter_context(theirs)
        made = {
            memory.name: stack.enter_context(make_memory(memory.name, memory.size))
            for memory in self.facts.memories
            if memory.path is None
        }
        paths = {name: f"/proc/self/fd/{file.fileno()}" for name, file in made.items()}
        command = (self.qemu[0], *self.order.command[1:])
        option = self._plugin_option(plugin, paths, (out, answers), entry)
        self.prepared = prepare(command, option, f"fd={theirs.fileno()}", paths)
        fds = [out, answers, theirs.fileno(), *(file.fileno() for file in made.values())]
        try:
            self.process = subprocess.Popen(self.prepared.command, pass_fds=fds)
        except OSError as error:
            raise RecorderError(f"cannot start {self.qemu[0]}: {error.strerror or error}") from error
        out_file.close()
        answers_file.close()
        theirs.close()

    def run(self, say: Callable[[str], None], show: Callable[[Progress], None] | None) -> Trailer:
        """Record to the end."""
        restore = self._catch_signals()
        try:
            say("added to QEMU's command line: " + " ".join(self.prepared.added))
            for name in self.facts.unknown:
                say(f"the memory backend {name} is no shared file: tables in it cannot be recorded")
            self.show = show
            if self.order.seconds is not None:
                self.deadline = time.monotonic() + self.order.seconds
            try:
                self._pump()
            except RecorderError:
                # A QEMU that was told to end, or killed, does not answer any more.
                if self.asked is None and not self._is_gone():
                    raise
            return self._finish()
        except BaseException as error:
            self.process.kill()
            if self.writer is not None and not self.writer.file.closed:
                self._end_file(True, f"the recorder stopped: {error}")
            raise
        finally:
            self.process.wait()
            restore()
            if self.qmp is not None:
                self.qmp.close()

    # Whether QEMU has ended, or ends within a second.
    def _is_gone(self) -> bool:
        try:
            self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return False
        return True

    # Ctrl-C, SIGTERM and SIGHUP end the guest, not the reading of what it still writes. A program like timeout sends
    # two signals for one wish; one that comes later kills.
    def _catch_signals(self) -> Callable[[], None]:
        def stop(number: int, frame: FrameType | None) -> None:
            self.interrupted = True
            if self.asked is not None and time.monotonic() - self.asked > _SAME_WISH:
                self.process.kill()
            self._ask_to_end()

        if threading.current_thread() is not threading.main_thread():
            return lambda: None
        caught = [signal.SIGINT, signal.SIGTERM]
        # nohup wants a recording that goes on.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            caught.append(signal.SIGHUP)
        before = [(number, signal.signal(number, stop)) for number in caught]

        def restore() -> None:
            for number, handler in before:
                signal.signal(number, handler)

        return restore

    # QEMU shuts down, and the plugin writes out what it has.
    def _ask_to_end(self) -> None:
        if self.asked is None:
            self.asked = time.monotonic()
            self.process.terminate()

    # The plugin's arguments.
    def _plugin_option(self, plugin: str, paths: dict[str, str], fds: tuple[int, int], entry: tuple[int, int]) -> str:
        start = self.order.start
        words = [f"memory={quote_value(paths.get(m.name, m.path or ''))}" for m in self.facts.memories]
        words += [f"out={fds[0]}", f"control={fds[1]}"]
        if start.when == "port":
            words += ["start=port", f"port={start.port}"]
        else:
            when = "entry" if start.when == "kernel" else start.when
            words += [f"start={when}", f"lo={entry[0]}", f"hi={entry[1]}"]
        return ",".join([quote_value(plugin), *words])

    # Read the stream to its end. What is encoded goes to the file at least once a second: a recorder that is killed
    # leaves it behind.
    def _pump(self) -> None:
        pending = bytearray()
        while True:
            if select.select([self.stream], [], [], _TICK)[0]:
                chunk = self.stream.read(_CHUNK)
                if not chunk:
                    return
                pending += chunk
                del pending[: self._feed(pending)]
            self._tick()

    # What is due by the clock.
    def _tick(self) -> None:
        now = time.monotonic()
        if self.writer is not None and now - self.flushed >= _BLOCK_SECONDS:
            self.writer.flush()
            self.flushed = time.monotonic()
        if now >= self.deadline:
            if self.asked is None:
                self.ended = f"{self.order.seconds:g} seconds were over"
            elif self.ended:
                self.process.kill()
            self._ask_to_end()
            self.deadline = now + _PATIENCE
        if self.show is not None and self.writer is not None:
            self.show(Progress(self.writer.records + self.writer.encoder.records, self.writer.written))

    # Take what of the stream is whole; return its length.
    def _feed(self, pending: bytearray) -> int:
        at = 0
        while True:
            if self.writer is not None:
                at, _ = self.writer.feed(pending, at)
            if len(pending) - at < RAW_HEAD:
                return at
            kind, _, _, access, length, _, gpa, value = _HEAD.unpack_from(pending, at)
            if kind < RAW_CONTROL or len(pending) - at < RAW_HEAD + length:
                return at
            if kind == _START:
                self._begin(gpa)
            elif kind == _SYNC:
                self._sync()
            elif kind in (_END, _COUNTED):
                self.port = (access, value)
                if length == _COUNTS.size:
                    self.counts = _COUNTS.unpack_from(pending, at + RAW_HEAD)
            at += RAW_HEAD + length

    # The plugin stands still at the first recorded instruction: write the header, tell it the memory map.
    def _begin(self, where: int) -> None:
        self.qmp = Qmp(self.monitor)
        order, facts = self.order, self.facts
        self.regions = memory_map(self.qmp, facts.ram_id)
        cpus, bits, features = cpu_facts(self.qmp)
        header = Header(
            cpus=cpus,
            memory=tuple(sorted(self.regions, key=lambda region: (region.memory != "ram", region.gpa))),
            maxphyaddr=bits,
            features=features,
            qemu=self.qemu[1],
            machine=facts.machine,
            cpu_model=facts.cpu_model,
            command=order.command,
            start=str(order.start),
            entry=where if where < facts.ram_size else None,
            recorded_by=f"kvmmu {_build.VERSION}",
            backends={memory.name: memory.size for memory in facts.memories[1:]},
            memory_end=hotplug_end(self.qmp) if facts.hotplug else 0,
        )
        self.writer = Writer(order.output, header, order.level, self.output)
        self.flushed = time.monotonic()
        self._answer((), bits)

    # The memory map may have changed: tell the plugin what of it is different now.
    def _sync(self) -> None:
        if self.qmp is None:
            return
        now = memory_map(self.qmp, self.facts.ram_id)
        changes = map_changes(self.regions, now)
        self.regions = now
        self._answer(changes)

    # Tell the plugin the memory map and what of it is new; at the beginning the physical address bits, too.
    def _answer(self, changes: tuple[Region, ...], bits: int = 0) -> None:
        memories = self.writer.header.memories if self.writer is not None else ()
        mapped = ("ram", *(memory.name for memory in self.facts.memories[1:]))
        lines = [f"b {bits:x}\n"] if bits else []
        for what, region in [*(("m", region) for region in self.regions), *(("c", region) for region in changes)]:
            memory = memories.index(region.memory) if region.memory in memories else MEMORY_UNKNOWN
            place = mapped.index(region.memory) if region.memory in mapped else MEMORY_UNKNOWN
            kind = MAP_NAMES.index(region.kind)
            lines.append(f"{what} {region.gpa:x} {region.size:x} {kind:x} {memory:x} {region.offset:x} {place:x}\n")
        try:
            self.control.write("".join([*lines, ".\n"]).encode())
        except OSError as error:
            raise RecorderError(f"QEMU does not take the memory map: {error.strerror or error}") from error

    # QEMU is gone: say in the trailer what ended it.
    def _finish(self) -> Trailer:
        status = self.process.wait()
        if self.qmp is not None:
            self.qmp.drain()
        if self.writer is None:
            raise RecorderError(_why_nothing(status, self.interrupted, self.ended, self.order.start))
        reason = self.qmp.shutdown_reason() if self.qmp is not None else None
        cut, text = _ending(reason, status, self.port)
        if self.interrupted:
            cut, text = True, INTERRUPTED
        elif self.ended:
            cut, text = True, self.ended
        return self._end_file(cut, text)

    # Write the trailer, with what the plugin counted.
    def _end_file(self, cut: bool, reason: str) -> Trailer:
        assert self.writer is not None
        left_out = {name: count for name, count in zip(LEFT_OUT, self.counts, strict=False) if count}
        seen, smm = self.counts[len(LEFT_OUT)], self.counts[len(LEFT_OUT) + 1]
        return self.writer.finish(cut, reason, seen, left_out.get(LEFT_OUT[0], 0), left_out, smm)


# What ended the guest, in words, and whether that cuts the recording short.
def _ending(reason: str | None, status: int, port: tuple[int, int]) -> tuple[bool, str]:
    if reason is None:
        return True, f"{QEMU_ENDED} by signal {-status}" if status < 0 else f"{QEMU_ENDED} with status {status}"
    number, value = port
    asked = number in (0xCF9, 0x92) or (number == 0x64 and value & 0xFF == 0xFE) or 0x600 <= number < 0x700
    if reason == "guest-reset" and not asked:
        return True, "the guest crashed (reset without asking for it)"
    return reason not in _GUEST_ENDS, reason


def _why_nothing(status: int, interrupted: bool, ended: str, start: Start) -> str:
    if interrupted:
        return "interrupted before the recording began; nothing was recorded"
    other = "" if start.when == "firmware" else "; --firmware records from the first instruction"
    if ended:
        return f"{ended} before the recording's start ({start}); nothing was recorded{other}"
    if status != 0:
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return f"QEMU failed to start or ended early with {how} (its own message is above); nothing was recorded"
    return f"the guest ended before the recording's start ({start}); nothing was recorded{other}"


def complain(text: str) -> None:
    """Print a sentence for the user on standard error."""
    print(f"kvmmu: {text}", file=sys.stderr)
