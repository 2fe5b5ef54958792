# SPDX-License-Identifier: GPL-2.0-only
"""What mypy is told to overlook: few lines, each with its reason behind the code that is ignored."""

from __future__ import annotations

import re

import house

#: Lines of the package that may have one.
MOST = 60

_WITH_REASON = re.compile(r"# type: ignore\[[\w, -]+\]  # \S.*\S$")


def ignores(source: str) -> list[str]:
    """Lines where mypy is told to overlook something."""
    return [line.strip() for line in source.splitlines() if "type: ignore" in line]


def unreasoned(source: str) -> list[str]:
    """Those that do not say which code, and why."""
    return [line for line in ignores(source) if not _WITH_REASON.search(line)]


def package_sources() -> dict[str, str]:
    return {module: path.read_text(encoding="utf-8") for module, path in house.modules().items()}


def test_there_are_few() -> None:
    assert sum(len(ignores(source)) for source in package_sources().values()) <= MOST


def test_each_has_its_reason() -> None:
    found = {module: lines for module, source in package_sources().items() if (lines := unreasoned(source))}
    assert found == {}


def test_one_without_a_reason_is_found() -> None:
    good = "x = f(y)  # type: ignore[arg-type]  # y is whole by now\n"
    assert ignores(good * 2) == [good.strip()] * 2
    assert unreasoned(good) == []
    for bad in ("x = y  # type: ignore\n", "x = y  # type: ignore[arg-type]\n", "x = y  # type: ignore  # as it is\n"):
        assert unreasoned(bad) == [bad.strip()]
