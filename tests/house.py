# SPDX-License-Identifier: GPL-2.0-only
"""Where the project's own files are, for the guards that read them."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import subprocess
from dataclasses import dataclass, field
from types import ModuleType

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "kvmmu"

_SKIPPED = {".git", ".venv", "build", "dist", "out", "__pycache__", ".hypothesis"}
_MADE = (".so", ".pyc", "_cache", ".egg-info")


def modules() -> dict[str, pathlib.Path]:
    """Every module of the package by its name inside it: ``hw.paging``, ``hw`` for ``hw/__init__.py``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def headers() -> dict[str, pathlib.Path]:
    """Every header by the name of its room: ``hw/paging``."""
    return {str(path.relative_to(PACKAGE).with_suffix("")): path for path in sorted(PACKAGE.rglob("*.pxd"))}


def build_settings() -> ModuleType:
    """The build's own module: its list of rooms, its directives."""
    spec = importlib.util.spec_from_file_location("build_ext", ROOT / "build_ext.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled_rooms() -> list[str]:
    """The list of compiled rooms that the build uses."""
    rooms: list[str] = build_settings().COMPILED
    return rooms


def project_files() -> list[pathlib.Path]:
    """Every file that is committed, or would be; where there is no git, every file that no tool made."""
    command = [
        "git",
        "-c",
        "safe.directory=*",
        "-C",
        str(ROOT),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    if (ROOT / ".git").exists():
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
        return [ROOT / name for name in sorted(set(listed)) if name and (ROOT / name).is_file()]
    found = (path for path in sorted(ROOT.rglob("*")) if path.is_file())
    return [path for path in found if not any(_is_made(part) for part in path.relative_to(ROOT).parts)]


def _is_made(part: str) -> bool:
    return part in _SKIPPED or part.endswith(_MADE)


@dataclass
class HeaderClass:
    """One ``cdef class`` of a header."""

    name: str
    fields: list[str] = field(default_factory=list)


def header_classes(text: str) -> dict[str, HeaderClass]:
    """The classes that a header declares, with their fields, in order. Raises ``ValueError`` on unknown lines."""
    classes: dict[str, HeaderClass] = {}
    current: HeaderClass | None = None
    for line in _logical_lines(text):
        if not line.startswith((" ", "\t")):
            found = re.match(r"cdef\s+class\s+(\w+)", line)
            current = classes.setdefault(found[1], HeaderClass(found[1])) if found else None
        elif current is not None:
            current.fields += _declared_fields(line.strip())
    return classes


def _logical_lines(text: str) -> list[str]:
    # Lines without comments and blank ones; a parenthesis left open goes on in the next line.
    lines: list[str] = []
    depth = 0
    for raw in text.splitlines():
        line = raw.split("#", 1)[0].rstrip()
        if not line.strip():
            continue
        if depth:
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
        depth += line.count("(") - line.count(")")
    return lines


def _declared_fields(line: str) -> list[str]:
    if line.startswith(("@", "cpdef ", "pass", '"""', "ctypedef ", "...")):
        return []
    if not line.startswith("cdef "):
        raise ValueError(f"a header's class holds fields and methods, not {line!r}")
    if "(" in line:
        return []
    names = []
    for part in _split_outside_brackets(line):
        names.append(re.sub(r"\[.*", "", re.sub(r"^.*\s(?=\w+(\[\w+\])*$)", "", part.strip())))
    return names


def _split_outside_brackets(text: str) -> list[str]:
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
