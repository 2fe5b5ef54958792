# SPDX-License-Identifier: GPL-2.0-only
"""The second stage: every gpa of a guest's walk through the nested table, and what a fault of it says."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.machines import FETCH, FULL, LEVELS, PS, SMAP, USER, WP, WRITE, XD, A, Box, D, P, U, W
from kvmmu.errors import ConfigError
from kvmmu.hw.bits import HW_HIT, HW_NESTED_FAULT, HW_PAGE_FAULT
from kvmmu.hw.cpu import Cpu
from kvmmu.hw.cpumodel import CpuModel
from kvmmu.hw.paging import Walk, page_walk
from kvmmu.hw.tdp import NestedWalk, translate
from kvmmu.sync import Gate
from oracle.access_oracle import Access, Machine, Ram, predict

NROOT = 0x80000
#: Guest frame n is backed by host frame n + SHIFT.
SHIFT = 0x100
GVA = 0x7123
TABLE, FINAL = 1 << 33, 1 << 32


class Guest:
    """A guest in one mode whose nested table maps its first 64 frames, 4K each, to host frames from SHIFT on."""

    def __init__(self, mode: str, levels: int = 4, params: CpuModel | None = None, gate: Gate | None = None) -> None:
        self.box = Box(mode, params, frames=1024, gate=gate)
        self.box.root = 0x10000
        self.memory = self.box.memory
        self.cpu = self.box.cpu
        self.levels = levels
        for level in range(levels, 1, -1):
            self.put_nested(0, level, NROOT + 0x1000 * (levels - level + 1) | FULL)
        for frame in range(64):
            self.put_nested(frame << 12, 1, (frame + SHIFT) << 12 | FULL)
        self.cpu.set_nested(NROOT, levels)
        self.box.load()
        self.next = 0x11000

    def nested_place(self, gpa: int, level: int) -> int:
        return NROOT + 0x1000 * (self.levels - level) + ((gpa >> (12 + 9 * (level - 1))) & 511) * 8

    def put_nested(self, gpa: int, level: int, value: int) -> None:
        self.memory.write_once(self.nested_place(gpa, level), value)

    def get_nested(self, gpa: int, level: int = 1) -> int:
        return self.memory.read_once(self.nested_place(gpa, level))

    def put(self, gpa: int, value: int) -> None:
        self.box.put(gpa + (SHIFT << 12), value)

    def get(self, gpa: int) -> int:
        return self.box.get(gpa + (SHIFT << 12))

    def map(self, entry: int, level: int = 1) -> int:
        """Map GVA by ``entry``; table of level n lies at gpa 0x10000 + 0x1000 * (levels - n). Return its gpa."""
        table, top = self.box.root, LEVELS[self.box.mode]
        for above in range(top, level, -1):
            flags = P if self.box.mode == "pae" and above == 3 else FULL
            self.put(self.box._slot(table, GVA, above), table + 0x1000 | flags)
            table += 0x1000
        self.put(self.box._slot(table, GVA, level), entry)
        return self.box._slot(table, GVA, level)

    def go(self, kind: int = 0, gva: int = GVA) -> Walk:
        out = Walk()
        assert page_walk(self.cpu, gva, kind, out) == HW_HIT, hex(out.fault_code)
        return out

    def fault(self, kind: int = 0, gva: int = GVA) -> tuple[int, int]:
        out = Walk()
        assert page_walk(self.cpu, gva, kind, out) == HW_NESTED_FAULT
        return out.fault_gpa, out.fault_code


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("mode", ["off", "32", "32pse", "pae", "4", "5"])
def test_every_guest_mode_translates_twice(mode: str, levels: int) -> None:
    guest = Guest(mode, levels)
    if mode != "off":
        guest.map(0x5000 | FULL)
    out = guest.go()
    gpa = GVA if mode == "off" else 0x5123
    assert (out.gpa, out.hpa, out.tlb_level) == (gpa, gpa + (SHIFT << 12), 1)
    assert [level for level, _, _ in out.nested.elements()] == list(range(levels, 0, -1))


def test_guest_tables_are_user_writes_to_the_nested_table() -> None:
    guest = Guest("4")
    guest.map(0x5000 | FULL)
    guest.go()
    assert guest.get_nested(0x10000) & (A | D) == A | D
    assert guest.get_nested(0x13000) & (A | D) == A | D
    assert guest.get_nested(0x5000) & (A | D) == A
    assert guest.get_nested(0, 2) & (A | D) == A
    guest.go(WRITE)
    assert guest.get_nested(0x5000) & (A | D) == A | D


def test_guest_accessed_and_dirty_go_through_the_nested_table() -> None:
    guest = Guest("4")
    place = guest.map(0x5000 | FULL)
    guest.go(WRITE)
    assert guest.get(place) == 0x5000 | FULL | A | D
    assert guest.memory.read_once(place) == 0


@pytest.mark.parametrize(
    ("change", "kind", "expected"),
    [
        # What real KVM was told by its CPU in conformance/6.12/basic-long.tdplegacy.
        ((0x10000, 0), 0, (0x10000, TABLE | 6)),
        ((0x5000, 0), FETCH, (0x5123, FINAL | 0x14)),
        ((0x5000, 0), 0, (0x5123, FINAL | 4)),
        ((0x5000, 0), WRITE, (0x5123, FINAL | 6)),
        ((0x5000, P | U), WRITE, (0x5123, FINAL | 7)),
        ((0x5000, P | W), 0, (0x5123, FINAL | 5)),
        ((0x5000, FULL | XD), FETCH, (0x5123, FINAL | 0x15)),
        ((0x13000, P | U), 0, (0x13038, TABLE | 7)),
        ((0x12000, P | U), FETCH, (0x12000, TABLE | 7)),
        ((0x13000, FULL | 1 << 50), USER, (0x13038, TABLE | 0xF)),
        ((0x5000, FULL | 1 << 51), FETCH, (0x5123, FINAL | 0x1D)),
    ],
)
def test_a_nested_fault_tells_the_gpa_and_whose_access_it_was(
    change: tuple[int, int], kind: int, expected: tuple[int, int]
) -> None:
    guest = Guest("4")
    guest.map(0x5000 | FULL)
    gpa, flags = change
    guest.put_nested(gpa, 1, gpa + (SHIFT << 12) | flags if flags else 0)
    assert guest.fault(kind) == expected


@pytest.mark.parametrize(("level", "bit"), [(4, 7), (4, 8), (3, 50), (2, 50)])
def test_reserved_bits_of_nested_directories(level: int, bit: int) -> None:
    guest = Guest("off")
    entry = guest.get_nested(0, level)
    guest.put_nested(0, level, entry | 1 << bit)
    assert guest.fault() == (GVA, FINAL | 0xD)


def test_a_guest_fault_comes_before_the_final_nested_one() -> None:
    guest = Guest("4")
    guest.map(0x5000 | P)
    guest.put_nested(0x5000, 1, 0)
    out = Walk()
    assert page_walk(guest.cpu, GVA, USER, out) == HW_PAGE_FAULT
    assert out.error_code == 5


def test_the_guests_wp_does_not_reach_the_nested_table() -> None:
    guest = Guest("4")
    guest.map(0x5000 | P)
    guest.box.load(cr0=0)
    guest.put_nested(0x5000, 1, 0x105000 | P | U)
    assert guest.fault(WRITE) == (0x5123, FINAL | 7)


def test_pae_reads_its_pdptes_through_the_nested_table() -> None:
    guest = Guest("pae")
    guest.map(0x5000 | FULL)
    assert guest.go().elements()[0] == (3, 0x11000 | P, 0x10000 + (SHIFT << 12))
    guest.put_nested(0x10000, 1, 0)
    assert guest.fault() == (0x10000, TABLE | 6)
    guest.put_nested(0x10000, 1, 0x110000 | FULL)
    guest.put(0x10000, 0x11000 | P | W)
    out = Walk()
    assert page_walk(guest.cpu, GVA, 0, out) == HW_PAGE_FAULT
    assert out.error_code == 9


@pytest.mark.parametrize(
    ("guest_level", "nested_level", "expected"),
    [
        (1, 2, 1),
        (2, 1, 1),
        (2, 2, 2),
        (2, 3, 2),
        (3, 2, 2),
        (3, 3, 3),
        (1, 3, 1),
    ],
)
def test_the_tlb_may_keep_the_smaller_page(guest_level: int, nested_level: int, expected: int) -> None:
    guest = Guest("4")
    if nested_level > 1:
        guest.put_nested(0, nested_level, FULL | PS)
        guest.put = guest.box.put
    guest.map(FULL | (PS if guest_level > 1 else 0), guest_level)
    assert guest.go().tlb_level == expected
    piece = 0 if expected == guest_level else {2: 1, 3: 3}[guest_level]
    assert (guest.go().translation >> 58) & 3 == piece


def test_a_gpa_wider_than_the_nested_table_is_not_present() -> None:
    for levels, top in ((4, 48), (5, 52)):
        guest = Guest("4", levels, CpuModel(maxphyaddr=52))
        nested = NestedWalk()
        if top < 52:
            assert translate(guest.cpu, 1 << top, FINAL | USER, nested) == HW_NESTED_FAULT
            assert (nested.fault_gpa, nested.fault_code, nested.nr) == (1 << top, FINAL | 4, 0)
        assert translate(guest.cpu, (1 << top) - 1, FINAL | USER, nested) == HW_NESTED_FAULT
        assert nested.nr > 0


def test_a_nested_table_has_four_or_five_levels() -> None:
    guest = Guest("4")
    with pytest.raises(ConfigError, match="levels=3"):
        guest.cpu.set_nested(NROOT, 3)
    guest.cpu.set_nested(0, 0)
    assert not guest.cpu.nested


def test_a_changed_nested_entry_makes_the_translation_start_again() -> None:
    gate = Gate()
    guest = Guest("off", gate=gate)
    place = guest.nested_place(GVA, 1)

    class Other:
        def point(self, kind: str, where: Any, key: int) -> None:
            if kind == "cmpxchg" and key == place:
                gate.disarm()
                guest.memory.write_once(place, 0x133000 | FULL)

    gate.arm(Other())
    assert guest.go(WRITE).hpa == 0x133123
    assert guest.memory.read_once(place) == 0x133000 | FULL | A | D


def test_the_cpu_reports_a_nested_fault_and_recovers() -> None:
    guest = Guest("4")
    guest.map(0x5000 | FULL)
    cpu: Cpu = guest.cpu
    guest.put_nested(0x5000, 1, 0x105000 | P | U)
    assert cpu.access(GVA, USER) == HW_HIT
    assert cpu.access(GVA, USER | WRITE) == HW_NESTED_FAULT
    assert (cpu.fault_gpa, cpu.fault_code) == (0x5123, FINAL | 7)
    guest.put_nested(0x5000, 1, 0x105000 | FULL)
    assert cpu.access(GVA, USER | WRITE) == HW_HIT
    assert cpu.hpa == 0x105123


def test_a_cached_translation_keeps_what_the_nested_table_forbids() -> None:
    """With CR0.WP clear the guest's read-only page is writable, the hypervisor's never."""
    guest = Guest("4")
    guest.map(0x5000 | P)
    guest.box.load(cr0=0)
    guest.put_nested(0x5000, 1, 0x105000 | P | U | D)
    assert guest.cpu.access(GVA, 0) == HW_HIT
    assert guest.cpu.access(GVA, WRITE) == HW_NESTED_FAULT


CACHED_KINDS = [what + who for what in (0, WRITE, FETCH) for who in (0, USER)]


@pytest.mark.parametrize("nested_flags", [P | U | A | w | d | x for w in (0, W) for d in (0, D) for x in (0, XD)])
def test_a_cached_translation_is_judged_by_both_stages_as_a_walk_would(nested_flags: int) -> None:
    """Every leaf, every pair of accesses: the second, through the TLB, does what the oracle's walk does."""
    guest = Guest("4")
    place = guest.map(0x5000 | FULL)
    nested_place = guest.nested_place(0x5000, 1)
    leaves = [0x5000 | P | A | w | u | d | x for w in (0, W) for u in (0, U) for d in (0, D) for x in (0, XD)]
    guest.go()
    cases = 0
    for leaf, wp, first, second in itertools.product(leaves, (0, WP), CACHED_KINDS, CACHED_KINDS):
        guest.put(place, leaf)
        guest.memory.write_once(nested_place, 0x105000 | nested_flags)
        guest.box.load(cr0=wp)
        guest.cpu.flush_all()
        guest.cpu.access(GVA, first)
        ram = Ram(guest.memory.size)
        for page in (*range(NROOT, NROOT + 0x4000, 0x1000), *range(0x110000, 0x114000, 0x1000)):
            for offset in {0, 8 * 0x13, 8 * 0x12, 8 * 0x11, 8 * 0x10, 8 * 5, 8 * 7}:
                ram.store(page + offset, 8, guest.memory.read_once(page + offset))
        model = Machine(ram, "4", 0x10000, wp=bool(wp), nxe=True, nested_root=NROOT)
        expected = predict(model, GVA, Access(second & WRITE != 0, second & USER != 0, second & FETCH != 0))
        cpu = guest.cpu
        status = cpu.access(GVA, second)
        got = (("ok", cpu.hpa), ("pf", cpu.error_code), ("npf", cpu.fault_gpa, cpu.fault_code))[status]
        assert got == expected, (hex(leaf), wp, first, second)
        assert guest.get(place) == ram.load(place + (SHIFT << 12), 8)
        assert guest.memory.read_once(nested_place) == ram.load(nested_place, 8)
        cases += 1
    assert cases == 16 * 2 * 6 * 6


