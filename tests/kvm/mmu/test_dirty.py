# SPDX-License-Identifier: GPL-2.0-only
"""Dirty logging: whose W goes and comes, which bits are read, and what is zapped when it ends."""

from __future__ import annotations

import errno

import pytest

from kvm.mmu.machines import AD, DATA, HOST_W, LARGE, MEMORY, MMU_W, RW, VA, Guest, W, flushes, held
from kvmmu import KvmIoctlError, UserMemoryRegion
from kvmmu.guest.tables import SIZE_2M
from kvmmu.kvm.memslots import Memslot
from kvmmu.kvm.mmu import dirty, gfnrange

GFN = DATA >> 12


class Written:
    """A guest that has written four pages; gva VA + i * 0x8000 is page DATA + i * 0x1000."""

    def __init__(self, *settings: str, npt: bool = False) -> None:
        self.guest = Guest("4-level", *settings, npt=npt)
        self.npt = npt
        for i in range(4):
            self.guest.tables.map(self.gva(i), DATA + i * 0x1000, flags=RW | AD)
            assert self.guest.write(self.gva(i)) == "done"
        self.vm = self.guest.world.vm

    @staticmethod
    def gva(i: int) -> int:
        return VA + i * 0x8000

    def spte(self, i: int) -> int:
        at = DATA + i * 0x1000 if self.npt else self.gva(i)
        return self.guest.world.walk(self.guest.vcpu, at)[-1].spte

    def slot(self) -> Memslot:
        slot = self.guest.vcpu.gfn_to_memslot(GFN)
        assert slot is not None
        return slot

    def log(self, flags: int = 1) -> None:
        self.guest.world.set_region(UserMemoryRegion(0, flags, 0, MEMORY, self.guest.hva))

    def dirty(self) -> list[int]:
        """The data pages that the log says were written; reading clears it."""
        log = int.from_bytes(self.guest.world.dirty_log(0), "little") >> GFN
        return [i for i in range(8) if log >> i & 1]

    def writable(self) -> list[int]:
        return [i for i in range(4) if self.spte(i) & W]


@pytest.mark.parametrize("npt", [False, True])
def test_w_goes_with_the_beginning_of_the_log_and_may_come_back(npt: bool) -> None:
    box = Written(npt=npt)
    assert box.writable() == [0, 1, 2, 3]
    flushed = flushes(box.vm)
    box.log()
    assert box.writable() == []
    assert all(box.spte(i) & (MMU_W | HOST_W) == MMU_W | HOST_W for i in range(4))
    assert flushes(box.vm) > flushed


@pytest.mark.parametrize("npt", [False, True])
def test_a_written_page_is_in_the_log_once_for_each_write_after_its_reading(npt: bool) -> None:
    box = Written(npt=npt)
    box.log()
    box.dirty()
    for i in (1, 3):
        assert box.guest.write(box.gva(i)) == "done"
    assert box.writable() == [1, 3]
    assert box.dirty() == [1, 3]
    # Reading protects again what was set, and only that.
    assert box.writable() == []
    assert box.dirty() == []
    assert box.guest.write(box.gva(3)) == "done"
    assert box.dirty() == [3]


def test_reading_a_clean_log_does_not_flush_and_a_dirty_one_does() -> None:
    box = Written()
    box.log()
    box.dirty()
    flushed = flushes(box.vm)
    assert box.dirty() == []
    assert flushes(box.vm) == flushed
    assert box.guest.write(box.gva(0)) == "done"
    flushed = flushes(box.vm)
    assert box.dirty() == [0]
    assert flushes(box.vm) == flushed + 1


def test_the_beginning_flushes_even_if_nothing_was_writable() -> None:
    box = Written()
    box.log()
    flushed = flushes(box.vm)
    dirty.slot_log_enabled(box.vm, box.slot())
    assert flushes(box.vm) == flushed + 1


@pytest.mark.parametrize("bit", [0, 1, 31, 32, 62, 63])
def test_a_mask_names_gfns_from_its_base_on(bit: int) -> None:
    box = Written()
    box.log()
    for i in range(4):
        box.guest.write(box.gva(i))
    with held(box.vm):
        gfnrange.write_protect_masked(box.vm, box.slot(), GFN + 2 - bit, 1 << bit)
    assert box.writable() == [0, 1, 3]
    with held(box.vm):
        gfnrange.write_protect_masked(box.vm, box.slot(), GFN, 2**64 - 1)
    assert box.writable() == []


