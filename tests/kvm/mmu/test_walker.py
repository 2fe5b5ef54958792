# SPDX-License-Identifier: GPL-2.0-only
"""The software walk of the guest's tables, against the oracle of the architecture and against KVM's order of events."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm.mmu.machines import publish
from kvmmu.errors import KvmBug
from kvmmu.host.frames import FrameAllocator
from kvmmu.host.mm import Mm
from kvmmu.hw.cpu import Cpu
from kvmmu.hw.memory import PhysicalMemory
from kvmmu.kvm.bits import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_MEMSLOT_INVALID, KVM_USER_MEM_SLOTS
from kvmmu.kvm.cpuid import CpuFeatures
from kvmmu.kvm.guestmem import gpa_to_hpa
from kvmmu.kvm.memslots import Memslot, Memslots
from kvmmu.kvm.mmu import setup
from kvmmu.kvm.mmu import walker as w
from kvmmu.kvm.mmu.bits import PDPTRS_BAD, PDPTRS_CHANGED, PDPTRS_SAME
from kvmmu.kvm.run import create_vm
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.params import Params
from oracle.access_oracle import Access, Machine, Ram, predict

PG, WP = 1 << 31, 1 << 16
PSE, PAE, LA57, SMEP, SMAP, PKE = 1 << 4, 1 << 5, 1 << 12, 1 << 20, 1 << 21, 1 << 22
LMA, NX = 1 << 10, 1 << 11
AC = 1 << 18
IMPLICIT = 1 << 48
INVALID = 2**64 - 1
P, W, U, A, D, PS, XD = 1, 2, 4, 0x20, 0x40, 0x80, 1 << 63
WRITE, USER, FETCH = 2, 4, 16

BOOLS = (False, True)
NR_PAGES = 16

#: mode -> CR4 and EFER bits, bytes per entry, bits per index, levels that memory is read for
MODES = {
    "32": (0, 0, 4, 10, 2),
    "pae": (PAE, 0, 8, 9, 2),
    "4": (PAE, LMA, 8, 9, 4),
    "5": (PAE | LA57, LMA, 8, 9, 5),
}


class World:
    """A VM with one slot of ``NR_PAGES`` pages at gpa 0, one vCPU, and its events."""

    def __init__(self, *, npt: bool = False, flags: int = 0, slot_id: int = 0) -> None:
        self.memory = PhysicalMemory(256)
        self.mm = Mm(FrameAllocator(self.memory))
        self.vm = create_vm(self.mm, Params(npt=npt))
        self.hva = self.mm.mmap(NR_PAGES * 4096)
        self.fill_slots(flags, slot_id)
        self.vcpu = Vcpu(self.vm, 0, Cpu(0, self.memory), w.GuestWalk())
        self.gw = w.GuestWalk()
        self.events: list[tuple[object, ...]] = []

    def fill_slots(self, flags: int, slot_id: int = 0) -> Memslot:
        """Publish the slot, with these flags."""
        slot = Memslot(slot_id, flags, 0, NR_PAGES, self.hva)  # type: ignore[arg-type]
        slot.alloc_dirty_bitmap()
        publish(self.vm, Memslots(0, self.vm.memslots[0].generation + 2, [slot]))
        return slot

    def place(self, gpa: int) -> int:
        """Where the guest's byte is in host memory; the page is faulted in for writing."""
        hpa = gpa_to_hpa(self.vm.memslots[0], self.mm, gpa, True)  # type: ignore[arg-type]
        assert hpa != INVALID
        return hpa

    def store(self, gpa: int, value: int, width: int = 8) -> None:
        """Write a word of guest memory."""
        if width == 4:
            self.memory.write_once32(self.place(gpa), value)  # type: ignore[arg-type]
        else:
            self.memory.write_once(self.place(gpa), value)  # type: ignore[arg-type]

    def load(self, gpa: int, width: int = 8) -> int:
        """Read a word of guest memory."""
        place = self.place(gpa)
        return self.memory.read_once32(place) if width == 4 else self.memory.read_once(place)  # type: ignore[arg-type]

    def set_mode(self, mode: str, cr0: int = 0, cr4: int = 0, efer: int = 0, cr3: int = 0x1000) -> None:
        """Put the vCPU in a paging mode, with further register bits."""
        mode_cr4, mode_efer, *_ = MODES[mode]
        vcpu = self.vcpu
        vcpu.cr0, vcpu.cr3 = PG | cr0, cr3
        vcpu.cr4, vcpu.efer = mode_cr4 | cr4, mode_efer | efer
        setup.init_mmu(vcpu)

    def walk(self, addr: int, access: int = 0) -> bool:
        """Walk, with the events in ``events``."""
        self.events.clear()
        self.vm.trace.attach(self.events.append)
        allowed = w.walk_addr(self.vcpu, self.vcpu.root_mmu, self.gw, addr, access)  # type: ignore[arg-type]
        self.vm.trace.detach(self.events.append)
        assert isinstance(allowed, bool)
        return allowed


