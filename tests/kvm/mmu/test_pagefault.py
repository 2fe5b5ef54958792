# SPDX-License-Identifier: GPL-2.0-only
"""The path of one fault, stage by stage: what ends it early, what the guest is given, what the exit asks for."""

from __future__ import annotations

import errno
import itertools

import pytest

from kvm.mmu.machines import AD, DATA, EMPTY, HOLE, RO, RW, VA, Guest, U, W, held
from kvmmu import KvmBug
from kvmmu.kvm.mmu import pagefault, roots, zap
from kvmmu.kvm.mmu.fault import PageFault
from kvmmu.kvm.mmu.faultin import faultin
from kvmmu.kvm.mmu.leaf import Leaf
from kvmmu.kvm.mmu.verdict import CAUSES
from kvmmu.kvm.mmu.walker import walk_addr

PRESENT, WRITE, USER, RSVD, FETCH, GUEST_PAGE = 1, 2, 4, 8, 16, 1 << 33
CONTINUE, RETRY, EMULATE, WRITE_PROTECTED, INVALID, FIXED, SPURIOUS = range(7)
NOTHING, PF, ALLOW_RETRY, OWN_TABLE = 0, 1 << 6, 1 << 3, 1 << 8
IN_PROGRESS = 1 << 63
OUTSIDE = 0


class Box:
    """A guest with a root; VA maps DATA."""

    def __init__(self, *settings: str, npt: bool = False, flags: int = RW | AD) -> None:
        self.guest = Guest("4-level", *settings, npt=npt)
        self.place = self.guest.tables.map(VA, DATA, flags=flags)
        self.vcpu, self.vm, self.world = self.guest.vcpu, self.guest.world.vm, self.guest.world
        assert roots.load(self.vcpu) == 0

    def fault(self, addr: int = VA, code: int = USER) -> int:
        """What the exit asks for: a negative errno, or what is to be emulated, NOTHING if the guest just goes on."""
        result = pagefault.page_fault(self.vcpu, addr, code)
        assert result <= 0
        return result or self.vcpu.emultype

    def write_protected(self, addr: int) -> tuple[int, int]:
        """A write to a tracked page: the verdict, and what is to be emulated."""
        self.vcpu.emultype = 0
        verdict = pagefault.handle_write_protected(self.vcpu, addr, PRESENT | WRITE)
        return verdict, self.vcpu.emultype

    def spte(self, addr: int = VA) -> int:
        return self.world.walk(self.vcpu, addr)[-1].spte

    @property
    def cause(self) -> str:
        return CAUSES[self.vcpu.fault_cause]

    def stats(self) -> list[int]:
        stat = self.vcpu.stat
        return [stat.pf_taken, stat.pf_fixed, stat.pf_emulate, stat.pf_spurious, stat.pf_guest]


# The whole of it.


def test_a_fault_maps_the_page_and_the_guest_goes_on() -> None:
    box = Box()
    assert (box.fault(), box.cause) == (NOTHING, "table")
    assert box.spte() & (1 | U) == 1 | U
    assert box.stats() == [1, 1, 0, 0, 0]
    assert not box.vcpu.exception_pending


def test_the_same_fault_again_is_spurious() -> None:
    box = Box(flags=RO | AD)
    box.fault()
    assert (box.fault(), box.cause) == (NOTHING, "spurious")
    assert box.stats() == [2, 1, 0, 1, 0]


def test_without_a_root_the_guest_goes_on_and_nothing_is_counted() -> None:
    box = Box()
    roots.unload(box.vcpu)
    assert (box.fault(), box.cause) == (NOTHING, "retry")
    assert box.stats() == [0] * 5


@pytest.mark.parametrize(
    ("entry", "code", "error_code"),
    [(0, USER, 4), (0, USER | WRITE, 6), (DATA | RO | AD, USER | WRITE, 7), (DATA | RW | AD | 1 << 46, USER, 0xD)],
)
def test_the_guests_own_fault_is_given_to_it(entry: int, code: int, error_code: int) -> None:
    box = Box()
    box.world.poke(box.place, entry)
    assert (box.fault(VA + 0x123, code), box.cause) == (NOTHING, "guest")
    vcpu = box.vcpu
    assert (vcpu.exception_pending, vcpu.exception_vector, vcpu.exception_error_code) == (True, 14, error_code)
    assert (vcpu.cr2, vcpu.exception_address) == (VA + 0x123, VA + 0x123)
    assert box.stats() == [1, 0, 0, 0, 1]


