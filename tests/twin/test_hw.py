# SPDX-License-Identifier: GPL-2.0-only
"""Party hw on both builds: the same random program gives the same words, walks, counters and memory."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.builds import Build, assert_twins_agree

CR4_BITS = [1 << bit for bit in (4, 5, 7, 12, 17, 20, 21, 22)]
STATES = {
    "off": (1, 0, 0),
    "32": (1 << 31 | 1, 0, 0),
    "32pse": (1 << 31 | 1, 1 << 4, 0),
    "pae": (1 << 31 | 1, 1 << 5, 1 << 11),
    "4": (1 << 31 | 1, 1 << 5, 0xD00),
    "5": (1 << 31 | 1, 1 << 5 | 1 << 12, 0xD00),
}
KINDS = [write | user | more for write in (0, 2, 16) for user in (0, 4) for more in (0, 256, 512)]


def entry(rng: random.Random, table: int) -> int:
    """An entry that mostly points at a later table and mostly allows."""
    value = (0x10000 + 0x1000 * min(table + rng.choice((1, 1, 1, 2)), 9)) | 0x27
    for bit in rng.choices((0, 1, 2, 6, 7, 8, 13, 21, 50, 59, 60, 63), k=rng.choice((0, 0, 1, 2))):
        value ^= 1 << bit
    return value


def run(build: Build, seed: int, keep_all: bool) -> list[Any]:
    """Random tables, registers, accesses and flushes; what can be seen after each step."""
    rng = random.Random(seed)
    memory = build.room("hw.memory").PhysicalMemory(64)
    params = build.room("hw.cpumodel").CpuModel(
        maxphyaddr=rng.choice((36, 46, 52)), tlb_entries_4k=8, tlb_entries_2m=4, tlb_entries_1g=4, keep_all=keep_all
    )
    cpu = build.room("hw.cpu").Cpu(0, memory, params)
    for table in range(10):
        for index in range(4):
            memory.write_once(0x10000 + 0x1000 * table + 8 * index, entry(rng, table))
            memory.write_once(0x20000 + 0x1000 * table + 8 * index, 0x10000 + entry(rng, table))
    seen: list[Any] = []
    for _ in range(120):
        seen.append(step(rng, cpu, memory))
        tlb = cpu.tlb
        seen.append(
            (
                cpu.cr0,
                cpu.cr3,
                cpu.cr4,
                cpu.efer,
                cpu.hpa,
                cpu.error_code,
                cpu.fault_gpa,
                cpu.fault_code,
                tlb.hits,
                tlb.misses,
                tlb.evictions,
                tlb.flushes,
                tlb.clock,
                cpu.last_walk.elements(),
                cpu.last_walk.nested.elements(),
                cpu.last_walk.translation,
            )
        )
    seen.append(memory.read(0, 64 * 4096))
    return seen


def step(rng: random.Random, cpu: Any, memory: Any) -> Any:
    """One operation on the CPU."""
    gva = sum(rng.randrange(4) << shift for shift in (12, 21, 30, 39, 48)) | rng.choice((0, 0xFFF))
    choice = rng.randrange(20)
    if choice < 9:
        return [cpu.access(gva, rng.choice(KINDS)) for _ in range(2)]
    if choice == 9:
        cr0, cr4, efer = rng.choice(list(STATES.values()))
        extra = sum({rng.choice(CR4_BITS[5:]), rng.choice((0, 1 << 7))})
        return cpu.load_guest(cr0 | rng.choice((0, 1 << 16)), 0x10000, cr4 | extra, efer)
    if choice == 10:
        return cpu.write_cr4(cpu.cr4 ^ rng.choice(CR4_BITS))
    if choice == 11:
        return cpu.write_cr0(cpu.cr0 ^ rng.choice((1 << 16, 1 << 31, 1 << 29, 1 << 30)))
    if choice == 12:
        return cpu.write_cr3(0x10000 | rng.choice((0, 0, 1, 0xFFF, 1 << 63, 1 << 40)))
    if choice == 13:
        return cpu.invpcid(rng.randrange(5), rng.choice((0, 1, 0xFFF)), gva)
    if choice == 14:
        return cpu.invlpg(gva)
    if choice == 15:
        return cpu.set_nested(0x20000, rng.choice((0, 4, 5)))
    if choice == 16:
        return cpu.write_pkru(rng.getrandbits(32))
    if choice == 17:
        return cpu.write_efer(cpu.efer ^ rng.choice((1 << 11, 1 << 8)))
    if choice == 18:
        return cpu.set_space(rng.randrange(3))
    return memory.write_once(0x10000 + 0x1000 * rng.randrange(10) + 8 * rng.randrange(4), entry(rng, rng.randrange(10)))


@pytest.mark.parametrize("keep_all", [False, True])
@given(seed=st.integers(0, 2**32))
def test_a_random_program_runs_the_same(keep_all: bool, seed: int) -> None:
    seen = assert_twins_agree(lambda build: run(build, seed, keep_all))
    assert isinstance(seen, list), seen


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**14 - 1))
def test_words_of_any_value_are_kept_the_same(first: int, second: int, index: int) -> None:
    def program(build: Build) -> object:
        memory = build.room("hw.memory").PhysicalMemory(16)
        at = 8 * index
        return (
            memory.write_once(at, first),
            memory.xchg(at, second),
            memory.cmpxchg(at, second, first),
            memory.cmpxchg(at, second, first),
            memory.read_once32(at),
            memory.cmpxchg32(at, first & 0xFFFFFFFF, 7),
            memory.read(at - at % 4096, 8192),
        )

    assert_twins_agree(program)


@given(st.integers(0, 2**64 - 1), st.integers(1, 3), st.integers(0, 2**32 - 1), st.integers(0, 4095))
def test_tlb_tags_of_any_width_are_kept_the_same(gva: int, level: int, space: int, pcid: int) -> None:
    def program(build: Build) -> object:
        tlb = build.room("hw.tlb").Tlb(build.room("hw.cpumodel").CpuModel())
        tlb.switch(space, pcid)
        tlb.fill(gva, 0x5002 | level << 56)
        found = tlb.find(gva)
        tlb.switch(space ^ 1, pcid)
        return found, tlb.find(gva), tlb.flush_space(space), tlb.switch(space, pcid), tlb.find(gva)

    assert assert_twins_agree(program)[:2] == (0x5002 | level << 56, 0)


def test_misuse_is_refused_the_same() -> None:
    def nested(build: Build) -> object:
        return build.room("hw.cpu").Cpu(0, build.room("hw.memory").PhysicalMemory(4)).set_nested(0, 3)

    def frames(build: Build) -> object:
        return build.room("hw.memory").PhysicalMemory(0)

    assert "levels=3" in assert_twins_agree(nested)
    assert "nr_frames=0" in assert_twins_agree(frames)
