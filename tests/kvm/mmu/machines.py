# SPDX-License-Identifier: GPL-2.0-only
"""Small machines for the tests of kvm's MMU: a guest with tables and a window to them, and what its tests look at.

What they look at is read from memory and from the pages' public fields, not asked of the room that is tested.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from kvmmu import GuestTables, Params, UserMemoryRegion, World
from kvmmu.hw.bits import PT_ACCESSED, PT_DIRTY, PT_PRESENT, PT_USER, PT_WRITABLE
from kvmmu.kvm.memslots import Memslot, Memslots
from kvmmu.kvm.mmu.context import Mmu
from kvmmu.kvm.mmu.page import ShadowPage
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.kvm.vm import Vm
from kvmmu.tracepoint import Event
from kvmmu.world import Access

P, W, U, AD = PT_PRESENT, PT_WRITABLE, PT_USER, PT_ACCESSED | PT_DIRTY
RO = P | U
RW = P | W | U
TABLES, NR_TABLE_BYTES = 0x10000, 0x40000
#: Small data pages, and memory for large ones.
DATA, LARGE = 0x100000, 0x400000
MEMORY = 16 << 20
HOLE = 0x4000_0000
#: Gvas apart from each other at every level.
VA, VB = 0x40_0000, 0x60_0000


def reserved_bits(is_reserved: Callable[[Mmu, int, int], bool], mmu: Mmu, others: int, level: int) -> int:
    """Every bit that an entry of ``level`` with the bits ``others`` may not have as well."""
    return sum(1 << n for n in range(64) if is_reserved(mmu, others | 1 << n, level))


class Guest:
    """A world with one slot, a vCPU with tables, and a window through which the guest edits them."""

    def __init__(self, mode: str = "4-level", *settings: str, npt: bool = False, memory: int = MEMORY) -> None:
        params = Params(npt=npt, tlb_keep_all=True).with_settings(settings)
        self.world = World(params, nr_frames=16384)
        self.hva = self.world.add_slot(0, 0, memory)
        self.vcpu = self.world.create_vcpu()
        self.tables = self.world.tables(mode, TABLES, nr_bytes=NR_TABLE_BYTES)
        self.window = 0x8000_0000 if mode in ("2-level", "2-level-pse", "pae") else 0x7000_0000_0000
        flags = P | W | AD
        for gpa in range(TABLES, TABLES + NR_TABLE_BYTES, 4096):
            self.tables.map(self.window + gpa, gpa, flags=flags)
        for number in range(16):
            self.world.poke(DATA + number * 4096, 0xD000 + number)
        self.world.load_registers(self.vcpu, self.tables.registers())

    def by(self, vcpu: Vcpu) -> GuestTables:
        """The tables, edited by the guest's own stores."""
        edited = self.world.tables(self.tables.mode_name, self.tables.root, vcpu=vcpu, window=self.window)
        edited.new_table = self.tables.new_table
        return edited

    @property
    def edit(self) -> GuestTables:
        return self.by(self.vcpu)

    def read(self, gva: int, *, user: bool = True, vcpu: Vcpu | None = None) -> int | Access:
        """The word there, or what came instead."""
        result = self.world.read(vcpu or self.vcpu, gva, user=user)
        return int.from_bytes(result.data, "little") if result.kind == "done" else result

    def write(self, gva: int, value: int = 1, *, user: bool = True) -> str:
        """ "done", "mmio", or the error code of the fault."""
        result = self.world.write(self.vcpu, gva, value, user=user)
        return f"{result.error_code:#x}" if result.kind == "fault" else result.kind

    def reload_cr3(self) -> None:
        assert self.world.mov_cr3(self.vcpu, self.vcpu.cr3)

    def faults(self) -> int:
        return self.world.counters()["pf_taken"]

    def audit(self) -> None:
        self.world.audit()

    def second_root(self) -> int:
        """Another root table with the same entries."""
        other = self.tables.new_table()
        self.world.poke(other, self.world.peek(self.tables.root, 4096))
        return other


def raw_table(guest: Guest, entries: dict[int, int]) -> int:
    """A fresh table with these entries; its gpa."""
    table = guest.tables.new_table()
    guest.world.poke(table, bytes(4096))
    for index, entry in entries.items():
        guest.world.poke(table + 8 * index, entry)
    return table


#: An empty spte, and the bits of a present one that hardware ignores: host-writable, MMU-writable, MMU-present.
EMPTY = 1 << 63
HOST_W, MMU_W, SHADOW = 1 << 9, 1 << 10, 1 << 11
ADDRESS = 0x000F_FFFF_FFFF_F000
#: Bits of a page role: direct, invalid, and the access triple at its place.
DIRECT, INVALID, ACCESS_ALL = 1 << 7, 1 << 11, 7 << 8
#: No root, no slot's gpa.
NONE = 2**64 - 1


#: Pages of the slot of :class:`OneSlot`.
SLOT_PAGES = 1024


class OneSlot:
    """A VM with one slot under shadow paging."""

    def __init__(self) -> None:
        self.world = World(Params(npt=False), nr_frames=4096)
        self.world.add_slot(0, 0, SLOT_PAGES << 12)
        self.vm: Vm = self.world.vm
        slot = self.vm.gfn_to_memslot(0, 0)
        assert slot is not None
        self.slot: Memslot = slot

    def read(self, hpa: int) -> int:
        return self.world.memory.read_once(hpa)


