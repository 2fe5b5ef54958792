#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""A stand-in for QEMU with the plugin loaded: speaks the plugin's stream and the monitor's protocol.

``FAKE_QEMU`` in the environment says how it ends: ``good``, ``reset``, ``triple`` (a reset that nobody asked for),
``dies`` (no END), ``killed``, ``early`` (exit status 1 at once), ``silent`` (the kernel never starts), ``hangs`` (until
SIGTERM), ``slow`` (SIGTERM lets it write one more record, half a second later), ``deaf`` (to SIGTERM), ``watches``
(writes its counts until somebody kills it or the recorder is gone), ``never`` (does not begin); ``old`` and ``other``
are about its version.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import time

HOW = os.environ.get("FAKE_QEMU", "good")
# Left out by reason, seen, in SMM.
COUNTS = struct.pack("<7Q", 5, 0, 0, int(os.environ.get("FAKE_LEFT_OUT", "0")), 0, 1234, 0)
RAW = struct.Struct("<BBHHHQQQ")
TREE = """FlatView #0
 AS "I/O", root: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "memory", root: system
 Root memory region: system
  0000000000000000-00000000000bffff (prio 0, ram): kvmmu-ram
  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom
  0000000000100000-0000000000ffffff (prio 0, ram): kvmmu-ram @0000000000100000
  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
"""
LATER = TREE.replace(
    "00000000000c0000-00000000000dffff (prio 1, rom): pc.rom",
    "00000000000c0000-00000000000dffff (prio 1, rom): kvmmu-ram @00000000000c0000",
)


def option(name: str) -> str:
    values = [sys.argv[at + 1] for at in range(len(sys.argv) - 1) if sys.argv[at] == name]
    return values[-1]


class Monitor:
    def __init__(self, fd: int) -> None:
        self.lines = socket.socket(fileno=fd).makefile("rw")
        self.send({"QMP": {}})
        self.trees = [TREE, LATER]

    def serve(self, until: int) -> None:
        """Answer until ``until`` memory trees were given."""
        given = 0
        while given < until:
            request = json.loads(self.lines.readline())
            command, arguments = request["execute"], request.get("arguments", {})
            answer: object = {}
            if command == "human-monitor-command":
                answer = self.trees.pop(0)
                given += 1
            elif command == "query-cpus-fast":
                answer = [{"qom-path": "/cpu0"}, {"qom-path": "/cpu1"}]
            elif command == "qom-get":
                answer = 40 if arguments["property"] == "phys-bits" else arguments["property"] in ("nx", "la57")
            self.send({"return": answer})

    def facts(self) -> None:
        """Answer the questions about the CPUs that follow the first memory tree."""
        for _ in range(19):
            request = json.loads(self.lines.readline())
            name = request.get("arguments", {}).get("property")
            cpus = [{"qom-path": "/cpu0"}, {"qom-path": "/cpu1"}]
            self.send({"return": cpus if name is None else 40 if name == "phys-bits" else name in ("nx", "la57")})

    def send(self, message: object) -> None:
        self.lines.write(json.dumps(message) + "\n")
        self.lines.flush()


def main() -> int:
    if "--version" in sys.argv:
        print(
            {"old": "QEMU emulator version 7.2.22 (Debian)", "other": "busybox"}.get(
                HOW, "QEMU emulator version 10.0.2 (fake)"
            )
        )
        return 0
    if HOW == "early":
        print("fake: -kernel: no such file", file=sys.stderr)
        return 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    arguments = dict(part.split("=", 1) for part in option("-plugin").split(",")[1:])
    out, control = int(arguments["out"]), os.fdopen(int(arguments["control"]))
    monitor = Monitor(int(option("-chardev").split("fd=")[1].split(",")[0]))

    def put(
        kind: int,
        what: int = 0,
        cpu: int = 0,
        access: int = 0,
        gva: int = 0,
        gpa: int = 0,
        value: int = 0,
        body: bytes = b"",
    ) -> None:
        os.write(out, RAW.pack(kind, what, cpu, access, len(body), gva, gpa, value) + body)

    def read_map() -> list[str]:
        lines = []
        while (line := control.readline()) not in (".\n", ""):
            lines.append(line.strip())
        return lines

    if "FAKE_PID" in os.environ:
        with open(os.environ["FAKE_PID"], "w") as file:
            file.write(str(os.getpid()))
    put(64)
    if HOW == "never":
        time.sleep(60)
    if HOW != "silent":
        put(65, gpa=0x100000)
        monitor.serve(1)
        monitor.facts()
        known = read_map()
        assert known[:2] == ["b 28", "m 0 c0000 1 0 0 0"], known
        put(4, 6, body=struct.pack("<5Q", 1, 0, 0, 0, 0))
        put(3, gpa=0x5000, body=bytes(4096))
        put(1, access=2, gva=0x6010, gpa=0x6010)
        put(66)
        monitor.serve(1)
        changes = [line for line in read_map() if line[0] == "c"]
        assert changes == ["c c0000 20000 2 0 c0000 0"], changes
        put(8, 2, 0, 0, 0xC0000, 0xC0000, 0x20000)
        put(7, cpu=1, gva=0xFEC00000, gpa=0xFEC00000, body=b"abcd")
    if HOW == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if HOW == "dies":
        return 3
    if HOW == "hangs":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        while True:
            time.sleep(1)
    if HOW == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)
    if HOW == "watches":
        while True:
            put(68, body=COUNTS)
            time.sleep(0.2)
    if HOW == "slow":
        asked = []
        signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
        while not asked:
            time.sleep(0.05)
        time.sleep(0.5)
        put(5, gva=0x1000)
    port, value = (0x64, 0xFE) if HOW == "reset" else (0x3F8, 65)
    put(67, access=port, value=value, body=COUNTS)
    if HOW != "silent":
        reason = "guest-reset" if HOW in ("reset", "triple") else "guest-shutdown"
        monitor.send({"event": "SHUTDOWN", "data": {"guest": True, "reason": reason}})
    return 0


sys.exit(main())
