# SPDX-License-Identifier: GPL-2.0-only
"""Running a vCPU: how an access ends, in which order requests are served, and exceptions that are delivered once."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from kvmmu.hw.bits import ACCESS_FETCH, ACCESS_USER, ACCESS_WRITE, DF_VECTOR, PF_VECTOR
from kvmmu.kvm import run
from kvmmu.kvm.bits import (
    EXITING_GUEST_MODE,
    IN_GUEST_MODE,
    KVM_REQ_MMU_FREE_OBSOLETE_ROOTS,
    KVM_REQ_MMU_SYNC,
    KVM_REQ_NAMES,
    KVM_REQ_TLB_FLUSH,
    KVM_REQ_TLB_FLUSH_CURRENT,
    KVM_REQ_TLB_FLUSH_GUEST,
    KVM_REQ_TRIPLE_FAULT,
    OUTSIDE_GUEST_MODE,
)
from kvmmu.kvm.exception import queue_exception
from kvmmu.kvm.mmu import zap
from kvmmu.kvm.mmu.bits import MIN_FREE_FRAMES
from kvmmu.kvm.mmu.verdict import EMULTYPE_PF, EMULTYPE_WRITE_PF_TO_SP
from kvmmu.kvm.outcome import RUN_EMULATE, RUN_ERROR, RUN_FAULT, RUN_HIT, RUN_SHUTDOWN
from kvmmu.kvm.requests import has_request, make_request
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.page_types import INVALID_PAGE
from kvmmu.params import Params
from kvmmu.tracepoint import Event
from kvmmu.world import World

ROOT, RAM, DEVICE = 0x10000, 0x200000, 0xE000_0000
BASE, ABSENT, IO, TABLES = 0x400000, 0x600000, 0x401000, 0x80_0000
P, W, U = 1, 2, 4
NPT = pytest.mark.parametrize("npt", [False, True], ids=["shadow", "npt"])


def machine(npt: bool) -> tuple[World, Vcpu]:
    """A 4-level guest: a page of RAM at BASE, a device at IO, nothing at ABSENT, its tables at TABLES."""
    world = World(Params(npt=npt))
    world.add_slot(0, 0, 16 << 20)
    vcpu = world.create_vcpu()
    tables = world.tables("4-level", ROOT)
    tables.map(BASE, RAM, flags=P | W)
    tables.map(IO, DEVICE)
    tables.map_range(TABLES, ROOT, 0x10000)
    world.load_registers(vcpu, tables.registers())
    return world, vcpu


def events_of(world: World) -> list[Event]:
    events: list[Event] = []
    world.on_event(events.append)
    return events


def named(events: list[Event], *names: str) -> list[str]:
    return [event[0] for event in events if event[0] in names]


# ---- how an access ends


@NPT
def test_a_hit_says_where_the_byte_is(npt: bool) -> None:
    world, vcpu = machine(npt)
    world.poke(RAM + 0x123, b"\x5a")
    for _ in range(2):
        assert run.access(vcpu, BASE + 0x123, 0) == RUN_HIT
        assert world.memory.read(vcpu.cpu.hpa, 1) == b"\x5a"
    nr_exits = vcpu.stat.exits
    assert run.access(vcpu, BASE + 0x124, 0) == RUN_HIT
    assert vcpu.stat.exits == nr_exits > 0
    assert vcpu.mode == IN_GUEST_MODE


@NPT
@pytest.mark.parametrize(
    ("gva", "kind", "code"),
    [
        (ABSENT, 0, 0),
        (ABSENT + 5, ACCESS_WRITE, 2),
        (BASE, ACCESS_USER, 5),
        (BASE, ACCESS_USER | ACCESS_WRITE, 7),
        (BASE + 9, ACCESS_USER | ACCESS_FETCH, 0x15),
    ],
)
def test_a_fault_of_the_guest_has_its_code_and_address(npt: bool, gva: int, kind: int, code: int) -> None:
    world, vcpu = machine(npt)
    assert run.access(vcpu, BASE, 0) == RUN_HIT
    nr_exits = vcpu.stat.exits
    assert run.access(vcpu, gva, kind) == RUN_FAULT
    assert (vcpu.exception_error_code, vcpu.cr2, vcpu.exception_pending) == (code, gva, False)
    # Nested paging leaves a #PF to the guest; without it, each one exits.
    assert vcpu.stat.exits - nr_exits == (0 if npt else 1)
    assert vcpu.stat.pf_guest == (0 if npt else 1)
    world.audit()


@NPT
def test_a_device_is_emulated_and_the_exit_is_described(npt: bool) -> None:
    _, vcpu = machine(npt)
    # Once to install the MMIO spte, once to hit it.
    for _ in range(2):
        assert run.access(vcpu, IO + 4, ACCESS_WRITE) == RUN_EMULATE
        assert vcpu.emultype & EMULTYPE_PF
        assert vcpu.exit_address == (DEVICE if npt else IO) + 4
        assert vcpu.mode == OUTSIDE_GUEST_MODE
    assert vcpu.stat.pf_mmio_spte_created == 1


def test_a_store_to_a_mirrored_directory_is_emulated() -> None:
    _, vcpu = machine(npt=False)
    assert run.access(vcpu, BASE, 0) == RUN_HIT
    # The third table is the directory of level 2, which BASE and TABLES share: a store there goes to what maps it.
    assert run.access(vcpu, TABLES + 0x2000, ACCESS_WRITE) == RUN_EMULATE
    assert vcpu.emultype & EMULTYPE_WRITE_PF_TO_SP
    # The level-1 table of another address may go out of sync instead.
    assert run.access(vcpu, TABLES + 0x3000, ACCESS_WRITE) == RUN_HIT


@NPT
def test_memory_that_the_process_took_away_ends_the_run(npt: bool) -> None:
    world, vcpu = machine(npt)
    slot = world.vm.gfn_to_memslot(RAM >> 12, 0)
    assert slot is not None
    assert run.access(vcpu, BASE, 0) == RUN_HIT
    world.mm.munmap(slot.userspace_addr + RAM, 4096)
    assert run.access(vcpu, BASE, 0) == RUN_ERROR
    assert vcpu.run_errno == -errno.EFAULT
    world.audit()


@NPT
@pytest.mark.parametrize("has_root", [False, True])
def test_a_host_out_of_memory_ends_the_run(npt: bool, has_root: bool) -> None:
    world, vcpu = machine(npt)
    if has_root:
        assert run.access(vcpu, BASE, 0) == RUN_HIT
    taken = []
    while world.frames.nr_free >= MIN_FREE_FRAMES:
        taken.append(world.frames.alloc())
    gva = TABLES + 0x8000
    assert run.access(vcpu, gva, 0) == RUN_ERROR
    assert vcpu.run_errno == -errno.ENOMEM
    for pfn in taken:
        world.frames.put(pfn)
    assert run.access(vcpu, gva, 0) == RUN_HIT
    world.audit()


# ---- requests


@NPT
def test_every_request_is_served_before_the_guest_goes_on(npt: bool) -> None:
    _, vcpu = machine(npt)
    assert run.access(vcpu, BASE, 0) == RUN_HIT
    for req in KVM_REQ_NAMES:
        if req != KVM_REQ_TRIPLE_FAULT:
            make_request(vcpu, req)
    assert run.access(vcpu, BASE, 0) == RUN_HIT
    assert vcpu.requests == 0


@pytest.mark.parametrize(
    ("requests", "flushes"),
    [
        ((KVM_REQ_TLB_FLUSH,), 1),
        ((KVM_REQ_TLB_FLUSH_CURRENT,), 1),
        ((KVM_REQ_TLB_FLUSH_GUEST,), 1),
        # A full flush comes first and does for the flush of the current root; the guest's own comes after both.
        ((KVM_REQ_TLB_FLUSH_CURRENT, KVM_REQ_TLB_FLUSH), 1),
        ((KVM_REQ_TLB_FLUSH_GUEST, KVM_REQ_TLB_FLUSH_CURRENT, KVM_REQ_TLB_FLUSH), 2),
    ],
)
def test_a_full_flush_does_for_one_of_the_current_root(requests: tuple[int, ...], flushes: int) -> None:
    _, vcpu = machine(npt=False)
    assert run.access(vcpu, BASE, 0) == RUN_HIT
    nr_before = vcpu.stat.tlb_flush
    for req in requests:
        make_request(vcpu, req)
    run.serve_requests(vcpu)
    assert (vcpu.stat.tlb_flush - nr_before, vcpu.requests) == (flushes, 0)


def unsync_machine() -> tuple[World, Vcpu]:
    """A guest that has written to its level-1 table, which is out of sync since."""
    world, vcpu = machine(npt=False)
    assert run.access(vcpu, BASE, 0) == RUN_HIT
    assert world.write(vcpu, TABLES + 0x3000 + 8 * 0x100, 0).kind == "done"
    assert world.vm.stat.as_dict()["mmu_unsync"] == 1
    return world, vcpu


def test_a_sync_request_brings_the_tables_in_line() -> None:
    world, vcpu = unsync_machine()
    events = events_of(world)
    make_request(vcpu, KVM_REQ_MMU_SYNC)
    run.serve_requests(vcpu)
    assert named(events, "kvm_mmu_sync_page") == ["kvm_mmu_sync_page"]
    assert world.vm.stat.as_dict()["mmu_unsync"] == 0


def test_a_sync_and_the_guests_flush_bring_a_table_in_line_once() -> None:
    world, vcpu = unsync_machine()
    events = events_of(world)
    make_request(vcpu, KVM_REQ_TLB_FLUSH_GUEST)
    make_request(vcpu, KVM_REQ_MMU_SYNC)
    run.serve_requests(vcpu)
    assert named(events, "kvm_mmu_sync_page") == ["kvm_mmu_sync_page"]


def test_an_obsolete_root_is_freed_and_nothing_of_it_is_synced() -> None:
    world, vcpu = unsync_machine()
    vm = world.vm
    vm.slots_lock.lock()
    zap.zap_all_fast(vm)
    vm.slots_lock.unlock()
    assert has_request(vcpu, KVM_REQ_MMU_FREE_OBSOLETE_ROOTS)
    events = events_of(world)
    make_request(vcpu, KVM_REQ_MMU_SYNC)
    run.serve_requests(vcpu)
    assert named(events, "kvm_mmu_sync_page") == []
    assert vcpu.mmu.root_hpa == INVALID_PAGE
    assert run.access(vcpu, BASE, 0) == RUN_HIT
    world.audit()


def test_requests_are_served_before_an_exception_is_delivered() -> None:
    world, vcpu = unsync_machine()
    events = events_of(world)
    make_request(vcpu, KVM_REQ_MMU_SYNC)
    queue_exception(vcpu, PF_VECTOR, True, 6)
    assert run.enter(vcpu) == 0
    assert named(events, "kvm_mmu_sync_page", "kvm_inj_exception") == ["kvm_mmu_sync_page", "kvm_inj_exception"]
    assert events[-1] == ("kvm_inj_exception", PF_VECTOR, True, 6, False)


def test_a_triple_fault_shuts_down_after_the_other_requests() -> None:
    world, vcpu = unsync_machine()
    make_request(vcpu, KVM_REQ_TRIPLE_FAULT)
    make_request(vcpu, KVM_REQ_MMU_SYNC)
    assert run.enter(vcpu) == RUN_SHUTDOWN
    assert vcpu.requests == 0
    assert world.vm.stat.as_dict()["mmu_unsync"] == 0


def test_a_guest_that_shut_down_makes_no_access() -> None:
    _, vcpu = machine(npt=False)
    assert run.access(vcpu, BASE, 0) == RUN_HIT
    make_request(vcpu, KVM_REQ_TRIPLE_FAULT)
    assert run.access(vcpu, BASE, 0) == RUN_SHUTDOWN


# ---- exceptions


def test_a_fault_is_delivered_once() -> None:
    world, vcpu = machine(npt=False)
    assert run.access(vcpu, BASE, 0) == RUN_HIT
    events = events_of(world)
    assert run.access(vcpu, ABSENT, ACCESS_WRITE) == RUN_FAULT
    assert [event for event in events if event[0] == "kvm_inj_exception"] == [
        ("kvm_inj_exception", PF_VECTOR, True, 2, False)
    ]
    make_request(vcpu, KVM_REQ_TLB_FLUSH)
    assert run.access(vcpu, BASE, 0) == RUN_HIT
    assert len(named(events, "kvm_inj_exception")) == 1


def test_faults_that_follow_each_other_are_page_faults_never_double_faults() -> None:
    world, vcpu = machine(npt=False)
    events = events_of(world)
    for code in (0, 2, 0):
        assert run.access(vcpu, ABSENT, ACCESS_WRITE if code else 0) == RUN_FAULT
        assert (vcpu.exception_vector, vcpu.exception_error_code) == (PF_VECTOR, code)
    assert len(named(events, "kvm_inj_exception")) == 3
    assert DF_VECTOR not in [event[1] for event in events if event[0] == "kvm_inj_exception"]


# ---- vCPUs


def test_vcpus_are_numbered_and_leave_their_vm_with_their_roots() -> None:
    world, vcpu = machine(npt=False)
    other = world.create_vcpu()
    assert [each.vcpu_id for each in world.vm.vcpus] == [0, 1]
    assert other.mmu.root_hpa == INVALID_PAGE
    assert run.access(vcpu, BASE, 0) == RUN_HIT
    (root,) = [sp for sp in world.shadow_pages() if sp.root_count]
    run.destroy_vcpu(vcpu)
    assert root.root_count == 0
    assert world.vm.vcpus == (other,)
    world.audit()


@pytest.mark.parametrize("enter", [run.enter, run.resume])
def test_a_kick_without_a_request_between_entry_and_its_last_look_is_seen(enter: Callable[[Vcpu], int]) -> None:
    # Source: kvm_vcpu_exit_request(): a mode of "exiting" alone keeps the vCPU out of the guest.
    world, vcpu = machine(False)
    assert run.enter(vcpu) == 0
    run.leave(vcpu)
    kicks = []

    class Checker:
        def point(self, kind: str, where: object, key: object) -> None:
            pass

        def wait(self, kind: str, where: object, condition: Callable[[], bool]) -> None:
            assert condition()

        def barrier(self, kind: str) -> None:
            if kind == "mb" and vcpu.mode == IN_GUEST_MODE and not kicks:
                kicks.append(vcpu.mode)
                vcpu.mode = EXITING_GUEST_MODE

    world.vm.gate.arm(Checker())
    assert enter(vcpu) == 0
    world.vm.gate.disarm()
    assert (kicks, vcpu.mode) == ([IN_GUEST_MODE], IN_GUEST_MODE)
