# SPDX-License-Identifier: GPL-2.0-only
"""World: what its users may ask, what they are told when they may not, and what is left when it is closed."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable

import pytest

from kvmmu.errors import ConfigError, GuestMisuse, KvmIoctlError, OutOfFrames, UserError
from kvmmu.guest.tables import SIZE_2M, ControlRegisters
from kvmmu.kvm.bits import KVM_MEM_LOG_DIRTY_PAGES
from kvmmu.kvm.cpuid import CpuFeatures
from kvmmu.kvm.mmu.audit import audit
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.look import shadow_pages
from kvmmu.params import Params
from kvmmu.tracepoint import Event, event_cause, vcpu_of
from kvmmu.world import Access, World, nr_frames_for

ROOT, WINDOW = 0x10000, 0x8000_0000
MIB = 1 << 20
P, W, U = 1, 2, 4
NPT = pytest.mark.parametrize("npt", [False, True], ids=["shadow", "npt"])
#: Two pages of RAM that lie apart, then two of a device; RAM again before nothing, and a read-only page after RAM.
PAGES = {0x400: 0x20_0000, 0x401: 0x30_0000, 0x402: 0xE000_0000, 0x403: 0xE000_3000, 0x405: 0x20_1000, 0x410: 0x20_2000}


def machine(*, npt: bool = False, flags: int = 0) -> tuple[World, Vcpu]:
    world = World(Params(npt=npt))
    world.add_slot(0, 0, 16 * MIB, flags=flags)
    vcpu = world.create_vcpu()
    tables = world.tables("4-level", ROOT)
    for page, gpa in PAGES.items():
        tables.map(page << 12, gpa)
    tables.map(0x411000, 0x20_3000, flags=P | U)
    tables.map_range(WINDOW, 0, 4 * MIB, SIZE_2M)
    world.load_registers(vcpu, tables.registers())
    return world, vcpu


# ---- what is refused


@pytest.mark.parametrize("size", [0, -1, 4097])
def test_an_access_has_1_to_4096_bytes(size: int) -> None:
    world, vcpu = machine()
    for access in (world.read, world.fetch):
        with pytest.raises(GuestMisuse, match=f"an access of {size} bytes: one instruction touches 1 to 4096"):
            access(vcpu, 0x400000, size)
    if size >= 0:
        with pytest.raises(GuestMisuse, match=f"an access of {size} bytes"):
            world.write(vcpu, 0x400000, bytes(size))
    assert world.counters()["exits"] == 0


@pytest.mark.parametrize(
    ("gva", "size"),
    [(1 << 47, 1), (-1, 1), (0xFFFF_7FFF_FFFF_FFFF, 1), ((1 << 47) - 1, 2), (0xFFFF_FFFF_FFFF_FFFF, 2), (1 << 64, 1)],
)
def test_a_gva_of_long_mode_is_canonical_to_its_last_byte(gva: int, size: int) -> None:
    world, vcpu = machine()
    with pytest.raises(GuestMisuse, match=re.escape(f"gva {gva:#x}: not canonical (bits 63 to 47 must be equal)")):
        world.read(vcpu, gva, size)


@pytest.mark.parametrize("gva", [0xFFFF_8000_0000_0000, 0x7FFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF])
def test_the_ends_of_the_canonical_halves_are_addresses(gva: int) -> None:
    world, vcpu = machine()
    assert world.read(vcpu, gva, 1) == Access("fault", error_code=0, address=gva)


@pytest.mark.parametrize(("gva", "size"), [(1 << 32, 1), (0xFFFF_FFFF, 2), (-1, 1)])
def test_outside_long_mode_a_gva_has_32_bits(gva: int, size: int) -> None:
    world = World(Params(npt=False))
    world.add_slot(0, 0, MIB)
    with pytest.raises(GuestMisuse, match=f"gva {gva:#x}: outside long mode, addresses have 32 bits"):
        world.read(world.create_vcpu(), gva, size)


@pytest.mark.parametrize(("gpa", "size"), [(16 * MIB, 1), (16 * MIB - 4, 8), (1 << 40, 8)])
def test_poke_and_peek_reach_memslots_only(gpa: int, size: int) -> None:
    world, _ = machine()
    with pytest.raises(GuestMisuse, match=f"gpa {gpa:#x}: no memslot there"):
        world.peek(gpa, size)
    with pytest.raises(GuestMisuse, match=f"gpa {gpa:#x}: no memslot there"):
        world.poke(gpa, bytes(size))


@pytest.mark.parametrize("gpa", [-8, 1 << 64])
def test_a_gpa_has_64_bits(gpa: int) -> None:
    world, _ = machine()
    with pytest.raises(GuestMisuse, match=f"gpa {gpa:#x}"):
        world.peek(gpa)
    with pytest.raises(GuestMisuse, match=f"gpa {gpa:#x}"):
        world.poke(gpa, bytes(8))


def test_poke_and_peek_cross_pages_and_slots() -> None:
    world, _ = machine()
    world.add_slot(1, 16 * MIB, MIB)
    world.poke(16 * MIB - 3, b"abcdef")
    assert world.peek(16 * MIB - 3, 6) == b"abcdef"
    world.poke(0x5000, 0x1234_5678, 4)
    assert world.peek(0x5000, 6) == b"\x78\x56\x34\x12\0\0"


REFUSED_SLOTS: list[tuple[str, tuple[int, int, int, int], int, str]] = [
    ("overlap", (1, 0xFF_F000, 0x2000, 0), errno.EEXIST, "slot 0:1: gfns [0xfff, 0x1001) overlap <Memslot 0:0"),
    ("not-whole-pages", (1, 32 * MIB, 100, 0), errno.EINVAL, "memory_size 0x64: a slot has whole pages"),
    ("empty", (1, 32 * MIB, 0, 0), errno.EINVAL, "memory_size 0x0: a slot has whole pages"),
    ("gpa-unaligned", (1, 32 * MIB + 8, 4096, 0), errno.EINVAL, "guest_phys_addr 0x2000008: must be a multiple"),
    ("id", (32764, 32 * MIB, 4096, 0), errno.EINVAL, "slot id 32764: user slots are 0 to 32763"),
    ("address-space", (2 << 16, 32 * MIB, 4096, 0), errno.EINVAL, "address space 2 (slot bits 16-31)"),
    ("flags", (1, 32 * MIB, 4096, 8), errno.EINVAL, "flags 0x8: only LOG_DIRTY_PAGES (1) and READONLY (2) exist"),
    ("in-use", (0, 0, 16 * MIB, 0), errno.EINVAL, "<Memslot 0:0 gfn 0x0-0x1000"),
    ("too-far", (1, 1 << 60, 4096, 0), errno.EINVAL, "last gfn 0x1000000000000: the largest that can be mapped"),
]


@pytest.mark.parametrize(
    ("arguments", "number", "message"), [case[1:] for case in REFUSED_SLOTS], ids=[case[0] for case in REFUSED_SLOTS]
)
def test_a_refused_slot_has_the_kernels_errno_and_leaves_nothing_mapped(
    arguments: tuple[int, int, int, int], number: int, message: str
) -> None:
    world, _ = machine()
    slot, gpa, size, flags = arguments
    vmas, free, slots = repr(world.mm.vmas), world.frames.nr_free, repr(world.vm.memslots[0].slots)
    for populate in (False, True):
        with pytest.raises(KvmIoctlError, match=re.escape(message)) as caught:
            world.add_slot(slot, gpa, size, flags=flags, populate=populate)
        assert caught.value.errno == number
    assert (repr(world.mm.vmas), world.frames.nr_free, repr(world.vm.memslots[0].slots)) == (vmas, free, slots)


@pytest.mark.parametrize(("slot", "gpa"), [(-1, 32 * MIB), (1, -4096), (1 << 32, 32 * MIB), (1, 1 << 64)])
def test_a_slot_that_no_field_can_hold_leaves_nothing_mapped(slot: int, gpa: int) -> None:
    world, _ = machine()
    vmas, free = repr(world.mm.vmas), world.frames.nr_free
    with pytest.raises(UserError, match=r"(slot|guest_phys_addr) \S+: must be from 0 to 0xf+"):
        world.add_slot(slot, gpa, 4096, populate=True)
    assert (repr(world.mm.vmas), world.frames.nr_free) == (vmas, free)


def test_an_unknown_backing_is_told_what_there_is() -> None:
    with pytest.raises(UserError, match="backing 'file': use 'anonymous' or 'shared'"):
        World().add_slot(0, 0, 4096, backing="file")


def test_memory_that_the_host_does_not_have_is_missed_when_it_is_populated() -> None:
    world = World(nr_frames=64)
    world.add_slot(0, 0, MIB)
    free = world.frames.nr_free
    with pytest.raises(OutOfFrames, match="no free frame left of nr_frames=64"):
        world.add_slot(1, MIB, MIB, populate=True)
    assert (len(world.mm.vmas), world.frames.nr_free) == (1, free)
    assert world.vm.gfn_to_memslot(MIB >> 12, 0) is None


ERRORS: list[tuple[str, Callable[[World], object], int]] = [
    ("delete", lambda world: world.delete_slot(7), errno.EINVAL),
    ("no-slot", lambda world: world.dirty_log(7), errno.ENOENT),
    ("not-logged", lambda world: world.dirty_log(0), errno.ENOENT),
    ("out-of-range", lambda world: world.dirty_log(1 << 20), errno.EINVAL),
]


@pytest.mark.parametrize(("call", "number"), [case[1:] for case in ERRORS], ids=[case[0] for case in ERRORS])
def test_an_ioctl_that_is_refused_has_its_errno(call: Callable[[World], object], number: int) -> None:
    world, _ = machine()
    with pytest.raises(KvmIoctlError) as caught:
        call(world)
    assert caught.value.errno == number


PARAMETERS: list[tuple[str, Callable[[], object], str]] = [
    (
        "unknown",
        lambda: Params().with_settings(["tlb_kep=on"]),
        "unknown parameter 'tlb_kep': did you mean tlb_keep",
    ),
    ("far-off", lambda: Params().with_settings(["zzz=1"]), "unknown parameter 'zzz': kvmmu params lists them"),
    ("type", lambda: Params(npt=3), "npt=3: must be on or off"),  # type: ignore[arg-type]
    ("range", lambda: Params(host_maxphyaddr=64), "host_maxphyaddr=64: must be a number from 36 to 52"),
    ("choice", lambda: Params(host_page="4m"), "host_page=4m: must be 4k or 2m or 1g"),
    ("pages", lambda: Params(nr_mmu_pages=5), "nr_mmu_pages=5: KVM accepts 64 or more"),
]


@pytest.mark.parametrize(("make", "message"), [case[1:] for case in PARAMETERS], ids=[case[0] for case in PARAMETERS])
def test_a_parameter_that_no_machine_has_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()


def test_a_keyword_that_is_no_parameter_is_pythons_error() -> None:
    with pytest.raises(TypeError, match="tlb_size"):
        Params(tlb_size=1)  # type: ignore[call-arg]


# ---- accesses that cross into the next page


@NPT
def test_ram_that_crosses_is_put_together(npt: bool) -> None:
    world, vcpu = machine(npt=npt)
    assert world.write(vcpu, 0x400FFD, b"abcdef") == Access("done")
    assert (world.peek(0x20_0FFD, 3), world.peek(0x30_0000, 3)) == (b"abc", b"def")
    assert world.read(vcpu, 0x400FFD, 6) == Access("done", b"abcdef")
    assert world.fetch(vcpu, 0x400FFF, 2) == Access("done", b"cd")
    assert world.read(vcpu, 0x400001, 4096).data[-4:] == b"abcd"
    assert world.peek(0x20_1000, 8) == bytes(8)


@NPT
@pytest.mark.parametrize(("gva", "code"), [(0x405FFE, 2), (0x410FFE, 3)], ids=["absent", "read-only"])
def test_a_store_whose_second_page_faults_stores_nothing(npt: bool, gva: int, code: int) -> None:
    world, vcpu = machine(npt=npt)
    gpa = PAGES[gva >> 12] + 0xFFE
    world.poke(gpa, b"--")
    assert world.write(vcpu, gva, b"abcd") == Access("fault", error_code=code, address=(gva | 0xFFF) + 1)
    assert world.peek(gpa, 2) == b"--"


@NPT
def test_an_access_whose_first_page_faults_is_reported_there(npt: bool) -> None:
    world, vcpu = machine(npt=npt)
    assert world.read(vcpu, 0x3FF_FFC, 8) == Access("fault", error_code=0, address=0x3FF_FFC)
    assert world.read(vcpu, 0x404FFC, 8) == Access("fault", error_code=0, address=0x404FFC)


@NPT
def test_an_access_that_reaches_a_device_is_the_devices(npt: bool) -> None:
    world, vcpu = machine(npt=npt)
    assert world.read(vcpu, 0x402010, 4) == Access("mmio", address=0xE000_0010)
    assert world.read(vcpu, 0x401FFE, 4) == Access("mmio", address=0xE000_0000)
    assert world.write(vcpu, 0x402FFE, b"abcd") == Access("mmio", address=0xE000_0FFE)
    world.audit()


@NPT
def test_the_last_byte_of_a_page_does_not_need_the_next(npt: bool) -> None:
    world, vcpu = machine(npt=npt)
    assert world.write(vcpu, 0x405FFF, b"z") == Access("done")
    assert world.peek(0x20_1FFF, 1) == b"z"


# ---- several vCPUs


@NPT
def test_two_vcpus_share_memory_and_tables_not_registers(npt: bool) -> None:
    world, first = machine(npt=npt)
    second = world.create_vcpu()
    assert [first.vcpu_id, second.vcpu_id] == [0, 1]
    # Without paging a gva is a gpa.
    assert world.write(second, 0x20_0000, b"from 1") == Access("done")
    assert world.read(first, 0x40_0000, 6) == Access("done", b"from 1")
    tables = world.tables("4-level", ROOT)
    world.load_registers(second, tables.registers())
    assert world.write(second, 0x40_0000, b"paging") == Access("done")
    assert world.read(first, 0x40_0000, 6) == Access("done", b"paging")
    roots = [sp for sp in world.shadow_pages() if sp.root_count]
    # Nested paging has one root for both, which the TDP MMU itself uses too.
    assert max(sp.root_count for sp in roots) == (3 if npt else 2)
    counters = world.counters()
    assert counters["exits"] == sum(vcpu.stat.as_dict()["exits"] for vcpu in (first, second))
    world.audit()


@NPT
def test_what_one_vcpu_loses_the_other_loses_too(npt: bool) -> None:
    world, first = machine(npt=npt)
    second = world.create_vcpu()
    hva = world.add_slot(1, 32 * MIB, MIB)
    world.load_registers(second, world.tables("4-level", ROOT).registers())
    tables = world.tables("4-level", ROOT, vcpu=first, window=WINDOW)
    tables.set_entry(0x40_0000, 1, 32 * MIB | P | W | U)
    for vcpu in (first, second):
        assert world.write(vcpu, 0x40_0000, b"x") == Access("done")
    world.mm.munmap(hva, 4096)
    for vcpu in (first, second):
        with pytest.raises(KvmIoctlError, match="cannot be resolved by the host") as caught:
            world.read(vcpu, 0x40_0000)
        assert caught.value.errno == errno.EFAULT
    world.delete_slot(1)
    for vcpu in (first, second):
        assert world.read(vcpu, 0x40_0000) == Access("mmio", address=32 * MIB)
    world.audit()


def test_maxphyaddr_is_each_vcpus_own() -> None:
    world, _ = machine()
    small = world.create_vcpu(CpuFeatures(36))
    world.load_registers(small, world.tables("4-level", ROOT).registers())
    world.poke(world.tables("4-level", ROOT).entry_gpa(0x40_0000, 1), (1 << 40) | P | W | U)
    assert world.read(small, 0x40_0000) == Access("fault", error_code=9, address=0x40_0000)


# ---- looking


def test_a_walk_is_empty_without_a_root_and_ends_where_nothing_is_present() -> None:
    world, vcpu = machine()
    assert world.walk(vcpu, 0x40_0000) == []
    assert world.shadow_pages() == []
    world.write(vcpu, 0x40_0000, b"x")
    assert [element.level for element in world.walk(vcpu, 0x40_0000)] == [4, 3, 2, 1]
    leaf = world.walk(vcpu, 0x40_0000)[-1]
    assert int.from_bytes(world.memory.read(leaf.hpa, 8), "little") == leaf.spte
    assert [element.level for element in world.walk(vcpu, 0x7F00_0000_0000)] == [4]
    assert len(world.shadow_pages()) == 4


def test_the_digest_tells_machines_apart_and_equal_ones_not() -> None:
    digests = []
    for data in (b"a", b"b", None):
        world, vcpu = machine()
        if data is not None:
            world.write(vcpu, 0x40_0000, data)
        digests.append(world.digest())
    # Guest memory is not part of it, what kvm built is.
    assert digests[0] == digests[1] != digests[2]


def test_events_reach_every_sink_until_it_is_taken_off() -> None:
    world, vcpu = machine()
    old: list[Event] = []
    new: list[Event] = []
    stop_old = world.on_event(old.append)
    world.on_event(new.append)
    world.read(vcpu, 0x40_0000)
    assert old == new
    assert "kvm_page_fault" in [event[0] for event in new]
    stop_old()
    world.read(vcpu, 0x40_1000)
    assert len(old) < len(new)


def test_a_faults_event_has_its_cause_once_the_fault_is_handled() -> None:
    world, vcpu = machine()
    events: list[Event] = []
    early: list[str | None] = []
    world.on_event(events.append)
    world.on_event(lambda event: early.append(event_cause(event)))
    world.read(vcpu, 0x40_0000)
    world.read(vcpu, 0x40_1000)
    assert set(early) == {None}
    assert [event_cause(event) for event in events if event[0] == "kvm_page_fault"] == ["table", "map"]
    assert {event_cause(event) for event in events if event[0] != "kvm_page_fault"} == {None}


def test_an_event_names_the_vcpu_whose_work_it_is_and_none_for_the_process() -> None:
    world, vcpu = machine()
    other = world.create_vcpu()
    world.load_registers(other, ControlRegisters(vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer))
    events: list[Event] = []
    world.on_event(events.append)

    def who() -> set[tuple[str, int | None]]:
        found = {(event[0], vcpu_of(event)) for event in events}
        events.clear()
        return found

    world.write(vcpu, 0x40_0000, b"x")
    assert {vcpu_id for _, vcpu_id in who()} == {0}
    world.read(other, 0x40_2000)
    assert {vcpu_id for _, vcpu_id in who()} == {1}
    hva = next(slot.userspace_addr for slot in world.vm.memslots[0].slots)
    world.mm.dontneed(hva, 0x1000)
    assert ("kvm_unmap_hva_range", None) in who()
    # A copy on write in a vCPU's fault is the vCPU's work, although the notifier tells it.
    world.mm.dontneed(hva, world.mm.find_vma(hva).end - hva)  # type: ignore[union-attr]
    events.clear()
    world.read(other, 0x40_5000)
    world.write(other, 0x40_5000, b"y")
    assert {vcpu_id for _, vcpu_id in who()} == {1}
    world.mov_cr3(vcpu, vcpu.cr3)
    world.mm.munmap(hva, 0x1000)
    assert ("kvm_unmap_hva_range", None) in who()


def test_the_dirty_log_has_the_pages_written_since_the_last_call() -> None:
    world, vcpu = machine(flags=KVM_MEM_LOG_DIRTY_PAGES)
    world.dirty_log(0)
    world.read(vcpu, 0x40_1000)
    world.write(vcpu, 0x40_0000, b"x")
    log = int.from_bytes(world.dirty_log(0), "little")
    # The page, and the page table in which the CPU set A and D.
    assert log >> 0x200 & 1
    assert not log >> 0x300 & 1
    assert int.from_bytes(world.dirty_log(0), "little") == 0
    world.write(vcpu, 0x40_0000, b"y")
    assert int.from_bytes(world.dirty_log(0), "little") == 1 << 0x200


# ---- the end


@NPT
def test_close_frees_every_frame_that_is_not_the_processes_own(npt: bool) -> None:
    world = World(Params(npt=npt))
    nr_free = world.frames.nr_free
    hva = world.add_slot(0, 0, 16 * MIB)
    for _ in range(2):
        vcpu = world.create_vcpu()
        tables = world.tables("pae" if vcpu.vcpu_id else "4-level", ROOT + 0x20_0000 * vcpu.vcpu_id)
        tables.map_range(0x40_0000, 0x80_0000, 0x10000)
        tables.map(0x50_0000, 0xE000_0000)
        world.load_registers(vcpu, tables.registers())
        for page in range(16):
            assert world.write(vcpu, 0x40_0000 + page * 4096, b"x").kind == "done"
        assert world.read(vcpu, 0x50_0000).kind == "mmio"
    world.close()
    assert world.vm.vcpus == ()
    assert shadow_pages(world.vm) == []
    assert world.vm.n_used_mmu_pages == 0
    audit(world.vm)
    world.vm.mm.munmap(hva, 16 * MIB)
    # Frames of rmap descriptors stay with the VM for its next ones.
    assert world.frames.nr_free == nr_free - world.vm.nr_desc_frames


def test_a_world_without_vcpus_closes() -> None:
    world = World()
    world.close()
    assert world.frames.nr_free == world.frames.nr_frames - 2


def test_the_frames_of_a_world_leave_room_for_kvm() -> None:
    assert nr_frames_for(16 * MIB) == 80 * MIB >> 12
    assert nr_frames_for(1 << 30) == 3 << 29 >> 12


def test_a_closed_world_does_nothing_more() -> None:
    world = World()
    world.add_slot(0, 0, 1 << 20)
    vcpu = world.create_vcpu()
    world.close()
    for call in (world.close, world.create_vcpu, lambda: world.read(vcpu, 0x1000)):
        with pytest.raises(GuestMisuse, match="this world is closed"):
            call()
