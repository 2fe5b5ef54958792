# SPDX-License-Identifier: GPL-2.0-only
"""The program: what it says, and the one table of exit statuses."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import house
import kvmmu
from kvmmu import cli
from kvmmu.cli import output
from kvmmu.cli.status import MEANINGS, Status, status_of
from kvmmu.errors import (
    ConfigError,
    GuestMisuse,
    KvmBug,
    KvmIoctlError,
    OutputError,
    RecorderError,
    RecordingError,
)
from kvmmu.params import PARAMETERS


class Module:
    """A command's module whose command ends as it is told."""

    def __init__(self, error: BaseException | None, result: int | None = None) -> None:
        self.error = error
        self.result = result

    def command(self) -> int | None:
        if self.error is not None:
            raise self.error
        return self.result


def run_with(monkeypatch: pytest.MonkeyPatch, module: Module) -> int:
    monkeypatch.setattr(cli, "import_module", lambda *_: module)
    return cli.main(["params"])


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ConfigError("npt=2: must be on or off"), 2, "kvmmu: npt=2: must be on or off\n"),
        (GuestMisuse("unaligned table"), 3, "kvmmu: unaligned table\n"),
        (RecordingError("boot.kmr: truncated"), 3, "kvmmu: boot.kmr: truncated\n"),
        (KvmIoctlError(17, "slot 1 overlaps slot 0"), 3, "kvmmu: slot 1 overlaps slot 0\n"),
        (FileNotFoundError(2, "No such file or directory", "x.kmr"), 3, "kvmmu: x.kmr: No such file or directory\n"),
        (OutputError("x.txt: cannot write events"), 4, "kvmmu: x.txt: cannot write events\n"),
        (OSError(5, "Input/output error"), 4, "kvmmu: cannot write: Input/output error\n"),
        (RecorderError("QEMU 7.2 is too old"), 4, "kvmmu: QEMU 7.2 is too old\n"),
        (KeyboardInterrupt(), 130, None),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_an_error_is_one_line_and_its_status(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    text: str | None,
) -> None:
    output = os.dup(1)
    try:
        assert run_with(monkeypatch, Module(error)) == status
    finally:
        os.dup2(output, 1)
        os.close(output)
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert text is None or said == text


@pytest.mark.parametrize("error", [KvmBug("old 0x1 new 0x2"), ZeroDivisionError("division by zero")])
def test_a_bug_shows_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    assert run_with(monkeypatch, Module(error)) == Status.BUG
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert str(error) in said
    assert said.endswith("kvmmu: this is a bug in kvmmu, please report it with the text above\n")


@pytest.mark.parametrize(("result", "status"), [(None, 0), (Status.OK, 0), (Status.MISMATCH, 1)])
def test_what_a_command_returns_is_its_status(monkeypatch: pytest.MonkeyPatch, result: int | None, status: int) -> None:
    assert run_with(monkeypatch, Module(None, result)) == status


@pytest.mark.parametrize("arguments", [["bogus"], ["params", "--bogus"], ["params", "one-too-many"], ["--bogus"]])
def test_a_wrong_command_line_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert cli.main(arguments) == Status.USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("kvmmu: ")
    assert arguments[-1] in said.err
    assert said.err.count("\n") == 1


def test_help_lists_every_command_and_every_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == Status.OK
    said = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f" {name} " in said
    for status, meaning in MEANINGS.items():
        assert f"{status.value:>3}  {meaning}" in said


def test_no_command_is_help_and_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == Status.USAGE
    said = capsys.readouterr()
    assert "Usage" in said.out
    assert said.err == ""


def test_every_status_has_a_meaning() -> None:
    assert set(MEANINGS) == set(Status)


def test_every_kind_of_error_has_a_status_of_the_table() -> None:
    assert status_of(KvmBug("")) is Status.BUG
    assert {status_of(kind("")) for kind in (ConfigError, RecordingError, RecorderError)} <= set(Status)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert cli.main([name, "--help"]) == Status.OK
    assert f"kvmmu {name}" in capsys.readouterr().out


def test_every_file_with_a_command_is_in_the_table() -> None:
    files = (house.PACKAGE / "cli").glob("*.py")
    commands = {path.stem for path in files if "\ndef command(" in path.read_text(encoding="utf-8")}
    assert commands == set(cli.COMMANDS)


