# SPDX-License-Identifier: GPL-2.0-only
"""The bundled recordings: another walk of their tables gives the address that the machine used, for every access."""

from __future__ import annotations

from pathlib import Path

import pytest

import kvmmu
from kvmmu.record import format as f
from kvmmu.record.piece import cut, summarize
from kvmmu.record.reader import Reader
from oracle.recording_walker import Findings, check_recording

RECORDINGS = Path(kvmmu.__file__).parent / "recordings"
#: Name, the guest's paging, CPUs, least share of user accesses.
GUESTS = [
    ("linux-6.12-boot", "5-level", 1, 0.01),
    ("linux-6.12-boot-4level", "4-level", 1, 0.01),
    ("linux-6.12-smp2", "4-level", 2, 0.01),
    ("linux-6.12-processes", "4-level", 1, 0.30),
    ("linux-686-pae-boot", "pae", 1, 0.01),
    ("linux-686-boot", "2-level", 1, 0.01),
]
NAMES = [guest[0] for guest in GUESTS]


def path_of(name: str) -> Path:
    return RECORDINGS / f"{name}.kmr"


def explained(found: Findings) -> None:
    assert (found.differ, found.missing, found.forbidden) == (0, 0, 0), "\n".join(found.wrong)


@pytest.mark.parametrize("name", NAMES)
def test_its_beginning_is_explained(name: str) -> None:
    with Reader(str(path_of(name))) as reader:
        found = check_recording(reader, until=15_000)
    assert found.accesses > 10_000
    explained(found)


@pytest.mark.parametrize("name", NAMES)
def test_a_piece_from_its_middle_is_explained(name: str, tmp_path: Path) -> None:
    with Reader(str(path_of(name))) as reader:
        middle = reader.total // 5
    cut(str(path_of(name)), str(tmp_path / "piece.kmr"), middle, middle + 10_000, level=1)
    with Reader(str(tmp_path / "piece.kmr")) as reader:
        found = check_recording(reader)
    assert found.accesses > 5_000
    assert dict(GUESTS_PAGING)[name] in found.paging
    explained(found)


GUESTS_PAGING = [(name, paging) for name, paging, _, _ in GUESTS]


@pytest.mark.deep
@pytest.mark.parametrize(("name", "paging", "cpus", "user_share"), GUESTS)
def test_all_of_it_is_explained(name: str, paging: str, cpus: int, user_share: float) -> None:
    with Reader(str(path_of(name))) as reader:
        found = check_recording(reader)
        assert reader.header.cpus == cpus
        assert reader.trailer is not None
        assert reader.trailer.records == reader.position
    assert found.paging.most_common(1)[0][0] == paging
    assert found.user / found.accesses >= user_share
    explained(found)


@pytest.mark.parametrize(("name", "paging", "cpus", "user_share"), GUESTS)
def test_it_is_small_whole_and_says_what_it_is(name: str, paging: str, cpus: int, user_share: float) -> None:
    assert path_of(name).stat().st_size < 2_000_000
    with Reader(str(path_of(name))) as reader:
        header, trailer = reader.header, reader.trailer
        assert not reader.cut
    assert trailer is not None
    assert (trailer.cut, trailer.reason, trailer.stale) == (False, "guest-shutdown", 0)
    assert trailer.counts["access"] > 300_000
    assert header.cpus == cpus
    assert header.has("la57") or paging != "5-level"
    assert {region.kind for region in header.memory} == {"ram", "rom"}
    assert header.qemu.startswith("10.")
    assert "thread" not in " ".join(header.command)


def test_processes_are_mostly_user_code() -> None:
    summary = summarize(str(path_of("linux-6.12-processes")))
    assert summary.user_share >= 0.30
    assert len(summary.cr3s) >= 20
    assert summary.kinds["invlpg"] > 1000


def test_both_cpus_of_the_two_cpu_machine_change_their_own_registers() -> None:
    causes: dict[int, set[int]] = {0: set(), 1: set()}
    unknown = 0
    with Reader(str(path_of("linux-6.12-smp2"))) as reader:
        while kind := reader.next():
            if kind == f.K_REGS:
                causes[reader.cpu].add(reader.what)
                unknown += reader.what == f.W_INIT
    # After its first sight each CPU's registers change by instructions that were seen.
    assert unknown <= 4
    assert all({f.W_CR0, f.W_CR3, f.W_CR4, f.W_EFER} <= seen for seen in causes.values())
