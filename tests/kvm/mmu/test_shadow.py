# SPDX-License-Identifier: GPL-2.0-only
"""Shadow paging proper: which page is found again, what a link replaces, and the way that a fetch builds."""

from __future__ import annotations

import pytest

from kvm.mmu.machines import (
    ACCESS_ALL,
    AD,
    DATA,
    DIRECT,
    EMPTY,
    INVALID,
    LARGE,
    RO,
    RW,
    SHADOW,
    VA,
    Guest,
    P,
    U,
    W,
    flushes,
    has_request,
    held,
    pages_of,
    raw_table,
)
from kvmmu import KvmBug
from kvmmu.guest.tables import SIZE_1G, SIZE_2M
from kvmmu.kvm.mmu import shadow
from kvmmu.kvm.mmu.fault import PageFault
from kvmmu.kvm.mmu.leaf import Leaf
from kvmmu.kvm.mmu.page import ShadowPage
from kvmmu.kvm.mmu.pages import alloc_page
from kvmmu.kvm.mmu.walker import walk_addr

A, D, PS, NX = 0x20, 0x40, 0x80, 1 << 63
RETRY, WRITE_PROTECTED, FIXED, SPURIOUS = 1, 3, 5, 6
FREE_OBSOLETE_ROOTS = 39
#: Role of a 4-level guest's pages but for level, access and direct: EFER.NX, CR0.WP.
BASE = 1 << 12 | 1 << 13


def mapped() -> Guest:
    guest = Guest()
    guest.tables.map(VA, DATA, flags=RW | AD)
    assert guest.read(VA) == 0xD000
    return guest


def table(guest: Guest, gva: int = VA, level: int = 1) -> ShadowPage:
    """The shadow page that holds the entry of ``gva`` at ``level``."""
    (hpa,) = [element.hpa for element in guest.world.walk(guest.vcpu, gva) if element.level == level]
    sp: ShadowPage = guest.world.frames.owner(hpa >> 12)
    return sp


def find(guest: Guest, gfn: int, role: int) -> ShadowPage | None:
    with held(guest.world.vm):
        return shadow.find_page(guest.vcpu, gfn, role)


# Finding.


def test_a_page_is_found_by_gfn_and_the_whole_role() -> None:
    guest = mapped()
    sp = table(guest)
    misses = guest.world.vm.stat.mmu_cache_miss
    assert find(guest, sp.gfn, sp.role) is sp
    assert guest.world.vm.stat.mmu_cache_miss == misses
    others = [(sp.gfn, sp.role ^ 1 << bit) for bit in (0, 4, 5, 7, 8, 12, 13, 24)] + [(sp.gfn + 0x900, sp.role)]
    assert [find(guest, gfn, role) for gfn, role in others] == [None] * len(others)
    assert guest.world.vm.stat.mmu_cache_miss == misses + len(others)


def test_a_found_mirror_has_its_flood_count_cleared() -> None:
    guest = mapped()
    sp = table(guest, level=2)
    sp.write_flooding_count = 2
    assert find(guest, sp.gfn, sp.role) is sp
    assert sp.write_flooding_count == 0


def test_an_obsolete_page_is_not_found() -> None:
    guest = mapped()
    sp = table(guest)
    sp.mmu_valid_gen ^= 1
    assert find(guest, sp.gfn, sp.role) is None
    sp.mmu_valid_gen ^= 1


def test_an_unsync_page_is_synced_for_the_moment_and_stays_unsync() -> None:
    guest = mapped()
    place = guest.tables.entry_gpa(VA, 1)
    sp = table(guest)
    guest.edit.store(place, (DATA + 0x1000) | RW | AD, 8)
    assert sp.unsync
    flushed = flushes(guest.world.vm)
    assert find(guest, sp.gfn, sp.role) is sp
    assert guest.world.memory.read_once(sp.spt + 8 * (VA >> 12 & 511)) == EMPTY
    assert sp.unsync
    assert flushes(guest.world.vm) == flushed + 1


