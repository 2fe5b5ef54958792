# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu.run()``: a replay in one call. ``docs/replay.md`` shows what can be done with it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..params import PARAMETERS
from ..record.bundled import find_recording
from .replay import Options, Spelling, replay_file
from .result import Result

if TYPE_CHECKING:
    from .player import Player

_ARGUMENTS = ("mmu", "first", "until", "break_cause", "audit", "events", "interval", "cpu", "progress")


def run(
    recording: str | os.PathLike[str],
    mmu: str = "shadow",
    *,
    first: int = 0,
    until: int | None = None,
    break_cause: str | None = None,
    audit: bool | str = False,
    events: str | os.PathLike[str] | None = None,
    interval: int | None = None,
    cpu: str | None = None,
    progress: Callable[[int, int], object] | None = None,
    **params: bool | int | str,
) -> Result:
    """Replay ``recording`` (a path, or the name of a bundled one) through ``mmu``, verify it, count.

    ``[first, until)`` are the records that are verified, those before only leave their state; ``break_cause`` stops at
    the first fault of that cause (:attr:`Result.fault`); ``audit`` checks every 100,000 records, not only at the
    end, the invariants of what changed since the check before, or with ``"full"`` all of them; ``events``: file for
    tracepoint events; ``interval``: count for each so many records as well; ``cpu`` ("nx=off,maxphyaddr=40", "none"):
    what the guest's CPUID says otherwise than the recorded machine's; ``progress(position, total)`` is called now and
    then. Everything else is a parameter (``kvmmu params``).

    A mismatch is a result, no exception.

    :raises ConfigError: an argument or parameter that cannot be, in one line.
    :raises RecordingError: there is no such recording, or it cannot be used; the line names it.
    :raises KvmBug: an invariant of the MMU is broken.
    """
    settings = tuple(_setting(name, value) for name, value in params.items())
    _check_number("first", first, 0)
    for name, value, least in (("until", until, 0), ("interval", interval, 1)):
        if value is not None:
            _check_number(name, value, least)
    if not isinstance(recording, (str, os.PathLike)):
        raise ConfigError(f"recording={recording!r}: must be a path or the name of a bundled recording")
    if cpu is not None and not isinstance(cpu, str):
        raise ConfigError(f"cpu={cpu!r}: must be a text, such as 'nx=off,maxphyaddr=40'")
    if events is not None and not isinstance(events, (str, os.PathLike)):
        raise ConfigError(f"events={events!r}: must be a path")
    if not isinstance(audit, bool | str) or audit not in _AUDITS:
        raise ConfigError(f'audit={audit!r}: must be True (of what changed), "full" or False')
    options = Options(
        mmu,
        settings,
        first,
        until,
        break_cause,
        _AUDITS[audit],
        None if events is None else os.fspath(events),
        interval or 0,
        Spelling.PYTHON,
        cpu,
    )
    options.check()
    path = find_recording(os.fspath(recording))

    def tell(player: Player) -> None:
        if progress is not None:
            progress(player.reader.position, player.reader.total)

    result = replay_file(path, options, tell)
    # Who runs a loop of replays wants it to end.
    if result.stopped == "interrupted":
        raise KeyboardInterrupt
    return result


_AUDITS: dict[bool | str, str | None] = {False: None, True: "changed", "changed": "changed", "full": "full"}


# A parameter as --set takes it; a misspelled argument of run() gets a hint of its own.
def _setting(name: str, value: Any) -> str:
    known = {parameter.name for parameter in PARAMETERS} | {parameter.kernel for parameter in PARAMETERS}
    if name not in known:
        near = difflib.get_close_matches(name, (*_ARGUMENTS, *known), n=1, cutoff=0.6)
        if near and near[0] in _ARGUMENTS:
            raise ConfigError(f"unknown argument {name!r}: did you mean {near[0]}?")
    if isinstance(value, bool):
        return f"{name}={'on' if value else 'off'}"
    return f"{name}={value}"


def _check_number(name: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        raise ConfigError(f"{name}={value!r}: must be a whole number, {least} or more")
