# SPDX-License-Identifier: GPL-2.0-only
"""The hierarchy that kvm prints when the tables of a fault have reserved bits: all its words together.

Two forms: ``------ spte 0x... level 4.`` (before 2021) and ``------ spte = 0x... level = 4, rsvd bits = 0x...``. The
words of one walk are of one format and one kernel: those in which the fewest rules are broken. What is then still
broken is the reason. Source: handle_mmio_page_fault's caller in the sources of :mod:`.layouts`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .find import MAX_LINE, Around
from .layouts import BASELINE_LAYOUT, LAYOUTS, Layout
from .number import parse_number
from .reading import Machine, Reading, bit_names, bits
from .spte import Format, read_spte

_LINE = re.compile(
    r".{0,200}?-{2,8} ?spte =? ?(?:0x)?(?P<spte>[0-9a-f]{1,16}) level =? ?(?P<level>[1-5])\b"
    r"(?P<new>, rsvd bits = (?:0x)?(?P<rsvd>[0-9a-f]{1,16}))?.{0,80}"
)
_HEADER = re.compile(
    r"(?:detect reserved bits on spte|reserved bits set on MMU-present spte), addr (?:0x)?([0-9a-f]{1,16})"
)

#: The first kernel that may print the reserved bits as well, and the first that always does.
_NEW_FORM = (5, 12)
_NO_OLD_FORM = (5, 13)


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the hierarchy."""

    spte: int
    level: int
    #: The reserved bits that the kernel found; None in the old form.
    reserved: int | None


def parse_step(line: str) -> Step | None:
    """The step that ``line`` prints; None for another line."""
    if len(line) > MAX_LINE:
        return None
    match = _LINE.fullmatch(line.rstrip("\r\n"))
    if match is None:
        return None
    reserved = int(match["rsvd"], 16) if match["rsvd"] else None
    return Step(parse_number(match["spte"]).value, int(match["level"]), reserved)


def parse_header(line: str) -> int | None:
    """The faulting address, if ``line`` opens such a hierarchy."""
    match = _HEADER.search(line[:MAX_LINE])
    return int(match[1], 16) if match is not None else None


@dataclass(frozen=True, slots=True)
class Splat:
    """What a hierarchy says."""

    steps: tuple[Step, ...]
    readings: tuple[Reading, ...]
    #: What the words are taken for, why, and what is broken; a line each.
    conclusion: tuple[str, ...]


def read_splat(steps: Sequence[Step], around: Around) -> Splat:
    """All ``steps`` of one hierarchy, read in the format and the layout that explain them best."""
    context = around.context()
    machine = _machine(steps, context.machine)
    layouts = [context.layout] if context.layout is not None else _layouts(steps)
    tables = [context.format] if context.format is not None else [Format.SHADOW, Format.EPT]
    ranked = sorted(
        ((_problems(steps, table, layout, machine), order, table, layout)
         for order, layout in enumerate(layouts) for table in tables),
        key=lambda row: row[:2],
    )  # fmt: skip
    problems, _, table, layout = ranked[0]
    same = [row[3] for row in ranked if row[0] == problems and row[2] is table]
    readings = tuple(_read(step, table, layout, machine) for step in steps)
    # Another format that explains as much is another reading of the whole.
    rivals = [row[2] for row in ranked if row[0] == problems and row[2] is not table]
    conclusion = [_taken_for(table, same, context.format is not None)]
    if rivals:
        conclusion.append(f"as {rivals[0]} tables the words break as many rules: --format says which they are")
    reasons = [
        f"level {step.level}: {problem}"
        for step, reading in zip(steps, readings, strict=True)
        for problem in reading.problems
    ]
    conclusion += [f"reason: {reason}" for reason in reasons]
    if not reasons:
        conclusion.append("no rule is broken in these words" + _width_hint(steps, machine))
    return Splat(tuple(steps), readings, tuple(conclusion))


def _layouts(steps: Sequence[Step]) -> list[Layout]:
    is_new = any(step.reserved is not None for step in steps)
    fitting = [layout for layout in LAYOUTS if (layout.since >= _NEW_FORM if is_new else layout.since < _NO_OLD_FORM)]
    # The baseline first, then the newer ones.
    return sorted(fitting, key=lambda layout: (layout is not BASELINE_LAYOUT, [-part for part in layout.since]))


# Reserved address bits that the kernel found bound the machine's MAXPHYADDR.
def _machine(steps: Sequence[Step], machine: Machine) -> Machine:
    if machine.maxphyaddr is not None:
        return machine
    address = 0
    for step in steps:
        is_large = step.level > 1 and step.spte & 0x80
        low = bits(12, 11 + 9 * (step.level - 1)) if is_large else 0
        address |= (step.reserved or 0) & bits(32, 51) & ~low
    return replace(machine, maxphyaddr=(address & -address).bit_length() - 1) if address else machine


def _read(step: Step, table: Format, layout: Layout, machine: Machine) -> Reading:
    reading = read_spte(step.spte, table, step.level, layout, machine)
    notes = reading.notes
    if step.reserved:
        notes = (*notes, f"the kernel found reserved {bit_names(step.reserved)}")
    return replace(reading, kind=f"{table} spte level {step.level}", notes=notes)


def _problems(steps: Sequence[Step], table: Format, layout: Layout, machine: Machine) -> int:
    return sum(len(read_spte(step.spte, table, step.level, layout, machine).problems) for step in steps)


def _taken_for(table: Format, layouts: list[Layout], is_told: bool) -> str:
    ordered = sorted(layouts, key=lambda layout: layout.since)
    name = replace(ordered[0], until=ordered[-1].until).name
    doubt = "" if any(layout.confirmed for layout in layouts) else " (not confirmed by a source here)"
    how = "as told" if is_told else "which explains the words best"
    shown = "shadow or npt" if table is Format.SHADOW and not is_told else str(table)
    return f"read as {shown} tables ({how}), layout of kernels {name}{doubt}"


def _width_hint(steps: Sequence[Step], machine: Machine) -> str:
    need = max((step.spte & bits(12, 51)).bit_length() for step in steps)
    if machine.maxphyaddr is not None or need <= 32:
        return ""
    return f" where MAXPHYADDR is at least {need}: a smaller one makes address bits reserved"
