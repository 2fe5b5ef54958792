# SPDX-License-Identifier: GPL-2.0-only
"""Slots and sets of slots: lookups, indices, large-page rules, error words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmmu.errors import KvmBug
from kvmmu.host.frames import SmallArrays
from kvmmu.kvm import memslots as ms
from kvmmu.kvm.bits import (
    KVM_HVA_ERR_BAD,
    KVM_HVA_ERR_RO_BAD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEMSLOT_INVALID,
    KVM_PFN_ERR_FAULT,
    KVM_PFN_ERR_HWPOISON,
    KVM_PFN_ERR_RO_FAULT,
    KVM_PFN_ERR_SIGPENDING,
    KVM_PFN_NOSLOT,
)
from kvmmu.kvm.memslots import Memslot, Memslots

HVA = 0x7F00_0000_0000


def slot(base_gfn: int, npages: int, number: int = 0, flags: int = 0, hva: int = HVA) -> Memslot:
    return Memslot(number, flags, base_gfn, npages, hva)


def test_the_slot_number_holds_id_and_address_space() -> None:
    made = slot(0x100, 4, number=1 << 16 | 7)
    assert (made.id, made.as_id, made.base_gfn, made.end_gfn, made.npages) == (7, 1, 0x100, 0x104, 4)


@given(st.integers(0, 2**40), st.integers(1, 2**20), st.integers(1, 3), st.data())
def test_index_counts_the_blocks_that_the_slot_touches(base: int, npages: int, level: int, data: st.DataObject) -> None:
    made = slot(base, npages)
    gfn = data.draw(st.integers(base, base + npages - 1))
    size = 512 ** (level - 1)
    assert made.index(gfn, level) == gfn // size - base // size
    assert made.nr_lpages(level) == len(range(base // size, (base + npages - 1) // size + 1))
    assert made.index(base + npages - 1, level) == made.nr_lpages(level) - 1


@given(
    st.sampled_from([0, 512, 1024, 512 * 512, 5, 513, 512 * 512 + 1]),
    st.sampled_from([1, 511, 512, 513, 1024, 512 * 512, 512 * 512 + 7, 2 * 512 * 512]),
    st.sampled_from([0, 5 << 12, 512 << 12, 513 << 12, 512 * 512 << 12]),
)
def test_a_large_page_is_forbidden_where_it_would_stick_out_or_be_shifted(base: int, npages: int, shift: int) -> None:
    made = slot(base, npages, hva=(1 << 40) + shift)
    made.alloc_lpage_info(SmallArrays())
    for level, size in ((2, 512), (3, 512 * 512)):
        congruent = base % size == (((1 << 40) + shift) >> 12) % size
        for block in range(base // size, (base + npages - 1) // size + 1):
            fits = base <= block * size and block * size + size <= base + npages
            gfn = max(block * size, base)
            assert made.nr_disallowed(gfn, level) == (0 if fits and congruent else 1)


def test_a_huge_slot_costs_its_large_page_counts_only() -> None:
    made = slot(0, 2**31 - 1)
    made.alloc_lpage_info(SmallArrays())
    assert len(made.lpage_array) == 2**22 + 2**13
    assert (made.rmap_array, made.write_track_array, made.dirty_array) == (None, None, None)


def test_rmap_words_of_the_levels_do_not_overlap() -> None:
    made = slot(510, 1030)
    assert made.rmap_word(510, 1) == 0
    made.alloc_rmap()
    assert len(made.rmap_array) == 1030 + 4 + 1
    seen = []
    for place in range(len(made.rmap_array)):
        made.rmap_array[place] = 99
        seen += [
            (level, gfn)
            for level in (1, 2, 3)
            for gfn in (510, 511, 512, 1023, 1024, 1539)
            if made.rmap_word(gfn, level) == 99
        ]
        made.rmap_array[place] = 0
    assert sorted(seen) == [(level, gfn) for level in (1, 2, 3) for gfn in (510, 511, 512, 1023, 1024, 1539)]


def test_arrays_of_a_published_slot_are_not_replaced() -> None:
    made = slot(0, 10)
    made.alloc_rmap()
    made.alloc_write_track()
    made.rmap_array[3] = 1
    made.write_track_array[9] = 2
    made.alloc_rmap()
    made.alloc_write_track()
    assert (made.rmap_array[3], made.write_track_array[9], len(made.write_track_array)) == (1, 2, 10)


def test_a_copy_shares_every_array() -> None:
    made = slot(0, 1024, number=3 | 1 << 16, flags=KVM_MEM_LOG_DIRTY_PAGES)
    made.alloc_lpage_info(SmallArrays())
    made.alloc_rmap()
    made.alloc_dirty_bitmap()
    twin = made.copy()
    made.rmap_array[0] = 5
    made.lpage_array[1] = 6
    made.dirty_array[2] = 7
    assert (twin.rmap_word(0, 2), twin.nr_disallowed(512, 2), twin.dirty_array[2]) == (5, 6, 7)
    assert (twin.id, twin.as_id, twin.flags) == (3, 1, KVM_MEM_LOG_DIRTY_PAGES)
    twin.use_dirty_bitmap_of(None)
    assert twin.dirty_array is None
    assert made.dirty_array is not None


@pytest.mark.parametrize(("npages", "words"), [(1, 1), (64, 1), (65, 2)])
def test_the_dirty_bitmap_has_scratch_of_the_same_size(npages: int, words: int) -> None:
    made = slot(0, npages)
    made.alloc_dirty_bitmap()
    assert made.nr_dirty_words() == words
    assert len(made.dirty_array) == 2 * words


def test_hvas_and_their_errors() -> None:
    made = slot(0x100, 4)
    assert made.gfn_to_hva(0x103) == HVA + 0x3000
    assert made.gfn_to_hva_prot(0x103, True) == HVA + 0x3000
    readonly = slot(0x100, 4, flags=KVM_MEM_READONLY)
    assert readonly.gfn_to_hva_prot(0x100, False) == HVA
    assert readonly.gfn_to_hva_prot(0x100, True) == KVM_HVA_ERR_RO_BAD == 0xFFFF_8880_0000_1000
    invalid = slot(0x100, 4, flags=KVM_MEMSLOT_INVALID | KVM_MEM_READONLY)
    assert invalid.gfn_to_hva_prot(0x100, True) == KVM_HVA_ERR_BAD == 0xFFFF_8880_0000_0000
    assert ms.is_error_hva(KVM_HVA_ERR_BAD)
    assert ms.is_error_hva(KVM_HVA_ERR_RO_BAD)
    assert not ms.is_error_hva(HVA)


def test_visible_is_a_users_slot_that_is_not_going_away() -> None:
    assert slot(0, 1, number=32763).is_visible()
    assert not slot(0, 1, number=32764).is_visible()
    assert not slot(0, 1, flags=KVM_MEMSLOT_INVALID).is_visible()
    assert slot(0, 1, flags=KVM_MEM_READONLY).is_visible()


def test_pfn_error_words() -> None:
    errors = (
        KVM_PFN_ERR_FAULT,
        KVM_PFN_ERR_HWPOISON,
        KVM_PFN_ERR_RO_FAULT,
        KVM_PFN_ERR_SIGPENDING,
    )
    assert errors == tuple(0x7FF0_0000_0000_0000 + n for n in range(4))
    assert all(ms.is_error_pfn(pfn) and ms.is_error_noslot_pfn(pfn) for pfn in errors)
    assert KVM_PFN_NOSLOT == 1 << 63
    assert not ms.is_error_pfn(KVM_PFN_NOSLOT)
    assert ms.is_error_noslot_pfn(KVM_PFN_NOSLOT)
    assert ms.is_noslot_pfn(KVM_PFN_NOSLOT)
    assert not ms.is_noslot_pfn(KVM_PFN_ERR_FAULT)
    assert not ms.is_error_noslot_pfn((1 << 40) - 1)


def test_a_new_set_starts_at_the_generation_of_its_address_space() -> None:
    assert (Memslots(0).generation, Memslots(1).generation) == (0, 1)
    assert Memslots(1).find(5) is None


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), max_size=12), st.lists(st.integers(0, 500)))
def test_find_and_search_agree_with_a_scan(gaps: list[tuple[int, int]], gfns: list[int]) -> None:
    made, base = [], 0
    for number, (gap, npages) in enumerate(gaps):
        made.append(slot(base + gap, npages, number))
        base += gap + npages
    slots = Memslots(0, 8, list(reversed(made)))
    assert slots.slots == made
    for gfn in gfns:
        expected = next((s for s in made if s.base_gfn <= gfn < s.end_gfn), None)
        assert slots.search(gfn) is expected
        assert slots.find(gfn) is expected
        assert slots.find(gfn) is expected
        hva = KVM_HVA_ERR_BAD if expected is None else HVA + (gfn - expected.base_gfn) * 4096
        assert slots.gfn_to_hva(gfn, True) == hva
        assert slots.is_visible_gfn(gfn) == (expected is not None)
    for number in range(14):
        assert slots.find_id(number) is (made[number] if number < len(made) else None)


def test_slots_are_found_by_hva_in_ascending_order_and_may_be_several() -> None:
    low, high, again = slot(0, 4, 0), slot(100, 4, 1, hva=HVA + 0x4000), slot(200, 8, 2, hva=HVA)
    slots = Memslots(0, 0, [high, again, low])
    assert slots.in_hva_range(HVA + 0x3FFF, HVA + 0x4001) == [again, low, high]
    assert slots.in_hva_range(HVA + 0x4000, HVA + 0x5000) == [again, high]
    assert slots.in_hva_range(HVA + 0x8000, HVA + 0x9000) == []
    assert slots.in_hva_range(HVA - 1, HVA) == []


def test_overlaps_ignores_the_slot_itself() -> None:
    slots = Memslots(0, 0, [slot(10, 10, 0), slot(30, 10, 1)])
    assert slots.overlaps(19, 20, 5).id == 0
    assert slots.overlaps(20, 30, 5) is None
    assert slots.overlaps(19, 31, 0).id == 1
    assert slots.overlaps(10, 20, 0) is None


def test_slots_of_one_hva_are_handled_in_the_order_in_which_they_came() -> None:
    slots = Memslots(0, 0, [slot(200, 8, 2), slot(0, 4, 0), slot(100, 4, 1)])
    assert [one.id for one in slots.in_hva_range(HVA, HVA + 1)] == [2, 0, 1]
    assert [one.id for one in slots.inactive().in_hva_range(HVA, HVA + 1)] == [2, 0, 1]
    # What is replaced, with other flags say, comes anew.
    slots.replace(slots.find_id(2), slot(200, 8, 2, flags=KVM_MEM_LOG_DIRTY_PAGES))
    assert [one.id for one in slots.in_hva_range(HVA, HVA + 1)] == [0, 1, 2]


def test_the_hint_of_a_set_follows_a_replacement_and_dies_with_its_slot() -> None:
    old, new = slot(10, 10, 0), slot(10, 10, 0, flags=KVM_MEM_LOG_DIRTY_PAGES)
    slots = Memslots(0, 0, [old, slot(30, 10, 1)])
    assert slots.find(12) is old
    assert slots.search(35).id == 1
    assert slots.last_used_slot is old, "a search leaves the hint alone"
    slots.replace(old, new)
    assert slots.last_used_slot is new
    assert slots.find(12) is new
    slots.replace(new, None)
    assert slots.last_used_slot is None
    assert slots.find(12) is None
    with pytest.raises(KvmBug, match="is not in set 0"):
        slots.replace(new, None)
