# SPDX-License-Identifier: GPL-2.0-only
"""Roots: what each kind is made of, how the last three are kept, and which must go.

The previous roots are seen by exchanging each with the current one and back.
"""

from __future__ import annotations

import errno

import pytest

from kvm.mmu.machines import (
    DATA,
    DIRECT,
    HOLE,
    INVALID,
    NONE,
    TABLES,
    VA,
    Guest,
    has_request,
    held,
    page_of,
    pages_of,
)
from kvmmu import KvmBug
from kvmmu.kvm.mmu import roots, zap
from kvmmu.kvm.mmu.page import ShadowPage
from kvmmu.kvm.vcpu import Vcpu

LOAD_MMU_PGD, MMU_SYNC, TLB_FLUSH_CURRENT, FREE_OBSOLETE_ROOTS = 13, 11, 34, 39


class Tables:
    """A guest with six root tables that all map VA; ``load()`` makes the guest use one."""

    def __init__(self, *settings: str, npt: bool = False) -> None:
        self.guest = Guest("4-level", *settings, npt=npt)
        self.guest.tables.map(VA, DATA)
        self.vm, self.vcpu = self.guest.world.vm, self.guest.vcpu
        self.cr3s = [self.guest.tables.root, *[self.guest.second_root() for _ in range(5)]]

    def load(self, *numbers: int) -> None:
        for number in numbers:
            assert self.guest.world.mov_cr3(self.vcpu, self.cr3s[number])
            assert self.guest.read(VA) == 0xD000

    def page(self, number: int) -> ShadowPage:
        return page_of(self.guest.world, self.cr3s[number] >> 12, 4)

    def current(self) -> int | None:
        return self._number(self.vcpu.mmu.root_hpa)

    def previous(self) -> list[int | None]:
        """Which of the roots the previous ones are, most recent first; None: none."""
        return [self._number(hpa) for hpa, _ in previous(self.vcpu)]

    def _number(self, hpa: int) -> int | None:
        if hpa == NONE:
            return None
        sp = self.vm.frames.owner(hpa >> 12)
        return self.cr3s.index(sp.gfn << 12)

    def counts(self) -> list[int]:
        """Users of each root that has a page."""
        return [
            pages_of(self.guest.world, cr3 >> 12, 4)[0].root_count if pages_of(self.guest.world, cr3 >> 12, 4) else 0
            for cr3 in self.cr3s
        ]


def previous(vcpu: Vcpu) -> list[tuple[int, int]]:
    """(root, cr3) of the previous roots."""
    found = []
    for i in range(3):
        roots.swap_prev(vcpu.mmu, i)
        found.append((vcpu.mmu.root_hpa, 0 if vcpu.mmu.root_hpa == NONE else vcpu.mmu.root_pgd))
        roots.swap_prev(vcpu.mmu, i)
    return found


def fast_zap(guest: Guest) -> None:
    vm = guest.world.vm
    vm.slots_lock.lock()
    zap.zap_all_fast(vm)
    vm.slots_lock.unlock()


# The cache of three.


@pytest.mark.parametrize(
    ("visited", "current", "kept"),
    [
        ([0], 0, [None, None, None]),
        ([0, 1], 1, [0, None, None]),
        ([0, 1, 2, 3], 3, [2, 1, 0]),
        ([0, 1, 2, 3, 4], 4, [3, 2, 1]),
        ([0, 1, 2, 3, 2], 2, [3, 1, 0]),
        ([0, 1, 2, 3, 1], 1, [3, 2, 0]),
        ([0, 1, 2, 3, 0], 0, [3, 2, 1]),
        ([0, 1, 2, 3, 0, 4], 4, [0, 3, 2]),
        ([0, 1, 0, 1], 1, [0, None, None]),
    ],
)
def test_roots_are_kept_most_recent_first(visited: list[int], current: int, kept: list[int | None]) -> None:
    tables = Tables()
    tables.load(*visited)
    assert (tables.current(), tables.previous()) == (current, kept)
    users = {current, *kept}
    assert tables.counts() == [int(number in users) for number in range(6)]
    assert [pgd for _, pgd in previous(tables.vcpu)] == [
        0 if number is None else tables.cr3s[number] for number in kept
    ]
    tables.guest.audit()


