# SPDX-License-Identifier: GPL-2.0-only
"""The memory map of a recorded machine, against a dictionary of pages."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kvmmu.record import format as f
from kvmmu.record.memmap import OTHER, Change, MemoryMap

PAGES = 64
HEADER = f.Header(
    cpus=1,
    memory=(
        f.Region(0, 16 << 12, "ram"),
        f.Region(16 << 12, 4 << 12, "rom", "ram", 16 << 12),
        f.Region(40 << 12, 8 << 12, "rom", "bios"),
    ),
    maxphyaddr=40,
)
CHANGES = st.builds(
    lambda page, size, kind, memory, offset: Change(page << 12, size << 12, kind, memory, offset << 12),
    st.integers(0, PAGES - 1),
    st.integers(1, 24),
    st.integers(0, 2),
    st.sampled_from((0, 1, f.MEMORY_UNKNOWN)),
    st.integers(0, 64),
)


def pages_of(header: f.Header) -> dict[int, tuple[str, str, int]]:
    """By page: kind, memory, offset."""
    return {
        (region.gpa + at) >> 12: (region.kind, region.memory, region.offset + at)
        for region in header.memory
        for at in range(0, region.size, 4096)
    }


def change(pages: dict[int, Any], change: Change) -> None:
    """The slow way to make a change."""
    for at in range(0, change.size, 4096):
        page = (change.gpa + at) >> 12
        pages.pop(page, None)
        if change.kind != f.MAP_IO:
            known = change.memory != f.MEMORY_UNKNOWN
            name = ("ram", "bios")[change.memory] if known else OTHER
            place = change.offset + at if known else change.gpa + at
            pages[page] = (("", "ram", "rom")[change.kind], name, place)


def seen(memory_map: MemoryMap) -> dict[int, tuple[str, str, int]]:
    """What the map says of each page, asked page by page."""
    found = {}
    for page in range(PAGES + 32):
        region = memory_map.find(page << 12)
        if region is not None:
            found[page] = (region.kind, region.memory, region.offset + (page << 12) - region.gpa)
    return found


@given(st.lists(CHANGES, max_size=30), st.booleans())
def test_it_says_what_a_dictionary_of_pages_says(changes: list[Change], joins: bool) -> None:
    memory_map = MemoryMap(HEADER, joins)
    pages = pages_of(HEADER)
    for one in changes:
        expected = dict(pages)
        change(expected, one)
        assert memory_map.holds(one) <= (expected == pages)
        memory_map.change(one)
        pages = expected
        assert memory_map.holds(one) or not joins or one.kind != f.MAP_IO
        assert seen(memory_map) == pages
    starts = [region.gpa for region in memory_map.regions]
    assert starts == sorted(starts) == memory_map.starts


@given(st.lists(CHANGES, max_size=30))
def test_its_changes_from_the_header_make_it_again(changes: list[Change]) -> None:
    memory_map = MemoryMap(HEADER)
    for one in changes:
        memory_map.change(one)
    again = MemoryMap(HEADER)
    for one in memory_map.changes_from(HEADER):
        again.change(one)
    assert seen(again) == seen(memory_map)


def test_ranges_that_continue_each_other_are_one() -> None:
    memory_map = MemoryMap(HEADER)
    for page in (60, 62, 61):
        memory_map.change(Change(page << 12, 4096, f.MAP_RAM, f.MEMORY_UNKNOWN, 0))
    assert memory_map.between(60 << 12, 63 << 12) == [f.Region(60 << 12, 3 << 12, "ram", OTHER, 60 << 12)]
