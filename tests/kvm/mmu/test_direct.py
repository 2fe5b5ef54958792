# SPDX-License-Identifier: GPL-2.0-only
"""The direct MMU: the tables it builds, the leaf it puts there, and the neighbours that it maps ahead of need."""

from __future__ import annotations

import pytest

from kvm.mmu.machines import DIRECT, EMPTY, HOST_W, MMU_W, NONE, SHADOW, held
from kvmmu import Params, UserMemoryRegion, World
from kvmmu.kvm.mmu import direct, roots
from kvmmu.kvm.mmu.fault import PageFault
from kvmmu.kvm.mmu.leaf import Leaf
from kvmmu.kvm.mmu.page import ShadowPage
from kvmmu.kvm.vcpu import Vcpu

P, W, U, A, D, PS, NX = 1, 2, 4, 0x20, 0x40, 0x80, 1 << 63
RETRY, EMULATE, FIXED, SPURIOUS = 1, 2, 5, 6
PRESENT, WRITE, FETCH = 1, 2, 16
SIZE_2M, SIZE_1G = 1 << 21, 1 << 30
MEMORY = 2 * SIZE_1G
GPA = SIZE_1G + 0x20_5000
FULL = SHADOW | HOST_W | MMU_W | P | W | U
NO_SLOT = 1 << 63


class Direct:
    """A nested-paging world (or, with ``npt=False``, an unpaged guest), one vCPU with its root."""

    def __init__(self, host_page: str = "4k", *settings: str, npt: bool = True, size: int = MEMORY) -> None:
        params = Params(npt=npt, tdp_mmu=False, host_page=host_page).with_settings(settings)
        self.world = World(params, nr_frames=1 << 20)
        self.hva = self.world.add_slot(0, 0, size)
        self.vcpu: Vcpu = self.world.create_vcpu()
        assert roots.load(self.vcpu) == 0
        self.leaf = Leaf()

    def touch(self, gpa: int, *, write: bool = True) -> int:
        """Let the host back ``gpa``; its frame."""
        slot = self.vcpu.gfn_to_memslot(gpa >> 12)
        assert slot is not None
        return self.world.mm.user_access(slot.gfn_to_hva(gpa >> 12), write) >> 12

    def map(self, gpa: int = GPA, error_code: int = WRITE, *, writable: bool = True, most: int = 3) -> int:
        fault = PageFault(gpa, error_code)
        fault.gfn, fault.max_level, fault.map_writable = gpa >> 12, most, writable
        fault.slot = self.vcpu.gfn_to_memslot(gpa >> 12)
        fault.pfn = self.touch(gpa, write=writable) if fault.slot else NO_SLOT
        self.fault = fault
        self.leaf = Leaf()
        self.leaf.prefetch = False
        with held(self.world.vm):
            return direct.direct_map(self.vcpu, fault, self.leaf)

    def way(self, gpa: int = GPA) -> list[tuple[int, int]]:
        """(level, spte) from the top down."""
        return [(element.level, element.spte) for element in self.world.walk(self.vcpu, gpa)]

    def spte(self, gpa: int = GPA) -> int:
        return self.way(gpa)[-1][1]

    def pages(self) -> list[tuple[int, int]]:
        """(level, gfn) of the active pages, highest first."""
        return sorted(((sp.role & 15, sp.gfn) for sp in self.world.shadow_pages()), reverse=True)


