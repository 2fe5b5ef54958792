# SPDX-License-Identifier: GPL-2.0-only
"""Paging modes as tables, and the names of bits."""

from __future__ import annotations

import doctest

import pytest

from kvmmu.errors import ConfigError
from kvmmu.hw import bits, modes
from kvmmu.hw.cpumodel import CpuModel
from kvmmu.hw.modes import MODES, Limits, paging_mode, reserved_bits, second_stage_mode

PG, PAE, PSE, LA57, LMA, NX = 1 << 31, 1 << 5, 1 << 4, 1 << 12, 1 << 10, 1 << 11
NXBIT = 1 << 63
LIMITS = Limits(46, True, True)


@pytest.mark.parametrize(
    ("cr0", "cr4", "efer", "name", "levels"),
    [
        (0, PAE | LA57, 0, "none", 0),
        (PG, 0, 0, "2-level", 2),
        (PG, LA57, NX, "2-level", 2),
        (PG, PSE, 0, "2-level-pse", 2),
        (PG, PAE, 0, "pae", 3),
        (PG, PAE | PSE | LA57, NX, "pae", 3),
        (PG, PAE, LMA, "4-level", 4),
        (PG, PAE | LA57, LMA, "5-level", 5),
    ],
)
def test_registers_select_the_mode(cr0: int, cr4: int, efer: int, name: str, levels: int) -> None:
    mode = paging_mode(cr0, cr4, efer)
    assert (mode.name, mode.levels) == (name, levels)
    assert MODES[mode.number] is mode


def span(low: int, high: int) -> int:
    return sum(1 << bit for bit in range(low, high + 1))


@pytest.mark.parametrize(
    ("mode", "level", "is_large", "limits", "expected"),
    [
        (modes.MODE_2LEVEL, 1, False, LIMITS, 0),
        (modes.MODE_2LEVEL_PSE, 2, False, LIMITS, 0),
        (modes.MODE_2LEVEL_PSE, 2, True, LIMITS, span(21, 21)),
        (modes.MODE_2LEVEL_PSE, 2, True, Limits(36, True, True), span(17, 21)),
        (modes.MODE_2LEVEL_PSE, 2, True, Limits(32, True, True), span(13, 21)),
        (modes.MODE_PAE, 3, False, LIMITS, span(1, 2) | span(5, 8) | span(46, 63)),
        (modes.MODE_PAE, 2, False, LIMITS, span(46, 62)),
        (modes.MODE_PAE, 2, True, Limits(36, False, True), span(13, 20) | span(36, 63)),
        (modes.MODE_PAE, 1, False, Limits(52, False, True), span(52, 63)),
        (modes.MODE_4LEVEL, 4, False, LIMITS, span(46, 51) | 0x80),
        (modes.MODE_5LEVEL, 5, False, Limits(52, False, True), NXBIT | 0x80),
        (modes.MODE_4LEVEL, 3, False, LIMITS, span(46, 51)),
        (modes.MODE_4LEVEL, 3, False, Limits(46, True, False), span(46, 51) | 0x80),
        (modes.MODE_4LEVEL, 3, True, LIMITS, span(46, 51) | span(13, 29)),
        (modes.MODE_4LEVEL, 2, True, LIMITS, span(46, 51) | span(13, 20)),
        (modes.MODE_4LEVEL, 1, False, LIMITS, span(46, 51)),
        (modes.MODE_NPT4, 4, False, LIMITS, span(46, 51) | 0x180),
        (modes.MODE_NPT5, 5, False, LIMITS, span(46, 51) | 0x180),
        (modes.MODE_NPT4, 2, False, LIMITS, span(46, 51)),
        (modes.MODE_EPT5, 5, False, LIMITS, span(46, 51) | span(3, 7)),
        (modes.MODE_EPT4, 3, False, LIMITS, span(46, 51) | span(3, 6)),
        (modes.MODE_EPT4, 3, False, Limits(46, True, False), span(46, 51) | span(3, 7)),
        (modes.MODE_EPT4, 3, True, LIMITS, span(46, 51) | span(12, 29)),
        (modes.MODE_EPT4, 2, True, LIMITS, span(46, 51) | span(12, 20)),
        (modes.MODE_EPT4, 1, False, LIMITS, span(46, 51)),
    ],
)
def test_reserved_bits_are_the_manuals(mode: int, level: int, is_large: bool, limits: Limits, expected: int) -> None:
    assert hex(reserved_bits(MODES[mode], level, is_large, limits)) == hex(expected)


def test_nested_modes_have_four_or_five_levels() -> None:
    for number in (modes.MODE_NPT4, modes.MODE_EPT4):
        assert [second_stage_mode(number, levels).levels for levels in (4, 5)] == [4, 5]


def test_words_are_described_by_their_bits() -> None:
    assert doctest.testmod(bits).failed == 0
    assert bits.describe_flags(0, bits.PT_NAMES) == "0"
    assert bits.describe_flags(0x100000014, bits.PFERR_NAMES) == "U|F|GUEST_FINAL"
    assert bits.describe_flags(1 | 1 << 40, bits.PFERR_NAMES) == "P|0x10000000000"
    assert bits.describe_access(0) == "read"
    assert bits.describe_access(bits.ACCESS_IMPLICIT | bits.ACCESS_AC | bits.ACCESS_FETCH) == "implicit ac fetch"
    assert bits.describe_access(1 << 12) == "read 0x1000"


def test_access_bits_are_those_of_the_error_code() -> None:
    assert (bits.ACCESS_WRITE, bits.ACCESS_USER, bits.ACCESS_FETCH) == (
        bits.PFERR_WRITE,
        bits.PFERR_USER,
        bits.PFERR_FETCH,
    )


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"maxphyaddr": 31}, "maxphyaddr=31"),
        ({"maxphyaddr": 53}, "maxphyaddr=53"),
        ({"tlb_entries_4k": 100}, "tlb_entries_4k=100"),
        ({"tlb_entries_2m": 2}, "tlb_entries_2m=2"),
        ({"tlb_entries_1g": 0}, "tlb_entries_1g=0"),
        ({"tlb_ways": 3, "tlb_entries_1g": 64}, "tlb_ways=3"),
        ({"tlb_ways": 0}, "tlb_ways=0"),
    ],
)
def test_an_impossible_cpu_is_refused_by_name(wrong: dict[str, int], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        CpuModel(**wrong)
