# SPDX-License-Identifier: GPL-2.0-only
"""Which build this is: compiled rooms or interpreted ones, and the finders that choose.

The same ``.py`` files make both builds. A room is compiled when an extension module lies beside it; the ``.pxd``
that is its header marks it as one that the compiled build compiles. ``docs/two-builds.md`` has the rules.

Environment, read when ``kvmmu`` is imported:

``KVMMU_PURE=1``              load the ``.py`` of every room, even where an extension lies beside it
``KVMMU_REQUIRE_COMPILED=1``  refuse to be imported unless every room is compiled
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

VERSION = "0.1.0"

_PACKAGE = "kvmmu"
_NOTE = "_build_note.txt"
_HERE = pathlib.Path(__file__).parent


def is_wanted(variable: str) -> bool:
    """Whether the environment sets ``variable`` to something other than nothing or ``0``."""
    return os.environ.get(variable, "") not in ("", "0")


class PureTwin:
    """An import finder that loads a package's sources, and only those, under the name ``top``.

    Under the package's own name it forces the interpreted build; under another (``kvmmu_pure``) it loads the
    interpreted twin beside the compiled build in one process. The package's imports are relative, so the twin
    never reaches a compiled room.
    """

    def __init__(self, top: str, directory: pathlib.Path = _HERE) -> None:
        self.top = top
        self.directory = directory

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Spec of the ``.py`` behind ``fullname``; None for names outside ``top`` and for what has no source."""
        top, *rest = fullname.split(".")
        if top != self.top:
            return None
        place = self.directory.joinpath(*rest)
        init = place / "__init__.py"
        if init.is_file():
            return importlib.util.spec_from_file_location(fullname, str(init), submodule_search_locations=[str(place)])
        source = place.with_name(place.name + ".py")
        if rest and source.is_file():
            return importlib.util.spec_from_file_location(fullname, str(source))
        return None

    def install(self) -> None:
        """Ask this finder before all others; does nothing if one for the same name is there."""
        if not is_twin(self.top):
            sys.meta_path.insert(0, self)


def is_twin(top: str) -> bool:
    """Whether the package called ``top`` is loaded from its sources by a :class:`PureTwin`."""
    return any(type(finder).__name__ == "PureTwin" and getattr(finder, "top", "") == top for finder in sys.meta_path)


@dataclass(frozen=True)
class BuildInfo:
    """What is compiled. ``str()`` of it is what ``kvmmu --version`` prints."""

    #: Version of the package.
    version: str
    #: Every room that the compiled build compiles, as ``hw/paging``.
    rooms: tuple[str, ...]
    #: Those that are compiled here: all of ``rooms``, or none.
    compiled: tuple[str, ...]
    #: Why not all of them are; empty when they are.
    reason: str

    @property
    def is_compiled(self) -> bool:
        """Whether every room is compiled."""
        return self.compiled == self.rooms

    def __str__(self) -> str:
        if self.is_compiled:
            return f"compiled: all {len(self.rooms)} rooms"
        if self.compiled:
            return f"mixed, rebuild it: {len(self.compiled)} of {len(self.rooms)} rooms compiled"
        return f"interpreted: {self.reason}"


def build_info(package: str = _PACKAGE) -> BuildInfo:
    """Which rooms of ``package`` (``kvmmu``, or a twin's name) are compiled, and why not all."""
    rooms = tuple(sorted(str(header.relative_to(_HERE).with_suffix("")) for header in _HERE.rglob("*.pxd")))
    compiled = tuple(room for room in rooms if _is_compiled(package, room))
    if compiled == rooms:
        return BuildInfo(VERSION, rooms, compiled, "")
    return BuildInfo(VERSION, rooms, compiled, _reason(package))


def _is_compiled(package: str, room: str) -> bool:
    # A room that is loaded is what it was loaded from; one that is not is what would be found first.
    module = sys.modules.get(".".join((package, *room.split("/"))))
    if module is not None and module.__file__:
        return not module.__file__.endswith(".py")
    if is_twin(package):
        return False
    return any((_HERE / (room + suffix)).is_file() for suffix in importlib.machinery.EXTENSION_SUFFIXES)


def _reason(package: str) -> str:
    if package == _PACKAGE and is_wanted("KVMMU_PURE"):
        return "KVMMU_PURE is set"
    if is_twin(package):
        return "loaded as the interpreted twin"
    note = _HERE / _NOTE
    if note.is_file():
        return note.read_text(encoding="utf-8").strip()
    return "the rooms have not been compiled (run make)"


def choose_build(package: str) -> None:
    """Apply the environment to ``package`` as it is being imported; called by ``__init__`` before any room.

    Raises :class:`ImportError` where ``KVMMU_REQUIRE_COMPILED`` is set and a room would run interpreted.
    """
    if package != _PACKAGE:
        return
    if is_wanted("KVMMU_PURE"):
        PureTwin(package).install()
    if is_wanted("KVMMU_REQUIRE_COMPILED"):
        info = build_info()
        if not info.is_compiled:
            raise ImportError(f"KVMMU_REQUIRE_COMPILED is set, but this build is {info}", name=package)
