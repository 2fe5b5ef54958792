# SPDX-License-Identifier: GPL-2.0-only
"""How shadow pages go: unlinked first, then flushed, then freed; the oldest first; roots only when nobody uses them."""

from __future__ import annotations

import errno

import pytest

from kvm.mmu.machines import (
    AD,
    DATA,
    EMPTY,
    HOLE,
    INVALID,
    LARGE,
    RW,
    TABLES,
    VA,
    VB,
    Guest,
    flushes,
    has_request,
    hashed,
    held,
    page_of,
    pages_of,
    raw_table,
)
from kvmmu import KvmBug, World
from kvmmu.guest.tables import SIZE_1G, SIZE_2M
from kvmmu.kvm.mmu import zap
from kvmmu.kvm.mmu.page import ShadowPage
from kvmmu.kvm.mmu.pages import alloc_page
from kvmmu.kvm.requests import flush_remote_tlbs

FREE_OBSOLETE_ROOTS = 39
ROOT = TABLES >> 12


def mapped() -> Guest:
    """A guest that has read VA and VB, which lie in two tables of the same directory."""
    guest = Guest()
    guest.tables.map(VA, DATA)
    guest.tables.map(VB, DATA + 0x1000)
    assert (guest.read(VA), guest.read(VB)) == (0xD000, 0xD001)
    return guest


def chain(guest: Guest, gva: int = VA) -> list[ShadowPage]:
    """The shadow pages on the way to ``gva``, root first."""
    owner = guest.world.frames.owner
    return [owner(element.hpa >> 12) for element in guest.world.walk(guest.vcpu, gva)]


def word(guest: Guest, gva: int) -> int:
    return guest.world.walk(guest.vcpu, gva)[-1].spte


def prepare(guest: Guest, sp: ShadowPage) -> tuple[int, list[ShadowPage]]:
    invalid_list: list[ShadowPage] = []
    with held(guest.world.vm):
        return zap.prepare_zap(guest.world.vm, sp, invalid_list), invalid_list


def commit(guest: Guest, invalid_list: list[ShadowPage]) -> None:
    with held(guest.world.vm):
        zap.commit_zap(guest.world.vm, invalid_list)


# One entry.


def test_a_zapped_leaf_leaves_its_rmap() -> None:
    guest = mapped()
    leaf = guest.world.walk(guest.vcpu, VA)[-1]
    slot = guest.vcpu.gfn_to_memslot(DATA >> 12)
    assert slot is not None
    assert slot.rmap_word(DATA >> 12, 1)
    with held(guest.world.vm):
        zap.zap_pte(guest.world.vm, chain(guest)[-1], leaf.hpa)
    assert (word(guest, VA), slot.rmap_word(DATA >> 12, 1)) == (EMPTY, 0)
    with pytest.raises(KvmBug, match=r"I1: vCPU 0, gva .* no flush is due"):
        guest.audit()
    flush_remote_tlbs(guest.world.vm)
    guest.audit()


def test_a_zapped_link_leaves_its_child_active_and_reusable() -> None:
    guest = mapped()
    directory, table = chain(guest)[-2:]
    link = guest.world.walk(guest.vcpu, VA)[-2]
    assert table.parent_ptes == link.hpa
    with held(guest.world.vm):
        zap.zap_pte(guest.world.vm, directory, link.hpa)
    assert (word(guest, VA), table.parent_ptes) == (EMPTY, 0)
    assert table in guest.world.shadow_pages()
    guest.audit()
    misses = guest.world.counters()["mmu_cache_miss"]
    assert guest.world.mov_cr3(guest.vcpu, guest.vcpu.cr3)
    assert guest.read(VA) == 0xD000
    assert (chain(guest)[-1], guest.world.counters()["mmu_cache_miss"]) == (table, misses)


def test_a_zapped_mmio_entry_is_empty_and_was_in_no_rmap() -> None:
    guest = mapped()
    guest.tables.map(VA + 0x40000, HOLE)
    guest.read(VA + 0x40000)
    assert word(guest, VA + 0x40000) not in (EMPTY, 0)
    leaf = guest.world.walk(guest.vcpu, VA + 0x40000)[-1]
    before = guest.world.counters()["pages_4k"]
    with held(guest.world.vm):
        zap.zap_pte(guest.world.vm, chain(guest)[-1], leaf.hpa)
    assert (word(guest, VA + 0x40000), guest.world.counters()["pages_4k"]) == (EMPTY, before)


