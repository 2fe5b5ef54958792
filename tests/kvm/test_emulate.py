# SPDX-License-Identifier: GPL-2.0-only
"""The emulator's path to memory: where an access goes, page by page, and what is seen of it."""

from __future__ import annotations

import pytest

from kvmmu.hw.bits import ACCESS_USER, ACCESS_WRITE, UD_VECTOR
from kvmmu.kvm import emulate, sregs
from kvmmu.kvm.mmu.verdict import EMULTYPE_ALLOW_RETRY_PF, EMULTYPE_PF, EMULTYPE_WRITE_PF_TO_SP
from kvmmu.kvm.outcome import (
    X86EMUL_CONTINUE,
    X86EMUL_IO_NEEDED,
    X86EMUL_PROPAGATE_FAULT,
    X86EMUL_RETRY_INSTR,
    X86EMUL_UNHANDLEABLE,
)
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.params import Params
from kvmmu.tracepoint import Event
from kvmmu.world import World

RAM, DEVICE = 0x200000, 0xE000_0000
BASE = 0x400000
USED = 0x67


def machine(npt: bool, pages: list[int]) -> tuple[World, Vcpu, list[Event]]:
    """A long-mode guest whose linear pages from BASE on are ``pages``; its events."""
    world = World(Params(npt=npt))
    world.add_slot(0, 0, 16 << 20)
    for gpa, entry in ((0x10000, 0x11027), (0x11000, 0x12027), (0x12010, 0x13027)):
        world.poke(gpa, entry)
    for i, page in enumerate(pages):
        world.poke(0x13000 + 8 * i, page | USED)
    vcpu = world.create_vcpu()
    sregs.set_sregs(vcpu, 0x8001_0011, 0x10000, 0x20, 0xD00)
    events: list[Event] = []
    assert world.read(vcpu, BASE + 8).kind in ("done", "mmio")
    world.on_event(events.append)
    return world, vcpu, events


@pytest.mark.parametrize("npt", [False, True])
def test_a_read_across_two_device_pages_is_one_device_access_at_its_first_byte(npt: bool) -> None:
    _, vcpu, events = machine(npt, [DEVICE, DEVICE + 0x1000])
    vcpu.exit_address = DEVICE + 0xFFE if npt else BASE + 0xFFE
    nr_before = vcpu.stat.mmio_exits
    assert emulate.emulate(vcpu, BASE + 0xFFE, 0, None, 4) == X86EMUL_IO_NEEDED
    assert vcpu.mmio_gpa == DEVICE + 0xFFE
    # The length is what lies in the last page, the address that of the first byte: kvm's emulator_read_write().
    assert [event for event in events if event[0] == "kvm_mmio"] == [("kvm_mmio", 0, 2, DEVICE + 0xFFE, 0)]
    assert vcpu.stat.mmio_exits == nr_before + 1


def test_a_write_across_two_device_pages_shows_both_parts() -> None:
    _, vcpu, events = machine(False, [DEVICE, DEVICE + 0x3000])
    vcpu.exit_address = BASE + 0xFFE
    assert emulate.emulate(vcpu, BASE + 0xFFE, ACCESS_WRITE, b"\1\2\3\4", 4) == X86EMUL_IO_NEEDED
    assert [event[1:] for event in events if event[0] == "kvm_mmio"] == [
        (2, 2, DEVICE + 0xFFE, 0x0201),
        (2, 2, DEVICE + 0x3000, 0x0403),
    ]
    assert vcpu.mmio_gpa == DEVICE + 0xFFE


def test_a_read_from_ram_into_a_device_is_a_device_access_at_the_device() -> None:
    _, vcpu, events = machine(False, [RAM, DEVICE])
    vcpu.exit_address = BASE + 0x1000
    assert emulate.emulate(vcpu, BASE + 0xFFE, 0, None, 4) == X86EMUL_IO_NEEDED
    assert vcpu.mmio_gpa == DEVICE
    assert [event[1:] for event in events if event[0] == "kvm_mmio"] == [(0, 2, DEVICE, 0)]


