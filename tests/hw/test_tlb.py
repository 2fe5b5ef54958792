# SPDX-License-Identifier: GPL-2.0-only
"""The TLB: who finds what, and which flush takes what away; against a model that keeps a plain list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmmu.hw.cpumodel import CpuModel
from kvmmu.hw.tlb import Tlb

GLOBAL = 256
SIZE = {1: 1 << 12, 2: 1 << 21, 3: 1 << 30}
PIECE = {0: 0, 1: 1 << 21, 2: 1 << 22, 3: 1 << 30}
SMALL = CpuModel(tlb_entries_4k=16, tlb_entries_2m=8, tlb_entries_1g=4, tlb_ways=4)
KEEP = CpuModel(keep_all=True)


def word(frame: int, level: int = 1, is_global: bool = False, piece: int = 0) -> int:
    return frame << 12 | level << 56 | piece << 58 | (GLOBAL if is_global else 0) | 2


@pytest.fixture(params=[SMALL, KEEP], ids=["bounded", "keep_all"])
def tlb(request: pytest.FixtureRequest) -> Tlb:
    return Tlb(request.param)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_an_entry_covers_its_page_and_no_more(tlb: Tlb, level: int) -> None:
    base = 5 * SIZE[level]
    tlb.fill(base + 0x123, word(0x40000, level))
    assert tlb.find(base) == word(0x40000, level) == tlb.find(base + SIZE[level] - 1)
    assert tlb.find(base - 1) == 0 == tlb.find(base + SIZE[level])
    assert (tlb.hits, tlb.misses) == (2, 2)


def test_the_highest_address_has_an_entry(tlb: Tlb) -> None:
    tlb.fill(2**64 - 1, word(9))
    assert tlb.find(2**64 - 4096) == word(9)


def test_a_dropped_hit_counts_as_a_miss(tlb: Tlb) -> None:
    tlb.fill(0x1000, word(1))
    assert tlb.find(0x1000)
    tlb.drop()
    assert (tlb.hits, tlb.misses) == (0, 1)
    assert tlb.find(0x1000) == 0


def test_a_refill_replaces_the_entry_of_the_page(tlb: Tlb) -> None:
    tlb.fill(0x1000, word(1))
    tlb.fill(0x1000, word(2))
    assert tlb.find(0x1000) == word(2)
    tlb.invlpg(0x1000)
    assert tlb.find(0x1000) == 0


def test_spaces_and_pcids_do_not_share_but_globals_do(tlb: Tlb) -> None:
    tlb.switch(1, 7)
    tlb.fill(0x1000, word(1))
    tlb.fill(0x2000, word(2, is_global=True))
    tlb.switch(1, 8)
    assert (tlb.find(0x1000), tlb.find(0x2000)) == (0, word(2, is_global=True))
    tlb.switch(2, 7)
    assert (tlb.find(0x1000), tlb.find(0x2000)) == (0, 0)
    tlb.switch(1, 7)
    assert tlb.find(0x1000) == word(1)


# What each flush leaves of: (own pcid, own global, other pcid, other space, other space's global)
FLUSHES = {
    "flush_all": ((), (0, 0, 0, 0, 0)),
    "flush_space": ((1,), (0, 0, 0, 1, 1)),
    "flush_non_global": ((), (0, 1, 0, 1, 1)),
    "flush_pcid": ((7,), (0, 1, 1, 1, 1)),
    "flush_current": ((), (0, 0, 1, 1, 1)),
    "switch": ((1, 7), (1, 1, 1, 1, 1)),
}


@pytest.mark.parametrize("name", FLUSHES)
def test_a_flush_takes_what_it_says_and_no_more(tlb: Tlb, name: str) -> None:
    entries = [
        (1, 7, 0x1000, False),
        (1, 7, 0x2000, True),
        (1, 8, 0x3000, False),
        (2, 7, 0x4000, False),
        (2, 7, 0x5000, True),
    ]
    for space, pcid, gva, is_global in entries:
        tlb.switch(space, pcid)
        tlb.fill(gva, word(gva >> 12, is_global=is_global))
    arguments, left = FLUSHES[name]
    tlb.switch(1, 7)
    getattr(tlb, name)(*arguments)
    found = []
    for space, pcid, gva, _ in entries:
        tlb.switch(space, pcid)
        found.append(tlb.find(gva) != 0)
    assert tuple(found) == left
    assert tlb.flushes == (name != "switch")


def test_what_is_filled_after_a_flush_lives(tlb: Tlb) -> None:
    for flush in (tlb.flush_all, tlb.flush_non_global, tlb.flush_current, lambda: tlb.invlpg(0x1000)):
        flush()
        tlb.fill(0x1000, word(3))
        assert tlb.find(0x1000) == word(3)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_invlpg_takes_pages_of_any_size_and_globals_of_the_space(tlb: Tlb, level: int) -> None:
    tlb.switch(0, 3)
    gva = 3 << 30 | 5 << 21 | 7 << 12
    tlb.fill(gva, word(0x40000, level))
    tlb.invlpg(gva + 0xFFF)
    assert tlb.find(gva) == 0
    tlb.fill(gva, word(0x40000, level, is_global=True))
    tlb.switch(0, 4)
    tlb.invlpg(gva)
    tlb.switch(0, 3)
    assert tlb.find(gva) == 0


def test_invlpg_leaves_other_pcids_and_invpcid_leaves_globals(tlb: Tlb) -> None:
    tlb.switch(0, 3)
    tlb.fill(0x1000, word(1))
    tlb.fill(0x9000, word(2, is_global=True))
    tlb.switch(0, 4)
    tlb.invlpg(0x1000)
    tlb.invlpg_pcid(3, 0x9000)
    tlb.switch(0, 3)
    assert (tlb.find(0x1000), tlb.find(0x9000)) == (word(1), word(2, is_global=True))
    tlb.switch(0, 4)
    tlb.invlpg_pcid(3, 0x1000)
    tlb.switch(0, 3)
    assert tlb.find(0x1000) == 0


@pytest.mark.parametrize("level", [1, 2])
def test_a_flush_of_a_page_in_the_whole_space_takes_every_pcid(tlb: Tlb, level: int) -> None:
    gva = 7 * SIZE[level]
    for space, pcid in ((1, 3), (1, 4), (2, 3)):
        tlb.switch(space, pcid)
        tlb.fill(gva, word(1, level))
        tlb.fill(gva + SIZE[level], word(2, level))
    tlb.fill(2 * gva, word(3, level, is_global=True))
    tlb.switch(1, 5)
    tlb.invlpg_space(gva)
    for space, pcid, found in ((1, 3, 0), (1, 4, 0), (2, 3, word(1, level))):
        tlb.switch(space, pcid)
        assert tlb.find(gva) == found
        assert tlb.find(gva + SIZE[level]) == word(2, level)
    tlb.switch(2, 9)
    tlb.invlpg_space(2 * gva)
    assert tlb.find(2 * gva) == 0


@pytest.mark.parametrize("piece", [1, 2, 3])
def test_invlpg_takes_all_pieces_of_a_guest_page(tlb: Tlb, piece: int) -> None:
    base = 3 * PIECE[piece]
    inside = [base, base + 0x5000, base + PIECE[piece] - 0x1000]
    outside = [base - 0x1000, base + PIECE[piece]]
    for gva in inside + outside:
        tlb.fill(gva, word(gva >> 12, piece=piece))
    tlb.invlpg(base + 0x9000)
    assert [tlb.find(gva) for gva in inside] == [0, 0, 0]
    assert all(tlb.find(gva) for gva in outside)


def test_invlpg_leaves_whole_pages_near_a_piece(tlb: Tlb) -> None:
    tlb.fill(0x1000, word(1))
    tlb.fill(0x2000, word(2, piece=1))
    tlb.invlpg(0x3000)
    assert (tlb.find(0x1000), tlb.find(0x2000)) == (word(1), 0)


def test_a_full_set_evicts_and_counts_it() -> None:
    tlb = Tlb(SMALL)
    for i in range(5):
        tlb.fill(i * 4 * 4096, word(i + 1))  # 4 sets: all in set 0
    assert tlb.evictions == 1
    assert sum(tlb.find(i * 4 * 4096) != 0 for i in range(5)) == 4
    tlb.flush_all()
    for i in range(4):
        tlb.fill(i * 4 * 4096, word(i + 1))
    assert tlb.evictions == 1


def test_keep_all_keeps_everything_until_a_flush() -> None:
    tlb = Tlb(KEEP)
    for i in range(20_000):
        tlb.fill(i << 12, word(i + 1))
    assert all(tlb.find(i << 12) == word(i + 1) for i in range(20_000))
    assert tlb.evictions == 0


def test_keep_all_sweeps_what_was_flushed() -> None:
    tlb = Tlb(KEEP)
    for round_ in range(30):
        for i in range(1000):
            tlb.fill(i << 12 | round_ << 32, word(i + 1, piece=1))
        tlb.flush_non_global()
    assert tlb.clock == 31
    assert [tlb.find(i << 12 | round_ << 32) for i in range(0, 1000, 99) for round_ in range(30)] == [0] * 330


def test_clocks_pass_32_bits_without_wrapping() -> None:
    tlb = Tlb(SMALL)
    for _ in range(70_000):
        tlb.flush_pcid(0)
    assert tlb.clock == 70_001
    tlb.fill(0, word(1))
    assert tlb.find(0) == word(1)


@dataclass
class Known:
    """One translation that the model holds."""

    space: int
    pcid: int
    gva: int
    word: int

    @property
    def is_global(self) -> bool:
        return bool(self.word & GLOBAL)

    def covers(self, gva: int) -> bool:
        size = SIZE[self.word >> 56 & 3]
        return self.gva // size == gva // size

    def is_of_guest_page(self, gva: int) -> bool:
        size = PIECE[self.word >> 58 & 3]
        return self.covers(gva) or (size != 0 and self.gva // size == gva // size)


class Model:
    """The manual's TLB: a list; a flush filters it."""

    def __init__(self) -> None:
        self.known: list[Known] = []
        self.space = self.pcid = 0

    def fill(self, gva: int, translation: int) -> None:
        new = Known(self.space, self.pcid, gva, translation)
        size = SIZE[translation >> 56 & 3]
        self.known = [
            old
            for old in self.known
            if not (
                old.space == new.space
                and old.word >> 56 & 3 == new.word >> 56 & 3
                and old.gva // size == gva // size
                and old.is_global == new.is_global
                and (old.is_global or old.pcid == new.pcid)
            )
        ] + [new]

    def find_all(self, gva: int) -> set[int]:
        return {
            one.word
            for one in self.known
            if one.space == self.space and (one.is_global or one.pcid == self.pcid) and one.covers(gva)
        }

    def takes(self, name: str, args: list[int], one: Known) -> bool:
        """Whether the flush ``name`` takes this translation away."""
        is_own = one.pcid == self.pcid or one.is_global
        if name == "flush_all":
            return True
        if name == "flush_space":
            return one.space == args[0]
        if one.space != self.space:
            return False
        if name == "flush_non_global":
            return not one.is_global
        if name == "flush_current":
            return is_own
        if name == "invlpg":
            return is_own and one.is_of_guest_page(args[0])
        is_named = one.pcid == args[0] and not one.is_global
        return is_named and (name == "flush_pcid" or one.is_of_guest_page(args[1]))

    def flush(self, name: str, args: list[int]) -> None:
        self.known = [one for one in self.known if not self.takes(name, args, one)]