@dataclass
class Path:
    """The entries on the way to one address: where each lies, and what it is."""

    mode: str
    addr: int
    places: list[int]
    cr3: int


#: A different index at each level, none of them 0.
ADDRESSES = {"32": 0x0345_6789, "pae": 0x4034_5678, "4": 0x0000_1234_5678_9ABC, "5": 0x0012_3456_789A_BCDE}


def path_of(mode: str, addr: int | None = None) -> Path:
    """Tables at gpa 0x1000, 0x2000 ..., top level first; the PDPT of PAE mode, at 0x8020, is not among them."""
    _, _, size, index_bits, levels = MODES[mode]
    addr = ADDRESSES[mode] if addr is None else addr
    places = []
    for i, level in enumerate(range(levels, 0, -1)):
        index = addr >> 12 + index_bits * (level - 1) & (1 << index_bits) - 1
        places.append(0x1000 * (i + 1) + index * size)
    return Path(mode, addr, places, 0x8020 if mode == "pae" else 0x1000)


def build(world: World, path: Path, entries: list[int]) -> None:
    """Store the entries; a PAE guest also gets its PDPTE, loaded."""
    size = MODES[path.mode][2]
    for place, entry in zip(path.places, entries, strict=True):
        world.store(place, entry, size)
    if path.mode == "pae":
        world.store(path.cr3 + (path.addr >> 30 & 3) * 8, 0x1000 | P)
        assert w.load_pdptrs(world.vcpu, world.vcpu.root_mmu, path.cr3) != PDPTRS_BAD


def tables(path: Path, leaf: int, flags: int = P | W | U) -> list[int]:
    """Entries with ``flags`` that lead to ``leaf``."""
    nr = len(path.places)
    return [0x1000 * (i + 2) | flags for i in range(nr - 1)] + [leaf]


# ------------------------------------------------------------------------------------------- against the oracle


class _NoMemoryError(Exception):
    """A table lies where the guest has no memory."""


class SlotRam(Ram):
    """Memory with an edge: a processor reads all ones behind it, KVM has no slot there and reads nothing."""

    def load(self, address: int, width: int) -> int:
        """The word, if there is one."""
        if address >= self.size:
            raise _NoMemoryError
        return super().load(address, width)


@dataclass(frozen=True)
class Case:
    """One walk: registers, entries and access."""

    mode: str
    cr0: int
    cr4: int
    efer: int
    ac: bool
    pkru: int
    entries: tuple[int, ...]
    access: int


def check(world: World, case: Case, width: int) -> None:
    """Make the walk and let the oracle make it: same outcome, same memory afterwards."""
    path = path_of(case.mode)
    size = MODES[case.mode][2]
    world.vcpu.set_cpuid(CpuFeatures(width, amd=False))
    setup.forget_roles(world.vcpu)
    world.set_mode(case.mode, case.cr0, case.cr4, case.efer, path.cr3)
    build(world, path, list(case.entries))
    world.vcpu.rflags = 2 | case.ac * AC
    world.vcpu.pkru = case.pkru

    ram = SlotRam(NR_PAGES * 4096)
    for place, entry in zip(path.places, case.entries, strict=True):
        ram.store(place, size, entry)
    pdptes = tuple(world.load(0x8020 + i * 8) for i in range(4)) if case.mode == "pae" else (0, 0, 0, 0)
    machine = Machine(
        ram, case.mode, path.cr3, pdptes,  # type: ignore[arg-type]
        wp=bool(case.cr0 & WP), pse=bool(case.cr4 & PSE), smep=bool(case.cr4 & SMEP), smap=bool(case.cr4 & SMAP),
        pke=bool(case.cr4 & PKE), nxe=bool(case.efer & NX), pkru=case.pkru, width=width,
    )  # fmt: skip
    access = Access(
        write=bool(case.access & WRITE), user=bool(case.access & USER), fetch=bool(case.access & FETCH),
        ac=case.ac, implicit=bool(case.access & IMPLICIT),
    )  # fmt: skip
    try:
        outcome = predict(machine, path.addr, access)
    except _NoMemoryError:
        can_tell = case.cr4 & SMEP or case.efer & NX
        outcome = ("pf", case.access & (WRITE | USER | (FETCH if can_tell else 0)))

    allowed = w.walk_addr(world.vcpu, world.vcpu.root_mmu, world.gw, path.addr, case.access)  # type: ignore[arg-type]
    if outcome[0] == "ok":
        assert allowed, (case, outcome, world.gw)
        assert world.gw.gpa == outcome[1], case
        assert world.gw.gfn == outcome[1] >> 12, case
    else:
        assert not allowed, (case, outcome, world.gw)
        assert world.gw.error_code == outcome[1], (case, outcome)
        assert world.gw.fault_address == path.addr
    for place in path.places:
        assert world.load(place, size) == ram.load(place, size), (case, hex(place))


