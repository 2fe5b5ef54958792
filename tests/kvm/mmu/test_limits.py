# SPDX-License-Identifier: GPL-2.0-only
"""Why a fault maps no larger page: every reason, under each MMU where it can be one, named in the fault's record."""

from __future__ import annotations

import pytest

from kvmmu import Params, UserMemoryRegion, World
from kvmmu.kvm.mmu.fault import PageFault, limit_of
from kvmmu.kvm.mmu.verdict import LIMITS
from kvmmu.tracepoint import Event, event_limit

SIZE_4K, SIZE_2M, SIZE_1G = 1 << 12, 1 << 21, 1 << 30
RAM = 16 << 20
#: The slot in question, apart from the guest's tables; it is as aligned as the process's memory behind it.
BASE, SIZE = SIZE_1G, 2 * SIZE_1G
#: Somewhere in it, at the start of a 2M page.
GPA = BASE + SIZE_1G + 6 * SIZE_2M
SHADOW, TDP, LEGACY = ("npt=off",), ("npt=on", "tdp_mmu=on"), ("npt=on", "tdp_mmu=off")
EVERY = pytest.mark.parametrize("mmu", [SHADOW, TDP, LEGACY], ids=["shadow", "tdp", "tdp-legacy"])
DIRECT = pytest.mark.parametrize("mmu", [TDP, LEGACY], ids=["tdp", "tdp-legacy"])


class Box:
    """A world with the slot in question; under shadow paging the guest maps ``gpa`` of it with pages of ``page``."""

    def __init__(
        self,
        mmu: tuple[str, ...],
        *settings: str,
        size: int = SIZE,
        skew: int = 0,
        flags: int = 0,
        page: int = SIZE_1G,
        gpa: int = GPA,
    ) -> None:
        self.world = World(Params(host_page="1g").with_settings([*mmu, *settings]), nr_frames=1 << 20)
        self.world.add_slot(0, 0, RAM)
        hva = self.world.mm.mmap(SIZE + SIZE_1G, page_level=self.world.vm.params.host_page_level, align=SIZE_1G)
        self.world.set_region(UserMemoryRegion(1, flags, BASE, size, hva + skew))
        self.vcpu = self.world.create_vcpu()
        self.gva = gpa
        if mmu is SHADOW:
            tables = self.world.tables("4-level", 0x10000, nr_bytes=0x40000)
            tables.map(gpa & -page, gpa & -page, page)
            self.world.load_registers(self.vcpu, tables.registers())
        self.events: list[Event] = []
        self.world.on_event(self.events.append)

    def limit(self, offset: int = 0, *, fetch: bool = False) -> str:
        """The limit in the record of the fault that an access there raises."""
        gfn = (self.gva + offset) >> 12
        slot = self.vcpu.gfn_to_memslot(gfn)
        if slot is not None:
            # Written once, it is no zero page, which is small.
            self.world.mm.user_access(slot.gfn_to_hva(gfn), True)
        self.events.clear()
        access = self.world.fetch if fetch else self.world.read
        access(self.vcpu, self.gva + offset)
        found = [event_limit(event) for event in self.events if event[0] == "kvm_page_fault"]
        assert len(found) == 1
        assert LIMITS[self.vcpu.fault_limit] == found[0]
        return found[0]

    def level(self) -> int:
        """Of the leaf."""
        way = self.world.walk(self.vcpu, self.gva)
        return way[-1].level


@EVERY
def test_nothing_forbids_1g(mmu: tuple[str, ...]) -> None:
    box = Box(mmu)
    assert (box.limit(), box.level()) == ("none", 3)


@EVERY
@pytest.mark.parametrize(("host_page", "level"), [("4k", 1), ("2m", 2)])
def test_the_hosts_own_mapping(mmu: tuple[str, ...], host_page: str, level: int) -> None:
    box = Box(mmu, f"host_page={host_page}")
    assert (box.limit(), box.level()) == ("host", level)


@EVERY
@pytest.mark.parametrize(
    ("size", "gpa", "level"), [(SIZE_1G + 8 * SIZE_2M, GPA, 2), (SIZE_2M + SIZE_4K, BASE + SIZE_2M, 1)]
)
def test_the_slots_end(mmu: tuple[str, ...], size: int, gpa: int, level: int) -> None:
    box = Box(mmu, size=size, gpa=gpa)
    assert (box.limit(), box.level()) == ("slot-end", level)


@EVERY
@pytest.mark.parametrize(("skew", "level"), [(SIZE_4K, 1), (SIZE_2M, 2)])
def test_gfn_and_hva_lie_differently(mmu: tuple[str, ...], skew: int, level: int) -> None:
    box = Box(mmu, skew=skew)
    assert (box.limit(), box.level()) == ("misaligned", level)


@EVERY
def test_the_dirty_log(mmu: tuple[str, ...]) -> None:
    box = Box(mmu, flags=1)
    assert (box.limit(), box.level()) == ("dirty-log", 1)