def test_an_injected_fault_forgets_the_stale_entry_that_would_repeat_it() -> None:
    """Only when the walk found a present entry without reserved bits; a missing one cannot be stale."""
    cases = 0
    for entry, forgotten in ((DATA | RO | AD, True), (0, False), (DATA | RW | AD | 1 << 46, False)):
        box = Box()
        box.fault(VA, USER | WRITE)
        box.guest.edit.store(box.place, DATA | RW | AD | 0x200, 8)
        box.world.poke(box.place, entry)
        before = box.spte()
        box.fault(VA, USER | WRITE)
        assert box.vcpu.exception_pending
        assert (box.spte() != before) == forgotten, hex(entry)
        cases += 1
    assert cases == 3


def test_a_device_is_emulated_and_then_known() -> None:
    box = Box()
    box.guest.tables.map(VA + 0x40000, HOLE, flags=RW | AD)
    assert (box.fault(VA + 0x40123), box.cause) == (PF, "mmio-install")
    assert (box.vcpu.mmio_gva, box.vcpu.mmio_gfn) == (VA + 0x40000, HOLE >> 12)
    assert box.stats() == [1, 0, 1, 0, 0]
    # Now the entry has a reserved bit, and the record is at hand: neither walk nor count.
    assert (box.fault(VA + 0x40456, USER | PRESENT | RSVD), box.cause) == (PF, "mmio-cached")
    assert box.stats() == [1, 0, 1, 0, 0]


@pytest.mark.parametrize("npt", [False, True])
def test_a_hosts_error_ends_the_run(npt: bool) -> None:
    box = Box(npt=npt)
    box.world.mm.munmap(box.guest.hva + DATA, 0x1000)
    addr = DATA if npt else VA
    assert (box.fault(addr), box.cause) == (-errno.EFAULT, "error")
    assert box.spte(addr) == EMPTY


def test_no_page_and_no_frame_are_errors() -> None:
    box = Box()
    zap.change_mmu_pages(box.vm, 1)
    assert box.fault() == -errno.ENOSPC
    zap.change_mmu_pages(box.vm, 100)
    frames = box.vm.frames
    taken = [frames.alloc() for _ in range(frames.nr_free - 63)]
    assert pagefault.topup_caches(box.vm) == -errno.ENOMEM
    assert box.fault() == -errno.ENOMEM
    frames.put(taken.pop())
    assert pagefault.topup_caches(box.vm) == 0
    assert box.fault() == NOTHING
    for pfn in taken:
        frames.put(pfn)


@pytest.mark.parametrize("npt", [False, True])
def test_the_reference_to_the_page_is_given_back_however_it_ends(npt: bool) -> None:
    box = Box(npt=npt)
    addr = DATA if npt else VA
    pfn = box.world.mm.hpte(box.guest.hva + DATA) >> 12 & 0xFFFFFF
    refs = box.vm.frames.nr_refs(pfn)
    for code in (USER, USER | WRITE, USER | WRITE):
        assert box.fault(addr, code) == NOTHING
        assert box.vm.frames.nr_refs(pfn) == refs
    with held(box.vm), pytest.raises(KvmBug, match=r"(write|read)_lock by actor 0 while it holds"):
        box.fault(addr, USER)


