# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu conformance`` as it is typed: what it plays, what it says, how it ends."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path

import pytest

from kvmmu.cli import main
from kvmmu.cli.status import Status

DATA = Path(__file__).parents[1] / "conformance" / "data"
NAME = "rohole"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One scenario, recorded in two modes."""
    for path in (DATA / "6.12").glob(f"{NAME}.*"):
        if ".tdp." not in path.name:
            shutil.copy(path, tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The command's status, and what it prints."""
    status = main(["conformance", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def rewrite(path: Path, old: str, new: str) -> None:
    """Change a compressed file of a recording in one place."""
    text = lzma.decompress(path.read_bytes()).decode()
    assert old in text
    path.write_bytes(lzma.compress(text.replace(old, new, 1).encode()))


def test_equal_recordings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, folder)
    assert (status, err) == (Status.OK, "")
    lines = out.splitlines()
    assert lines[0].startswith(f"{NAME} shadow     equal: 121 of 121 events, 1 dumps")
    assert lines[-1] == "2 of 2 recordings are equal"


def test_a_file_stands_for_its_recording_and_a_scenario_for_all(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file, nr in ((f"{NAME}.shadow.norm.xz", 1), (f"{NAME}.tdplegacy.res.xz", 1), (f"{NAME}.scn", 2)):
        status, out, _ = run(capsys, folder / file)
        assert (status, out.splitlines()[-1]) == (Status.OK, f"{nr} of {nr} recordings are equal")


def test_paths_that_overlap_are_played_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, folder, folder / f"{NAME}.scn")
    assert out.splitlines()[-1] == "2 of 2 recordings are equal"


@pytest.mark.parametrize(("mode", "word"), [("shadow", "shadow"), ("tdp-legacy", "tdplegacy")])
def test_one_mode(folder: Path, capsys: pytest.CaptureFixture[str], mode: str, word: str) -> None:
    status, out, _ = run(capsys, folder, "--mode", mode, "--json")
    facts = json.loads(out)
    assert status == Status.OK
    assert [recording["mode"] for recording in facts["recordings"]] == [word]


def test_files_that_are_not_compressed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in list(folder.glob("*.xz")):
        path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
        path.unlink()
    assert run(capsys, folder)[0] == Status.OK


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(run(capsys, folder, "--json")[1])
    assert facts["command"] == "conformance"
    one = facts["recordings"][0]
    assert one == {
        "name": NAME,
        "mode": "shadow",
        "events": 121,
        "equal": 121,
        "results_equal": True,
        "counters_equal": True,
        "dirty_equal": True,
        "tables_equal": True,
        "predicted": False,
        "first_difference": None,
        "problem": None,
        "compared": one["compared"],
    }
    assert one["compared"]["faults"] == 9


def test_a_difference_is_shown_side_by_side_and_the_rest_is_not_called_equal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(folder / f"{NAME}.shadow.norm.xz", "spte=e63|", "spte=e43|")
    status, out, _ = run(capsys, folder)
    assert status == Status.MISMATCH
    (row,) = [line for line in out.splitlines() if "|PFN" in line and " | " in line]
    assert row.index("spte=e43|") < row.index(" | ") < row.index("spte=e63|")
    assert out.splitlines()[-1] == "1 of 2 recordings are equal, 1 differ"
    one = json.loads(run(capsys, folder, "--json")[1])["recordings"][0]
    assert one["equal"] < one["events"]
    assert (one["results_equal"], one["counters_equal"], one["tables_equal"]) == (False, False, False)
    assert one["first_difference"]["model"] == one["first_difference"]["recorded"].replace("e43|", "e63|")


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [("stat pf_taken ", "stat pf_taken 1", "counters_equal"), ("-> ok ", "-> ok 1", "results_equal")],
)
def test_what_is_compared_beside_events(
    folder: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, key: str
) -> None:
    rewrite(folder / f"{NAME}.shadow.res.xz", old, new)
    status, out, _ = run(capsys, folder, "--json", "--mode", "shadow")
    (one,) = json.loads(out)["recordings"]
    assert status == Status.MISMATCH
    assert [name for name in one if name.endswith("_equal") and not one[name]] == [key]
    assert one["equal"] == one["events"]


def test_an_unknown_mode_is_a_wrong_option(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, folder, "--mode", "ept")
    assert (status, err) == (Status.USAGE, "kvmmu: --mode ept: use shadow, tdp, tdp-legacy\n")


