# SPDX-License-Identifier: GPL-2.0-only
"""The notifier: which gfns a range of the process is, what is zapped at its start, what faults are told meanwhile."""

from __future__ import annotations

import pytest

from kvm.mmu.machines import AD, DATA, EMPTY, RW, VA, Guest, flushes, held
from kvmmu import UserMemoryRegion
from kvmmu.kvm.memslots import Memslot
from kvmmu.kvm.mmu import notify

HVA, BASE = 0x7000_0000_0000, 0x500


def slot_of(npages: int = 16) -> Memslot:
    return Memslot(0, 0, BASE, npages, HVA)


@pytest.mark.parametrize(
    ("start", "end", "gfns"),
    [
        (0, 16, (0, 16)),
        (3, 4, (3, 4)),
        (-5, 4, (0, 4)),
        (12, 100, (12, 16)),
        (-5, 100, (0, 16)),
        # Bytes: a page that is touched at all is one.
        (3.5, 3.75, (3, 4)),
        (3.5, 4.25, (3, 5)),
        (3, 4.0003, (3, 5)),
    ],
)
def test_the_gfns_that_a_range_touches(start: float, end: float, gfns: tuple[int, int]) -> None:
    first, last = HVA + int(start * 4096), HVA + int(end * 4096)
    assert notify.gfn_range(slot_of(), first, last) == (BASE + gfns[0], BASE + gfns[1])


class Mapped:
    """A guest that has read three pages, each through a table entry far from the others'."""

    def __init__(self) -> None:
        self.guest = Guest()
        for i in range(3):
            self.guest.tables.map(self.gva(i), DATA + i * 0x1000, flags=RW | AD)
            assert self.guest.read(self.gva(i)) == 0xD000 + i
        self.vm, self.mm = self.guest.world.vm, self.guest.world.vm.mm

    @staticmethod
    def gva(i: int) -> int:
        return VA + i * 0x8000

    def mapped(self) -> list[int]:
        return [i for i in range(3) if self.guest.world.walk(self.guest.vcpu, self.gva(i))[-1].spte != EMPTY]

    def covers(self, gfn: int, seq: int) -> bool:
        """Whether a fault on ``gfn`` that began at ``seq`` is told to look again."""
        with held(self.vm):
            return self.vm.invalidation.covers(gfn, seq)

    def hva(self, i: int) -> int:
        return self.guest.hva + DATA + i * 0x1000


@pytest.mark.parametrize(("first", "end", "left"), [(0, 1, [1, 2]), (1, 2, [0, 2]), (0, 3, []), (3, 4, [0, 1, 2])])
def test_what_maps_the_range_is_zapped_at_its_start_and_nothing_else(first: int, end: int, left: list[int]) -> None:
    box = Mapped()
    flushed = flushes(box.vm)
    box.mm.chain.range_start(box.hva(first), box.hva(end))
    assert box.mapped() == left
    assert flushes(box.vm) == flushed + (len(left) < 3)
    box.mm.chain.range_end(box.hva(first), box.hva(end))
    assert box.mapped() == left
    box.guest.audit()


def test_faults_in_the_range_wait_and_those_before_its_end_look_again() -> None:
    box = Mapped()
    vm, gfn = box.vm, DATA >> 12
    seq = vm.invalidation.sample()
    box.mm.chain.range_start(box.hva(0), box.hva(2))
    assert [box.covers(gfn + i, seq) for i in range(-1, 3)] == [False, True, True, False]
    box.mm.chain.range_end(box.hva(0), box.hva(2))
    assert [box.covers(gfn + i, seq) for i in range(-1, 3)] == [True] * 4
    assert [box.covers(gfn + i, seq + 1) for i in range(-1, 3)] == [False] * 4


def test_two_ranges_at_once_are_one_that_covers_both() -> None:
    box = Mapped()
    vm, gfn = box.vm, DATA >> 12
    seq = vm.invalidation.sample()
    box.mm.chain.range_start(box.hva(5), box.hva(6))
    box.mm.chain.range_start(box.hva(1), box.hva(2))
    assert [box.covers(gfn + i, seq) for i in range(8)] == [False, *[True] * 5, False, False]
    box.mm.chain.range_end(box.hva(1), box.hva(2))
    # The first is still going on, and the union stands until all have ended.
    assert [box.covers(gfn + i, seq + 1) for i in (0, 1, 5, 6)] == [False, True, True, False]
    box.mm.chain.range_end(box.hva(5), box.hva(6))
    assert not box.covers(gfn + 1, seq + 2)
    box.mm.chain.range_start(box.hva(3), box.hva(4))
    assert [box.covers(gfn + i, seq + 2) for i in (1, 3, 5)] == [False, True, False]
    box.mm.chain.range_end(box.hva(3), box.hva(4))


def test_a_range_that_no_slot_shows_is_not_noticed_by_faults() -> None:
    box = Mapped()
    other = box.mm.mmap(0x4000)
    seq = box.vm.invalidation.sample()
    box.mm.chain.range_start(other, other + 0x4000)
    assert not box.covers(DATA >> 12, seq)
    box.mm.chain.range_end(other, other + 0x4000)
    assert not box.covers(DATA >> 12, seq)
    assert box.mapped() == [0, 1, 2]


def test_memory_that_two_slots_and_spaces_show_is_zapped_in_all() -> None:
    box = Mapped()
    world = box.guest.world
    world.set_region(UserMemoryRegion(9, 0, 0x4000_0000, 0x4000, box.hva(0)))
    world.set_region(UserMemoryRegion(1 << 16, 0, 0, 0x4000, box.hva(0)))
    slots = notify.overlapping_slots(box.vm, box.hva(1), box.hva(2))
    assert sorted((slot.as_id, slot.id) for slot in slots) == [(0, 0), (0, 9), (1, 0)]
    box.guest.tables.map(VA + 0x100_0000, 0x4000_1000, flags=RW | AD)
    assert box.guest.read(VA + 0x100_0000) == 0xD001
    box.mm.chain.range_start(box.hva(1), box.hva(2))
    assert box.mapped() == [0, 2]
    assert world.walk(box.guest.vcpu, VA + 0x100_0000)[-1].spte == EMPTY
    box.mm.chain.range_end(box.hva(1), box.hva(2))


def test_the_lock_is_free_between_start_and_end() -> None:
    box = Mapped()
    box.mm.chain.range_start(box.hva(0), box.hva(1))
    with held(box.vm):
        pass
    box.mm.chain.range_end(box.hva(0), box.hva(1))
    with held(box.vm):
        pass


def test_the_guest_finds_what_the_host_put_there() -> None:
    box = Mapped()
    box.mm.dontneed(box.hva(1), 0x1000)
    assert box.guest.read(box.gva(1)) == 0
    assert box.guest.read(box.gva(0)) == 0xD000
    box.guest.audit()