#: Accesses that a processor makes.
ACCESSES = [0, WRITE, FETCH, USER, USER | WRITE, USER | FETCH, IMPLICIT, IMPLICIT | WRITE]


def registers_of(mode: str) -> list[tuple[int, int, int, bool]]:
    """CR0, CR4, EFER bits and AC; EFER.NX stays off in 2-level mode, where KVM departs from the manual."""
    nx = (0,) if mode == "32" else (0, NX)
    return [
        (wp * WP, smep * SMEP | smap * SMAP | PSE, efer, ac)
        for wp, smep, smap, efer, ac in itertools.product((0, 1), (0, 1), (0, 1), nx, BOOLS)
    ]


@pytest.mark.parametrize("mode", list(MODES))
def test_rights_and_ad_bits_agree_with_the_architecture_for_every_leaf(mode: str) -> None:
    world = World()
    path = path_of(mode)
    xd = (0,) if mode == "32" else (0, XD)
    leaves = [sum(bits) for bits in itertools.product((0, P), (0, W), (0, U), (0, A), (0, D), xd)]
    nr = 0
    for cr0, cr4, efer, ac in registers_of(mode):
        for leaf, access in itertools.product(leaves, ACCESSES):
            # A directory that is not accessed yet beside one that is.
            above = P | W | U | (A if leaf & W else 0)
            check(world, Case(mode, cr0, cr4, efer, ac, 0, tuple(tables(path, 0x5000 | leaf, above)), access), 36)
            nr += 1
    assert nr == (16 * 32 if mode == "32" else 32 * 64) * 8


@pytest.mark.parametrize("mode", list(MODES))
def test_rights_and_ad_bits_agree_with_the_architecture_for_every_directory(mode: str) -> None:
    world = World()
    path = path_of(mode)
    xd = (0,) if mode == "32" else (0, XD)
    nr = len(path.places)
    nr_cases = 0
    for cr0, cr4, efer, ac in registers_of(mode)[::3]:
        for i, bits, access in itertools.product(
            range(nr - 1), itertools.product((0, P), (0, W), (0, U), (0, A), xd), ACCESSES
        ):
            entries = tables(path, 0x5000 | P | W | U | A | D, P | W | U | A)
            entries[i] = entries[i] & ~0xFFF | sum(bits)
            check(world, Case(mode, cr0, cr4, efer, ac, 0, tuple(entries), access), 36)
            nr_cases += 1
    # Every third of 16 or 32 register states.
    assert nr_cases == (6 * 16 if mode == "32" else 11 * 32) * (nr - 1) * 8


@pytest.mark.parametrize("mode", ["4", "5"])
def test_protection_keys_agree_with_the_architecture(mode: str) -> None:
    world = World()
    path = path_of(mode)
    nr = 0
    for wp, pke, key, right, leaf, access in itertools.product(
        (0, WP), (0, PKE), (0, 1, 9, 15), range(4), (W | U, U, W, 0), ACCESSES
    ):
        entries = tables(path, 0x5000 | P | A | D | leaf | key << 59, P | W | U | A)
        pkru = right << 2 * key
        check(world, Case(mode, wp, pke, NX, False, pkru, tuple(entries), access), 46)
        nr += 1
    assert nr == 2 * 2 * 4 * 4 * 4 * 8