def test_a_root_that_fell_out_keeps_its_page_for_its_next_use() -> None:
    tables = Tables()
    tables.load(0)
    page = tables.page(0)
    tables.load(1, 2, 3, 4)
    assert (page.root_count, page.role & INVALID) == (0, 0)
    tables.load(0)
    assert tables.page(0) is page
    assert page.root_count == 1


@pytest.mark.parametrize(
    ("wanted", "found", "kept"),
    [(2, True, [1, 0, None]), (1, True, [2, 0, None]), (0, True, [2, 1, None]), (3, False, [2, 1, 0])],
)
def test_without_a_current_root_the_gap_is_closed(wanted: int, found: bool, kept: list[int | None]) -> None:
    tables = Tables()
    tables.load(0, 1, 2, 3)
    roots.free_roots(tables.vm, tables.vcpu.mmu, 1)
    assert (tables.current(), tables.previous()) == (None, [2, 1, 0])
    assert roots.find_cached_root(tables.vm, tables.vcpu.mmu, tables.cr3s[wanted]) == found
    assert (tables.current(), tables.previous()) == (wanted if found else None, kept)


def test_a_miss_frees_the_root_that_was_least_recently_used() -> None:
    tables = Tables()
    tables.load(0, 1, 2, 3)
    assert not roots.find_cached_root(tables.vm, tables.vcpu.mmu, tables.cr3s[5])
    assert (tables.current(), tables.previous()) == (None, [3, 2, 1])
    assert tables.counts() == [0, 1, 1, 1, 0, 0]


def test_swapping_twice_is_nothing() -> None:
    tables = Tables()
    tables.load(0, 1, 2)
    mmu = tables.vcpu.mmu
    roots.swap_prev(mmu, 1)
    assert (tables.current(), mmu.root_pgd) == (0, tables.cr3s[0])
    assert tables.previous() == [1, 2, None]
    roots.swap_prev(mmu, 1)
    assert (tables.current(), mmu.root_pgd, tables.previous()) == (2, tables.cr3s[2], [1, 0, None])


def test_a_root_serves_one_cr3_in_one_mode() -> None:
    tables = Tables()
    tables.load(0, 1)
    vm, mmu = tables.vm, tables.vcpu.mmu
    assert roots.is_usable(vm, mmu, tables.cr3s[1])
    assert not roots.is_usable(vm, mmu, tables.cr3s[0])
    assert not roots.is_usable(vm, mmu, tables.cr3s[1] | 5)
    for flip in (1 << 13, 1 << 12, 1 << 24, 1 << 4):
        mmu.root_role ^= flip
        assert not roots.is_usable(vm, mmu, tables.cr3s[1])
        mmu.root_role ^= flip
    tables.page(1).role ^= 1 << 13
    assert not roots.is_usable(vm, mmu, tables.cr3s[1])


def test_a_direct_root_serves_every_cr3() -> None:
    tables = Tables(npt=True)
    tables.load(0)
    root = tables.vcpu.mmu.root_hpa
    tables.load(1, 2, 3, 4)
    assert (tables.vcpu.mmu.root_hpa, [hpa for hpa, _ in previous(tables.vcpu)]) == (root, [NONE] * 3)
    tables.vcpu.requests = 0
    roots.new_pgd(tables.vcpu, tables.cr3s[5])
    assert (tables.vcpu.mmu.root_hpa, has_request(tables.vcpu, LOAD_MMU_PGD)) == (root, True)


# Another CR3.


def test_a_reused_root_is_loaded_before_the_next_entry() -> None:
    tables = Tables()
    tables.load(0, 1)
    vcpu = tables.vcpu
    vcpu.requests, vcpu.mmio_gva = 0, 0x1234000
    tables.page(0).write_flooding_count = 2
    roots.new_pgd(vcpu, tables.cr3s[0])
    asked = [has_request(vcpu, number) for number in (LOAD_MMU_PGD, MMU_SYNC, TLB_FLUSH_CURRENT)]
    assert asked == [True, False, False]
    assert (vcpu.mmio_gva, tables.page(0).write_flooding_count) == (0, 0)


