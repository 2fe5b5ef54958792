# SPDX-License-Identifier: GPL-2.0-only
"""A fetch where no memory is: an emulation failure at CPL 0, #UD at CPL 3, never a device access."""

from __future__ import annotations

import pytest

from kvmmu import Access, EmulationFailure, Params, World
from kvmmu.hw.bits import UD_VECTOR
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.params import PARAMETERS
from kvmmu.tracepoint import Event

MIB = 1 << 20
ROOT = 0x10000
RAM, HOLE, APIC = 0x20_0000, 0xE000_0000, 0xFEE0_0000
#: RAM, then the hole; the hole, then RAM; the APIC's page; a page that nothing maps.
VA_RAM, VA_HOLE, VA_AFTER, VA_APIC, VA_NONE = 0x40_0000, 0x40_1000, 0x40_2000, 0x40_8000, 0x40_9000
NPT = pytest.mark.parametrize("npt", [False, True], ids=["shadow", "npt"])
EXIT_ON_ERROR = "KVM_CAP_EXIT_ON_EMULATION_FAILURE"


def machine(npt: bool, **params: bool) -> tuple[World, Vcpu, list[Event]]:
    world = World(Params(npt=npt, **params))
    world.add_slot(0, 0, 16 * MIB)
    vcpu = world.create_vcpu()
    tables = world.tables("4-level", ROOT)
    for gva, gpa in ((VA_RAM, RAM), (VA_HOLE, HOLE), (VA_AFTER, RAM + 0x1000), (VA_APIC, APIC)):
        tables.map(gva, gpa)
    world.load_registers(vcpu, tables.registers())
    world.poke(RAM + 0xFF0, bytes(range(16)))
    events: list[Event] = []
    world.on_event(events.append)
    return world, vcpu, events


def reads(events: list[Event]) -> list[str]:
    return [event[0] for event in events if event[0] in ("kvm_mmio", "vcpu_match_mmio")]


@NPT
@pytest.mark.parametrize("gva", [VA_HOLE + 0x123, VA_APIC])
def test_at_cpl_0_kvm_run_ends_with_the_facts_of_the_exit(npt: bool, gva: int) -> None:
    world, vcpu, events = machine(npt)
    for count in (1, 2, 3):
        failed = world.fetch(vcpu, gva)
        assert (failed.kind, failed.address) == ("emulation-failure", gva)
        failure = failed.failure
        assert failure is not None
        assert (failure.suberror, failure.flags, failure.insn_bytes, failure.ud_queued) == (1, 0, b"", True)
        gpa = (HOLE if gva != VA_APIC else APIC) | gva & 0xFFF
        assert (failure.exit_reason, failure.exit_info2) == ((0x400, gpa) if npt else (0x4E, gva))
        # The fault's own error code: a fetch, in a page that kvm by then knows to be no memory.
        assert failure.exit_info1 & 0x10
        assert bool(failure.exit_info1 & 8) is (count > 1)
        assert failure.data == (0, failure.exit_reason, failure.exit_info1, failure.exit_info2, 0, 0)
        counters = world.counters()
        assert (counters["insn_emulation_fail"], counters["mmio_exits"]) == (count, 0)
    assert reads(events) == []
    emulated = [(gva in event, event[-1]) for event in events if event[0] == "kvm_emulate_insn"]
    assert emulated == [(True, False), (True, True)] * 3
    world.audit()


@NPT
@pytest.mark.parametrize("gva", [VA_HOLE + 0x123, VA_APIC])
def test_at_cpl_3_the_guest_gets_ud_and_goes_on(npt: bool, gva: int) -> None:
    world, vcpu, events = machine(npt)
    assert world.fetch(vcpu, gva, user=True) == Access("fault", address=gva, vector=UD_VECTOR)
    assert repr(world.fetch(vcpu, gva, user=True)) == f"<Access fault #UD at {gva:#x}>"
    counters = world.counters()
    assert (counters["insn_emulation_fail"], counters["mmio_exits"]) == (2, 0)
    assert reads(events) == []
    assert world.fetch(vcpu, VA_RAM + 0xFF0, 4, user=True) == Access("done", bytes(range(4)))
    world.audit()


@NPT
@pytest.mark.parametrize("user", [False, True])
def test_exit_on_emulation_error_ends_kvm_run_at_any_cpl_without_ud(npt: bool, user: bool) -> None:
    world, vcpu, _ = machine(npt, exit_on_emulation_error=True)
    failed = world.fetch(vcpu, VA_HOLE, user=user)
    assert (failed.kind, vcpu.exception_pending) == ("emulation-failure", False)
    assert failed.failure is not None
    assert not failed.failure.ud_queued
    assert world.counters()["insn_emulation_fail"] == 1


def test_the_parameter_is_listed_under_the_kernels_name() -> None:
    assert {p.kernel: (p.name, p.default) for p in PARAMETERS}[EXIT_ON_ERROR] == ("exit_on_emulation_error", False)


@NPT
def test_a_vmm_that_runs_on_gives_the_guest_ud_first(npt: bool) -> None:
    world, vcpu, events = machine(npt)
    world.fetch(vcpu, VA_HOLE)
    assert (vcpu.exception_pending, vcpu.exception_vector) == (True, UD_VECTOR)
    events.clear()
    assert world.fetch(vcpu, VA_RAM + 0xFF0, 2) == Access("done", bytes(range(2)))
    assert [event[1] for event in events if event[0] == "kvm_inj_exception"] == [UD_VECTOR]
    assert not vcpu.exception_pending


@NPT
def test_an_instruction_that_runs_into_a_hole_shows_the_bytes_before_it(npt: bool) -> None:
    world, vcpu, _ = machine(npt)
    failed = world.fetch(vcpu, VA_RAM + 0xFFD, 5)
    assert failed.failure is not None
    assert (failed.address, failed.failure.insn_bytes, failed.failure.flags) == (VA_RAM + 0xFFD, b"\x0d\x0e\x0f", 1)
    # struct kvm_run: the size, then 15 bytes, NOPs where none was fetched.
    size_and_bytes = b"".join(word.to_bytes(8, "little") for word in failed.failure.data[1:3])
    assert size_and_bytes == b"\x03\x0d\x0e\x0f" + b"\x90" * 12
    assert len(failed.failure.data) == 8
    # The other way round nothing could be fetched.
    failed = world.fetch(vcpu, VA_HOLE + 0xFFD, 5)
    assert failed.failure is not None
    assert failed.failure.data[0] == 0


def test_the_fetch_is_translated_by_the_guests_tables_and_may_fault_there() -> None:
    world, vcpu, _ = machine(True)
    assert world.fetch(vcpu, VA_NONE) == Access("fault", error_code=16, address=VA_NONE)
    assert world.counters()["insn_emulation_fail"] == 0


@NPT
def test_loads_and_stores_there_are_a_devices_as_before(npt: bool) -> None:
    world, vcpu, _ = machine(npt)
    world.fetch(vcpu, VA_HOLE)
    assert world.read(vcpu, VA_HOLE + 8) == Access("mmio", address=HOLE + 8)
    assert world.write(vcpu, VA_HOLE + 8, 1) == Access("mmio", address=HOLE + 8)
    assert world.counters()["mmio_exits"] == 2


def test_a_failure_says_what_it_is() -> None:
    failure = EmulationFailure(0x400, 0x10, 0x1234)
    assert "exit_reason=1024" in repr(Access("emulation-failure", address=0x1000, failure=failure))