def entry_strategy(mode: str, next_table: int) -> st.SearchStrategy[int]:
    """Entries that are mostly sensible: the table bits, flags at will, sometimes any bit at all."""
    size = MODES[mode][2]
    flags = st.integers(0, 0xFFF).map(lambda bits: bits | P)
    high = st.sampled_from([0, 0, 0, XD, 1 << 45, 1 << 51, 1 << 52, 15 << 59, 1 << 36]) if size == 8 else st.just(0)
    middle = st.sampled_from([0, 0, 0, 1 << 13, 1 << 16, 1 << 20, 1 << 21, 1 << 29])
    sensible = st.builds(lambda f, h, m: next_table | f | h | m, flags, high, middle)
    return st.one_of(sensible, sensible, st.integers(0, (1 << 8 * size) - 1))


@st.composite
def cases(draw: Callable[..., object], mode: str) -> Case:
    """A walk through entries that are anything."""
    nr = len(path_of(mode).places)
    entries = tuple(draw(entry_strategy(mode, 0x1000 * (i + 2))) for i in range(nr))
    cr4 = sum(bit for bit in (PSE, SMEP, SMAP, PKE) if draw(st.booleans()))
    efer = NX if mode != "32" and draw(st.booleans()) else 0
    access = draw(st.sampled_from(ACCESSES))
    return Case(
        mode, draw(st.sampled_from([0, WP])), cr4, efer, draw(st.booleans()),  # type: ignore[arg-type]
        draw(st.integers(0, 2**32 - 1)), entries, access,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("mode", list(MODES))
def test_any_entries_agree_with_the_architecture(mode: str) -> None:
    world = World()

    @given(cases(mode), st.sampled_from([36] if mode == "32" else [36, 40, 46, 52]))
    def run(case: Case, width: int) -> None:
        check(world, case, width)

    run()


# ------------------------------------------------------------------------------------------- translation


@pytest.mark.parametrize(
    ("mode", "large_level", "leaf", "gpa"),
    [
        ("32", 2, 0x8040_0000, 0x8040_0000 | 0x0345_6789 & 0x3F_FFFF),
        ("32", 2, 0x8041_E000, 0xF_8040_0000 | 0x0345_6789 & 0x3F_FFFF),  # PSE-36: bits 16:13 are 35:32
        ("pae", 2, 0x1_2340_0000, 0x1_2340_0000 | 0x4034_5678 & 0x1F_FFFF),
        ("4", 2, 0x2_4680_0000, 0x2_4680_0000 | 0x5678_9ABC & 0x1F_FFFF),
        ("4", 3, 0x7_4000_0000, 0x7_4000_0000 | 0x5678_9ABC & 0x3FFF_FFFF),
        ("5", 3, 0x7_4000_0000, 0x7_4000_0000 | 0x789A_BCDE & 0x3FFF_FFFF),
    ],
)
def test_large_pages_translate_with_their_own_offset(mode: str, large_level: int, leaf: int, gpa: int) -> None:
    world = World()
    path = path_of(mode)
    world.set_mode(mode, cr4=PSE, cr3=path.cr3)
    entries = tables(path, 0, P | W | U | A)
    at = len(entries) - large_level
    entries[at] = leaf | P | W | U | A | D | PS
    build(world, path, entries)
    assert world.walk(path.addr, WRITE | USER)
    assert (world.gw.level, world.gw.gpa, world.gw.gfn) == (large_level, gpa, gpa >> 12)
    assert world.gw.pte_access == 7


def test_pse_off_makes_bit_7_of_a_directory_entry_meaningless() -> None:
    world = World()
    path = path_of("32")
    world.set_mode("32", cr3=path.cr3)
    build(world, path, [0x2000 | P | W | U | A | PS, 0x5000 | P | W | U | A | D])
    assert world.walk(path.addr)
    assert (world.gw.level, world.gw.gpa) == (1, 0x5000 | path.addr & 0xFFF)


def test_the_walk_records_every_level() -> None:
    world = World()
    path = path_of("4")
    world.set_mode("4", efer=NX)
    entries = [0x2000 | P | W | U | A, 0x3000 | P | U | A, 0x4000 | P | U | A | XD, 0x5000 | P | W | U | A | D]
    build(world, path, entries)
    assert world.walk(path.addr)
    gw = world.gw
    assert (gw.level, gw.max_level) == (1, 4)
    assert [gw.gpte(level) for level in (4, 3, 2, 1)] == entries
    assert [gw.gpte_gpa(level) for level in (4, 3, 2, 1)] == path.places
    assert gw.pte_access == 4


def test_a_read_of_a_clean_page_hides_its_write_permission() -> None:
    world = World()
    path = path_of("4")
    world.set_mode("4")
    build(world, path, tables(path, 0x5000 | P | W | U | A, P | W | U | A))
    assert world.walk(path.addr)
    assert world.gw.pte_access == 5
    assert world.walk(path.addr, FETCH)
    assert world.gw.pte_access == 5
    assert world.walk(path.addr, WRITE)
    assert world.gw.pte_access == 7
    assert world.walk(path.addr)
    assert world.gw.pte_access == 7


@pytest.mark.parametrize("high", [0, 0xABCD << 32])
def test_a_two_level_guest_has_32_bits_of_cr3(high: int) -> None:
    world = World()
    path = path_of("32")
    world.set_mode("32", cr3=0x1000 | high)
    build(world, path, tables(path, 0x5000 | P))
    assert world.walk(path.addr)


def test_smm_walks_the_memory_of_its_own_address_space() -> None:
    world = World()
    path = path_of("4")
    build(world, path, tables(path, 0x5000 | P))
    world.set_mode("4")
    world.vcpu.smm = True
    setup.init_mmu(world.vcpu)
    assert not world.walk(path.addr)
    publish(world.vm, Memslots(1, 3, [Memslot(1 << 16, 0, 0, NR_PAGES, world.hva)]))  # type: ignore[arg-type]
    assert world.walk(path.addr)


# ------------------------------------------------------------------------------------------- events


def elements(path: Path, entries: list[int]) -> list[tuple[object, ...]]:
    """The paging_element events of one attempt."""
    nr = len(entries)
    return [("kvm_mmu_paging_element", entry, nr - i) for i, entry in enumerate(entries)]


def test_events_of_a_first_write_are_in_the_kernels_order() -> None:
    world = World()
    path = path_of("4")
    world.set_mode("4")
    entries = tables(path, 0x5000 | P | W | U, P | W | U)
    entries[1] |= A
    build(world, path, entries)
    assert world.walk(path.addr, WRITE | USER)
    assert world.events == [
        ("kvm_mmu_pagetable_walk", path.addr, 6),
        *elements(path, entries),
        ("kvm_mmu_set_accessed_bit", path.places[0]),
        ("kvm_mmu_set_accessed_bit", path.places[2]),
        ("kvm_mmu_set_accessed_bit", path.places[3]),
        ("kvm_mmu_set_dirty_bit", path.places[3]),
    ]
    assert world.load(path.places[3]) == 0x5000 | P | W | U | A | D
    assert world.gw.gpte(1) == 0x5000 | P | W | U | A | D
    assert world.walk(path.addr, WRITE | USER)
    assert [event[0] for event in world.events] == ["kvm_mmu_pagetable_walk"] + ["kvm_mmu_paging_element"] * 4


def test_events_of_a_pae_walk_begin_with_the_cached_pdpte() -> None:
    world = World()
    path = path_of("pae")
    world.set_mode("pae", cr3=path.cr3)
    entries = tables(path, 0x5000 | P | A, P | W | U | A)
    build(world, path, entries)
    assert world.walk(path.addr)
    assert world.events == [
        ("kvm_mmu_pagetable_walk", path.addr, 0),
        ("kvm_mmu_paging_element", 0x1000 | P, 3),
        *elements(path, entries),
    ]
    assert world.gw.max_level == 2


def test_an_absent_pdpte_ends_the_walk() -> None:
    world = World()
    path = path_of("pae")
    world.set_mode("pae", cr3=path.cr3)
    build(world, path, tables(path, 0x5000 | P))
    absent = path.addr ^ 1 << 31
    assert not world.walk(absent, USER)
    assert world.events == [
        ("kvm_mmu_pagetable_walk", absent, 4),
        ("kvm_mmu_paging_element", 0, 3),
        ("kvm_mmu_walker_error", 4),
    ]


def test_events_of_a_refused_walk_end_with_its_error() -> None:
    world = World()
    path = path_of("4")
    world.set_mode("4")
    entries = tables(path, 0x5000 | P | U, P | W | U)
    build(world, path, entries)
    assert not world.walk(path.addr, WRITE | USER)
    assert world.events == [
        ("kvm_mmu_pagetable_walk", path.addr, 6),
        *elements(path, entries),
        ("kvm_mmu_walker_error", 7),
    ]
    # Nothing is marked accessed by an access that is refused.
    assert [world.load(place) for place in path.places] == entries


def test_a_reserved_bit_ends_the_walk_where_it_is() -> None:
    world = World()
    path = path_of("4")
    world.vcpu.set_cpuid(CpuFeatures(46))
    world.set_mode("4")
    entries = tables(path, 0x5000 | P, P | W | U)
    entries[1] |= 1 << 46
    build(world, path, entries)
    assert not world.walk(path.addr, WRITE)
    assert world.gw.error_code == 0xB
    assert [event[0] for event in world.events] == [
        "kvm_mmu_pagetable_walk", "kvm_mmu_paging_element", "kvm_mmu_paging_element", "kvm_mmu_walker_error",
    ]  # fmt: skip


def test_the_walks_event_shows_the_low_half_of_the_access() -> None:
    world = World()
    world.set_mode("4")
    world.walk(0, IMPLICIT | WRITE)
    assert world.events[0] == ("kvm_mmu_pagetable_walk", 0, 2)


class Meddler:
    """Another CPU that changes a word of memory just before some access to it."""

    def __init__(self, kind: str, act: Callable[[], None]) -> None:
        self.kind = kind
        self.act = act
        self.nr_calls = 0

    def point(self, kind: str, where: object, key: object) -> None:
        """The gate's call."""
        if kind == self.kind:
            self.nr_calls += 1
            if self.nr_calls == 1:
                self.act()


@pytest.mark.parametrize("mode", ["32", "4"])
def test_a_lost_race_for_the_accessed_bit_restarts_the_whole_walk(mode: str) -> None:
    world = World()
    path = path_of(mode)
    size = MODES[mode][2]
    world.set_mode(mode)
    entries = tables(path, 0x5000 | P | W | U, P | W | U | A)
    build(world, path, entries)
    gate = world.memory.gate

    def retarget() -> None:
        gate.armed = False
        world.store(path.places[-1], 0x6000 | P | W | U, size)
        gate.armed = True

    gate.checker = Meddler("cmpxchg", retarget)
    gate.armed = True
    try:
        assert world.walk(path.addr)
    finally:
        gate.armed = False
    changed = [*entries[:-1], 0x6000 | P | W | U]
    bit = ("kvm_mmu_set_accessed_bit", path.places[-1])
    assert world.events == [
        ("kvm_mmu_pagetable_walk", path.addr, 0), *elements(path, entries), bit, *elements(path, changed), bit
    ]  # fmt: skip
    assert world.gw.gpa == 0x6000 | path.addr & 0xFFF
    assert world.load(path.places[-1], size) == 0x6000 | P | W | U | A


# ------------------------------------------------------------------------------------------- memory in the way


@pytest.mark.parametrize("access", [0, WRITE, USER, WRITE | USER])
@pytest.mark.parametrize("why", ["no slot", "invalid slot", "internal slot"])
def test_a_table_without_visible_slot_is_not_present(why: str, access: int) -> None:
    flags = KVM_MEMSLOT_INVALID if why == "invalid slot" else 0
    world = World(flags=flags, slot_id=KVM_USER_MEM_SLOTS if why == "internal slot" else 0)
    world.set_mode("4", cr3=NR_PAGES << 12 if why == "no slot" else 0x1000)
    assert not world.walk(0x1234, access)
    assert world.gw.error_code == access
    assert world.events == [("kvm_mmu_pagetable_walk", 0x1234, access), ("kvm_mmu_walker_error", access)]


def test_a_table_that_the_process_has_not_mapped_is_not_present() -> None:
    world = World()
    world.set_mode("4")
    world.mm.munmap(world.hva, NR_PAGES * 4096)  # type: ignore[arg-type]
    assert not world.walk(0x1234, USER)
    assert world.gw.error_code == USER


def test_tables_in_a_read_only_slot_are_used_as_they_are() -> None:
    world = World()
    path = path_of("4")
    world.set_mode("4")
    entries = tables(path, 0x5000 | P | W | U, P | W | U)
    build(world, path, entries)
    world.fill_slots(KVM_MEM_READONLY)
    assert world.walk(path.addr, WRITE)
    assert [event[0] for event in world.events[5:]] == ["kvm_mmu_set_accessed_bit"] * 4 + ["kvm_mmu_set_dirty_bit"]
    assert world.gw.gpte(1) == entries[-1]
    world.fill_slots(0)
    assert [world.load(place) for place in path.places] == entries


def test_a_table_that_the_process_may_not_write_fails_the_walk_after_the_event() -> None:
    world = World()
    path = path_of("4")
    world.set_mode("4")
    build(world, path, tables(path, 0x5000 | P | W | U, P | W | U | A))
    world.mm.mprotect(world.hva, NR_PAGES * 4096, False)  # type: ignore[arg-type]
    assert not world.walk(path.addr, USER)
    assert world.events[-2:] == [("kvm_mmu_set_accessed_bit", path.places[-1]), ("kvm_mmu_walker_error", USER)]
    # A walk that has nothing to set does not notice.
    world.mm.mprotect(world.hva, NR_PAGES * 4096, True)  # type: ignore[arg-type]
    world.store(path.places[-1], 0x5000 | P | W | U | A)
    world.mm.mprotect(world.hva, NR_PAGES * 4096, False)  # type: ignore[arg-type]
    assert world.walk(path.addr, USER)


def test_setting_a_bit_marks_the_tables_page_dirty() -> None:
    world = World()
    path = path_of("4")
    world.set_mode("4")
    build(world, path, tables(path, 0x5000 | P | W | U, P | W | U | A))
    slot = world.fill_slots(KVM_MEM_LOG_DIRTY_PAGES)
    assert world.walk(path.addr)
    assert slot.dirty_array is not None
    assert slot.dirty_array[0] == 1 << 4


# ------------------------------------------------------------------------------------------- error codes


@pytest.mark.parametrize(
    ("mode", "cr4", "efer", "shown"),
    [
        ("4", 0, 0, False),
        ("4", SMEP, 0, True),
        ("4", 0, NX, True),
        ("32", 0, 0, False),
        ("32", SMEP, 0, True),
        ("32", 0, NX, True),  # KVM looks at EFER.NX alone; a processor wants PAE as well
    ],
)
def test_a_fetch_is_told_apart_with_nx_or_smep(mode: str, cr4: int, efer: int, shown: bool) -> None:
    world = World()
    world.set_mode(mode, cr4=cr4, efer=efer)
    assert not world.walk(0x1234, FETCH | USER)
    assert world.gw.error_code == USER | shown * FETCH


def test_the_present_bit_of_the_access_does_not_reach_the_error_code() -> None:
    world = World()
    world.set_mode("4")
    assert not world.walk(0x1234, USER | 1)
    assert world.gw.error_code == USER


def test_long_mode_without_pae_is_a_bug_of_the_model() -> None:
    world = World()
    world.set_mode("4")
    world.vcpu.cr4 &= ~PAE
    with pytest.raises(KvmBug, match=r"EFER\.LMA without CR4\.PAE"):
        world.walk(0x1234)


# ------------------------------------------------------------------------------------------- gva_to_gpa


def test_without_paging_a_gva_is_its_gpa() -> None:
    world = World()
    setup.init_mmu(world.vcpu)
    world.vm.trace.attach(world.events.append)
    assert w.gva_to_gpa(world.vcpu, world.vcpu.root_mmu, 0xDEAD_B000, WRITE) == 0xDEAD_B000  # type: ignore[arg-type]
    assert w.gva_to_gpa_walk(world.vcpu, world.vcpu.root_mmu, world.gw, 0x1234, WRITE) == 0x1234  # type: ignore[arg-type]
    assert (world.gw.gpa, world.gw.gfn, world.gw.error_code) == (0x1234, 1, 0)
    assert world.events == []


def test_gva_to_gpa_is_the_walk() -> None:
    world = World()
    path = path_of("4")
    world.set_mode("4")
    build(world, path, tables(path, 0x5000 | P | U))
    addr = path.addr
    assert w.gva_to_gpa(world.vcpu, world.vcpu.root_mmu, addr, USER) == 0x5000 | addr & 0xFFF  # type: ignore[arg-type]
    assert w.gva_to_gpa(world.vcpu, world.vcpu.root_mmu, addr, USER | WRITE) == INVALID  # type: ignore[arg-type]
    assert w.gva_to_gpa_walk(world.vcpu, world.vcpu.root_mmu, world.gw, addr, USER | WRITE) == INVALID  # type: ignore[arg-type]
    assert (world.gw.error_code, world.gw.fault_address) == (7, addr)


# ------------------------------------------------------------------------------------------- re-reading gptes


def test_gpte_place_faults_nothing_in() -> None:
    world = World()
    assert w.gpte_place(world.vcpu, 0x3008) == INVALID  # type: ignore[arg-type]
    world.store(0x3008, 0x77)
    place = w.gpte_place(world.vcpu, 0x3008)  # type: ignore[arg-type]
    assert place == world.place(0x3008)
    assert w.read_gpte(world.vcpu, place, 8) == 0x77
    assert w.read_gpte(world.vcpu, place, 4) == 0x77
    assert w.gpte_place(world.vcpu, NR_PAGES << 12) == INVALID  # type: ignore[arg-type]
    world.fill_slots(KVM_MEMSLOT_INVALID)
    assert w.gpte_place(world.vcpu, 0x3008) == INVALID  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["32", "pae", "4"])