def test_an_unsync_page_that_cannot_be_synced_is_zapped_and_not_found() -> None:
    guest = mapped()
    sp = table(guest)
    guest.edit.store(guest.tables.entry_gpa(VA, 1), 0, 8)
    guest.vcpu.mmu.can_sync = False
    assert find(guest, sp.gfn, sp.role) is None
    assert sp.role & INVALID
    assert sp not in guest.world.shadow_pages()


@pytest.mark.parametrize(("level", "zapped"), [(2, True), (1, False)])
def test_an_unsync_page_goes_when_its_table_becomes_an_upper_one(level: int, zapped: bool) -> None:
    """It would stay writable as somebody's level-1 table."""
    guest = mapped()
    sp = table(guest)
    guest.edit.store(guest.tables.entry_gpa(VA, 1), 0, 8)
    assert find(guest, sp.gfn, (sp.role & ~15 | level) ^ 1 << 8) is None
    assert bool(sp.role & INVALID) == zapped


def test_collisions_of_the_bucket_are_counted() -> None:
    guest = mapped()
    vm = guest.world.vm

    def bucket(gfn: int) -> int:
        return gfn * 0x61C8_8646_80B5_83EB % 2**64 >> 52

    gfns = [gfn for gfn in range(0x100, 1 << 16) if bucket(gfn) == bucket(0x100)][:5]
    with held(vm):
        for gfn in gfns:
            alloc_page(vm, gfn, 1 | DIRECT | ACCESS_ALL)
    before = vm.stat.max_mmu_page_hash_collisions
    assert find(guest, 0x100, 1 | ACCESS_ALL) is None
    assert vm.stat.max_mmu_page_hash_collisions == max(before, 4)


# Making.


def test_a_page_that_is_not_found_is_made_and_accounted() -> None:
    guest = mapped()
    vm = guest.world.vm
    with held(vm):
        direct = shadow.get_page(guest.vcpu, 0x300, 1 | DIRECT | ACCESS_ALL)
        indirect = vm.indirect_shadow_pages
        mirror = shadow.get_page(guest.vcpu, 0x301, 1 | ACCESS_ALL)
        again = shadow.get_page(guest.vcpu, 0x301, 1 | ACCESS_ALL)
    assert again is mirror
    assert mirror is not direct
    assert vm.indirect_shadow_pages == indirect + 1


def child(guest: Guest, sptep: int, gfn: int, access: int = 7, *, direct: bool = False) -> ShadowPage | None:
    with held(guest.world.vm):
        return shadow.get_child(guest.vcpu, sptep, gfn, direct, access)


def test_a_child_that_is_linked_already_is_none() -> None:
    guest = mapped()
    link = guest.world.walk(guest.vcpu, VA)[-2].hpa
    sp = table(guest)
    assert child(guest, link, sp.gfn) is None
    for gfn, access, direct in ((sp.gfn + 1, 7, False), (sp.gfn, 5, False), (sp.gfn, 7, True)):
        other = child(guest, link, gfn, access, direct=direct)
        assert other is not None
        assert other is not sp
        assert (other.gfn, other.role) == (gfn, BASE | 1 | access << 8 | (DIRECT if direct else 0))


def test_a_large_leaf_is_no_child() -> None:
    guest = mapped()
    directory = table(guest, level=2)
    sptep = directory.spt + 8 * 100
    guest.world.memory.write_once(sptep, SHADOW | PS | P | table(guest).spt)
    assert child(guest, sptep, table(guest).gfn) is table(guest)
    guest.world.memory.write_once(sptep, EMPTY)


def test_an_invalid_page_gets_no_children() -> None:
    guest = mapped()
    directory = table(guest, level=2)
    directory.role |= INVALID
    with pytest.raises(KvmBug, match="child of an invalid page"):
        child(guest, directory.spt, 0x300)
    directory.role ^= INVALID


# Linking.


