# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu run`` as its users meet it: output, statuses, JSON, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
        (["--audit=half"], "--audit half: there is no such audit; take changed or full"),
        (["--events", "x.csv"], "--events x.csv: the suffix says the form of the file; take .ftrace, .txt"),
        (["--events", "/nonexistent/x.txt"], "--events /nonexistent/x.txt: cannot write events: No such file"),
        (["--set", "host_maxphyaddr=36"], "host_maxphyaddr=36: the recorded guest has 40 physical address bits"),
        (["--interval", "0"], "Invalid value for '--interval': must be greater than or equal to 1"),
        (["--interval", "many"], "Invalid value for '--interval': must be a whole number"),
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


def test_a_truncated_recording_is_read_as_far_as_it_goes(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = good.read_bytes()
    good.write_bytes(whole[:-40])
    assert main(["run", str(good), "--json"]) == Status.OK
    said = capsys.readouterr()
    assert "good.kmr is truncated: its block" in said.err
    assert json.loads(said.out)["cut"] is True
    good.write_bytes(whole[:700])
    assert main(["run", str(good)]) == Status.INPUT
    assert "good.kmr is truncated" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--audit", "--audit=changed", "--audit=full"])
def test_an_audit_may_be_of_what_changed_or_full(
    good: Path, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kvmmu.replay.replay.AUDIT_RECORDS", 50)
    assert main(["run", option, str(good), "--json"]) == Status.OK
    assert json.loads(capsys.readouterr().out)["audits"] == 6


def test_break_shows_the_fault_with_both_walks(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(good), "--break", "map"]) == Status.OK
    out = capsys.readouterr().out
    assert "stopped at the fault asked for" in out
    lines = out[out.index("record 6:") :].splitlines()
    assert lines[0] == "record 6: cpu 0 supervisor read gva 0x2000 (access): map fault"
    assert lines[1] == "  at address 0x2000, error code 0x0; the machine used gpa 0x2000"
    assert lines[2] == "  why no larger page is mapped: guest-page"
    heads = [line for line in lines if line.startswith(("  the ", "  kvm's"))]
    assert heads == ["  the guest's tables:", "  kvm's tables at the fault:", "  kvm's tables after the record:"]
    assert sum(line.startswith("    level") for line in lines) == 12
    assert main(["run", str(good), "--break", "map", "--json"]) == Status.OK
    fault = json.loads(capsys.readouterr().out)["fault"]
    assert (fault["position"], fault["gva"], fault["cause"]) == (6, 0x2000, "map")
    assert fault["limit"] == "guest-page"
    assert [len(fault[walk]) for walk in ("guest_walk", "kvm_walk", "kvm_walk_after")] == [4, 4, 4]


def test_intervals_are_a_table_and_in_the_json(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(good), "--interval", "100"]) == Status.OK
    table = capsys.readouterr().out.partition("per interval")[2].splitlines()
    assert [line.split()[:3] for line in table if line[:4].strip().isdigit()] == [
        ["0", "100", "95"],
        ["100", "200", "100"],
        ["200", "260", "60"],
    ]
    assert main(["run", str(good), "--interval", "100", "--json"]) == Status.OK
    result = json.loads(capsys.readouterr().out)
    assert [one["until"] for one in result["intervals"]] == [100, 200, 260]
    assert sum(one["accesses"] for one in result["intervals"]) == result["accesses"]


def last_table(out: str) -> dict[str, list[str]]:
    """The table that a run of several ends with: the words of each row, by its recording."""
    lines = out.splitlines()
    start = max(number for number, line in enumerate(lines) if line.startswith("recording "))
    return {line.split()[0]: line.split()[1:] for line in lines[start:]}