def test_a_reused_root_is_synced_and_flushed_if_the_parameter_says_so() -> None:
    tables = Tables("flush_on_reuse=1")
    tables.load(0, 1)
    tables.vcpu.requests = 0
    roots.new_pgd(tables.vcpu, tables.cr3s[0])
    asked = [has_request(tables.vcpu, number) for number in (LOAD_MMU_PGD, MMU_SYNC, TLB_FLUSH_CURRENT)]
    assert asked == [True, True, True]


def test_a_cr3_without_a_root_asks_for_nothing_and_has_none() -> None:
    tables = Tables()
    tables.load(0, 1)
    tables.vcpu.requests = 0
    tables.vcpu.mmio_gva = 0x1234000
    roots.new_pgd(tables.vcpu, tables.cr3s[4])
    assert (tables.vcpu.requests, tables.current(), tables.vcpu.mmio_gva) == (0, None, 0x1234000)


def test_a_root_of_another_pcid_is_another_root_of_the_same_page() -> None:
    """Cached by the whole CR3, PCID and all; the page is shared."""
    tables = Tables()
    guest, vcpu = tables.guest, tables.vcpu
    assert guest.world.mov_cr4(vcpu, vcpu.cr4 | 1 << 17)
    for pcid in (1, 2):
        assert guest.world.mov_cr3(vcpu, tables.cr3s[0] | pcid)
        assert guest.read(VA) == 0xD000
    page = tables.page(0)
    assert page.root_count == 2
    assert (vcpu.mmu.root_hpa, previous(vcpu)[0]) == (page.spt, (page.spt, tables.cr3s[0] | 1))
    misses = guest.world.counters()["mmu_cache_miss"]
    assert guest.world.mov_cr3(vcpu, tables.cr3s[0] | 1 | 1 << 63)
    assert guest.read(VA) == 0xD000
    assert (page.root_count, guest.world.counters()["mmu_cache_miss"]) == (2, misses)
    assert previous(vcpu)[0][1] & 0xFFF == 2


def test_a_flushed_pcid_loses_its_previous_roots_and_no_other() -> None:
    """They may hide unsync pages, and nobody will sync them."""
    tables = Tables()
    guest, vcpu = tables.guest, tables.vcpu
    assert guest.world.mov_cr4(vcpu, vcpu.cr4 | 1 << 17)
    for pcid in (1, 2, 3):
        assert guest.world.mov_cr3(vcpu, tables.cr3s[pcid] | pcid)
        assert guest.read(VA) == 0xD000
    assert tables.previous() == [2, 1, None]
    assert guest.world.invpcid(vcpu, 1, 1)
    assert tables.previous() == [2, None, None]
    assert tables.counts() == [0, 0, 1, 1, 0, 0]


# Roots that must go.


def test_the_selected_roots_are_dropped_and_no_other() -> None:
    cases = 0
    for mask in range(16):
        tables = Tables()
        tables.load(0, 1, 2, 3)
        roots.free_roots(tables.vm, tables.vcpu.mmu, mask)
        assert tables.current() == (None if mask & 1 else 3)
        assert tables.previous() == [None if mask >> i + 1 & 1 else 2 - i for i in range(3)]
        assert tables.counts() == [0 if mask >> bit & 1 else 1 for bit in (3, 2, 1, 0)] + [0, 0]
        assert tables.vcpu.mmu.root_pgd == (0 if mask & 1 else tables.cr3s[3])
        tables.guest.audit()
        cases += 1
    assert cases == 16


def test_dropping_nothing_does_not_take_the_lock() -> None:
    tables = Tables()
    tables.load(0)
    with held(tables.vm):
        roots.free_roots(tables.vm, tables.vcpu.mmu, 0)
        roots.free_roots(tables.vm, tables.vcpu.mmu, 14)
    with held(tables.vm), pytest.raises(KvmBug, match="write_lock by actor 0 while it holds"):
        roots.free_roots(tables.vm, tables.vcpu.mmu, 1)


