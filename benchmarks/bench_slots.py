# SPDX-License-Identifier: GPL-2.0-only
"""Memslots: what creating all that kvm allows costs beside creating a thousand.

Each round is a new world, and the cyclic garbage collector is on, as it is for everybody. Small and large worlds take
turns, so that both see the same machine; medians are compared. 32.8 times as many slots are made.
"""

from __future__ import annotations

import gc
import statistics

from figures import Figure, cpu_ns, run

from kvmmu.params import Params
from kvmmu.world import World

_PAGE = 4096
_FEW, _ALL = 1000, 32764
_ROUNDS, _SMALL_ONES = 5, 5


def _build_ns(count: int) -> int:
    # CPU time of creating ``count`` slots of one page, the collector's part included.
    world = World(Params(), nr_frames=1 << 12)
    gc.collect()
    start = cpu_ns()
    for number in range(count):
        world.add_slot(number, 2 * _PAGE * number, _PAGE)
    return cpu_ns() - start


def measure() -> list[Figure]:
    """Microseconds a slot in a small and in the largest world, and how many times the small one the large one takes."""
    few: list[int] = []
    every: list[int] = []
    for _ in range(_ROUNDS):
        few += [_build_ns(_FEW) for _ in range(_SMALL_ONES)]
        every.append(_build_ns(_ALL))
    small, large = statistics.median(few), statistics.median(every)
    return [
        Figure(f"create {_FEW:,} slots", small / _FEW / 1e3, "us a slot"),
        Figure(f"create {_ALL:,} slots", large / _ALL / 1e3, "us a slot"),
        Figure(f"{_ALL:,} : {_FEW:,} slots", large / small, "times", 40.0),
    ]


if __name__ == "__main__":
    run(measure)