def test_the_parents_of_a_page_are_those_that_were_added_and_not_dropped() -> None:
    guest = mapped()
    vm, table = guest.world.vm, chain(guest)[-1]
    parents = [chain(guest)[0].spt + 8 * (400 + number) for number in range(3)]
    first = table.parent_ptes
    with held(vm):
        for sptep in parents:
            zap.add_parent_pte(vm, table, sptep)
        for sptep in parents:
            vm.memory.write_once(sptep, 1)
            zap.drop_parent_pte(vm, table, sptep)
    assert [vm.memory.read_once(sptep) for sptep in parents] == [EMPTY] * 3
    desc = table.parent_ptes & ~7
    assert (vm.memory.read_once(desc + 8), vm.memory.read_once(desc + 16)) == (1, first)


# Prepare, then commit.


def test_prepare_unlinks_and_commit_frees() -> None:
    guest = mapped()
    vm, table = guest.world.vm, chain(guest)[-1]
    used, zapped, flushed = vm.n_used_mmu_pages, vm.stat.mmu_shadow_zapped, flushes(vm)
    pfns = [table.spt >> 12, table.shadowed_translation >> 12]
    leaves = vm.stat.pages_4k
    nr, invalid_list = prepare(guest, table)
    assert (nr, invalid_list) == (1, [table])
    assert table.role & INVALID
    assert table not in guest.world.shadow_pages()
    assert (vm.n_used_mmu_pages, vm.stat.mmu_shadow_zapped) == (used - 1, zapped + 1)
    assert word(guest, VA) == EMPTY
    assert vm.stat.pages_4k < leaves
    # A CPU may still walk it: nothing is freed, and nothing is flushed yet.
    assert [vm.frames.nr_refs(pfn) for pfn in pfns] == [1, 1]
    assert table in hashed(vm)
    assert flushes(vm) == flushed
    commit(guest, invalid_list)
    assert invalid_list == []
    assert [vm.frames.nr_refs(pfn) for pfn in pfns] == [0, 0]
    assert table not in hashed(vm)
    assert flushes(vm) == flushed + 1
    guest.audit()
    assert guest.read(VA) == 0xD000


def test_commit_flushes_before_it_frees_anything() -> None:
    guest = mapped()
    vm = guest.world.vm
    table, other = chain(guest)[-1], chain(guest, VB)[-1]
    _, invalid_list = prepare(guest, table)
    flushed = flushes(vm)
    with pytest.raises(KvmBug, match="freeing a page in use"):
        commit(guest, [*invalid_list, other])
    assert flushes(vm) == flushed + 1
    assert vm.frames.nr_refs(table.spt >> 12) == 1


def test_a_commit_of_nothing_flushes_nothing() -> None:
    guest = mapped()
    flushed = flushes(guest.world.vm)
    commit(guest, [])
    assert flushes(guest.world.vm) == flushed


@pytest.mark.parametrize(("has_pages", "flush", "nr"), [(0, False, 0), (0, True, 1), (1, False, 1), (1, True, 1)])
def test_one_flush_serves_both_needs(has_pages: int, flush: bool, nr: int) -> None:
    guest = mapped()
    invalid_list = prepare(guest, chain(guest)[-1])[1] if has_pages else []
    flushed = flushes(guest.world.vm)
    with held(guest.world.vm):
        zap.flush_or_zap(guest.world.vm, invalid_list, flush)
    assert (flushes(guest.world.vm) - flushed, invalid_list) == (nr, [])


def test_a_zapped_directory_only_unlinks_its_children() -> None:
    guest = mapped()
    _, upper, directory, table = chain(guest)
    nr, invalid_list = prepare(guest, directory)
    assert (nr, invalid_list) == (1, [directory])
    assert table.parent_ptes == 0
    assert table in guest.world.shadow_pages()
    assert guest.world.memory.read_once(directory.parent_ptes or upper.spt) == EMPTY
    assert {guest.world.memory.read_once(directory.spt + 8 * i) for i in range(512)} == {EMPTY}
    commit(guest, invalid_list)
    guest.audit()


def test_every_parent_is_unlinked() -> None:
    guest = mapped()
    shared = guest.tables.entry(VA, 2)
    for gva in (VA + SIZE_2M * 4, VA + SIZE_2M * 5):
        guest.tables.map(gva, DATA)
        guest.tables.set_entry(gva, 2, shared)
        guest.reload_cr3()
        assert guest.read(gva) == 0xD000
    gvas = (VA, VA + SIZE_2M * 4, VA + SIZE_2M * 5)
    assert len({chain(guest, gva)[-1].spt for gva in gvas}) == 1
    _, invalid_list = prepare(guest, chain(guest)[-1])
    assert [(len(chain(guest, gva)), word(guest, gva)) for gva in gvas] == [(3, EMPTY)] * 3
    commit(guest, invalid_list)
    guest.audit()


