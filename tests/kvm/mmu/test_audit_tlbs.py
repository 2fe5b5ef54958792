# SPDX-License-Identifier: GPL-2.0-only
"""Where kvm flushes, the CPU really loses the entries: what only counts a flush, or makes the wrong one, is found."""

from __future__ import annotations

import pytest

import kvmmu.world
from kvm.mmu.machines import AD, DATA, LARGE, MEMORY, RW, VA, Guest, flushes, slots_held
from kvmmu import KvmBug, UserMemoryRegion
from kvmmu.guest.tables import SIZE_2M
from kvmmu.hw.cpu import CpuRunner
from kvmmu.kvm.mmu import dirty
from kvmmu.kvm.requests import flush_remote_tlbs, flush_remote_tlbs_gfn, flush_remote_tlbs_range
from kvmmu.kvm.svm import Svm
from kvmmu.kvm.vm import Vm


class Deaf(CpuRunner):
    """A CPU that forgets nothing: the model counts its flushes and does not make them."""

    def flush_asid(self) -> int:
        return 0

    def flush_gva(self, gva: int) -> int:
        return 0


def guest_of(*settings: str, npt: bool, mode: str = "4-level", nr: int = 2) -> Guest:
    guest = Guest(mode, *settings, npt=npt)
    for i in range(nr):
        guest.tables.map(VA + i * 0x1000, DATA + i * 0x1000, flags=RW | AD)
    # PAE paging loads the new top entries with CR3.
    assert guest.world.mov_cr3(guest.vcpu, guest.vcpu.cr3)
    for i in range(nr):
        assert guest.write(VA + i * 0x1000) == "done"
    return guest


def translates(guest: Guest, gva: int) -> bool:
    return guest.vcpu.cpu.tlb.peek(gva) != 0


def take_back(guest: Guest) -> None:
    guest.world.mm.dontneed(guest.hva + DATA, 0x1000)


def log(guest: Guest) -> None:
    guest.world.set_region(UserMemoryRegion(0, 1, 0, MEMORY, guest.hva))


def make_read_only(guest: Guest) -> None:
    guest.world.mm.mprotect(guest.hva + DATA, 0x1000, False)


def delete(guest: Guest) -> None:
    guest.world.delete_slot(0)
    guest.world.set_region(UserMemoryRegion(0, 0, 0, MEMORY, guest.hva))


@pytest.mark.parametrize("npt", [False, True])
@pytest.mark.parametrize(("change", "broken"), [(take_back, "I1"), (make_read_only, "I1"), (log, "I2"), (delete, "I1")])
def test_a_flush_that_is_counted_and_not_made_is_found(npt: bool, change: object, broken: str) -> None:
    for is_deaf in (False, True):
        guest = guest_of(npt=npt)
        assert guest.world.audit().tlb_entries >= 2
        if is_deaf:
            guest.vcpu.set_runner(Deaf(guest.vcpu.cpu))
        before = flushes(guest.world.vm)
        change(guest)  # type: ignore[operator]
        # Of a slot that goes the TDP MMU flushes nothing: its roots are obsolete, and the new one comes with a flush.
        assert flushes(guest.world.vm) > before or (npt and change is delete)
        # The flush is due, and not yet made: nothing is wrong.
        guest.world.audit()
        guest.read(VA + 0x1000)
        if is_deaf:
            with pytest.raises(KvmBug, match=f"{broken}: vCPU 0, gva 0x400000 .*no flush is due"):
                guest.world.audit()
        else:
            guest.world.audit()


def test_every_vcpu_is_looked_at() -> None:
    guest = guest_of(npt=True)
    other = guest.world.create_vcpu()
    guest.world.load_registers(other, guest.tables.registers())
    assert guest.write(VA) == "done"
    assert guest.read(VA, vcpu=other) == 1
    other.set_runner(Deaf(other.cpu))
    take_back(guest)
    guest.read(VA + 0x1000)
    guest.world.audit()
    guest.read(VA + 0x1000, vcpu=other)
    with pytest.raises(KvmBug, match="I1: vCPU 1, gva 0x400000"):
        guest.world.audit()


@pytest.mark.parametrize("mode", ["2-level", "pae", "4-level", "5-level"])
@pytest.mark.parametrize("npt", [False, True])
def test_what_a_guest_forgets_to_flush_is_no_excuse_and_no_mistake_of_kvms(mode: str, npt: bool) -> None:
    guest = guest_of(npt=npt, mode=mode)
    guest.tables.map(VA, DATA + 0x3000, flags=RW | AD)
    guest.read(VA)
    guest.world.audit()
    guest.world.mov_cr3(guest.vcpu, guest.vcpu.cr3)
    guest.read(VA + 0x1000)
    guest.world.audit()


# Ranges.


