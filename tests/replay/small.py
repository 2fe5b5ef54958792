# SPDX-License-Identifier: GPL-2.0-only
"""Small recordings, made record by record: a 4-level guest with 2 MiB of RAM, ROM at 0x1f0000 and a device above."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from kvmmu.record import format as f
from kvmmu.record.encoder import Registers
from kvmmu.record.writer import Writer

RAM = 0x1F0000
ROM = 0x10000
DEVICE = 0xE000_0000
CR3 = 0x10000
TABLE = 0x13000
LONG = Registers(0x8001_0011, CR3, 0x20, 0xD00, 0)

HEADER = f.Header(
    cpus=2,
    memory=(f.Region(0, RAM, "ram"), f.Region(RAM, ROM, "rom", "ram", RAM)),
    maxphyaddr=40,
    features=("nx", "pdpe1gb", "lm"),
)


def table(entries: dict[int, int]) -> bytes:
    """A page of 512 entries."""
    return b"".join(entries.get(index, 0).to_bytes(8, "little") for index in range(512))


def leaves() -> dict[int, int]:
    """gva N * 4096 -> gpa N * 4096, user, writable; the tables themselves supervisor; page 256 is the device."""
    entries = {index: index << 12 | 0x67 for index in range(1, 0x1F8)}
    entries[0x100] = DEVICE | 0x67
    entries[0x101] = 0
    return entries


class Small:
    """A recording under construction; use as a context manager, then play ``path``."""

    def __init__(self, path: Path, header: f.Header = HEADER) -> None:
        self.path = path
        self.writer = Writer(str(path), header)
        self.encoder: Any = self.writer.encoder

    def __enter__(self) -> Self:
        self.boot(0)
        return self

    def __exit__(self, *error: object) -> None:
        if not self.writer.file.closed:
            self.writer.finish()

    def boot(self, cpu: int) -> None:
        """Tables in memory, long mode on."""
        for gpa, entries in (
            (CR3, {0: 0x11027}),
            (0x11000, {0: 0x12027}),
            (0x12000, {0: TABLE | 0x27}),
            (TABLE, leaves()),
        ):
            self.encoder.snapshot(cpu, gpa, table(entries))
        self.encoder.set_regs(cpu, f.W_INIT, LONG)

    def read(self, gva: int, gpa: int | None = None, access: int = 0, cpu: int = 0) -> None:
        """An access; the machine found ``gpa`` (default: the identity that the tables say)."""
        self.encoder.access(cpu, access, gva, gva if gpa is None else gpa)

    def store(self, gva: int, value: int, size: int = 8, cpu: int = 0) -> None:
        """A store to a guest table."""
        self.encoder.store(cpu, f.K_WRITE, gva, gva, value.to_bytes(size, "little"))

    def flush(self, cpu: int = 0) -> None:
        """The guest loads CR3 again."""
        self.encoder.set_regs(cpu, f.W_CR3, LONG)