def test_words_are_taken_and_the_bitmap_is_clean_afterwards() -> None:
    box = Written()
    box.log()
    box.dirty()
    box.guest.write(box.gva(2))
    with held(box.vm):
        words = dirty.take_words(box.vm, box.slot())
        assert not any(dirty.take_words(box.vm, box.slot()))
    assert len(words) == 4096 // 64
    assert words[(GFN + 2) // 64] & 1 << (GFN + 2) % 64
    assert len(box.guest.world.dirty_log(0)) == 4096 // 8


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (0x2_0000, errno.EINVAL),
        (0x7FFC, errno.EINVAL),
        (0x7FFB, errno.ENOENT),
        (5, errno.ENOENT),
        (0, errno.ENOENT),
        (0x1_0000, errno.ENOENT),
    ],
)
def test_a_log_that_is_not_there(number: int, error: int) -> None:
    box = Written()
    with pytest.raises(KvmIoctlError) as caught:
        dirty.get_dirty_log(box.vm, number)
    assert caught.value.errno == error
    assert box.vm.slots_lock.is_free()
    assert box.vm.mmu_lock.is_free()


def test_every_level_of_a_slot_is_protected() -> None:
    guest = Guest("4-level", "host_page=2m", npt=True)
    guest.tables.map(VA, LARGE, SIZE_2M, RW | AD)
    assert guest.write(VA) == "done"
    leaf = guest.world.walk(guest.vcpu, LARGE)[-1]
    assert (leaf.level, leaf.spte & W) == (2, W)
    slot = guest.vcpu.gfn_to_memslot(LARGE >> 12)
    assert slot is not None
    assert gfnrange.write_protect_slot(guest.world.vm, slot)
    assert not gfnrange.write_protect_slot(guest.world.vm, slot)
    assert guest.world.memory.read_once(leaf.hpa) & W == 0


def small_then_large() -> tuple[Guest, Memslot]:
    """A guest whose large page was mapped small while it was logged."""
    guest = Guest("4-level", "host_page=2m", "tdp_mmu=off", npt=True)
    guest.tables.map(VA, LARGE, SIZE_2M, RW | AD)
    guest.world.set_region(UserMemoryRegion(0, 1, 0, MEMORY, guest.hva))
    for page in (0, 9):
        assert guest.write(VA + page * 4096) == "done"
    assert guest.world.walk(guest.vcpu, LARGE)[-1].level == 1
    slot = guest.vcpu.gfn_to_memslot(LARGE >> 12)
    assert slot is not None
    return guest, slot


def test_the_end_of_the_log_zaps_small_leaves_where_a_large_one_may_be() -> None:
    guest, _ = small_then_large()
    flushed = flushes(guest.world.vm)
    guest.world.set_region(UserMemoryRegion(0, 0, 0, MEMORY, guest.hva))
    assert guest.world.walk(guest.vcpu, LARGE)[-1].spte == 1 << 63
    assert flushes(guest.world.vm) == flushed + 1
    assert guest.write(VA) == "done"
    assert guest.world.walk(guest.vcpu, LARGE)[-1].level == 2


def test_small_leaves_stay_where_no_large_page_can_be() -> None:
    guest, slot = small_then_large()
    array = slot.lpage_array
    assert array is not None
    array[LARGE >> 21] += 1
    leaves = guest.world.vm.stat.pages_4k
    with held(guest.world.vm):
        gfnrange.zap_collapsible(guest.world.vm, slot)
    assert guest.world.walk(guest.vcpu, LARGE)[-1].spte & W
    assert guest.world.vm.stat.pages_4k <= leaves


def test_leaves_of_indirect_pages_are_not_collapsed() -> None:
    guest = Guest("4-level", "host_page=2m")
    guest.tables.map(VA, LARGE, flags=RW | AD)
    assert guest.write(VA) == "done"
    slot = guest.vcpu.gfn_to_memslot(LARGE >> 12)
    assert slot is not None
    with held(guest.world.vm):
        assert not gfnrange.zap_collapsible(guest.world.vm, slot)
    assert guest.world.walk(guest.vcpu, VA)[-1].spte & W


def test_a_slot_that_was_never_mapped_has_nothing_to_do() -> None:
    guest = Guest()
    slot = Memslot(3, 1, 0x90000, 16, 0)
    flushed = flushes(guest.world.vm)
    dirty.slot_log_disabled(guest.world.vm, slot)
    assert flushes(guest.world.vm) == flushed
    dirty.slot_log_enabled(guest.world.vm, slot)
    assert flushes(guest.world.vm) == flushed + 1
