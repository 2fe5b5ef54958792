# SPDX-License-Identifier: GPL-2.0-only
"""``make bench BASE=DIR``: rounds alternate, ratios are of cost, and what is no figure of both trees is left out."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import pytest

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"
BASE = pathlib.Path("/base")


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Any:
    if not BENCHMARKS.is_dir():
        pytest.skip("the benchmarks are not installed")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("figures", "compare"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import compare as room  # type: ignore[import-not-found]

    return room


def test_rounds_alternate_and_begin_with_the_other_tree(compare: Any) -> None:
    asked = []

    def take(tree: pathlib.Path, name: str) -> list[Any]:
        asked.append((tree == BASE, name))
        return [compare.Figure("walk", 2.0, "ns")]

    compare.compare(BASE, "walk", 3, take)
    assert asked == [(is_base, "walk") for is_base in (True, False, False, True, True, False)]


def test_a_ratio_is_of_cost_and_the_median_is_the_result(compare: Any) -> None:
    values = {True: iter([10.0, 10.0, 10.0]), False: iter([11.0, 30.0, 12.0])}

    def take(tree: pathlib.Path, _name: str) -> list[Any]:
        value = next(values[tree == BASE])
        return [
            compare.Figure("hit", value, "ns"),
            compare.Figure("faults", value, "faults/s"),
            compare.Figure("shadow : none", value, "times"),
            compare.Figure("only here" if tree != BASE else "only there", value, "ns"),
        ]

    hit, faults = compare.compare(BASE, "fault", 3, take)
    assert (hit.name, faults.name) == ("hit", "faults")
    assert hit.ratios() == [1.1, 3.0, 1.2]
    assert hit.median() == 1.2
    assert hit.spread() == pytest.approx((1.15, 2.1))
    assert faults.median() == pytest.approx(1 / 1.2)
    assert compare.median_of([hit]) == 1.2


def test_a_tree_without_the_benchmark_is_named(compare: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(SystemExit, match=r"bench_walk\.py is missing"):
        compare.measure(tmp_path, "walk")
