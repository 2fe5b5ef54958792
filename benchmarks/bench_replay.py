# SPDX-License-Identifier: GPL-2.0-only
"""The bundled boot through shadow paging, legacy TDP, and bare CPUs: what kvm's MMU costs beside the hardware walk.

All of it is replay as ``kvmmu run`` does it: each record is decoded, played and verified. Event recording is off.

The figures by kind of record come from a second run that stops after each record and looks at the clock; what looking
costs is measured in the same run and subtracted. Reading a block of records from the file is charged to the one that
needs it. Few records of a kind make a noisy figure.
"""

from __future__ import annotations

from collections import defaultdict
from importlib import resources

from figures import Figure, cpu_ns, run

from kvmmu.params import Params
from kvmmu.record.format import KIND_NAMES
from kvmmu.record.reader import Reader
from kvmmu.replay.machine import build_machine
from kvmmu.replay.player import STOP_END, Player

_RECORDING = "linux-6.12-boot.kmr"
_ROUNDS = 5
_NO_LIMIT = 1 << 60
_MODES: dict[str, list[str] | None] = {"none": None, "shadow": ["npt=off"], "tdp-legacy": ["npt=on"]}


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


def _kind_figures(path: str, mode: str) -> list[Figure]:
    player = _player(path, mode)
    reader, play, clock = player.reader, player.play, cpu_ns
    samples: defaultdict[int, list[int]] = defaultdict(list)
    for _ in range(100_000):
        start = clock()
        play(0)
        samples[0].append(clock() - start)
    while True:
        start = clock()
        stop = play(reader.position + 1)
        spent = clock() - start
        if stop == STOP_END:
            break
        samples[reader.kind].append(spent)
    # A mean without the slowest thousandth: an interrupt of the machine says nothing about a record.
    means = {}
    for kind, times in samples.items():
        times.sort()
        kept = times[: max(1, len(times) - len(times) // 1000)]
        means[kind] = sum(kept) / len(kept)
    figures = []
    for kind in sorted(means):
        if kind:
            note = f"{len(samples[kind]):,} records"
            figures.append(
                Figure(f"{mode}: {KIND_NAMES[kind]}", max(0.0, means[kind] - means[0]), "ns a record", note=note)
            )
    return figures


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
        figures.append(Figure("tdp-legacy : none", each["tdp-legacy"] / each["none"], "times"))
        for mode in ("none", "shadow"):
            figures += _kind_figures(name, mode)
    return figures


if __name__ == "__main__":
    run(measure)
