# SPDX-License-Identifier: GPL-2.0-only
"""``python -m benchmarks [NAME ...]``: run each ``bench_NAME.py`` in its own process, one after the other."""

from __future__ import annotations

import pathlib
import platform
import subprocess
import sys

import kvmmu

_HERE = pathlib.Path(__file__).parent


def main(names: list[str]) -> int:
    """Run the benchmarks called ``names``, or all; return 0, or 1 if one failed or is unknown."""
    programs = {path.stem.removeprefix("bench_"): path for path in sorted(_HERE.glob("bench_*.py"))}
    unknown = [name for name in names if name not in programs]
    if unknown:
        print(f"benchmarks: no {', '.join(unknown)}; there are {', '.join(programs)}", file=sys.stderr)
        return 1
    print(f"kvmmu {kvmmu.__version__}, {kvmmu.build_info()}; Python {platform.python_version()}, {_processor()}")
    failed = []
    for name in names or programs:
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, str(programs[name])], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"benchmarks: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _processor() -> str:
    # platform.processor() is empty on Debian.
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
