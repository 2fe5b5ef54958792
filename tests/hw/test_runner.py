# SPDX-License-Identifier: GPL-2.0-only
"""What runs a vCPU is told its registers, its second stage and its flushes, and nothing else is asked of it."""

from __future__ import annotations

import pytest

from kvmmu import KvmBug, Params, World
from kvmmu.hw.bits import INSN_DONE, INSN_GP
from kvmmu.hw.cpu import CpuRunner
from kvmmu.hw.cpumodel import CpuModel
from kvmmu.hw.runner import Runner
from kvmmu.kvm.vcpu import Vcpu

from .machines import FULL, NX, PAE, PE, PG, READ, WP, A, Box

GVA, GPA, ROOT = 0x400000, 0x200000, 0x10000
Call = tuple[object, ...]


class Emulator(Runner):
    """A runner written in Python: remembers what it is told, and lets the vCPU's own CPU do it."""

    def __init__(self, vcpu: Vcpu, *, refuses: bool = False) -> None:
        self.cpu, self.refuses = vcpu.cpu, refuses
        self.calls: list[Call] = []

    def load_guest(self, cr0: int, cr3: int, cr4: int, efer: int) -> int:
        self.calls.append(("load_guest", cr0, cr3, cr4, efer))
        return INSN_GP if self.refuses else self.cpu.load_guest(cr0, cr3, cr4, efer)

    def set_nested(self, ncr3: int, levels: int) -> int:
        self.calls.append(("set_nested", ncr3, levels))
        return self.cpu.set_nested(ncr3, levels)

    def flush_asid(self) -> int:
        self.calls.append(("flush_asid",))
        return self.cpu.flush_asid()

    def flush_gva(self, gva: int) -> int:
        self.calls.append(("flush_gva", gva))
        return self.cpu.flush_gva(gva)

    def take(self) -> list[Call]:
        """What was called since the last time."""
        taken, self.calls = self.calls, []
        return taken


def machine(npt: bool, *, refuses: bool = False) -> tuple[World, Vcpu, Emulator]:
    """A 4-level guest, GVA mapped to GPA, run by an emulator from its first entry on."""
    world = World(Params(npt=npt), nr_frames=8192)
    world.add_slot(0, 0, 16 << 20)
    vcpu = world.create_vcpu()
    emulator = Emulator(vcpu, refuses=refuses)
    vcpu.set_runner(emulator)
    tables = world.tables("4-level", ROOT)
    tables.map(GVA, GPA)
    world.poke(GPA, 0x1234)
    world.load_registers(vcpu, tables.registers())
    emulator.take()
    return world, vcpu, emulator


def read(world: World, vcpu: Vcpu) -> int:
    """The guest's word at GVA."""
    return int.from_bytes(world.read(vcpu, GVA).data, "little")


def test_under_shadow_paging_it_runs_on_kvms_root_and_gets_every_flush() -> None:
    world, vcpu, emulator = machine(npt=False)
    assert read(world, vcpu) == 0x1234
    root = vcpu.mmu.root_hpa
    assert root != ROOT
    # The new registers asked for the first flush, the new root for the second.
    assert emulator.take() == [
        ("flush_asid",),
        ("load_guest", vcpu.cr0 | PG | WP | PE, root, vcpu.cr4 | PAE, vcpu.efer | NX),
        ("flush_asid",),
    ]
    # A hit needs nobody.
    assert read(world, vcpu) == 0x1234
    assert emulator.take() == []
    assert world.invlpg(vcpu, GVA + 0x123)
    assert emulator.take() == [("flush_gva", GVA + 0x123)]
    # Another CR3: another root, which is loaded before the guest runs again.
    other = 0x80000
    world.poke(other, world.peek(ROOT, 4096))
    assert world.mov_cr3(vcpu, other)
    assert read(world, vcpu) == 0x1234
    loaded = [call for call in emulator.take() if call[0] != "flush_asid"]
    assert loaded == [("load_guest", vcpu.cr0 | PG | WP | PE, vcpu.mmu.root_hpa, vcpu.cr4 | PAE, vcpu.efer | NX)]
    assert vcpu.mmu.root_hpa != root


