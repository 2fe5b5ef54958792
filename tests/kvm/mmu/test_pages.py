# SPDX-License-Identifier: GPL-2.0-only
"""Which pages exist: made, found by gfn in the hash, freed; and what each entry of a page stands for."""

from __future__ import annotations

import pytest

from kvm.mmu.machines import ACCESS_ALL, DIRECT, EMPTY, INVALID, NONE, hashed, held
from kvmmu import Params, World
from kvmmu.kvm.mmu import pages
from kvmmu.kvm.mmu.page import ShadowPage
from kvmmu.kvm.vm import Vm

PASSTHROUGH, SMM = 1 << 18, 1 << 24
#: gfns whose products with 2**64 / golden ratio share the top 12 bits with that of 0x1000.
GOLDEN = 0x61C8_8646_80B5_83EB


def bucket(gfn: int) -> int:
    return gfn * GOLDEN % 2**64 // 2**52


@pytest.fixture(name="vm")
def make_vm() -> Vm:
    world = World(Params(npt=False), nr_frames=4096)
    world.add_slot(0, 0, 1 << 20)
    return world.vm


def make(vm: Vm, gfn: int, role: int = 1 | ACCESS_ALL) -> ShadowPage:
    with held(vm):
        return pages.alloc_page(vm, gfn, role)


def free(vm: Vm, sp: ShadowPage) -> None:
    with held(vm):
        pages.list_del(sp)
        pages.free_page(vm, sp)


def active(vm: Vm) -> list[int]:
    found, sp = [], vm.active_mmu_pages.link_next
    while sp is not None and sp is not vm.active_mmu_pages:
        found.append(sp.gfn)
        sp = sp.link_next
    return found


@pytest.mark.parametrize("gfn", [0, 1, 0x10, 0xFFFFF, 2**40 - 1, 2**52 - 1])
def test_the_bucket_is_the_top_of_the_golden_product(gfn: int) -> None:
    assert pages.hash_bucket(gfn) == bucket(gfn)


def test_neighbouring_gfns_spread_over_the_buckets() -> None:
    assert len({pages.hash_bucket(gfn) for gfn in range(4096)}) > 3500


@pytest.mark.parametrize(
    ("role", "has_array"),
    [
        (1 | ACCESS_ALL, True),
        (3 | ACCESS_ALL, True),
        (4 | ACCESS_ALL, False),
        (5 | ACCESS_ALL, False),
        (1 | DIRECT | ACCESS_ALL, False),
    ],
)
def test_a_new_page_is_empty_hashed_active_and_of_today(vm: Vm, role: int, has_array: bool) -> None:
    vm.mmu_valid_gen = 1
    free_frames = vm.frames.nr_free
    sp = make(vm, 0x123, role)
    assert {vm.memory.read_once(sp.spt + 8 * i) for i in range(512)} == {EMPTY}
    assert (sp.gfn, sp.role, sp.mmu_valid_gen) == (0x123, role, 1)
    assert vm.frames.owner(sp.spt >> 12) is sp
    assert bool(sp.shadowed_translation) == has_array
    assert free_frames - vm.frames.nr_free == 1 + has_array
    assert (hashed(vm), active(vm), vm.n_used_mmu_pages) == ([sp], [0x123], 1)
    assert vm.hash_heads()[bucket(0x123)] is sp


def test_newest_first_in_both_lists(vm: Vm) -> None:
    first = make(vm, 0x1000)
    twin = next(gfn for gfn in range(1, 1 << 20) if gfn != 0x1000 and bucket(gfn) == bucket(0x1000))
    second, third = make(vm, twin), make(vm, 0x1000, 2 | ACCESS_ALL)
    assert active(vm) == [0x1000, twin, 0x1000]
    assert vm.hash_heads()[bucket(0x1000)] is third
    assert pages.bucket_head(vm, 0x1000) is third
    assert (third.hash_next, second.hash_next, first.hash_next) == (second, first, None)
    assert (third.hash_prev, second.hash_prev, first.hash_prev) == (None, third, second)


@pytest.mark.parametrize("victim", range(3))
def test_a_freed_page_leaves_the_hash_wherever_it_is(vm: Vm, victim: int) -> None:
    found = [make(vm, 0x1000, level | ACCESS_ALL) for level in (1, 2, 3)]
    sp = found.pop(victim)
    pfns = [sp.spt >> 12, sp.shadowed_translation >> 12]
    free(vm, sp)
    chain = []
    other = vm.hash_heads()[bucket(0x1000)]
    assert other is not None
    assert other.hash_prev is None
    while other is not None:
        chain.append(other)
        assert other.hash_next is None or other.hash_next.hash_prev is other
        other = other.hash_next
    assert chain == list(reversed(found))
    assert [vm.frames.nr_refs(pfn) for pfn in pfns] == [0, 0]
    assert vm.frames.owner(pfns[0]) is None
    assert (sp.hash_next, sp.hash_prev, sp.link_next, sp.link_prev) == (None, None, None, None)


def test_the_last_page_leaves_an_empty_bucket_and_list(vm: Vm) -> None:
    sp = make(vm, 7)
    free(vm, sp)
    assert (vm.hash_heads()[bucket(7)], active(vm)) == (None, [])
    assert vm.active_mmu_pages.link_prev is vm.active_mmu_pages


