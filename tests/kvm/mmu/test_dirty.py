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


# Manual protection.


def logged(flags: int, *settings: str) -> Guest:
    """A guest with a large page of the host that was written before its slot was logged in the mode of ``flags``."""
    guest = Guest("4-level", "host_page=2m", *settings, npt=True)
    guest.tables.map(VA, LARGE, SIZE_2M, RW | AD)
    assert guest.write(VA) == "done"
    dirty.set_manual_protect(guest.world.vm, flags)
    guest.world.set_region(UserMemoryRegion(0, 1, 0, MEMORY, guest.hva))
    return guest


def pages_in(log: bytes) -> list[int]:
    return [page for page in range(8 * len(log)) if log[page >> 3] >> (page & 7) & 1]


def clear(guest: Guest, first: int, count: int, *pages: int) -> None:
    bits = sum(1 << (page - first) for page in pages)
    dirty.clear_dirty_log(guest.world.vm, 0, first, count, bits.to_bytes(-(-count // 64) * 8, "little"))


@pytest.mark.parametrize(("flags", "ok"), [(0, True), (1, True), (3, True), (2, False), (4, False), (5, False)])
def test_a_log_begins_full_only_if_it_is_cleared_by_hand(flags: int, ok: bool) -> None:
    vm = Guest().world.vm
    if ok:
        dirty.set_manual_protect(vm, flags)
    else:
        with pytest.raises(KvmIoctlError) as caught:
            dirty.set_manual_protect(vm, flags)
        assert caught.value.errno == errno.EINVAL
    assert vm.manual_dirty_log_protect == (flags if ok else 0)


def test_a_manual_log_is_read_and_read_again_until_it_is_cleared() -> None:
    guest = logged(1)
    page = LARGE >> 12
    for number in (3, 70):
        assert guest.write(VA + number * 4096) == "done"
    wanted = [page + 3, page + 70]
    for _ in range(2):
        assert [each for each in pages_in(guest.world.dirty_log(0)) if each >= page] == wanted
    before = flushes(guest.world.vm)
    clear(guest, page, 64, page + 3, page + 4)
    assert flushes(guest.world.vm) == before + 1
    clear(guest, page, 64, page + 3)
    assert flushes(guest.world.vm) == before + 1
    assert pages_in(guest.world.dirty_log(0))[-1:] == [page + 70]
    assert guest.write(VA + 3 * 4096) == "done"
    assert [each for each in pages_in(guest.world.dirty_log(0)) if each >= page] == wanted
    guest.audit()


@pytest.mark.parametrize("setting", ["eager_page_split=on", "eager_page_split=off", "tdp_mmu=off"])
def test_a_log_that_begins_full_protects_nothing_until_it_is_cleared(setting: str) -> None:
    guest = logged(3, setting)
    page = LARGE >> 12
    assert len(pages_in(guest.world.dirty_log(0))) == MEMORY >> 12
    level, spte = [(one.level, one.spte) for one in guest.world.walk(guest.vcpu, LARGE)][-1]
    assert (level, spte & W) == (2, W)
    clear(guest, page, 64, page + 5)
    level, spte = [(one.level, one.spte) for one in guest.world.walk(guest.vcpu, LARGE + 0x5000)][-1]
    assert (level, spte & W) == (1 if setting == "eager_page_split=on" else 2, 0)
    assert page + 5 not in pages_in(guest.world.dirty_log(0))
    assert guest.write(VA + 5 * 4096) == "done"
    assert page + 5 in pages_in(guest.world.dirty_log(0))
    guest.audit()


def test_of_pages_in_two_blocks_both_are_protected_if_not_as_the_kernel_rounds() -> None:
    """The first and the last page that is cleared; a last one that begins a block counts to the block below."""
    for first, last, blocks in ((0x3FF, 0x401, (0x200, 0x400)), (0x3FF, 0x400, (0x200,)), (0x201, 0x23F, (0x200,))):
        guest = Guest("4-level", "host_page=2m", "eager_page_split=off", npt=True)
        for at in (0, SIZE_2M):
            guest.tables.map(VA + at, 0x200000 + at, SIZE_2M, RW | AD)
            assert guest.write(VA + at) == "done"
        dirty.set_manual_protect(guest.world.vm, 3)
        guest.world.set_region(UserMemoryRegion(0, 1, 0, MEMORY, guest.hva))
        slot = guest.vcpu.gfn_to_memslot(first)
        assert slot is not None
        with held(guest.world.vm):
            dirty.protect_again(guest.world.vm, slot, first, 1 | 1 << (last - first))
        lost = [gfn for gfn in (0x200, 0x400) if not guest.world.walk(guest.vcpu, gfn << 12)[-1].spte & W]
        assert tuple(lost) == blocks


@pytest.mark.parametrize(
    ("slot", "first", "count", "number"),
    [
        (1 << 17, 0, 64, errno.EINVAL),
        (40000, 0, 64, errno.EINVAL),
        (0, 1, 64, errno.EINVAL),
        (7, 0, 64, errno.ENOENT),
        (0, 0, 63, errno.EINVAL),
        (0, MEMORY >> 12, 64, errno.EINVAL),
        (0, 2 * MEMORY >> 12, 0, errno.EINVAL),
        (0, 0, 128, errno.EFAULT),
    ],
)
def test_what_the_clear_ioctl_refuses(slot: int, first: int, count: int, number: int) -> None:
    guest = logged(1)
    with pytest.raises(KvmIoctlError) as caught:
        dirty.clear_dirty_log(guest.world.vm, slot, first, count, bytes(8))
    assert caught.value.errno == number


def test_a_slot_may_end_between_words() -> None:
    guest = Guest(npt=True)
    guest.world.add_slot(1, 64 << 20, 70 << 12, flags=1)
    dirty.clear_dirty_log(guest.world.vm, 1, 64, 6, bytes(8))
    slot = Memslot(5, 1, 0, 70, 0)
    slot.alloc_dirty_bitmap(True)
    assert list(slot.dirty_array)[:3] == [(1 << 64) - 1, 63, 0]  # type: ignore[arg-type]
