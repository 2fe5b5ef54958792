# SPDX-License-Identifier: GPL-2.0-only
"""Words once: a constant has one owner, one name and one C type, and nobody keeps an alias of it."""

from __future__ import annotations

import ast
import re
from collections import defaultdict

import pytest

import house


def aliases(source: str) -> list[str]:
    """Module-level assignments of one constant's name, or of a module's attribute, to another name of capitals."""
    found = []
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        target, value = node.targets[0].id, node.value
        if target.startswith("__") or not re.fullmatch(r"_?[A-Z][A-Z0-9_]*", target):
            continue
        name = value.attr if isinstance(value, ast.Attribute) else value.id if isinstance(value, ast.Name) else ""
        if re.fullmatch(r"_?[A-Z][A-Z0-9_]*", name) and (target.startswith("_") or target == name.lstrip("_")):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def typed_names(header: str) -> dict[str, str]:
    """The module-level C words of a header: name -> type."""
    words = {}
    for kind, names in re.findall(
        r"^cdef (u64|u32|u16|u8|s64|int|Py_ssize_t|bint) ([A-Z_][\w, ]*)$", header, re.MULTILINE
    ):
        words |= {name.strip(): kind for name in names.split(",")}
    return words


def bound_names(source: str) -> set[str]:
    """Names that a module assigns or imports at its top."""
    found: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


@pytest.mark.parametrize("module", list(house.modules()))
def test_no_constant_has_an_alias(module: str) -> None:
    assert aliases(house.modules()[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("room", list(house.headers()))
def test_every_typed_word_is_given_its_value(room: str) -> None:
    # A word that a header declares and nobody assigns is 0 in C, and an error only when interpreted.
    words = typed_names(house.headers()[room].read_text(encoding="utf-8"))
    assert set(words) - bound_names((house.PACKAGE / f"{room}.py").read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize("room", list(house.headers()))
def test_a_compiled_room_owns_no_public_word(room: str) -> None:
    # Its header would take the name away from Python.
    words = typed_names(house.headers()[room].read_text(encoding="utf-8"))
    tree = ast.parse((house.PACKAGE / f"{room}.py").read_text(encoding="utf-8"))
    owned = {
        node.targets[0].id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert {name for name in set(words) & owned if not name.startswith("_")} == set()


def test_nobody_imports_a_word_from_a_consumer() -> None:
    typed = {
        room.replace("/", "."): set(typed_names(path.read_text(encoding="utf-8")))
        for room, path in house.headers().items()
    }
    wrong = []
    for module, path in house.modules().items():
        base = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level and node.module:
                origin = ".".join([*base[: len(base) - node.level + 1], node.module])
                wrong += [
                    f"{module}: {alias.name} from {origin}"
                    for alias in node.names
                    if alias.name in typed.get(origin, ())
                ]
    assert wrong == []


def test_a_word_has_one_type_in_all_headers() -> None:
    types: dict[str, set[str]] = defaultdict(set)
    for path in house.headers().values():
        for name, kind in typed_names(path.read_text(encoding="utf-8")).items():
            if not name.startswith("_"):
                types[name].add(kind)
    assert {name: kinds for name, kinds in types.items() if len(kinds) > 1} == {}
    assert len(types) > 200


@pytest.mark.parametrize("line", ["_ACC_WRITE = ACC_WRITE", "_EFAULT = errno.EFAULT", "PT_NX = _PT_NX", "_A = _B"])
def test_an_alias_is_found(line: str) -> None:
    assert aliases(f"import errno\n{line}\n") == [f"2: {line}"]


@pytest.mark.parametrize(
    "line", ["__version__ = VERSION", "_WRITE_USER = A | B", "KVM_HVA_ERR_BAD = PAGE_OFFSET", "_x = Y"]
)
def test_what_is_no_alias_passes(line: str) -> None:
    assert aliases(line + "\n") == []


def test_typed_words_of_every_form_are_read() -> None:
    header = "cdef u64 A, _B\ncdef int C\ncdef class D:\n    cdef u64 e\ncdef u64 walk(u64 f)\ncdef Py_ssize_t G\n"
    assert typed_names(header) == {"A": "u64", "_B": "u64", "C": "int", "G": "Py_ssize_t"}