def test_a_zapped_root_goes_with_its_last_user() -> None:
    tables = Tables()
    other = tables.guest.world.create_vcpu()
    tables.guest.world.load_registers(other, tables.guest.tables.registers())
    tables.load(0)
    assert tables.guest.read(VA, vcpu=other) == 0xD000
    page, used = tables.page(0), tables.vm.n_used_mmu_pages
    assert page.root_count == 2
    with held(tables.vm):
        zap.prepare_zap(tables.vm, page, [])
    roots.free_roots(tables.vm, tables.vcpu.mmu, 1)
    assert (page.root_count, tables.vm.n_used_mmu_pages) == (1, used)
    assert tables.vm.frames.nr_refs(page.spt >> 12) == 1
    roots.free_roots(tables.vm, other.mmu, 1)
    assert (page.root_count, tables.vm.n_used_mmu_pages) == (0, used - 1)
    assert tables.vm.frames.nr_refs(page.spt >> 12) == 0


def test_putting_a_root_that_nobody_uses_is_a_bug() -> None:
    tables = Tables()
    tables.load(0, 1)
    root = tables.page(0).spt
    roots.free_roots(tables.vm, tables.vcpu.mmu, 2)
    with held(tables.vm), pytest.raises(KvmBug, match="is not in use"):
        roots.put_root(tables.vm, root, [])
    with held(tables.vm), pytest.raises(KvmBug, match="is not in use"):
        roots.put_root(tables.vm, tables.vm.frames.zero_pfn << 12, [])


def test_obsolete_roots_are_dropped_and_valid_ones_stay() -> None:
    tables = Tables()
    tables.load(0, 1, 2, 3)
    for number in (1, 3):
        with held(tables.vm):
            zap.prepare_zap(tables.vm, tables.page(number), [])
    roots.free_obsolete_roots(tables.vcpu)
    assert (tables.current(), tables.previous()) == (None, [2, None, 0])
    tables.guest.audit()


def test_roots_of_an_older_generation_are_obsolete() -> None:
    tables = Tables()
    tables.load(0, 1, 2, 3)
    fast_zap(tables.guest)
    roots.free_obsolete_roots(tables.vcpu)
    assert (tables.current(), tables.previous()) == (None, [None] * 3)
    assert tables.vm.n_used_mmu_pages == 0


def test_which_roots_are_obsolete() -> None:
    tables = Tables()
    tables.load(0)
    vm, page = tables.vm, tables.page(0)
    assert not roots.is_obsolete_root(vm, NONE)
    assert not roots.is_obsolete_root(vm, page.spt)
    assert roots.is_obsolete_root(vm, vm.frames.zero_pfn << 12)
    assert roots.is_obsolete_root(vm, tables.vcpu.mmu.pae_root)
    page.mmu_valid_gen ^= 1
    assert roots.is_obsolete_root(vm, page.spt)
    page.mmu_valid_gen ^= 1
    page.role |= INVALID
    assert roots.is_obsolete_root(vm, page.spt)
    page.role ^= INVALID


def test_previous_roots_that_hide_unsync_pages_are_dropped() -> None:
    tables = Tables()
    tables.load(0, 1, 2, 3)
    tables.page(1).unsync_children = 1
    roots.sync_prev_roots(tables.vcpu)
    assert (tables.current(), tables.previous()) == (3, [2, None, 0])
    tables.page(3).unsync_children = 1
    roots.sync_prev_roots(tables.vcpu)
    assert (tables.current(), tables.previous()) == (3, [2, None, 0])


def test_unloading_drops_everything_and_the_mmio_gva() -> None:
    tables = Tables()
    tables.load(0, 1, 2, 3)
    tables.vcpu.mmio_gva = 0x1234000
    roots.unload(tables.vcpu)
    assert (tables.current(), tables.previous(), tables.counts()) == (None, [None] * 3, [0] * 6)
    assert tables.vcpu.mmio_gva == 0