@EVERY
def test_the_nx_mitigation_and_its_tables(mmu: tuple[str, ...]) -> None:
    """A fetch gets 4K; the table that it leaves keeps others from a huge page that could not be executed."""
    box = Box(mmu, "nx_huge_pages=on", "host_page=2m")
    assert (box.limit(fetch=True), box.level()) == ("nx", 1)
    assert box.limit(16 * SIZE_4K) == "nx-table"


@EVERY
def test_no_memory(mmu: tuple[str, ...]) -> None:
    assert Box(mmu, gpa=BASE + SIZE).limit() == "no-slot"


@pytest.mark.parametrize(("page", "level"), [(SIZE_4K, 1), (SIZE_2M, 2)])
def test_the_guests_own_page(page: int, level: int) -> None:
    box = Box(SHADOW, page=page)
    assert (box.limit(), box.level()) == ("guest-page", level)


def test_a_cpu_without_1g_pages() -> None:
    box = Box(SHADOW, "host_gbpages=off")
    assert (box.limit(), box.level()) == ("cpu", 2)


@DIRECT
def test_nested_paging_does_not_ask_the_cpu(mmu: tuple[str, ...]) -> None:
    box = Box(mmu, "host_gbpages=off")
    assert (box.limit(), box.level()) == ("none", 3)


def test_a_guest_without_paging_under_shadow_paging() -> None:
    world = World(Params(npt=False, host_page="1g"), nr_frames=1 << 20)
    world.set_region(UserMemoryRegion(0, 0, 0, SIZE_1G, world.mm.mmap(SIZE_1G, page_level=3, align=SIZE_1G)))
    vcpu = world.create_vcpu()
    world.on_event([].append)
    world.write(vcpu, 0x5000, 1)
    assert LIMITS[vcpu.fault_limit] == "unpaged"


def test_the_guests_own_tables() -> None:
    """Upper tables are tracked; where there is but a level-1 table, it may be unsync and forbids a huge page yet."""
    world = World(Params(npt=False, host_page="2m"), nr_frames=1 << 20)
    world.set_region(UserMemoryRegion(0, 0, 0, RAM, world.mm.mmap(RAM, page_level=2, align=SIZE_2M)))
    vcpu = world.create_vcpu()
    # Root and the two tables below it end the first 2M, the level-1 table begins the second.
    tables = world.tables("4-level", SIZE_2M - 3 * SIZE_4K, nr_bytes=0x10000)
    assert tables.map(2 * SIZE_2M, 0x800000) == SIZE_2M
    tables.map(3 * SIZE_2M, SIZE_2M, SIZE_2M)
    tables.map(4 * SIZE_2M, 0, SIZE_2M)
    world.load_registers(vcpu, tables.registers())
    world.on_event([].append)
    found = []
    for number in (2, 3, 4):
        world.write(vcpu, number * SIZE_2M + 0x80000 * (number > 2), 1)
        found.append(LIMITS[vcpu.fault_limit])
    assert found == ["guest-page", "synced-table", "write-tracked"]


@DIRECT
def test_nested_paging_mirrors_no_table_and_tracks_nothing(mmu: tuple[str, ...]) -> None:
    """The same tables: the blocks that hold them are mapped as large as any, and no count of the slot forbids it."""
    world = World(Params(host_page="2m").with_settings(mmu), nr_frames=1 << 20)
    hva = world.mm.mmap(RAM, page_level=2, align=SIZE_2M)
    world.mm.populate(hva, RAM)
    world.set_region(UserMemoryRegion(0, 0, 0, RAM, hva))
    vcpu = world.create_vcpu()
    tables = world.tables("4-level", SIZE_2M - 3 * SIZE_4K, nr_bytes=0x10000)
    tables.map(2 * SIZE_2M, 0x800000)
    tables.map(3 * SIZE_2M, SIZE_2M, SIZE_2M)
    tables.map(4 * SIZE_2M, 0, SIZE_2M)
    world.load_registers(vcpu, tables.registers())
    world.on_event([].append)
    found = set()
    for number in (2, 3, 4):
        assert world.write(vcpu, number * SIZE_2M + 0x80000 * (number > 2), 1).kind == "done"
        found.add(LIMITS[vcpu.fault_limit])
    assert found <= {"host", "none", "slot-end"}
    slot = world.vm.slots_of(0).find_id(0)
    assert slot is not None
    assert slot.lpage_array is not None
    assert (slot.write_track_array, any(slot.lpage_array[: RAM >> 21])) == (None, False)
    assert [world.walk(vcpu, gpa)[-1].level for gpa in (0, SIZE_2M)] == [2, 2]


def test_without_a_listener_the_slot_is_not_searched() -> None:
    """The record has the reasons that cost nothing; the others are told apart by who asks."""
    world = World(Params(npt=True, host_page="4k"), nr_frames=1 << 16)
    world.add_slot(0, 0, RAM)
    vcpu = world.create_vcpu()
    world.read(vcpu, 0x5000)
    assert LIMITS[vcpu.fault_limit] == "mapping"


def test_a_record_says_its_limit() -> None:
    fault = PageFault(0x5000, 0)
    assert LIMITS[limit_of(fault)] == "none"
    assert repr(fault).endswith(" limit none>")
