# SPDX-License-Identifier: GPL-2.0-only
"""The audit: silent about a sound VM, and naming each planted damage with the words involved."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from kvm.mmu.machines import held, publish
from kvmmu import build_info
from kvmmu.errors import KvmBug
from kvmmu.host.frames import FrameAllocator, SmallArrays
from kvmmu.host.mm import Mm
from kvmmu.hw.cpu import Cpu
from kvmmu.hw.memory import PhysicalMemory
from kvmmu.kvm.guestmem import write_guest
from kvmmu.kvm.memslots import Memslot, Memslots
from kvmmu.kvm.mmu import roots, setup, zap
from kvmmu.kvm.mmu.audit import MAX_LISTED, audit, find_violations, mmu_rmaps_stat
from kvmmu.kvm.mmu.page import ShadowPage
from kvmmu.kvm.mmu.pagefault import page_fault
from kvmmu.kvm.mmu.pages import list_del
from kvmmu.kvm.mmu.walker import GuestWalk
from kvmmu.kvm.run import create_vm
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.params import Params

NP = 1 << 63
WRITE, USER, FETCH = 2, 4, 16
SLOT_PAGES = 0x1000

#: gva -> guest entry of a 4-level guest: table pages at gfn 0x10 ..., read-only and user pages, a 2M page, a device.
ROOT, UPPER, MIDDLE, LOW, LOW2 = 0x10, 0x11, 0x12, 0x13, 0x14
GUEST_TABLES = {
    (ROOT, 0): UPPER << 12 | 0x27,
    (UPPER, 0): MIDDLE << 12 | 0x27,
    (MIDDLE, 0): LOW << 12 | 0x27,
    (MIDDLE, 1): LOW2 << 12 | 0x27,
    (MIDDLE, 2): 0x400000 | 0xE7,
    (MIDDLE, 3): LOW << 12 | 0x25,
    **{(LOW, i): i << 12 | 0x67 for i in range(64)},
    **{(LOW2, i): (0x200 + i) << 12 | 0x67 for i in range(64)},
    (LOW2, 100): 0xE0000000 | 0x67,
}


class World:
    """A VM with one slot of 16M at gpa 0, one vCPU in a 4-level guest, and faults at will."""

    def __init__(self, **params: object) -> None:
        self.memory = PhysicalMemory(0x4000)
        frames = FrameAllocator(self.memory)
        mm = Mm(frames)
        self.params = Params(**params)  # type: ignore[arg-type]
        self.vm = vm = create_vm(mm, self.params)
        hva = mm.mmap(SLOT_PAGES << 12, page_level=self.params.host_page_level, align=1 << 21)
        slot = Memslot(0, 0, 0, SLOT_PAGES, hva)  # type: ignore[arg-type]
        slot.alloc_lpage_info(SmallArrays())
        slot.alloc_rmap()
        if vm.is_write_tracking_enabled():
            slot.alloc_write_track()
        publish(vm, Memslots(0, 2, [slot]))
        vm.n_max_mmu_pages = 1000
        self.slot = slot
        for (gfn, index), gpte in GUEST_TABLES.items():
            self.poke(gfn, index, gpte)
        self.vcpu = vcpu = Vcpu(vm, 0, Cpu(0, self.memory), GuestWalk())
        vm.add_vcpu(vcpu)
        roots.create_mmu(vcpu)
        vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer = 0x80010011, ROOT << 12, 0x20, 0xD00
        setup.init_mmu(vcpu)
        assert roots.load(vcpu) == 0

    def poke(self, gfn: int, index: int, gpte: int) -> None:
        assert write_guest(self.vm, 0, (gfn << 12) + index * 8, struct.pack("<Q", gpte)) == 0  # type: ignore[arg-type]

    def fault(self, addr: int, error_code: int = 0) -> int:
        return page_fault(self.vcpu, addr, error_code)

    # ---- what a test damages

    def page(self, gfn: int, level: int, is_direct: bool = False) -> ShadowPage:
        found = [
            sp for sp in self.pages() if sp.gfn == gfn and sp.role & 0xF == level and bool(sp.role & 0x80) == is_direct
        ]
        assert found
        return found[0]

    def pages(self) -> Iterator[ShadowPage]:
        for head in self.vm.hash_heads():
            sp = head
            while sp is not None:
                yield sp
                sp = sp.hash_next

    def sptep(self, sp: ShadowPage, index: int) -> int:
        return sp.spt + index * 8

    def read(self, hpa: int) -> int:
        return self.memory.read_once(hpa)  # type: ignore[arg-type]

    def write(self, hpa: int, value: int) -> None:
        self.memory.write_once(hpa, value)  # type: ignore[arg-type]

    def head_at(self, gfn: int, level: int) -> int:
        """Place of a gfn's rmap head in the slot's array: levels 2 and 3 come first."""
        before = {2: 0, 3: self.slot.nr_lpages(2), 1: self.slot.nr_lpages(2) + self.slot.nr_lpages(3)}
        return before[level] + (gfn >> (9 * (level - 1)))


def make_shadow() -> World:
    """Shadow paging with every kind of entry: leaves of both sizes, a device, an unsync table, a long rmap."""
    world = World(npt=False, host_page="2m")
    for gva in (0x1000, 0x2000, 0x600000, 0x200000, 0x203000):
        world.fault(gva, USER)
    world.fault(0x400000, WRITE | USER)
    world.fault(0x264000, USER)
    world.fault(LOW2 << 12, WRITE)
    return world


def make_tdp() -> World:
    world = World(npt=True, tdp_mmu=False)
    for gpa in (0x1000, 0x203000, 0x1000000, 0xE0000000):
        world.fault(gpa, WRITE | USER | 1 << 32)
    return world


def problems(world: World) -> list[str]:
    return find_violations(world.vm).problems


def test_a_sound_shadow_vm_passes_and_is_counted() -> None:
    world = make_shadow()
    seen = audit(world.vm)
    assert seen.problems == []
    assert seen.pages == world.vm.n_used_mmu_pages >= 6
    assert seen.leaves == seen.rmap_entries >= 6
    assert seen.nonleaves >= 5
    assert seen.mmio >= 1
    assert world.vm.stat.mmu_unsync == 1


def test_a_sound_direct_vm_passes() -> None:
    world = make_tdp()
    seen = audit(world.vm)
    assert seen.leaves >= 2
    assert seen.mmio >= 1
    assert seen.pages == world.vm.n_used_mmu_pages


def test_a_fresh_vm_passes() -> None:
    vm = create_vm(Mm(FrameAllocator(PhysicalMemory(64))), Params())
    assert audit(vm).pages == 0


# ---- damages, each with the invariant and the words that must be named


def first_leaf(world: World) -> tuple[ShadowPage, int]:
    """(page, sptep) of the leaf of gva 0x1000; the page of the read-only entry has the same gfn."""
    sp = next(sp for sp in world.pages() if sp.gfn == LOW and sp.role & 0x70F == 0x701)
    return sp, world.sptep(sp, 1)


def drop_leaf(world: World) -> str:
    world.write(first_leaf(world)[1], NP)
    return "I5"


def forget_rmap(world: World) -> str:
    world.slot.rmap_array[world.head_at(1, 1)] = 0  # type: ignore[index]
    return "I5: 0 rmap entries, of gfn 0x1 level 1"


def double_rmap(world: World) -> str:
    array = world.slot.rmap_array
    assert array is not None
    array[world.head_at(0x999, 1)] = array[world.head_at(1, 1)]
    return "I5"


def misplace_translation(world: World) -> str:
    sp, _ = first_leaf(world)
    world.write(sp.shadowed_translation + 8, 0x55 << 12 | 7)
    return "I5: .*the leaf maps gfn 0x55"


def unalign_large(world: World) -> str:
    sp = world.page(MIDDLE, 2)
    sptep = world.sptep(sp, 2)
    assert world.read(sptep) & 0x80
    world.write(sptep, world.read(sptep) | 0x1000)
    return "I5: .*not aligned to 512 frames"


def forget_parents(world: World) -> str:
    sp = world.page(MIDDLE, 2)
    # One parent: the head is the entry itself.
    link = sp.parent_ptes
    word = world.read(link)
    with held(world.vm):
        zap.drop_parent_pte(world.vm, sp, link)
    world.write(link, word)
    return "I5: not among the parents of"


def invent_parent(world: World) -> str:
    with held(world.vm):
        zap.add_parent_pte(world.vm, world.page(ROOT, 4), world.sptep(world.page(MIDDLE, 2), 9))
    return "I5: .* lists parent .*, which does not link it"


def break_tail_count(world: World) -> str:
    array = world.slot.rmap_array
    assert array is not None
    desc = next(word & ~7 for word in array if word & 1)
    world.write(desc + 8, world.read(desc + 8) + (3 << 32))
    return "I5: .* counts 3 entries behind it, there are 0"


def overfill_desc(world: World) -> str:
    array = world.slot.rmap_array
    assert array is not None
    desc = next(word & ~7 for word in array if word & 1)
    world.write(desc + 8, 15)
    return "I5: .* holds 15 entries"


def loop_descs(world: World) -> str:
    array = world.slot.rmap_array
    assert array is not None
    desc = next(word & ~7 for word in array if word & 1)
    world.write(desc, desc)
    return "I5: .* is misplaced or used twice"


def make_table_writable(world: World) -> str:
    sp, _ = first_leaf(world)
    world.fault(MIDDLE << 12, 0)
    sptep = world.sptep(sp, MIDDLE)
    assert world.read(sptep) & 0x802 == 0x800
    world.write(sptep, world.read(sptep) | 0x402)
    return f"I3: the guest table at gfn {MIDDLE:#x} can be written"


def make_table_mmu_writable(world: World) -> str:
    sp, _ = first_leaf(world)
    world.fault(MIDDLE << 12, 0)
    sptep = world.sptep(sp, MIDDLE)
    assert world.read(sptep) & 0x802 == 0x800
    world.write(sptep, world.read(sptep) | 0x400)
    return f"I3: the guest table at gfn {MIDDLE:#x} can be written"


def unsync_by_hand(world: World) -> str:
    world.page(LOW, 1).unsync = True
    world.vm.stat.mmu_unsync += 1
    return "I4: .* is unsync, its parent's bit is clear"


def unsync_upper(world: World) -> str:
    world.page(MIDDLE, 2).unsync = True
    return "I4: only level-1 tables of the guest may be unsync"


def miscount_unsync_children(world: World) -> str:
    world.page(MIDDLE, 2).unsync_children += 1
    return "I4: unsync_children is 2, 1 bits are set"


def miscount_tracking(world: World) -> str:
    world.slot.write_track_array[0x77] = 1  # type: ignore[index]
    return "I6: gfn 0x77 address space 0: gfn_write_track is 1, 0 tables"


def forget_tracking(world: World) -> str:
    world.slot.write_track_array[MIDDLE] = 0  # type: ignore[index]
    return f"I6: gfn {MIDDLE:#x} address space 0: gfn_write_track is 0, 1 tables"


def miscount_indirect(world: World) -> str:
    world.vm.indirect_shadow_pages += 1
    return "I6: indirect_shadow_pages is"


def miscount_lpage(world: World) -> str:
    world.slot.lpage_array[3] += 1  # type: ignore[index]
    return "I6: disallow_lpage of gfn 0x600 level 2 is 1, reasons are 0"


def leave_hash(world: World) -> str:
    vm = world.vm
    sp = world.page(LOW, 1)
    bucket = next(i for i, head in enumerate(vm.hash_heads()) if head is sp)
    vm.mmu_page_hash[bucket] = sp.hash_next
    return "I7: .* is on the active list and not in the hash"


def change_bucket(world: World) -> str:
    world.page(LOW, 1).gfn = 0x13131
    return "I7: .* is in hash bucket .*, its gfn belongs to"


def leave_active_list(world: World) -> str:
    sp = world.page(LOW, 1)
    list_del(sp)
    return "I7: .* is valid and not on the active list"


def break_backward_link(world: World) -> str:
    sp = world.page(LOW, 1)
    sp.link_prev = sp
    return "I7: link_prev of .* does not lead to its predecessor"


def invalidate(world: World) -> str:
    world.page(LOW, 1).role |= 0x800
    return "I7: .* is invalid and on the active list"


def make_obsolete(world: World) -> str:
    world.vm.active_mmu_pages.link_next.mmu_valid_gen ^= 1  # type: ignore[union-attr]
    return "I7: .* is behind an obsolete page on the active list"


def forget_root(world: World) -> str:
    world.page(ROOT, 4).root_count = 0
    return "I7: root_count is 0, 1 roots use"


def move_root(world: World) -> str:
    world.vcpu.mmu.root_hpa = 0x7000  # type: ignore[assignment]
    return "I7: a root is at 0x7000, where no shadow page is"


def link_nothing(world: World) -> str:
    sp = world.page(MIDDLE, 2)
    world.write(world.sptep(sp, 200), 0x7000 | 0x827)
    return "I7: links a table that is no shadow page: spte 0x7827 "


def forget_frame(world: World) -> str:
    world.vm.frames.set_owner(world.page(LOW, 1).spt >> 12, None)
    return "I7: the frame of .* does not know it"


def break_triple(world: World) -> str:
    _, sptep = first_leaf(world)
    world.write(sptep, world.read(sptep) & ~0x200 | 0x402)
    return "I9: illegal .*W-host- W-mmu W "


def freeze(world: World) -> str:
    world.write(world.sptep(world.page(LOW, 1), 500), NP | 0x5A0)
    return "I9: frozen spte 0x80000000000005a0"


def mmio_over_ram(world: World) -> str:
    sp = world.page(LOW2, 1)
    spte = world.read(world.sptep(sp, 100))
    world.write(world.sptep(sp, 101), spte & ~0xE0000000 | 0x333000)
    return "I10: gfn 0x333 has memory"


def mmio_above_leaf(world: World) -> str:
    spte = world.read(world.sptep(world.page(LOW2, 1), 100))
    world.write(world.sptep(world.page(MIDDLE, 2), 100), spte)
    return "I10: MMIO above level 1"


def miscount(name: str, owner: str = "stat") -> Callable[[World], str]:
    def damage(world: World) -> str:
        target = world.vm.stat if owner == "stat" else world.vm
        setattr(target, name, getattr(target, name) + 1)
        return f"I11: {name} is"

    damage.__name__ = f"miscount_{name}"
    return damage


def wrong_level(world: World) -> str:
    world.page(LOW, 1).role ^= 3
    return "I14: level: "


def wrong_inheritance(world: World) -> str:
    world.page(LOW, 1).role ^= 1 << 13
    return "I14: role bits 0x2000 differ"


def more_access(world: World) -> str:
    world.page(MIDDLE, 2).role &= ~0x700
    return "I14: more access than the table above allows"


def unnamed_role_bit(world: World) -> str:
    world.page(LOW, 1).role |= 1 << 20
    return "I14: role .* has bits without meaning"


def quadrant_without_4_bytes(world: World) -> str:
    world.page(LOW, 1).role |= 1 << 5
    return "I14: .* has quadrant 1 and 8-byte gptes"


def lose_translations(world: World) -> str:
    world.page(LOW, 1).shadowed_translation = 0  # type: ignore[assignment]
    return "I14: .* has no translations, against its role"


def leave_rubbish(world: World) -> str:
    world.write(world.sptep(world.page(LOW, 1), 500), 0)
    return "I16: spte 0x0 .* is neither present nor MMIO, and not 0x8000000000000000"


def share_frame(world: World) -> str:
    world.vm.frames.get(world.page(LOW, 1).spt >> 12)  # type: ignore[arg-type]
    return "frames: the table at .* has 2 references, it needs 1"


def leak_desc(world: World) -> str:
    world.vm.desc_free = world.read(world.vm.desc_free)  # type: ignore[assignment]
    return "frames: rmap descriptors: "


def loop_free_descs(world: World) -> str:
    world.write(world.vm.desc_free, world.vm.desc_free)
    return "frames: free descriptor .* is in use, free twice or misplaced"


def leak_page(world: World) -> str:
    world.vm.frames.set_owner(world.vm.frames.alloc(), ShadowPage(1, 0x3701, 0x7000))  # type: ignore[arg-type]
    return "frames: .* frames belong to shadow pages"


# Links and the hash can be written to by nobody but compiled code, where there is some.
INTERPRETED_ONLY = [
    pytest.param(damage, marks=pytest.mark.skipif(build_info().is_compiled, reason="links are read-only"))
    for damage in (break_backward_link, leave_hash)
]
DAMAGES = [
    drop_leaf, forget_rmap, double_rmap, misplace_translation, unalign_large, forget_parents, invent_parent,
    break_tail_count, overfill_desc, loop_descs, make_table_writable, make_table_mmu_writable, unsync_by_hand,
    unsync_upper, miscount_unsync_children, miscount_tracking, forget_tracking, miscount_indirect, miscount_lpage,
    change_bucket, leave_active_list, *INTERPRETED_ONLY, invalidate, make_obsolete, forget_root,
    move_root, link_nothing, forget_frame, break_triple, freeze, mmio_over_ram, mmio_above_leaf, miscount("pages_4k"),
    miscount("pages_2m"), miscount("pages_1g"), miscount("mmu_unsync"), miscount("nx_lpage_splits"),
    miscount("n_used_mmu_pages", "vm"), wrong_level, wrong_inheritance, more_access, unnamed_role_bit,
    quadrant_without_4_bytes, lose_translations, leave_rubbish, share_frame, leak_desc, loop_free_descs, leak_page,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damage_is_named(damage: Callable[[World], str]) -> None:
    world = make_shadow()
    assert problems(world) == []
    wanted = damage(world)
    with pytest.raises(KvmBug, match=rf"audit: \d+ broken invariants(.|\n)*\n  {wanted}"):
        audit(world.vm)


def test_an_mmio_spte_of_an_older_generation_may_name_memory() -> None:
    world = make_shadow()
    mmio_over_ram(world)
    assert len(problems(world)) == 1
    world.vm.memslots[0].set_generation(world.vm.gate, 4)
    assert problems(world) == []


def test_a_child_of_another_gfn_under_a_direct_table_is_named() -> None:
    world = make_tdp()
    assert problems(world) == []
    table = world.page(0x200, 1, is_direct=True)
    table.gfn = 0x400  # type: ignore[assignment]
    assert any(problem.startswith("I14: the entry maps gfn 0x200: ") for problem in problems(world))


def test_a_large_leaf_over_a_guest_table_is_named() -> None:
    world = make_shadow()
    sp = world.page(MIDDLE, 2)
    leaf = world.read(world.sptep(sp, 2))
    world.slot.write_track_array[0x412] = 1  # type: ignore[index]
    assert leaf & 0x882 == 0x882
    assert any("I3: the guest table at gfn 0x412 can be written: spte" in problem for problem in problems(world))


def test_many_problems_are_counted_and_the_first_listed() -> None:
    world = make_shadow()
    sp = world.page(LOW, 1)
    for index in range(100, 100 + MAX_LISTED + 5):
        world.write(world.sptep(sp, index), 0)
    with pytest.raises(KvmBug, match="25 broken invariants") as caught:
        audit(world.vm)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + MAX_LISTED + 1
    assert lines[-1] == "  ... and 5 more"


def test_the_audit_changes_nothing() -> None:
    world = make_shadow()
    before = bytes(world.memory.arena[:])
    audit(world.vm)
    assert bytes(world.memory.arena[:]) == before


# ---- mmu_rmaps_stat


def test_rmap_statistics_count_lists_by_their_lowest_set_bit() -> None:
    world = World(npt=True, tdp_mmu=False)
    lines = mmu_rmaps_stat(world.vm).splitlines()
    assert lines[0] == "Rmap_Count:\t0\t1\t2-3\t4-7\t8-15\t16-31\t32-63\t64-127\t128-255\t256-511\t512-1023\t"
    assert lines[1:] == [
        "Level=4K:\t4096" + "\t0" * 10 + "\t", "Level=2M:\t8" + "\t0" * 10 + "\t", "Level=1G:\t1" + "\t0" * 10 + "\t",
    ]  # fmt: skip
    array = world.slot.rmap_array
    assert array is not None
    array[world.head_at(5, 1)] = 0x5008
    desc = 0x6000
    for gfn, counts in ((6, 2), (7, 3), (8, 8 | 4 << 32), (9, 14 | (1 << 12) << 32)):
        desc += 128
        world.write(desc + 8, counts)
        array[world.head_at(gfn, 1)] = desc | 1
    # Lengths 1; 2; 3 (lowest bit 1); 12 (lowest bit 4); 4110 (lowest bit 2).
    assert mmu_rmaps_stat(world.vm).splitlines()[1] == "Level=4K:\t4091\t2\t2\t1" + "\t0" * 7 + "\t"
