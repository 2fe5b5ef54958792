# SPDX-License-Identifier: GPL-2.0-only
"""A record as text and as fields: the lines of ``kvmmu dump`` (``docs/recording-format.md``, "Records as text")."""

from __future__ import annotations

import zlib
from typing import Any

from .format import (
    CAUSE_NAMES,
    K_AC,
    K_ACCESS,
    K_FETCH,
    K_IMPLICIT,
    K_INVLPG,
    K_INVPCID,
    K_MAP,
    K_MMIO,
    K_PAGE,
    K_REGS,
    K_STORE,
    K_USER,
    K_WRITE,
    KIND_NAMES,
    MAP_IO,
    MAP_NAMES,
    MEMORY_UNKNOWN,
)
from .reader import Reader

_REGISTERS = ("cr0", "cr3", "cr4", "efer", "pkru")


def record_fields(reader: Reader) -> dict[str, Any]:
    """The record that ``reader`` holds, for JSON: its number, kind, CPU, and what its kind has; addresses are numbers,
    bytes are hex in the order of memory.
    """
    kind = reader.kind
    fields: dict[str, Any] = {"record": reader.position - 1, "kind": KIND_NAMES[kind], "cpu": reader.cpu}
    if kind in (K_ACCESS, K_STORE, K_MMIO):
        fields |= {"access": describe_access(reader.access), "gva": reader.gva, "gpa": reader.gpa}
    if kind in (K_STORE, K_MMIO):
        fields |= {"size": reader.size, "data": reader.payload().hex()}
    elif kind == K_PAGE:
        fields |= {"gpa": reader.gpa, "data": reader.payload().hex()}
    elif kind == K_REGS:
        fields |= {"cause": CAUSE_NAMES[reader.what]} | {name: getattr(reader, name) for name in _REGISTERS}
    elif kind == K_INVLPG:
        fields |= {"gva": reader.gva}
    elif kind == K_INVPCID:
        fields |= {"type": reader.invpcid_type, "pcid": reader.pcid, "gva": reader.gva}
    elif kind == K_MAP:
        fields |= {"gpa": reader.gpa, "size": reader.map_size, "becomes": MAP_NAMES[reader.map_kind]}
        if reader.map_kind != MAP_IO:
            fields |= {"memory": _memory(reader), "offset": reader.map_offset}
    return fields


def record_line(reader: Reader) -> str:
    """The record that ``reader`` holds as one line of words: its number, kind and CPU, then names and values."""
    fields = record_fields(reader)
    words = [str(fields.pop("record")), fields.pop("kind"), "cpu", str(fields.pop("cpu"))]
    if reader.kind == K_PAGE:
        content = reader.payload()
        entries = sum(content[at : at + 8] != bytes(8) for at in range(0, len(content), 8))
        words += ["gpa", f"{reader.gpa:#x}", "words", str(entries), "crc", f"{zlib.crc32(content):#010x}"]
        return " ".join(words)
    for name, value in fields.items():
        if name in ("access", "cause", "becomes"):
            words.append(value)
        else:
            is_count = name == "type" or (name == "size" and reader.kind != K_MAP)
            words += [name, f"{value:#x}" if isinstance(value, int) and not is_count else str(value)]
    return " ".join(words)


def describe_access(access: int) -> str:
    """An access word (K_*) in words: "user write", "supervisor fetch", "implicit supervisor read" ..."""
    who = "user" if access & K_USER else "supervisor"
    if access & K_IMPLICIT:
        who = f"implicit {who}"
    what = "fetch" if access & K_FETCH else "write" if access & K_WRITE else "read"
    return f"{who} {what}{' ac' if access & K_AC else ''}"


# Name of the memory behind a MAP record; "other" where the header has no name for it.
def _memory(reader: Reader) -> str:
    return "other" if reader.map_memory == MEMORY_UNKNOWN else reader.header.memories[reader.map_memory]
