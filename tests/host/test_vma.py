# SPDX-License-Identifier: GPL-2.0-only
"""A range of the address space: its borders, its pieces, what it is backed by."""

from __future__ import annotations

import pytest

from host.spaces import M2, make
from kvmmu.host.vma import Vma

START = 0x7000_0000_0000


@pytest.mark.parametrize(
    ("offset", "level", "lies_inside"),
    [(0, 1, True), (M2 - 1, 2, True), (M2, 2, False), (M2 + 0x2FFF, 1, True), (0, 3, False)],
)
def test_a_block_lies_inside_with_its_first_and_last_byte(offset: int, level: int, lies_inside: bool) -> None:
    vma = Vma(START, START + M2 + 0x3000, "shared", 2)  # type: ignore[arg-type]
    assert vma.covers_block(START + offset, level) is lies_inside  # type: ignore[arg-type]


def test_a_block_that_begins_before_the_range_does_not_lie_inside() -> None:
    vma = Vma(START + 0x1000, START + M2, "shared", 2)  # type: ignore[arg-type]
    assert not vma.covers_block(START + 0x5000, 2)  # type: ignore[arg-type]


def test_pieces_share_the_page_table_of_their_mmap() -> None:
    vma = Vma(START, START + 0x4000, "anonymous", 1)  # type: ignore[arg-type]
    vma.writable = False
    piece = vma.piece(START + 0x1000, START + 0x3000)  # type: ignore[arg-type]
    vma.area[2] = 0x5003
    assert list(piece.area) == [0, 0, 0x5003, 0]
    assert (piece.start, piece.end, piece.writable, piece.backing) == (
        START + 0x1000,
        START + 0x3000,
        False,
        "anonymous",
    )
    again = piece.piece(START + 0x2000, START + 0x3000)  # type: ignore[arg-type]
    assert (again.area_start, list(again.area)) == (START, [0, 0, 0x5003, 0])


def test_a_cut_and_the_joining_of_the_pieces_lose_no_page() -> None:
    mm, _ = make()
    hva = mm.mmap(0x4000, populate=True)
    words = [mm.hpte(hva + n * 0x1000) for n in range(4)]
    mm.mprotect(hva + 0x1000, 0x1000, False)
    assert [vma.writable for vma in mm.vmas] == [True, False, True]
    mm.mprotect(hva + 0x1000, 0x1000, True)
    assert [mm.hpte(hva + n * 0x1000) for n in range(4)] == words
    assert len(mm.vmas) == 1


@pytest.mark.parametrize(("backing", "is_anonymous"), [("anonymous", True), ("shared", False)])
def test_only_anonymous_memory_has_zero_page_and_copies(backing: str, is_anonymous: bool) -> None:
    assert Vma(START, START + 0x1000, backing, 1).is_anonymous() is is_anonymous  # type: ignore[arg-type]
