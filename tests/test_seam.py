# SPDX-License-Identifier: GPL-2.0-only
"""Shared words have no other entrance: nobody but ``hw/memory`` touches the arena's views."""

from __future__ import annotations

import ast

import pytest

import house

#: The views of the arena that ``PhysicalMemory`` holds.
VIEWS = {"words", "halves", "bytes_"}


def raw_accesses(source: str) -> list[int]:
    """Lines that subscript a view of an object."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr in VIEWS
    ]


@pytest.mark.parametrize(
    "module", [name for name in house.modules() if name.split(".")[0] in ("hw", "host", "kvm", "guest")]
)
def test_only_memory_touches_its_words(module: str) -> None:
    found = raw_accesses(house.modules()[module].read_text(encoding="utf-8"))
    assert found == [] or module == "hw.memory"


def test_a_raw_access_is_found() -> None:
    assert raw_accesses("def f(memory, index):\n    return memory.words[index]\n") == [2]
    assert raw_accesses("def f(memory, hpa):\n    return memory.read_once(hpa)\n") == []
