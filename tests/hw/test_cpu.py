# SPDX-License-Identifier: GPL-2.0-only
"""The CPU: accesses through the TLB, and what each instruction checks and flushes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from hw.machines import (
    CR4,
    FETCH,
    FULL,
    LA57,
    LMA,
    LME,
    NX,
    PAE,
    PCIDE,
    PE,
    PG,
    PGE,
    PKE,
    PS,
    PSE,
    SMAP,
    SMEP,
    USER,
    WP,
    WRITE,
    A,
    Box,
    D,
    G,
    P,
    W,
)
from kvmmu.hw.bits import (
    HW_HIT,
    HW_PAGE_FAULT,
    INSN_DONE,
    INSN_GP,
    INVPCID_ADDRESS,
    INVPCID_ALL,
    INVPCID_CONTEXT,
    INVPCID_NON_GLOBAL,
)
from kvmmu.hw.cpumodel import CpuModel
from oracle.access_oracle import Access, Machine, Ram, predict

GVA = 0x40_7123
GLOBAL_GVA = 0x40_8123
KEEP = CpuModel(keep_all=True)


def cached(cr4: int = 0, mode: str = "4", params: CpuModel = KEEP) -> Box:
    """A machine with a local page and a global one in the TLB, both gone from the tables."""
    box = Box(mode, params)
    box.load(cr4 | PGE)
    fill(box)
    return box


def fill(box: Box) -> None:
    local = box.map(GVA, 0x5000 | FULL | A | D)
    shared = box.map(GLOBAL_GVA, 0x6000 | FULL | A | D | G)
    assert box.cpu.access(GVA, 0) == box.cpu.access(GLOBAL_GVA, 0) == HW_HIT
    box.put(local, 0)
    box.put(shared, 0)


def left(box: Box) -> tuple[bool, bool]:
    """Whether the local and the global page are still cached."""
    return box.cpu.access(GVA, 0) == HW_HIT, box.cpu.access(GLOBAL_GVA, 0) == HW_HIT


def test_a_second_access_does_not_walk() -> None:
    box = Box("4")
    place = box.map(GVA, 0x5000 | FULL)
    assert (box.cpu.access(GVA, USER), box.cpu.hpa) == (HW_HIT, 0x5123)
    box.put(place, 0)
    assert (box.cpu.access(GVA + 0x20, USER), box.cpu.hpa) == (HW_HIT, 0x5143)
    assert (box.cpu.tlb.hits, box.cpu.tlb.misses) == (1, 1)


def test_a_fault_is_not_cached() -> None:
    box = Box("4")
    assert (box.cpu.access(GVA, USER | WRITE), box.cpu.error_code) == (HW_PAGE_FAULT, 6)
    box.map(GVA, 0x5000 | FULL)
    assert box.cpu.access(GVA, USER | WRITE) == HW_HIT


@pytest.mark.parametrize(
    ("mode", "level", "base"),
    [
        ("4", 1, 0x5000),
        ("4", 2, 0x60_0000),
        ("4", 3, 0x4000_0000),
        ("32pse", 2, 0xC0_0000),
        ("pae", 2, 0x60_0000),
    ],
)
def test_cached_large_pages_translate_their_whole_range(mode: str, level: int, base: int) -> None:
    box = Box(mode)
    gva = 0x8000_0000
    place = box.map(gva, base | FULL | (PS if level > 1 else 0), level)
    size = 1 << (12 + box.index_bits * (level - 1))
    half = size // 2
    for offset in (0, half):
        assert box.cpu.access(gva + offset, WRITE) == HW_HIT
    box.put(place, 0)
    for offset in (0, half - 1, half, size - 1):
        assert (box.cpu.access(gva + offset, WRITE), box.cpu.hpa) == (HW_HIT, base + offset)
    assert box.cpu.access(gva + size, 0) == HW_PAGE_FAULT
    box.cpu.invlpg(gva + half + 5)
    assert box.cpu.access(gva, 0) == box.cpu.access(gva + half, 0) == HW_PAGE_FAULT


def test_the_first_write_through_a_clean_entry_sets_dirty() -> None:
    box = Box("4")
    place = box.map(GVA, 0x5000 | FULL)
    box.cpu.access(GVA, 0)
    assert not box.get(place) & D
    assert box.cpu.access(GVA, WRITE) == HW_HIT
    assert box.get(place) & D
    box.put(place, 0x5000 | FULL)
    assert box.cpu.access(GVA, WRITE) == HW_HIT
    assert not box.get(place) & D


def test_a_write_through_a_clean_entry_sees_that_the_page_is_gone() -> None:
    box = Box("4", KEEP)
    place = box.map(GVA, 0x5000 | FULL)
    box.cpu.access(GVA, 0)
    box.put(place, 0)
    assert box.cpu.access(GVA, 0) == HW_HIT
    assert (box.cpu.access(GVA, WRITE), box.cpu.error_code) == (HW_PAGE_FAULT, 2)
    assert box.cpu.access(GVA, 0) == HW_PAGE_FAULT


def test_a_permission_that_grew_is_found_without_a_flush() -> None:
    box = Box("4", KEEP)
    place = box.map(GVA, 0x5000 | P)
    box.cpu.access(GVA, 0)
    box.put(place, 0x5000 | FULL)
    assert box.cpu.access(GVA, WRITE) == HW_HIT


def test_pkru_wp_smep_and_smap_reach_cached_translations() -> None:
    box = Box("4", KEEP)
    box.load(PKE)
    box.map(GVA, (0x5000 | FULL | A | D) & ~W | 3 << 59)
    assert box.cpu.access(GVA, USER) == HW_HIT
    box.cpu.write_pkru(1 << 6)
    assert (box.cpu.access(GVA, USER), box.cpu.error_code) == (HW_PAGE_FAULT, 0x25)
    box.cpu.write_pkru(0)
    assert (box.cpu.access(GVA, WRITE), box.cpu.error_code) == (HW_PAGE_FAULT, 3)
    assert box.cpu.write_cr0(PE | PG) == INSN_DONE
    assert box.cpu.access(GVA, WRITE) == HW_HIT
    assert box.cpu.write_cr4(box.cpu.cr4 | SMAP) == INSN_DONE
    assert (box.cpu.access(GVA, 0), box.cpu.access(GVA, 256)) == (HW_PAGE_FAULT, HW_HIT)
    assert box.cpu.write_cr4(box.cpu.cr4 | SMEP) == INSN_DONE
    assert box.cpu.access(GVA, FETCH) == HW_PAGE_FAULT
    assert box.cpu.access(GVA, FETCH | USER) == HW_HIT


# name, CR4 bits before, the change, whether local and global pages survive it
EFFECTS: list[tuple[str, int, Callable[[Any], int], tuple[bool, bool]]] = [
    ("cr3", 0, lambda cpu: cpu.write_cr3(cpu.cr3), (False, True)),
    ("cr3, other root", 0, lambda cpu: cpu.write_cr3(0x8000), (False, True)),
    ("cr3, PCID kept", PCIDE, lambda cpu: cpu.write_cr3(cpu.cr3 | 1 << 63), (True, True)),
    ("cr3, PCID", PCIDE, lambda cpu: cpu.write_cr3(cpu.cr3), (False, True)),
    ("cr4.PGE", 0, lambda cpu: cpu.write_cr4(cpu.cr4 ^ PGE), (False, False)),
    ("cr4.PCIDE off", PCIDE, lambda cpu: cpu.write_cr4(cpu.cr4 ^ PCIDE), (False, False)),
    ("cr4.PCIDE on", 0, lambda cpu: cpu.write_cr4(cpu.cr4 ^ PCIDE), (True, True)),
    ("cr4.PSE", 0, lambda cpu: cpu.write_cr4(cpu.cr4 ^ PSE), (False, False)),
    ("cr4.SMEP on", 0, lambda cpu: cpu.write_cr4(cpu.cr4 ^ SMEP), (False, False)),
    ("cr4.SMEP off", SMEP, lambda cpu: cpu.write_cr4(cpu.cr4 ^ SMEP), (True, True)),
    ("cr4.PKE", 0, lambda cpu: cpu.write_cr4(cpu.cr4 ^ PKE), (True, True)),
    ("cr4 unchanged", 0, lambda cpu: cpu.write_cr4(cpu.cr4), (True, True)),
    ("cr0.WP", 0, lambda cpu: cpu.write_cr0(cpu.cr0 ^ WP), (True, True)),
    ("efer.NX", 0, lambda cpu: cpu.write_efer(cpu.efer ^ NX), (True, True)),
    ("invlpg local", 0, lambda cpu: cpu.invlpg(GVA), (False, True)),
    ("invlpg global", 0, lambda cpu: cpu.invlpg(GLOBAL_GVA), (True, False)),
    ("invpcid address", PCIDE, lambda cpu: cpu.invpcid(INVPCID_ADDRESS, 0, GVA), (False, True)),
    ("invpcid address, global page", PCIDE, lambda cpu: cpu.invpcid(INVPCID_ADDRESS, 0, GLOBAL_GVA), (True, True)),
    ("invpcid context", PCIDE, lambda cpu: cpu.invpcid(INVPCID_CONTEXT, 0, 0), (False, True)),
    ("invpcid other context", PCIDE, lambda cpu: cpu.invpcid(INVPCID_CONTEXT, 9, 0), (True, True)),
    ("invpcid all", 0, lambda cpu: cpu.invpcid(INVPCID_ALL, 0, 0), (False, False)),
    ("invpcid non-global", 0, lambda cpu: cpu.invpcid(INVPCID_NON_GLOBAL, 0, 0), (False, True)),
    ("flush_asid", 0, lambda cpu: cpu.flush_asid(), (False, False)),
    ("flush_all", 0, lambda cpu: cpu.flush_all(), (False, False)),
    ("flush_gva", 0, lambda cpu: cpu.flush_gva(GVA), (False, True)),
    ("load_guest", 0, lambda cpu: cpu.load_guest(cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer), (True, True)),
    ("set_nested", 0, lambda cpu: cpu.set_nested(0x8000, 4), (True, True)),
]


@pytest.mark.parametrize(("cr4", "change", "survivors"), [case[1:] for case in EFFECTS], ids=[c[0] for c in EFFECTS])
def test_a_change_flushes_what_the_manual_says(
    cr4: int, change: Callable[[Any], int], survivors: tuple[bool, bool]
) -> None:
    box = cached(cr4)
    assert change(box.cpu) == INSN_DONE
    assert tuple(bool(box.cpu.tlb.find(gva)) for gva in (GVA, GLOBAL_GVA)) == survivors


def test_pcids_keep_their_own_translations() -> None:
    box = Box("4", KEEP)
    box.load(PCIDE)
    place = box.map(GVA, 0x5000 | FULL | A | D)
    box.cpu.access(GVA, 0)
    assert box.cpu.write_cr3(box.root | 5) == INSN_DONE
    box.put(place, 0x9000 | FULL | A | D)
    assert (box.cpu.access(GVA, 0), box.cpu.hpa) == (HW_HIT, 0x9123)
    assert box.cpu.write_cr3(box.root | 1 << 63) == INSN_DONE
    assert (box.cpu.access(GVA, 0), box.cpu.hpa) == (HW_HIT, 0x5123)
    assert box.cpu.cr3 == box.root
    assert box.cpu.write_cr3(box.root | 5) == INSN_DONE
    box.put(place, 0)
    assert box.cpu.access(GVA, 0) == HW_PAGE_FAULT
    assert box.cpu.write_cr3(box.root | 1 << 63) == INSN_DONE
    assert box.cpu.access(GVA, 0) == HW_HIT


def test_address_spaces_of_a_hypervisor_are_apart() -> None:
    box = cached()
    box.cpu.set_space(3)
    assert left(box) == (False, False)
    box.cpu.flush_asid()
    box.cpu.set_space(0)
    assert left(box) == (True, True)


def test_paging_on_and_off_flush_and_switch_long_mode() -> None:
    box = Box("off", KEEP)
    cpu = box.cpu
    cpu.load_guest(PE, 0, PAE | PGE, LME)
    assert (cpu.access(GVA, 0), cpu.hpa) == (HW_HIT, GVA)
    cpu.write_cr3(box.root)
    assert cpu.write_cr0(PE | PG) == INSN_DONE
    assert cpu.efer == LME | LMA
    assert cpu.access(GVA, 0) == HW_PAGE_FAULT
    box.mode = "4"
    fill(box)
    assert cpu.write_cr0(PE) == INSN_DONE
    assert cpu.efer == LME
    assert (cpu.access(GVA, 0), cpu.hpa) == (HW_HIT, GVA)
    assert cpu.write_cr0(PE | PG) == INSN_DONE
    assert left(box) == (False, False)


REFUSED: list[tuple[str, str, int, Callable[[Any], int]]] = [
    ("PG without PE", "off", 0, lambda cpu: cpu.write_cr0(PG)),
    ("NW without CD", "off", 0, lambda cpu: cpu.write_cr0(PE | 1 << 29)),
    ("CR0 of 33 bits", "off", 0, lambda cpu: cpu.write_cr0(PE | 1 << 32)),
    ("PG off with PCIDE", "4", PCIDE, lambda cpu: cpu.write_cr0(PE)),
    ("CR3 above MAXPHYADDR", "4", 0, lambda cpu: cpu.write_cr3(1 << 46)),
    ("CR3 bit 63 without PCIDE", "4", 0, lambda cpu: cpu.write_cr3(1 << 63)),
    ("PAE off in long mode", "4", 0, lambda cpu: cpu.write_cr4(0)),
    ("LA57 in long mode", "4", 0, lambda cpu: cpu.write_cr4(PAE | LA57)),
    ("PCIDE outside long mode", "pae", 0, lambda cpu: cpu.write_cr4(PAE | PCIDE)),
    ("PCIDE with low bits in CR3", "4", 0, lambda cpu: cpu.write_cr3(0x10008) or cpu.write_cr4(PAE | PCIDE)),
    ("LME under PG", "4", 0, lambda cpu: cpu.write_efer(NX)),
    ("INVPCID type 4", "4", 0, lambda cpu: cpu.invpcid(4, 0, 0)),
    ("INVPCID with PCID 4096", "4", PCIDE, lambda cpu: cpu.invpcid(1, 4096, 0)),
    ("INVPCID of a PCID without PCIDE", "4", 0, lambda cpu: cpu.invpcid(0, 1, 0)),
    ("INVPCID of a non-canonical address", "4", 0, lambda cpu: cpu.invpcid(0, 0, 1 << 47)),
]


@pytest.mark.parametrize(("mode", "cr4", "change"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_the_manual_forbids_is_a_general_protection(mode: str, cr4: int, change: Callable[[Any], int]) -> None:
    box = Box(mode)
    box.load(cr4)
    before = (box.cpu.cr0, box.cpu.cr4, box.cpu.efer)
    assert change(box.cpu) == INSN_GP
    assert (box.cpu.cr0, box.cpu.cr4, box.cpu.efer) == before


def test_long_mode_needs_pae_to_turn_paging_on() -> None:
    box = Box("off")
    box.cpu.load_guest(PE, 0, 0, LME)
    assert box.cpu.write_cr0(PE | PG) == INSN_GP
    assert (box.cpu.cr0, box.cpu.efer) == (PE, LME)


@pytest.mark.parametrize("name", ["cr3", "cr4", "cr0", "paging on"])
def test_bad_pdptes_refuse_the_instruction_that_loads_them(name: str) -> None:
    box = Box("pae")
    box.map(GVA, 0x5000 | FULL)
    good = [box.cpu.pdptr(i) for i in range(4)]
    box.put(box.root + 8, P | W)
    cpu = box.cpu
    state = (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer)
    if name == "paging on":
        cpu.load_guest(PE, box.root, PAE, 0)
        state = (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer)
    answer = {
        "cr3": lambda: cpu.write_cr3(box.root),
        "cr4": lambda: cpu.write_cr4(PAE | PGE),
        "cr0": lambda: cpu.write_cr0(cpu.cr0 | 1 << 30),
        "paging on": lambda: cpu.write_cr0(PE | PG),
    }[name]()
    assert answer == INSN_GP
    assert (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer) == state
    assert [cpu.pdptr(i) for i in range(4)] == good
    box.put(box.root + 8, 0)
    assert cpu.write_cr3(box.root) == INSN_DONE


def test_mov_to_cr3_reloads_pdptes_and_other_writes_may_not() -> None:
    box = Box("pae")
    box.map(GVA, 0x5000 | FULL)
    box.put(box.root, 0x7000 | P)
    assert box.cpu.write_cr0(box.cpu.cr0 ^ WP) == INSN_DONE
    assert box.cpu.pdptr(0) != 0x7000 | P
    assert box.cpu.write_cr4(box.cpu.cr4 | PGE) == INSN_DONE
    assert box.cpu.pdptr(0) == 0x7000 | P


@pytest.mark.parametrize(
    ("cr4", "gva", "is_canonical"),
    [
        (0, (1 << 47) - 1, True),
        (0, 1 << 47, False),
        (0, 2**64 - (1 << 47), True),
        (0, 2**64 - (1 << 47) - 1, False),
        (LA57, 1 << 47, True),
        (LA57, (1 << 56) - 1, True),
        (LA57, 1 << 56, False),
        (LA57, 2**64 - (1 << 56), True),
    ],
)
def test_canonical_addresses_depend_on_la57(cr4: int, gva: int, is_canonical: bool) -> None:
    box = Box("5" if cr4 else "4")
    assert box.cpu.is_canonical(gva) is is_canonical


class Coherence(RuleBasedStateMachine):
    """A guest edits its tables, flushes or forgets to, and touches pages.

    Each access must give what the oracle says of the tables as they are now, or as they were at some time since the
    page's last flush; after a full flush, as they are now.
    """

    @initialize(
        mode=st.sampled_from(["32", "pae", "4"]),
        params=st.sampled_from([KEEP, CpuModel(tlb_entries_4k=4, tlb_entries_2m=4, tlb_entries_1g=4)]),
    )
    def start(self, mode: str, params: CpuModel) -> None:
        self.box = Box(mode, params, frames=64)
        self.box.load(PGE)
        self.pages = [page << 12 for page in (0, 1, 2, 0x3FF)]
        self.places = {gva: self.box.map(gva, 0) for gva in self.pages}
        self.since = {gva: {0} for gva in self.pages}

    def seen(self, gva: int) -> None:
        self.since[gva].add(self.box.get(self.places[gva]) & ~(A | D))

    @rule(page=st.integers(0, 3), frame=st.integers(1, 9), flags=st.sampled_from([0, P, P | 4, FULL, FULL, FULL | G]))
    def edit(self, page: int, frame: int, flags: int) -> None:
        gva = self.pages[page]
        self.box.put(self.places[gva], frame << 12 | flags if flags else 0)
        self.seen(gva)

    @rule(page=st.integers(0, 3), write=st.booleans(), user=st.booleans())
    def touch(self, page: int, write: bool, user: bool) -> None:
        gva = self.pages[page]
        status = self.box.cpu.access(gva + 5, 2 * write + 4 * user)
        got = ("ok", self.box.cpu.hpa) if status == HW_HIT else ("pf", self.box.cpu.error_code)
        allowed = {self.expected(gva, entry, write, user) for entry in self.since[gva]}
        assert got in allowed
        if status != HW_HIT:
            assert got == self.expected(gva, self.box.get(self.places[gva]), write, user), "a fault is never stale"

    def expected(self, gva: int, entry: int, write: bool, user: bool) -> Any:
        ram = Ram(self.box.memory.size)
        for place in range(0x10000, self.box.free, 4):
            ram.store(place, 4, self.box.memory.read_once32(place))
        ram.store(self.places[gva], self.box.size, entry)
        pdptes = tuple(self.box.cpu.pdptr(i) for i in range(4))
        machine = Machine(ram, self.box.mode, self.box.root, pdptes, bool(self.box.cpu.cr0 & WP), nxe=True)
        return predict(machine, gva + 5, Access(write=write, user=user))

    def forget(self, pages: list[int]) -> None:
        for gva in pages:
            self.since[gva] = set()
            self.seen(gva)

    @rule(page=st.integers(0, 3))
    def invlpg(self, page: int) -> None:
        self.box.cpu.invlpg(self.pages[page] + 9)
        self.forget([self.pages[page]])

    @rule()
    def reload_cr3(self) -> None:
        self.box.cpu.write_cr3(self.box.cpu.cr3)
        for gva in self.pages:
            self.since[gva] = {entry for entry in self.since[gva] if entry & G}
            self.seen(gva)

    @rule()
    def toggle_pge_twice(self) -> None:
        for _ in range(2):
            assert self.box.cpu.write_cr4(self.box.cpu.cr4 ^ PGE) == INSN_DONE
        self.forget(self.pages)

    @rule()
    def toggle_wp(self) -> None:
        assert self.box.cpu.write_cr0(self.box.cpu.cr0 ^ WP) == INSN_DONE


TestCoherence = Coherence.TestCase
TestCoherence.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_every_mode_of_the_helper_is_the_mode_that_it_names() -> None:
    for mode in CR4:
        assert Box(mode).cpu.levels == {"off": 0, "32": 2, "32pse": 2, "pae": 3, "4": 4, "5": 5}[mode]
