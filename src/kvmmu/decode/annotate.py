# SPDX-License-Identifier: GPL-2.0-only
"""Text in, annotated text out: every word with its readings below its line, and a summary of a trace at the end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice

from ..trace.forms import PAGE_EVENTS
from ..trace.text import LineCounts, TraceLine, read_event, read_line
from ..tracepoint import EVENTS
from .find import MAX_LINE, Around, Found, find_words, look_around
from .layouts import BASELINE_LAYOUT
from .number import Number, parse_number
from .reading import Reading
from .role import read_role
from .splat import Splat, Step, parse_header, parse_step, read_splat
from .summary import Summary
from .words import Context, Kind, read_word

#: Lines, and characters, that are looked through for what a text says about itself before any is annotated.
_LOOK_AHEAD = 10_000
_LOOK_AHEAD_SIZE = 16 << 20
#: Most lines of one hierarchy.
_MAX_STEPS = 8
_EVENT = re.compile(r"\s*(?:kvm:|kvmmmu:)?(\w{4,40}):\s(.*)")
_BARE = re.compile(r"\s*((?:0x)?[0-9a-f]{1,16}(?:[\s,]{1,8}(?:0x)?[0-9a-f]{1,16}){0,15})[\s,]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Word:
    """A word that was found, with its readings."""

    label: str
    number: Number
    readings: tuple[Reading, ...]

    def lines(self) -> Iterator[str]:
        """The annotation below the word's line."""
        several = len(self.readings) > 1
        for reading in self.readings:
            is_plain = not several and reading.kind.startswith(("role", "gpte", "line of"))
            kind = "" if is_plain else f" as {reading.kind}:"
            yield f"{self.label} {self.number.text}{kind or ':'} {reading.line}"
            yield from (f"  wrong: {problem}" for problem in reading.problems)
            yield from (f"  note: {note}" for note in reading.notes)

    def to_json(self) -> dict[str, object]:
        """The word as a JSON object."""
        return {
            "label": self.label,
            "text": self.number.text,
            "word": f"{self.number.value:#x}",
            "readings": [reading.to_json() for reading in self.readings],
        }


