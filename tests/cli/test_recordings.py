# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu info``, ``cut`` and ``record`` as they are typed."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from kvmmu.cli import main
from kvmmu.cli.status import Status
from kvmmu.record import format as f
from kvmmu.record.bundled import bundled
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
        ["dump", str(tmp_path / "none.kmr")],
        ["cut", str(tmp_path / "none.kmr"), "-o", str(tmp_path / "p")],
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
        (["--firmware", "--start", "user"], "--start user: --firmware says another beginning; give one of them"),
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cut", "--from", "5", "--until", "3"], "has the records 0 to 9: cannot cut --from 5 --until 3"),
        (["cut", "--from", "10"], "has the records 0 to 9: cannot cut --from 10 --until 10"),
        (["cut", "--until", "11"], "cannot cut --from 0 --until 11"),
        (["cut", "-o", "/nonexistent/x"], "--output /nonexistent/x: cannot be written"),
        (["cut", "-o", "/"], "--output /: is a directory"),
        (["dump", "--from", "5", "--until", "3"], "has the records 0 to 9: cannot print --from 5 --until 3"),
        (["dump", "--kind", "acces"], "--kind acces: no record is of that kind; take access, store"),
        (["run", "--from", "10", "--until", "5"], "--until 5: must be above --from 10"),
        (["run", "--until", "0"], "--until 0: must be above --from 0"),
        (["run", "--from", "10"], "--from 10: the recording has 10 records"),
    ],
)
def test_an_option_s_value_is_a_wrong_command_line(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    name, *options = arguments
    if name == "cut" and "-o" not in options:
        options += ["-o", str(tmp_path / "piece.kmr")]
    assert main([name, str(recording), *options]) == Status.USAGE
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (tmp_path / "piece.kmr").exists()


@pytest.mark.parametrize(("name", "shown"), [("", "''"), ("\n", r"'\n'"), ("a\nb", r"'a\nb'"), ("boot", "boot")])
def test_a_name_of_nothing_is_shown_as_it_was_given(name: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("info", "dump", "run", "tables"):
        assert main([command, name]) == Status.INPUT
        said = capsys.readouterr().err
        assert said.startswith(f"kvmmu: {shown}: neither a file nor a bundled recording; those are linux-6.12-boot, ")
        assert said.count("\n") == 1


def test_what_is_full_has_status_4(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cut", str(recording), "-o", "/dev/full"]) == Status.RECORDER
    assert (
        capsys.readouterr().err == "kvmmu: /dev/full: cannot be written: No space left on device; there is no piece\n"
    )


def test_dump_as_text(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", str(recording), "--until", "4"]) == Status.OK
    assert capsys.readouterr().out.splitlines() == [
        "0 regs cpu 0 init cr0 0x1 cr3 0x2000 cr4 0x3 efer 0x4 pkru 0x0",
        "1 page cpu 0 gpa 0x2000 words 0 crc 0xc71c0011",
        "2 access cpu 0 user read gva 0x1000 gpa 0x1000",
        "3 access cpu 1 user read gva 0x1001 gpa 0x1001",
    ]
    assert main(["dump", str(recording), "--kind", "regs", "--kind", "page"]) == Status.OK
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["regs", "page"]


def test_dump_knows_every_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.kmr"
    header = f.Header(cpus=1, memory=(f.Region(0, 1 << 20, "ram", "pc.ram"),), maxphyaddr=40)
    with Writer(str(path), header) as writer:
        encoder = writer.encoder
        encoder.snapshot(0, 0x2000, b"\1" + bytes(4095))
        encoder.store(0, f.K_WRITE | f.K_AC, 0x2008, 0x2008, b"12345678")
        encoder.mmio(0, f.K_IMPLICIT, 0xF000, 0xF000_0000, b"\xff")
        encoder.access(0, f.K_USER | f.K_FETCH, 0x3000, 0x3000)
        encoder.invlpg(0, 0x3000)
        encoder.invpcid(0, 1, 7, 0x4000)
        encoder.remap(0, 0xA0000, 0x20000, f.MAP_ROM, (0, 0x1000))
        encoder.remap(0, 0xA0000, 0x20000, f.MAP_RAM, (255, 0))
        encoder.remap(0, 0xA0000, 0x20000, f.MAP_IO, (255, 0))
    assert main(["dump", str(path)]) == Status.OK
    assert capsys.readouterr().out.splitlines() == [
        "0 page cpu 0 gpa 0x2000 words 1 crc 0x9dc4a93d",
        "1 store cpu 0 supervisor write ac gva 0x2008 gpa 0x2008 size 8 data 3132333435363738",
        "2 mmio cpu 0 implicit supervisor read gva 0xf000 gpa 0xf0000000 size 1 data ff",
        "3 access cpu 0 user fetch gva 0x3000 gpa 0x3000",
        "4 invlpg cpu 0 gva 0x3000",
        "5 invpcid cpu 0 type 1 pcid 0x7 gva 0x4000",
        "6 map cpu 0 gpa 0xa0000 size 0x20000 rom memory pc.ram offset 0x1000",
        "7 map cpu 0 gpa 0xa0000 size 0x20000 ram memory other offset 0x0",
        "8 map cpu 0 gpa 0xa0000 size 0x20000 io",
    ]
    assert main(["dump", str(path), "--json", "--from", "6", "--until", "7"]) == Status.OK
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "version": 1,
        "command": "dump",
        "recording": str(path),
        "records": [
            {
                "record": 6, "kind": "map", "cpu": 0, "gpa": 0xA0000, "size": 0x20000, "becomes": "rom",
                "memory": "pc.ram", "offset": 0x1000,
            }
        ],
    }  # fmt: skip


def test_bundled_recordings_have_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recordings", "--json"]) == Status.OK
    rows = json.loads(capsys.readouterr().out)["recordings"]
    assert [row["name"] for row in rows if row["guest"]] == list(bundled())
    assert main(["recordings"]) == Status.OK
    text = capsys.readouterr().out
    for row in rows:
        assert Path(row["path"]).stat().st_size == row["bytes"]
        assert f"{row['records']:,}" in text
        assert row["guest"] in text
    name = rows[0]["name"]
    piece = str(tmp_path / "piece.kmr")
    for arguments in (
        ["run", name, "--until", "50", "--mmu", "none"],
        ["dump", name, "--until", "5"],
        ["dump", f"{name}.kmr", "--until", "5"],
        ["cut", name, "--until", "5", "-o", piece],
        ["info", rows[-1]["name"]],
    ):
        assert main(arguments) == Status.OK
        assert capsys.readouterr().out


@pytest.mark.parametrize("name", ["run", "info", "dump", "cut"])
def test_an_unknown_name_gets_the_names_there_are(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-o", str(tmp_path / "p")] if name == "cut" else []
    assert main([name, "linux-1.0", *options]) == Status.INPUT
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(known in said for known in ("linux-1.0", *bundled()))


def test_a_file_comes_before_a_name(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recording.rename(tmp_path / "linux-6.12-smp2")
    monkeypatch.chdir(tmp_path)
    assert main(["dump", "linux-6.12-smp2"]) == Status.OK
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_info_shows_nothing_that_a_terminal_obeys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.kmr"
    header = f.Header(
        cpus=1,
        memory=(f.Region(0, 4096, "ram", "m\x1b[2J"),),
        maxphyaddr=40,
        machine="\x1b[31mred\ud800\n",
        command=("qemu", "-append", "console=ttyS0 quiet", "it's"),
    )
    with Writer(str(path), header) as writer:
        writer.encoder.invlpg(0, 0)
    assert main(["info", str(path)]) == Status.OK
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "\\x1b[31mred\\ud800\\n" in text
    (guest,) = [line for line in text.splitlines() if line.startswith("guest ")]
    assert shlex.split(guest)[1:] == list(header.command)


def test_info_of_a_piece_does_not_say_how_many_accesses_the_guest_made(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    piece = str(tmp_path / "piece.kmr")
    assert main(["cut", str(recording), "--from", "4", "-o", piece, "--json"]) == Status.OK
    facts = json.loads(capsys.readouterr().out)
    assert (facts["version"], facts["command"], facts["records"]) == (1, "cut", 8)
    assert main(["info", piece]) == Status.OK
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("accesses")]
    assert " of " not in line
