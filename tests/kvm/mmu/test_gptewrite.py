# SPDX-License-Identifier: GPL-2.0-only
"""Emulated writes to mirrored tables: which sptes they zap, when a whole page goes, and giving up on mirroring."""

from __future__ import annotations

import pytest

from kvm.mmu.machines import (
    ACCESS_ALL,
    AD,
    DATA,
    EMPTY,
    INVALID,
    RW,
    SHADOW,
    VA,
    VB,
    Guest,
    flushes,
    held,
    page_of,
    pages_of,
)
from kvmmu.kvm.mmu import gptewrite
from kvmmu.kvm.mmu.page import ShadowPage
from kvmmu.kvm.mmu.pages import alloc_page

FOUR_BYTE = 1 << 4
GPA = 0x5000


def sp_of(level: int = 1, role: int = 0) -> ShadowPage:
    return ShadowPage(GPA >> 12, level | role | ACCESS_ALL, 0x9000)


# Shapes of writes.


def test_a_write_fits_if_it_stays_in_one_entry_and_has_4_bytes_or_clears_a_bit() -> None:
    cases = 0
    for role, size in ((0, 8), (FOUR_BYTE, 4)):
        for offset in range(16):
            for nr_bytes in (1, 2, 4, 8):
                one_entry = offset // size == (offset + nr_bytes - 1) // size
                fits = (one_entry and nr_bytes >= 4) or (nr_bytes == 1 and offset % size == 0)
                got = gptewrite.is_misaligned(sp_of(role=role), GPA + offset, nr_bytes)
                assert got == (not fits), (size, offset, nr_bytes)
                cases += 1
    assert cases == 128


@pytest.mark.parametrize("level", [2, 3, 4])
def test_the_third_write_is_a_flood(level: int) -> None:
    vm, sp = Guest().world.vm, sp_of(level)
    assert [gptewrite.is_flood(vm, sp) for _ in range(3)] == [False, False, True]
    sp.write_flooding_count = 0
    assert not gptewrite.is_flood(vm, sp)


def test_level_1_is_never_flooded() -> None:
    vm, sp = Guest().world.vm, sp_of(1)
    assert [gptewrite.is_flood(vm, sp) for _ in range(9)] == [False] * 9
    assert sp.write_flooding_count == 0


def test_an_8_byte_entry_has_the_spte_of_its_index() -> None:
    for level in (1, 2, 4):
        for index in (0, 1, 300, 511):
            for byte in (0, 4, 7):
                assert gptewrite.written_sptep(sp_of(level), GPA + 8 * index + byte) == 0x9000 + 8 * index
        assert gptewrite.nr_written(sp_of(level)) == 1


def test_a_4_byte_entry_has_one_spte_of_two_halves_or_two_of_four_quarters() -> None:
    cases = 0
    for index in range(1024):
        for quadrant in range(2):
            sptep = gptewrite.written_sptep(sp_of(1, FOUR_BYTE | quadrant << 5), GPA + 4 * index)
            expected = 0x9000 + 8 * (index % 512) if index // 512 == quadrant else 0
            assert sptep == expected
            cases += 1
        for quadrant in range(4):
            sptep = gptewrite.written_sptep(sp_of(2, FOUR_BYTE | quadrant << 5), GPA + 4 * index)
            expected = 0x9000 + 16 * (index % 256) if index // 256 == quadrant else 0
            assert sptep == expected
            cases += 1
    assert cases == 6144
    assert (gptewrite.nr_written(sp_of(1, FOUR_BYTE)), gptewrite.nr_written(sp_of(2, FOUR_BYTE))) == (1, 2)


# What they do.


