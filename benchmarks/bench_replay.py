# SPDX-License-Identifier: GPL-2.0-only
"""The bundled boot through shadow paging, both TDP MMUs, and bare CPUs: what kvm's MMU costs beside the hardware walk.

All of it is replay as ``kvmmu run`` does it: each record is decoded, played and verified. Event recording is off.

The figures by kind of record come from further passes that stop after each record and look at the clock (the wall's:
CPU time is a system call away). What looking costs is the same for every record and is subtracted, so that the kinds
sum to the undisturbed replay. What took a millisecond was interrupted and is left out. Reading a block of records from
the file is charged to the one that needs it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from importlib import resources

from figures import Figure, cpu_ns, run

from kvmmu.params import Params
from kvmmu.record.format import KIND_NAMES
from kvmmu.record.reader import Reader
from kvmmu.replay.machine import build_machine
from kvmmu.replay.player import Player
from kvmmu.replay.result import STOP_END

_RECORDING = "linux-6.12-boot.kmr"
_ROUNDS = 5
_KIND_PASSES = 3
_INTERRUPTED = 1_000_000  # ns
_NO_LIMIT = 1 << 60
_MODES: dict[str, list[str] | None] = {
    "none": None,
    "shadow": ["npt=off"],
    "tdp": ["npt=on", "tdp_mmu=on"],
    "tdp-legacy": ["npt=on", "tdp_mmu=off"],
}


def _player(path: str, mode: str) -> Player:
    settings = _MODES[mode]
    reader = Reader(path)
    return Player(reader, build_machine(reader.header, None if settings is None else Params().with_settings(settings)))


def _decode_ns(path: str) -> float:
    # A record decoded and thrown away.
    best = 0.0
    for _ in range(_ROUNDS):
        reader = Reader(path)
        start = cpu_ns()
        reader.skip(_NO_LIMIT)
        spent = (cpu_ns() - start) / reader.position
        best = spent if best == 0 else min(best, spent)
    return best


def _replay_ns(path: str, mode: str) -> tuple[float, Player]:
    # A record played, in the best of some rounds.
    best = 0.0
    for _ in range(_ROUNDS):
        player = _player(path, mode)
        start = cpu_ns()
        stop = player.play(_NO_LIMIT)
        spent = (cpu_ns() - start) / player.reader.position
        best = spent if best == 0 else min(best, spent)
        if stop != STOP_END:
            raise SystemExit(f"bench_replay: record {player.reader.position}: {player.problem}")
    return best, player


def _kind_times(path: str, mode: str) -> tuple[dict[int, int], dict[int, int]]:
    # (ns, number) by kind of the records of one pass, with what it costs to look at the clock.
    player = _player(path, mode)
    reader, play, clock = player.reader, player.play, time.perf_counter_ns
    total: defaultdict[int, int] = defaultdict(int)
    count: defaultdict[int, int] = defaultdict(int)
    while True:
        start = clock()
        stop = play(reader.position + 1)
        spent = clock() - start
        if stop == STOP_END:
            return total, count
        if spent < _INTERRUPTED:
            total[reader.kind] += spent
            count[reader.kind] += 1


def _kind_figures(path: str, mode: str, undisturbed: float) -> list[Figure]:
    # The clock's part is what makes a record of this pass dearer, on average, than one of an undisturbed replay.
    total, count = min((_kind_times(path, mode) for _ in range(_KIND_PASSES)), key=lambda times: sum(times[0].values()))
    looking = sum(total.values()) / sum(count.values()) - undisturbed
    return [
        Figure(f"{mode}: {KIND_NAMES[kind]}", total[kind] / nr - looking, "ns a record", note=f"{nr:,} records")
        for kind, nr in sorted(count.items())
    ]


def measure() -> list[Figure]:
    """Nanoseconds per record by mode, their ratio, and per record by kind."""
    with resources.as_file(resources.files("kvmmu") / "recordings" / _RECORDING) as path:
        name = str(path)
        figures = [Figure("decode alone", _decode_ns(name), "ns a record")]
        each = {}
        for mode in _MODES:
            each[mode], player = _replay_ns(name, mode)
            note = f"{player.reader.position:,} records, {1e3 / each[mode]:.1f} million a second"
            figures.append(Figure(f"replay, --mmu {mode}", each[mode], "ns a record", note=note))
        figures.append(Figure("shadow : none", each["shadow"] / each["none"], "times", 6.0))
        figures.append(Figure("tdp : none", each["tdp"] / each["none"], "times", 2.5))
        figures.append(Figure("tdp-legacy : none", each["tdp-legacy"] / each["none"], "times"))
        for mode in ("none", "shadow"):
            figures += _kind_figures(name, mode, each[mode])
    return figures


if __name__ == "__main__":
    run(measure)
