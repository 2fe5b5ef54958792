# SPDX-License-Identifier: GPL-2.0-only
"""Thousands of wrong recordings through every command: each ends with a status of the table, one line, soon, cheaply.

``make fuzz`` makes 20,000 mutants (``KVMMU_MUTANTS`` sets another number), the suite 500.
"""

from __future__ import annotations

import os
import resource
import signal
from collections import Counter
from pathlib import Path
from types import FrameType

import pytest

from kvmmu.cli import main
from kvmmu.cli.status import Status
from kvmmu.record.bundled import bundled
from kvmmu.record.piece import cut
from kvmmu.replay.replay import MMUS
from record.mutants import write
from replay.small import Small
from replay.test_machine import record_bar_that_moves

#: What a mutant may cost: seconds, and bytes beyond those of the first good recordings.
SECONDS = 60
BYTES = 200 << 20
IN_SUITE = 500
IN_FUZZ = int(os.environ.get("KVMMU_MUTANTS", "20000"))


def good_recordings(tmp_path: Path) -> list[bytes]:
    """Small ones: a map that changes, two CPUs, and pieces of four bundled recordings."""
    record_bar_that_moves(tmp_path / "bar.kmr")
    with Small(tmp_path / "two.kmr") as small:
        small.boot(1)
        for page in range(1, 0x40):
            small.read(page << 12, cpu=page & 1)
        small.store(0x13000 + 8 * 0x20, 0x21067, cpu=1)
        small.encoder.invlpg(0, 0x20000)
        small.encoder.invpcid(1, 2, 0, 0)
        small.encoder.mmio(0, 0, 0x100000, 0xE000_0000, b"1234")
        small.read(0x20000, 0x21000)
    paths = [tmp_path / "bar.kmr", tmp_path / "two.kmr"]
    for name, first in (
        ("linux-6.12-smp2", 300_000),
        ("linux-686-pae-boot", 500_000),
        ("linux-686-boot", 500_000),
        ("linux-6.12-boot", 0),
    ):
        path = tmp_path / f"{name}.kmr"
        cut(str(bundled()[name]), str(path), first, first + 150, level=1)
        paths.append(path)
    return [path.read_bytes() for path in paths]


def commands(path: Path, piece: Path) -> list[list[str]]:
    """Every command that reads a recording."""
    runs = [["run", str(path), "--mmu", mmu] for mmu in MMUS]
    return [["info", str(path)], *runs, ["cut", str(path), "--from", "20", "-o", str(piece)], ["dump", str(path)]]


def too_slow(number: int, frame: FrameType | None) -> None:
    raise AssertionError(f"more than {SECONDS} seconds")


def check_mutants(tmp_path: Path, capfd: pytest.CaptureFixture[str], count: int) -> Counter[int]:
    """Put ``count`` mutants through every command; return how they ended."""
    good = good_recordings(tmp_path)
    path, piece = tmp_path / "mutant.kmr", tmp_path / "piece"
    ends: Counter[int] = Counter()
    before = 0
    previous = signal.signal(signal.SIGALRM, too_slow)
    try:
        for seed in range(-len(good), count):
            if seed < 0:
                path.write_bytes(good[seed])
            else:
                write(path, good[seed % len(good)], seed)
            for arguments in commands(path, piece):
                signal.alarm(SECONDS)
                status = main(arguments)
                signal.alarm(0)
                said = capfd.readouterr()
                where = f"mutant {seed}: {arguments[0]} {arguments[-1]} {status}: {said.err}"
                assert status in (Status.OK, Status.MISMATCH, Status.USAGE, Status.INPUT), where
                assert status != Status.MISMATCH or arguments[0] == "run", where
                assert status != Status.USAGE or "cannot cut --from 20" in said.err, where
                # Totals that were changed may say that much was left out: a warning, which is no end.
                lines = [line for line in said.err.splitlines() if not line.startswith("kvmmu: warning: ")]
                assert len(lines) == (status in (Status.USAGE, Status.INPUT)), where
                assert status not in (Status.USAGE, Status.INPUT) or str(path) in said.err, where
                assert "\x1b" not in said.out + said.err, where
                ends[status] += 1
            if seed < 0:
                assert ends == {Status.OK: len(commands(path, piece)) * (seed + len(good) + 1)}, said.err
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES
    return ends


def test_mutants_end_as_the_table_says(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ends = check_mutants(tmp_path, capfd, IN_SUITE)
    # They reach what lies behind the checksums: some replay, some differ, some are refused.
    assert min(ends[Status.OK], ends[Status.MISMATCH], ends[Status.INPUT]) > 50


@pytest.mark.deep
def test_many_mutants_end_as_the_table_says(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_mutants(tmp_path, capfd, IN_FUZZ)