def test_a_changed_or_vanished_gpte_is_noticed_at_every_level(mode: str) -> None:
    size = MODES[mode][2]
    for level in range(1, MODES[mode][4] + 1):
        world = World()
        path = path_of(mode)
        world.set_mode(mode, cr3=path.cr3)
        build(world, path, tables(path, 0x5000 | P | W | A | D, P | W | U | A))
        assert world.walk(path.addr)
        assert not w.is_gpte_changed(world.vcpu, world.vcpu.root_mmu, world.gw, level)
        place = path.places[-level]
        old = world.load(place, size)
        world.store(place, old ^ 0x100, size)
        assert w.is_gpte_changed(world.vcpu, world.vcpu.root_mmu, world.gw, level)
        world.store(place, old, size)
        assert not w.is_gpte_changed(world.vcpu, world.vcpu.root_mmu, world.gw, level)
        world.fill_slots(KVM_MEMSLOT_INVALID)
        assert w.is_gpte_changed(world.vcpu, world.vcpu.root_mmu, world.gw, level)


# ------------------------------------------------------------------------------------------- PDPTRs


def test_pdptrs_are_loaded_checked_and_compared() -> None:
    world = World()
    world.vcpu.set_cpuid(CpuFeatures(40))
    world.set_mode("pae")
    for i in range(4):
        world.store(0x3020 + i * 8, 0x1000 * i | (P if i else 0))
    # Bits 4:0 of CR3 are ignored.
    assert w.load_pdptrs(world.vcpu, world.vcpu.root_mmu, 0x3020 | 0x18) == PDPTRS_CHANGED
    assert [w.read_pdptr(world.vcpu, world.vcpu.root_mmu, i) for i in range(4)] == [0, 0x1001, 0x2001, 0x3001]
    assert w.load_pdptrs(world.vcpu, world.vcpu.root_mmu, 0x3020) == PDPTRS_SAME
    world.store(0x3038, 0x5001)
    assert w.load_pdptrs(world.vcpu, world.vcpu.root_mmu, 0x3020) == PDPTRS_CHANGED


