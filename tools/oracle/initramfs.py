# SPDX-License-Identifier: GPL-2.0-only
"""An initramfs with the modules that kvm-amd needs, from an unpacked kernel package: the same bytes each time."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

#: Loaded before the job, in this order with what they depend on; kvm and kvm-amd are the job's own.
FIRST = ("irqbypass", "ccp")
OTHERS = ("kvm", "kvm-amd", "brd")
_FOLDERS = ("bin", "mod", "proc", "sys", "dev", "tmp", "lab", "lab/scn")


def read_module(modules: Path, name: str) -> bytes | None:
    """The module, unpacked; None: built in, or absent."""
    for path in sorted(modules.rglob(f"{name}.ko*")):
        data = path.read_bytes()
        return lzma.decompress(data) if path.suffix == ".xz" else data
    return None


def dependencies(module: bytes) -> list[str]:
    """What the module says that it depends on (``.modinfo``)."""
    start = module.find(b"\0depends=")
    text = module[start + 9 : module.index(b"\0", start + 9)].decode() if start >= 0 else ""
    return [name.replace("_", "-") if name == "kvm_amd" else name for name in text.split(",") if name]


def collect(modules: Path) -> tuple[dict[str, bytes], list[str]]:
    """Modules by name, and the names to load first, in order."""
    found: dict[str, bytes] = {}
    order: list[str] = []

    def add(name: str, is_first: bool) -> None:
        if name in found:
            return
        module = read_module(modules, name)
        if module is None:
            return
        for other in dependencies(module):
            if other != "kvm":
                add(other, True)
        found[name] = module
        if is_first:
            order.append(name)

    for name in FIRST:
        add(name, True)
    for name in OTHERS:
        add(name, False)
    return found, order


def entry(number: int, name: str, mode: int, data: bytes = b"") -> bytes:
    """One member of a cpio archive of the "new ASCII" form."""
    path = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(f"{field:08x}".encode() for field in fields)
    return _padded(head + path) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def build(kernel: Path, busybox: Path, files: dict[str, bytes]) -> bytes:
    """The packed archive: busybox, modules of ``kernel``, and ``files`` (path -> bytes; all may be executed)."""
    (modules,) = (kernel / "lib" / "modules").iterdir()
    found, order = collect(modules)
    out = [entry(i + 1, name, 0o040755) for i, name in enumerate(_FOLDERS)]
    members = {"bin/busybox": busybox.read_bytes(), "mod/first": " ".join(order).encode()}
    members |= {f"mod/{name}.ko": data for name, data in sorted(found.items())}
    members |= files
    out += [entry(100 + i, name, 0o100755, data) for i, (name, data) in enumerate(members.items())]
    out.append(entry(0, "TRAILER!!!", 0))
    return gzip.compress(b"".join(out), 6, mtime=0)