def test_version_names_version_and_build(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == Status.OK
    assert capsys.readouterr().out == f"kvmmu {kvmmu.__version__}, {kvmmu.build_info()}\n"


def run_program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": str(pathlib.Path(kvmmu.__file__).parent.parent)}
    return subprocess.run(
        [sys.executable, "-m", "kvmmu", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | paths | environment,
        check=False,
    )


def test_no_color_is_respected() -> None:
    coloured = run_program("--help", FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="")
    plain = run_program("--help", FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="1")
    assert "\x1b[3" in coloured.stdout or "\x1b[1;3" in coloured.stdout
    assert "\x1b[3" not in plain.stdout
    assert "\x1b[1;3" not in plain.stdout


def test_a_reader_that_goes_away_ends_the_program_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as output:
        done = subprocess.run(
            [sys.executable, "-m", "kvmmu", "params"],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(pathlib.Path(kvmmu.__file__).parent.parent)},
            check=False,
        )
    assert done.stderr == ""
    assert done.returncode == Status.NO_READER


def test_params_prints_every_parameter(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["params"]) == Status.OK
    said = capsys.readouterr().out
    assert all(parameter.name in said and parameter.kernel in said for parameter in PARAMETERS)


def test_params_as_json_has_a_version_and_every_parameter(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["params", "--json"]) == Status.OK
    said = json.loads(capsys.readouterr().out)
    assert said["version"] == 1
    rows = {row["name"]: row for row in said["parameters"]}
    assert set(rows) == {parameter.name for parameter in PARAMETERS}
    assert rows["mmio_caching"]["kernel"] == "kvm.mmio_caching"
    assert rows["mmio_caching"]["default"] is True
    assert rows["host_levels"]["kernel"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["decode", "--mode", "bogus", "gpte", "1"], "Invalid value for '--mode': 'bogus' is not one of"),
        (["run", "--from", "-1"], "'--from': must be greater than or equal to 0"),
        (["run", "--from", "x"], "'--from': must be a whole number"),
    ],
)
def test_usage_errors_speak_of_what_was_typed(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert cli.main(arguments) == Status.USAGE
    said = capsys.readouterr().err
    assert words in said
    assert f"(kvmmu {arguments[0]} --help)" in said
    assert "Value error" not in said
    assert "Input should" not in said


@pytest.mark.parametrize("name", ["", *cli.COMMANDS])
@pytest.mark.parametrize("width", [60, 80, 132])
def test_help_names_no_types_and_fills_its_lines(
    name: str, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.main([*name.split(), "--help"]) == Status.OK
    lines = capsys.readouterr().out.splitlines()
    lines = [line for line in lines if not line[:3].strip().isdigit()]  # the table of statuses stays as it is
    assert max(map(len, lines)) <= width
    assert [line for line in lines if "<" in line or "[[" in line or "{" in line] == []
    # Values have a name of their own, or are listed; dump lists its kinds of records beside it.
    options = [line.split() for line in lines if line.startswith("  --")]
    named = {words[0] for words in options if words[0].strip("-").upper() == " ".join(words[1:2])}
    assert named <= ({"--kind"} if name == "dump" else set())
    assert [words for words in options if "_" in " ".join(words[:2])] == []
    assert any(words[0] == "--help," and words[1] == "-h" for words in options)
    # Inside a paragraph, a line ends where the next word would not fit.
    for line, after in itertools.pairwise(lines):
        if line and after and not line.startswith((" ", "Usage")) and not line.endswith(":") and after[0] != " ":
            assert len(line) + 1 + len(after.split()[0]) > min(width, 100)


def test_no_color_leaves_only_text(tmp_path: pathlib.Path) -> None:
    colours = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    for arguments in (["--help"], ["run", "--help"], ["params"], ["run", "--until", "2000", "linux-6.12-boot"]):
        assert "\x1b" in run_program(*arguments, **colours, NO_COLOR="").stdout
        assert "\x1b" not in run_program(*arguments, **colours, NO_COLOR="1").stdout


def test_no_color_and_dumb_terminals_get_no_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for name, value, shown in (("NO_COLOR", "1", False), ("TERM", "dumb", False), ("TERM", "xterm", True)):
        with monkeypatch.context() as context:
            context.delenv("NO_COLOR", raising=False)
            context.setenv(name, value)
            assert output.shows_progress() == shown


def shell(command: str) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": str(pathlib.Path(kvmmu.__file__).parent.parent)}
    text = command.replace("kvmmu", f"{sys.executable} -m kvmmu")
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True, env=os.environ | paths, check=False)


def test_output_that_nobody_gets_is_no_mismatch() -> None:
    assert shell("kvmmu run --until 2000 >&-").returncode == Status.NO_READER
    assert shell("kvmmu params >&-").returncode == Status.NO_READER
    done = shell("kvmmu params > /dev/full")
    assert done.returncode == Status.RECORDER
    assert done.stderr == "kvmmu: cannot write: No space left on device\n"
    assert shell("kvmmu dump linux-6.12-smp2 | head -1; exit ${PIPESTATUS[0]}").returncode == Status.NO_READER
    assert shell("kvmmu info nothing 2>&-").returncode == Status.INPUT


@pytest.mark.parametrize("width", [10, 40, 80, 200])
def test_no_table_leaves_out_what_does_not_fit(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    words = ["run", "linux-686-boot", "--until", "60000", "--interval", "20000"]
    assert cli.main(words) == Status.OK
    text = capsys.readouterr().out
    assert "…" not in text
    assert cli.main([*words, "--json"]) == Status.OK
    result = json.loads(capsys.readouterr().out)
    rows = [line.split() for line in text.splitlines() if line.strip()]
    for one in result["intervals"]:
        counts = [one["first"], one["until"], one["accesses"], one["stores"]]
        counts += [one["faults"].get(cause, 0) for cause in result["faults"]]
        assert [f"{count:,}" for count in counts] in rows
    for name, count in result["counters"].items():
        assert not count or [name, f"{count:,}"] in rows
    assert cli.main(["params"]) == Status.OK
    text = capsys.readouterr().out
    assert "…" not in text
    begins = [line.split()[:3] for line in text.splitlines() if line.strip()]
    for row in PARAMETERS:
        assert [row.name, row.show(row.default), row.kernel or "-"] in begins


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16", "utf-8:strict"])
def test_what_an_encoding_lacks_is_escaped(encoding: str, tmp_path: pathlib.Path) -> None:
    for words in ("params", "run --until 2000", "run --until 9 linux-686-boot linux-6.12-boot", "info linux-686-boot"):
        done = run_program(*words.split(), PYTHONIOENCODING=encoding, PYTHONUTF8="0")
        assert (done.returncode, done.stderr) == (0, ""), words
    # A name that is no text.
    done = shell(f"PYTHONIOENCODING={encoding} kvmmu cut linux-686-boot --until 9 -o {tmp_path}/$'\\xff'.kmr")
    assert done.returncode == 0
    assert [os.fsencode(path.name) for path in tmp_path.iterdir()] == [b"\xff.kmr"]


def test_a_working_directory_that_is_gone_is_no_full_disk() -> None:
    done = shell(
        "mkdir /tmp/gone.$$ && cd /tmp/gone.$$ && rmdir /tmp/gone.$$ && kvmmu cut linux-686-boot --until 9 -o p"
    )
    assert done.returncode == Status.USAGE
    assert done.stderr == "kvmmu: --output p: cannot be written: No such file or directory\n"
    assert shell("kvmmu params 1</dev/null").stderr == "kvmmu: cannot write: Bad file descriptor\n"


#: Every command, and what else prints, as text and as JSON.
PRINTERS = [
    "--version",
    "--help",
    *(f"{name} --help" for name in cli.COMMANDS),
    *(
        f"{words}{form}"
        for words in (
            "run --until 2000",
            "run --until 2000 linux-6.12-boot linux-686-boot",
            "recordings",
            "info linux-686-boot",
            "dump linux-686-boot --until 4000",
            "tables linux-686-boot --at 3000",
            "params",
            "decode spte 8e67",
        )
        for form in ("", " --json")
    ),
    "cut linux-686-boot --from 5 --until 9 -o PLACE/piece.kmr",
    "cut linux-686-boot --from 5 --until 9 -o PLACE/piece.kmr --json",
]


@pytest.mark.parametrize("words", PRINTERS)
def test_a_full_disk_under_standard_output_is_status_4(words: str, tmp_path: pathlib.Path) -> None:
    done = shell(f"kvmmu {words.replace('PLACE', str(tmp_path))} > /dev/full")
    assert (done.returncode, done.stderr) == (4, "kvmmu: cannot write: No space left on device\n")


def test_output_beyond_a_limit_is_status_4_too(tmp_path: pathlib.Path) -> None:
    """``ulimit -f``; so is whatever else a device says to a write."""
    out = tmp_path / "out"
    done = shell(f"ulimit -f 16; kvmmu dump linux-686-boot --until 4000 > {out}")
    assert (done.returncode, done.stderr) == (4, "kvmmu: cannot write: File too large\n")
    assert out.stat().st_size == 16 << 10


@pytest.mark.parametrize("suffix", [".txt", ".ftrace", ".jsonl", ".parquet"])
def test_events_that_cannot_be_written_are_status_4_and_name_their_file(suffix: str, tmp_path: pathlib.Path) -> None:
    events = tmp_path / f"events{suffix}"
    done = shell(f"ulimit -f 16; kvmmu run linux-686-boot --until 60000 --events {events}")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"kvmmu: {events}: cannot write events: File too large\n"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_events_on_a_full_disk_are_status_4(suffix: str, tmp_path: pathlib.Path) -> None:
    events = tmp_path / f"events{suffix}"
    events.symlink_to("/dev/full")
    done = shell(f"kvmmu run linux-686-boot --until 60000 --events {events}")
    assert (done.returncode, done.stdout) == (4, "")
    reason = "No space left on device: free some space, or write the events elsewhere"
    assert done.stderr == f"kvmmu: {events}: cannot write events: {reason}\n"


def test_a_piece_that_cannot_be_written_is_status_4_and_nothing_stays(tmp_path: pathlib.Path) -> None:
    piece = tmp_path / "piece.kmr"
    done = shell(f"ulimit -f 16; kvmmu cut linux-686-boot --until 300000 -o {piece}")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"kvmmu: {piece}: cannot be written: File too large; there is no piece\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["info", "linux-6.12-boot"], ["dump", "linux-6.12-boot"], ["params"]])
def test_an_interruption_is_one_line_whenever_it_comes(arguments: list[str]) -> None:
    # From the moment on at which the package begins to be imported: before that, the interpreter is alone.
    code = (
        "import sys, os; sys.argv[0] = 'kvmmu'; print('go', flush=True); import kvmmu.cli; sys.exit(kvmmu.cli.main())"
    )
    for delay in (0.02, 0.05, 0.1, 0.2, 0.4):
        with subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(pathlib.Path(kvmmu.__file__).parent.parent)},
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate()
        assert process.returncode in (Status.OK, Status.INTERRUPTED), said
        if process.returncode == Status.INTERRUPTED:
            assert said.startswith("kvmmu: interrupted")
            assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "place", "words"),
    [
        ("info", "kvmmu.record.reader.Reader.next", "interrupted after counting"),
        ("dump", "kvmmu.record.describe.record_line", "interrupted at record 1 of 1649450"),
        ("cut", "kvmmu.record.piece.copy_record", "p.kmr is not written"),
        ("run", "kvmmu.replay.replay.build_machine", "interrupted before a record of"),
        ("params", "kvmmu.cli.params.json_text", "interrupted"),
        ("tables", "kvmmu.replay.tables.build_machine", "interrupted at record 0 of 1649450"),
    ],
)
def test_an_interrupted_command_says_how_far_it_came(
    name: str,
    place: str,
    words: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if name == "info":
        monkeypatch.setattr("kvmmu.record.piece.summarize", interrupt)
    else:
        monkeypatch.setattr(place, interrupt)
    options = {"cut": ["-o", str(tmp_path / "p.kmr")], "params": ["--json"]}.get(name, [])
    recording = [] if name == "params" else ["linux-6.12-boot"]
    assert cli.main([name, *recording, *options]) == Status.INTERRUPTED
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [["params"], ["recordings"], ["info", "linux-6.12-smp2"], ["tables", "linux-6.12-smp2", "--at", "9"]],
)
def test_json_has_one_shape(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*arguments, "--json"]) == Status.OK
    said = json.loads(capsys.readouterr().out)
    assert list(said)[:2] == ["version", "command"]
    assert (said["version"], said["command"]) == (1, arguments[0])
