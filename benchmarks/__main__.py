# SPDX-License-Identifier: GPL-2.0-only
"""``python -m benchmarks [NAME ...] [--json FILE] [--strict]``: run each ``bench_NAME.py``, one after the other.

Each runs in a process of its own, so that none finds the memory that another left. ``--json`` also writes the figures
and what they depend on to FILE; ``--strict`` makes a missed target an error. With ``--base DIR`` each runs in
alternating rounds in the built tree DIR and in this one: shown is how much more this one takes (:mod:`compare`).
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

_HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(_HERE))

from compare import LEAST_ROUNDS, LIMIT, Comparison, compare, median_of  # noqa: E402  (a program, not a package)
from figures import JSON_VERSION, Figure, machine_facts, number  # noqa: E402


def main(arguments: list[str]) -> int:
    """Run the benchmarks that ``arguments`` name, or all; return 0, or 1 if one failed or is unknown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what README claims.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which benchmarks; none: all")
    parser.add_argument("--json", metavar="FILE", help="write the figures and the machine's facts to FILE")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument("--base", metavar="DIR", type=pathlib.Path, help="compare with the built tree DIR")
    parser.add_argument("--rounds", metavar="N", type=int, default=LEAST_ROUNDS, help="rounds of --base (default: 9)")
    options = parser.parse_args(arguments)
    programs = {path.stem.removeprefix("bench_"): path for path in sorted(_HERE.glob("bench_*.py"))}
    unknown = [name for name in options.names if name not in programs]
    if unknown:
        print(f"benchmarks: no {', '.join(unknown)}; there are {', '.join(programs)}", file=sys.stderr)
        return 1
    facts = machine_facts()
    print(f"kvmmu {facts['kvmmu']}, {facts['build']}; {facts['python']}; {facts['processor']} x {facts['cpus']}")
    if options.base is not None:
        return compare_trees(options.base.resolve(), options.names or list(programs), options)
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


def compare_trees(base: pathlib.Path, names: list[str], options: argparse.Namespace) -> int:
    """Compare benchmarks ``names`` of ``base`` and this tree; return 0; 1 if a median misses LIMIT and ``--strict``."""
    if options.rounds < 1 or not (base / "src" / "kvmmu").is_dir():
        print(f"benchmarks: --base {base} --rounds {options.rounds}: need a tree and a round or more", file=sys.stderr)
        return 1
    print(f"this tree : {base}, {options.rounds} alternating rounds", flush=True)
    medians, results = {}, {}
    for name in names:
        comparisons = compare(base, name, options.rounds)
        medians[name] = median_of(comparisons)
        results[name] = [asdict(comparison) | {"median": comparison.median()} for comparison in comparisons]
        show_comparison(name, comparisons, medians[name])
    if options.json:
        report = {"version": JSON_VERSION, "machine": machine_facts(), "medians": medians, "comparisons": results}
        pathlib.Path(options.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    slower = [name for name, median in medians.items() if median > LIMIT]
    if slower:
        print(f"benchmarks: median above {LIMIT}: {', '.join(slower)}", file=sys.stderr)
    return 1 if slower and options.strict else 0


def show_comparison(name: str, comparisons: list[Comparison], median: float) -> None:
    """Print one benchmark's figures in both trees, and the median of all their ratios."""
    table = Table(title=f"{name}: median of all ratios {median:.3f}", title_justify="left", box=None, pad_edge=False)
    for header in ("figure", "before", "after", "unit", "ratio", "quartiles"):
        table.add_column(header, justify="left" if header in ("figure", "unit") else "right")
    for each in comparisons:
        low, high = each.spread()
        before, after = (number(statistics.median(values)) for values in (each.before, each.after))
        table.add_row(each.name, before, after, each.unit, f"{each.median():.3f}", f"{low:.3f} to {high:.3f}")
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    print(flush=True)


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