def test_under_nested_paging_the_exits_gpa_serves_the_page_that_it_is_in() -> None:
    # The exit was for the second page: its gpa is known, the first page's must be looked up in the guest's tables.
    _, vcpu, events = machine(True, [RAM, DEVICE])
    vcpu.exit_address = DEVICE
    assert emulate.emulate(vcpu, BASE + 0xFFE, 0, None, 4) == X86EMUL_IO_NEEDED
    walks = [event for event in events if event[0] == "kvm_mmu_pagetable_walk"]
    assert walks == [("kvm_mmu_pagetable_walk", BASE + 0xFFE, 0)]


def test_emulation_drops_the_exception_that_was_to_be_delivered() -> None:
    _, vcpu, _ = machine(False, [RAM])
    vcpu.exception_pending = vcpu.exception_reinjected = True
    assert emulate.decode_insn(vcpu, 0) == X86EMUL_CONTINUE
    assert (vcpu.exception_pending, vcpu.exception_reinjected) == (False, False)
    assert vcpu.stat.insn_emulation == 1


def test_the_fetch_of_an_unmapped_instruction_faults_and_is_counted() -> None:
    _, vcpu, events = machine(False, [RAM])
    vcpu.fetches_insns = True
    vcpu.rip = BASE + 0x5000
    assert emulate.emulate(vcpu, BASE, 0, None, 4) == X86EMUL_PROPAGATE_FAULT
    assert vcpu.exception_pending
    assert vcpu.cr2 == BASE + 0x5000
    assert vcpu.stat.insn_emulation == 1
    assert events[-1][0] == "kvm_emulate_insn"


def test_a_supervisors_instruction_in_a_device_cannot_be_emulated() -> None:
    _, vcpu, events = machine(False, [DEVICE])
    vcpu.fetches_insns = True
    vcpu.rip = BASE
    vcpu.emultype = 0
    assert emulate.emulate(vcpu, BASE, 0, None, 4) == X86EMUL_UNHANDLEABLE
    assert vcpu.stat.insn_emulation_fail == 1
    assert [(event[0], event[-1]) for event in events[-2:]] == [("kvm_emulate_insn", False), ("kvm_emulate_insn", True)]


def test_at_cpl_3_it_is_an_undefined_opcode() -> None:
    _, vcpu, _ = machine(False, [DEVICE])
    vcpu.fetches_insns = True
    vcpu.rip = BASE
    vcpu.emultype = 0
    # The tables let CPL 3 in: the entries above the page have U.
    assert emulate.emulate(vcpu, BASE, ACCESS_USER, None, 4) == X86EMUL_PROPAGATE_FAULT
    assert (vcpu.exception_pending, vcpu.exception_vector, vcpu.exception_has_error) == (True, UD_VECTOR, False)


def test_a_retry_is_noted_even_if_the_address_of_the_write_no_longer_translates() -> None:
    _, vcpu, _ = machine(False, [RAM])
    vcpu.fetches_insns = True
    vcpu.rip = BASE + 0x5000
    vcpu.exit_address = BASE + 0x6000
    vcpu.emultype = EMULTYPE_PF | EMULTYPE_ALLOW_RETRY_PF
    assert emulate.emulate(vcpu, BASE + 0x6000, ACCESS_WRITE, b"1234", 4) == X86EMUL_RETRY_INSTR
    assert (vcpu.last_retry_eip, vcpu.last_retry_addr) == (BASE + 0x5000, BASE + 0x6000)


@pytest.mark.parametrize("maps_itself", [False, True])
def test_a_fetch_that_faults_after_a_write_to_a_table_is_retried_unless_the_table_maps_itself(
    maps_itself: bool,
) -> None:
    _, vcpu, _ = machine(False, [RAM])
    vcpu.fetches_insns = True
    vcpu.rip = BASE + 0x5000
    vcpu.exit_address = BASE
    vcpu.emultype = EMULTYPE_PF | EMULTYPE_ALLOW_RETRY_PF | (EMULTYPE_WRITE_PF_TO_SP if maps_itself else 0)
    outcome = emulate.emulate(vcpu, BASE, ACCESS_WRITE, b"1234", 4)
    assert outcome == (X86EMUL_PROPAGATE_FAULT if maps_itself else X86EMUL_RETRY_INSTR)
    assert vcpu.exception_pending is maps_itself
    assert vcpu.last_retry_eip == (0 if maps_itself else BASE + 0x5000)
