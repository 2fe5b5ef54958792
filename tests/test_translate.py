# SPDX-License-Identifier: GPL-2.0-only
"""``World.translate()``: KVM_TRANSLATE."""

from __future__ import annotations

import pytest

from kvmmu import GuestMisuse, Params, World
from kvmmu.guest.tables import SIZE_2M
from kvmmu.hw.bits import CR4_SMAP, PT_ACCESSED, PT_PRESENT, PT_WRITABLE, X86_EFLAGS_AC
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.tracepoint import Event, vcpu_of

MIB = 1 << 20
NPT = pytest.mark.parametrize("npt", [False, True], ids=["shadow", "npt"])


def machine(npt: bool, mode: str) -> tuple[World, Vcpu]:
    world = World(Params(npt=npt))
    world.add_slot(0, 0, 16 * MIB)
    vcpu = world.create_vcpu()
    tables = world.tables(mode, 0x10000)
    tables.map(0x40_0000, 0x20_0000)
    tables.map(0x40_1000, 0xE000_0000)
    tables.map(0x40_2000, 0x20_2000, flags=PT_PRESENT | PT_WRITABLE)
    world.load_registers(vcpu, tables.registers())
    return world, vcpu


@NPT
@pytest.mark.parametrize("mode", ["2-level", "pae", "4-level", "5-level"])
def test_the_guests_tables_say_where_an_address_is(npt: bool, mode: str) -> None:
    world, vcpu = machine(npt, mode)
    assert world.translate(vcpu, 0x40_0123) == 0x20_0123
    # Nothing need be there.
    assert world.translate(vcpu, 0x40_1008) == 0xE000_0008
    assert world.translate(vcpu, 0x50_0000) is None
    assert world.counters()["exits"] == 0


@NPT
def test_without_paging_an_address_is_itself(npt: bool) -> None:
    world = World(Params(npt=npt))
    assert world.translate(world.create_vcpu(), 0x1234) == 0x1234


def test_it_is_a_supervisors_read_with_all_that_belongs_to_it() -> None:
    world, vcpu = machine(False, "4-level")
    tables = world.tables("4-level", 0x10000)
    assert not tables.entry(0x40_0000, 1) & PT_ACCESSED
    events: list[Event] = []
    world.on_event(events.append)
    assert world.translate(vcpu, 0x40_0000) == 0x20_0000
    assert tables.entry(0x40_0000, 1) & PT_ACCESSED
    assert events[0][:3] == ("kvm_mmu_pagetable_walk", 0x40_0000, 0)
    assert {vcpu_of(event) for event in events} == {0}
    # SMAP: a user's page is none of the supervisor's, unless EFLAGS.AC says so.
    assert world.mov_cr4(vcpu, vcpu.cr4 | CR4_SMAP)
    assert (world.translate(vcpu, 0x40_0000), world.translate(vcpu, 0x40_2000)) == (None, 0x20_2000)
    vcpu.rflags |= X86_EFLAGS_AC
    assert world.translate(vcpu, 0x40_0000) == 0x20_0000


def test_a_large_page_is_followed_to_the_byte() -> None:
    world, vcpu = machine(True, "4-level")
    world.tables("4-level", 0x80000).map(0x80_0000, 0x60_0000, size=SIZE_2M)
    assert world.mov_cr3(vcpu, 0x80000)
    assert world.translate(vcpu, 0x8A_BCDE) == 0x6A_BCDE


def test_a_closed_world_translates_nothing() -> None:
    world, vcpu = machine(False, "4-level")
    world.close()
    with pytest.raises(GuestMisuse, match="closed"):
        world.translate(vcpu, 0x40_0000)