@dataclass(frozen=True, slots=True)
class Annotated:
    """A line of the text, its words, and what is said below it beside them."""

    number: int
    line: str
    words: tuple[Word, ...] = ()
    remarks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The line as a JSON object."""
        return {
            "line": self.number,
            "text": self.line,
            "words": [word.to_json() for word in self.words],
            "remarks": list(self.remarks),
        }


@dataclass(slots=True)
class Annotator:
    """Annotates one text. Lines go through once; :attr:`summary` and :attr:`nr_words` count on the way."""

    options: Context
    summary: Summary = field(default_factory=Summary)
    counts: LineCounts = field(default_factory=LineCounts)
    nr_words: int = 0
    _notes: set[str] = field(default_factory=set)
    #: What a line of the head told about the text, by its number.
    _told: dict[int, tuple[str, ...]] = field(default_factory=dict)
    _remarks: tuple[str, ...] = ()

    def annotate(self, lines: Iterable[str]) -> Iterator[Annotated]:
        """Every line of the text with its words; unchanged and in order."""
        around = Around(self.options)
        lines = iter(lines)
        head: list[str] = []
        size = 0
        for line in islice(lines, _LOOK_AHEAD):
            head.append(line)
            size += len(line)
            if size > _LOOK_AHEAD_SIZE:
                break
        for number, line in enumerate(head, 1):
            told = len(around.told)
            look_around(line, around)
            self._told[number] = tuple(around.told[told:])
        steps: list[Annotated] = []
        for number, line in enumerate(chain(head, lines), 1):
            text = line.rstrip("\r\n")
            if parse_step(text) is not None and len(steps) < _MAX_STEPS:
                steps.append(Annotated(number, text))
                continue
            yield from self._splat(steps, around)
            steps = []
            self._remarks = self._told.pop(number, ())
            if parse_step(text) is not None:
                steps.append(Annotated(number, text))
            else:
                yield self._line(number, text, around)
        yield from self._splat(steps, around)

    def _splat(self, lines: list[Annotated], around: Around) -> Iterator[Annotated]:
        steps: list[Step] = [step for line in lines if (step := parse_step(line.line)) is not None]
        if not steps:
            return
        splat: Splat = read_splat(steps, around)
        for line, step, reading in zip(lines, steps, splat.readings, strict=True):
            self.nr_words += 1
            word = Word("spte", Number(f"{step.spte:#x}", step.spte, None), (reading,))
            is_last = line is lines[-1]
            yield replace(line, words=(word,), remarks=splat.conclusion if is_last else ())

    def _line(self, number: int, text: str, around: Around) -> Annotated:
        trace_line = read_line(text, self.counts)
        event = trace_line or _bare_event(text)
        around.is_trace = event is not None
        remarks = list(self._remarks)
        if trace_line is not None:
            self.summary.add(trace_line)
        address = parse_header(text)
        if address is not None:
            self.nr_words += 1
            remarks.append(f"the fault was at {address:#x} (gfn {address >> 12:#x}); its tables, from the root down:")
        words = [_word(found) for found in find_words(text, around)]
        if event is not None:
            words += _role_words(event, around)
        elif not words and address is None:
            words = list(_bare_words(text, around))
        if trace_line is not None:
            words = [self._without_old_notes(word) for word in words]
        self.nr_words += len(words)
        return Annotated(number, text, tuple(words), tuple(remarks))

    # A trace has each kind of word a thousand times: a note is given once.
    def _without_old_notes(self, word: Word) -> Word:
        readings = []
        for reading in word.readings:
            new = tuple(note for note in reading.notes if note not in self._notes)
            self._notes.update(new)
            readings.append(replace(reading, notes=new))
        return replace(word, readings=tuple(readings))


def _word(found: Found) -> Word:
    if found.kind is None:
        return Word(found.label, found.number, found.readings)
    readings = read_word(found.kind, found.number, found.context)
    if found.is_guess:
        # A dump that does not say whose tables it is of: sptes look like no guest's entries, and the other way round.
        sptes = read_word(Kind.SPTE, found.number, found.context)
        readings = (*readings, *(reading for reading in sptes if _is_present_spte(reading)))
    return Word(found.label, found.number, readings)


# Of the kernel that is known, or the baseline: in others too many entries of guests look like sptes.
def _is_present_spte(reading: Reading) -> bool:
    return (
        "kernel" not in reading.kind and not reading.problems and ("pfn" in reading.text or "nonleaf" in reading.text)
    )


# An event that was pasted without task, CPU and time.
def _bare_event(text: str) -> TraceLine | None:
    match = _EVENT.fullmatch(text[:MAX_LINE])
    if match is None or match[1] not in EVENTS:
        return None
    event, missing = read_event(match[1], match[2].strip(" \0"))
    return TraceLine("", 0, 0, "0", match[1], match[2], event, missing)


# The role of a shadow page that a plugin printed by names of long ago.
def _role_words(line: TraceLine, around: Around) -> Iterator[Word]:
    if line.name not in PAGE_EVENTS or line.event is None or " gen " in line.text or "role=" in line.text:
        return
    role = line.event[3]
    layout = around.context().layout or BASELINE_LAYOUT
    note = "the plugin's pae is bit 4: a 4-byte guest table since 5.17, an 8-byte one before"
    reading = read_role(role, layout)
    yield Word("role", Number(f"{role:#x}", role, None), (replace(reading, notes=(*reading.notes, note)),))


# Words that stand alone: each kind in which they make sense.
def _bare_words(text: str, around: Around) -> Iterator[Word]:
    match = _BARE.fullmatch(text[:256])
    if match is None or len(text) > 256:
        return
    for part in re.split(r"[\s,]+", match[1]):
        if not part.startswith("0x") and (len(part) < 3 or not re.search("[0-9]", part)):
            continue
        number = parse_number(part)
        kinds = [Kind.SPTE, Kind.GPTE, *([Kind.ROLE] if number.value < 1 << 32 else [])]
        # A code with higher bits has a name before it wherever it is printed.
        kinds += [Kind.PFERR] if number.value < 1 << 12 else []
        context = around.context()
        readings = [
            reading
            for kind in kinds
            for reading in read_word(kind, number, context)
            if not reading.problems and not reading.text.startswith("not ")
        ]
        yield Word("word", number, tuple(readings or read_word(Kind.SPTE, number, context)))