@pytest.mark.parametrize("npt", [False, True])
@pytest.mark.parametrize("between", ["nothing", "invalidation", "zap of the root", "a bug"])
def test_under_the_lock_the_answer_is_used_only_if_it_still_holds(between: str, npt: bool) -> None:
    """However it ends, lock and reference are given back."""
    box = Box("tdp_mmu=off", npt=npt)
    addr = DATA if npt else VA
    vcpu, vm = box.vcpu, box.vm
    if between == "a bug":
        assert box.fault(addr) == NOTHING
    refs = vm.frames.nr_refs(box.world.mm.hpte(box.guest.hva + DATA) >> 12 & 0xFFFFFF)
    fault, gw = PageFault(addr, USER), None
    if not npt:
        gw = vcpu.guest_walk
        assert walk_addr(vcpu, vcpu.root_mmu, gw, addr, USER)
        fault.max_level = gw.level
    fault.gfn, fault.slot = DATA >> 12, vcpu.gfn_to_memslot(DATA >> 12)
    assert faultin(vcpu, fault, 7) == CONTINUE
    pfn, expected = fault.pfn, FIXED
    assert vm.frames.nr_refs(pfn) == refs + 1
    leaf = Leaf()
    leaf.access = 7
    if between == "invalidation":
        box.world.vm.mm.chain.range_start(box.guest.hva + DATA, box.guest.hva + DATA + 0x1000)
        box.world.vm.mm.chain.range_end(box.guest.hva + DATA, box.guest.hva + DATA + 0x1000)
        expected = RETRY
    elif between == "zap of the root":
        with held(vm):
            zap.prepare_zap(vm, vm.frames.owner(vcpu.mmu.root_hpa >> 12), [])
        expected = RETRY
    if between == "a bug":
        # An entry that maps another page, and that no rmap knows.
        entry = box.world.walk(vcpu, addr)[-1]
        vm.memory.write_once(entry.hpa, entry.spte ^ 1 << 12)
        assert fault.slot is not None
        words = fault.slot.rmap_array
        assert words is not None
        for at in range(len(words)):
            words[at] = 0
        with pytest.raises(KvmBug, match="is not in the list"):
            pagefault.map_fault(vcpu, fault, gw, leaf)
    else:
        assert pagefault.map_fault(vcpu, fault, gw, leaf) == expected
    assert vm.mmu_lock.is_free()
    assert vm.frames.nr_refs(pfn) == refs


def test_what_an_earlier_exit_asked_for_is_forgotten() -> None:
    box, addr = tracked()
    assert box.fault(addr, PRESENT | WRITE) == PF | ALLOW_RETRY
    box.guest.tables.map(VA + 0x40000, HOLE, flags=RW | AD)
    # Another device page, found by the slow path and then by its record, and a fault that asks for nothing.
    assert box.fault(VA + 0x40000) == PF
    box.vcpu.emultype = PF | ALLOW_RETRY
    assert box.fault(VA + 0x40000, USER | PRESENT | RSVD) == PF
    roots.unload(box.vcpu)
    assert box.fault(addr, PRESENT | WRITE) == NOTHING


# Write-protected pages.


def tracked(*, npt: bool = False, host: str = "") -> tuple[Box, int]:
    """A box, and an address whose page is write-tracked: a table above level 1."""
    box = Box(*host.split(), npt=npt)
    gpa = box.guest.tables.entry_gpa(VA, 2) & ~0xFFF
    if npt:
        slot = box.vcpu.gfn_to_memslot(gpa >> 12)
        assert slot is not None
        roots.first_shadow_root(box.vm)
        array = slot.write_track_array
        assert array is not None
        array[gpa >> 12] = 1
        return box, gpa
    box.fault()
    return box, box.guest.window + gpa


@pytest.mark.parametrize("npt", [False, True])
def test_a_write_to_a_tracked_page_is_emulated_and_may_be_retried(npt: bool) -> None:
    box, addr = tracked(npt=npt)
    before = box.stats()
    assert box.fault(addr, PRESENT | WRITE) == PF | ALLOW_RETRY
    assert box.cause == "write-protected"
    assert [new - old for new, old in zip(box.stats(), before, strict=True)] == [1, 0, 1, 0, 0]


def test_only_present_writes_without_reserved_bits_are_tracked_writes() -> None:
    box, addr = tracked()
    gfn = box.guest.tables.entry_gpa(VA, 2) >> 12
    cases = 0
    for bits in itertools.product((0, PRESENT), (0, WRITE), (0, RSVD)):
        fault = PageFault(addr, sum(bits))
        fault.gfn = gfn
        assert pagefault.is_tracked_write(box.vcpu, fault) == (sum(bits) == PRESENT | WRITE)
        fault.gfn = DATA >> 12
        assert not pagefault.is_tracked_write(box.vcpu, fault)
        cases += 1
    assert cases == 8


def test_a_write_to_a_tracked_page_clears_flood_counts_on_its_way() -> None:
    box, addr = tracked()
    box.fault(addr, 0)
    way = [box.world.frames.owner(element.hpa >> 12) for element in box.world.walk(box.vcpu, addr)]
    for sp in way:
        sp.write_flooding_count = 2
    box.fault(addr, PRESENT | WRITE)
    assert [sp.write_flooding_count for sp in way] == [0] * 4


