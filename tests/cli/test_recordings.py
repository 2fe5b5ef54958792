# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu info``, ``cut`` and ``record`` as they are typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kvmmu.cli import main
from kvmmu.cli.status import Status
from kvmmu.record import format as f
from kvmmu.record.encoder import Registers
from kvmmu.record.reader import Reader
from kvmmu.record.writer import Writer

FAKE = str(Path(__file__).parents[1] / "record" / "fake_qemu.py")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Ten records of two CPUs."""
    path = tmp_path / "x.kmr"
    header = f.Header(
        cpus=2, memory=(f.Region(0, 1 << 20, "ram"),), maxphyaddr=40, features=("nx",), command=("qemu", "-m", "1")
    )
    with Writer(str(path), header) as writer:
        writer.encoder.set_regs(0, f.W_INIT, Registers(1, 0x2000, 3, 4))
        writer.encoder.snapshot(0, 0x2000, bytes(4096))
        for index in range(8):
            writer.encoder.access(index & 1, f.K_USER if index < 6 else 0, 0x1000 + index, 0x1000 + index)
        writer.finish(reason="guest-shutdown", seen=1000)
    return path


def test_info_as_json(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(recording), "--json"]) == Status.OK
    info = json.loads(capsys.readouterr().out)
    assert (info["version"], info["format"], info["records"], info["accesses"]) == (1, "1.0", 10, 8)
    assert info["kinds"] == {
        "access": 8, "store": 0, "page": 1, "regs": 1, "invlpg": 0, "invpcid": 0, "mmio": 0, "map": 0
    }  # fmt: skip
    assert info["cpus"] == {"0": 6, "1": 4}
    assert info["user_share"] == 0.75
    assert (info["cr3s"], info["seen"], info["cut"], info["reason"]) == (1, 1000, False, "guest-shutdown")
    assert info["machine"]["maxphyaddr"] == 40
    assert info["decode_seconds"] > 0


def test_info_as_text(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(recording)]) == Status.OK
    text = capsys.readouterr().out
    for words in (
        "qemu -m 1",
        "75.0% by user code",
        "guest-shutdown",
        "10, decoded in",
        "0x00000000000 to 0x00000100000",
    ):
        assert words in text


def test_cut_makes_a_piece(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    piece = tmp_path / "piece.kmr"
    assert main(["cut", str(recording), "--from", "4", "--until", "8", "-o", str(piece)]) == Status.OK
    assert "6 records" in capsys.readouterr().out
    with Reader(str(piece)) as reader:
        assert [reader.next() for _ in range(7)] == [f.K_PAGE, f.K_REGS, *[f.K_ACCESS] * 4, 0]
        assert reader.header.first == 4
    assert main(["info", str(piece)]) == Status.OK
    assert "a piece, from record 4 of the whole" in capsys.readouterr().out


def test_mistakes_are_one_line_and_status_3(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["info", str(tmp_path / "none.kmr")],
        ["info", str(Path(__file__))],
        ["cut", str(recording), "--from", "11", "-o", str(tmp_path / "p")],
    ):
        assert main(arguments) == Status.INPUT
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("kvmmu: ")


def test_record(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvmmu.record.recorder.build_plugin", lambda: tmp_path / "plugin.so")
    output = str(tmp_path / "x.kmr")
    assert main(["record", "-o", output, "--", FAKE, "-m", "16"]) == Status.OK
    said = capsys.readouterr()
    assert "5 records of 1234 accesses seen" in said.out
    assert "added to QEMU's command line: -accel tcg,thread=single" in said.err
    monkeypatch.setenv("FAKE_QEMU", "killed")
    assert main(["record", "-o", output, "--firmware", "--", FAKE]) == Status.USAGE
    assert capsys.readouterr().err == f"kvmmu: {output} exists; --force replaces it\n"
    assert main(["record", "-o", output, "--force", "--firmware", "--", FAKE]) == Status.RECORDER
    said = capsys.readouterr()
    assert "the recording is cut" in said.out


@pytest.mark.parametrize(
    ("how", "arguments"),
    [
        ("old", []),
        ("early", []),
        ("silent", []),
    ],
)
def test_recording_that_fails_has_status_4(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    arguments: list[str],
) -> None:
    monkeypatch.setattr("kvmmu.record.recorder.build_plugin", lambda: tmp_path / "plugin.so")
    monkeypatch.setenv("FAKE_QEMU", how)
    assert main(["record", "-o", str(tmp_path / "x.kmr"), *arguments, "--", FAKE, "-m", "16"]) == Status.RECORDER
    assert capsys.readouterr().err.splitlines()[-1].startswith("kvmmu: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--start", "port:zz"], "--start port:zz: a recording cannot start at 'port:zz'"),
        (["--for", "0"], "--for 0: must be a number of seconds above 0"),
        (["-o", "/no/such/x.kmr"], "cannot write the recording /no/such/x.kmr: No such file or directory"),
    ],
)
def test_values_that_cannot_be_have_status_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.setattr("kvmmu.record.recorder.build_plugin", lambda: tmp_path / "plugin.so")
    output = [] if "-o" in arguments else ["-o", str(tmp_path / "x.kmr")]
    assert main(["record", *output, *arguments, "--", FAKE, "-m", "16"]) == Status.USAGE
    assert capsys.readouterr().err.startswith(f"kvmmu: {words}")


def test_what_was_left_out_is_a_warning_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvmmu.record.recorder.build_plugin", lambda: tmp_path / "plugin.so")
    monkeypatch.setenv("FAKE_LEFT_OUT", "700")
    output = str(tmp_path / "x.kmr")
    assert main(["record", "-o", output, "--", FAKE, "-m", "16"]) == Status.OK
    warning = (
        "kvmmu: warning: 57.1 % of the accesses were left out: 5 stale, 700 table-in-unknown-memory (docs/limits.md)"
    )
    assert capsys.readouterr().err.splitlines()[-1] == warning
    assert main(["info", output]) == Status.OK
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[2:] for line in shown if line.startswith("left out")] == [
        ["5", "stale"],
        ["700", "table-in-unknown-memory"],
    ]
    assert main(["run", output]) in (Status.OK, Status.MISMATCH)
    assert capsys.readouterr().err == f"{warning}\n"


def test_record_without_a_guest_is_a_usage_error(tmp_path: Path) -> None:
    assert main(["record", "-o", str(tmp_path / "x.kmr")]) == Status.USAGE


def test_the_stand_in_runs() -> None:
    assert Path(FAKE).stat().st_mode & 0o100
    assert sys.executable
