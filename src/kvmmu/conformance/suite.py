# SPDX-License-Identifier: GPL-2.0-only
"""Recordings of real KVM in folders: which there are, and what came of playing them.

A recording is three files side by side: ``NAME.scn``, ``NAME.MODE.norm[.xz]``, ``NAME.MODE.res[.xz]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import KvmmuError, RecordingError
from .comparison import Difference, Outcome, comparable
from .faultreplay import replay
from .scenario import Scenario, read_scenario
from .transcript import Transcript, read_transcript
from .vmm import MODES

#: A mode of the command line -> modes in files' names.
FAMILIES = {
    "shadow": ("shadow", "shadownx"),
    "tdp": ("tdp", "tdplazy", "tdpnx"),
    "tdp-legacy": ("tdplegacy", "tdplegacynx"),
}
_SUFFIXES = (".norm.xz", ".norm", ".res.xz", ".res", ".scn")


@dataclass(frozen=True, slots=True)
class Recording:
    """The files ``NAME.scn`` and ``NAME.MODE.*`` in ``folder``."""

    folder: Path
    name: str
    mode: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one recording: played (``outcome``), or not (``problem`` says why, in one line).

    ``nr_events``: recorded events that the model has a part in.
    """

    recording: Recording
    nr_events: int = 0
    outcome: Outcome | None = None
    problem: str = ""

    @property
    def is_equal(self) -> bool:
        """Whether all of it was compared, and equal."""
        return self.outcome is not None and self.outcome.is_complete and self.outcome.is_equal

    @property
    def first(self) -> Difference | None:
        """The first difference."""
        return self.outcome.differences[0] if self.outcome is not None and self.outcome.differences else None

    def agrees_on(self, kind: str) -> bool:
        """Whether all of ``kind`` (tables, counters, dirty, results) was compared, and equal."""
        return self.outcome is not None and self.outcome.agrees_on(kind)


def split_name(path: Path) -> tuple[str, str]:
    """Scenario and mode (of a scenario file: "") in the name of ``path``.

    :raises RecordingError: a name of another form.
    """
    for suffix in _SUFFIXES:
        if path.name.endswith(suffix):
            stem = path.name[: -len(suffix)]
            if suffix == ".scn":
                return stem, ""
            name, _, mode = stem.rpartition(".")
            if name and mode in MODES:
                return name, mode
            break
    modes = ", ".join(MODES)
    raise RecordingError(f"{path}: names are NAME.scn, NAME.MODE.norm[.xz] and NAME.MODE.res[.xz]; modes are {modes}")


def find(paths: Iterable[Path], mode: str | None = None) -> tuple[list[Recording], list[str]]:
    """The recordings in ``paths`` (folders, with what is below them, or files of recordings), and what is amiss there.

    ``mode``: one of :data:`FAMILIES`, to leave out the others. A file of a recording stands for the whole of it, a
    scenario for all its recordings. Amiss are a scenario that nothing was recorded of, and a trace without scenario.

    :raises RecordingError: a path that does not exist, or is a file of another kind; a folder with nothing to play.
    """
    found: dict[Recording, None] = {}
    problems: dict[str, None] = {}
    for path in paths:
        if not path.exists():
            raise RecordingError(f"{path}: there is no such file or folder")
        files = _files_below(path) if path.is_dir() else _files_of(path)
        if not files:
            raise RecordingError(f"{path}: holds no recordings: no .scn, .norm, .norm.xz")
        for folder, name, mode_of_file in files:
            if mode is None or mode_of_file in ("", *FAMILIES[mode]):
                _add(Recording(folder, name, mode_of_file), files, mode, found, problems)
    return list(found), list(problems)


Files = dict[tuple[Path, str, str], None]


def _files_below(folder: Path) -> Files:
    files: Files = {}
    for path in sorted(folder.rglob("*")):
        if path.name.endswith(_SUFFIXES) and path.is_file():
            files[(path.parent, *split_name(path))] = None
    return files


# Of a scenario, what was recorded of it.
def _files_of(path: Path) -> Files:
    name, mode = split_name(path)
    if mode:
        return {(path.parent, name, mode): None, (path.parent, name, ""): None}
    files: Files = {(path.parent, name, ""): None}
    for other in sorted(path.parent.iterdir()):
        if other.name.startswith(f"{name}.") and other.name.endswith(_SUFFIXES):
            files[(path.parent, *split_name(other))] = None
    return files


def _add(
    recording: Recording, files: Files, mode: str | None, found: dict[Recording, None], problems: dict[str, None]
) -> None:
    folder, name = recording.folder, recording.name
    if recording.mode:
        found[recording] = None
        if not (folder / f"{name}.scn").exists():
            problems[f"{folder / name}.{recording.mode}: there is no scenario {name}.scn beside it"] = None
            del found[recording]
        return
    wanted = MODES if mode is None else FAMILIES[mode]
    if not any((folder, name, other) in files for other in wanted):
        of = f" in mode {mode}" if mode else ""
        problems[f"{folder / name}.scn: nothing was recorded of it{of}"] = None


def play(recordings: Iterable[Recording], is_exact: bool = False) -> Iterator[Verdict]:
    """Play each, in turn; ``is_exact``: not even the flushes of interrupted passes may differ."""
    for recording in recordings:
        try:
            yield _play(recording, is_exact)
        except KvmmuError as error:
            yield Verdict(recording, problem=" ".join(str(error).split()))


def _play(recording: Recording, is_exact: bool) -> Verdict:
    scenario: Scenario = read_scenario(recording.folder / f"{recording.name}.scn")
    transcript: Transcript = read_transcript(recording.folder, recording.name, recording.mode)
    nr_events = sum(comparable(line) is not None for step in transcript.steps for line in step.events)
    try:
        outcome = replay(scenario, transcript, is_exact)
    except KvmmuError as error:
        return Verdict(recording, nr_events, problem=" ".join(str(error).split()))
    return Verdict(recording, nr_events, outcome)


def side_by_side(difference: Difference, width: int) -> list[str]:
    """``difference`` as lines of at most ``width`` columns: recorded on the left, the model on the right."""
    half = max(20, (width - 7) // 2)
    rows = [("recorded", "model", " ")]
    rows += [(line, line, " ") for line in difference.before]
    recorded, model = list(difference.recorded) or [difference.expected], list(difference.model) or [difference.got]
    for i in range(max(len(recorded), len(model))):
        left = recorded[i] if i < len(recorded) else ""
        right = model[i] if i < len(model) else ""
        rows.append((left, right, " " if left == right else "|"))
    out = [f"line {difference.line}, {difference.place}: {difference.what}"]
    for left, right, sign in rows:
        lefts, rights = _wrapped(left, half), _wrapped(right, half)
        for i in range(max(len(lefts), len(rights))):
            one = lefts[i] if i < len(lefts) else ""
            other = rights[i] if i < len(rights) else ""
            out.append(f"  {one:<{half}} {sign} {other}".rstrip())
    return out


def _wrapped(text: str, width: int) -> list[str]:
    return [text[i : i + width] for i in range(0, len(text), width)] or [""]
