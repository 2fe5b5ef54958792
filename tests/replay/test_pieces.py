# SPDX-License-Identifier: GPL-2.0-only
"""Pieces of the bundled recordings, cut anywhere, replay by themselves in every mode."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kvmmu import build_info
from kvmmu.record.bundled import bundled
from kvmmu.record.piece import cut
from kvmmu.record.reader import Reader
from kvmmu.replay.replay import MMUS, Options, replay

#: Records of a piece: enough to use tables that were made before it.
SIZE = 3_000
NAMES = tuple(bundled())


def check_pieces(name: str, tmp_path: Path, places: int) -> None:
    """Cut at random places, which depend on the name alone, and replay."""
    path = str(bundled()[name])
    chosen = random.Random(name)
    with Reader(path) as reader:
        total = reader.total
    size = SIZE if build_info().is_compiled else SIZE // 10
    for _ in range(places):
        first = chosen.randrange(total if build_info().is_compiled else 20_000)
        piece = tmp_path / "piece.kmr"
        cut(path, str(piece), first, min(first + size, total), level=1)
        for mmu in MMUS:
            result = replay(piece, Options(mmu))
            lines = [line for mismatch in result.details for line in mismatch.lines()]
            assert lines == [], f"{name} from {first} with {mmu}: {lines}"


@pytest.mark.parametrize("name", NAMES)
def test_a_piece_is_verified_wherever_it_begins(name: str, tmp_path: Path) -> None:
    check_pieces(name, tmp_path, 3)


@pytest.mark.deep
@pytest.mark.parametrize("name", NAMES)
def test_pieces_from_fifty_places_are_verified(name: str, tmp_path: Path) -> None:
    check_pieces(name, tmp_path, 50)
