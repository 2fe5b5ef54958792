# SPDX-License-Identifier: GPL-2.0-only
"""The twins are two: one compiled, one interpreted, and a difference between them would show."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvmmu
from twin.builds import Build, assert_twins_agree, load_builds

U64 = 0xFFFF_FFFF_FFFF_FFFF
WORDS = st.integers(0, U64)
LEVELS = st.integers(1, 5)


@pytest.mark.parametrize("room", kvmmu.build_info().rooms)
def test_a_room_is_loaded_once_from_each_build(room: str) -> None:
    compiled, pure = load_builds()
    name = room.replace("/", ".")
    assert not str(compiled.room(name).__file__).endswith(".py")
    assert str(pure.room(name).__file__).endswith(".py")


def test_the_twin_never_reaches_a_compiled_room() -> None:
    _, pure = load_builds()
    for room in kvmmu.build_info().rooms:
        module = pure.room(room.replace("/", "."))
        foreign = {
            name
            for name, value in vars(module).items()
            if str(getattr(value, "__module__", "")).split(".")[0] == "kvmmu"
        }
        assert foreign == set(), room


def test_the_twin_knows_that_it_is_interpreted() -> None:
    compiled, pure = load_builds()
    assert kvmmu.build_info(compiled.package).is_compiled
    assert kvmmu.build_info(pure.package).compiled == ()
    assert str(kvmmu.build_info(pure.package)) == "interpreted: loaded as the interpreted twin"


def test_a_difference_between_the_builds_is_found() -> None:
    with pytest.raises(AssertionError, match="interpreted"):
        assert_twins_agree(lambda build: build.package)


def test_an_exception_of_one_build_only_is_found() -> None:
    def program(build: Build) -> None:
        if build.package != "kvmmu":
            raise ValueError("only here")

    with pytest.raises(AssertionError, match="only here"):
        assert_twins_agree(program)


@given(word=WORDS, level=LEVELS)
def test_address_arithmetic_is_equal_at_every_width(word: int, level: int) -> None:
    def program(build: Build) -> list[Any]:
        addr = build.room("addr")
        one_word = ("gpa_to_gfn", "gfn_to_gpa", "hpa_to_pfn", "pfn_to_hpa", "page_offset")
        return [
            *(getattr(addr, name)(word) for name in one_word),
            addr.pages_per_level(level),
            addr.round_gfn(word, level),
        ]

    results = assert_twins_agree(program)
    assert all(0 <= result <= U64 for result in results)


def test_lock_misuse_is_refused_alike() -> None:
    def program(build: Build) -> str:
        sync = build.room("sync")
        lock = sync.RwLock("mmu_lock", sync.Gate(), 2)
        lock.read_lock()
        lock.write_lock()
        return "not refused"

    assert "mmu_lock" in assert_twins_agree(program)