class Mapped:
    """A guest that has read VA and VB."""

    def __init__(self, mode: str = "4-level") -> None:
        self.guest = Guest(mode)
        self.va = VA
        for gva in (VA, VB):
            self.guest.tables.map(gva, DATA, flags=RW | AD)
            assert self.guest.read(gva) == 0xD000
        self.vcpu, self.vm, self.world = self.guest.vcpu, self.guest.world.vm, self.guest.world

    def place(self, level: int, gva: int = VA) -> int:
        return self.guest.tables.entry_gpa(gva, level)

    def write(self, gpa: int, nr_bytes: int = 8) -> None:
        gptewrite.track_write(self.vcpu, gpa, nr_bytes)

    def leaf(self, gva: int = VA) -> int:
        return self.world.walk(self.vcpu, gva)[-1].spte

    def levels(self, gva: int = VA) -> list[int]:
        return [element.level for element in self.world.walk(self.vcpu, gva) if element.spte & SHADOW]


def test_a_written_leaf_is_zapped_and_flushed_and_its_neighbours_stay() -> None:
    box = Mapped()
    flushed, writes, zapped = flushes(box.vm), box.vm.stat.mmu_pte_write, box.vm.stat.mmu_pde_zapped
    box.write(box.place(1))
    assert (box.leaf(), box.levels(VB)) == (EMPTY, [4, 3, 2, 1])
    assert flushes(box.vm) == flushed + 1
    assert (box.vm.stat.mmu_pte_write, box.vm.stat.mmu_pde_zapped) == (writes + 1, zapped)
    box.guest.audit()


def test_a_written_link_is_zapped_its_child_stays_and_it_is_counted() -> None:
    box = Mapped()
    child = page_of(box.world, box.place(1) >> 12, 1)
    box.write(box.place(2))
    assert box.levels() == [4, 3]
    assert child in box.world.shadow_pages()
    assert box.vm.stat.mmu_pde_zapped == 1
    box.guest.audit()


@pytest.mark.parametrize(("nr_bytes", "gpte", "counted"), [(8, None, 1), (8, 0, 0), (1, None, 0)])
def test_a_link_is_counted_if_the_entry_is_whole_and_not_zero(nr_bytes: int, gpte: int | None, counted: int) -> None:
    box = Mapped()
    if gpte is not None:
        box.world.poke(box.place(2), gpte)
    box.write(box.place(2), nr_bytes)
    assert box.levels() == [4, 3]
    assert box.vm.stat.mmu_pde_zapped == counted


def test_a_write_where_nothing_is_mapped_needs_no_flush() -> None:
    box = Mapped()
    flushed = flushes(box.vm)
    box.write(box.place(1) + 8 * 7)
    assert flushes(box.vm) == flushed
    assert box.levels() == [4, 3, 2, 1]


@pytest.mark.parametrize(("offset", "nr_bytes"), [(0, 4), (4, 4), (0, 8)])
def test_half_an_entry_is_the_entry(offset: int, nr_bytes: int) -> None:
    """With PAE or long mode a 4-byte write is one half of 8 bytes."""
    box = Mapped()
    box.write(box.place(1) + offset, nr_bytes)
    assert box.leaf() == EMPTY
    assert page_of(box.world, box.place(1) >> 12, 1)


@pytest.mark.parametrize(("offset", "nr_bytes"), [(1, 1), (0, 2), (6, 8)])
def test_a_misaligned_write_zaps_the_whole_page(offset: int, nr_bytes: int) -> None:
    box = Mapped()
    sp = page_of(box.world, box.place(1) >> 12, 1)
    box.write(box.place(1) + offset, nr_bytes)
    assert sp.role & INVALID
    assert pages_of(box.world, sp.gfn, 1) == []
    assert box.vm.stat.mmu_flooded == 1
    assert box.levels() == [4, 3]
    box.guest.audit()


def test_the_third_write_without_a_walk_between_zaps_the_whole_page() -> None:
    box = Mapped()
    unused = box.place(2) + 8 * 99
    for number in range(2):
        box.write(unused)
        assert (box.vm.stat.mmu_flooded, box.levels()) == (0, [4, 3, 2, 1]), number
    box.write(unused)
    assert (box.vm.stat.mmu_flooded, box.levels()) == (1, [4])
    box.guest.audit()


