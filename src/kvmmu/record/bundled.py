# SPDX-License-Identifier: GPL-2.0-only
"""The recordings that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

from ..errors import RecordingError

RECORDINGS = Path(__file__).parent.parent / "recordings"
#: What was recorded, by name; a recording that is not here is still found.
GUESTS = {
    "linux-6.12-boot": "Linux 6.12 to user space, 5-level tables",
    "linux-6.12-boot-4level": "the same with 4-level tables",
    "linux-6.12-smp2": "the same with two vCPUs",
    "linux-6.12-processes": "fork, copy on write, munmap, exec; a third of the accesses by user code",
    "linux-686-pae-boot": "Linux 6.1, 32-bit with PAE tables",
    "linux-686-boot": "Linux 6.1, 32-bit with 2-level tables",
}


def bundled() -> dict[str, Path]:
    """The files of this installation by name, those of :data:`GUESTS` in its order, then others."""
    found = {path.stem: path for path in sorted(RECORDINGS.glob("*.kmr"))}
    return {name: found[name] for name in (*GUESTS, *found) if name in found}


def find_recording(text: str) -> Path:
    """The file that ``text`` means: a file of that name, or a bundled recording.

    :raises RecordingError: neither is there; a path that leads nowhere is left to who reads it.
    """
    path = Path(text)
    # An empty name is the directory that one is in, for a Path.
    if text and ("/" in text or path.exists()):
        return path
    names = bundled()
    found = names.get(text.removesuffix(".kmr"))
    if found is not None:
        return found
    shown = text if text.strip() and text.isprintable() else repr(text)
    raise RecordingError(f"{shown}: neither a file nor a bundled recording; those are {', '.join(names) or 'missing'}")