# The kinds of roots.


def test_a_cr3_outside_every_slot_has_the_dummy_root() -> None:
    guest = Guest()
    guest.tables.map(VA, DATA)
    assert guest.world.mov_cr3(guest.vcpu, HOLE)
    used = guest.world.vm.n_used_mmu_pages
    roots.load(guest.vcpu)
    dummy = guest.world.vm.frames.zero_pfn << 12
    assert (guest.vcpu.mmu.root_hpa, guest.world.vm.n_used_mmu_pages) == (dummy, used)
    assert guest.world.memory.read(dummy, 4096) == bytes(4096)
    assert guest.write(VA) == "0x6"
    assert guest.world.memory.read(dummy, 4096) == bytes(4096)
    # It is dropped like any root, and never kept as a previous one.
    assert guest.world.mov_cr3(guest.vcpu, guest.tables.root)
    assert previous(guest.vcpu) == [(NONE, 0)] * 3
    assert guest.read(VA) == 0xD000


def pae_entries(vcpu: Vcpu) -> list[int]:
    return [vcpu.vm.memory.read_once(vcpu.mmu.pae_root + 8 * i) for i in range(4)]


def test_a_2_level_guest_has_four_quarters_of_its_directory() -> None:
    guest = Guest("2-level")
    roots.load(guest.vcpu)
    vcpu = guest.vcpu
    assert vcpu.mmu.root_hpa == vcpu.mmu.pae_root
    pages = [vcpu.vm.frames.owner(entry >> 12) for entry in pae_entries(vcpu)]
    assert [entry & 0xFFF for entry in pae_entries(vcpu)] == [1] * 4
    assert [(sp.gfn, sp.role & 15, sp.role >> 5 & 3, sp.root_count) for sp in pages] == [
        (TABLES >> 12, 2, quadrant, 1) for quadrant in range(4)
    ]
    assert all(sp.role & 1 << 4 for sp in pages)
    roots.free_roots(vcpu.vm, vcpu.mmu, 1)
    assert (pae_entries(vcpu), vcpu.mmu.root_hpa) == ([0] * 4, NONE)
    assert [sp.root_count for sp in pages] == [0] * 4


def test_a_pae_guest_has_a_root_for_each_pdpte_in_a_slot() -> None:
    guest = Guest("pae")
    for gva in (0x40_0000, 0xC040_0000):
        guest.tables.map(gva, DATA)
    # The third PDPTE (of the window) stays; the second points outside every slot.
    guest.world.poke(guest.tables.root + 8, HOLE | 1)
    guest.world.load_registers(guest.vcpu, guest.tables.registers())
    assert [bool(entry) for entry in roots.visible_pdptrs(guest.vcpu)] == [True, False, True, True]
    roots.load(guest.vcpu)
    entries = pae_entries(guest.vcpu)
    assert [entry & 1 for entry in entries] == [1, 0, 1, 1]
    assert entries[1] == 0
    pages = [guest.world.frames.owner(entry >> 12) for entry in entries if entry]
    pdptes = [int.from_bytes(guest.world.peek(guest.tables.root + 8 * i), "little") for i in (0, 2, 3)]
    assert [(sp.gfn, sp.role & 15, sp.role >> 5 & 3) for sp in pages] == [(pdpte >> 12, 2, 0) for pdpte in pdptes]


def test_an_unpaged_guest_has_four_direct_gigabytes() -> None:
    guest = Guest()
    vcpu = guest.world.create_vcpu()
    roots.load(vcpu)
    pages = [vcpu.vm.frames.owner(entry >> 12) for entry in pae_entries(vcpu)]
    assert [(sp.gfn, sp.role & 15, sp.role & DIRECT) for sp in pages] == [(i << 18, 2, DIRECT) for i in range(4)]
    assert (vcpu.mmu.root_hpa, vcpu.mmu.root_pgd) == (vcpu.mmu.pae_root, 0)
    assert guest.world.vm.indirect_shadow_pages == 0