@pytest.mark.parametrize(
    ("host_page", "level", "gfns"),
    [
        ("4k", 1, [0, 0, SIZE_1G >> 12, (SIZE_1G + SIZE_2M) >> 12]),
        ("2m", 2, [0, 0, SIZE_1G >> 12]),
        ("1g", 3, [0, 0]),
    ],
)
def test_a_fault_builds_the_tables_down_to_the_hosts_size(host_page: str, level: int, gfns: list[int]) -> None:
    box = Direct(host_page)
    assert box.map() == FIXED
    assert [number for number, _ in box.way()] == list(range(4, level - 1, -1))
    assert box.pages() == list(zip(range(4, level - 1, -1), gfns, strict=True))
    assert box.fault.nr_linked == 4 - level
    assert all(sp.role & DIRECT and sp.role >> 8 & 7 == 7 for sp in box.world.shadow_pages())
    pfn = box.touch(GPA)
    mask = (1 << 9 * (level - 1)) - 1
    assert box.spte() == FULL | A | D | (PS if level > 1 else 0) | (pfn & ~mask) << 12
    assert (box.leaf.gfn, box.leaf.access, box.leaf.pfn) == (GPA >> 12 & ~mask, 7, pfn & ~mask)
    box.world.audit()


def test_the_links_down_to_a_leaf_allow_everything() -> None:
    box = Direct()
    box.map()
    for _, spte in box.way()[:-1]:
        assert spte & (SHADOW | P | W | U | NX) == SHADOW | P | W | U


def test_the_second_fault_of_a_page_is_spurious_and_links_nothing() -> None:
    """Its D is not set again, so it is a write of the same page that finds the same word."""
    box = Direct()
    assert box.map(writable=False, error_code=0) == FIXED
    pages = box.pages()
    assert box.map(writable=False, error_code=0) == SPURIOUS
    assert (box.fault.nr_linked, box.pages()) == (0, pages)


def test_a_page_that_the_host_gives_read_only_is_not_writable() -> None:
    box = Direct()
    box.map(error_code=0, writable=False)
    assert box.spte() & (W | HOST_W | MMU_W | D) == 0
    assert box.spte() & (P | U | A) == P | U | A


def test_no_slot_is_an_mmio_entry() -> None:
    box = Direct()
    assert box.map(0xE000_0000) == EMULATE
    assert box.spte(0xE000_0000) & (SHADOW | P) == P
    assert box.vcpu.stat.pf_mmio_spte_created == 1
    assert box.vcpu.vm.stat.pages_4k == 0


def test_without_a_root_the_guest_tries_again() -> None:
    box = Direct()
    roots.unload(box.vcpu)
    pages = box.pages()
    assert box.map() == RETRY
    assert box.pages() == pages
    assert box.vcpu.mmu.root_hpa == NONE


def test_a_large_page_replaces_the_small_ones_of_a_table() -> None:
    box = Direct("2m")
    # The host's page is large; the first fault wants a small one.
    assert box.map(most=1) == FIXED
    assert box.spte() & PS == 0
    flushed = box.vcpu.vm.stat.remote_tlb_flush_requests
    assert box.map() == FIXED
    assert box.way()[-1][0] == 2
    assert box.spte() & PS
    assert box.vcpu.vm.stat.remote_tlb_flush_requests > flushed
    # The table stays for its next use.
    table = [sp for sp in box.world.shadow_pages() if sp.role & 15 == 1]
    assert [sp.parent_ptes for sp in table] == [0]
    box.world.audit()


def test_the_direct_children_of_a_direct_table_are_not_questioned() -> None:
    box = Direct()
    box.map()
    assert not box.fault.validate_direct


# Prefetch.


def group(box: Direct, gpa: int = GPA) -> list[int]:
    """The sptes of the 8 pages around ``gpa``."""
    at = box.world.walk(box.vcpu, gpa)[-1].hpa & ~63
    return [box.world.memory.read_once(at + 8 * i) for i in range(8)]


def test_neighbours_that_the_host_has_are_mapped_without_a() -> None:
    box = Direct()
    base = GPA & ~0x7FFF
    pfns = [box.touch(base + 0x1000 * i) for i in range(8)]
    box.touch(base + 0x8000)
    box.touch(base - 0x1000)
    box.map()
    assert [spte & (P | A | D) for spte in group(box)] == [P | D if i != 5 else P | A | D for i in range(8)]
    assert [spte >> 12 & 0xFFFFFFF for spte in group(box)] == pfns
    assert [box.spte(base + 0x8000), box.spte(base - 0x1000)] == [EMPTY, EMPTY]
    # The references that looking took are given back.
    assert {box.world.frames.nr_refs(pfn) for pfn in pfns} == {1}
    box.world.audit()


