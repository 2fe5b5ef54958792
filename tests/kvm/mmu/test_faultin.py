# SPDX-License-Identifier: GPL-2.0-only
"""From a gfn to the host's page: which page, with which rights, whose reference; and when the answer is stale."""

from __future__ import annotations

import errno

import pytest

from kvm.mmu.machines import DATA, HOLE, Guest, U, W, held, page_of
from kvmmu import KvmBug, UserMemoryRegion
from kvmmu.kvm.mmu import faultin, zap
from kvmmu.kvm.mmu.fault import PageFault
from kvmmu.kvm.vcpu import Vcpu

READ, WRITE = 0, 2
CONTINUE, RETRY, EMULATE = 0, 1, 2
NO_SLOT, ERR_FAULT = 1 << 63, 0x7FF << 52
RO_FAULT = ERR_FAULT + 2
FREE_OBSOLETE_ROOTS = 39
FRESH, RO_SLOT = 0x80_0000, 0x2000_0000


class Box:
    def __init__(self, *settings: str, npt: bool = False) -> None:
        self.guest = Guest("4-level", *settings, npt=npt)
        self.guest.world.add_slot(7, RO_SLOT, 0x4000, flags=2)
        self.vcpu: Vcpu = self.guest.vcpu
        self.vm = self.guest.world.vm
        self.mm = self.guest.world.vm.mm

    def fault(self, gpa: int = DATA, code: int = READ) -> PageFault:
        fault = PageFault(gpa, code)
        fault.gfn = gpa >> 12
        fault.slot = self.vcpu.gfn_to_memslot(gpa >> 12)
        return fault

    def faultin(self, fault: PageFault, access: int = 7) -> int:
        return faultin.faultin(self.vcpu, fault, access)

    def is_stale(self, fault: PageFault, vcpu: Vcpu | None = None) -> bool:
        with held(self.vm):
            return faultin.is_stale(vcpu or self.vcpu, fault)

    def hva(self, gpa: int) -> int:
        slot = self.vcpu.gfn_to_memslot(gpa >> 12)
        assert slot is not None
        return slot.gfn_to_hva(gpa >> 12)

    def frame(self, gpa: int) -> int:
        """The host's frame of ``gpa`` now."""
        return self.mm.hpte(self.hva(gpa)) >> 12 & 0xFFFFFFF


# The page.


@pytest.mark.parametrize("code", [READ, WRITE])
def test_a_page_that_is_at_hand_is_writable_with_one_reference(code: int) -> None:
    box = Box()
    refs = box.vm.frames.nr_refs(box.frame(DATA))
    fault = box.fault(DATA, code)
    assert box.faultin(fault) == CONTINUE
    assert (fault.pfn, fault.hva, fault.map_writable) == (box.frame(DATA), box.hva(DATA), True)
    assert box.vm.frames.nr_refs(fault.pfn) == refs + 1
    faultin.release_pfn(box.vm, fault.pfn)
    assert box.vm.frames.nr_refs(fault.pfn) == refs


def test_a_read_of_a_fresh_page_finds_zeros_that_may_not_be_written() -> None:
    box = Box()
    fault = box.fault(FRESH)
    assert box.faultin(fault) == CONTINUE
    assert (fault.pfn, fault.map_writable) == (box.vm.frames.zero_pfn, False)


def test_a_write_of_a_fresh_page_makes_one() -> None:
    box = Box()
    fault = box.fault(FRESH, WRITE)
    assert box.faultin(fault) == CONTINUE
    assert fault.map_writable
    assert fault.pfn == box.frame(FRESH) != box.vm.frames.zero_pfn


def test_a_read_that_made_a_writable_page_keeps_one_reference() -> None:
    """Shared memory is made writable by a read: KVM looks twice and has two references for a moment."""
    box = Box()
    world = box.guest.world
    world.add_slot(8, 0x3000_0000, 0x2000, backing="shared")
    fault = box.fault(0x3000_0000)
    assert box.faultin(fault) == CONTINUE
    assert fault.map_writable
    refs = box.vm.frames.nr_refs(fault.pfn)
    faultin.release_pfn(box.vm, fault.pfn)
    assert box.vm.frames.nr_refs(fault.pfn) == refs - 1
    again = box.fault(0x3000_0000)
    assert box.faultin(again) == CONTINUE
    assert box.vm.frames.nr_refs(fault.pfn) == refs


def test_a_read_only_slot_is_never_mapped_writable() -> None:
    box = Box()
    box.mm.user_access(box.hva(RO_SLOT), True)
    fault = box.fault(RO_SLOT)
    assert box.faultin(fault) == CONTINUE
    assert (fault.map_writable, fault.pfn) == (False, box.frame(RO_SLOT))


def test_a_write_to_a_read_only_slot_is_emulated_and_looks_at_no_page() -> None:
    box = Box()
    fault = box.fault(RO_SLOT, WRITE)
    assert box.faultin(fault) == EMULATE
    assert fault.pfn == RO_FAULT
    assert box.mm.hpte(box.hva(RO_SLOT)) == 0


@pytest.mark.parametrize(("code", "result"), [(WRITE, -errno.EFAULT), (READ, CONTINUE)])
def test_a_page_that_the_process_may_only_read(code: int, result: int) -> None:
    box = Box()
    box.mm.mprotect(box.hva(DATA), 0x1000, writable=False)
    fault = box.fault(DATA, code)
    assert box.faultin(fault) == result
    assert fault.pfn == (ERR_FAULT if result else box.frame(DATA))
    assert not fault.map_writable


