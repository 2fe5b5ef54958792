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
_MULTIBOOT = 0x1BAD_B002
_PT_LOAD = 1
_PT_NOTE = 4
_PHYS32_ENTRY = 18


def entry_range(path: str | None) -> tuple[int, int]:
    """Guest physical addresses (half-open): the first instruction executed there is the kernel image's entry.

    ``path`` None (no ``-kernel``): :data:`ANYWHERE`. Knows multiboot by its address fields and ELF (the entry point
    alone, since firmware may have run in a segment's place), and Linux's bzImage (``Documentation/arch/x86/boot.rst``:
    all of its image); anything else is :data:`ANYWHERE` too. Raises :class:`RecorderError` when it cannot be read.
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
    try:
        entry = _multiboot_entry(data) or _elf_entry(data)
    except (struct.error, ValueError) as error:
        raise RecorderError(f"the kernel {path} is a damaged ELF file: {error}") from error
    return (entry, entry + 1) if entry is not None else ANYWHERE


# Where QEMU begins an ELF file: at the entry of its PVH note, else at its entry point, as a physical address.
def _elf_entry(data: bytes) -> int | None:
    if data[:4] != b"\x7fELF":
        return None
    wide = data[4] == 2
    entry, table, size, count = struct.unpack_from("<24xQQ14xHH" if wide else "<24xII10xHH", data)
    physical = int(entry)
    for at in range(table, table + size * count, size):
        kind, place, virtual, load, length = _program_header(data, at, wide)
        if kind == _PT_LOAD and virtual <= entry < virtual + length:
            physical = load + entry - virtual
    for at in range(table, table + size * count, size):
        kind, place, _, _, length = _program_header(data, at, wide)
        if kind == _PT_NOTE:
            noted = _pvh_entry(data[place : place + length])
            if noted is not None and _multiboot_header(data) is None:
                return noted
    return physical


# Kind, offset in the file, virtual and physical address, bytes in the file.
def _program_header(data: bytes, at: int, wide: bool) -> tuple[int, int, int, int, int]:
    return struct.unpack_from("<I4xQQQQ" if wide else "<IIIII", data, at)


# The note XEN_ELFNOTE_PHYS32_ENTRY, which QEMU obeys where there is no multiboot header.
def _pvh_entry(notes: bytes) -> int | None:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        name = at + 12
        body = name + (name_size + 3 & ~3)
        if kind == _PHYS32_ENTRY and notes[name : name + 3] == b"Xen" and size in (4, 8):
            return int.from_bytes(notes[body : body + size], "little")
        at = body + (size + 3 & ~3)
    return None


# Offset of the multiboot header.
def _multiboot_header(data: bytes) -> int | None:
    for at in range(0, min(len(data), 8192) - 32, 4):
        magic, flags, check = struct.unpack_from("<III", data, at)
        if magic == _MULTIBOOT and (magic + flags + check) & 0xFFFF_FFFF == 0:
            return at
    return None


# The entry that a multiboot header gives, if it gives addresses.
def _multiboot_entry(data: bytes) -> int | None:
    at = _multiboot_header(data)
    if at is None or not struct.unpack_from("<4xI", data, at)[0] & 1 << 16:
        return None
    return int(struct.unpack_from("<28xI", data, at)[0])
