# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu run`` as its users meet it: output, statuses, JSON, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmmu.cli import main
from kvmmu.cli.status import Status
from kvmmu.trace.files import read_event_file
from replay.small import Small


@pytest.fixture
def good(tmp_path: Path) -> Path:
    with Small(tmp_path / "good.kmr") as small:
        for page in range(1, 0x100):
            small.read(page << 12)
    return small.path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    with Small(tmp_path / "bad.kmr") as small:
        small.read(0x5000, gpa=0x6000)
    return small.path


def test_a_verified_recording_ends_with_0_and_a_table(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(good)]) == Status.OK
    out = capsys.readouterr().out
    for word in ("accesses verified", "mismatches", "faults by cause", "map", "shadow pages", "pf_fixed"):
        assert word in out


def test_a_mismatch_ends_with_1_and_shows_both_walks(bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(bad)]) == Status.MISMATCH
    out = capsys.readouterr().out
    assert "gva 0x5000" in out
    assert "the guest's tables:" in out
    assert "the tables that the CPU walks:" in out


def test_json_has_its_keys(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(good), "--json"]) == Status.OK
    result = json.loads(capsys.readouterr().out)
    keys = ["version", "accesses", "mismatches", "faults", "exits", "counters", "shadow_pages"]
    keys += ["seconds", "peak_rss_bytes", "build"]
    assert [key for key in keys if key not in result] == []
    assert result["command"] == "run"
    assert (result["version"], result["accesses"], result["mismatches"]) == (1, 255, 0)
    assert sum(result["faults"].values()) == result["counters"]["pf_taken"]


def test_events_go_to_a_file(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert main(["run", str(good), "--events", str(path)]) == Status.OK
    names = {event[0] for _, _, event in read_event_file(path)}
    assert {"kvm_page_fault", "kvm_mmu_get_page", "kvm_mmu_set_spte"} <= names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mmu", "ept"], "--mmu ept: there is no such MMU"),
        (["--set", "nonsense=1"], "unknown parameter 'nonsense'"),
        (["--set", "host_levels=6"], "host_levels=6: must be 4 or 5"),
        (["--set", "npt=on"], "npt: --mmu shadow decides that"),
        (["--break", "boredom"], "--break boredom: no fault has that cause"),
        (["--from", "9999"], "--from 9999: the recording has 260 records"),
        (["--from", "9", "--until", "9"], "--until 9: must be above --from 9"),
        (["--mmu", "none", "--audit"], "--mmu none has no kvm"),
    ],
)
def test_bad_options_get_one_line(
    good: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(good), *arguments]) == Status.USAGE
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_recording_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tmp_path / "none.kmr")]) == Status.INPUT
    assert "none.kmr" in capsys.readouterr().err


def test_a_truncated_recording_is_refused(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good.write_bytes(good.read_bytes()[:-40])
    assert main(["run", str(good)]) == Status.INPUT
    assert "good.kmr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--events", "x.csv"], ".csv"), (["--set", "host_maxphyaddr=36"], "host_maxphyaddr=40")],
)
def test_what_does_not_fit_the_recording_or_a_file_is_input(
    good: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(good), *arguments]) == Status.INPUT
    assert words in capsys.readouterr().err