@pytest.mark.parametrize("levels", [4, 5])
def test_a_nested_paging_root_has_the_hosts_levels(levels: int) -> None:
    guest = Guest("4-level", f"host_levels={levels}", "tdp_mmu=off", npt=True)
    roots.load(guest.vcpu)
    root = guest.world.frames.owner(guest.vcpu.mmu.root_hpa >> 12)
    assert (root.gfn, root.role & 15, root.role & DIRECT, root.root_count) == (0, levels, DIRECT, 1)


def test_a_special_root_is_not_kept_as_a_previous_one() -> None:
    guest = Guest("2-level")
    guest.tables.map(0x40_0000, DATA)
    assert guest.read(0x40_0000) == 0xD000
    roots.find_cached_root(guest.world.vm, guest.vcpu.mmu, guest.vcpu.cr3 + 0x1000)
    assert (guest.vcpu.mmu.root_hpa, previous(guest.vcpu)) == (NONE, [(NONE, 0)] * 3)
    assert pae_entries(guest.vcpu) == [0] * 4


def test_loading_makes_the_cpu_use_the_root() -> None:
    tables = Tables()
    roots.load(tables.vcpu)
    assert tables.vcpu.cpu.cr3 & ~0xFFF == tables.vcpu.mmu.root_hpa
    assert tables.vcpu.mmu.root_pgd == tables.cr3s[0]


def test_a_load_without_free_pages_is_enospc_and_without_frames_enomem() -> None:
    tables = Tables()
    zap.change_mmu_pages(tables.vm, 0)
    assert roots.load(tables.vcpu) == -errno.ENOSPC
    assert tables.current() is None
    zap.change_mmu_pages(tables.vm, 100)
    frames = tables.vm.frames
    taken = [frames.alloc() for _ in range(frames.nr_free - 63)]
    assert (frames.nr_free, roots.load(tables.vcpu)) == (63, -errno.ENOMEM)
    frames.put(taken.pop())
    assert (frames.nr_free, roots.load(tables.vcpu)) == (64, 0)
    assert tables.current() == 0
    for pfn in taken:
        frames.put(pfn)


def test_the_first_shadow_root_gives_slots_their_arrays_once() -> None:
    guest = Guest(npt=True)
    vm = guest.world.vm
    guest.world.add_slot(1 << 16 | 3, 0x2000_0000, 0x3000)
    slots = [slot for as_id in (0, 1) for slot in vm.slots_of(as_id).slots]
    assert [slot.write_track_array for slot in slots] == [None, None]
    assert not vm.is_shadow_root_allocated()
    roots.first_shadow_root(vm)
    assert vm.is_shadow_root_allocated()
    assert [len(slot.write_track_array) for slot in slots] == [0x1000, 3]
    assert [len(slot.rmap_array) for slot in slots] == [0x1000 + 8 + 1, 3 + 1 + 1]
    arrays = [slot.write_track_array for slot in slots]
    roots.first_shadow_root(vm)
    assert all(slot.write_track_array is array for slot, array in zip(slots, arrays, strict=True))


def test_a_vcpu_gets_an_empty_pae_root_and_gives_it_back() -> None:
    guest = Guest()
    vcpu = guest.world.create_vcpu()
    pfn = vcpu.mmu.pae_root >> 12
    assert guest.world.memory.read(vcpu.mmu.pae_root, 4096) == bytes(4096)
    roots.load(vcpu)
    roots.destroy_mmu(vcpu)
    assert (vcpu.mmu.pae_root, vcpu.mmu.root_hpa, guest.world.frames.nr_refs(pfn)) == (0, NONE, 0)
    roots.create_mmu(vcpu)


def test_the_roots_access_and_mode_are_those_of_the_mmu() -> None:
    tables = Tables()
    tables.load(0)
    role = tables.page(0).role
    assert role == tables.vcpu.mmu.root_role
    # Level 4, all rights, EFER.NX, CR0.WP.
    assert role == 4 | 7 << 8 | 1 << 12 | 1 << 13
