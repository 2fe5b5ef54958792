# SPDX-License-Identifier: GPL-2.0-only
"""kvmmu decode: one word in, what its bits mean out."""

from __future__ import annotations

import pytest

from kvmmu import cli
from kvmmu.cli.decode import describe_ept_spte, parse_word
from kvmmu.errors import UserError


def decode(capsys: pytest.CaptureFixture[str], line: str) -> list[str]:
    assert cli.main(["decode", *line.split()]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


@pytest.mark.parametrize(("line", "said"), [
    ("spte 0x12345e67", ["4K W-host W-mmu W U X A D pfn 0x12345"]),
    ("spte 8000000012345a21", ["4K W-host W-mmu- W- U- X- A D- pfn 0x12345"]),
    ("spte 80000080000c7", ["mmio gfn 0x8000 gen 0x18 access wu-"]),
    ("spte 80000080000c7 --format npt", ["mmio gfn 0x8000 gen 0x18 access wu-"]),
    ("spte 80000080000c7 --maxphyaddr 52", ["not shadow-present 0x80000080000c7"]),
    ("spte 8000000000000000", ["NP"]),
    ("spte 80000000000005a0", ["FROZEN"]),
    ("spte 80000000000005a0 --format ept", ["FROZEN"]),
    ("role 3784", [
        "level 4 quadrant 0 access wux smm 0 direct efer_nx cr0_wp", "in traces: l4 8-byte q0 direct wux nxe ad",
    ]),
    ("pferr 100000006", ["W|U|GUEST_FINAL", "user write: no entry is present"]),
    ("pferr 11", ["P|F", "fetch: the entry is present"]),
    ("pferr 9", ["P|RSVD", "read: a reserved bit is set in an entry"]),
    ("pferr 0", ["0", "read: no entry is present"]),
    ("gpte 0x8000000012345067", ["4K page P|W|U|A|D|NX gfn 0x12345"]),
    ("gpte 12345027 --level 4", ["level 4 entry P|W|U|A gfn 0x12345"]),
    ("gpte 122000e7 --level 2", ["2M page P|W|U|A|D|PS gfn 0x12200"]),
    ("gpte 1f2 --level 1", ["not present, 0x1f2 is the guest's own"]),
    ("gpte 4012345067 --maxphyaddr 38", [
        "4K page P|W|U|A|D gfn 0x4012345", "reserved bits set: 0x4000000000 (an access ends in #PF with RSVD)",
    ]),
    ("gpte 0x040020e7 --mode 32-bit-pse --level 2", ["4M page P|W|U|A|D|PS gfn 0x104000"]),
    ("gpte 0x040020e7 --mode 32-bit --level 2", ["level 2 entry P|W|U|A|D|PS gfn 0x4002"]),
    ("gpte 0x2800000012345067", ["4K page P|W|U|A|D gfn 0x12345 pkey 5"]),
    ("gpte 0x123450e7", ["4K page P|W|U|A|D|PAT gfn 0x12345"]),
])  # fmt: skip
def test_a_word_is_described(capsys: pytest.CaptureFixture[str], line: str, said: list[str]) -> None:
    assert decode(capsys, line) == said


def test_a_cpu_role_is_told_by_its_high_half(capsys: pytest.CaptureFixture[str]) -> None:
    said = decode(capsys, "role 0x8100003704")
    assert said == ["cpu role: level 4 quadrant 0 access wux smm 0 efer_nx cr0_wp | valid efer_lma"]


@pytest.mark.parametrize(("word", "level", "said"), [
    # The reference's worked example: A/D, 4K, RWX, WB, IPAT, accessed and dirty, host- and MMU-writable.
    (0x8600000012345B77, 1, "4K W-host W-mmu R W X A D WB IPAT pfn 0x12345"),
    (0x8600000012200BF7, 2, "2M W-host W-mmu R W X A D WB IPAT pfn 0x12200"),
    (0x8000000000123907, 3, "nonleaf R W X A table 0x123000"),
    (0x8000000000123007 | 0x800, 3, "nonleaf R W X A- table 0x123000"),
    # Access-tracked: no right is left, R and X are kept above.
    (0x8000000000000830 | 5 << 54 | 1 << 52, 1, "4K W-host- W-mmu- R- W- X- A- D- WB pfn 0x0 saved RX ad-disabled"),
    (0x0000000012345877, 1, "4K W-host- W-mmu- R W X A- D- WB IPAT pfn 0x12345 suppress-ve-"),
    (0x00000000080000C6, 1, "mmio gfn 0x8000 gen 0x18"),
    (0x80000000080000C6, 1, "not shadow-present 0x80000000080000c6"),
    (0x8000000000000006, 1, "not shadow-present 0x8000000000000006"),
    (0x8000000000000000, 1, "NP"),
    (0x8000000000001837 | 1 << 60, 1, "4K W-host- W-mmu- R W X A- D- WB pfn 0x1 bits 0x1000000000000000"),
])  # fmt: skip
def test_an_ept_entry_is_described(word: int, level: int, said: str) -> None:
    assert describe_ept_spte(word, level) == said


@pytest.mark.parametrize(("text", "value"), [
    ("0x10", 16), ("10", 16), ("0XE67", 0xE67), ("8000_0000_0000_0e67", 0x8000000000000E67), ("f" * 16, 2**64 - 1),
])  # fmt: skip
def test_words_are_hex_with_or_without_a_prefix(text: str, value: int) -> None:
    assert parse_word(text, 64) == value


@pytest.mark.parametrize("text", ["", "0x", "zz", "-1", "0x1g", "1.5", "\uff11"])
def test_what_is_no_word_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a hex number; write it like 0x8000000000000e67 or e67"):
        parse_word(text, 64)


@pytest.mark.parametrize(("line", "status", "said"), [
    ("spte zz", 3, "word 'zz': not a hex number; write it like 0x8000000000000e67 or e67"),
    ("spte 1ffffffffffffffff", 3, "word '1ffffffffffffffff': has 65 bits, this kind of word has 64"),
    ("gpte 1ffffffff --mode 32-bit", 3, "word '1ffffffff': has 33 bits, this kind of word has 32"),
    ("gpte 1 --level 3 --mode 32-bit", 3, "--level 3: a table here has a level of 1 to 2"),
    ("spte 1 --level 0", 3, "--level 0: a table here has a level of 1 to 5"),
    ("spte 1 --maxphyaddr 53", 3, "--maxphyaddr 53: a CPU has 32 to 52 physical address bits"),
    ("page 1", 2, None),
    ("spte", 2, None),
    ("spte 1 --format amd", 2, None),
])  # fmt: skip
def test_a_bad_word_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], line: str, status: int, said: str | None
) -> None:
    assert cli.main(["decode", *line.split()]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert said is None or captured.err == f"kvmmu: {said}\n"
