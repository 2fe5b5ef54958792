#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Build guest.S and write its bytes as the room ``kvmmu.conformance.guestcode``.  usage: code.py OUT.py"""

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
HEAD = '''# SPDX-License-Identifier: GPL-2.0-only
"""The bytes of the recorder's guest program, by width.

Generated from ``tools/oracle/guest.S`` by ``tools/oracle/code.py``: change it there.

For each width: what lies at CODE (the interpreter) and at USER_CODE (the stub at CPL 3; none in real mode), and the
offsets of the places that the replay must know.
"""

from __future__ import annotations

'''


def build(folder: Path) -> tuple[bytes, dict[str, int]]:
    """The linked bytes, and the offset of each symbol in them."""
    obj, blob = folder / "guest.o", folder / "guest.bin"
    subprocess.run(["gcc", "-c", str(HERE / "guest.S"), "-o", str(obj)], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".rodata", str(obj), str(blob)], check=True)
    listing = subprocess.run(["nm", str(obj)], check=True, capture_output=True, text=True).stdout
    symbols = {name: int(value, 16) for value, _, name in (line.split() for line in listing.splitlines())}
    return blob.read_bytes(), symbols


def literal(name: str, data: bytes) -> str:
    """``data`` as a Python constant."""
    lines = [data[i : i + 52].hex() for i in range(0, len(data), 52)]
    return f"{name} = bytes.fromhex(\n" + "".join(f'    "{line}"\n' for line in lines) + ")\n"


def text() -> str:
    """The room."""
    with tempfile.TemporaryDirectory() as folder:
        blob, symbols = build(Path(folder))
    out = HEAD
    places = {}
    for width in (64, 32, 16):
        at = {name.split("_")[1]: value for name, value in symbols.items() if name.startswith(f"g{width}_")}
        out += literal(f"_CODE_{width}", blob[at["start"] : at["end"]])
        out += literal(f"_USER_{width}", blob[at["ustart"] : at["uend"]]) if "ustart" in at else ""
        start = at["start"]
        places[width] = {name: at[name] - start for name in ("done", "user", "vec") if name in at}
        # The INT that ends an operation at CPL 3 is the stub's last instruction.
        places[width]["user_end"] = at["uend"] - at["ustart"] - 2 if "uend" in at else 0x1000
    out += "\n#: Width -> code at CPL 0, code at CPL 3.\n"
    out += 'BYTES = {64: (_CODE_64, _USER_64), 32: (_CODE_32, _USER_32), 16: (_CODE_16, b"")}\n'
    out += "#: Width -> offsets: the store of the result, the way to CPL 3, the exception stubs, the end at CPL 3.\n"
    out += "PLACES = {\n"
    for width, at in places.items():
        words = ", ".join(f'"{name}": {value:#x}' for name, value in at.items())
        out += f"    {width}: {{{words}}},\n"
    return out + "}\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