@pytest.mark.parametrize("bit", [1, 2, 5, 6, 7, 8, 40, 51, 52, 62, 63])
def test_a_present_pdpte_with_a_reserved_bit_is_refused_and_changes_nothing(bit: int) -> None:
    world = World()
    world.vcpu.set_cpuid(CpuFeatures(40))
    world.set_mode("pae")
    world.store(0x3000, 0x7001)
    assert w.load_pdptrs(world.vcpu, world.vcpu.root_mmu, 0x3000) == PDPTRS_CHANGED
    world.store(0x3000, 0x8001)
    world.store(0x3018, 0x1001 | 1 << bit)
    assert w.load_pdptrs(world.vcpu, world.vcpu.root_mmu, 0x3000) == PDPTRS_BAD
    assert [w.read_pdptr(world.vcpu, world.vcpu.root_mmu, i) for i in range(4)] == [0x7001, 0, 0, 0]
    # One that is not present may hold anything.
    world.store(0x3018, 0x1000 | 1 << bit)
    assert w.load_pdptrs(world.vcpu, world.vcpu.root_mmu, 0x3000) == PDPTRS_CHANGED


def test_pdptrs_that_cannot_be_read_are_refused() -> None:
    world = World()
    world.set_mode("pae")
    assert w.load_pdptrs(world.vcpu, world.vcpu.root_mmu, NR_PAGES << 12) == PDPTRS_BAD


@pytest.mark.parametrize("npt", BOOLS)
def test_pdptes_are_cached_unless_paging_is_nested(npt: bool) -> None:
    world = World(npt=npt)
    path = path_of("pae")
    world.set_mode("pae", cr3=path.cr3)
    build(world, path, tables(path, 0x5000 | P))
    world.store(path.cr3 + (path.addr >> 30 & 3) * 8, 0)
    assert world.walk(path.addr) is not npt
