# SPDX-License-Identifier: GPL-2.0-only
"""The bundled recordings through every MMU: no mismatch, the audit clean. Interpreted, only a beginning of each."""

from __future__ import annotations

import pytest

from kvmmu import build_info
from kvmmu.record.reader import Reader
from kvmmu.replay.replay import AUDIT_RECORDS, MMUS, Options, bundled_recording, replay

NAMES = (
    "linux-6.12-boot",
    "linux-6.12-boot-4level",
    "linux-686-pae-boot",
    "linux-686-boot",
    "linux-6.12-smp2",
    "linux-6.12-processes",
)
#: Records that the interpreted build plays: enough to leave the unpaged start of a boot.
SHORT = 12_000


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("name", NAMES)
def test_a_bundled_recording_is_verified(name: str, mmu: str) -> None:
    path = bundled_recording(name)
    whole = build_info().is_compiled
    result = replay(path, Options(mmu, until=None if whole else SHORT, audit=None if mmu == "none" else "changed"))
    assert [line for mismatch in result.details for line in mismatch.lines()] == []
    assert (result.mismatches, result.tlb_differences) == (0, 0)
    with Reader(str(path)) as reader:
        assert result.position == (reader.total if whole else SHORT)
    if mmu != "none":
        assert result.audits == 1 + result.position // AUDIT_RECORDS


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("name", NAMES)
def test_a_piece_from_the_middle_is_verified(name: str, mmu: str) -> None:
    with Reader(str(bundled_recording(name))) as reader:
        first = reader.total * 2 // 3
    size = 60_000 if build_info().is_compiled else 2_000
    result = replay(bundled_recording(name), Options(mmu, first=first, until=first + size))
    assert result.mismatches == 0
    assert result.accesses > 0


def test_memory_does_not_grow_with_the_recording() -> None:
    name = "linux-6.12-boot"
    short = replay(bundled_recording(name), Options("shadow", until=2_000))
    assert short.peak_rss_bytes < 500 << 20
