# SPDX-License-Identifier: GPL-2.0-only
"""What a recording has said of its frames, against a dictionary of frames."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kvmmu.record.format import MAP_IO, MAP_RAM, MAP_ROM, Header, Region
from kvmmu.record.known import KnownFrames

HEADER = Header(1, (Region(0, 0x4000, "ram"), Region(0x8000, 0x2000, "rom")), 40)
CHANGES = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 8), st.sampled_from((MAP_IO, MAP_RAM, MAP_ROM))))


@given(CHANGES)
def test_a_change_means_what_a_change_of_each_frame_would(changes: list[tuple[int, int, int]]) -> None:
    known = KnownFrames(HEADER)
    frames = dict.fromkeys(range(4), MAP_RAM) | {8: MAP_ROM, 9: MAP_ROM}
    for first, count, kind in changes:
        nr = known.change(first, first + count, kind)
        frames |= dict.fromkeys(range(first, first + count), kind)
        meanings = [frames.get(frame, MAP_IO) for frame in range(32)]
        # The last frame first: the range that was asked for last must not answer for another.
        assert [known.meaning(frame) for frame in range(31, -1, -1)] == meanings[::-1]
        assert [known.is_ram(frame) for frame in range(31, -1, -1)] == [kind == MAP_RAM for kind in meanings[::-1]]
        # One range for each run of frames that mean the same.
        assert nr == 1 + sum(before != after for before, after in pairwise(meanings))


def test_the_last_frame_of_all_means_io() -> None:
    assert KnownFrames(HEADER).meaning((1 << 40) - 1) == MAP_IO


def test_tables_that_share_their_low_bits_are_told_apart() -> None:
    known = KnownFrames(HEADER)
    assert not known.is_table(5)
    known.add_table(5)
    assert known.is_table(5)
    assert not known.is_table(5 + 4096)
    known.add_table(5 + 4096)
    assert known.is_table(5)
    assert known.is_table(5 + 4096)
    assert not known.is_table(5 + 8192)
