# SPDX-License-Identifier: GPL-2.0-only
"""Ask a running QEMU about its machine: a small client of QEMU's machine protocol, and what its memory tree says."""

from __future__ import annotations

import json
import re
import socket
from typing import Any

from ..errors import RecorderError
from .format import Region

#: CPUID flags that an MMU may care about, in QEMU's spelling.
FEATURES = (
    "pse", "pae", "pge", "pse36", "nx", "pdpe1gb", "lm", "la57", "pcid", "invpcid", "smep", "smap", "pku", "pks",
    "umip", "svm", "vmx"
)  # fmt: skip
_RANGE = re.compile(r"\s*([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, ([\w/-]+)\): (.*?)(?: @([0-9a-f]{16}))?(?: KVM)?$")
_KINDS = {"ram": "ram", "nv-ram": "ram", "rom": "rom", "romd": "rom"}


class Qmp:
    """A connection to QEMU's monitor over ``connection``; ``events`` holds the events that came so far."""

    __slots__ = ("events", "lines", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.events: list[dict[str, Any]] = []
        self.socket = connection
        self.socket.settimeout(60)
        try:
            self.lines = self.socket.makefile("rwb", buffering=0)
            self._receive()
            self.ask("qmp_capabilities")
        except OSError as error:
            self.socket.close()
            raise RecorderError(f"QEMU does not answer on its monitor: {error}") from error

    def ask(self, command: str, **arguments: Any) -> Any:
        """The answer to ``command``; raises :class:`RecorderError` when QEMU refuses or is gone."""
        try:
            self.lines.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        except OSError as error:
            raise RecorderError(f"QEMU closed its monitor: {error.strerror or error}") from error
        while True:
            message = self._receive()
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise RecorderError(f"QEMU refuses {command}: {message['error'].get('desc')}")

    def drain(self) -> None:
        """Read until QEMU closes the connection."""
        try:
            while self._receive():
                pass
        except (OSError, RecorderError):
            pass

    def close(self) -> None:
        """Close the connection."""
        self.lines.close()
        self.socket.close()

    def shutdown_reason(self) -> str | None:
        """Why QEMU stopped (QEMU's ``ShutdownCause``), None when it did not say."""
        for event in self.events:
            if event["event"] == "SHUTDOWN":
                return str(event["data"].get("reason"))
        return None

    def _receive(self) -> dict[str, Any]:
        try:
            line = self.lines.readline()
        except OSError as error:
            raise RecorderError(f"QEMU does not answer on its monitor: {error}") from error
        if not line:
            raise RecorderError("QEMU closed its monitor")
        message: dict[str, Any] = json.loads(line)
        if "event" in message:
            self.events.append(message)
        return message


def memory_map(qmp: Qmp, ram_id: str) -> tuple[Region, ...]:
    """The guest physical memory map as QEMU has it now; the backend ``ram_id`` is called ``ram``."""
    return parse_memory_tree(qmp.ask("human-monitor-command", **{"command-line": "info mtree -f"}), ram_id)


def hotplug_end(qmp: Qmp) -> int:
    """Where the addresses end at which memory can be plugged in; 0: QEMU shows no such range."""
    text = qmp.ask("human-monitor-command", **{"command-line": "info mtree"})
    ends = re.findall(r"-([0-9a-f]{16}) \(prio -?\d+, i/o\): device-memory", text)
    return max((int(end, 16) + 1 for end in ends), default=0)


def parse_memory_tree(text: str, ram_id: str) -> tuple[Region, ...]:
    """The system's flat view in QEMU's ``info mtree -f``, without its I/O. Ranges that are not whole pages are cut to
    whole pages.

    Raises :class:`RecorderError` when the text has no such view.
    """
    regions: list[Region] = []
    inside = False
    for line in text.replace("\r", "").split("\n"):
        if line.startswith("FlatView"):
            if regions:
                break
            inside = False
        elif line.startswith(' AS "memory"'):
            inside = True
        match = _RANGE.match(line) if inside else None
        if match is None or match[3] not in _KINDS:
            continue
        start, end = int(match[1], 16) + 4095 & ~4095, int(match[2], 16) + 1 & ~4095
        if end <= start:
            continue
        name = "ram" if match[4] == ram_id else match[4]
        offset = int(match[5] or "0", 16) + (start - int(match[1], 16))
        regions.append(Region(start, end - start, _KINDS[match[3]], name, offset))
    if not any(region.memory == "ram" for region in regions):
        raise RecorderError("QEMU's memory tree does not show the guest's RAM (info mtree -f)")
    return tuple(sorted(regions, key=lambda region: (region.memory != "ram", region.gpa)))


def cpu_facts(qmp: Qmp) -> tuple[int, int, tuple[str, ...]]:
    """Number of CPUs, physical address bits, and the flags of :data:`FEATURES` that the first CPU has."""
    cpus = qmp.ask("query-cpus-fast")
    path = cpus[0]["qom-path"]
    bits = int(qmp.ask("qom-get", path=path, property="phys-bits"))
    has = tuple(name for name in FEATURES if qmp.ask("qom-get", path=path, property=name))
    return len(cpus), bits, has
