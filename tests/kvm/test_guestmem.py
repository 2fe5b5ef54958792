# SPDX-License-Identifier: GPL-2.0-only
"""The hypervisor's own accesses to guest memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm.mmu.machines import publish
from kvmmu.host.bits import NO_HPA
from kvmmu.host.frames import FrameAllocator
from kvmmu.host.mm import Mm
from kvmmu.hw.memory import PhysicalMemory
from kvmmu.kvm.bits import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_MEMSLOT_INVALID
from kvmmu.kvm.guestmem import gpa_to_hpa, read_guest, write_guest
from kvmmu.kvm.memslots import Memslot, Memslots
from kvmmu.kvm.run import create_vm
from kvmmu.kvm.vm import Vm
from kvmmu.params import Params

EFAULT = 14
LOG = KVM_MEM_LOG_DIRTY_PAGES


def machine() -> tuple[Vm, int]:
    """Gfns 0-7 in slot 0, 8-15 in slot 1 (logged, elsewhere in the process), 32-33 read-only; 40 invalid; SMM: 50."""
    mm = Mm(FrameAllocator(PhysicalMemory(128)))
    hva = mm.mmap(0x40_000)
    slots = [
        Memslot(0, 0, 0, 8, hva + 0x20_000),
        Memslot(1, LOG, 8, 8, hva),
        Memslot(2, KVM_MEM_READONLY, 32, 2, hva + 0x10_000),
        Memslot(3, KVM_MEMSLOT_INVALID, 40, 1, hva + 0x18_000),
        Memslot(4, 0, 60, 8, hva + 0x3E_000),  # only two of its pages exist in the process
    ]
    slots[1].alloc_dirty_bitmap()
    smm = Memslots(1, 1, [Memslot(1 << 16, 0, 50, 1, hva + 0x1A_000)])
    vm = create_vm(mm, Params())
    for found in (Memslots(0, 0, slots), smm):
        publish(vm, found)
    return vm, hva


def test_gpa_to_hpa_goes_through_slot_and_process() -> None:
    vm, hva = machine()
    hpa = gpa_to_hpa(vm.memslots[0], vm.mm, 0x9123, True)
    assert hpa == vm.mm.user_access(hva + 0x1123, False)
    assert gpa_to_hpa(vm.memslots[1], vm.mm, 50 << 12, False) == vm.mm.user_access(hva + 0x1A_000, False)


@pytest.mark.parametrize(
    ("gfn", "write", "why"),
    [
        (16, False, "no slot"),
        (40, False, "an INVALID slot"),
        (32, True, "a write to a read-only slot"),
        (63, False, "nothing mapped in the process"),
        (50, False, "the other address space"),
        (2**52 - 1, True, "beyond everything"),
    ],
)
def test_no_hpa_for(gfn: int, write: bool, why: str) -> None:
    vm, _ = machine()
    assert gpa_to_hpa(vm.memslots[0], vm.mm, gfn << 12, write) == NO_HPA, why


def test_a_write_protected_mapping_of_the_process_refuses_writes_only() -> None:
    vm, hva = machine()
    vm.mm.mprotect(hva, 0x1000, False)
    assert gpa_to_hpa(vm.memslots[0], vm.mm, 8 << 12, True) == NO_HPA
    assert gpa_to_hpa(vm.memslots[0], vm.mm, 8 << 12, False) != NO_HPA


def test_a_read_only_slot_can_be_read() -> None:
    vm, hva = machine()
    vm.memory.write(vm.mm.user_access(hva + 0x10_000, True), b"rom")
    assert read_guest(vm, 0, 32 << 12, 4)[:3] == b"rom"
    assert write_guest(vm, 0, 32 << 12, b"x") == -EFAULT
    assert read_guest(vm, 0, 32 << 12, 3) == b"rom"


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=9000)), max_size=6))
def test_bytes_cross_pages_and_slots_as_in_flat_memory(writes: list[tuple[int, bytes]]) -> None:
    vm, flat, dirty = machine()[0], bytearray(0x10000), 0
    for gpa, data in writes:
        fits = gpa + len(data) <= 0x10000
        assert write_guest(vm, 0, gpa, data) == (0 if fits else -EFAULT)
        data = data[: 0x10000 - gpa]
        flat[gpa : gpa + len(data)] = data
        for gfn in range(gpa >> 12, (gpa + len(data) + 4095) >> 12):
            if gfn >= 8 and data:
                dirty |= 1 << (gfn - 8)
    assert read_guest(vm, 0, 0, 0x10000) == flat
    assert vm.memslots[0].find_id(1).dirty_array[0] == dirty


def test_a_read_that_runs_out_of_memory_gives_nothing() -> None:
    vm, _ = machine()
    assert read_guest(vm, 0, 0xFFFF, 1) == b"\0"
    assert read_guest(vm, 0, 0xFFFF, 2) is None
    assert read_guest(vm, 0, 0x10_0000, 0) == b""