def test_under_shadow_paging_wp_is_on_though_the_guest_clears_it() -> None:
    world, vcpu, emulator = machine(npt=False)
    assert world.mov_cr0(vcpu, vcpu.cr0 & ~WP)
    assert read(world, vcpu) == 0x1234
    (loaded,) = [call for call in emulator.take() if call[0] == "load_guest"]
    assert not vcpu.cr0 & WP
    assert loaded[1] == vcpu.cr0 | WP


def test_under_nested_paging_it_has_the_guests_registers_and_kvms_second_stage() -> None:
    world, vcpu, emulator = machine(npt=True)
    assert read(world, vcpu) == 0x1234
    assert emulator.take() == [
        ("flush_asid",),
        ("set_nested", vcpu.mmu.root_hpa, 4),
        ("load_guest", vcpu.cr0, ROOT, vcpu.cr4, vcpu.efer),
        ("flush_asid",),
    ]
    # The guest's own flush is no business of kvm's.
    assert world.invlpg(vcpu, GVA)
    assert emulator.take() == []


@pytest.mark.parametrize("npt", [False, True])
def test_what_the_host_takes_back_is_flushed_before_the_guest_runs_again(npt: bool) -> None:
    world, vcpu, emulator = machine(npt)
    assert read(world, vcpu) == 0x1234
    slot = vcpu.gfn_to_memslot(GPA >> 12)
    assert slot is not None
    emulator.take()
    world.mm.dontneed(slot.gfn_to_hva(GPA >> 12), 0x1000)
    # It was asked for, not done: another CPU's TLB is flushed by who runs there.
    assert emulator.take() == []
    assert read(world, vcpu) == 0
    assert ("flush_asid",) in emulator.take()


def test_a_runner_that_refuses_kvms_own_root_is_a_bug() -> None:
    world, vcpu, _ = machine(npt=False, refuses=True)
    with pytest.raises(KvmBug, match="the CPU refuses the shadow root"):
        world.read(vcpu, GVA)


def test_a_runner_answers_every_call() -> None:
    runner = Runner()
    with pytest.raises(KvmBug, match="cannot load 0x1 0x2 0x3 0x4"):
        runner.load_guest(1, 2, 3, 4)
    with pytest.raises(KvmBug, match="cannot use a second stage of 4 levels at 0x5000"):
        runner.set_nested(0x5000, 4)
    with pytest.raises(KvmBug, match="cannot flush"):
        runner.flush_asid()
    with pytest.raises(KvmBug, match="cannot flush 0x6000"):
        runner.flush_gva(0x6000)
    with pytest.raises(KvmBug, match="cannot flush 0x2 frames from 0x7"):
        runner.flush_gfns(7, 2)


# Our own CPU as one.


def test_a_cpu_is_a_runner_of_itself() -> None:
    box = Box()
    place = box.map(GVA, 0x9000 | FULL | A)
    runner = CpuRunner(box.cpu)
    assert runner.load_guest(PG | WP | PE, box.root, PAE, box.cpu.efer) == INSN_DONE
    assert (box.cpu.cr0, box.cpu.cr3, box.cpu.cr4) == (PG | WP | PE, box.root, PAE)
    box.cpu.access(GVA, READ)
    box.put(place, 0xA000 | FULL | A)
    box.cpu.access(GVA, READ)
    assert box.cpu.hpa == 0x9000
    runner.flush_gva(GVA + 0x1000)
    box.cpu.access(GVA, READ)
    assert box.cpu.hpa == 0x9000
    runner.flush_gva(GVA)
    box.cpu.access(GVA, READ)
    assert box.cpu.hpa == 0xA000
    box.put(place, 0xB000 | FULL | A)
    runner.flush_asid()
    box.cpu.access(GVA, READ)
    assert box.cpu.hpa == 0xB000


def test_pdptes_that_a_cpu_refuses_are_refused_by_its_runner() -> None:
    box = Box("pae", CpuModel())
    cpu, runner = box.cpu, CpuRunner(box.cpu)
    box.memory.write_once(box.root, FULL)
    assert runner.load_guest(cpu.cr0, box.root, cpu.cr4, cpu.efer) == INSN_GP
    box.memory.write_once(box.root, 0)
    assert runner.load_guest(cpu.cr0, box.root, cpu.cr4, cpu.efer) == INSN_DONE
