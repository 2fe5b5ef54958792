# SPDX-License-Identifier: GPL-2.0-only
"""Coming back in sync: what becomes of one spte when its guest entry changed, of a page, of all pages below a root."""

from __future__ import annotations

import pytest

from kvm.mmu.machines import (
    AD,
    DATA,
    EMPTY,
    HOLE,
    HOST_W,
    INVALID,
    MMU_W,
    NONE,
    RW,
    SHADOW,
    VA,
    Guest,
    Others,
    P,
    U,
    W,
    flushes,
    held,
    page_of,
    raw_table,
)
from kvmmu.guest.tables import SIZE_2M
from kvmmu.kvm.mmu import resync
from kvmmu.kvm.mmu.page import ShadowPage
from kvmmu.kvm.requests import flush_remote_tlbs

A, D, NX, PAT = 0x20, 0x40, 1 << 63, 0x80
RESERVED = 1 << 46
READ_ONLY = DATA | P | U | A
WRITABLE = DATA | RW | AD


class Entry:
    """A guest that has mapped one page at VA, and the spte that mirrors the entry."""

    def __init__(self, gpte: int = WRITABLE, *, write: bool = False) -> None:
        self.guest = Guest()
        self.vm = self.guest.world.vm
        self.vcpu = self.guest.vcpu
        self.place = self.guest.tables.map(VA, DATA)
        self.set(gpte)
        if write:
            self.guest.write(VA, 0xD000)
        else:
            self.guest.read(VA)
        self.sp = page_of(self.guest.world, self.place >> 12, 1)
        self.index = VA >> 12 & 511
        self.sptep = self.sp.spt + 8 * self.index

    def set(self, gpte: int) -> None:
        """The entry as the guest stores it, without that anyone notices."""
        self.guest.world.poke(self.place, gpte)

    @property
    def spte(self) -> int:
        return self.vm.memory.read_once(self.sptep)

    @property
    def noted(self) -> int:
        """What the page remembers of the entry: gfn << 12 | access."""
        return self.vm.memory.read_once(self.sp.shadowed_translation + 8 * self.index)

    def rmap_of(self, gfn: int) -> int:
        slot = self.vcpu.gfn_to_memslot(gfn)
        assert slot is not None
        return slot.rmap_word(gfn, 1)

    def sync(self) -> int:
        with held(self.vm):
            flush = resync.sync_spte(self.vcpu, self.sp, self.index, resync.gpte_table(self.vcpu, self.sp))
            if flush > 0:
                # The caller's duty; the audit finds a TLB that still has it.
                flush_remote_tlbs(self.vm)
        return flush


# One entry.


@pytest.mark.parametrize(
    ("name", "gpte"),
    [
        ("not present", WRITABLE & ~P),
        ("not accessed", WRITABLE & ~A),
        ("reserved bits", WRITABLE | RESERVED),
        ("another page", (DATA + 0x1000) | RW | AD),
        ("a device", HOLE | RW | AD),
        ("nothing", 0),
    ],
)
def test_an_entry_that_maps_another_page_or_none_is_dropped(name: str, gpte: int) -> None:
    entry = Entry()
    leaves = entry.vm.stat.pages_4k
    entry.set(gpte)
    assert entry.sync() == 1, name
    assert (entry.spte, entry.rmap_of(DATA >> 12), entry.vm.stat.pages_4k) == (EMPTY, 0, leaves - 1)
    entry.guest.audit()


@pytest.mark.parametrize(
    ("before", "after"), [(WRITABLE, WRITABLE), (READ_ONLY, READ_ONLY), (WRITABLE, WRITABLE | 0x600)]
)
def test_an_entry_with_the_same_rights_is_not_touched(before: int, after: int) -> None:
    """Bits that the guest alone knows do not matter."""
    entry = Entry(before)
    spte = entry.spte
    entry.set(after)
    assert (entry.sync(), entry.spte) == (0, spte)


#: What changes, and which of W and MMU-writable, U and NX the spte has afterwards.
RIGHTS = [
    ("W lost", WRITABLE, WRITABLE & ~W, 1, U),
    ("D lost", WRITABLE, WRITABLE & ~D, 1, U),
    ("U lost", WRITABLE, WRITABLE & ~U, 1, W | MMU_W),
    ("X lost", WRITABLE, WRITABLE | NX, 1, W | MMU_W | U | NX),
    ("W and U lost", WRITABLE, WRITABLE & ~(W | U), 1, 0),
    ("W gained", READ_ONLY | D, WRITABLE, 1, W | MMU_W | U),
    ("W without D", READ_ONLY, READ_ONLY | W, 0, U),
]


