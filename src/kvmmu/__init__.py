# SPDX-License-Identifier: GPL-2.0-only
"""The Linux KVM x86 MMU as a Python package.

The names below are the public API; ``docs/python-api.md`` shows them at work. They are loaded when first used, so
that ``import kvmmu`` and the commands that need no machine stay fast.
"""

from __future__ import annotations

from . import _early  # noqa: F401 (first: from here on the program can be interrupted)

# isort: split
import importlib
from typing import TYPE_CHECKING, Any

from ._build import VERSION, BuildInfo, build_info, choose_build

choose_build(__name__)

if TYPE_CHECKING:
    from .access import Access
    from .emulationfailure import EmulationFailure
    from .errors import (
        ConfigError,
        GuestMisuse,
        KvmBug,
        KvmIoctlError,
        KvmmuError,
        OutOfFrames,
        OutputError,
        RecorderError,
        RecordingError,
        UserError,
    )
    from .guest.tables import ControlRegisters, GuestTables, TablePages
    from .kvm.cpuid import CpuFeatures
    from .kvm.regions import UserMemoryRegion
    from .params import Params
    from .record.bundled import bundled
    from .replay.api import run
    from .replay.replay import MMUS
    from .world import World

__version__ = VERSION

# Room of each name that is loaded on demand.
_ROOMS = {
    "Access": "access",
    "ConfigError": "errors",
    "ControlRegisters": "guest.tables",
    "CpuFeatures": "kvm.cpuid",
    "EmulationFailure": "emulationfailure",
    "GuestMisuse": "errors",
    "GuestTables": "guest.tables",
    "KvmBug": "errors",
    "KvmIoctlError": "errors",
    "KvmmuError": "errors",
    "MMUS": "replay.replay",
    "OutOfFrames": "errors",
    "OutputError": "errors",
    "Params": "params",
    "RecorderError": "errors",
    "RecordingError": "errors",
    "TablePages": "guest.tables",
    "UserError": "errors",
    "UserMemoryRegion": "kvm.regions",
    "World": "world",
    "bundled": "record.bundled",
    "run": "replay.api",
}

__all__ = [
    "Access",
    "BuildInfo",
    "ConfigError",
    "ControlRegisters",
    "CpuFeatures",
    "EmulationFailure",
    "GuestMisuse",
    "GuestTables",
    "KvmBug",
    "KvmIoctlError",
    "KvmmuError",
    "MMUS",
    "OutOfFrames",
    "OutputError",
    "Params",
    "RecorderError",
    "RecordingError",
    "TablePages",
    "UserError",
    "UserMemoryRegion",
    "World",
    "__version__",
    "build_info",
    "bundled",
    "run",
]


def __getattr__(name: str) -> Any:
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{room}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