class Vendor(Svm):
    """Flushes ``shift`` gfns beside the range."""

    def __init__(self, shift: int) -> None:
        self.shift = shift
        self.asked: list[tuple[int, int]] = []

    def flush_remote_tlbs_range(self, vm: Vm, gfn: int, nr_pages: int) -> int:
        self.asked.append((gfn, nr_pages))
        return super().flush_remote_tlbs_range(vm, gfn + self.shift, nr_pages)


def test_without_the_hook_a_range_is_flushed_with_all() -> None:
    guest = guest_of(npt=True)
    vm = guest.world.vm
    before = flushes(vm)
    flush_remote_tlbs_gfn(vm, DATA >> 12, 1)  # type: ignore[arg-type]
    assert flushes(vm) == before + 1
    assert guest.read(VA + 0x1000) == 1
    assert not translates(guest, VA)


@pytest.mark.parametrize("keep_all", ["off", "on"])
def test_with_the_hook_a_range_goes_at_once_alone_and_uncounted(keep_all: str) -> None:
    guest = guest_of("range_flush=on", f"tlb_keep_all={keep_all}", npt=True, nr=4)
    vm = guest.world.vm
    counted = (flushes(vm), vm.stat.remote_tlb_flush)
    flush_remote_tlbs_gfn(vm, (DATA >> 12) + 1, 1)  # type: ignore[arg-type]
    assert [translates(guest, VA + i * 0x1000) for i in range(4)] == [True, False, True, True]
    flush_remote_tlbs_range(vm, (DATA >> 12) + 2, 2)  # type: ignore[arg-type]
    assert [translates(guest, VA + i * 0x1000) for i in range(4)] == [True, False, False, False]
    assert (flushes(vm), vm.stat.remote_tlb_flush, guest.vcpu.requests) == (*counted, 0)
    # A block of 2M around the gfn, whatever gfn it is.
    assert guest.write(VA + 0x1000) == "done"
    flush_remote_tlbs_gfn(vm, (DATA >> 12) + 77, 2)  # type: ignore[arg-type]
    assert not any(translates(guest, VA + i * 0x1000) for i in range(4))
    flush_remote_tlbs(vm)
    assert flushes(vm) == counted[0] + 1


def test_a_page_in_a_huge_translation_flushes_it() -> None:
    guest = Guest("4-level", "host_page=2m", "range_flush=on", npt=True)
    guest.tables.map(VA, LARGE, size=SIZE_2M, flags=RW | AD)
    assert guest.write(VA + 0x5000) == "done"
    flush_remote_tlbs_range(guest.world.vm, (LARGE >> 12) - 1, 1)  # type: ignore[arg-type]
    flush_remote_tlbs_range(guest.world.vm, (LARGE >> 12) + 512, 1)  # type: ignore[arg-type]
    assert translates(guest, VA)
    flush_remote_tlbs_range(guest.world.vm, (LARGE >> 12) + 511, 1)  # type: ignore[arg-type]
    assert not translates(guest, VA)


def test_under_shadow_paging_there_is_no_such_hook() -> None:
    guest = guest_of("range_flush=on", npt=False)
    before = flushes(guest.world.vm)
    flush_remote_tlbs_gfn(guest.world.vm, DATA >> 12, 1)  # type: ignore[arg-type]
    assert flushes(guest.world.vm) == before + 1


@pytest.mark.parametrize("shift", [0, MEMORY >> 12, 1 << 30])
def test_a_wrong_range_is_seen(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vendor = Vendor(shift)
    monkeypatch.setattr(kvmmu.world.run, "create_vm", lambda mm, params: Vm(mm, params, vendor))
    guest = guest_of("range_flush=on", npt=True)
    log(guest)
    assert vendor.asked == [(0, MEMORY >> 12)]
    if shift:
        with pytest.raises(KvmBug, match="I2: vCPU 0, gva 0x400000"):
            guest.world.audit()
    else:
        guest.world.audit()
        assert guest.write(VA) == "done"
        assert int.from_bytes(guest.world.dirty_log(0), "little") >> (DATA >> 12) & 1


def test_a_range_with_the_wrong_end_loses_a_write() -> None:
    """What the audit says has a victim: a page that is written through the TLB and not in the log."""
    guest = guest_of("range_flush=on", npt=True)
    vm = guest.world.vm
    log(guest)
    guest.world.dirty_log(0)
    assert guest.write(VA) == "done"
    slot = guest.vcpu.gfn_to_memslot(DATA >> 12)
    assert slot is not None
    with slots_held(vm):
        vm.mmu_lock.write_lock()
        words = dirty.take_words(vm, slot)
        vm.mmu_lock.write_unlock()
        flush_remote_tlbs_range(vm, slot.base_gfn, DATA >> 12)
    assert words[(DATA >> 12) // 64] >> ((DATA >> 12) & 63) & 1
    with pytest.raises(KvmBug, match="I2: vCPU 0, gva 0x400000"):
        guest.world.audit()
    assert guest.write(VA) == "done"
    assert not int.from_bytes(guest.world.dirty_log(0), "little") >> (DATA >> 12) & 1, "the write was missed"