@pytest.mark.parametrize(("name", "before", "after", "result", "bits"), RIGHTS, ids=[row[0] for row in RIGHTS])
def test_an_entry_with_other_rights_is_rebuilt_for_the_same_page(
    name: str, before: int, after: int, result: int, bits: int
) -> None:
    """Nobody has used it since, so A is clear; the host's right to write stays."""
    entry = Entry(before)
    old = entry.spte
    entry.set(after)
    assert entry.sync() == result
    spte = entry.spte
    if name == "W without D":
        assert spte == old
        return
    assert spte & (W | MMU_W | U | NX) == bits
    assert spte & (SHADOW | HOST_W | P) == SHADOW | HOST_W | P
    assert spte & A == 0
    assert spte >> 12 & 0xFFFFFF == old >> 12 & 0xFFFFFF
    access = (bits & U) | (2 if bits & W else 0) | (0 if bits & NX else 1)
    assert entry.noted == DATA | access
    assert entry.rmap_of(DATA >> 12) == entry.sptep
    entry.guest.audit()


def test_what_the_old_leaf_knew_of_its_page_is_kept() -> None:
    entry = Entry(write=True)
    pfn = entry.spte >> 12 & 0xFFFFFF
    assert entry.spte & (A | D) == A | D
    assert entry.vm.frames.flags_of(pfn) & 1 == 0 or entry.vm.frames.flags_of(pfn) & 2 == 0
    entry.set(WRITABLE & ~W)
    assert entry.sync() == 1
    assert entry.vm.frames.flags_of(pfn) & 3 == 3


@pytest.mark.parametrize("unsync_already", [False, True])
def test_a_right_to_write_a_mirrored_table_is_not_gained_by_a_sync(unsync_already: bool) -> None:
    """What is mapped is the guest's own level-1 table: whatever its state, a sync makes no table writable."""
    entry = Entry()
    other = VA + 0x20000
    at = entry.guest.tables.map(other, entry.place & ~0xFFF, flags=P | U | A | D)
    assert entry.guest.read(other) == WRITABLE
    sptep = entry.sp.spt + 8 * (other >> 12 & 511)
    entry.guest.world.poke(at, (entry.place & ~0xFFF) | RW | AD)
    entry.sp.unsync = unsync_already
    with held(entry.vm):
        resync.sync_spte(entry.vcpu, entry.sp, other >> 12 & 511, resync.gpte_table(entry.vcpu, entry.sp))
    assert entry.vm.memory.read_once(sptep) & (W | MMU_W) == 0
    assert entry.sp.unsync == unsync_already


def test_a_page_that_the_host_gave_read_only_stays_so() -> None:
    entry = Entry(READ_ONLY | D)
    entry.guest.world.mm.mprotect(entry.guest.hva + DATA, 0x1000, writable=False)
    assert entry.guest.read(VA) == 0xD000
    assert entry.spte & (P | HOST_W) == P
    entry.set(WRITABLE)
    entry.sync()
    assert entry.spte & (P | HOST_W | W | MMU_W) == P
    assert entry.noted == DATA | 7


def test_rights_above_limit_those_of_the_entry() -> None:
    guest = Guest()
    place = guest.tables.map(VA, DATA, flags=P | U | A)
    guest.tables.clear_bits(VA, W, 2)
    assert guest.read(VA) == 0xD000
    sp = page_of(guest.world, place >> 12, 1)
    guest.world.poke(place, WRITABLE)
    spte = guest.world.memory.read_once(sp.spt + 8 * (VA >> 12 & 511))
    with held(guest.world.vm):
        assert resync.sync_spte(guest.vcpu, sp, VA >> 12 & 511, resync.gpte_table(guest.vcpu, sp)) == 0
    assert guest.world.memory.read_once(sp.spt + 8 * (VA >> 12 & 511)) == spte


def test_an_empty_entry_stays_empty_even_if_the_table_cannot_be_read() -> None:
    entry = Entry()
    with held(entry.vm):
        assert resync.sync_spte(entry.vcpu, entry.sp, entry.index + 9, NONE) == 0
        assert resync.sync_spte(entry.vcpu, entry.sp, entry.index, NONE) == -1
    assert entry.spte != EMPTY


