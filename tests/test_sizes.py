# SPDX-License-Identifier: GPL-2.0-only
"""Rooms and classes stay small enough to be read in one go, and the newcomer's path through DESIGN short."""

from __future__ import annotations

import ast
import re

import house

LONGEST_ROOM = 450
LONGEST_CLASS = 300
#: Lines of the rooms that DESIGN sends a newcomer through.
LONGEST_PATH = 2700


def lines_of(source: str) -> int:
    """Lines of a room."""
    return len(source.splitlines())


def long_classes(source: str) -> dict[str, int]:
    """Classes longer than the limit, with their lines, decorators and docstrings included."""
    return {
        node.name: lines
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
        and (lines := (node.end_lineno or 0) - min([node.lineno, *(d.lineno for d in node.decorator_list)]) + 1)
        > LONGEST_CLASS
    }


def newcomers_path(design: str) -> list[str]:
    """The rooms of DESIGN's reading order, by their paths."""
    found = re.search(r"^Reading order for a newcomer.*?\. ", design, re.MULTILINE | re.DOTALL)
    assert found is not None
    return ["kvm/mmu/fault" if name == "fault" else name for name in re.findall(r"`([\w/]+)`", found[0])]


def test_a_room_is_no_longer_than_the_limit() -> None:
    long = {
        module for module, path in house.modules().items() if lines_of(path.read_text(encoding="utf-8")) > LONGEST_ROOM
    }
    assert long == set()


def test_a_class_is_no_longer_than_the_limit() -> None:
    long = {
        (module, name)
        for module, path in house.modules().items()
        for name in long_classes(path.read_text(encoding="utf-8"))
    }
    assert long == set()


def test_the_newcomers_path_is_as_short_as_design_says() -> None:
    design = (house.ROOT / "DESIGN.md").read_text(encoding="utf-8")
    rooms = newcomers_path(design)
    assert len(rooms) >= 12
    lines = sum(lines_of((house.PACKAGE / f"{room}.py").read_text(encoding="utf-8")) for room in rooms)
    assert lines <= LONGEST_PATH


def test_what_is_too_long_is_found() -> None:
    body = "    def f(self):\n        return 1\n"
    assert long_classes("class Small:\n" + body * 149) == {}
    assert long_classes("class Large:\n" + body * 150) == {"Large": 301}
    assert long_classes("@final\nclass Edge:\n" + "    x = 1\n" * 299) == {"Edge": 301}
    path = "Reading order for a newcomer, 9 lines: `addr` →\n`hw/memory` (with `fault`). More `x`.\n"
    assert newcomers_path(path) == ["addr", "hw/memory", "kvm/mmu/fault"]
