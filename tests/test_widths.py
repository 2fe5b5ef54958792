# SPDX-License-Identifier: GPL-2.0-only
"""Width is written down: what C would get wrong without a sound, words and indices, in every compiled room."""

from __future__ import annotations

import ast

import pytest

import house


def width_findings(source: str) -> list[tuple[int, str]]:
    """Line and reason of each expression of a function whose width C would choose."""
    found = []
    for function in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)):
        anded = {
            id(side)
            for node in ast.walk(function)
            if (isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd))
            or (isinstance(node, ast.AugAssign) and isinstance(node.op, ast.BitAnd))
            for side in ((node.left, node.right) if isinstance(node, ast.BinOp) else (node.value,))
        }
        for node in ast.walk(function):
            reason = _reason(node, anded)
            if reason:
                found.append((node.lineno, reason))  # type: ignore[attr-defined]
    return sorted(set(found))


def _reason(node: ast.AST, anded: set[int]) -> str:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.LShift) and isinstance(node.left, ast.Constant):
        return "shift of an untyped constant"
    if isinstance(node, ast.Constant) and type(node.value) is int and node.value >= 2**31:
        return "literal wider than 31 bits"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert) and id(node) not in anded:
        return "~ outside an &"
    # With wraparound off, C reads what lies before the list.
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.UnaryOp) and isinstance(node.slice.op, ast.USub):
        return "index from the end"
    return ""


@pytest.mark.parametrize("room", list(house.headers()))
def test_a_compiled_room_writes_its_widths_down(room: str) -> None:
    source = (house.PACKAGE / f"{room}.py").read_text(encoding="utf-8")
    assert width_findings(source) == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1 << n", "shift of an untyped constant"),
        ("word & 0x000FFFFFFFFFF000", "literal wider than 31 bits"),
        ("word | ~mask", "~ outside an &"),
        ("~mask", "~ outside an &"),
        ("word[-1]", "index from the end"),
    ],
)
def test_a_width_left_to_c_is_found(line: str, reason: str) -> None:
    assert width_findings(f"def f(word, mask, n):\n    return {line}\n") == [(2, reason)]


@pytest.mark.parametrize("line", ["_ONE << n", "word & _ADDRESS_MASK", "word & ~mask", "word & 0x7FFFFFFF"])
def test_a_width_written_down_passes(line: str) -> None:
    assert width_findings(f"def f(word, mask, n):\n    word &= ~mask\n    return {line}\n") == []