def test_an_mmio_entry_of_the_same_gfn_gets_the_rights_and_generation_of_today() -> None:
    entry = Entry(HOLE | RW | AD)
    old = entry.spte
    assert old & SHADOW == 0
    entry.guest.world.add_slot(5, 0x6000_0000, 0x1000)
    entry.set(HOLE | P | U | A)
    flushed = flushes(entry.vm)
    assert entry.sync() == 0
    assert flushes(entry.vm) == flushed
    spte = entry.spte
    generation = entry.vm.slots_of(0).generation & (1 << 19) - 1
    low, high = spte >> 3 & 0xFF, spte >> 52 & 0x7FF
    assert high << 8 | low == generation
    assert (spte >> 12 & 0x3F_FFFF_FFFF, spte & 6) == (HOLE >> 12, U)
    assert old & 6 == U | W


def test_an_mmio_entry_of_another_gfn_is_cleared_without_a_flush() -> None:
    for gpte in ((HOLE + 0x1000) | RW | AD, WRITABLE):
        entry = Entry(HOLE | RW | AD)
        entry.set(gpte)
        assert (entry.sync(), entry.spte) == (0, EMPTY)


def test_an_mmio_entry_that_the_guest_unmapped_is_dropped() -> None:
    entry = Entry(HOLE | RW | AD)
    leaves = entry.vm.stat.pages_4k
    entry.set(0)
    assert (entry.sync(), entry.spte, entry.vm.stat.pages_4k) == (1, EMPTY, leaves)


@pytest.mark.parametrize(
    ("gpte", "invalid"),
    [
        (P | A, False),
        (P | A | D | RW, False),
        (A, True),
        (P, True),
        (0, True),
        (P | A | RESERVED, True),
        (P | A | PAT, False),
    ],
)
def test_which_level_1_entries_may_be_mapped_ahead_of_an_access(gpte: int, invalid: bool) -> None:
    assert resync.is_invalid_gpte(Entry().vcpu, gpte) == invalid


def test_the_entries_of_a_quadrant_begin_in_the_half_of_the_table_that_it_mirrors() -> None:
    guest = Guest("2-level")
    places = {}
    for gva in (0x40_0000, 0x60_0000):
        places[gva] = guest.tables.map(gva, DATA)
        assert guest.read(gva) == 0xD000
    table = places[0x40_0000] & ~0xFFF
    assert places[0x60_0000] & ~0xFFF == table
    hpa = guest.world.mm.user_access(guest.hva + table, False)
    pages = [sp for sp in guest.world.shadow_pages() if sp.gfn == table >> 12 and sp.role & 15 == 1]
    assert {(sp.role >> 5 & 3, resync.gpte_table(guest.vcpu, sp) - hpa) for sp in pages} == {(0, 0), (1, 2048)}


def test_a_table_outside_every_slot_cannot_be_read() -> None:
    entry = Entry()
    assert resync.gpte_table(entry.vcpu, ShadowPage(HOLE >> 12, 1, 0)) == NONE


# Whole pages.


@pytest.mark.parametrize(
    ("flip", "syncable"),
    [
        (0, True),
        (3, True),  # another level
        (5 << 8, True),  # other inherited rights
        (1 << 5, True),  # another quadrant
        (1 << 18, True),  # passthrough
        (1 << 4, False),  # 4-byte entries
        (1 << 12, False),  # EFER.NX
        (1 << 13, False),  # CR0.WP
        (1 << 24, False),  # the other address space
        (1 << 7, False),  # direct
        (INVALID, False),
    ],
)
def test_a_page_is_synced_only_by_a_context_that_reads_its_table_alike(flip: int, syncable: bool) -> None:
    entry = Entry()
    role = entry.sp.role
    entry.sp.role ^= flip
    assert resync.is_syncable(entry.vcpu, entry.sp) == syncable
    entry.sp.role = role


def test_a_context_without_guest_tables_syncs_nothing() -> None:
    entry = Entry()
    entry.vcpu.mmu.can_sync = False
    assert not resync.is_syncable(entry.vcpu, entry.sp)


