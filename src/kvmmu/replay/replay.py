# SPDX-License-Identifier: GPL-2.0-only
"""``replay()``: a recording through a machine, verified; a function of recording and options that returns data."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from .._build import build_info
from ..errors import ConfigError, RecordingError
from ..kvm.mmu.audit import audit
from ..kvm.mmu.role import describe_role, role_level
from ..kvm.mmu.verdict import CAUSES
from ..params import Params
from ..record.bundled import RECORDINGS
from ..record.format import KIND_NAMES
from ..record.reader import Reader
from ..trace.files import EventWriter
from .machine import BareMachine, GuestMachine, build_machine
from .mismatch import describe_mismatch
from .player import Player
from .result import STOP_BREAK, STOP_END, STOP_MISMATCH, Result, ShadowPages

MMUS = ("none", "shadow", "tdp-legacy")
#: Records between two audits, and between two calls of the progress function.
AUDIT_RECORDS = 100_000
PROGRESS_RECORDS = 20_000
#: Mismatches that are described; more are only counted.
MOST_DETAILS = 10


@dataclass(frozen=True, slots=True)
class Options:
    """How to replay.

    ``mmu``: one of :data:`MMUS`; ``settings``: ``param=value`` strings; ``[first, until)``: the records to play, those
    before only leave their state; ``break_cause``: stop at the first fault of this cause; ``audit``: check all
    invariants every 100,000 records (they are checked at the end in any case); ``events``: file for tracepoints.
    """

    mmu: str = "shadow"
    settings: tuple[str, ...] = ()
    first: int = 0
    until: int | None = None
    break_cause: str | None = None
    audit: bool = False
    events: str | None = None

    def params(self) -> Params | None:
        """The parameters of the world; None for bare CPUs.

        :raises ConfigError: an unknown MMU, cause, parameter, or one that means nothing here.
        """
        if self.mmu not in MMUS:
            raise ConfigError(f"--mmu {self.mmu}: there is no such MMU; take {', '.join(MMUS)}")
        if self.until is not None and self.until <= self.first:
            raise ConfigError(f"--until {self.until}: must be above --from {self.first}")
        if self.mmu == "none":
            if self.settings or self.break_cause or self.events or self.audit:
                raise ConfigError(
                    "--mmu none has no kvm: --set, --break, --events and --audit mean nothing; take --mmu shadow"
                )
            return None
        params = Params().with_settings(self.settings)
        if any(setting.split("=")[0].strip() in ("npt", "kvm_amd.npt") for setting in self.settings):
            raise ConfigError(f"npt: --mmu {self.mmu} decides that; choose the MMU with --mmu")
        return replace(params, npt=self.mmu == "tdp-legacy")

    def cause(self) -> int:
        """Number of ``break_cause``; 0: none. :class:`ConfigError` for a cause that does not exist."""
        if self.break_cause is None:
            return 0
        if self.break_cause not in CAUSES[1:]:
            raise ConfigError(f"--break {self.break_cause}: no fault has that cause; take {', '.join(CAUSES[1:])}")
        return CAUSES.index(self.break_cause)


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
        until = min(options.until if options.until is not None else reader.total, reader.total)
        if reader.total == 0:
            raise RecordingError(f"{path} has no records: there is nothing to replay")
        if options.first >= reader.total:
            raise ConfigError(f"--from {options.first}: the recording has {reader.total} records")
        machine = build_machine(reader.header, params)
        player = Player(reader, machine)
        player.break_cause = cause
        stack.callback(player.close)
        if options.first:
            player.fast_forward(options.first)
        if options.events is not None and machine.vm is not None:
            writer = stack.enter_context(EventWriter(options.events))
            machine.vm.trace.attach(writer)

            def note_record(position: int) -> None:
                writer.position = position
                writer.cpu = reader.cpu

            player.on_record = note_record
        started = time.perf_counter()
        try:
            result.stopped = _play(player, until, options, result, progress)
        except KeyboardInterrupt:
            result.stopped = "interrupted"
        result.seconds = time.perf_counter() - started
        _collect(result, player, machine)
        # After a mismatch the two machines have parted: what is reported is the mismatch.
        if machine.vm is not None and result.stopped != "interrupted" and not result.mismatches:
            audit(machine.vm)
            result.audits += 1
    return result


def _play(
    player: Player, until: int, options: Options, result: Result, progress: Callable[[Player], None] | None
) -> str:
    # Play up to until, in pieces between which audits and progress happen. Returns why it stopped.
    reader = player.reader
    next_audit = reader.position + AUDIT_RECORDS
    while reader.position < until:
        stop = player.play(min(until, reader.position + PROGRESS_RECORDS, next_audit))
        if stop == STOP_MISMATCH:
            result.details.append(describe_mismatch(player))
            player.stop_at_mismatch = len(result.details) < MOST_DETAILS
        elif stop == STOP_BREAK:
            return "break"
        elif stop == STOP_END:
            return "end"
        if options.audit and player.vm is not None and reader.position >= next_audit:
            audit(player.vm)
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
    result.peak_rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result.records = {name: player.nr_records(kind) for kind, name in enumerate(KIND_NAMES) if kind}
    if machine.world is None or machine.vm is None:
        return
    result.counters = machine.world.counters()
    result.exits = result.counters["exits"]
    for number, cause in enumerate(CAUSES):
        count = sum(vcpu.nr_faults(number) for vcpu in machine.vcpus)
        if count:
            result.faults[cause] = count
    pages: Counter[int] = Counter()
    sp = machine.vm.active_mmu_pages.link_next
    while sp is not None and sp is not machine.vm.active_mmu_pages:
        pages[sp.role] += 1
        sp = sp.link_next
    result.shadow_pages = [
        ShadowPages(role_level(role), role, describe_role(role), count)
        for role, count in sorted(pages.items(), key=lambda item: (-role_level(item[0]), item[0]))
    ]