def test_a_link_allows_everything_and_is_known_to_the_child() -> None:
    guest = mapped()
    vm, sptep = guest.world.vm, table(guest, level=2).spt + 8 * 100
    with held(vm):
        sp = shadow.get_page(guest.vcpu, 0x300, BASE | 1 | ACCESS_ALL)
    flushed = flushes(vm)
    with held(vm):
        shadow.link_page(guest.vcpu, sptep, sp)
    assert vm.memory.read_once(sptep) == SHADOW | P | W | U | A | sp.spt
    assert sp.parent_ptes == sptep
    assert flushes(vm) == flushed
    assert not table(guest, level=2).is_unsync_child(100)


def test_a_link_over_a_leaf_or_link_replaces_it_with_a_flush() -> None:
    guest = mapped()
    vm, sptep, old = guest.world.vm, guest.world.walk(guest.vcpu, VA)[-2].hpa, table(guest)
    with held(vm):
        sp = shadow.get_page(guest.vcpu, 0x300, BASE | 1 | ACCESS_ALL)
        flushed = flushes(vm)
        shadow.link_page(guest.vcpu, sptep, sp)
    assert (old.parent_ptes, sp.parent_ptes, flushes(vm)) == (0, sptep, flushed + 1)
    guest.audit()


@pytest.mark.parametrize("state", ["unsync", "leads to one"])
def test_a_link_to_unsync_pages_is_marked_up_to_the_root(state: str) -> None:
    guest = mapped()
    vm, sptep = guest.world.vm, table(guest, level=2).spt + 8 * 100
    with held(vm):
        sp = shadow.get_page(guest.vcpu, 0x300, BASE | 1 | ACCESS_ALL)
        if state == "unsync":
            sp.unsync = True
        else:
            sp.unsync_children = 1
        shadow.link_page(guest.vcpu, sptep, sp)
    assert table(guest, level=2).is_unsync_child(100)
    assert [table(guest, level=level).unsync_children for level in (2, 3, 4)] == [1, 1, 1]


@pytest.mark.parametrize(("access", "stays"), [(7, True), (5, False), (3, False)])
def test_a_direct_child_with_other_rights_is_unlinked_and_kept(access: int, stays: bool) -> None:
    guest = Guest()
    guest.tables.map(SIZE_1G, LARGE, SIZE_2M, RW | AD)
    assert guest.read(SIZE_1G) == 0
    sp, link = table(guest, SIZE_1G), guest.world.walk(guest.vcpu, SIZE_1G)[-2].hpa
    flushed = flushes(guest.world.vm)
    with held(guest.world.vm):
        shadow.validate_direct(guest.vcpu, link, access)
    assert (sp.parent_ptes == link) == stays
    assert flushes(guest.world.vm) == flushed + (not stays)
    assert sp in guest.world.shadow_pages()
    # Neither an empty entry nor a large leaf has a child.
    directory = table(guest, SIZE_1G, 2)
    for word in (EMPTY, SHADOW | PS | P):
        guest.world.memory.write_once(directory.spt + 8 * 300, word)
        with held(guest.world.vm):
            shadow.validate_direct(guest.vcpu, directory.spt + 8 * 300, access)
        assert guest.world.memory.read_once(directory.spt + 8 * 300) == word
    guest.world.memory.write_once(directory.spt + 8 * 300, EMPTY)


# Fetching.


def fetch(guest: Guest, gva: int = VA, code: int = 0, *, between: object = None) -> tuple[int, PageFault]:
    """A fault up to and with fetch(), as paging_page_fault() does it; ``between`` runs after the guest walk."""
    vcpu, vm = guest.vcpu, guest.world.vm
    fault = PageFault(gva, code)
    gw = vcpu.guest_walk
    assert walk_addr(vcpu, vcpu.root_mmu, gw, gva, code)
    fault.gfn, fault.max_level = gw.gfn, gw.level
    fault.slot = vcpu.gfn_to_memslot(gw.gfn)
    assert fault.slot is not None
    fault.pfn = guest.world.mm.user_access(fault.slot.gfn_to_hva(gw.gfn), True) >> 12
    fault.map_writable = True
    if between is not None:
        between()  # type: ignore[operator]
    leaf = Leaf()
    leaf.access = gw.pte_access
    with held(vm):
        return shadow.fetch(vcpu, fault, gw, leaf), fault