def test_a_run_ends_where_the_host_has_nothing_and_the_next_goes_on() -> None:
    box = Direct()
    base = GPA & ~0x7FFF
    for i in (0, 1, 3, 6, 7):
        box.touch(base + 0x1000 * i)
    box.map()
    # Runs 0-4 and 6-7 around the fault's own entry 5: the first stops at 2.
    assert [i for i, spte in enumerate(group(box)) if spte != EMPTY] == [0, 1, 5, 6, 7]


def test_a_run_that_finds_nothing_ends_all_prefetch() -> None:
    box = Direct()
    base = GPA & ~0x7FFF
    for i in (1, 2, 3, 4, 6, 7):
        box.touch(base + 0x1000 * i)
    box.map()
    assert [i for i, spte in enumerate(group(box)) if spte != EMPTY] == [5]


def test_what_is_mapped_already_is_not_mapped_again() -> None:
    box = Direct()
    base = GPA & ~0x7FFF
    for i in range(8):
        box.touch(base + 0x1000 * i)
    box.map(base + 0x2000)
    before = group(box)
    box.map()
    assert group(box)[2] == before[2]
    assert box.vcpu.vm.stat.pages_4k == 8


@pytest.mark.parametrize("reason", ["large", "invalidation", "spurious"])
def test_nothing_is_prefetched(reason: str) -> None:
    box = Direct("2m" if reason == "large" else "4k")
    base = GPA & ~0x7FFF
    if reason == "spurious":
        box.map(error_code=0, writable=False)
    for i in range(8):
        if (base + 0x1000 * i) != GPA & ~0xFFF:
            box.touch(base + 0x1000 * i)
    if reason == "invalidation":
        box.world.vm.mm.chain.range_start(box.hva + 0x10_0000, box.hva + 0x10_1000)
    leaves = box.vcpu.vm.stat.pages_4k
    box.map(error_code=0, writable=reason != "spurious")
    assert box.vcpu.vm.stat.pages_4k == leaves + (1 if reason == "invalidation" else 0)
    if reason == "invalidation":
        box.world.vm.mm.chain.range_end(box.hva + 0x10_0000, box.hva + 0x10_1000)


def test_a_run_that_crosses_the_slots_end_ends_all_prefetch() -> None:
    box = Direct(size=0x23_6000)
    for i in range(6):
        box.touch(0x23_0000 + 0x1000 * i)
    box.map(0x23_0000)
    assert [i for i, spte in enumerate(group(box, 0x23_0000)) if spte != EMPTY] == [0]
    box.map(0x23_5000)
    assert [i for i, spte in enumerate(group(box, 0x23_0000)) if spte != EMPTY] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("flags", [1, 2])
def test_a_logged_or_read_only_slot_is_not_prefetched(flags: int) -> None:
    box = Direct()
    for i in range(8):
        box.touch((GPA & ~0x7FFF) + 0x1000 * i)
    if flags == 2:
        box.world.delete_slot(0)
    box.world.set_region(UserMemoryRegion(0, flags, 0, MEMORY, box.hva))
    if flags == 2:
        roots.unload(box.vcpu)
        assert roots.load(box.vcpu) == 0
    box.map(error_code=0, writable=flags == 1)
    assert [i for i, spte in enumerate(group(box)) if spte != EMPTY] == [5]


# Without paging.


def test_an_unpaged_guest_walks_from_its_pae_root_and_has_no_1g_pages() -> None:
    box = Direct("1g", npt=False)
    assert box.map(most=2) == FIXED
    assert [level for level, _ in box.way()] == [2]
    assert box.spte() & PS
    page: ShadowPage = box.world.frames.owner(box.world.walk(box.vcpu, GPA)[0].hpa >> 12)
    assert (page.gfn, page.role & 15) == (SIZE_1G >> 12, 2)
