# SPDX-License-Identifier: GPL-2.0-only
"""A memslot goes: with the quirk SLOT_ZAP_ALL all shadow pages go along, without it the slot's own only."""

from __future__ import annotations

import pytest

from kvmmu import World
from kvmmu.addr import Gpa
from kvmmu.kvm.regions import UserMemoryRegion
from kvmmu.tracepoint import Event

from .machines import DATA, DIRECT, RW, VA, VB, Guest

#: A second slot, with a page of data and, when it is asked for, the level-1 table of VB.
OTHER, SIZE = 64 << 20, 1 << 20
VC = 0x80_0000
NPT = pytest.mark.parametrize("npt", [False, True], ids=["shadow", "npt"])


def machine(npt: bool, quirk: str) -> tuple[Guest, list[Event]]:
    """VA leads to slot 0, VC to the second slot; VB's last table lies in the second slot, its page in slot 0."""
    guest = Guest("4-level", f"slot_zap_all={quirk}", npt=npt)
    world = guest.world
    world.add_slot(1, OTHER, SIZE)
    guest.tables.map(VA, DATA)
    guest.tables.map(VB, DATA + 0x1000)
    guest.tables.map(VC, OTHER + 0x8000)
    if not npt:
        world.poke(OTHER, world.peek(guest.tables.entry_gpa(VB, 1) & ~0xFFF, 4096))
        guest.tables.set_entry(VB, 2, OTHER | RW)
    for gva in (VA, VB, VC):
        assert isinstance(guest.read(gva), int)
    events: list[Event] = []
    world.on_event(events.append)
    return guest, events


def names(events: list[Event]) -> list[str]:
    return [event[0] for event in events]


def pages_of(world: World) -> set[int]:
    return {sp.spt for sp in world.shadow_pages()}


@NPT
def test_with_the_quirk_everything_goes(npt: bool) -> None:
    guest, events = machine(npt, "on")
    before = pages_of(guest.world)
    guest.world.delete_slot(1)
    assert names(events).count("kvm_mmu_zap_all_fast") == 1
    # Only the root in use is still there, until its vCPU drops it.
    assert [sp.root_count for sp in guest.world.shadow_pages()] in ([], [1])
    assert before
    guest.audit()


@NPT
def test_without_the_quirk_only_the_slots_own_goes(npt: bool) -> None:
    guest, events = machine(npt, "off")
    world, vcpu = guest.world, guest.vcpu
    before, root = pages_of(world), vcpu.mmu.root_hpa
    table = [sp.spt for sp in world.shadow_pages() if sp.gfn == OTHER >> 12 and not sp.role & DIRECT]
    assert len(table) == (0 if npt else 1)
    world.delete_slot(1)
    assert "kvm_mmu_zap_all_fast" not in names(events)
    assert names(events).count("kvm_mmu_prepare_zap_page") == len(table)
    assert before - pages_of(world) == set(table)
    guest.audit()
    # The rest is in use as before: no fault for it, the same root.
    faults = guest.faults()
    assert isinstance(guest.read(VA), int)
    assert (guest.faults(), vcpu.mmu.root_hpa) == (faults, root)
    assert repr(guest.read(VC)) == f"<Access mmio gpa {OTHER + 0x8000:#x}>"
    if not npt:
        # A table where no memory is holds no entry.
        assert guest.read(VB) != DATA + 0x1000
    guest.audit()


@NPT
@pytest.mark.parametrize("quirk", ["on", "off"])
def test_a_slot_that_moves_is_found_at_its_new_place(npt: bool, quirk: str) -> None:
    guest, _ = machine(npt, quirk)
    world = guest.world
    hva = next(slot.userspace_addr for slot in world.vm.memslots[0].slots if slot.id == 1)
    world.poke(OTHER + 0x8000, 0x77)
    world.set_region(UserMemoryRegion(1, 0, Gpa(OTHER * 2), SIZE, hva))
    assert repr(guest.read(VC)) == f"<Access mmio gpa {OTHER + 0x8000:#x}>"
    guest.tables.set_entry(VC, 1, OTHER * 2 + 0x8000 | RW)
    guest.reload_cr3()
    world.invlpg(guest.vcpu, VC)
    # The VMM's edit: kvm mirrors the table as it was until the guest touches it.
    guest.edit.set_entry(VC, 1, OTHER * 2 + 0x8000 | RW)
    world.invlpg(guest.vcpu, VC)
    assert guest.read(VC) == 0x77
    guest.audit()


@pytest.mark.parametrize("quirk", ["on", "off"])
def test_a_slot_with_the_root_of_the_running_vcpu_goes(quirk: str) -> None:
    guest, _ = machine(False, quirk)
    world = guest.world
    world.poke(OTHER + 0x10000, world.peek(guest.tables.root, 4096))
    assert world.mov_cr3(guest.vcpu, OTHER + 0x10000)
    assert isinstance(guest.read(VA), int)
    world.delete_slot(1)
    guest.audit()
    before = guest.vcpu.mmu.root_hpa
    # KVM runs a vCPU whose CR3 lies nowhere on a dummy root: #PF or a triple fault, as the guest sees it, never RAM.
    assert not isinstance(guest.read(VA), int)
    assert guest.vcpu.mmu.root_hpa != before
    guest.audit()
