# SPDX-License-Identifier: GPL-2.0-only
"""Both builds in one process, and programs that run on each.

A program is a function of a :class:`Build`: it takes its rooms from there, never by import, and returns plain values
(numbers, strings, tuples, lists) that must be equal. An exception is a result too: its kind and its text.

    def program(build: Build) -> object:
        memory = build.room("hw.memory").PhysicalMemory(4, build.room("sync").Gate())
        return memory.read_once(0)

    assert_twins_agree(program)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import kvmmu
from kvmmu._build import PureTwin

TWIN = "kvmmu_pure"


class Build:
    """One of the two builds, by the name that its package is loaded under."""

    def __init__(self, package: str) -> None:
        self.package = package

    def __repr__(self) -> str:
        return f"<{self.package}: {kvmmu.build_info(self.package)}>"

    def room(self, name: str) -> ModuleType:
        """The module ``name`` (``hw.paging``) of this build."""
        return importlib.import_module(f"{self.package}.{name}")


def load_builds() -> tuple[Build, Build]:
    """The compiled build and its interpreted twin. Raises ``AssertionError`` if the first is not compiled."""
    PureTwin(TWIN).install()
    compiled, pure = Build("kvmmu"), Build(TWIN)
    assert kvmmu.build_info().is_compiled, compiled
    importlib.import_module(TWIN)
    return compiled, pure


def outcome(program: Callable[[Build], Any], build: Build) -> tuple[str, Any]:
    """What ``program`` gives on ``build``: ``("value", value)``, or the kind of its exception and the text."""
    try:
        return "value", program(build)
    except Exception as error:  # noqa: BLE001 - any difference between the builds is a finding
        return type(error).__name__, str(error)


def assert_twins_agree(program: Callable[[Build], Any]) -> Any:
    """Run ``program`` on both builds, compare, and return what both gave."""
    compiled, pure = load_builds()
    of_compiled, of_pure = outcome(program, compiled), outcome(program, pure)
    assert of_compiled == of_pure, f"compiled {of_compiled!r}, interpreted {of_pure!r}"
    return of_compiled[1]
