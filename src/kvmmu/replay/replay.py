# SPDX-License-Identifier: GPL-2.0-only
"""``replay()``: a recording through a machine, verified; a function of recording and options that returns data."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from .._build import build_info
from ..errors import ConfigError, KvmBug, KvmmuError, OutputError, RecordingError, UserError
from ..kvm.cpuid import CpuFeatures, parse_cpu
from ..kvm.mmu.audit import Auditor, audit
from ..kvm.mmu.role import describe_role, role_level
from ..kvm.mmu.verdict import CAUSES
from ..params import Params
from ..record.bundled import RECORDINGS
from ..record.format import KIND_NAMES
from ..record.reader import Reader
from .breakpoint import examine_fault
from .intervals import IntervalCounter, count_faults
from .machine import BareMachine, GuestMachine, build_machine
from .mismatch import describe_mismatch
from .player import Player
from .result import STOP_BREAK, STOP_END, STOP_MISMATCH, Fault, Result, ShadowPages

if TYPE_CHECKING:
    from ..trace.files import EventWriter

MMUS = ("none", "shadow", "tdp", "tdp-legacy")
#: What an audit on the way looks at: what is not as it was at the audit before, or everything.
AUDITS = ("changed", "full")
#: Records between two audits, and between two calls of the progress function.
AUDIT_RECORDS = 100_000
PROGRESS_RECORDS = 20_000
#: Mismatches that are described; more are only counted.
MOST_DETAILS = 10
#: Intervals that a result may have: each holds all counters.
MOST_INTERVALS = 10_000

_OPTIONS = {
    "mmu": "--mmu",
    "settings": "--set",
    "cpu": "--cpu",
    "first": "--from",
    "until": "--until",
    "break_cause": "--break",
    "audit": "--audit",
    "events": "--events",
    "interval": "--interval",
}


class Spelling(Enum):
    """How messages write options: as the command's or as Python's arguments."""

    COMMAND = "command"
    PYTHON = "python"

    def option(self, name: str) -> str:
        """An option alone."""
        return _OPTIONS[name] if self is Spelling.COMMAND else "parameters" if name == "settings" else name

    def given(self, name: str, value: object) -> str:
        """An option with its value."""
        return f"{_OPTIONS[name]} {value}" if self is Spelling.COMMAND else f"{name}={value}"


@dataclass(frozen=True, slots=True)
class Options:
    """How to replay.

    ``mmu``: one of :data:`MMUS`; ``settings``: ``param=value`` strings; ``[first, until)``: the records to play, those
    before only leave their state; ``break_cause``: stop at the first fault of this cause; ``audit``: check the
    invariants every 100,000 records, one of :data:`AUDITS` (all are checked at the end in any case);
    ``events``: file for tracepoints; ``interval``: records of an interval that is counted by itself, 0: none;
    ``spelling``: of the options in messages; ``cpu``: what the guest's CPUID says otherwise than the recorded machine's
    (``kvm.cpuid.parse_cpu()``).
    """

    mmu: str = "shadow"
    settings: tuple[str, ...] = ()
    first: int = 0
    until: int | None = None
    break_cause: str | None = None
    audit: str | None = None
    events: str | None = None
    interval: int = 0
    spelling: Spelling = Spelling.COMMAND
    cpu: str | None = None

    def check(self) -> None:
        """Raise :class:`ConfigError` for what no recording could be replayed with."""
        self.params()
        self.cause()

    def params(self) -> Params | None:
        """The parameters of the world; None for bare CPUs.

        :raises ConfigError: an unknown MMU, cause, parameter, or one that means nothing here.
        """
        given = self.spelling.given
        if self.mmu not in MMUS:
            raise ConfigError(f"{given('mmu', self.mmu)}: there is no such MMU; take {', '.join(MMUS)}")
        if self.until is not None and self.until <= self.first:
            raise ConfigError(f"{given('until', self.until)}: must be above {given('first', self.first)}")
        if self.audit is not None and self.audit not in AUDITS:
            raise ConfigError(f"{given('audit', self.audit)}: there is no such audit; take {' or '.join(AUDITS)}")
        if self.events is not None and Path(self.events).suffix not in _suffixes():
            raise ConfigError(
                f"{given('events', self.events)}: the suffix says the form of the file; take {', '.join(_suffixes())}"
            )
        if self.mmu == "none":
            if self.settings or self.break_cause or self.events or self.audit:
                settings, stop, events, audits = map(
                    self.spelling.option, ("settings", "break_cause", "events", "audit")
                )
                raise ConfigError(
                    f"{given('mmu', 'none')} has no kvm: {settings}, {stop}, {events} and {audits} mean nothing;"
                    f" take {given('mmu', 'shadow')}"
                )
            if self.cpu is not None:
                raise ConfigError(
                    f"{given('mmu', 'none')} has no kvm: {given('cpu', self.cpu)} means nothing; take"
                    f" {given('mmu', 'shadow')}"
                )
            return None
        if self.cpu is not None:
            parse_cpu(self.cpu, CpuFeatures())
        params = Params().with_settings(self.settings)
        for setting in self.settings:
            name = setting.split("=")[0].strip()
            if name in ("npt", "kvm_amd.npt", "tdp_mmu", "kvm.tdp_mmu"):
                choice = self.spelling.option("mmu")
                raise ConfigError(
                    f"{name.split('.')[-1]}: {given('mmu', self.mmu)} decides that; choose the MMU with {choice}"
                )
        return replace(params, npt=self.mmu != "shadow", tdp_mmu=self.mmu == "tdp")

    def cause(self) -> int:
        """Number of ``break_cause``; 0: none. :class:`ConfigError` for a cause that does not exist."""
        if self.break_cause is None:
            return 0
        if self.break_cause not in CAUSES[1:]:
            given = self.spelling.given("break_cause", self.break_cause)
            raise ConfigError(f"{given}: no fault has that cause; take {', '.join(CAUSES[1:])}")
        return CAUSES.index(self.break_cause)

    def end(self, total: int) -> int:
        """Where to stop in a recording of ``total`` records; :class:`ConfigError` if the options do not fit it."""
        given = self.spelling.given
        if self.first >= total:
            raise ConfigError(f"{given('first', self.first)}: the recording has {total} records")
        until = total if self.until is None else min(self.until, total)
        if self.interval and until - self.first > self.interval * MOST_INTERVALS:
            least = -(-(until - self.first) // MOST_INTERVALS)
            raise ConfigError(
                f"{given('interval', self.interval)}: more than {MOST_INTERVALS:,} intervals; take {least} or more"
            )
        return until


def bundled_recording(name: str = "linux-6.12-boot") -> Path:
    """A recording that comes with the package; :class:`RecordingError` if this installation lacks it."""
    path = RECORDINGS / f"{name}.kmr"
    if not path.is_file():
        raise RecordingError(f"the bundled recording {name}.kmr is missing: install kvmmu anew, or name a recording")
    return path


def replay(path: str | Path, options: Options, progress: Callable[[Player], None] | None = None) -> Result:
    """Play ``path`` as ``options`` say, and verify it. ``progress`` is called now and then.

    :raises RecordingError: the recording cannot be used.
    :raises ConfigError: an option or parameter that cannot be.
    :raises KvmBug: an invariant of the MMU is broken.
    """
    params = options.params()
    cause = options.cause()
    result = Result(recording=str(path), mmu=options.mmu, build=str(build_info()), first=options.first)
    with ExitStack() as stack:
        reader = stack.enter_context(Reader(str(path)))
        if reader.total == 0:
            raise RecordingError(f"{path} has no records: there is nothing to replay")
        until = options.end(reader.total)
        machine = build_machine(reader.header, params, options.cpu)
        player = _start(reader, machine, options)
        player.break_cause = cause
        stack.callback(player.close)
        if options.events is not None and machine.vm is not None:
            writer = stack.enter_context(_open_events(options, options.events))
            machine.vm.trace.attach(writer)

            def note_record(position: int) -> None:
                writer.position = position
                writer.cpu = reader.cpu

            player.on_record = note_record
        counter = IntervalCounter(player, machine, options.interval)
        started = time.perf_counter()
        try:
            result.stopped = _play(player, until, options, result, counter, progress)
            player.settle()
        except KeyboardInterrupt:
            result.stopped = "interrupted"
        result.seconds = time.perf_counter() - started
        counter.close(is_last=True)
        result.intervals = counter.intervals
        _collect(result, player, machine)
        # After a mismatch the two machines have parted: what is reported is the mismatch.
        if machine.vm is not None and result.stopped != "interrupted" and not result.mismatches:
            audit(machine.vm)
            result.audits += 1
    if result.stopped == "break":
        result.fault = _look_at_fault(path, options, params, result.position - 1)
    return result


def replay_file(path: Path, options: Options, progress: Callable[[Player], None] | None = None) -> Result:
    """:func:`replay`, whose errors name the file if the mistake is the recording's, whatever noticed it."""
    with naming(path):
        return replay(path, options, progress)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Around what plays the recording ``path``: an error that the recording is to blame for names the file."""
    try:
        yield
    except (ConfigError, KvmBug, OutputError):
        raise
    except (KvmmuError, MemoryError) as error:
        text = str(error) or "there is not enough memory for it"
        if isinstance(error, KvmmuError) and str(path) in text:
            raise
        raise RecordingError(f"{path}: {text}") from error


def _start(reader: Reader, machine: GuestMachine | BareMachine, options: Options) -> Player:
    player = Player(reader, machine)
    if options.first:
        player.fast_forward(options.first)
    return player


# A file that cannot be made is an option's value that cannot be used; what happens to it later is not.
# The texts of all tracepoints take a tenth of the time in which a command starts: only who writes events imports them.
def _suffixes() -> tuple[str, ...]:
    from ..trace.files import SUFFIXES

    return tuple(SUFFIXES)


def _open_events(options: Options, path: str) -> EventWriter:
    from ..trace.files import EventWriter

    try:
        return EventWriter(path)
    except OutputError:
        raise
    except UserError as error:
        raise ConfigError(f"{options.spelling.option('events')} {error}") from error


def _look_at_fault(path: str | Path, options: Options, params: Params | None, position: int) -> Fault:
    with Reader(str(path)) as reader:
        player = _start(reader, build_machine(reader.header, params, options.cpu), options)
        return examine_fault(player, position, options.break_cause or "")


def _play(
    player: Player,
    until: int,
    options: Options,
    result: Result,
    counter: IntervalCounter,
    progress: Callable[[Player], None] | None,
) -> str:
    # Play up to until, in pieces between which audits and progress happen. Returns why it stopped.
    reader = player.reader
    auditor = Auditor(player.vm) if options.audit and player.vm is not None else None
    next_audit = reader.position + AUDIT_RECORDS
    while reader.position < until:
        stop = player.play(counter.end(min(until, reader.position + PROGRESS_RECORDS, next_audit)))
        counter.close()
        if stop == STOP_MISMATCH:
            result.details.append(describe_mismatch(player))
            player.stop_at_mismatch = len(result.details) < MOST_DETAILS
        elif stop == STOP_BREAK:
            return "break"
        elif stop == STOP_END:
            return "end"
        if auditor is not None and reader.position >= next_audit:
            auditor.audit(options.audit == "full")
            result.audits += 1
        if reader.position >= next_audit:
            next_audit += AUDIT_RECORDS
        if progress is not None:
            progress(player)
    return "end" if until == reader.total else "limit"


def _collect(result: Result, player: Player, machine: GuestMachine | BareMachine) -> None:
    reader = player.reader
    result.position = reader.position
    result.cut = reader.cut
    result.accesses = player.accesses
    result.stores = player.stores
    result.emulated_stores = player.emulated_stores
    result.mismatches = player.mismatches
    result.tlb_differences = player.tlb_differences
    result.smm_records = player.smm_records
    if reader.trailer is not None:
        result.seen, result.left_out = reader.trailer.seen, reader.trailer.reasons
        result.warning = reader.trailer.warning()
    else:
        result.warning = reader.loss()
    result.peak_rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result.records = {name: player.nr_records(kind) for kind, name in enumerate(KIND_NAMES) if kind}
    if machine.world is None or machine.vm is None:
        return
    result.counters = machine.world.counters()
    result.exits = result.counters["exits"]
    result.faults = count_faults(machine)
    pages = Counter(sp.role for sp in machine.world.shadow_pages())
    result.shadow_pages = [
        ShadowPages(role_level(role), role, describe_role(role), count)
        for role, count in sorted(pages.items(), key=lambda item: (-role_level(item[0]), item[0]))
    ]
