# SPDX-License-Identifier: GPL-2.0-only
"""Where KVM departs from the manual: each row of ``docs/limits.md`` that the access matrix does not show, shown.

What the oracles of the matrix and of the state machines tolerate is here as a fact, so that it cannot grow unseen.
"""

from __future__ import annotations

import errno

import pytest

from kvmmu import GuestTables, KvmIoctlError, Params, World
from kvmmu.guest.tables import SIZE_4M
from kvmmu.hw.bits import CR0_ET, CR0_PE, CR0_PG, CR4_PSE, PT_ACCESSED, PT_DIRTY, PT_PRESENT, PT_USER, PT_WRITABLE
from kvmmu.kvm import sregs
from kvmmu.kvm.cpuid import CpuFeatures
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.world import Access

VA, GPA, HOLE = 0x400000, 0x200000, 0x4000_0000
P, RW, A = PT_PRESENT, PT_PRESENT | PT_WRITABLE | PT_USER, PT_ACCESSED
BOTH = pytest.mark.parametrize("npt", [False, True], ids=["shadow", "npt"])


def machine(mode: str, npt: bool = False) -> tuple[World, Vcpu, GuestTables]:
    world = World(Params(npt=npt), nr_frames=4096)
    world.add_slot(0, 0, 16 << 20)
    vcpu = world.create_vcpu()
    tables = world.tables(mode)
    tables.map(VA, GPA)
    world.poke(GPA, 0x11)
    world.load_registers(vcpu, tables.registers())
    return world, vcpu, tables


def test_shadow_pages_are_shared_across_pse() -> None:
    """With CR4.PSE clear, bit 7 of a directory entry is ignored; a page mirrored with it set is used all the same."""
    world, vcpu, tables = machine("2-level-pse")
    tables.map(0, 0x800000, SIZE_4M)
    world.poke(0x800000, 0x22)
    assert world.read(vcpu, 0).data[0] == 0x22
    assert world.mov_cr4(vcpu, vcpu.cr4 & ~CR4_PSE)
    # 0x800000 would be a table now, whose first entry (0x22) is not present.
    assert world.read(vcpu, 0).data[0] == 0x22


def test_shadow_pages_are_shared_across_cpuid() -> None:
    """A VM has one CPUID, KVM says: what was mirrored under another address width is still used."""
    world, vcpu, tables = machine("4-level")
    tables.set_entry(VA, 1, 1 << 41 | RW | A)
    assert world.read(vcpu, VA).kind == "mmio"
    vcpu.set_cpuid(CpuFeatures(40))
    sregs.after_set_cpuid(vcpu)
    assert world.read(vcpu, VA).kind == "mmio"


def test_the_record_of_a_device_answers_for_the_walk_that_sets_d() -> None:
    """A supervisor's write with CR0.WP clear to a device's page that was read before leaves D clear."""
    world, vcpu, tables = machine("4-level")
    tables.set_entry(VA, 1, HOLE | P)
    assert world.mov_cr0(vcpu, CR0_PE | CR0_ET | CR0_PG)
    assert world.read(vcpu, VA).kind == "mmio"
    for _ in range(2):
        assert world.write(vcpu, VA, 1).kind == "mmio"
        assert not tables.entry(VA, 1) & PT_DIRTY
        # The MMIO spte, which the flush does not concern, makes the record anew.
        assert world.invlpg(vcpu, VA)
    tables.set_entry(VA + 0x1000, 1, HOLE | P)
    assert world.write(vcpu, VA + 0x1000, 1).kind == "mmio"
    assert tables.entry(VA + 0x1000, 1) & PT_DIRTY


@BOTH
def test_where_the_host_forbids_a_and_d_the_guest_faults_or_kvm_run_ends(npt: bool) -> None:
    world, vcpu, tables = machine("4-level", npt)
    slot = vcpu.gfn_to_memslot(GPA >> 12)
    assert slot is not None
    world.mm.mprotect(slot.gfn_to_hva(tables.entry_gpa(VA, 1) >> 12), 4096, False)
    if npt:
        with pytest.raises(KvmIoctlError) as caught:
            world.read(vcpu, VA)
        assert caught.value.errno == errno.EFAULT
    else:
        assert repr(world.read(vcpu, VA)) == f"<Access fault #PF(0x0) at {VA:#x}>"


@BOTH
def test_the_first_part_of_an_emulated_store_is_made_before_the_second_faults(npt: bool) -> None:
    """The first page is a mirrored table (or, behind nested paging, a device), the second is not mapped."""
    world, vcpu, tables = machine("4-level", npt)
    table = tables.entry_gpa(VA, 3) & ~0xFFF
    tables.map(VA + 0x1000, table if not npt else HOLE)
    assert world.read(vcpu, VA).kind == "done"
    result = world.write(vcpu, VA + 0x1FFC, b"ABCDEFGH")
    assert repr(result) == f"<Access fault #PF(0x2) at {VA + 0x2000:#x}>"
    if not npt:
        assert world.peek(table + 0xFFC, 4) == b"ABCD"


def test_a_walk_that_the_cpu_cannot_finish_lends_its_address_to_the_access() -> None:
    """Nested paging: the level-1 table is in ROM; its entry and the access have the same offset in their pages."""
    world, vcpu, tables = machine("4-level", True)
    rom = world.add_slot(1, HOLE, 4096, flags=2)
    place = world.mm.user_access(rom, True)
    world.memory.write_once(place, GPA | RW)
    world.memory.write_once(place + 0x800, 0)
    tables.set_entry(VA, 2, HOLE | RW | A)
    assert world.read(vcpu, VA + 0x10).data == bytes(8)
    entry = int.from_bytes(world.read(vcpu, VA).data, "little")
    assert entry == GPA | RW


def test_pdptes_are_read_at_each_walk_behind_nested_paging() -> None:
    for npt in (False, True):
        world, vcpu, tables = machine("pae", npt)
        assert world.read(vcpu, VA).kind == "done"
        world.poke(tables.entry_gpa(VA, 3), 0)
        assert world.invlpg(vcpu, VA)
        result = world.read(vcpu, VA)
        assert isinstance(result, Access)
        assert result.kind == ("fault" if npt else "done")