def test_every_entry_of_a_page_is_synced() -> None:
    guest = Guest()
    gvas = [VA + number * 0x10000 for number in range(4)]
    places = [guest.tables.map(gva, DATA + number * 0x1000, flags=RW | AD) for number, gva in enumerate(gvas)]
    assert [guest.read(gva) for gva in gvas] == [0xD000, 0xD001, 0xD002, 0xD003]
    sp = page_of(guest.world, places[0] >> 12, 1)
    for place, gpte in zip(places, (0, None, DATA + 0x2000 | P | U | A, DATA + 0x5000 | RW | AD), strict=True):
        if gpte is not None:
            guest.world.poke(place, gpte)
    invalid_list: list[ShadowPage] = []
    with held(guest.world.vm):
        assert resync.sync_page(guest.vcpu, sp, invalid_list) == 1
        flush_remote_tlbs(guest.world.vm)
    sptes = [guest.world.memory.read_once(sp.spt + 8 * (gva >> 12 & 511)) for gva in gvas]
    assert (sptes[0], sptes[3]) == (EMPTY, EMPTY)
    assert [spte & W for spte in sptes[1:3]] == [W, 0]
    assert invalid_list == []
    with held(guest.world.vm):
        assert resync.sync_page(guest.vcpu, sp, invalid_list) == 0
    guest.audit()


def test_a_page_that_cannot_be_synced_is_zapped() -> None:
    entry = Entry()
    entry.vcpu.mmu.can_sync = False
    invalid_list: list[ShadowPage] = []
    with held(entry.vm):
        assert resync.sync_page(entry.vcpu, entry.sp, invalid_list) == -1
    assert invalid_list == [entry.sp]
    assert entry.sp.role & INVALID


def test_a_page_whose_table_is_gone_is_zapped_if_it_maps_anything() -> None:
    entry = Entry()
    entry.guest.world.mm.dontneed(entry.guest.hva + (entry.place & ~0xFFF), 0x1000)
    invalid_list: list[ShadowPage] = []
    with held(entry.vm):
        assert resync.sync_page(entry.vcpu, entry.sp, invalid_list) == -1
    assert invalid_list == [entry.sp]


# All pages below a root.


def unsync(guest: Guest, nr: int) -> list[tuple[int, int, ShadowPage]]:
    """(gva, place, page) of ``nr`` tables that the guest has written since they were mirrored."""
    found = []
    for number in range(nr):
        gva = VA + number * SIZE_2M
        place = guest.tables.map(gva, DATA)
        assert guest.read(gva) == 0xD000
        guest.edit.store(place, (DATA + 0x1000) | P | U | A, 8)
        found.append((gva, place, page_of(guest.world, place >> 12, 1)))
    assert all(sp.unsync for _, _, sp in found)
    return found


def leaf(guest: Guest, gva: int) -> int:
    return guest.world.walk(guest.vcpu, gva)[-1].spte


@pytest.mark.parametrize("nr", [1, 3, 20])
def test_every_unsync_page_below_a_root_is_protected_and_synced(nr: int) -> None:
    guest = Guest()
    tables = unsync(guest, nr)
    vm, root = guest.world.vm, page_of(guest.world, guest.tables.root >> 12, 4)
    flushed = flushes(vm)
    assert [leaf(guest, gva) != EMPTY for gva, _, _ in tables] == [True] * nr
    with held(vm):
        resync.sync_children(guest.vcpu, root, True)
    assert [leaf(guest, gva) for gva, _, _ in tables] == [EMPTY] * nr
    assert not any(sp.unsync for _, _, sp in tables)
    assert (vm.stat.mmu_unsync, root.unsync_children) == (0, 0)
    assert flushes(vm) > flushed
    for _, place, _ in tables:
        assert leaf(guest, guest.window + place) & (W | MMU_W) == 0
    guest.audit()
    assert [guest.read(gva) for gva, _, _ in tables] == [0xD001] * nr
    # The next write of the guest is noticed again.
    guest.edit.store(tables[0][1], DATA | P | U | A, 8)
    assert tables[0][2].unsync


@pytest.mark.parametrize("may_yield", [False, True])
def test_a_sync_yields_between_rounds_if_it_may(may_yield: bool) -> None:
    # 20 tables are two rounds; each protects first, with a flush, and has one due when it ends.
    guest = Guest()
    unsync(guest, 20)
    vm, root = guest.world.vm, page_of(guest.world, guest.tables.root >> 12, 4)
    flushed = flushes(vm)
    with held(vm):
        others = Others(vm)
        resync.sync_children(guest.vcpu, root, may_yield)
        vm.gate.disarm()
    assert (others.nr_unlocks(), flushes(vm) - flushed) == ((2, 4) if may_yield else (0, 3))
    guest.audit()


