# SPDX-License-Identifier: GPL-2.0-only
"""The frame allocator against a slow model, and its edges."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvmmu.errors import KvmBug, OutOfFrames, UserError
from kvmmu.host.bits import PG_ACCESSED, PG_BLOCK_2M, PG_DIRTY, PG_RESERVED
from kvmmu.host.frames import FrameAllocator, zeroed_array
from kvmmu.hw.memory import PhysicalMemory

NR = 2200  # room for three aligned 2M blocks and some single frames


def allocator(nr_frames: int = NR) -> FrameAllocator:
    return FrameAllocator(PhysicalMemory(nr_frames))


def test_zero_page_and_frame_0_are_reserved_and_never_handed_out() -> None:
    frames = allocator(16)
    got = [frames.alloc() for _ in range(14)]
    assert sorted(got) == list(range(2, 16))
    assert frames.zero_pfn == 1
    assert frames.flags_of(0) == PG_RESERVED
    assert frames.flags_of(1) == PG_RESERVED
    assert frames.flags_of(2) == 0


def test_the_last_frame_returned_is_the_first_handed_out() -> None:
    frames = allocator()
    first, second, _ = frames.alloc(), frames.alloc(), frames.alloc()
    frames.put(first)
    frames.put(second)
    assert [frames.alloc(), frames.alloc()] == [second, first]


def test_running_out_names_what_is_missing_and_is_a_memory_error() -> None:
    frames = allocator(3)
    frames.alloc()
    with pytest.raises(OutOfFrames, match="no free frame left of nr_frames=3"):
        frames.alloc()
    with pytest.raises(MemoryError):
        frames.alloc_zeroed()
    with pytest.raises(OutOfFrames, match="no free aligned 2M block"):
        frames.alloc_block(2)
    assert frames.nr_free == 0


def test_a_frame_is_free_after_its_last_reference_only() -> None:
    frames = allocator()
    pfn = frames.alloc()
    frames.get(pfn)
    assert frames.nr_refs(pfn) == 2
    free = frames.nr_free
    frames.put(pfn)
    assert frames.nr_free == free
    frames.put(pfn)
    assert (frames.nr_free, frames.nr_refs(pfn)) == (free + 1, 0)


@pytest.mark.parametrize("call", ["get", "put", "mark_dirty", "mark_accessed", "flags_of"])
@pytest.mark.parametrize("pfn", [5, NR, 2**63])
def test_touching_a_free_or_missing_frame_is_a_bug(call: str, pfn: int) -> None:
    with pytest.raises(KvmBug, match=f"{pfn:#x}"):
        getattr(allocator(), call)(pfn)


def test_the_last_reference_to_a_reserved_frame_cannot_be_dropped() -> None:
    frames = allocator()
    frames.get(frames.zero_pfn)
    frames.put(frames.zero_pfn)
    with pytest.raises(KvmBug, match="reserved"):
        frames.put(frames.zero_pfn)
    assert frames.nr_refs(frames.zero_pfn) == 1


def test_flags_and_owner_do_not_survive_the_frame() -> None:
    frames = allocator()
    pfn = frames.alloc()
    frames.mark_dirty(pfn)
    frames.mark_accessed(pfn)
    frames.set_owner(pfn, "owner")
    assert frames.flags_of(pfn) == PG_DIRTY | PG_ACCESSED
    frames.put(pfn)
    assert frames.owner(pfn) is None
    assert frames.alloc() == pfn
    assert frames.flags_of(pfn) == 0


def test_a_block_is_aligned_and_all_its_frames_share_one_count_and_flags() -> None:
    frames = allocator()
    first = frames.alloc_block(2)
    assert first % 512 == 0
    frames.get(first + 511)
    assert frames.nr_refs(first + 17) == 2
    frames.mark_dirty(first + 100)
    assert frames.flags_of(first) == PG_DIRTY | PG_BLOCK_2M
    frames.put(first + 3)
    free = frames.nr_free
    frames.put(first)
    assert frames.nr_free == free + 512
    assert frames.alloc_block(2) == first


def test_single_frames_come_from_returned_blocks_when_nothing_else_is_left() -> None:
    frames = allocator(1024)
    block = frames.alloc_block(2)
    single = [frames.alloc() for _ in range(frames.nr_free)]
    frames.put(block)
    more = [frames.alloc() for _ in range(512)]
    assert sorted(more) == list(range(block, block + 512))
    assert not set(more) & set(single)
    with pytest.raises(OutOfFrames):
        frames.alloc()


def test_a_1g_block_gives_2m_blocks_and_frames_when_memory_is_short() -> None:
    nr = 2 * 512 * 512
    frames = allocator(nr)
    huge = frames.alloc_block(3)
    assert huge == 512 * 512
    assert frames.nr_refs(huge + 512 * 512 - 1) == 1
    with pytest.raises(OutOfFrames, match="1G"):
        frames.alloc_block(3)
    below = [frames.alloc_block(2) for _ in range(511)]
    frames.put(huge)
    blocks = [frames.alloc_block(2) for _ in range(512)]
    assert sorted(blocks) == list(range(huge, nr, 512))
    assert not set(blocks) & set(below)
    assert frames.nr_free == 510


def test_gaps_left_by_alignment_are_not_lost() -> None:
    frames = allocator(3 * 512 * 512 - 700)
    frames.alloc_block(2)
    frames.alloc_block(3)
    nr_2m = 0
    try:
        while True:
            frames.alloc_block(2)
            nr_2m += 1
    except OutOfFrames:
        pass
    singles = sum(1 for _ in iter_alloc(frames))
    assert frames.nr_free == 0
    assert singles + 512 * (nr_2m + 1) + 512 * 512 == frames.nr_frames - 2


def iter_alloc(frames: FrameAllocator):
    while frames.nr_free:
        yield frames.alloc()


def test_zeroed_frames_are_zero_after_use_and_before() -> None:
    frames = allocator()
    pfn = frames.alloc_zeroed()
    frames.memory.fill_words(pfn << 12, 0x1234, 512)
    frames.put(pfn)
    assert frames.alloc_zeroed() == pfn
    assert frames.memory.read(pfn << 12, 4096) == bytes(4096)
    block = frames.alloc_block_zeroed(2)
    frames.memory.write_once((block + 511) << 12, 1)
    frames.put(block)
    assert frames.alloc_block_zeroed(2) == block
    assert frames.memory.read_once((block + 511) << 12) == 0


@pytest.mark.parametrize("level", [0, 1, 4])
def test_blocks_of_other_sizes_are_refused(level: int) -> None:
    with pytest.raises(UserError, match=f"level {level}"):
        allocator().alloc_block(level)


def test_a_memory_without_room_for_the_reserved_frames_is_refused() -> None:
    with pytest.raises(UserError, match="2 frames"):
        allocator(2)


@pytest.mark.parametrize("typecode", ["B", "H", "i", "Q"])
@pytest.mark.parametrize("count", [0, 1, 100_000])
def test_zeroed_array_has_exactly_the_asked_words(typecode: str, count: int) -> None:
    array = zeroed_array(typecode, count)
    assert len(array) == count
    assert not any(array)
    if count:
        array[count - 1] = 7
        assert array[count - 1] == 7


class Frames(RuleBasedStateMachine):
    """Random allocations and references; the model is a dict of first pfn -> [length, references]."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = allocator()
        self.held: dict[int, list[int]] = {}

    def take(self, pfn: int, length: int) -> None:
        for other, (size, _) in self.held.items():
            assert pfn + length <= other or other + size <= pfn
        assert pfn >= 2
        assert pfn + length <= NR
        self.held[pfn] = [length, 1]

    @rule(zeroed=st.booleans())
    def alloc(self, zeroed: bool) -> None:
        if self.frames.nr_free == 0:
            return
        pfn = self.frames.alloc_zeroed() if zeroed else self.frames.alloc()
        if zeroed:
            assert self.frames.memory.read(pfn << 12, 4096) == bytes(4096)
        self.take(pfn, 1)
        self.frames.memory.fill_words(pfn << 12, pfn, 512)

    @rule(count=st.integers(1, 600))
    def alloc_many(self, count: int) -> None:
        for _ in range(min(count, self.frames.nr_free)):
            self.take_fast(self.frames.alloc())

    def take_fast(self, pfn: int) -> None:
        assert pfn not in self.held
        self.held[pfn] = [1, 1]

    @rule(zeroed=st.booleans())
    def alloc_block(self, zeroed: bool) -> None:
        try:
            pfn = self.frames.alloc_block_zeroed(2) if zeroed else self.frames.alloc_block(2)
        except OutOfFrames:
            return
        assert pfn % 512 == 0
        self.take(pfn, 512)
        self.frames.memory.fill_words(pfn << 12, 1, 512 * 512)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), offset=st.integers(0, 511))
    def get(self, data: st.DataObject, offset: int) -> None:
        pfn = data.draw(st.sampled_from(sorted(self.held)))
        self.frames.get(pfn + offset % self.held[pfn][0])
        self.held[pfn][1] += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data(), count=st.integers(1, 400), offset=st.integers(0, 511))
    def put(self, data: st.DataObject, count: int, offset: int) -> None:
        start = data.draw(st.integers(0, len(self.held) - 1))
        for pfn in sorted(self.held)[start : start + count]:
            self.frames.put(pfn + offset % self.held[pfn][0])
            self.held[pfn][1] -= 1
            if self.held[pfn][1] == 0:
                del self.held[pfn]

    @invariant()
    def counts_agree(self) -> None:
        assert self.frames.nr_free == NR - 2 - sum(length for length, _ in self.held.values())
        for pfn, (length, refs) in self.held.items():
            assert self.frames.nr_refs(pfn) == refs
            assert self.frames.nr_refs(pfn + length - 1) == refs


TestFrames = Frames.TestCase
TestFrames.settings = settings(max_examples=30, stateful_step_count=30)