def test_a_zapped_mirror_gives_its_guest_table_back() -> None:
    guest = mapped()
    vm, (_, _, directory, table) = guest.world.vm, chain(guest)
    slot = vm.gfn_to_memslot(directory.gfn, 0)
    assert slot is not None
    indirect, large = vm.indirect_shadow_pages, slot.nr_disallowed(directory.gfn, 2)
    assert slot.write_track_array is not None
    assert (slot.write_track_array[directory.gfn], slot.write_track_array[table.gfn]) == (1, 0)
    for sp in (table, directory):
        commit(guest, prepare(guest, sp)[1])
    assert vm.indirect_shadow_pages == indirect - 2
    assert slot.write_track_array[directory.gfn] == 0
    assert slot.nr_disallowed(directory.gfn, 2) == large - 2


def test_prepare_needs_the_lock() -> None:
    guest = mapped()
    with pytest.raises(KvmBug, match="mmu_lock"):
        zap.prepare_zap(guest.world.vm, chain(guest)[-1], [])


# Roots.


def test_a_root_in_use_turns_invalid_and_stays_until_its_user_lets_go() -> None:
    guest = mapped()
    vm, root = guest.world.vm, chain(guest)[0]
    used = vm.n_used_mmu_pages
    assert root.root_count == 1
    nr, invalid_list = prepare(guest, root)
    assert (nr, invalid_list) == (0, [])
    assert root.role & INVALID
    assert root not in guest.world.shadow_pages()
    assert root in hashed(vm)
    assert (vm.n_used_mmu_pages, vm.frames.nr_refs(root.spt >> 12)) == (used, 1)
    assert {vm.memory.read_once(root.spt + 8 * i) for i in range(512)} == {EMPTY}
    assert has_request(guest.vcpu, FREE_OBSOLETE_ROOTS)
    guest.audit()
    assert guest.read(VA) == 0xD000
    assert chain(guest)[0] is not root
    assert root not in hashed(vm)
    guest.audit()


def test_an_obsolete_root_in_use_is_not_announced_again() -> None:
    guest = mapped()
    root = chain(guest)[0]
    prepare(guest, root)
    guest.vcpu.requests = 0
    nr, invalid_list = prepare(guest, root)
    assert (nr, invalid_list) == (0, [])
    assert not has_request(guest.vcpu, FREE_OBSOLETE_ROOTS)


def test_every_vcpu_is_told_of_a_zapped_root() -> None:
    guest = mapped()
    others = [guest.world.create_vcpu() for _ in range(2)]
    prepare(guest, chain(guest)[0])
    assert [has_request(vcpu, FREE_OBSOLETE_ROOTS) for vcpu in (guest.vcpu, *others)] == [True] * 3


@pytest.mark.parametrize(
    ("root_count", "nr", "unstable"), [(0, 1, False), (0, 2, True), (1, 0, False), (1, 1, True), (2, 3, True)]
)
def test_a_list_is_unstable_when_more_than_the_page_went(root_count: int, nr: int, unstable: bool) -> None:
    sp = ShadowPage(0, 1, 0)
    sp.root_count = root_count
    assert zap.is_unstable(sp, nr) == unstable


# Unsync children.


def unsync(guest: Guest, nr: int) -> list[ShadowPage]:
    """Let ``nr`` page tables of VA's directory go out of sync; their shadow pages."""
    found = []
    for number in range(nr):
        gva = VA + (8 + number) * SIZE_2M
        place = guest.tables.map(gva, DATA)
        assert guest.read(gva) == 0xD000
        guest.edit.store(place + 8, DATA | RW | AD, 8)
        found.append(chain(guest, gva)[-1])
    assert all(sp.unsync for sp in found)
    return found


