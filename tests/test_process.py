# SPDX-License-Identifier: GPL-2.0-only
"""World.mm: each call does what its system call does, and leaves no door open behind it (nonsense: test_refusals)."""

from __future__ import annotations

import pytest

from kvmmu import Params, World
from kvmmu.errors import OutOfFrames, UserError
from kvmmu.host.bits import MMAP_BASE, NO_HPA, VM_FAULT_NO_VMA, VM_FAULT_OK, VM_FAULT_READ_ONLY

SIZE = 4 << 20


class Box:
    """A guest with one page at gva 0x400000, gpa 0x200000, which it has written to."""

    def __init__(self) -> None:
        self.world = World(Params(npt=False), 1 << 13)
        self.hva = self.world.add_slot(0, 0, SIZE)
        self.vcpu = self.world.create_vcpu()
        tables = self.world.tables("4-level", 0x10000)
        tables.map(0x40_0000, 0x20_0000)
        self.world.load_registers(self.vcpu, tables.registers())
        self.world.write(self.vcpu, 0x40_0000, b"hello")
        self.page = self.hva + 0x20_0000
        self.mm = self.world.mm

    def kind(self) -> str:
        return self.world.walk(self.vcpu, 0x40_0000)[-1].text

    def data(self) -> bytes:
        return self.world.read(self.vcpu, 0x40_0000, 5).data


def test_what_the_process_takes_away_kvm_no_longer_maps() -> None:
    box = Box()
    assert box.kind().startswith("4K W-host")
    box.mm.mprotect(box.page, 0x1000, False)
    assert not box.kind().startswith("4K W-host")
    assert box.data() == b"hello"
    box.mm.dontneed(box.page, 0x1000)
    assert box.kind() == "NP"
    assert box.data() == bytes(5)
    box.mm.munmap(box.page, 0x1000)
    assert [(vma.start, vma.end) for vma in box.mm.vmas] == [
        (box.hva, box.page),
        (box.page + 0x1000, box.hva + SIZE),
    ]
    box.world.audit()


def test_new_memory_in_the_place_of_old() -> None:
    box = Box()
    box.mm.mmap_fixed(box.page, 0x1000)
    vma = box.mm.find_vma(box.page)
    assert vma is not None
    assert (vma.start, vma.end, vma.page_level) == (box.page, box.page + 0x1000, 1)
    assert box.data() == bytes(5)


def test_huge_pages_are_allowed_and_forbidden_for_later_faults() -> None:
    box = Box()
    hva = box.mm.mmap(4 << 20, page_level=1, align=2 << 20)
    box.mm.allow_huge(hva, 2 << 20, 2)
    box.mm.populate(hva, 4 << 20)
    assert (box.mm.mapping_level(hva), box.mm.mapping_level(hva + (2 << 20))) == (2, 1)
    assert box.mm.hpte(hva) & 3 == 3


def test_reclaim_asks_whether_the_guest_used_a_page() -> None:
    box = Box()
    assert box.mm.test_young(box.page)
    assert box.mm.clear_flush_young(box.page, 0x1000)
    assert not box.mm.test_young(box.page)
    box.data()
    assert box.mm.test_young(box.page)
    assert box.mm.clear_young(box.page, 0x1000)
    # The TLB was not flushed: it hides the next use.
    box.data()
    assert not box.mm.clear_young(box.page, 0x1000)


def test_the_process_faults_and_reaches_its_own_memory() -> None:
    box = Box()
    hva = box.mm.mmap(0x2000, "shared")
    assert hva > MMAP_BASE
    assert box.mm.hpte(hva) == 0
    assert box.mm.fault_in(hva, True) == VM_FAULT_OK
    assert box.mm.user_access(hva + 0x123, True) == (box.mm.hpte(hva) & ~0xFFF) + 0x123
    box.mm.mprotect(hva, 0x2000, False)
    assert box.mm.fault_in(hva, True) == VM_FAULT_READ_ONLY
    assert box.mm.user_access(hva, True) == NO_HPA
    assert box.mm.fault_in(hva + 0x10_0000, False) == VM_FAULT_NO_VMA
    assert repr(box.mm) == f"<Process ranges 2 of {SIZE + 0x2000:#x} bytes>"


def test_memory_that_ends_while_populating_leaves_nothing_mapped() -> None:
    box = Box()
    free, ranges = box.world.frames.nr_free, len(box.mm.vmas)
    with pytest.raises(OutOfFrames):
        box.mm.mmap(1 << 30, populate=True)
    assert (box.world.frames.nr_free, len(box.mm.vmas)) == (free, ranges)
    assert box.data() == b"hello"


def test_populating_over_the_end_of_a_range_backs_nothing() -> None:
    box = Box()
    hva = box.mm.mmap(0x2000)
    with pytest.raises(UserError, match="is not mapped: use addresses that"):
        box.mm.populate(hva, 0x3000)
    assert [box.mm.hpte(hva), box.mm.hpte(hva + 0x1000)] == [0, 0]


def test_what_kvm_works_with_is_behind_the_process() -> None:
    box = Box()
    assert box.world.vm.mm.find_vma(box.hva) is box.mm.find_vma(box.hva)
    with pytest.raises(AttributeError):
        box.mm.gup(box.hva, False)  # type: ignore[attr-defined]
