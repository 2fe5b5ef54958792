# SPDX-License-Identifier: GPL-2.0-only
"""The layout of each mode: places and words agree with the processor manual's pictures, and checks with one another."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmmu.errors import GuestMisuse
from kvmmu.guest.layout import MODE_NAMES, SIZE_1G, SIZE_2M, SIZE_4K, SIZE_4M, TableLayout, tables_mode
from kvmmu.hw.modes import MODE_PAE, MODES

#: Mode: by level, the lowest bit of the index and how many there are; bytes of an entry.
PICTURES = {
    "2-level": ({1: (12, 10), 2: (22, 10)}, 4),
    "2-level-pse": ({1: (12, 10), 2: (22, 10)}, 4),
    "pae": ({1: (12, 9), 2: (21, 9), 3: (30, 2)}, 8),
    "4-level": ({1: (12, 9), 2: (21, 9), 3: (30, 9), 4: (39, 9)}, 8),
    "5-level": ({1: (12, 9), 2: (21, 9), 3: (30, 9), 4: (39, 9), 5: (48, 9)}, 8),
}
PAGES = {
    "2-level": {SIZE_4K: 1},
    "2-level-pse": {SIZE_4K: 1, SIZE_4M: 2},
    "pae": {SIZE_4K: 1, SIZE_2M: 2},
    "4-level": {SIZE_4K: 1, SIZE_2M: 2, SIZE_1G: 3},
    "5-level": {SIZE_4K: 1, SIZE_2M: 2, SIZE_1G: 3},
}


@pytest.mark.parametrize("name", MODE_NAMES)
@given(gva=st.integers(0, 2**64 - 1))
def test_an_entry_lies_where_the_manuals_picture_has_it(name: str, gva: int) -> None:
    layout = TableLayout(name)
    levels, entry_bytes = PICTURES[name]
    assert layout.mode.levels == len(levels)
    for level, (low, width) in levels.items():
        assert layout.entry_place(0x5000, gva, level) == 0x5000 + (gva >> low) % 2**width * entry_bytes
        assert layout.size_of(level) == 1 << low


@pytest.mark.parametrize("name", MODE_NAMES)
def test_each_page_size_has_its_level_and_others_none(name: str) -> None:
    layout = TableLayout(name)
    for size in (SIZE_4K, SIZE_2M, SIZE_4M, SIZE_1G):
        if size in PAGES[name]:
            assert layout.level_of(size) == PAGES[name][size]
        else:
            with pytest.raises(GuestMisuse, match="page size"):
                layout.level_of(size)
    for level in PICTURES[name][0]:
        assert layout.is_leaf(0x80, level) == (level in PAGES[name].values())
        assert layout.is_leaf(0, level) == (level == 1)


@pytest.mark.parametrize(("name", "level", "gpa", "word"), [
    ("2-level", 1, 0xFFFF_F000, 0xFFFF_F000),
    ("2-level-pse", 2, 0x40_0000, 0x40_0080),
    # PSE-36: bits 39:32 of the address are bits 20:13 of the entry.
    ("2-level-pse", 2, 0xA5_0040_0000, 0x40_0080 | 0xA5 << 13),
    ("pae", 2, 0xF_FFFF_FFE0_0000, 0xF_FFFF_FFE0_0080),
    ("4-level", 3, 0x4000_0000, 0x4000_0080),
])  # fmt: skip
def test_the_word_of_a_leaf(name: str, level: int, gpa: int, word: int) -> None:
    assert TableLayout(name).leaf_word(gpa, level) == word
    assert TableLayout(name).leaf(0, gpa, level, 7) == word | 7


@pytest.mark.parametrize(("name", "level", "gpa"), [
    ("2-level", 1, 1 << 32), ("2-level-pse", 2, 1 << 40), ("4-level", 1, 1 << 52), ("pae", 1, -4096),
])  # fmt: skip
def test_a_gpa_too_wide_for_its_entry_is_refused(name: str, level: int, gpa: int) -> None:
    with pytest.raises(GuestMisuse, match="holds"):
        TableLayout(name).leaf_word(gpa, level)


@pytest.mark.parametrize("name", MODE_NAMES)
@given(data=st.data())
def test_a_run_of_leaves_is_the_leaves_one_by_one(name: str, data: st.DataObject) -> None:
    layout = TableLayout(name)
    size = data.draw(st.sampled_from(sorted(PAGES[name])))
    level = PAGES[name][size]
    gpa = data.draw(st.integers(0, 100)) * size
    count = data.draw(st.integers(1, 20))
    # Flags that reach into the frame's bits are the guest's to give.
    flags = data.draw(st.sampled_from([1, 0x67, 0x1001]))
    words = [layout.leaf_word(gpa + number * size, level) | flags for number in range(count)]
    packed = struct.pack(f"<{count}{'I' if PICTURES[name][1] == 4 else 'Q'}", *words)
    assert layout.leaf_run(gpa, count, level, flags) == packed


@pytest.mark.parametrize(("name", "good", "bad"), [
    ("2-level", [0, 0xFFFF_FFFF], [-1, 1 << 32]),
    ("4-level", [0x7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000], [0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF]),
    ("5-level", [0x8000_0000_0000, 0xFF00_0000_0000_0000], [1 << 56, 0xFEFF_FFFF_FFFF_FFFF]),
])  # fmt: skip
def test_addresses_that_a_mode_does_not_translate_are_refused(name: str, good: list[int], bad: list[int]) -> None:
    layout = TableLayout(name)
    for gva in good:
        layout.check_gva(gva)
    for gva in bad:
        with pytest.raises(GuestMisuse, match="gva"):
            layout.check_gva(gva)


def test_a_pdpte_links_without_rights() -> None:
    assert TableLayout("pae").link_flags(3, 0x67) == 1
    assert TableLayout("pae").link_flags(2, 0x67) == 0x67
    assert TableLayout("4-level").link_flags(3, 0x67) == 0x67


def test_modes_have_one_name_each() -> None:
    assert tables_mode(MODES[MODE_PAE]) == "pae"
    assert [tables_mode(TableLayout(name).mode) for name in MODE_NAMES] == list(MODE_NAMES)
    with pytest.raises(GuestMisuse, match="none"):
        tables_mode(MODES[0])
