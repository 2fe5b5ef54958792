# SPDX-License-Identifier: GPL-2.0-only
"""The result of a replay as polars data frames. Each begins with ``recording`` (its name) and ``mmu``, and has the same
columns whatever the replay found, so that those of several replays can be put together (``pl.concat``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from ..kvm.mmu.verdict import CAUSES
from ..kvm.stats import VcpuStat, VmStat

if TYPE_CHECKING:
    from .result import Result

_TOTALS = ("accesses", "stores", "emulated_stores", "exits", "mismatches", "smm_records")
_WHO = {"recording": pl.String(), "mmu": pl.String()}
_NAMES = tuple(dict.fromkeys((*VmStat().names(), *VcpuStat().names())))


def _frame(result: Result, schema: dict[str, Any], rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    who = {"recording": Path(result.recording).stem, "mmu": result.mmu}
    # A column that a row does not tell is null: what an MMU without kvm does not have.
    whole = _WHO | schema
    return pl.DataFrame([[(who | row).get(name) for name in whole] for row in rows], schema=whole, orient="row")


def _u64(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, pl.UInt64())


def totals_frame(result: Result) -> pl.DataFrame:
    """One row: what the replay did in all."""
    schema = _u64("first", "until", "records", *_TOTALS, "faults")
    schema |= {"stopped": pl.String(), "seconds": pl.Float64()}
    row = {name: getattr(result, name) for name in (*_TOTALS, "first", "stopped", "seconds")}
    row |= {"until": result.position, "records": result.position - result.first}
    row |= {"faults": sum(result.faults.values())} if result.mmu != "none" else {"exits": None}
    return _frame(result, schema, [row])


def faults_frame(result: Result) -> pl.DataFrame:
    """A row for each cause that happened: ``cause``, ``faults``, the most frequent first."""
    rows = [{"cause": cause, "faults": count} for cause, count in sorted(result.faults.items(), key=lambda x: -x[1])]
    return _frame(result, {"cause": pl.String()} | _u64("faults"), rows)


def intervals_frame(result: Result) -> pl.DataFrame:
    """A row for each interval: what happened in it, with a column of faults for each cause."""
    has_kvm = result.mmu != "none"
    rows = []
    for one in result.intervals:
        row = {name: getattr(one, name) for name in (*_TOTALS, "first", "until")} | {"records": one.until - one.first}
        if has_kvm:
            row |= {"faults": sum(one.faults.values())} | {cause: one.faults.get(cause, 0) for cause in CAUSES[1:]}
        else:
            row |= {"exits": None}
        rows.append(row)
    return _frame(result, _u64("first", "until", "records", *_TOTALS, "faults", *CAUSES[1:]), rows)


def counters_frame(result: Result) -> pl.DataFrame:
    """The counters as they were at the end of each interval, and at the end of the replay: ``position``, a column each.

    Instant ones may fall; the others only grow, and ``pl.col(name).diff()`` is what an interval added.
    """
    if result.mmu == "none":
        return _frame(result, _u64("position", *_NAMES), [])
    rows = [{"position": one.until} | one.counters for one in result.intervals]
    if not rows or rows[-1]["position"] != result.position:
        rows.append({"position": result.position} | result.counters)
    return _frame(result, _u64("position", *_NAMES), rows)