def test_the_same_instruction_at_the_same_address_is_not_retried_again() -> None:
    box, addr = tracked()
    box.vcpu.rip = 0x77
    box.vcpu.last_retry_eip, box.vcpu.last_retry_addr = 0x77, addr
    assert box.write_protected(addr) == (EMULATE, PF)
    assert (box.vcpu.last_retry_eip, box.vcpu.last_retry_addr) == (0x77, addr)
    for memo in ((0x78, addr), (0x77, addr + 1)):
        box.vcpu.last_retry_eip, box.vcpu.last_retry_addr = memo
        assert box.write_protected(addr) == (EMULATE, PF | ALLOW_RETRY)
        assert (box.vcpu.last_retry_eip, box.vcpu.last_retry_addr) == (0, 0)


def test_a_known_device_is_not_retried() -> None:
    box, addr = tracked()
    box.vcpu.mmio_gva, box.vcpu.mmio_gen = addr & ~0xFFF, box.vm.slots_of(0).generation
    assert box.write_protected(addr) == (EMULATE, PF)


@pytest.mark.parametrize(
    ("reinjected", "verdict", "result"),
    [(True, RETRY, NOTHING), (False, EMULATE, PF | ALLOW_RETRY)],
    ids=["reinjected", "not reinjected"],
)
def test_a_table_that_blocks_the_delivery_of_an_event_is_given_up(reinjected: bool, verdict: int, result: int) -> None:
    box, addr = tracked()
    box.vcpu.exception_reinjected = reinjected
    gfn = box.guest.tables.entry_gpa(VA, 2) >> 12
    assert box.write_protected(addr)[0] == verdict
    assert (gfn in [sp.gfn for sp in box.world.shadow_pages()]) == (not reinjected)
    box.vcpu.exception_reinjected = False
    # The whole path says so too: after a retry there is nothing to emulate.
    box, addr = tracked()
    box.vcpu.exception_reinjected = reinjected
    assert box.fault(addr, PRESENT | WRITE) == result
    box.vcpu.exception_reinjected = False


# MMIO.


def mmio_box() -> tuple[Box, int]:
    """A box that knows the device at ``addr`` by its entry alone."""
    box = Box()
    addr = VA + 0x40000
    box.guest.tables.map(addr, HOLE, flags=RW | AD)
    box.fault(addr)
    box.vcpu.mmio_gva = box.vcpu.mmio_gfn = 0
    return box, addr


def test_an_mmio_entry_of_today_is_emulated_and_remembered() -> None:
    box, addr = mmio_box()
    assert pagefault.handle_mmio_page_fault(box.vcpu, addr + 0x10, False) == EMULATE
    vcpu = box.vcpu
    assert (vcpu.mmio_gva, vcpu.mmio_gfn, vcpu.mmio_access) == (addr, HOLE >> 12, U | W)
    assert vcpu.mode == OUTSIDE


def test_under_nested_paging_the_gva_is_not_known() -> None:
    box = Box(npt=True)
    box.fault(HOLE)
    box.vcpu.mmio_gva = box.vcpu.mmio_gfn = 0
    assert pagefault.handle_mmio_page_fault(box.vcpu, HOLE + 0x10, True) == EMULATE
    assert (box.vcpu.mmio_gva, box.vcpu.mmio_gfn) == (0, HOLE >> 12)
    assert pagefault.handle_mmio_page_fault(box.vcpu, HOLE + 0x20, True) == EMULATE


def test_an_entry_of_another_generation_must_be_looked_up() -> None:
    box, addr = mmio_box()
    box.world.add_slot(9, 0x6000_0000, 0x1000)
    slots = box.vm.slots_of(0)
    assert pagefault.handle_mmio_page_fault(box.vcpu, addr, False) == INVALID
    # The whole path looks, and writes an entry of today.
    assert box.fault(addr, PRESENT | RSVD) == PF
    box.vcpu.mmio_gva = 0
    assert pagefault.handle_mmio_page_fault(box.vcpu, addr, False) == EMULATE
    box.vcpu.mmio_gva = 0
    slots.set_generation(box.vm.gate, slots.generation + (1 << 19))
    # 19 bits of it are in the entry.
    assert pagefault.handle_mmio_page_fault(box.vcpu, addr, False) == EMULATE