GVAS = st.builds(
    lambda high, mid, low: high << 30 | mid << 21 | low << 12, st.integers(0, 1), st.integers(0, 3), st.integers(0, 2)
)
OPS = st.one_of(
    st.tuples(st.just("fill"), GVAS, st.integers(1, 3), st.integers(0, 1), st.integers(0, 3)),
    st.tuples(st.just("fill"), GVAS, st.integers(1, 3), st.integers(0, 1), st.just(0)),
    st.tuples(st.just("find"), GVAS),
    st.tuples(st.just("find"), GVAS),
    st.tuples(st.just("switch"), st.integers(0, 1), st.integers(0, 2)),
    st.tuples(st.sampled_from(["flush_all", "flush_non_global", "flush_current"])),
    st.tuples(st.just("flush_space"), st.integers(0, 1)),
    st.tuples(st.just("flush_pcid"), st.integers(0, 2)),
    st.tuples(st.just("invlpg"), GVAS),
    st.tuples(st.just("invlpg_pcid"), st.integers(0, 2), GVAS),
)


@pytest.mark.parametrize("params", [SMALL, KEEP], ids=["bounded", "keep_all"])
@given(st.lists(OPS, max_size=60))
def test_random_operations_agree_with_a_list(params: CpuModel, operations: list[Any]) -> None:
    """keep_all finds exactly what the list has; a bounded TLB may have lost some, and never has more."""
    tlb, model = Tlb(params), Model()
    serial = 0
    for name, *args in operations:
        if name == "fill":
            gva, level, is_global, piece = args
            if piece and PIECE[piece] <= SIZE[level]:
                piece = 0
            serial += 1
            tlb.fill(gva, word(serial, level, bool(is_global), piece))
            model.fill(gva, word(serial, level, bool(is_global), piece))
            continue
        if name == "find":
            found, known = tlb.find(args[0]), model.find_all(args[0])
            assert found in known or (found == 0 and not (params.keep_all and known))
            continue
        getattr(tlb, name)(*args)
        if name == "switch":
            model.space, model.pcid = args
        else:
            model.flush(name, args)
