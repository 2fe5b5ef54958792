# SPDX-License-Identifier: GPL-2.0-only
"""Write the rooms that have a header into ``COMPILED`` of ``build_ext.py``: ``python tools/sync_rooms.py``."""

from __future__ import annotations

import pathlib

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_ORDER = ("addr", "ranges", "sync", "tracepoint", "hw/", "host/", "kvm/", "record/", "replay/")


def rooms() -> list[str]:
    """Every room with a header, party by party, outer rooms first."""
    package = _ROOT / "src" / "kvmmu"
    found = [str(path.relative_to(package).with_suffix("")) for path in package.rglob("*.pxd")]
    return sorted(found, key=lambda room: (_place(room), room.count("/"), room))


def _place(room: str) -> int:
    return next((index for index, start in enumerate(_ORDER) if room.startswith(start)), len(_ORDER))


def main() -> None:
    """Replace the list, and nothing else of the file."""
    file = _ROOT / "build_ext.py"
    text = file.read_text(encoding="utf-8")
    head, rest = text.split("COMPILED = [\n", 1)
    _, tail = rest.split("]\n", 1)
    listed = "".join(f'    "{room}",\n' for room in rooms())
    file.write_text(f"{head}COMPILED = [\n{listed}]\n{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
