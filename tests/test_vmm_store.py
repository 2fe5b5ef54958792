# SPDX-License-Identifier: GPL-2.0-only
"""Stores that kvm does not see: ``World.poke()`` is the VMM's, ``World.kvm_write_guest()`` is kvm's own."""

from __future__ import annotations

import re

import pytest

from kvmmu import GuestMisuse, OutOfFrames, Params, World
from kvmmu.guest.tables import SIZE_2M
from kvmmu.kvm.bits import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.tracepoint import Event

MIB = 1 << 20
ROOT, VA, DATA = 0x10000, 0x40_0000, 0x20_0000
ROM = 32 * MIB
NPT = pytest.mark.parametrize("npt", [False, True], ids=["shadow", "npt"])


def machine(npt: bool = False, flags: int = 0) -> tuple[World, Vcpu]:
    world = World(Params(npt=npt))
    world.add_slot(0, 0, 16 * MIB, flags=flags)
    vcpu = world.create_vcpu()
    tables = world.tables("4-level", ROOT)
    tables.map(VA, DATA)
    tables.map_range(0x8000_0000, 0, 4 * MIB, SIZE_2M)
    world.load_registers(vcpu, tables.registers())
    return world, vcpu


def dirty_pages(world: World, slot: int = 0) -> list[int]:
    log = world.dirty_log(slot)
    return [page for page in range(len(log) * 8) if log[page // 8] >> (page % 8) & 1]


@NPT
def test_a_store_of_the_vmms_is_not_in_the_dirty_log_and_kvms_own_is(npt: bool) -> None:
    world, vcpu = machine(npt, KVM_MEM_LOG_DIRTY_PAGES)
    world.write(vcpu, VA, b"guest")
    assert DATA >> 12 in dirty_pages(world)
    world.poke(DATA, b"the VMM's")
    world.poke(DATA + 0x5FFC, b"two pages")
    assert dirty_pages(world) == []
    assert world.read(vcpu, VA, 9).data == b"the VMM's"
    # The walk of that read may have dirtied the guest's tables.
    dirty_pages(world)
    world.kvm_write_guest(DATA + 0x5FFC, b"two pages")
    assert dirty_pages(world) == [(DATA >> 12) + 5, (DATA >> 12) + 6]
    assert world.peek(DATA + 0x5FFC, 9) == b"two pages"


@NPT
def test_a_store_of_the_vmms_goes_into_a_rom_and_kvms_own_does_not(npt: bool) -> None:
    world, vcpu = machine(npt)
    world.add_slot(1, ROM, MIB, flags=KVM_MEM_READONLY)
    world.tables("4-level", ROOT).set_entry(VA, 1, ROM | 7)
    world.poke(ROM, b"BIOS")
    assert world.read(vcpu, VA, 4).data == b"BIOS"
    with pytest.raises(GuestMisuse, match=f"gpa {ROM:#x}: no writable memslot there; add_slot"):
        world.kvm_write_guest(ROM, 1)
    world.poke(ROM, 0x5A, 1)
    assert world.read(vcpu, VA, 4).data == b"ZIOS"


def test_no_event_and_no_counter_tells_of_a_store_to_a_mirrored_table() -> None:
    world, vcpu = machine()
    assert world.read(vcpu, VA).kind == "done"
    events: list[Event] = []
    world.on_event(events.append)
    digest = world.digest()
    tables = world.tables("4-level", ROOT)
    for level in (1, 2, 3, 4):
        world.poke(tables.entry_gpa(VA, level), 0)
    assert (events, world.digest()) == ([], digest)
    # Neither is it kvm's affair afterwards: what was mirrored goes on.
    assert world.read(vcpu, VA).kind == "done"


def test_a_store_that_breaks_a_copy_on_write_is_seen_as_the_hosts_deed() -> None:
    world, vcpu = machine()
    assert world.read(vcpu, VA) == world.read(vcpu, VA, 8)
    events: list[Event] = []
    world.on_event(events.append)
    world.poke(DATA, 1)
    # The page was the host's zero page: it got one of its own, and the notifier took the old one from kvm.
    assert {event[0] for event in events} <= {"kvm_unmap_hva_range"}
    assert world.read(vcpu, VA).data == (1).to_bytes(8, "little")


@pytest.mark.parametrize("call", ["poke", "kvm_write_guest"])
def test_where_nothing_is_nothing_can_be_stored(call: str) -> None:
    world, _ = machine()
    for gpa in (16 * MIB, 1 << 40, 2**64 - 8):
        with pytest.raises(GuestMisuse, match=f"gpa {gpa:#x}: no (writable )?memslot there"):
            getattr(world, call)(gpa, b"12345678")
    for gpa in (-8, 1 << 64):
        with pytest.raises(GuestMisuse, match=f"gpa {gpa:#x}: must be from 0 to 0xffffffffffffffff"):
            getattr(world, call)(gpa, b"12345678")


def test_across_the_end_of_a_slot_nothing_is_stored() -> None:
    world, _ = machine()
    with pytest.raises(GuestMisuse, match=re.escape("gpa 0xfffffc: no memslot there")):
        world.poke(16 * MIB - 4, b"12345678")
    assert world.peek(16 * MIB - 4, 4) == bytes(4)


def test_the_process_cannot_store_to_what_it_forbade_itself_or_gave_back() -> None:
    world, _ = machine()
    hva = world.add_slot(1, ROM, 3 * 4096)
    world.mm.mprotect(hva + 4096, 4096, False)
    with pytest.raises(GuestMisuse, match="the process has nothing to write"):
        world.poke(ROM + 4090, b"12345678")
    assert world.peek(ROM + 4090, 6) == bytes(6)
    world.mm.munmap(hva + 4096, 4096)
    with pytest.raises(GuestMisuse, match="the process has nothing to write"):
        world.poke(ROM + 4096, b"1")


def test_memory_that_ends_in_the_middle_of_a_store_leaves_nothing_of_it() -> None:
    world = World(nr_frames=64)
    world.add_slot(0, 0, MIB)
    for page in range(MIB >> 12):
        if world.frames.nr_free == 1:
            break
        world.poke(page << 12, b"x")
    assert world.frames.nr_free == 1
    with pytest.raises(OutOfFrames):
        world.poke(0x80FF0, bytes([7]) * 32)
    assert world.peek(0x80FF0, 16) == bytes(16)
