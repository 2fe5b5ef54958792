# SPDX-License-Identifier: GPL-2.0-only
"""Where a kernel image lies in guest memory, so that a recording can begin at its first instruction."""

from __future__ import annotations

import struct
from pathlib import Path

from ..errors import RecorderError

#: Guests without -kernel: boot loaders put a kernel here, firmware runs below it or at the end of low memory.
ANYWHERE = (0x10_0000, 0x200_0000)
_BZIMAGE_LOAD = 0x10_0000
_SECTOR = 512


def entry_range(path: str | None) -> tuple[int, int]:
    """Guest physical addresses (half-open) of the kernel image ``path``: the first instruction executed there is its
    entry.

    ``path`` None (no ``-kernel``): :data:`ANYWHERE`. Knows Linux's bzImage (``Documentation/arch/x86/boot.rst``), ELF
    by its loaded segments, and multiboot by its address fields; anything else is :data:`ANYWHERE` too. Raises
    :class:`RecorderError` when it cannot be read.
    """
    if path is None:
        return ANYWHERE
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise RecorderError(f"cannot read the kernel {path}: {error.strerror or error}") from error
    if data[0x202:0x206] == b"HdrS":
        setup = (data[0x1F1] or 4) + 1
        return _BZIMAGE_LOAD, _BZIMAGE_LOAD + max(len(data) - setup * _SECTOR, _SECTOR)
    return _multiboot_range(data) or _elf_range(data) or ANYWHERE


def _elf_range(data: bytes) -> tuple[int, int] | None:
    if data[:4] != b"\x7fELF":
        return None
    wide = data[4] == 2
    table, size, count = struct.unpack_from("<32xQ14xHH" if wide else "<28xI10xHH", data)
    starts, ends = [], []
    for at in range(table, table + size * count, size):
        kind, *fields = struct.unpack_from("<I20xQQQ" if wide else "<I8xIII", data, at)
        if kind == 1 and fields[2]:
            starts.append(fields[0])
            ends.append(fields[0] + fields[2])
    return (min(starts), max(ends)) if starts else None


def _multiboot_range(data: bytes) -> tuple[int, int] | None:
    for at in range(0, min(len(data), 8192) - 32, 4):
        magic, flags, check = struct.unpack_from("<III", data, at)
        if magic == 0x1BADB002 and (magic + flags + check) & 0xFFFF_FFFF == 0 and flags & 1 << 16:
            load, load_end = struct.unpack_from("<II", data, at + 16)
            return load, load_end or load + len(data)
    return None
