# SPDX-License-Identifier: GPL-2.0-only
"""Physical memory: atomic words, the gate, and the silence of addresses without memory."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmmu.errors import ConfigError
from kvmmu.hw.memory import MAX_FRAMES, PhysicalMemory
from kvmmu.sync import Gate

ONES = (1 << 64) - 1
END = 4 * 4096


class Listener:
    """Keeps what the gate announces, and the word's value at that time."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def point(self, kind: str, where: Any, key: int) -> None:
        self.heard.append((kind, key))


def test_memory_starts_as_zeros_of_the_asked_size() -> None:
    memory = PhysicalMemory(4)
    assert (memory.nr_frames, memory.size, len(memory.arena)) == (4, END, END)
    assert memory.read(0, END) == bytes(END)


@pytest.mark.parametrize("nr_frames", [0, -1, MAX_FRAMES + 1])
def test_an_impossible_size_is_refused_by_name(nr_frames: int) -> None:
    with pytest.raises(ConfigError, match=f"nr_frames={nr_frames}"):
        PhysicalMemory(nr_frames)


def test_a_huge_memory_is_sparse() -> None:
    memory = PhysicalMemory(1 << 24)  # 64 GiB
    memory.write_once((1 << 36) - 8, 7)
    assert memory.read_once((1 << 36) - 8) == 7


def test_views_show_the_same_bytes() -> None:
    memory = PhysicalMemory(4)
    memory.write_once(0x1008, 0x1122334455667788)
    assert memory.read_once32(0x1008) == 0x55667788
    assert memory.read_once32(0x100C) == 0x11223344
    assert memory.read(0x1008, 8) == bytes.fromhex("8877665544332211")
    memory.write_once32(0x100C, 0xFFFFFFFF)
    assert memory.read_once(0x1008) == 0xFFFFFFFF55667788


def test_the_arena_is_shared_at_its_address() -> None:
    memory = PhysicalMemory(4)
    word = ctypes.c_uint64.from_address(memory.address() + 0x2010)
    memory.write_once(0x2010, ONES - 1)
    assert word.value == ONES - 1
    word.value = 5
    assert memory.read_once(0x2010) == 5


def test_exchange_returns_the_old_word() -> None:
    memory = PhysicalMemory(4)
    assert memory.xchg(8, 3) == 0
    assert memory.xchg(8, ONES) == 3
    assert memory.read_once(8) == ONES


def test_compare_exchange_stores_only_on_a_match() -> None:
    memory = PhysicalMemory(4)
    memory.write_once(8, ONES)
    assert not memory.cmpxchg(8, 1, 2)
    assert memory.read_once(8) == ONES
    assert memory.cmpxchg(8, ONES, 2)
    assert memory.read_once(8) == 2
    assert not memory.cmpxchg32(8, 1, 9)
    assert memory.cmpxchg32(12, 0, 0xFFFFFFFF)
    assert memory.read_once(8) == 0xFFFFFFFF_00000002


def test_no_memory_reads_as_ones_and_swallows_writes() -> None:
    memory = PhysicalMemory(4)
    for hpa in (END, END + 8, 1 << 51, ONES & ~7):
        memory.write_once(hpa, 1)
        memory.write_once32(hpa, 1)
        memory.fill_words(hpa, 1, 512)
        memory.write(hpa, b"abc")
        assert memory.read_once(hpa) == ONES
        assert memory.read_once32(hpa) == 0xFFFFFFFF
        assert memory.xchg(hpa, 1) == ONES
        assert memory.cmpxchg(hpa, ONES, 1) is False
        assert memory.cmpxchg32(hpa, 0xFFFFFFFF, 1) is False
        assert memory.read(hpa, 3) == b"\xff\xff\xff"
    assert memory.read(0, END) == bytes(END)


def test_bytes_stop_at_the_end_of_memory() -> None:
    memory = PhysicalMemory(4)
    memory.write(END - 2, b"abcd")
    assert memory.read(END - 4, 8) == b"\0\0ab\xff\xff\xff\xff"
    memory.fill_words(END - 8, 6, 512)
    assert memory.read_once(END - 8) == 6


def test_fill_words_fills_exactly_its_range() -> None:
    memory = PhysicalMemory(4)
    memory.fill_words(0x1000, ONES, 512)
    assert memory.read(0, END) == bytes(0x1000) + b"\xff" * 0x1000 + bytes(0x2000)
    memory.fill_words(0x1000, 0, 0)
    assert memory.read_once(0x1000) == ONES


def test_an_armed_gate_hears_every_access_before_it_happens() -> None:
    gate, listener = Gate(), Listener()
    memory = PhysicalMemory(4, gate)
    memory.read_once(0)
    gate.arm(listener)
    memory.read_once(8)
    memory.read_once32(12)
    memory.write_once(16, 1)
    memory.write_once32(20, 1)
    memory.xchg(24, 1)
    memory.cmpxchg(32, 0, 1)
    memory.cmpxchg32(36, 0, 1)
    memory.fill_words(40, 1, 1)
    memory.read(49, 3)
    memory.write(51, b"x")
    gate.disarm()
    memory.read_once(0)
    assert listener.heard == [
        ("read", 8),
        ("read", 12),
        ("write", 16),
        ("write", 20),
        ("xchg", 24),
        ("cmpxchg", 32),
        ("cmpxchg", 36),
        ("write", 40),
        ("read", 49),
        ("write", 51),
    ]


def test_the_gate_speaks_before_the_word_is_read() -> None:
    gate = Gate()
    memory = PhysicalMemory(4, gate)

    class Racer:
        def point(self, kind: str, where: PhysicalMemory, key: int) -> None:
            gate.disarm()
            where.write_once(key, 0xBAD)

    gate.arm(Racer())
    assert memory.cmpxchg(8, 0, 1) is False
    assert memory.read_once(8) == 0xBAD


@given(st.lists(st.tuples(st.integers(0, END + 64), st.binary(max_size=40)), max_size=20))
def test_bytes_behave_as_a_flat_array(writes: list[tuple[int, bytes]]) -> None:
    memory = PhysicalMemory(4)
    flat = bytearray(END + 256)
    for hpa, data in writes:
        memory.write(hpa, data)
        flat[hpa : hpa + len(data)] = data
    flat[END:] = b"\xff" * (len(flat) - END)
    assert memory.read(0, END + 200) == bytes(flat[: END + 200])