class Tdp:
    """A world with the TDP MMU, one slot of 16M at gpa 0, and an unpaged guest: a gva is a gpa."""

    def __init__(self, *settings: str, memory: int = MEMORY, nr_frames: int = 16384) -> None:
        self.world = World(Params(tlb_keep_all=True).with_settings(settings), nr_frames=nr_frames)
        self.vm: Vm = self.world.vm
        self.hva = self.world.add_slot(0, 0, memory)
        self.vcpu = self.world.create_vcpu()
        self.events: list[Event] = []
        self.world.on_event(self.events.append)

    @property
    def slot(self) -> Memslot:
        slot = self.vm.slots_of(0).find_id(0)
        assert slot is not None
        return slot

    @property
    def root(self) -> ShadowPage:
        root = self.world.frames.owner(self.vcpu.mmu.root_hpa >> 12)
        assert isinstance(root, ShadowPage)
        return root

    def touch(self, *gpas: int, write: bool = True) -> None:
        for gpa in gpas:
            access = self.world.write(self.vcpu, gpa, b"x") if write else self.world.read(self.vcpu, gpa)
            assert access.kind == "done"
        self.events.clear()

    def way(self, gpa: int) -> list[tuple[int, int]]:
        """(level, spte) from the top down."""
        return [(element.level, element.spte) for element in self.world.walk(self.vcpu, gpa)]

    def spte(self, gpa: int) -> int:
        return self.way(gpa)[-1][1]

    def sptep(self, gpa: int, level: int = 1) -> int:
        return next(element.hpa for element in self.world.walk(self.vcpu, gpa) if element.level == level)

    def flush(self) -> None:
        """Empty the TLBs: what the test's own hand took from the tables, kvm does not flush."""
        for vcpu in self.vm.vcpus:
            vcpu.cpu.flush_all()

    def log(self, flags: int = 1) -> None:
        self.world.set_region(UserMemoryRegion(0, flags, 0, self.slot.npages << 12, self.hva))

    def changes(self) -> list[tuple[int, int, int, int]]:
        """(gfn, level, old, new) of every kvm_tdp_mmu_spte_changed so far, which are then forgotten."""
        found = [event for event in self.events if event[0] == "kvm_tdp_mmu_spte_changed"]
        self.events.clear()
        return [(gfn, level, old, new) for _, gfn, old, new, level, _ in found]


class Others:
    """A checker: whenever a walk may yield it does, at ``most`` so often; ``act`` runs once, while the lock is dropped.

    It runs as actor 1.
    """

    def __init__(self, vm: Vm, act: Callable[[], object] | None = None, most: int = 1 << 30) -> None:
        self.gate, self.act, self.most = vm.gate, act, most
        self.nr_yields = 0
        self.heard: list[tuple[str, object]] = []
        self.gate.arm(self)

    def point(self, kind: str, where: object, key: object) -> None:
        self.heard.append((kind, key))
        if kind in ("read_unlock", "write_unlock") and self.act is not None:
            act, self.act = self.act, None
            self.gate.disarm()
            self.gate.run(1)
            act()
            self.gate.arm(self)
            self.gate.run(0)

    def barrier(self, kind: str) -> None:
        pass

    def wait(self, kind: str, where: object, condition: Callable[[], bool]) -> None:
        assert condition(), kind

    def must_yield(self, where: object) -> bool:
        self.nr_yields += 1
        return self.nr_yields <= self.most

    def nr_unlocks(self) -> int:
        """How often the lock was dropped."""
        return sum(kind in ("read_unlock", "write_unlock") for kind, _ in self.heard)


@contextlib.contextmanager
def shared(vm: Vm) -> Iterator[None]:
    """``mmu_lock``, shared, inside a section of RCU: what the TDP MMU's functions want of their caller."""
    vm.mmu_lock.read_lock()
    vm.rcu.read_lock()
    try:
        yield
    finally:
        vm.rcu.read_unlock()
        vm.mmu_lock.read_unlock()


@contextlib.contextmanager
def held(vm: Vm) -> Iterator[None]:
    """``mmu_lock``, exclusive: what most functions below a page fault want of their caller."""
    vm.mmu_lock.write_lock()
    try:
        yield
    finally:
        vm.mmu_lock.write_unlock()


@contextlib.contextmanager
def slots_held(vm: Vm) -> Iterator[None]:
    """``slots_lock``: what changes of slots and dirty logs want of their caller."""
    vm.slots_lock.lock()
    try:
        yield
    finally:
        vm.slots_lock.unlock()


def publish(vm: Vm, slots: Memslots) -> None:
    """Let ``slots`` be those of their address space, as an ioctl would in the end."""
    vm.slots_arch_lock.lock()
    vm.publish_slots(slots)
    vm.slots_arch_lock.unlock()


def pages_of(world: World, gfn: int, level: int) -> list[ShadowPage]:
    """The active shadow pages of this gfn and level, newest first."""
    return [sp for sp in world.shadow_pages() if sp.gfn == gfn and sp.role & 15 == level]


def page_of(world: World, gfn: int, level: int) -> ShadowPage:
    """The one active shadow page of this gfn and level."""
    (sp,) = pages_of(world, gfn, level)
    return sp


def hashed(vm: Vm) -> list[ShadowPage]:
    """Every page that is in the hash, zapped roots too."""
    found = []
    for head in vm.hash_heads():
        sp = head
        while sp is not None:
            found.append(sp)
            sp = sp.hash_next
    return found


def flushes(vm: Vm) -> int:
    """Remote TLB flushes that were asked for so far."""
    return vm.stat.remote_tlb_flush_requests


def has_request(vcpu: Vcpu, number: int) -> bool:
    """Whether the vCPU has been asked for request ``number``."""
    return bool(vcpu.requests >> number & 1)
