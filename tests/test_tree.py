# SPDX-License-Identifier: GPL-2.0-only
"""What may not be in a committed file: a host to install from, somebody's own directory, a missing licence line."""

from __future__ import annotations

import re

import pytest

import house

#: Put together here, so that this file does not name them either.
HOSTS = re.compile(
    "|".join((r"py" + r"pi\.org", r"python" + r"hosted\.org", r"\w+\.deb" + r"ian\.org", r"--(extra-)?ind" + r"ex-url"))
)
PLACES = re.compile("|".join((r"/ro" + r"ot/", r"/ho" + r"me/\w", r"/wo" + r"rk/\w", r"/Us" + r"ers/\w")))

_LICENSED = {".py", ".pxd", ".c", ".h", ".sh", ".S"}


def text_of(name: str) -> str:
    try:
        return (house.ROOT / name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


FILES = [str(path.relative_to(house.ROOT)) for path in house.project_files()]


def lines_with(pattern: re.Pattern[str], text: str) -> list[str]:
    return [line for line in text.splitlines() if pattern.search(line)]


def test_no_file_names_a_host_to_install_from() -> None:
    found = {name: lines_with(HOSTS, text_of(name)) for name in FILES}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_no_file_names_a_directory_of_one_machine() -> None:
    found = {name: lines_with(PLACES, text_of(name)) for name in FILES}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_every_source_says_its_licence_first() -> None:
    sources = [name for name in FILES if (house.ROOT / name).suffix in _LICENSED]
    assert sources
    assert [name for name in sources if "SPDX-License-Identifier: GPL-2.0-only" not in text_of(name)[:120]] == []


def test_constraints_are_names_and_versions_only() -> None:
    lines = [line for line in text_of("constraints.txt").splitlines() if not line.startswith("#")]
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line)] == []


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (HOSTS, "pip install --ind" + "ex-url https://mirror/simple"),
        (HOSTS, "deb http://ftp.deb" + "ian.org/debian bookworm main"),
        (PLACES, "open('/ho" + "me/someone/boot.kmr')"),
    ],
)
def test_what_is_forbidden_is_found(pattern: re.Pattern[str], line: str) -> None:
    assert lines_with(pattern, line)
