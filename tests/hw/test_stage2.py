# SPDX-License-Identifier: GPL-2.0-only
"""Both rows of second stages, against the manuals' model: translation, fault, A and D."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.machines import Box
from kvmmu.hw.bits import HW_HIT, HW_NESTED_FAULT, HW_NESTED_MISCONFIG
from kvmmu.hw.cpumodel import CpuModel
from kvmmu.hw.modes import MODE_EPT4, MODE_NPT4, ept_illegal_low_bits, second_stage_mode
from kvmmu.hw.stage2 import EPT, NPT, SecondStage, ept
from kvmmu.hw.tdp import NestedWalk, translate
from oracle import second_stage as model

ROOT = 0x20000
WRITE, USER, FETCH = 2, 4, 16
FINAL, TABLE = 1 << 32, 1 << 33
#: Bits worth turning: rights, memory type, large, A and D of either format, reserved and ignored ones, NX.
BITS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 20, 46, 51, 52, 62, 63)
#: What a guest does, as the model and as the package say it. A table access is a write where A and D are in use.
ACCESSES = {
    "read": (model.Access(), USER | FINAL),
    "write": (model.Access(read=False, write=True), USER | WRITE | FINAL),
    "fetch": (model.Access(read=False, fetch=True), USER | FETCH | FINAL),
    "table": (model.Access(write=True, table=True), USER | WRITE | TABLE),
    "table read": (model.Access(table=True), USER | TABLE),
}


def place_of(gpa: int, levels: int, level: int) -> int:
    return ROOT + 0x1000 * (levels - level) + 8 * (gpa >> (12 + 9 * (level - 1)) & 511)


@st.composite
def tables(draw: st.DrawFn, kind: str) -> tuple[model.SecondStage, int]:
    """A table with one path that makes sense, and some bits of it turned; the gpa at its end."""
    levels = draw(st.sampled_from((4, 5)))
    has_ad = kind == "npt" or draw(st.booleans())
    stage = model.SecondStage(
        kind, ROOT, levels, {}, has_ad=has_ad, has_execonly=kind == "npt" or draw(st.booleans()),
        width=46, largest=draw(st.sampled_from((2, 3))),
    )  # fmt: skip
    gpa = draw(st.integers(0, (1 << min(52, 12 + 9 * levels)) - 1))
    for level in range(levels, 0, -1):
        turned = draw(st.lists(st.sampled_from(BITS), max_size=2, unique=True))
        entry = ROOT + 0x1000 * (levels - level + 1) | 7
        stage.words[place_of(gpa, levels, level)] = entry ^ sum(1 << number for number in turned)
    return stage, gpa


def check(stage: model.SecondStage, fmt: SecondStage, gpa: int, accesses: list[str]) -> None:
    box = Box("off", CpuModel(maxphyaddr=stage.width, has_gbpages=stage.largest == 3))
    for place, word in stage.words.items():
        box.memory.write_once(place, word)
    box.cpu.load_nested(ROOT, stage.levels, fmt)
    out = NestedWalk()
    for name in accesses:
        asked, code = ACCESSES[name]
        expected = model.walk(stage, gpa, asked)
        status = translate(box.cpu, gpa, code, out)
        if status == HW_HIT:
            signs = zip("drwx", (out.dirty, out.readable, out.writable, out.executable), strict=True)
            assert ("ok", out.hpa, "".join(sign for sign, has in signs if has)) == expected
        elif status == HW_NESTED_MISCONFIG:
            assert (expected, out.fault_gpa, out.fault_code) == (("misconfig",), gpa, 0)
        else:
            assert status == HW_NESTED_FAULT
            assert ("fault", out.fault_code) == expected, hex(out.fault_code)
            assert out.fault_gpa == gpa
        assert {place: box.memory.read_once(place) for place in stage.words} == stage.words


@given(tables("npt"), st.lists(st.sampled_from(["read", "write", "fetch", "table"]), min_size=1, max_size=3))
def test_npt_is_walked_as_the_manual_says(table: tuple[model.SecondStage, int], accesses: list[str]) -> None:
    check(copy.deepcopy(table[0]), NPT, table[1], accesses)


@given(tables("ept"), st.lists(st.sampled_from(["read", "write", "fetch", "table"]), min_size=1, max_size=3))
def test_ept_is_walked_as_the_manual_says(table: tuple[model.SecondStage, int], accesses: list[str]) -> None:
    stage = copy.deepcopy(table[0])
    if not stage.has_ad:
        accesses = ["table read" if name == "table" else name for name in accesses]
    check(stage, ept(has_ad=stage.has_ad, has_execonly=stage.has_execonly), table[1], accesses)


@pytest.mark.parametrize("has_ad", [False, True])
@pytest.mark.parametrize("has_execonly", [False, True])
def test_every_mix_of_low_bits_at_every_level(has_ad: bool, has_execonly: bool) -> None:
    cases = 0
    for level in (4, 3, 2, 1):
        for low in range(256):
            for name in ("read", "write", "fetch"):
                stage = model.SecondStage("ept", ROOT, 4, {}, has_ad=has_ad, has_execonly=has_execonly)
                for above in (4, 3, 2, 1):
                    stage.words[place_of(0, 4, above)] = ROOT + 0x1000 * (5 - above) | 7
                address = 0 if low & 0x80 and level in (2, 3) else ROOT + 0x1000 * (5 - level)
                stage.words[place_of(0, 4, level)] = address | low
                check(stage, ept(has_ad=has_ad, has_execonly=has_execonly), 0, [name])
                cases += 1
    assert cases == 4 * 256 * 3


def test_a_page_that_is_executable_alone_may_not_be_read() -> None:
    box = Box("off")
    for level in (4, 3, 2, 1):
        box.memory.write_once(place_of(0, 4, level), ROOT + 0x1000 * (5 - level) | (4 if level == 1 else 7))
    box.cpu.load_nested(ROOT, 4, EPT)
    out = NestedWalk()
    assert translate(box.cpu, 0, USER | FETCH | FINAL, out) == HW_HIT
    assert (out.readable, out.writable, out.executable) == (False, False, True)
    assert translate(box.cpu, 0, USER | FINAL, out) == HW_NESTED_FAULT
    # A read; the entries together allow X; the gva is known, and this is the end of its translation.
    assert out.fault_code == 1 | 4 << 3 | 1 << 7 | 1 << 8


def test_a_format_takes_the_place_of_another() -> None:
    """The same words mean different things: bit 2 is U in the one, X in the other."""
    box = Box("off")
    for level in (4, 3, 2, 1):
        box.memory.write_once(place_of(0, 4, level), ROOT + 0x1000 * (5 - level) | 1 | 0x60 * (level == 1))
    out = NestedWalk()
    for fmt, hit in ((NPT, False), (EPT, True), (NPT, False)):
        box.cpu.load_nested(ROOT, 4, fmt)
        assert (translate(box.cpu, 0, USER | FINAL, out) == HW_HIT) == hit


def test_rows_say_their_names_and_modes() -> None:
    assert [repr(fmt) for fmt in (NPT, EPT)] == ["<SecondStage NPT>", "<SecondStage EPT>"]
    assert repr(ept(has_ad=False, has_execonly=False)) == "<SecondStage EPT without A/D>"
    names = [second_stage_mode(number, levels).name for number in (MODE_NPT4, MODE_EPT4) for levels in (4, 5)]
    assert names == ["npt-4-level", "npt-5-level", "ept-4-level", "ept-5-level"]


def test_illegal_low_bits_are_w_without_r_x_alone_and_types_that_do_not_exist() -> None:
    legal = {memory_type << 3 | rights for memory_type in (0, 1, 4, 5, 6) for rights in (0, 1, 3, 4, 5, 7)}
    for execonly in (False, True):
        allowed = {n for n in legal if execonly or n & 7 != 4}
        assert {n for n in range(64) if not ept_illegal_low_bits(execonly) >> n & 1} == allowed
