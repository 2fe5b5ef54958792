# SPDX-License-Identifier: GPL-2.0-only
"""Who may know whom: the imports of every room, against the table of DESIGN."""

from __future__ import annotations

import ast
import re
import sys

import pytest

import house

_BASE = {"addr", "adjacent", "arguments", "errors", "intervaltree", "lockorder", "page_types", "sync"}
_INSIDE = _BASE | {"params", "tracepoint", "hw", "host", "kvm", "guest"}

#: What a party may import besides itself. A party that is not listed is outside.
ALLOWED: dict[str, set[str]] = {
    "page_types": set(),
    "addr": {"page_types"},
    "adjacent": set(),
    "errors": {"addr"},
    "arguments": {"errors", "page_types"},
    "intervaltree": {"addr", "errors"},
    "lockorder": set(),
    "sync": {"addr", "errors", "lockorder", "page_types"},
    "params": {"addr", "errors"},
    "tracepoint": {"addr", "errors"},
    "hw": _BASE,
    "host": _BASE | {"hw"},
    "kvm": _BASE | {"host", "hw", "params", "tracepoint"},
    "guest": {"addr", "adjacent", "arguments", "errors", "hw", "page_types"},
    "_build": set(),
}

#: What only the rooms named here may import, whatever else they may.
RESERVED = {"cli": {"cli", "__main__"}, "_build": {"", "cli", "record", "replay", "trace"}}


MODULES = house.modules()


def party_of(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def resolve(module: str, is_package: bool, level: int, target: str) -> str:
    """The module that a relative import means: ``hw.paging`` with ``..addr`` is ``addr``."""
    parts = module.split(".") if module else []
    base = parts[: len(parts) - level + (1 if is_package else 0)]
    return ".".join([*base, target]) if target else ".".join(base)


def imports_of(module: str, source: str, is_package: bool) -> tuple[set[str], set[str]]:
    """The modules of the package, and the foreign ones, that a room imports."""
    own, foreign = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            foreign |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            foreign.add(node.module or "")
        elif isinstance(node, ast.ImportFrom):
            base = resolve(module, is_package, node.level, node.module or "")
            for alias in node.names:
                name = f"{base}.{alias.name}".strip(".")
                own.add(name if name in MODULES else base)
    return own, foreign


def header_imports(module: str, text: str) -> set[str]:
    """The rooms that a header cimports by relative name."""
    found = set()
    for dots, target, names in re.findall(r"^from\s+(\.+)([\w.]*)\s+cimport\s+(.+)$", text, re.MULTILINE):
        base = resolve(module, False, len(dots), target)
        found |= {base} if base else {name.strip() for name in names.split(",")}
    return found


def forbidden(module: str, imported: set[str]) -> set[str]:
    """Which of ``imported`` the party of ``module`` may not know."""
    party = party_of(module)
    wrong = set()
    for name in imported:
        other = party_of(name)
        if other == party:
            continue
        allowed = other in ALLOWED[party] if party in ALLOWED else True
        if not allowed or (other in RESERVED and party not in RESERVED[other]):
            wrong.add(name)
    return wrong


@pytest.mark.parametrize("module", list(MODULES))
def test_a_room_imports_only_parties_that_it_may_know(module: str) -> None:
    path = MODULES[module]
    own, _ = imports_of(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    assert forbidden(module, own) == set()


@pytest.mark.parametrize("room", list(house.headers()))
def test_a_header_imports_only_parties_that_it_may_know(room: str) -> None:
    module = room.replace("/", ".")
    assert forbidden(module, header_imports(module, house.headers()[room].read_text(encoding="utf-8"))) == set()


@pytest.mark.parametrize("module", [name for name in MODULES if party_of(name) in _INSIDE])
def test_the_inside_needs_nothing_but_python(module: str) -> None:
    path = MODULES[module]
    _, foreign = imports_of(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    assert {name.split(".")[0] for name in foreign} <= sys.stdlib_module_names


@pytest.mark.parametrize("module", list(MODULES))
def test_a_room_imports_its_own_package_by_relative_name(module: str) -> None:
    path = MODULES[module]
    _, foreign = imports_of(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    assert not {name for name in foreign if name.split(".")[0] == "kvmmu"}


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("hw.tlb", "from ..kvm.mmu.spte import is_mmio_spte"),
        ("hw.tlb", "from .. import kvm"),
        ("hw.tlb", "from ..params import Params"),
        ("host.mm", "from ..kvm.vm import Vm"),
        ("kvm.mmu.fault", "from ...trace.text import render"),
        ("kvm.vm", "from ..guest.tables import Tables"),
        ("guest.tables", "from ..kvm.vm import Vm"),
        ("errors", "from .params import Params"),
        ("replay.run", "from ..cli.status import Status"),
    ],
)
def test_a_forbidden_edge_is_found(module: str, line: str) -> None:
    own, _ = imports_of(module, line, False)
    assert forbidden(module, own)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("kvm.mmu.fault", "from ...hw.bits import PT_PRESENT"),
        ("kvm.mmu.fault", "from .spte import make_spte"),
        ("host.mm", "from .. import addr, errors"),
        ("replay.run", "from ..kvm.vm import Vm"),
    ],
)
def test_an_allowed_edge_is_not_found(module: str, line: str) -> None:
    own, _ = imports_of(module, line, False)
    assert not forbidden(module, own)


def test_a_forbidden_edge_of_a_header_is_found() -> None:
    assert forbidden("hw.tlb", header_imports("hw.tlb", "from ..kvm.mmu.page cimport ShadowPage\n"))
    assert forbidden("hw.tlb", header_imports("hw.tlb", "from .. cimport kvm\n"))
