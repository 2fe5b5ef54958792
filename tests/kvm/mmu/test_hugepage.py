# SPDX-License-Identifier: GPL-2.0-only
"""How large a page may be: every reason for a smaller one, each alone."""

from __future__ import annotations

import pytest

from kvmmu import KvmBug, Params, UserMemoryRegion, World
from kvmmu.kvm.memslots import Memslot
from kvmmu.kvm.mmu import hugepage
from kvmmu.kvm.mmu.fault import PageFault
from kvmmu.kvm.vcpu import Vcpu

SIZE_2M, SIZE_1G = 1 << 21, 1 << 30
#: The slot: 3 GiB at 1 GiB, without memory behind it until it is touched.
BASE, SIZE = SIZE_1G, 3 * SIZE_1G
GFN = (2 * SIZE_1G >> 12) + 0x12345
NO_SLOT = 1 << 63


class Host:
    """A world whose host backs memory with pages of up to ``host_page``, one vCPU, one large slot."""

    def __init__(self, host_page: str = "1g", base: int = BASE, size: int = SIZE, flags: int = 0) -> None:
        self.world = World(Params(npt=True, host_page=host_page), nr_frames=1 << 20)
        self.world.add_slot(0, base, size, flags=flags)
        self.vcpu: Vcpu = self.world.create_vcpu()
        slot = self.vcpu.gfn_to_memslot(base >> 12)
        assert slot is not None
        self.slot: Memslot = slot

    def touch(self, gfn: int) -> int:
        """Let the host back ``gfn``; its frame."""
        return self.world.mm.user_access(self.slot.gfn_to_hva(gfn), True) >> 12

    def level(self, gfn: int = GFN, most: int = 3) -> int:
        return hugepage.max_mapping_level(self.world.vm, self.slot, gfn, most)

    def forbid(self, gfn: int, level: int) -> None:
        array = self.slot.lpage_array
        assert array is not None
        blocks_2m = (self.slot.end_gfn - 1 >> 9) - (self.slot.base_gfn >> 9) + 1
        first = {2: 0, 3: blocks_2m}[level]
        shift = 9 * (level - 1)
        array[first + (gfn >> shift) - (self.slot.base_gfn >> shift)] += 1


@pytest.mark.parametrize(("host_page", "level"), [("1g", 3), ("2m", 2), ("4k", 1)])
def test_no_larger_than_the_hosts_own_mapping(host_page: str, level: int) -> None:
    host = Host(host_page)
    host.touch(GFN)
    assert host.level() == level


def test_what_the_host_has_not_mapped_is_small() -> None:
    assert Host().level() == 1


@pytest.mark.parametrize(("most", "level"), [(1, 1), (2, 2), (3, 3), (5, 3)])
def test_no_larger_than_the_fault_wants_and_never_above_1g(most: int, level: int) -> None:
    host = Host()
    host.touch(GFN)
    assert host.level(most=most) == level


@pytest.mark.parametrize(("forbidden", "level"), [([3], 2), ([2], 3), ([2, 3], 1)])
def test_no_larger_than_the_slot_allows(forbidden: list[int], level: int) -> None:
    """Whoever forbids 2M forbids 1G too; the level that is allowed is taken wherever it is."""
    host = Host()
    host.touch(GFN)
    for number in forbidden:
        host.forbid(GFN, number)
    assert host.level() == level


def test_what_is_forbidden_next_door_does_not_matter() -> None:
    host = Host()
    host.touch(GFN)
    for level in (2, 3):
        for side in (-1, 1):
            host.forbid(GFN + side * (1 << 9 * (level - 1)), level)
    assert host.level() == 3