def test_nothing_unsync_needs_no_flush() -> None:
    guest = Guest()
    guest.tables.map(VA, DATA)
    assert guest.read(VA) == 0xD000
    flushed = flushes(guest.world.vm)
    with held(guest.world.vm):
        assert resync.sync_children(guest.vcpu, page_of(guest.world, guest.tables.root >> 12, 4), True) == 0
    assert flushes(guest.world.vm) == flushed


def test_an_unsync_page_that_cannot_be_synced_goes() -> None:
    guest = Guest()
    ((gva, _, sp),) = unsync(guest, 1)
    sp.role ^= 1 << 13
    with held(guest.world.vm):
        resync.sync_children(guest.vcpu, page_of(guest.world, guest.tables.root >> 12, 4), True)
    assert sp.role & INVALID
    assert sp not in guest.world.shadow_pages()
    assert leaf(guest, gva) == EMPTY
    assert guest.world.vm.stat.mmu_unsync == 0


def test_syncing_the_roots_forgets_the_mmio_gva_and_takes_the_lock_itself() -> None:
    guest = Guest()
    ((_, _, sp),) = unsync(guest, 1)
    guest.vcpu.mmio_gva = 0x1234000
    resync.sync_roots(guest.vcpu)
    assert (guest.vcpu.mmio_gva, sp.unsync) == (0, False)
    with held(guest.world.vm):
        pass


@pytest.mark.parametrize("mode", ["2-level", "pae"])
def test_every_entry_of_a_pae_root_is_synced(mode: str) -> None:
    guest = Guest(mode)
    gvas = [0x40_0000, 0x4040_0000, 0xC040_0000]
    places = [guest.tables.map(gva, DATA) for gva in gvas]
    width = 4 if mode == "2-level" else 8
    guest.world.load_registers(guest.vcpu, guest.tables.registers())
    pages = []
    for gva, place in zip(gvas, places, strict=True):
        assert guest.read(gva) == 0xD000
        guest.edit.store(place, (DATA + 0x1000) | P | U | A, width)
        pages.append(page_of(guest.world, place >> 12, 1))
    assert [sp.unsync for sp in pages] == [True] * 3
    resync.sync_roots(guest.vcpu)
    assert [sp.unsync for sp in pages] == [False] * 3
    assert [leaf(guest, gva) for gva in gvas] == [EMPTY] * 3


def test_a_vcpu_without_a_root_has_nothing_to_sync() -> None:
    guest = Guest()
    guest.vcpu.mmio_gva = 0x1234000
    resync.sync_roots(guest.vcpu)
    assert guest.vcpu.mmio_gva == 0x1234000


@pytest.mark.parametrize(("unsync_self", "children", "expected"), [(0, 0, False), (1, 0, True), (0, 2, True)])
def test_a_root_hides_unsync_pages_if_it_is_one_or_leads_to_one(
    unsync_self: int, children: int, expected: bool
) -> None:
    guest = Guest()
    guest.tables.map(VA, DATA)
    guest.read(VA)
    root = page_of(guest.world, guest.tables.root >> 12, 4)
    root.unsync, root.unsync_children = bool(unsync_self), children
    assert resync.is_unsync_root(guest.world.vm, root.spt) == expected
    root.unsync, root.unsync_children = False, 0


def test_no_root_and_the_dummy_root_hide_nothing() -> None:
    vm = Guest().world.vm
    assert not resync.is_unsync_root(vm, NONE)
    assert not resync.is_unsync_root(vm, vm.frames.zero_pfn << 12)


# One address.


def two_roots() -> tuple[Guest, list[int], list[int]]:
    """A guest whose two roots map VA by tables of their own, both out of sync; the roots, and the entries' places.

    The second root is the current one; the first is previous root 0.
    """
    guest = Guest()
    place = guest.tables.map(VA, DATA)
    other = raw_table(guest, {VA >> 12 & 511: WRITABLE})
    directory = raw_table(guest, {VA >> 21 & 511: other | RW | A})
    upper = raw_table(guest, {VA >> 30 & 511: directory | RW | A})
    second = guest.second_root()
    guest.world.poke(second + 8 * (VA >> 39 & 511), upper | RW | A)
    roots, places = [guest.tables.root, second], [place, other + 8 * (VA >> 12 & 511)]
    for root, at in zip(roots, places, strict=True):
        assert guest.world.mov_cr3(guest.vcpu, root)
        assert guest.read(VA) == 0xD000
        guest.edit.store(at, (DATA + 0x1000) | RW | AD, 8)
    assert [page_of(guest.world, at >> 12, 1).unsync for at in places] == [True, True]
    return guest, roots, places