@pytest.mark.parametrize("nr", [1, 2, 15, 16, 20])
def test_unsync_children_go_with_the_page_that_leads_to_them(nr: int) -> None:
    """More than one walk's worth of them, too."""
    guest = mapped()
    vm = guest.world.vm
    children = unsync(guest, nr)
    _, upper, directory, table = chain(guest)
    assert (directory.unsync_children, vm.stat.mmu_unsync) == (nr, nr)
    got, invalid_list = prepare(guest, directory)
    assert got == nr + 1
    assert {id(sp) for sp in invalid_list} == {id(sp) for sp in (*children, directory)}
    assert vm.stat.mmu_unsync == 0
    assert not any(sp.unsync for sp in children)
    assert table in guest.world.shadow_pages()
    commit(guest, invalid_list)
    assert upper in guest.world.shadow_pages()
    guest.audit()


def test_a_page_in_between_loses_its_bits_and_stays() -> None:
    guest = mapped()
    unsync(guest, 2)
    _, upper, directory, _ = chain(guest)
    assert (upper.unsync_children, directory.unsync_children) == (1, 2)
    got, invalid_list = prepare(guest, upper)
    assert got == 3
    assert directory in guest.world.shadow_pages()
    assert directory.unsync_children == 0
    assert not any(directory.is_unsync_child(index) for index in range(512))
    commit(guest, invalid_list)
    guest.audit()


def test_an_unsync_page_that_is_zapped_is_unsync_no_more() -> None:
    guest = mapped()
    (child,) = unsync(guest, 1)
    nr, invalid_list = prepare(guest, child)
    assert (nr, child.unsync, guest.world.vm.stat.mmu_unsync) == (1, False, 0)
    commit(guest, invalid_list)
    guest.audit()


# The limit.


def filled(nr: int) -> World:
    """A world with ``nr`` shadow pages that nothing links, of gfns 1, 2 ... in order of creation."""
    world = World(Guest().world.params, nr_frames=4096)
    with held(world.vm):
        for gfn in range(1, nr + 1):
            alloc_page(world.vm, gfn, 1 | 1 << 7 | 7 << 8)
    return world


def gfns(world: World) -> list[int]:
    return sorted(sp.gfn for sp in world.shadow_pages())


def test_the_oldest_go_first() -> None:
    world = filled(10)
    with held(world.vm):
        assert zap.zap_oldest(world.vm, 4) == 4
    assert gfns(world) == [5, 6, 7, 8, 9, 10]
    assert (world.vm.stat.mmu_recycled, world.vm.n_used_mmu_pages, flushes(world.vm)) == (4, 6, 1)


def test_roots_in_use_are_spared_however_old() -> None:
    world = filled(10)
    for sp in world.shadow_pages():
        sp.root_count = 1 if sp.gfn in (1, 3) else 0
    with held(world.vm):
        assert zap.zap_oldest(world.vm, 4) == 4
    assert gfns(world) == [1, 3, 7, 8, 9, 10]
    assert not any(sp.role & INVALID for sp in world.shadow_pages())


def test_zapping_more_than_there_is_ends() -> None:
    world = filled(3)
    world.shadow_pages()[0].root_count = 1
    with held(world.vm):
        assert zap.zap_oldest(world.vm, 100) == 2
    assert gfns(world) == [3]


@pytest.mark.parametrize(("limit", "used", "available"), [(10, 3, 7), (10, 10, 0), (8, 10, 0)])
def test_available_pages_are_never_negative(limit: int, used: int, available: int) -> None:
    world = filled(used)
    world.vm.n_max_mmu_pages = limit
    assert zap.available_pages(world.vm) == available


@pytest.mark.parametrize(
    ("available", "left"),
    # Fewer than 5: old ones go until 25 can be made.
    [(6, 34), (5, 35), (4, 15), (1, 15), (0, 15)],
)
def test_pages_are_recycled_below_5_up_to_25(available: int, left: int) -> None:
    world = filled(40 - available)
    world.vm.n_max_mmu_pages = 40
    with held(world.vm):
        assert zap.make_pages_available(world.vm) == 0
    assert world.vm.n_used_mmu_pages == left
    assert world.vm.stat.mmu_recycled == 40 - available - left


@pytest.mark.parametrize(("available", "result"), [(0, -errno.ENOSPC), (1, 0), (4, 0)])
def test_only_no_page_at_all_is_an_error(available: int, result: int) -> None:
    world = filled(10)
    world.vm.n_max_mmu_pages = 10 + available
    for sp in world.shadow_pages():
        sp.root_count = 1
    with held(world.vm):
        assert zap.make_pages_available(world.vm) == result
    assert world.vm.n_used_mmu_pages == 10