@pytest.mark.parametrize(
    ("base", "size", "gfn", "level"),
    [
        # An unaligned end forbids the block that it cuts, at each level for itself.
        (SIZE_1G + SIZE_2M, 2 * SIZE_1G, (SIZE_1G + 2 * SIZE_2M) >> 12, 2),
        (SIZE_1G, SIZE_1G + SIZE_2M, (2 * SIZE_1G >> 12), 2),
        (SIZE_1G, SIZE_1G + SIZE_2M, (SIZE_1G >> 12), 3),
        (SIZE_1G, SIZE_1G + SIZE_2M + 0x1000, (2 * SIZE_1G + SIZE_2M) >> 12, 1),
    ],
)
def test_a_block_that_sticks_out_of_the_slot_is_not_mapped_as_one(base: int, size: int, gfn: int, level: int) -> None:
    world = World(Params(npt=True, host_page="1g"), nr_frames=1 << 20)
    # The process's memory is as aligned as the guest's, modulo 1G.
    hva = world.mm.mmap(4 * SIZE_1G, page_level=3, align=SIZE_1G)
    world.set_region(UserMemoryRegion(0, 0, base, size, hva + base % SIZE_1G))
    slot = world.vm.gfn_to_memslot(base >> 12, 0)
    assert slot is not None
    world.mm.user_access(slot.gfn_to_hva(gfn), True)
    assert hugepage.max_mapping_level(world.vm, slot, gfn, 3) == level


@pytest.mark.parametrize(("skew", "level"), [(0, 3), (SIZE_2M, 2), (0x1000, 1)])
def test_gfn_and_hva_must_agree_within_the_page(skew: int, level: int) -> None:
    world = World(Params(npt=True, host_page="1g"), nr_frames=1 << 20)
    hva = world.mm.mmap(4 * SIZE_1G, page_level=3, align=SIZE_1G)
    world.set_region(UserMemoryRegion(0, 0, BASE, 2 * SIZE_1G, hva + skew))
    slot = world.vm.gfn_to_memslot(BASE >> 12, 0)
    assert slot is not None
    world.mm.user_access(slot.gfn_to_hva((BASE >> 12) + 0x12345), True)
    assert hugepage.max_mapping_level(world.vm, slot, (BASE >> 12) + 0x12345, 3) == level


# adjust().


def faulted(host: Host, most: int = 3) -> PageFault:
    fault = PageFault(GFN << 12, 0)
    fault.gfn, fault.slot, fault.max_level = GFN, host.slot, most
    fault.pfn = host.touch(GFN)
    return fault


@pytest.mark.parametrize(("host_page", "level"), [("1g", 3), ("2m", 2), ("4k", 1)])
def test_a_fault_gets_the_largest_level_and_the_first_frame_of_it(host_page: str, level: int) -> None:
    host = Host(host_page)
    fault = faulted(host)
    pfn = fault.pfn
    hugepage.adjust(host.vcpu, fault)
    assert (fault.req_level, fault.goal_level) == (level, level)
    assert fault.pfn == pfn - pfn % (1 << 9 * (level - 1))
    assert fault.gfn == GFN


def test_a_fault_that_wants_4k_is_not_looked_up() -> None:
    host = Host()
    fault = faulted(host, most=1)
    pfn = fault.pfn
    hugepage.adjust(host.vcpu, fault)
    assert (fault.req_level, fault.goal_level, fault.pfn) == (1, 1, pfn)


def test_a_logged_slot_has_small_pages() -> None:
    host = Host(flags=1)
    fault = faulted(host)
    pfn = fault.pfn
    hugepage.adjust(host.vcpu, fault)
    assert (fault.req_level, fault.goal_level, fault.pfn) == (1, 1, pfn)


@pytest.mark.parametrize("pfn", [NO_SLOT, 0x7FF << 52, (0x7FF << 52) + 2])
def test_what_is_no_frame_has_no_size(pfn: int) -> None:
    host = Host()
    fault = faulted(host)
    fault.pfn = pfn
    hugepage.adjust(host.vcpu, fault)
    assert (fault.req_level, fault.goal_level, fault.pfn) == (1, 1, pfn)


def test_without_a_slot_there_is_no_large_page() -> None:
    host = Host()
    fault = faulted(host)
    fault.slot = None
    hugepage.adjust(host.vcpu, fault)
    assert (fault.req_level, fault.goal_level) == (1, 1)


def test_a_frame_that_does_not_lie_like_the_gfn_is_a_bug() -> None:
    host = Host()
    fault = faulted(host)
    fault.pfn += 1
    with pytest.raises(KvmBug, match="differ within a level 3 page"):
        hugepage.adjust(host.vcpu, fault)