def ready() -> Guest:
    """A guest with a root and nothing below it but the window's way."""
    guest = Guest()
    guest.tables.map(VA, DATA, flags=RW | AD)
    assert guest.read(guest.window + TABLE_GPA) != 0
    return guest


TABLE_GPA = 0x10000


def test_a_fetch_links_a_page_for_each_guest_table_and_maps_the_page() -> None:
    guest = ready()
    verdict, fault = fetch(guest)
    assert (verdict, fault.nr_linked, fault.goal_level) == (FIXED, 3, 1)
    for level in (4, 3, 2, 1):
        sp = table(guest, level=level)
        assert (sp.gfn, sp.role) == (guest.tables.entry_gpa(VA, level) >> 12, BASE | level | ACCESS_ALL)
    assert guest.world.walk(guest.vcpu, VA)[-1].spte & (P | W | U | A) == P | W | U | A
    guest.audit()
    # The second finds all of it.
    verdict, fault = fetch(guest, code=0)
    assert fault.nr_linked == 0


def test_rights_of_the_guests_upper_entries_are_in_the_roles_below() -> None:
    guest = Guest()
    guest.tables.map(VA, DATA, flags=RW | AD)
    guest.tables.clear_bits(VA, W, 3)
    guest.tables.set_bits(VA, NX, 2)
    assert guest.read(VA) == 0xD000
    access = [table(guest, level=level).role >> 8 & 7 for level in (4, 3, 2, 1)]
    # The entry of level 3 rules pages of level 2 and below; that of level 2 rules level 1.
    assert access == [7, 7, 5, 4]


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_a_guest_entry_that_changed_since_the_walk_makes_the_guest_try_again(level: int) -> None:
    guest = ready()
    at = guest.tables.entry_gpa(VA, level)
    old = int.from_bytes(guest.world.peek(at), "little")
    verdict, _ = fetch(guest, between=lambda: guest.world.poke(at, old ^ 0x200))
    assert verdict == RETRY
    # What was made before the change was seen is there, but nothing maps the page.
    assert guest.world.walk(guest.vcpu, VA)[-1].spte == EMPTY
    assert len(guest.world.walk(guest.vcpu, VA)) == (1 if level > 2 else 5 - level - 1)
    guest.audit()


def test_without_a_root_or_with_the_dummy_root_the_guest_tries_again() -> None:
    guest = ready()
    root = guest.vcpu.mmu.root_hpa
    for hpa, asked in ((2**64 - 1, False), (guest.world.frames.zero_pfn << 12, True)):
        guest.vcpu.requests = 0
        guest.vcpu.mmu.root_hpa = hpa
        assert fetch(guest)[0] == RETRY
        assert has_request(guest.vcpu, FREE_OBSOLETE_ROOTS) == asked
    guest.vcpu.mmu.root_hpa = root


def test_a_large_guest_page_is_split_by_direct_pages_with_its_rights() -> None:
    guest = ready()
    guest.tables.map(SIZE_1G, LARGE, SIZE_2M, RO | AD)
    verdict, fault = fetch(guest, SIZE_1G + 0x3000)
    assert verdict == FIXED
    sp = table(guest, SIZE_1G)
    assert (sp.gfn, sp.role) == (LARGE >> 12, BASE | 1 | DIRECT | 5 << 8)
    assert guest.world.walk(guest.vcpu, SIZE_1G + 0x3000)[-1].spte & W == 0
    assert fault.max_level == 2


