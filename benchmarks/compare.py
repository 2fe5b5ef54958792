# SPDX-License-Identifier: GPL-2.0-only
"""Two trees against each other: each benchmark in both, one after the other, again and again.

A machine that others use is faster at one time than at another, but not between two runs that follow each other: of
each round only the ratio of the two is kept. Which tree begins changes from round to round. A ratio is of cost: above 1
this tree takes more (of a rate, ``.../s``, the inverse is taken). The median over the rounds is the result, the spread
its quartiles. Figures that are ratios themselves, and those that one tree alone has, are left out.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from figures import Figure

#: At most this is the median of a benchmark's ratios.
LIMIT = 1.03
#: A median of fewer says little.
LEAST_ROUNDS = 9

_HERE = pathlib.Path(__file__).parent


@dataclass
class Comparison:
    """One figure of a benchmark in both trees, round by round."""

    name: str
    unit: str
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """Cost after by cost before, of each round."""
        pairs = zip(self.before, self.after, strict=True)
        return [before / after if "/s" in self.unit else after / before for before, after in pairs]

    def median(self) -> float:
        """The middle of :meth:`ratios`."""
        return statistics.median(self.ratios())

    def spread(self) -> tuple[float, float]:
        """First and third quartile of :meth:`ratios`."""
        ratios = self.ratios()
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, high


def median_of(comparisons: list[Comparison]) -> float:
    """The middle of all ratios of a benchmark: of each figure in each round."""
    return statistics.median(ratio for comparison in comparisons for ratio in comparison.ratios())


def measure(tree: pathlib.Path, name: str) -> list[Figure]:
    """Figures of the benchmark ``name`` of ``tree``, by its own program and its own package.

    Raises :class:`SystemExit` where the tree has no such program, or it fails.
    """
    program = tree / "benchmarks" / f"bench_{name}.py"
    if not program.is_file():
        raise SystemExit(f"benchmarks: {program} is missing")
    done = subprocess.run(
        [sys.executable, str(program), "--json"],
        stdout=subprocess.PIPE,
        check=False,
        env=os.environ | {"PYTHONPATH": str(tree / "src")},
    )
    if done.returncode:
        raise SystemExit(f"benchmarks: {program} ended with status {done.returncode}")
    return [Figure(**figure) for figure in json.loads(done.stdout)]


def compare(
    base: pathlib.Path, name: str, rounds: int, take: Callable[[pathlib.Path, str], list[Figure]] = measure
) -> list[Comparison]:
    """The benchmark ``name`` of the tree ``base`` and of this one, in ``rounds`` alternating rounds."""
    here = _HERE.parent
    found: dict[str, Comparison] = {}
    for number in range(rounds):
        order = (base, here) if number % 2 == 0 else (here, base)
        taken = {tree: {figure.name: figure for figure in take(tree, name)} for tree in order}
        for figure in taken[here].values():
            before = taken[base].get(figure.name)
            if before is None or figure.unit == "times" or not (before.value > 0 and figure.value > 0):
                continue
            comparison = found.setdefault(figure.name, Comparison(figure.name, figure.unit))
            comparison.before.append(before.value)
            comparison.after.append(figure.value)
    return list(found.values())