def test_only_valid_mirrors_of_the_gfn_are_found(vm: Vm) -> None:
    old = make(vm, 0x30)
    twin = next(gfn for gfn in range(1, 1 << 20) if gfn != 0x30 and bucket(gfn) == bucket(0x30))
    make(vm, twin)
    make(vm, 0x30, 1 | DIRECT | ACCESS_ALL)
    make(vm, 0x30, 5 | PASSTHROUGH | ACCESS_ALL)
    make(vm, 0x30, 1 | INVALID | ACCESS_ALL)
    stale = make(vm, 0x30, 2 | ACCESS_ALL)
    stale.mmu_valid_gen = 1
    new = make(vm, 0x30, 3 | ACCESS_ALL)
    assert pages.first_gfn_sp(vm, 0x30) is new
    assert pages.next_gfn_sp(vm, new.hash_next, 0x30) is old
    assert pages.next_gfn_sp(vm, old.hash_next, 0x30) is None
    assert pages.first_gfn_sp(vm, 0x31) is None


@pytest.mark.parametrize(
    ("role", "generation", "obsolete"), [(0, 0, False), (INVALID, 0, True), (0, 1, True), (INVALID, 1, True)]
)
def test_a_page_is_obsolete_when_zapped_or_of_another_generation(
    vm: Vm, role: int, generation: int, obsolete: bool
) -> None:
    sp = make(vm, 1)
    sp.role |= role
    sp.mmu_valid_gen = generation
    assert pages.is_obsolete(vm, sp) == obsolete


@pytest.mark.parametrize(("role", "expected"), [(0, True), (DIRECT, False), (PASSTHROUGH, False)])
def test_a_page_mirrors_a_guest_table_unless_direct_or_passed_through(vm: Vm, role: int, expected: bool) -> None:
    assert pages.has_gptes(make(vm, 1, 1 | role | ACCESS_ALL)) == expected


@pytest.mark.parametrize(("level", "step"), [(1, 1), (2, 512), (3, 512 * 512), (4, 512**3), (5, 512**4)])
def test_the_entries_of_a_direct_page_follow_each_other(vm: Vm, level: int, step: int) -> None:
    sp = make(vm, 0, level | DIRECT | 5 << 8)
    assert [pages.sp_gfn(vm, sp, index) for index in (0, 1, 511)] == [0, step, 511 * step]
    assert pages.sp_access(vm, sp, 9) == 5


def test_the_entries_of_a_mirror_are_what_was_noted(vm: Vm) -> None:
    sp = make(vm, 0x30)
    with held(vm):
        pages.set_translation(vm, sp, 9, 0xF_1234_5678, 3)
        pages.set_translation(vm, sp, 10, 0x55, 7)
    assert vm.memory.read_once(sp.shadowed_translation + 72) == 0xF_1234_5678 << 12 | 3
    assert (pages.sp_gfn(vm, sp, 9), pages.sp_access(vm, sp, 9)) == (0xF_1234_5678, 3)
    assert (pages.sp_gfn(vm, sp, 10), pages.sp_access(vm, sp, 10)) == (0x55, 7)


def test_a_passthrough_page_maps_its_own_gfn_at_every_entry(vm: Vm) -> None:
    sp = make(vm, 0x77, 5 | PASSTHROUGH | ACCESS_ALL)
    assert [pages.sp_gfn(vm, sp, index) for index in (0, 3, 511)] == [0x77] * 3


def test_nothing_is_noted_for_a_page_without_the_array(vm: Vm) -> None:
    sp = make(vm, 0x200, 1 | DIRECT | ACCESS_ALL)
    with held(vm):
        pages.set_translation(vm, sp, 3, 0x999, 1)
    assert (pages.sp_gfn(vm, sp, 3), pages.sp_access(vm, sp, 3)) == (0x203, 7)


def test_from_an_spte_to_its_page_and_index(vm: Vm) -> None:
    sp = make(vm, 1)
    for index in (0, 1, 511):
        assert pages.sptep_to_sp(vm, sp.spt + 8 * index) is sp
        assert pages.sptep_index(sp.spt + 8 * index) == index


def test_from_a_root_to_its_page(vm: Vm) -> None:
    sp = make(vm, 1, 4 | ACCESS_ALL)
    assert pages.root_to_sp(vm, sp.spt) is sp
    assert pages.root_to_sp(vm, NONE) is None
    assert pages.root_to_sp(vm, vm.frames.zero_pfn << 12) is None


def test_a_page_is_accounted_in_its_own_address_space() -> None:
    world = World(Params(npt=False), nr_frames=4096)
    world.add_slot(0, 0, 0x10000)
    world.add_slot(1 << 16, 0, 0x10000)
    normal, smm = make(world.vm, 1), make(world.vm, 1, 1 | SMM | ACCESS_ALL)
    slots = [pages.slot_of_sp(world.vm, sp, 1) for sp in (normal, smm)]
    assert [slot.as_id for slot in slots if slot] == [0, 1]
    assert pages.slot_of_sp(world.vm, normal, 0x10) is None