def test_nothing_at_the_hva_is_efault() -> None:
    box = Box()
    box.mm.munmap(box.hva(DATA), 0x1000)
    fault = box.fault(DATA)
    assert (box.faultin(fault), fault.pfn) == (-errno.EFAULT, ERR_FAULT)


def test_a_slot_that_goes_away_makes_the_guest_try_again() -> None:
    box = Box()
    fault = box.fault(DATA)
    assert fault.slot is not None
    fault.slot = fault.slot.copy()
    fault.slot.flags |= 1 << 16
    assert box.faultin(fault) == RETRY
    assert fault.pfn == ERR_FAULT


# No slot.


@pytest.mark.parametrize("npt", [False, True])
def test_no_slot_is_remembered_as_mmio(npt: bool) -> None:
    box = Box(npt=npt)
    fault = box.fault(HOLE + 0x123, WRITE)
    assert box.faultin(fault) == CONTINUE
    assert (fault.slot, fault.pfn, fault.map_writable, fault.hva) == (None, NO_SLOT, False, 0xFFFF_8880_0000_0000)
    # Nested paging does not know the gva; X is not among the rights that are kept.
    assert (box.vcpu.mmio_gva, box.vcpu.mmio_gfn) == (0 if npt else HOLE, HOLE >> 12)
    assert box.vcpu.mmio_access == U | W


def test_without_mmio_caching_every_access_is_emulated() -> None:
    box = Box("mmio_caching=0")
    fault = box.fault(HOLE)
    assert box.faultin(fault) == EMULATE
    assert box.vcpu.mmio_gfn == HOLE >> 12


@pytest.mark.parametrize(("gfn", "result"), [((1 << 34) - 1, CONTINUE), (1 << 34, EMULATE)])
def test_beyond_the_hosts_addresses_there_is_no_mmio_entry(gfn: int, result: int) -> None:
    box = Box(npt=True)
    assert box.faultin(box.fault(gfn << 12)) == result


# Stale answers.


@pytest.mark.parametrize(("first", "end"), [(0x100, 0x101), (0x100, 0x200), (0, 0x100), (0x101, 0x200), (0xFF, 0x102)])
def test_a_fault_waits_for_the_range_in_progress_that_covers_it(first: int, end: int) -> None:
    box = Box()
    covered = first <= DATA >> 12 < end
    refs = box.vm.frames.nr_refs(box.frame(DATA))
    box.mm.chain.range_start(box.guest.hva + (first << 12), box.guest.hva + (end << 12))
    fault = box.fault(DATA)
    assert box.faultin(fault) == (RETRY if covered else CONTINUE)
    assert box.is_stale(fault) == covered
    if not covered:
        faultin.release_pfn(box.vm, fault.pfn)
    box.mm.chain.range_end(box.guest.hva + (first << 12), box.guest.hva + (end << 12))
    # What was found before the end is stale now, wherever it was.
    assert box.is_stale(fault)
    assert box.vm.frames.nr_refs(box.frame(DATA)) == refs


def test_a_fault_without_a_slot_is_not_made_stale_by_invalidations() -> None:
    box = Box()
    fault = box.fault(HOLE)
    box.faultin(fault)
    box.mm.chain.range_start(box.guest.hva, box.guest.hva + 0x1000)
    box.mm.chain.range_end(box.guest.hva, box.guest.hva + 0x1000)
    assert not box.is_stale(fault)


def test_a_fault_on_an_obsolete_root_is_stale() -> None:
    box = Box()
    box.guest.read(box.guest.window + 0x10000)
    fault = box.fault(DATA)
    box.faultin(fault)
    assert not box.is_stale(fault)
    root = page_of(box.guest.world, box.guest.tables.root >> 12, 4)
    with held(box.vm):
        zap.prepare_zap(box.vm, root, [])
    assert box.is_stale(fault)
    # The root says so itself, whether the request was served or not.
    box.vcpu.requests = 0
    assert box.is_stale(fault)


def test_a_request_does_not_make_a_valid_root_stale() -> None:
    box = Box()
    box.guest.read(box.guest.window + 0x10000)
    fault = box.fault(DATA)
    box.faultin(fault)
    box.vcpu.requests |= 1 << FREE_OBSOLETE_ROOTS
    assert not box.is_stale(fault)


def test_staleness_is_judged_under_the_lock_only() -> None:
    box = Box()
    fault = box.fault(DATA)
    box.faultin(fault)
    with pytest.raises(KvmBug, match="mmu_lock must be held"):
        faultin.is_stale(box.vcpu, fault)
    faultin.release_pfn(box.vm, fault.pfn)


def test_without_a_page_of_its_own_a_root_is_obsolete_when_the_vcpu_was_told() -> None:
    box = Box()
    unpaged = box.guest.world.create_vcpu()
    fault = box.fault(DATA)
    box.faultin(fault)
    assert not box.is_stale(fault, unpaged)
    unpaged.requests |= 1 << FREE_OBSOLETE_ROOTS
    assert box.is_stale(fault, unpaged)


@pytest.mark.parametrize("pfn", [NO_SLOT, ERR_FAULT, RO_FAULT])
def test_what_is_no_frame_is_not_released(pfn: int) -> None:
    assert faultin.release_pfn(Box().vm, pfn) == 0


def test_a_slot_that_was_replaced_is_still_found() -> None:
    box = Box()
    box.guest.world.set_region(UserMemoryRegion(0, 1, 0, 16 << 20, box.guest.hva))
    assert box.faultin(box.fault(DATA)) == CONTINUE