def test_during_an_update_the_entry_is_not_believed() -> None:
    box, addr = mmio_box()
    slots = box.vm.slots_of(0)
    slots.set_generation(box.vm.gate, slots.generation | IN_PROGRESS)
    assert pagefault.handle_mmio_page_fault(box.vcpu, addr, False) == INVALID
    slots.set_generation(box.vm.gate, slots.generation & ~IN_PROGRESS)


def test_what_is_no_device_any_more_is_retried() -> None:
    box, _ = mmio_box()
    assert pagefault.handle_mmio_page_fault(box.vcpu, VA + 0x1000, False) == RETRY
    assert (box.fault(VA + 0x1000, PRESENT | RSVD), box.cause) == (NOTHING, "retry")


def test_reserved_bits_in_a_present_entry_are_a_bug() -> None:
    box, _ = mmio_box()
    box.fault(VA)
    leaf = box.world.walk(box.vcpu, VA)[-1]
    box.world.memory.write_once(leaf.hpa, leaf.spte | 1 << 50)
    with pytest.raises(KvmBug, match="reserved bits"):
        pagefault.walk_for_mmio(box.vcpu, VA)
    # The walk has ended there too: nobody waits for it.
    assert box.vcpu.mode == OUTSIDE
    box.world.memory.write_once(leaf.hpa, leaf.spte)
    assert pagefault.walk_for_mmio(box.vcpu, VA) == leaf.spte
    roots.unload(box.vcpu)
    assert pagefault.walk_for_mmio(box.vcpu, VA) == 0


# Rights.


def test_a_supervisors_write_without_wp_makes_the_page_its_own() -> None:
    """Every combination of CR0.WP, SMEP, the entry's W, and who reads or writes."""
    cases = 0
    for wp, smep, writable, user, write in itertools.product((False, True), repeat=5):
        box = Box(flags=(RW if writable else RO) | AD)
        cr0 = box.vcpu.cr0 & ~(1 << 16) | (1 << 16 if wp else 0)
        cr4 = box.vcpu.cr4 | (1 << 20 if smep else 0)
        assert box.world.mov_cr0(box.vcpu, cr0)
        assert box.world.mov_cr4(box.vcpu, cr4)
        fault = PageFault(VA, (USER if user else 0) | (WRITE if write else 0))
        fault.slot = box.vcpu.gfn_to_memslot(DATA >> 12)
        gw = box.vcpu.guest_walk
        assert walk_addr(box.vcpu, box.vcpu.root_mmu, gw, VA, 0)
        access = 7 if writable else 5
        expected = access
        if write and not user and not writable and not wp:
            expected = 2 if smep else 3
        assert pagefault.effective_access(box.vcpu, fault, gw) == expected, (wp, smep, writable, user, write)
        fault.slot = None
        assert pagefault.effective_access(box.vcpu, fault, gw) == access
        cases += 1
    assert cases == 32


# Counting, and what else an exit asks for.


@pytest.mark.parametrize("verdict", range(7))
def test_three_verdicts_are_counted(verdict: int) -> None:
    box = Box()
    pagefault.count_verdict(box.vcpu, verdict)
    counted = {FIXED: [0, 1, 0, 0, 0], EMULATE: [0, 0, 1, 0, 0], SPURIOUS: [0, 0, 0, 1, 0]}
    assert box.stats() == counted.get(verdict, [0] * 5)


@pytest.mark.parametrize(("level", "result"), [(1, NOTHING), (2, PF | ALLOW_RETRY | OWN_TABLE)])
def test_a_write_to_the_table_of_its_own_walk_is_told(level: int, result: int) -> None:
    """A table that maps itself: at level 1 it goes out of sync; above, only emulation gets on, and must know."""
    box = Box()
    own = VA + 0x20_0000 * 3
    box.guest.tables.map(own, DATA, flags=RW | AD)
    table = box.guest.tables.entry_gpa(own, level) & ~0xFFF
    box.guest.tables.map(own + 0x5000, table, flags=RW | AD)
    assert box.fault(own + 0x5000, WRITE) == result
    (sp,) = [sp for sp in box.world.shadow_pages() if sp.gfn == table >> 12]
    assert sp.unsync == (level == 1)
    # It is of this fault only.
    assert box.fault(VA, 0) == NOTHING
    assert box.fault(VA + 0x40_0000, WRITE) == NOTHING
