# SPDX-License-Identifier: GPL-2.0-only
"""kvmmu decode: words, text and files in, what they mean out."""

from __future__ import annotations

import io
import json
import os
import pathlib
import subprocess
import sys

import pytest

import kvmmu
from kvmmu import cli
from kvmmu.cli.status import Status

ENVIRONMENT = os.environ | {"PYTHONPATH": str(pathlib.Path(kvmmu.__file__).parents[1])}

TRACES = pathlib.Path(__file__).parent.parent / "trace" / "data"


def decode(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert cli.main(["decode", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


@pytest.mark.parametrize(("line", "said"), [
    ("spte 0x12345e67", ["4K W-host W-mmu W U X A D pfn 0x12345"]),
    ("spte 8000000012345a21", ["4K W-host W-mmu- W- U- X- A D- pfn 0x12345"]),
    ("spte 80000080000c7", ["mmio gfn 0x8000 gen 0x18 access wu-"]),
    ("spte 80000080000c7 --format npt", ["mmio gfn 0x8000 gen 0x18 access wu-"]),
    ("spte 8000000000000000", ["NP"]),
    ("spte 8600000012345b77", ["4K W-host W-mmu R W X A D WB IPAT pfn 0x12345"]),
    ("spte 8600000012200bf7", ["2M W-host W-mmu R W X A D WB IPAT pfn 0x12200"]),
    ("spte 8000000000123907 --level 3", ["nonleaf R W X A table 0x123000"]),
    ("spte f80000c6 --format ept", ["mmio gfn 0xf8000 gen 0x18"]),
    ("spte 12345c67 --kernel 5.10 --format shadow", ["4K W-host W-mmu W U X A D pfn 0x12345"]),
    ("spte 600000012345b77 --kernel 6.1", ["4K W-host W-mmu R W X A D WB IPAT pfn 0x12345"]),
    # Access-tracked: no right is left, R and X are kept above.
    ("spte 8150000000000830 --format ept", [
        "4K W-host- W-mmu- R- W- X- A- D- WB pfn 0x0 saved RX ad-disabled",
        "  note: access-tracked: the rights were taken away to notice the next access",
    ]),
    ("role 3784", [
        "level 4 quadrant 0 access wux smm 0 direct efer_nx cr0_wp", "in traces: l4 8-byte q0 direct wux nxe ad",
    ]),
    ("role 0x8100003704", ["cpu role: level 4 quadrant 0 access wux smm 0 efer_nx cr0_wp | valid efer_lma"]),
    ("pferr 100000006", [
        "W|U|GUEST_FINAL", "nested page fault: user write of a final guest address: no entry is present",
    ]),
    ("pferr 11", ["P|F", "fetch: the entry is present"]),
    ("pferr 9", ["P|RSVD", "read: a reserved bit is set in an entry"]),
    ("pferr 0", ["0", "read: no entry is present"]),
    ("pferr 3 --format ept", ["EPT violation: read+write, entry not present, no linear address"]),
    ("qual 181", ["EPT violation: read, entry not present, linear address valid, final guest address"]),
    ("gpte 0x8000000012345067", ["4K page P|W|U|A|D|NX gfn 0x12345"]),
    ("gpte 12345027 --level 4", ["level 4 entry P|W|U|A gfn 0x12345"]),
    ("gpte 122000e7 --level 2", ["2M page P|W|U|A|D|PS gfn 0x12200"]),
    ("gpte 1f2 --level 1", ["not present, 0x1f2 is the guest's own"]),
    ("gpte 4012345067 --maxphyaddr 38", [
        "4K page P|W|U|A|D gfn 0x4012345",
        "  wrong: reserved bits set: 0x4000000000 (an access ends in #PF with RSVD)",
        "  wrong: bit 38: at or above MAXPHYADDR 38",
    ]),
    ("gpte 0x040020e7 --mode 2-level-pse --level 2", ["4M page P|W|U|A|D|PS gfn 0x104000"]),
    ("gpte 0x040020e7 --mode 2-level --level 2", ["level 2 entry P|W|U|A|D|PS gfn 0x4002"]),
    ("gpte 0x2800000012345067", ["4K page P|W|U|A|D gfn 0x12345 pkey 5"]),
    ("gpte 0x123450e7", ["4K page P|W|U|A|D|PAT gfn 0x12345"]),
    ("gpte 0x12345067 --level 5", ["level 5 entry P|W|U|A|D gfn 0x12345"]),
])  # fmt: skip
def test_a_word_is_described(capsys: pytest.CaptureFixture[str], line: str, said: list[str]) -> None:
    assert decode(capsys, *line.split()) == said


# The rows of what people posted, and words of their kind.
@pytest.mark.parametrize(("line", "said"), [
    ("spte 0x1000005d48fc76 --kernel 5.4 --format ept",
     ["4K W-host W-mmu R- W X A- D- WB IPAT pfn 0x5d48f ad-disabled",
      "wrong: EPT misconfiguration: W without R (bits 2:0 are 110)"]),
    ("spte 0x1000007abb7007 --kernel 5.4 --level 4", ["nonleaf R W X A- table 0x7abb7000 ad-disabled"]),
    ("spte 0x38001ffe0134d7 --maxphyaddr 36 --l1tf", ["mmio gfn 0xfe013 "]),
    ("spte 0x38001ffe0134d7 --maxphyaddr 36 --l1tf --kernel 5.10", ["mmio gfn 0xfe013 gen 0x9a access wu-"]),
    ("spte 0x38001ffe0134d7 --maxphyaddr 36",
     ["mmio gfn 0xffe013 ", "note: on a host with the L1TF mitigation (36 bits): gfn 0xfe013"]),
    ("spte 0x12345837 --format ept --level 2",
     ["wrong: EPT misconfiguration: bits 5:4 set, reserved in an entry that links a table"]),
    ("spte 5a0", ["REMOVED", "note: called FROZEN since 6.11, and 0x80000000000005a0 since 6.10"]),
    ("spte 80000000000005a0 --format ept", ["FROZEN"]),
    ("role 14084", ["as role, decimal, 0x3704: level 4 quadrant 0 access wux smm 0 efer_nx cr0_wp", "hex 0x14084"]),
    ("pferr 0x181", ["as EPT exit qualification: EPT violation: read, entry not", "as #PF error code: P|0x180"]),
    ("pferr 100000014", ["nested page fault: user fetch of a final guest address: no entry is present"]),
    ("spte c67 --kernel 5.13", ["wrong: MMU-writable (bit 10) without host-writable (bit 9)"]),
    ("spte 0x12345e67 --kernel 5.15", ["not confirmed by a source here"]),
])  # fmt: skip
def test_words_that_people_posted(capsys: pytest.CaptureFixture[str], line: str, said: list[str]) -> None:
    found = decode(capsys, *line.split())
    for part in said:
        assert any(part in one for one in found), found


def test_several_words_are_told_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert decode(capsys, "pferr", "6", "9") == [
        "6:", "  W|U", "  user write: no entry is present",
        "9:", "  P|RSVD", "  read: a reserved bit is set in an entry",
    ]  # fmt: skip


@pytest.mark.parametrize(("line", "status", "said"), [
    ("spte zz", 3, "word 'zz': not a hex number; write it like 0x8000000000000e67 or e67"),
    ("spte 1ffffffffffffffff", 3, "word '1ffffffffffffffff': has 65 bits, this kind of word has 64"),
    ("gpte 1ffffffff --mode 2-level", 3, "word '1ffffffff': has 33 bits, this kind of word has 32"),
    ("no word here", 3, "no word found in the text; say what a word is: kvmmu decode spte|role|pferr|qual|gpte WORD"),
    ("no-such-file.txt", 3, "no-such-file.txt: No such file or directory"),
    ("no/such/file", 3, "no/such/file: No such file or directory"),
    ("gpte 1 --level 3 --mode 2-level", 2, "--level 3: a table of mode 2-level has a level of 1 to 2"),
    ("spte 1 --level 0", 2, "--level 0: a table has a level of 1 to 5"),
    ("spte 1 --level 6", 2, "--level 6: a table has a level of 1 to 5"),
    ("spte 1 --maxphyaddr 53", 2, "--maxphyaddr 53: a CPU has 32 to 52 physical address bits"),
    ("spte 1 --kernel 4.19", 2, "--kernel 4.19: layouts are known since 5.1"),
    ("spte 1 --kernel new", 2, "--kernel new: not a kernel version; write it like 5.10 or 6.12.3"),
    ("spte 1 --cache-bits 44", 2, "--cache-bits: has a meaning with --l1tf alone"),
    ("spte 1 --l1tf --cache-bits 50", 2, "--cache-bits 50: an L1 cache with the bug sees 32 to 46 address bits"),
    ("spte", 2, "decode spte: a word is missing; write it like 0x8000000000000e67 or e67"),
    ("spte 1 --mode pae", 2, "--mode: has no meaning for a spte"),
    ("role 1 --format npt", 2, "--format: has no meaning for a role"),
    ("role 1 --level 2", 2, "--level: has no meaning for a role"),
    ("gpte 1 --format npt", 2, "--format: has no meaning for a gpte"),
    ("gpte 1 --kernel 5.10", 2, "--kernel: has no meaning for a gpte"),
    ("pferr 1 --maxphyaddr 40", 2, "--maxphyaddr: has no meaning for a pferr"),
    ("qual 1 --format npt", 2, "--format: has no meaning for a qual"),
    ("spte 1 --format amd", 2, None),
    ("spte 1 --level x", 2, None),
    ("", 2, None),
])  # fmt: skip
def test_a_bad_word_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], line: str, status: int, said: str | None
) -> None:
    assert cli.main(["decode", *line.split()]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert said is None or captured.err == f"kvmmu: {said}\n"


# ---- text and files


SPLAT = """\
get_mmio_spte: detect reserved bits on spte, addr 0xfeda1000, dump hierarchy:
------ spte 0x1000007abb7007 level 4.
------ spte 0x1000007abb8007 level 3.
------ spte 0x1000007abb9007 level 2.
------ spte 0x1000005d48fc76 level 1.
"""


def give_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_splat_on_standard_input_is_annotated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    give_stdin(monkeypatch, SPLAT.encode())
    said = decode(capsys, "-")
    assert [line for line in said if not line.startswith(" ")] == SPLAT.splitlines()
    assert said[-1] == "    reason: level 1: EPT misconfiguration: W without R (bits 2:0 are 110)"


def test_text_may_be_an_argument_or_several(capsys: pytest.CaptureFixture[str]) -> None:
    line = "    role 14084 as role, decimal, 0x3704: level 4"
    for arguments in (["role=14084"], ["gfn=16", "role=14084", "root_count=0"], ["gfn=16\nrole=14084"]):
        assert any(one.startswith(line) for one in decode(capsys, *arguments))


def test_a_file_is_a_trace_with_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    said = decode(capsys, str(TRACES / "report-6.1-tdp.txt"))
    assert "    old_spte 0 as npt spte level 4: NP" in said
    assert "  events  rip" in said
    assert "  events  page of the guest" in said
    assert any(line.startswith("lines 56: ") for line in said)


def test_what_is_no_text_is_still_read(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "noise.txt"
    path.write_bytes(b"\xff\xfe\0\xc3(\nerror_code 0x9\n\x80\x81 spte 12345e67\r\n")
    assert any("4K W-host W-mmu W U X A D pfn 0x12345" in line for line in decode(capsys, str(path)))


@pytest.mark.parametrize("magic", [b"\x17\x08\x44tracing6\0", b"PERFILE2\0\0", b"\xfd7zXZ\0\0", b"\x1f\x8b\x08\0"])
def test_a_binary_file_is_refused_with_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, magic: bytes
) -> None:
    path = tmp_path / "trace.dat"
    path.write_bytes(magic + bytes(100))
    assert cli.main(["decode", str(path)]) == Status.INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"kvmmu: {path}: ")
    assert "report" in captured.err or "script" in captured.err or "unpack" in captured.err


def test_zeros_are_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["decode", "/dev/zero"]) == Status.INPUT
    assert capsys.readouterr().err == "kvmmu: /dev/zero: begins with zeros, is no text\n"