def mapped_places(guest: Guest, places: list[int]) -> list[bool]:
    """Whether VA's entry in the shadow page of each place maps something."""
    pages = [page_of(guest.world, place >> 12, 1) for place in places]
    return [guest.world.memory.read_once(sp.spt + 8 * (VA >> 12 & 511)) != EMPTY for sp in pages]


@pytest.mark.parametrize(
    ("roots", "left"),
    [
        (1, [True, False]),
        (2, [False, True]),
        (3, [False, False]),
        (15, [False, False]),
        (4, [True, True]),
        (8, [True, True]),
    ],
)
def test_an_invalidated_address_is_synced_under_the_selected_roots(roots: int, left: list[bool]) -> None:
    guest, _, places = two_roots()
    flushed = flushes(guest.world.vm)
    resync.invalidate_addr(guest.vcpu, VA, roots)
    assert mapped_places(guest, places) == left
    assert flushes(guest.world.vm) - flushed == left.count(False)
    # The pages stay unsync: only the one entry is known to be right.
    assert [page_of(guest.world, place >> 12, 1).unsync for place in places] == [True, True]
    guest.audit()


def test_only_the_entry_of_the_address_is_synced() -> None:
    guest, _, places = two_roots()
    resync.invalidate_addr(guest.vcpu, VA + 0x1000, 15)
    assert mapped_places(guest, places) == [True, True]


def test_the_addressed_entry_of_a_page_in_sync_is_left_alone() -> None:
    entry = Entry()
    spte = entry.spte
    entry.set(0)
    resync.invalidate_addr(entry.vcpu, VA, 1)
    assert entry.spte == spte


def test_an_addressed_entry_that_cannot_be_read_is_zapped() -> None:
    guest = Guest()
    ((gva, place, sp),) = unsync(guest, 1)
    guest.world.mm.dontneed(guest.hva + (place & ~0xFFF), 0x1000)
    flushed = flushes(guest.world.vm)
    resync.invalidate_addr(guest.vcpu, gva, 1)
    assert guest.world.memory.read_once(sp.spt + 8 * (gva >> 12 & 511)) == EMPTY
    assert flushes(guest.world.vm) == flushed + 1


@pytest.mark.parametrize(
    ("addr", "levels", "ignored"),
    [
        (0, 4, False),
        (1 << 47, 4, True),
        ((1 << 47) - 1, 4, False),
        (2**64 - (1 << 47), 4, False),
        (2**64 - (1 << 47) - 1, 4, True),
        (1 << 63, 4, True),
        (1 << 47, 5, False),
        ((1 << 56) - 1, 5, False),
        (1 << 56, 5, True),
        (2**64 - (1 << 56), 5, False),
        (2**64 - (1 << 56) - 1, 5, True),
    ],
)
def test_addresses_are_canonical_for_the_hosts_widest_tables(addr: int, levels: int, ignored: bool) -> None:
    assert resync.is_noncanonical(Guest("4-level", f"host_levels={levels}").world.vm, addr) == ignored


def test_a_noncanonical_address_invalidates_nothing() -> None:
    guest, _, places = two_roots()
    guest.vcpu.mmio_gva = VA | 1 << 63
    resync.invalidate_addr(guest.vcpu, VA | 1 << 63, 15)
    assert mapped_places(guest, places) == [True, True]
    assert guest.vcpu.mmio_gva == VA | 1 << 63


def test_an_invalidated_address_leaves_the_mmio_record_and_others_stay() -> None:
    entry = Entry()
    entry.vcpu.mmio_gva = VA
    resync.invalidate_addr(entry.vcpu, VA + 0x1000, 1)
    assert entry.vcpu.mmio_gva == VA
    resync.invalidate_addr(entry.vcpu, VA + 0x123, 1)
    assert entry.vcpu.mmio_gva == 0


def test_nested_paging_only_flushes_the_address() -> None:
    guest = Guest(npt=True)
    place = guest.tables.map(VA, DATA)
    assert guest.read(VA) == 0xD000
    guest.vcpu.mmio_gva = VA
    guest.world.poke(place, (DATA + 0x1000) | RW | AD)
    assert guest.read(VA) == 0xD000
    resync.invalidate_addr(guest.vcpu, VA, 15)
    assert (guest.read(VA), guest.vcpu.mmio_gva) == (0xD001, VA)
