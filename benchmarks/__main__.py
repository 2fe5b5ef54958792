# SPDX-License-Identifier: GPL-2.0-only
"""``python -m benchmarks [NAME ...] [--json FILE] [--strict]``: run each ``bench_NAME.py``, one after the other.

Each runs in a process of its own, so that none finds the memory that another left. ``--json`` also writes the figures
and what they depend on to FILE; ``--strict`` makes a missed target an error.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

_HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(_HERE))

from figures import JSON_VERSION, Figure, machine_facts, number  # noqa: E402  (a program, not a package)


def main(arguments: list[str]) -> int:
    """Run the benchmarks that ``arguments`` name, or all; return 0, or 1 if one failed or is unknown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what README claims.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which benchmarks; none: all")
    parser.add_argument("--json", metavar="FILE", help="write the figures and the machine's facts to FILE")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a target is missed")
    options = parser.parse_args(arguments)
    programs = {path.stem.removeprefix("bench_"): path for path in sorted(_HERE.glob("bench_*.py"))}
    unknown = [name for name in options.names if name not in programs]
    if unknown:
        print(f"benchmarks: no {', '.join(unknown)}; there are {', '.join(programs)}", file=sys.stderr)
        return 1
    facts = machine_facts()
    print(f"kvmmu {facts['kvmmu']}, {facts['build']}; {facts['python']}; {facts['processor']} x {facts['cpus']}")
    results: dict[str, list[dict[str, Any]]] = {}
    failed = []
    for name in options.names or programs:
        done = subprocess.run([sys.executable, str(programs[name]), "--json"], stdout=subprocess.PIPE, check=False)
        if done.returncode:
            failed.append(name)
            continue
        results[name] = json.loads(done.stdout)
        show(name, [Figure(**figure) for figure in results[name]])
    if options.json:
        report = {"version": JSON_VERSION, "machine": facts, "figures": results}
        pathlib.Path(options.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if failed:
        print(f"benchmarks: failed: {', '.join(failed)}", file=sys.stderr)
    missed = [figure["name"] for figures in results.values() for figure in figures if not Figure(**figure).is_met()]
    if missed:
        print(f"benchmarks: targets missed: {', '.join(missed)}", file=sys.stderr)
    return 1 if failed or (missed and options.strict) else 0


def show(name: str, figures: list[Figure]) -> None:
    """Print one benchmark's figures as a table."""
    table = Table(title=name, title_justify="left", box=None, pad_edge=False)
    for header, justify in (("figure", "left"), ("value", "right"), ("unit", "left"), ("target", "left"), ("", "left")):
        table.add_column(header, justify=justify)  # type: ignore[arg-type]
    for figure in figures:
        style = "" if figure.target is None else ("green" if figure.is_met() else "red")
        table.add_row(figure.name, number(figure.value), figure.unit, figure.promise(), figure.note, style=style)
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    print(flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
