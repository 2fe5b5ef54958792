# SPDX-License-Identifier: GPL-2.0-only
"""Where a vCPU is: what each change of its mode announces, whom a kick reaches, what a flush waits for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvmmu import KvmBug, Params, World
from kvmmu.kvm import mode, requests
from kvmmu.kvm.bits import KVM_REQ_MMU_SYNC, KVM_REQ_TLB_FLUSH, KVM_REQ_WAIT
from kvmmu.kvm.mmu import shadowwalk
from kvmmu.kvm.mmu.pagefault import walk_for_mmio
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.tracepoint import VcpuEvent

OUTSIDE, IN_GUEST, EXITING, READING = range(4)
GVA, GPA = 0x400000, 0x200000


def machine(nr_vcpus: int = 1, *, npt: bool = False) -> tuple[World, list[Vcpu]]:
    """A world whose vCPUs share tables: GVA maps GPA, and each has been there."""
    world = World(Params(npt=npt), nr_frames=8192)
    world.add_slot(0, 0, 16 << 20)
    tables = world.tables("4-level", 0x10000)
    tables.map(GVA, GPA)
    vcpus = [world.create_vcpu() for _ in range(nr_vcpus)]
    for vcpu in vcpus:
        world.load_registers(vcpu, tables.registers())
        assert world.read(vcpu, GVA).kind == "done"
    return world, vcpus


class Listener:
    """A checker that remembers accesses to modes and barriers; who waits is helped by ``other``, as actor 1."""

    def __init__(self, world: World, other: Callable[[], object] | None = None) -> None:
        self.gate, self.other = world.vm.gate, other
        self.heard: list[object] = []
        self.waits: list[tuple[str, object]] = []
        self.gate.arm(self)

    def point(self, kind: str, where: object, key: object) -> None:
        if key == "mode":
            self.heard.append(kind)

    def barrier(self, kind: str) -> None:
        self.heard.append(kind)

    def wait(self, kind: str, where: object, condition: Callable[[], bool]) -> None:
        self.waits.append((kind, where))
        if self.other is not None:
            self.gate.run(1)
            self.other()
            self.gate.run(0)


# The modes.


@pytest.mark.parametrize(
    ("change", "becomes", "heard"),
    [
        (mode.enter_guest_mode, IN_GUEST, ["store-release", "write"]),
        (mode.leave_guest_mode, OUTSIDE, ["write"]),
        (mode.begin_reading, READING, ["write", "mb"]),
        (mode.end_reading, OUTSIDE, ["store-release", "write"]),
        (shadowwalk.begin_lockless_walk, READING, ["write", "mb"]),
        (shadowwalk.end_lockless_walk, OUTSIDE, ["store-release", "write"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_change_of_mode_is_announced_with_its_barrier(
    change: Callable[[Vcpu], int], becomes: int, heard: list[str]
) -> None:
    for before in (OUTSIDE, IN_GUEST, EXITING, READING):
        world, (vcpu,) = machine()
        vcpu.mode = before
        assert change(vcpu) == 0
        assert vcpu.mode == becomes
        listener = Listener(world)
        change(vcpu)
        world.vm.gate.disarm()
        assert listener.heard == heard


@pytest.mark.parametrize(
    ("before", "after"), [(OUTSIDE, OUTSIDE), (IN_GUEST, EXITING), (EXITING, EXITING), (READING, READING)]
)
def test_a_kick_reaches_who_is_in_the_guest_and_tells_the_old_mode(before: int, after: int) -> None:
    world, (vcpu,) = machine()
    vcpu.mode = before
    listener = Listener(world)
    assert mode.kick(vcpu) == before
    world.vm.gate.disarm()
    assert vcpu.mode == after
    assert listener.heard == ["mb", "cmpxchg"]


def test_who_was_kicked_enters_again() -> None:
    world, (vcpu,) = machine()
    assert vcpu.mode == IN_GUEST
    requests.kick_all(world.vm)
    assert vcpu.mode == EXITING
    assert world.read(vcpu, GVA).kind == "done"
    assert vcpu.mode == IN_GUEST


# Waiting for a lockless walk.


@pytest.mark.parametrize("where", [OUTSIDE, IN_GUEST, EXITING])
def test_who_does_not_read_acknowledges_at_once(where: int) -> None:
    world, (vcpu,) = machine()
    vcpu.mode = where
    listener = Listener(world)
    assert mode.wait_for_reading(vcpu) == 0
    world.vm.gate.disarm()
    assert listener.waits == []


def test_waiting_for_the_own_walk_is_a_bug() -> None:
    _, (vcpu,) = machine()
    mode.begin_reading(vcpu)
    with pytest.raises(KvmBug, match=r"ipi: .* waits forever"):
        mode.wait_for_reading(vcpu)
    mode.end_reading(vcpu)
    assert mode.wait_for_reading(vcpu) == 0


def test_a_flush_inside_the_own_walk_is_a_bug() -> None:
    world, (vcpu,) = machine()
    shadowwalk.begin_lockless_walk(vcpu)
    with pytest.raises(KvmBug, match=r"ipi: .* waits forever"):
        requests.flush_remote_tlbs(world.vm)
    shadowwalk.end_lockless_walk(vcpu)


def test_a_flush_waits_for_the_walks_of_others() -> None:
    world, (_, other) = machine(2)
    shadowwalk.begin_lockless_walk(other)
    listener = Listener(world, lambda: shadowwalk.end_lockless_walk(other))
    requests.flush_remote_tlbs(world.vm)
    world.vm.gate.disarm()
    assert listener.waits == [("ipi", other)]
    assert other.mode == OUTSIDE


def test_a_request_that_needs_no_answer_does_not_wait_for_walks() -> None:
    assert KVM_REQ_WAIT >> KVM_REQ_TLB_FLUSH & 1
    assert not KVM_REQ_WAIT >> KVM_REQ_MMU_SYNC & 1
    world, (vcpu, other) = machine(2)
    mode.begin_reading(vcpu)
    # The one in the guest gets an IPI, whose answer nobody waits for either.
    assert other.mode == IN_GUEST
    assert requests.make_all_cpus_request(world.vm, KVM_REQ_MMU_SYNC)
    assert other.mode == EXITING
    assert not requests.make_all_cpus_request(world.vm, KVM_REQ_MMU_SYNC)
    mode.end_reading(vcpu)
    assert requests.has_request(vcpu, KVM_REQ_MMU_SYNC)
    assert requests.has_request(other, KVM_REQ_MMU_SYNC)


def test_a_walk_that_raises_is_over() -> None:
    world, (vcpu,) = machine()
    leaf = world.walk(vcpu, GVA)[-1]
    world.memory.write_once(leaf.hpa, leaf.spte | 1 << 50)
    with pytest.raises(KvmBug, match="reserved bits"):
        walk_for_mmio(vcpu, GVA)
    assert vcpu.mode == OUTSIDE
    # Nobody waits for it.
    requests.flush_remote_tlbs(world.vm)


# Work on behalf of a vCPU.


def test_events_carry_the_vcpu_that_is_loaded_and_slots_stay() -> None:
    world, vcpus = machine(3)
    trace, srcu = world.vm.trace, world.vm.srcu
    for vcpu in vcpus:
        assert (trace.vcpu_id, srcu.has_no_readers()) == (-1, True)
        mode.vcpu_load(vcpu)
        assert (trace.vcpu_id, srcu.has_no_readers()) == (vcpu.vcpu_id, False)
        mode.vcpu_put(vcpu)
    assert (trace.vcpu_id, srcu.has_no_readers()) == (-1, True)
    with pytest.raises(KvmBug, match="in no section"):
        mode.vcpu_put(vcpus[0])


@pytest.mark.parametrize("number", [0, 1])
def test_the_events_of_a_fault_name_the_vcpu_that_took_it(number: int) -> None:
    world, vcpus = machine(2)
    world.mm.dontneed(world.vm.gfn_to_memslot(GPA >> 12, 0).gfn_to_hva(GPA >> 12), 0x1000)  # type: ignore[union-attr]
    events: list[VcpuEvent] = []
    world.on_event(events.append)
    assert world.read(vcpus[number], GVA).kind == "done"
    assert events
    assert {event.vcpu_id for event in events} == {number}
