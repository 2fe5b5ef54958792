# SPDX-License-Identifier: GPL-2.0-only
"""What a benchmark says: figures with their unit and, where the project promises something, a target; and the clock.

Time is CPU time of the process, so that other work on the machine disturbs it less than the wall clock would. It still
shares caches and the clock speed with its neighbours: each figure is the best of several rounds.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import kvmmu

#: Version of the JSON that ``--json`` writes.
JSON_VERSION = 1


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number. ``target``: what is promised of it; ``is_floor``: at least that, otherwise at most."""

    name: str
    value: float
    unit: str
    target: float | None = None
    is_floor: bool = False
    note: str = ""

    def is_met(self) -> bool:
        """Whether the promise is kept; True where there is none."""
        if self.target is None:
            return True
        return self.value >= self.target if self.is_floor else self.value <= self.target

    def promise(self) -> str:
        """The target as text, and whether it is met."""
        if self.target is None:
            return ""
        return f"{'>=' if self.is_floor else '<='} {number(self.target)} {'met' if self.is_met() else 'MISSED'}"


def number(value: float) -> str:
    """``value`` for people: thousands apart, decimals only where they say something."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:,.1f}"


def cpu_ns() -> int:
    """CPU time of this process in nanoseconds."""
    return time.process_time_ns()


def best_ns(call: Callable[[], object], rounds: int = 5) -> int:
    """Nanoseconds of the fastest of ``rounds`` calls."""
    best = 0
    for _ in range(rounds):
        start = cpu_ns()
        call()
        spent = cpu_ns() - start
        best = spent if best == 0 else min(best, spent)
    return best


def machine_facts() -> dict[str, Any]:
    """What a figure depends on: processor, build, Python. Neither paths nor names of hosts."""
    return {
        "kvmmu": kvmmu.__version__,
        "build": str(kvmmu.build_info()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    # platform.processor() is empty on Debian.
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def run(measure: Callable[[], list[Figure]]) -> None:
    """The main program of one benchmark: a table, or one line of JSON with ``--json``."""
    figures = measure()
    if "--json" in sys.argv[1:]:
        print(json.dumps([asdict(figure) for figure in figures]))
        return
    for figure in figures:
        print(f"{figure.name:48} {number(figure.value):>12} {figure.unit:16} {figure.promise():18} {figure.note}")