def test_a_write_to_a_table_that_its_own_walk_used_is_noted() -> None:
    guest = ready()
    for gva, level, expected in ((VA + 0x5000, 1, True), (VA + 0x6000, 2, True), (VA + 0x7000, 4, False)):
        guest.tables.map(gva, guest.tables.entry_gpa(VA, level) & ~0xFFF, flags=RW | AD)
        _, fault = fetch(guest, gva, 2)
        assert fault.write_fault_to_shadow_pgtable == expected, level
        _, fault = fetch(guest, gva, 0)
        assert not fault.write_fault_to_shadow_pgtable


def test_flood_counts_on_the_way_are_cleared() -> None:
    guest = mapped()
    pages = [table(guest, level=level) for level in (1, 2, 3, 4)]
    for sp in pages:
        sp.write_flooding_count = 2
    fetch(guest)
    assert [sp.write_flooding_count for sp in pages] == [0] * 4


def test_a_table_with_unsync_children_is_synced_before_it_is_linked_again() -> None:
    guest = mapped()
    guest.edit.store(guest.tables.entry_gpa(VA, 1), (DATA + 0x1000) | RW | AD, 8)
    assert table(guest).unsync
    # Another way to the same directory.
    upper = raw_table(guest, {VA >> 30 & 511: guest.tables.entry(VA, 3)})
    guest.world.poke(guest.tables.root + 8 * 100, upper | RW | A)
    assert guest.read(100 << 39 | VA) == 0xD001
    assert not table(guest).unsync
    guest.audit()


# Neighbours.


def group(guest: Guest) -> list[int]:
    at = guest.world.walk(guest.vcpu, VA)[-1].hpa & ~63
    return [guest.world.memory.read_once(at + 8 * i) for i in range(8)]


def neighbours(entries: dict[int, int]) -> list[int]:
    """The group of VA after a read of VA itself, with these guest entries around it; which are mapped."""
    guest = Guest()
    guest.tables.map(VA, DATA, flags=RW | AD)
    for i in range(8):
        guest.world.poke(DATA + 0x1000 * i, i)
        if i:
            guest.tables.map(VA + 0x1000 * i, DATA + 0x1000 * i, flags=entries.get(i, RW | AD))
    assert guest.read(VA) == 0
    guest.audit()
    return [i for i, spte in enumerate(group(guest)) if spte & SHADOW]


@pytest.mark.parametrize(
    ("entries", "mapped_entries"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({3: 0}, [0, 1, 2]),
        ({3: RW | D}, [0, 1, 2]),
        ({1: RW}, [0]),
        ({5: RO | A}, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_neighbours_are_mapped_up_to_the_first_that_cannot_be(
    entries: dict[int, int], mapped_entries: list[int]
) -> None:
    assert neighbours(entries) == mapped_entries


def test_neighbours_have_their_own_rights_and_no_a() -> None:
    guest = Guest()
    for i, flags in enumerate((RW | AD, RW | A, RO | AD, P | W | AD)):
        guest.world.poke(DATA + 0x1000 * i, i)
        guest.tables.map(VA + 0x1000 * i, DATA + 0x1000 * i, flags=flags)
    assert guest.read(VA) == 0
    assert [spte & (W | U | A) for spte in group(guest)[:4]] == [W | U | A, U, U, W]


def test_a_neighbour_that_is_a_mirrored_table_is_mapped_read_only() -> None:
    guest = Guest()
    guest.tables.map(VA, DATA, flags=RW | AD)
    guest.tables.map(VA + 0x1000, guest.tables.entry_gpa(VA, 1) & ~0xFFF, flags=RW | AD)
    assert guest.read(VA) == 0xD000
    assert group(guest)[1] & (SHADOW | W) == SHADOW
    assert not table(guest).unsync


def test_pages_of_a_2_level_guest_cover_half_a_table_each() -> None:
    guest = Guest("2-level")
    gvas = (0x40_0000, 0x60_0000)
    for gva in gvas:
        guest.tables.map(gva, DATA)
        assert guest.read(gva) == 0xD000
    gfn = guest.tables.entry_gpa(gvas[0], 1) >> 12
    assert sorted(sp.role >> 5 & 3 for sp in pages_of(guest.world, gfn, 1)) == [0, 1]