def test_a_text_of_any_length_takes_little_memory() -> None:
    """A line without an end, and lines without words without an end: what does not fit is printed."""
    limit = "ulimit -v 600000"
    for source, shown in (("(echo; cat /dev/zero)", b"\n" + bytes(99)), ("yes 'no word'", b"no word\n" * 12 + b"no w")):
        text = f"{limit}; {source} | {sys.executable} -m kvmmu decode - | head -c 100"
        done = subprocess.run(["bash", "-c", text], capture_output=True, check=False, env=ENVIRONMENT)
        assert (done.stdout, done.stderr) == (shown, b"")


def test_a_closed_standard_input_is_one_line() -> None:
    command = f"{sys.executable} -m kvmmu decode - <&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == Status.INPUT
    assert done.stderr == "kvmmu: standard input is closed: give a text, or the name of a file\n"


def test_a_directory_and_an_empty_file_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    for path in (tmp_path, tmp_path / "empty.txt"):
        assert cli.main(["decode", str(path)]) == Status.INPUT
        captured = capsys.readouterr()
        assert (captured.out, len(captured.err.splitlines())) == ("", 1)


@pytest.mark.parametrize("text", ["x" * 300, "x" * 5000, "a/" * 600, "\0", "\udcff\udc80", "\x1b[2J", "-- -", "."])
def test_no_argument_is_more_than_one_line_of_complaint(capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert cli.main(["decode", "--", text]) == Status.INPUT
    captured = capsys.readouterr()
    assert (captured.out, len(captured.err.splitlines())) == ("", 1)


def test_bytes_in_an_argument_that_are_no_text_are_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert "4K W-host" in decode(capsys, "\udcff spte 12345e67")[1]


def test_options_hold_for_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert "  wrong: bit 39: at or above MAXPHYADDR 39" in "\n".join(
        decode(capsys, "--maxphyaddr", "39", "PGD 10067 P4D 11067 PUD 12067 PMD 13067 PTE 800000fffffee163")
    )
    shown = {table: decode(capsys, "--format", table, "spte 12345e67 level 1") for table in ("shadow", "npt", "ept")}
    assert len({tuple(lines) for lines in shown.values()}) == 3


def test_json_of_words(capsys: pytest.CaptureFixture[str]) -> None:
    line = "\n".join(decode(capsys, "role", "14084", "3704", "--json"))
    body = json.loads(line)
    assert (body["version"], body["command"]) == (1, "decode")
    assert [word["text"] for word in body["words"]] == ["14084", "3704"]
    assert [word["word"] for word in body["words"]] == ["0x14084", "0x3704"]
    reading = body["words"][0]["readings"][1]
    assert set(reading) == {"as", "text", "problems", "notes"}
    assert reading["problems"]


def test_json_of_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    give_stdin(monkeypatch, SPLAT.encode())
    line = "\n".join(decode(capsys, "-", "--json"))
    body = json.loads(line)
    assert (body["version"], body["command"], body["summary"]) == (1, "decode", None)
    assert [row["line"] for row in body["lines"]] == [1, 2, 3, 4, 5]
    assert body["lines"][4]["words"][0]["readings"][0]["problems"]
    assert body["lines"][4]["remarks"][-1].startswith("reason: level 1: ")


def test_json_of_a_trace(capsys: pytest.CaptureFixture[str]) -> None:
    line = "\n".join(decode(capsys, str(TRACES / "ftrace-ept.txt"), "--json"))
    summary = json.loads(line)["summary"]
    assert summary["events"]["kvm_exit"] == sum(summary["exits"].values())
    assert summary["unknown"] == 0
    assert {"page", "event", "count"} == set(summary["pages"][0])
    assert {"rip", "event", "count"} == set(summary["rips"][0])


def test_help_names_no_type_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.COMMANDS:
        assert cli.main([name, "--help"]) == 0
        assert "list[" not in capsys.readouterr().out