def test_a_lower_limit_zaps_down_to_it_and_a_higher_one_nothing() -> None:
    world = filled(10)
    zap.change_mmu_pages(world.vm, 6)
    assert (gfns(world), world.vm.n_max_mmu_pages) == ([5, 6, 7, 8, 9, 10], 6)
    zap.change_mmu_pages(world.vm, 100)
    assert (world.vm.n_used_mmu_pages, world.vm.n_max_mmu_pages) == (6, 100)


def test_the_limit_is_no_lower_than_what_cannot_go() -> None:
    world = filled(10)
    for sp in world.shadow_pages():
        sp.root_count = 1 if sp.gfn <= 4 else 0
    zap.change_mmu_pages(world.vm, 2)
    assert (gfns(world), world.vm.n_max_mmu_pages) == ([1, 2, 3, 4], 4)


# Everything.


def test_the_fast_zap_toggles_the_generation_and_leaves_what_is_made_later() -> None:
    guest = mapped()
    vm = guest.world.vm
    root = chain(guest)[0]
    for generation in (1, 0, 1):
        old = guest.world.shadow_pages()
        vm.slots_lock.lock()
        zap.zap_all_fast(vm)
        vm.slots_lock.unlock()
        assert vm.mmu_valid_gen == generation
        assert guest.world.shadow_pages() == []
        assert hashed(vm) == [root]
        assert root.role & INVALID
        assert vm.n_used_mmu_pages == 1
        assert has_request(guest.vcpu, FREE_OBSOLETE_ROOTS)
        guest.audit()
        assert (guest.read(VA), guest.read(VB)) == (0xD000, 0xD001)
        assert {sp.mmu_valid_gen for sp in guest.world.shadow_pages()} == {generation}
        assert not set(map(id, old)) & set(map(id, guest.world.shadow_pages()))
        root = chain(guest)[0]
        guest.audit()


def test_the_fast_zap_stops_at_the_first_page_of_today() -> None:
    world = filled(6)
    world.vm.mmu_valid_gen = 1
    with held(world.vm):
        for gfn in (7, 8):
            alloc_page(world.vm, gfn, 1 | 1 << 7 | 7 << 8)
        zap.zap_obsolete_pages(world.vm)
    assert gfns(world) == [7, 8]


def test_the_fast_zap_of_many_unsync_pages_starts_again_where_the_list_changed() -> None:
    guest = mapped()
    unsync(guest, 20)
    vm = guest.world.vm
    vm.slots_lock.lock()
    zap.zap_all_fast(vm)
    vm.slots_lock.unlock()
    assert guest.world.shadow_pages() == []
    assert (vm.stat.mmu_unsync, vm.n_used_mmu_pages) == (0, 1)
    guest.audit()


def test_the_fast_zap_needs_slots_lock() -> None:
    with pytest.raises(KvmBug, match="slots_lock"):
        zap.zap_all_fast(mapped().world.vm)


def test_an_invalid_page_on_the_active_list_is_a_bug() -> None:
    world = filled(2)
    world.shadow_pages()[-1].role |= INVALID
    with held(world.vm), pytest.raises(KvmBug, match="invalid page is on the active list"):
        zap.zap_obsolete_pages(world.vm)


def test_the_slow_zap_takes_every_page_and_leaves_roots_in_use_invalid() -> None:
    guest = mapped()
    unsync(guest, 3)
    vm, root = guest.world.vm, chain(guest)[0]
    zap.zap_all(vm)
    assert guest.world.shadow_pages() == []
    assert (hashed(vm), vm.n_used_mmu_pages, vm.stat.mmu_unsync, vm.stat.pages_4k) == ([root], 1, 0, 0)
    guest.audit()


def test_direct_pages_below_a_large_guest_page_go_too() -> None:
    guest = mapped()
    guest.tables.map(SIZE_1G, LARGE, SIZE_2M, RW | AD)
    assert guest.read(SIZE_1G) == 0
    direct = chain(guest, SIZE_1G)[-1]
    assert direct.role & 1 << 7
    indirect = guest.world.vm.indirect_shadow_pages
    commit(guest, prepare(guest, direct)[1])
    assert guest.world.vm.indirect_shadow_pages == indirect
    assert pages_of(guest.world, LARGE >> 12, 1) == []
    guest.audit()


def test_pages_of_another_root_survive() -> None:
    guest = mapped()
    other = raw_table(guest, {0: guest.tables.entry(VA, 4)})
    assert guest.world.mov_cr3(guest.vcpu, other)
    assert guest.read(VA) == 0xD000
    commit(guest, prepare(guest, page_of(guest.world, ROOT, 4))[1])
    assert word(guest, VA) & 1
    guest.audit()