def test_several_recordings_end_with_one_table(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(good), "linux-6.12-smp2", "--until", "100"]) == Status.OK
    captured = capsys.readouterr()
    rows = last_table(captured.out)
    assert list(rows) == ["recording", str(good), "linux-6.12-smp2", "all"]
    assert rows["recording"] == ["records", "accesses", "faults", "mismatches", "time", "ended"]
    assert (rows[str(good)][:2], rows["all"][0]) == (["100", "95"], "200")
    assert len(captured.out.splitlines()) == 4
    assert captured.err == ""


def test_a_mismatch_in_any_is_status_1_and_is_shown(
    good: Path, bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(bad), "nowhere", str(good)]) == Status.MISMATCH
    captured = capsys.readouterr()
    assert captured.err.startswith("kvmmu: nowhere: neither a file nor a bundled recording")
    assert captured.err.count("\n") == 1
    assert captured.out.startswith(f"{bad}:\nrecord 5: cpu 0 supervisor read gva 0x5000")
    rows = last_table(captured.out)
    assert rows[str(bad)][3] == rows["all"][3] == "1"
    assert rows[str(good)][:2] == ["260", "255"]


def test_a_broken_file_in_the_middle_does_not_stop_the_others(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.kmr"
    broken.write_bytes(good.read_bytes()[:700])
    assert main(["run", str(good), str(broken), str(good)]) == Status.INPUT
    captured = capsys.readouterr()
    assert str(broken) in captured.err
    assert captured.err.count("\n") == 1
    rows = captured.out.splitlines()
    assert len(rows) == 5
    assert rows[2].split() == [str(broken), *"-----", "cannot", "be", "used"]
    assert rows[4].split()[:3] == ["all", "520", "510"]


def test_json_of_several_has_a_result_or_an_error_of_each(
    good: Path, bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--json", str(good), "nowhere", str(bad)]) == Status.MISMATCH
    said = json.loads(capsys.readouterr().out)
    assert list(said) == ["version", "command", "mismatches", "results"]
    assert (said["version"], said["command"], said["mismatches"]) == (1, "run", 1)
    first, second, third = said["results"]
    assert (first["accesses"], third["mismatches"]) == (255, 1)
    assert (second["recording"], second["status"]) == ("nowhere", 3)
    assert second["error"].startswith("nowhere: neither a file")


def test_options_that_do_not_fit_one_of_several(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Small(tmp_path / "short.kmr"):
        pass
    short = str(tmp_path / "short.kmr")
    assert main(["run", short, str(good), "--from", "100"]) == Status.USAGE
    captured = capsys.readouterr()
    assert captured.err == f"kvmmu: {short}: --from 100: the recording has 5 records\n"
    assert last_table(captured.out)[str(good)][0] == "160"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--events", "x.txt"], "--events x.txt: a file takes the events of one recording, not of 2"),
        (["--mmu", "ept"], "--mmu ept: there is no such MMU"),
        (["--break", "boredom"], "--break boredom: no fault has that cause"),
        (["--from", "9", "--until", "5"], "--until 5: must be above --from 9"),
        (["--set", "nonsense=1"], "unknown parameter 'nonsense'"),
        (["--interval", "0"], "Invalid value for '--interval': must be greater than or equal to 1"),
    ],
)
def test_options_that_never_fit_are_one_line_before_any_replay(
    good: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(good), str(good), *arguments]) == Status.USAGE
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_an_interruption_leaves_the_table_of_what_was_done(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kvmmu.replay import replay as room

    whole = room.replay
    calls = []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(room, "replay", interrupted)
    assert main(["run", str(good), "linux-6.12-boot", "linux-6.12-smp2"]) == Status.INTERRUPTED
    captured = capsys.readouterr()
    assert "interrupted before a record of" in captured.err
    assert captured.err.count("\n") == 1
    rows = last_table(captured.out)
    assert rows[str(good)][0] == "260"
    assert rows["linux-6.12-boot"][-2:] == rows["linux-6.12-smp2"][-2:] == ["not", "replayed"]
    assert len(calls) == 2