GUEST_FLAGS = st.lists(st.sampled_from([P, W, U, A, D, PS, XD, 1 << 13, 1 << 50]), max_size=3)
NESTED_FLAGS = st.lists(st.sampled_from([P, W, W, U, A, D, D, XD, 1 << 50, 1 << 8]), max_size=2)
GUEST_ENTRIES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), GUEST_FLAGS, st.integers(0, 7)), max_size=12)
NESTED_ENTRIES = st.lists(st.tuples(st.integers(0, 31), NESTED_FLAGS, st.integers(0, 31)), max_size=8)
DIRECTORIES = st.lists(st.tuples(st.integers(2, 5), NESTED_FLAGS), max_size=2)
ACCESSES = st.lists(
    st.tuples(
        st.lists(st.integers(0, 3), min_size=5, max_size=5),
        st.integers(0, 4095),
        st.sampled_from([(0, 0), (1, 0), (0, 1)]),
        st.booleans(),
    ),
    min_size=1,
    max_size=10,
)


@given(
    st.sampled_from(["off", "32", "32pse", "pae", "4", "5"]),
    st.sampled_from([4, 5]),
    st.booleans(),
    st.booleans(),
    GUEST_ENTRIES,
    NESTED_ENTRIES,
    DIRECTORIES,
    ACCESSES,
)
def test_random_tables_in_two_dimensions_translate_as_the_oracle_says(
    mode: str,
    levels: int,
    wp: bool,
    smap: bool,
    entries: list[Any],
    leaves: list[Any],
    directories: list[Any],
    accesses: list[Any],
) -> None:
    guest = Guest(mode, levels)
    box = guest.box
    plain = [(table, index, [], table + 1) for table in range(5) for index in range(4)]
    for table, index, flags, target in plain + entries:
        value = ((0x10000 + 0x1000 * target) | (FULL ^ sum(set(flags)))) % 2 ** (8 * box.size)
        if mode == "pae" and table == 0:
            value &= ~6
        guest.put(0x10000 + 0x1000 * table + index * box.size, value)
    for frame, flags, target in leaves:
        guest.put_nested(frame << 12, 1, (target + SHIFT) << 12 | (FULL ^ sum(set(flags))))
    for level, flags in directories:
        if level <= levels:
            guest.put_nested(0, level, guest.get_nested(0, level) ^ sum(set(flags)))
    box.load(SMAP if smap else 0, WP if wp else 0)
    ram = Ram(guest.memory.size)
    regions = ((NROOT, 0x5000), (SHIFT << 12, 0x20000))
    for start, length in regions:
        words = memoryview(guest.memory.read(start, length)).cast("I")
        for i, value in enumerate(words):
            if value:
                ram.store(start + 4 * i, 4, value)
    model = Machine(
        ram,
        mode.removesuffix("pse"),
        0x10000,
        wp=wp,
        pse=mode == "32pse",
        smap=smap,
        nxe=True,
        nested_root=NROOT,
        nested_levels=levels,
    )
    for indices, offset, (write, fetch), user in accesses:
        gva = offset
        for level, index in enumerate(indices[: LEVELS.get(mode, 2)]):
            gva += index << (12 + box.index_bits * level)
        out = Walk()
        status = page_walk(guest.cpu, gva, 2 * write + 4 * user + 16 * fetch, out)
        got = (("ok", out.hpa), ("pf", out.error_code), ("npf", out.fault_gpa, out.fault_code))[status]
        assert got == predict(model, gva, Access(bool(write), user, bool(fetch)))
        image = bytearray(guest.memory.size)
        for place, value in ram.words.items():
            image[place : place + 4] = value.to_bytes(4, "little")
        for start, length in regions:
            assert guest.memory.read(start, length) == image[start : start + length]