def test_every_mirror_of_the_table_is_zapped() -> None:
    box = Mapped()
    sp = page_of(box.world, box.place(1) >> 12, 1)
    with held(box.vm):
        other = alloc_page(box.vm, sp.gfn, sp.role ^ 1 << 13)
        box.vm.memory.write_once(other.spt, 1 << 51 | 1)
    box.write(box.place(1))
    assert box.leaf() == EMPTY
    assert box.vm.memory.read_once(other.spt + 8 * (VA >> 12 & 511)) == EMPTY


def test_a_write_to_what_is_no_table_changes_nothing() -> None:
    box = Mapped()
    pages, flushed = box.world.shadow_pages(), flushes(box.vm)
    box.write(DATA)
    assert (box.world.shadow_pages(), flushes(box.vm), box.levels()) == (pages, flushed, [4, 3, 2, 1])
    assert box.vm.stat.mmu_pte_write == 1


def test_while_nothing_is_mirrored_a_write_costs_nothing() -> None:
    guest = Guest()
    with held(guest.world.vm):
        # The lock would be taken: it must not be.
        gptewrite.track_write(guest.vcpu, 0x10000, 8)
    assert guest.world.vm.stat.mmu_pte_write == 0


def test_a_4m_entry_zaps_both_its_halves() -> None:
    guest = Guest("2-level")
    gvas = (0x40_0000, 0x60_0000)
    for gva in gvas:
        guest.tables.map(gva, DATA)
        assert guest.read(gva) == 0xD000
    gptewrite.track_write(guest.vcpu, guest.tables.entry_gpa(gvas[0], 2), 4)
    assert [len(guest.world.walk(guest.vcpu, gva)) for gva in gvas] == [1, 1]
    assert [guest.world.walk(guest.vcpu, gva)[-1].spte for gva in gvas] == [EMPTY] * 2
    guest.audit()


@pytest.mark.parametrize(("nr_bytes", "read"), [(8, True), (4, True), (1, False), (2, False)])
def test_the_entry_is_read_whole_or_not_at_all(nr_bytes: int, read: bool) -> None:
    box = Mapped()
    box.world.poke(DATA, 0x1122_3344_5566_7788)
    whole = 0x1122_3344_5566_7788 & ((1 << 8 * nr_bytes) - 1)
    assert gptewrite.written_gpte(box.vcpu, DATA, nr_bytes) == (whole if read else 0)
    assert gptewrite.written_gpte(box.vcpu, 0x4000_0000, nr_bytes) == 0


# Giving up.


def test_unprotecting_zaps_every_mirror_of_the_gfn_and_no_other() -> None:
    box = Mapped()
    gfn = box.place(1) >> 12
    with held(box.vm):
        alloc_page(box.vm, gfn, 1 | ACCESS_ALL)
    assert len(pages_of(box.world, gfn, 1)) == 2
    assert gptewrite.unprotect_gfn(box.vm, gfn)
    assert pages_of(box.world, gfn, 1) == []
    assert box.levels(VB) == [4, 3, 2, 1]
    assert not gptewrite.unprotect_gfn(box.vm, gfn)


@pytest.mark.parametrize(
    ("gva", "always", "done"), [("table", False, True), ("data", False, False), ("data", True, False)]
)
def test_a_retry_is_noted_if_something_was_zapped_or_always(gva: str, always: bool, done: bool) -> None:
    box = Mapped()
    addr = VA if gva == "data" else box.guest.window + (box.place(1) & ~0xFFF)
    box.vcpu.rip = 0x1234
    assert gptewrite.unprotect_and_retry(box.vcpu, addr, always) == done
    noted = (box.vcpu.last_retry_eip, box.vcpu.last_retry_addr)
    assert noted == ((0x1234, addr) if done or always else (0, 0))
