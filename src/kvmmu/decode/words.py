# SPDX-License-Identifier: GPL-2.0-only
"""Every reading of a word: what nobody says (kernel, format, level, base) is tried, and what makes sense is shown.

A reading makes sense if the word breaks no rule in it. Where none does, the readings that break the fewest rules are
shown with these rules: then the word is broken, and the rules say how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from itertools import groupby

from ..hw.modes import MODE_4LEVEL, MODES, PagingMode
from .faultcode import read_fault, read_qualification
from .gpte import read_gpte
from .layouts import BASELINE_LAYOUT, LAYOUTS, Layout
from .number import Number
from .reading import Machine, Reading
from .role import read_role
from .spte import Format, read_spte

#: Readings of other kernels that are shown beside the one asked for.
_MOST_OTHERS = 2


_ANY_MACHINE = Machine()


class Kind(StrEnum):
    """What a word is."""

    SPTE = "spte"
    ROLE = "role"
    PFERR = "pferr"
    QUAL = "qual"
    GPTE = "gpte"


@dataclass(frozen=True, slots=True)
class Context:
    """What is known about a word, by options or from the text around it; None: unknown."""

    layout: Layout | None = None
    machine: Machine = _ANY_MACHINE
    format: Format | None = None
    level: int | None = None
    mode: PagingMode | None = None
    #: Other kernels are tried only where the baseline makes no sense of the word: one of thousands.
    is_one_of_many: bool = False
    #: The format is what the text around speaks of, not what somebody said of this word.
    format_is_hint: bool = False


@lru_cache(maxsize=4096)
def read_word(kind: Kind, number: Number, context: Context) -> tuple[Reading, ...]:
    """The readings of ``number`` as a ``kind``, the likeliest first; at least one."""
    return tuple(_read(kind, number, context))


def _read(kind: Kind, number: Number, context: Context) -> list[Reading]:
    readings = _READERS[kind](number.value, context)
    # Nearly every number makes sense as a guest's entry, so that a decimal one says nothing; no tool prints one.
    if number.decimal is None or kind is Kind.GPTE or (kind is Kind.ROLE and number.decimal >> 32):
        return readings
    decimal = _READERS[kind](number.decimal, context)
    if min(len(reading.problems) for reading in decimal):
        return readings
    hex_kind = [replace(reading, kind=f"{reading.kind}, hex {number.value:#x}") for reading in readings]
    decimal = [replace(reading, kind=f"{reading.kind}, decimal, {number.decimal:#x}") for reading in decimal]
    if not min(len(reading.problems) for reading in readings):
        # Plain digits that make sense in both bases: words are hex unless something speaks against it.
        return readings if kind is not Kind.ROLE else [*hex_kind, *decimal]
    return [*decimal, *hex_kind]


# ---- kernels


def _range_name(group: list[Layout]) -> str:
    name = replace(group[0], until=group[-1].until).name
    return f"kernels {name}" if " " in name else f"kernel {name}"


# The readings of each run of kernels in which the word reads the same, newest first.
def _by_kernel(read: Callable[[Layout], list[Reading]]) -> Iterator[tuple[list[Layout], list[Reading]]]:
    rows = [(layout, read(layout)) for layout in reversed(LAYOUTS)]
    for _, run in groupby(rows, key=lambda row: [(reading.text, bool(reading.problems)) for reading in row[1]]):
        group = list(run)
        yield [layout for layout, _ in reversed(group)], group[0][1]


def _note_doubt(readings: Iterable[Reading], group: list[Layout]) -> list[Reading]:
    if any(layout.confirmed for layout in group):
        return list(readings)
    doubt = f"the layout of {_range_name(group)} is not confirmed by a source here"
    return [replace(reading, notes=(*reading.notes, doubt)) for reading in readings]


def _over_kernels(read: Callable[[Layout], list[Reading]], context: Context) -> list[Reading]:
    if context.layout is not None:
        return _note_doubt(read(context.layout), [context.layout])
    mine = read(BASELINE_LAYOUT)
    if context.is_one_of_many and any(not reading.problems for reading in mine):
        return mine
    others: list[Reading] = []
    for group, readings in _by_kernel(read):
        if BASELINE_LAYOUT in group:
            continue
        others += [
            replace(reading, kind=f"{reading.kind}, {_range_name(group)}") for reading in _note_doubt(readings, group)
        ]
    clean = _distinct([reading for reading in others if not reading.problems], mine)[:_MOST_OTHERS]
    if any(not reading.problems for reading in mine):
        # Beside a word that makes sense, other formats of other kernels, and their names of empty and removed entries,
        # say nothing new.
        formats = {reading.kind.split(" ")[0] for reading in mine if not reading.problems}
        clean = [reading for reading in clean if reading.kind.split(" ")[0] in formats]
        clean = [reading for reading in clean if reading.text not in {"NP", "REMOVED", "FROZEN"}]
    if not clean and any(reading.problems for reading in mine):
        fewest = min(len(reading.problems) for reading in mine)
        better = sorted(others, key=lambda reading: len(reading.problems))
        clean = _distinct([reading for reading in better if len(reading.problems) < fewest], mine)[:1]
    if clean and context.is_one_of_many:
        return clean
    if clean and all(reading.problems for reading in mine):
        return [*clean, *(replace(reading, kind=f"{reading.kind}, kernel 6.12") for reading in mine)]
    return [*mine, *clean]


def _distinct(readings: list[Reading], shown: list[Reading]) -> list[Reading]:
    seen = {reading.text for reading in shown}
    kept = []
    for reading in readings:
        if reading.text not in seen:
            seen.add(reading.text)
            kept.append(reading)
    return kept


# ---- sptes


def _read_spte(word: int, context: Context) -> list[Reading]:
    readings = _over_kernels(lambda layout: _spte_readings(word, layout, context), context)
    if context.format_is_hint and context.format is not None and all(reading.problems for reading in readings):
        any_format = replace(context, format=None, format_is_hint=False)
        others = _over_kernels(lambda layout: _spte_readings(word, layout, any_format), any_format)
        if not all(reading.problems for reading in others):
            return [reading for reading in others if not reading.problems]
    return readings


# Over formats and levels, of one kernel: all that make sense, or else the least wrong of each format.
def _spte_readings(word: int, layout: Layout, context: Context) -> list[Reading]:
    formats = [context.format] if context.format is not None else [Format.SHADOW, Format.EPT]
    found = [(table, _format_readings(word, table, layout, context)) for table in formats]
    clean = [reading for _, readings in found for reading in readings if not reading.problems]
    chosen = clean or sorted((_least_wrong(readings) for _, readings in found), key=lambda one: len(one.problems))
    return _distinct(chosen, [])


def _least_wrong(readings: list[Reading]) -> Reading:
    return min(readings, key=lambda reading: len(reading.problems))


def _format_readings(word: int, table: Format, layout: Layout, context: Context) -> list[Reading]:
    if context.level is not None:
        return [_at_level(word, table, context.level, layout, context, level_known=True)]
    readings: list[Reading] = []
    for level in (1, 2, 3):
        reading = _at_level(word, table, level, layout, context, level_known=False)
        if reading.text not in {other.text for other in readings}:
            readings.append(reading)
        if "nonleaf" in reading.text and not reading.problems:
            break
    return readings


def _at_level(word: int, table: Format, level: int, layout: Layout, context: Context, *, level_known: bool) -> Reading:
    reading = read_spte(word, table, level, layout, context.machine)
    if table is Format.SHADOW and context.format is None:
        reading = replace(reading, kind="shadow or npt spte")
    if level_known:
        return replace(reading, kind=f"{reading.kind} level {level}")
    if "nonleaf" in reading.text:
        return replace(reading, text=reading.text.replace(f"nonleaf level {level}", "nonleaf level 2 or above"))
    return reading


# ---- the rest


def _read_role(word: int, context: Context) -> list[Reading]:
    # Every role is one of any kernel: others are asked only where the baseline makes no sense of it.
    return _over_kernels(lambda layout: [read_role(word, layout)], replace(context, is_one_of_many=True))


def _read_pferr(word: int, context: Context) -> list[Reading]:
    return read_fault(word, context.format)


def _read_qual(word: int, _: Context) -> list[Reading]:
    return [read_qualification(word)]


def _read_gpte(word: int, context: Context) -> list[Reading]:
    mode = context.mode
    if mode is None:
        # A table of five levels is none of a mode with four.
        mode = MODES[MODE_4LEVEL + 1 if context.level == 5 else MODE_4LEVEL]
    return [read_gpte(word, min(context.level or 1, mode.levels), mode, context.machine)]


_READERS: dict[Kind, Callable[[int, Context], list[Reading]]] = {
    Kind.SPTE: _read_spte,
    Kind.ROLE: _read_role,
    Kind.PFERR: _read_pferr,
    Kind.QUAL: _read_qual,
    Kind.GPTE: _read_gpte,
}