def test_no_path_is_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys)[0] == Status.USAGE


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, tmp_path)
    assert status == Status.INPUT
    assert err == f"kvmmu: {tmp_path}: holds no recordings: no .scn, .norm, .norm.xz\n"


def test_a_path_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, tmp_path / "none")
    assert (status, err) == (Status.INPUT, f"kvmmu: {tmp_path / 'none'}: there is no such file or folder\n")


def test_a_file_of_another_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.kmr").write_bytes(b"x")
    status, _, err = run(capsys, tmp_path / "x.kmr")
    assert status == Status.INPUT
    assert "names are NAME.scn" in err


def test_no_recording_of_the_mode(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / f"{NAME}.scn").rename(folder / "gone.txt")
    status, _, err = run(capsys, folder, "--mode", "tdp")
    assert status == Status.INPUT
    assert "there is no recording of mode tdp" in err


def test_a_scenario_without_a_trace_is_said_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(folder / f"{NAME}.scn", folder / "alone.scn")
    status, out, err = run(capsys, folder)
    assert status == Status.INPUT
    assert out.splitlines()[-1] == "2 of 2 recordings are equal, 1 scenarios or traces are alone"
    assert err == f"kvmmu: {folder / 'alone.scn'}: nothing was recorded of it\n"
    assert json.loads(run(capsys, folder, "--json")[1])["problems"] == [err.removeprefix("kvmmu: ").strip()]


def test_a_trace_without_a_scenario_is_said_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / f"{NAME}.scn").unlink()
    status, out, err = run(capsys, folder)
    assert status == Status.INPUT
    assert out == "0 of 0 recordings are equal, 2 scenarios or traces are alone\n"
    assert "there is no scenario rohole.scn beside it" in err


@pytest.mark.parametrize("suffix", ["norm.xz", "res.xz"])
@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "missing"])
def test_damaged_files_end_only_their_recording(
    folder: Path, capsys: pytest.CaptureFixture[str], suffix: str, damage: str
) -> None:
    path = folder / f"{NAME}.shadow.{suffix}"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "noise": b"\x00noise" * 9}[damage])
    status, out, _ = run(capsys, folder)
    assert status == Status.INPUT
    assert f"{NAME} shadow     cannot be played: {path}: cannot be read: " in out
    assert out.splitlines()[-1] == "1 of 2 recordings are equal, 1 cannot be played"


def test_a_file_that_unpacks_to_too_much(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvmmu.conformance.transcript.MAX_TEXT", 1000)
    status, out, _ = run(capsys, folder)
    assert status == Status.INPUT
    assert "it unpacks to more than" in out


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("op 0 r4", "op x r4"),
        ("op 1 ", "op 999999 "),
        ("exit PF excp", "exit unheard of"),
        ("== hlt\n", "== host getdirty\n== hlt\n"),
        ("== hlt\n", "== host dumpspt\n== hlt\n"),
        ("== hlt\n", "== host frobnicate 1 2\n== hlt\n"),
        ("== hlt\n", "== host setflags 77 1\n== hlt\n"),
        ("== hlt\n", "== slot 77 gpa=0 size=0 flags=0\n== hlt\n"),
        ("== end\n", ""),
    ],
)
def test_traces_that_make_no_sense(folder: Path, capsys: pytest.CaptureFixture[str], old: str, new: str) -> None:
    rewrite(folder / f"{NAME}.shadow.norm.xz", old, new)
    status, out, err = run(capsys, folder, "--mode", "shadow")
    assert status in (Status.INPUT, Status.MISMATCH)
    assert "Traceback" not in err
    assert "cannot be played" in out or "DIFFERS" in out


@pytest.mark.parametrize(
    "line",
    ["slot 5 0x100000000 0x8000000000000 pop", "slot 5 0x1000 0x1000", "mem8 0x7000000000 1", "reg cr3 -1"],
)
def test_scenarios_that_no_machine_has(folder: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    path = folder / f"{NAME}.scn"
    path.write_text(f"{path.read_text()}{line}\n")
    status, out, err = run(capsys, folder)
    assert status == Status.INPUT
    assert out.count("cannot be played") == 3
    assert "Traceback" not in err


def test_results_that_hold_more_than_the_trace_asks_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(folder / f"{NAME}.shadow.res.xz", "hlt", "hlt\nspt root=1000 level=0")
    status, out, _ = run(capsys, folder, "--mode", "shadow")
    assert status == Status.INPUT
    assert "the results hold 2 dumps of tables, the trace asks for 1" in out
