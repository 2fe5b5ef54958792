# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu tables``: against a walker of its own over the recording, and what is told of mistakes."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from kvmmu import cli
from kvmmu.cli.status import Status
from kvmmu.record.bundled import find_recording
from kvmmu.record.reader import Reader
from kvmmu.replay import tables
from oracle.recording_walker import Machine

BOOT = "linux-6.12-smp2"
#: A recording of each kind of paging, and a record at which it pages.
PLACES = [("linux-6.12-boot", 600_000), ("linux-6.12-smp2", 400_000)]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert cli.main(["tables", *arguments, "--json"]) == Status.OK
    return json.loads(capsys.readouterr().out)


def oracle_at(name: str, at: int) -> Machine:
    """Table pages and registers of the recording before record ``at``."""
    machine = Machine()
    with Reader(str(find_recording(name))) as reader:
        while reader.position < at:
            kind = reader.next()
            page = machine.pages.setdefault(reader.gpa // 4096, bytearray(4096)) if kind in (2, 3) else None
            if kind == 3 and page is not None:
                page[:] = reader.payload()
            elif kind == 2 and page is not None:
                page[reader.gpa % 4096 : reader.gpa % 4096 + reader.size] = reader.payload()
            elif kind == 4:
                machine.regs[reader.cpu] = (reader.cr0, reader.cr3, reader.cr4, reader.efer, reader.pkru)
    return machine


@pytest.mark.parametrize("mmu", ["none", "shadow"])
@pytest.mark.parametrize(("name", "at"), PLACES)
def test_the_guests_tables_map_what_another_walker_finds(
    name: str, at: int, mmu: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(capsys, name, "--at", str(at), "--mmu", mmu)
    assert list(said)[:2] == ["version", "command"]
    assert (said["command"], said["at"], said["mmu"], said["of"]) == ("tables", at, mmu, "guest")
    oracle, rng = oracle_at(name, at), random.Random(1)
    paging = [one for one in said["tables"] if one["mode"] != "none"]
    assert paging
    for one in paging:
        cpu = one["cpus"][0]
        assert (oracle.mode(cpu), oracle.regs[cpu][1]) == (one["mode"], one["cr3"])
        assert len(one["ranges"]) > 5
        for part in rng.sample(one["ranges"], min(300, len(one["ranges"]))):
            offset = rng.randrange(part["bytes"])
            gpa, path, missing = oracle.walk(cpu, part["gva"] + offset)
            assert not missing
            assert gpa == part["gpa"] + offset
            writable, user = all(word >> 1 & 1 for word in path), all(word >> 2 & 1 for word in path)
            assert ("w" in part["rights"], "u" in part["rights"]) == (writable, user)


def test_of_kvm_has_flags_and_roles_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, BOOT, "--at", "60000", "--of", "kvm")
    ranges = [part for one in said["tables"] for part in one["ranges"]]
    assert len(ranges) > 50
    assert all(part["role_text"].startswith("level ") for part in ranges)
    assert {"accessed", "host-writable"} <= {flag for part in ranges for flag in part["flags"]}
    cr3 = next(one["cr3"] for one in said["tables"] if one["root"] is not None)
    by_cr3 = run(capsys, BOOT, "--at", "60000", "--of", "kvm", "--cr3", f"{cr3:#x}")["tables"]
    assert by_cr3 == [one for one in said["tables"] if one["cr3"] == cr3][:1]
    nested = run(capsys, BOOT, "--at", "60000", "--of", "kvm", "--mmu", "tdp-legacy")
    assert all(part["gpa"] == part["start"] for one in nested["tables"] for part in one["ranges"])
    assert nested["tables"][0]["ranges"]


def test_a_line_says_what_a_range_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tables", BOOT, "--at", "60000", "--mmu", "none"]) == Status.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("cpu 0")
    assert "the guest's tables below gpa 0x" in lines[0]
    assert any(" x 2M  " in line and " gpa 0x" in line for line in lines)
    assert cli.main(["tables", BOOT, "--at", "60000", "--of", "kvm"]) == Status.OK
    lines = capsys.readouterr().out.splitlines()
    assert "kvm's tables below hpa 0x" in lines[0]
    assert "host-writable" in lines[1]
    assert "; level " in lines[1]
    assert cli.main(["tables", BOOT, "--at", "0"]) == Status.OK
    assert capsys.readouterr().out == "cpu 0 1: paging is off\n"
    assert cli.main(["tables", BOOT, "--at", "0", "--of", "kvm"]) == Status.OK
    assert capsys.readouterr().out == "cpu 0, none: kvm has no root\n\ncpu 1, none: kvm has no root\n"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nothing"], Status.INPUT, "nothing"),
        ([BOOT, "--at", "999999999"], Status.USAGE, "--at 999999999: "),
        ([BOOT, "--at", "-1"], Status.USAGE, "'--at': must be greater"),
        ([BOOT, "--of", "host"], Status.USAGE, "--of host"),
        ([BOOT, "--mmu", "ept"], Status.USAGE, "--mmu ept"),
        ([BOOT, "--mmu", "none", "--of", "kvm"], Status.USAGE, "--mmu none has no kvm"),
        ([BOOT, "--at", "5", "--cr3", "zz"], Status.USAGE, "--cr3 zz"),
        ([BOOT, "--at", "5", "--cr3", "1000"], Status.USAGE, "no CPU has paging on at record 5"),
        ([BOOT, "--at", "60000", "--cr3", "0xfffffffff000"], Status.USAGE, "there is no memory at gpa"),
        ([BOOT, "--at", "60000", "--of", "kvm", "--cr3", "0xfffff000"], Status.USAGE, "kvm has no tables for it"),
        ([BOOT, "--at", "9", "--of", "kvm", "--mmu", "tdp-legacy", "--cr3", "1000"], Status.USAGE, "do not depend"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], status: Status, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tables", *arguments]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert said.err.count("\n") == 1


def test_a_mismatch_on_the_way_is_told_and_is_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Parted:
        """A player whose model and machine disagreed once."""

        def __init__(self, player: Any) -> None:
            self.player = player
            self.mismatches = 1

        def __getattr__(self, name: str) -> Any:
            return getattr(self.player, name)

    real = tables.play_to
    monkeypatch.setattr(tables, "play_to", lambda *arguments: Parted(real(*arguments)))
    assert cli.main(["tables", BOOT, "--at", "10"]) == Status.MISMATCH
    assert "1 mismatches on the way there" in capsys.readouterr().err
