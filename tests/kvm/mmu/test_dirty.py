# SPDX-License-Identifier: GPL-2.0-only
"""Dirty logging: whose W goes and comes, which bits are read, and what is zapped when it ends."""

from __future__ import annotations

import errno

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvm.mmu.machines import (
    AD,
    DATA,
    HOST_W,
    LARGE,
    MEMORY,
    MMU_W,
    RW,
    TABLES,
    VA,
    Guest,
    Others,
    W,
    flushes,
    held,
    slots_held,
)
from kvmmu import KvmIoctlError, Params, UserMemoryRegion, World
from kvmmu.guest.tables import SIZE_2M
from kvmmu.kvm.memslots import Memslot
from kvmmu.kvm.mmu import dirty, gfnrange

GFN = DATA >> 12


class Written:
    """A guest that has written four pages; gva VA + i * 0x8000 is page DATA + i * 0x1000."""

    def __init__(self, *settings: str, npt: bool = False) -> None:
        self.guest = Guest("4-level", *settings, npt=npt)
        self.npt = npt
        for i in range(4):
            self.guest.tables.map(self.gva(i), DATA + i * 0x1000, flags=RW | AD)
            assert self.guest.write(self.gva(i)) == "done"
        self.vm = self.guest.world.vm

    @staticmethod
    def gva(i: int) -> int:
        return VA + i * 0x8000

    def spte(self, i: int) -> int:
        at = DATA + i * 0x1000 if self.npt else self.gva(i)
        return self.guest.world.walk(self.guest.vcpu, at)[-1].spte

    def slot(self) -> Memslot:
        slot = self.guest.vcpu.gfn_to_memslot(GFN)
        assert slot is not None
        return slot

    def log(self, flags: int = 1) -> None:
        self.guest.world.set_region(UserMemoryRegion(0, flags, 0, MEMORY, self.guest.hva))

    def dirty(self) -> list[int]:
        """The data pages that the log says were written; reading clears it."""
        log = int.from_bytes(self.guest.world.dirty_log(0), "little") >> GFN
        return [i for i in range(8) if log >> i & 1]

    def writable(self) -> list[int]:
        return [i for i in range(4) if self.spte(i) & W]


@pytest.mark.parametrize("npt", [False, True])
def test_w_goes_with_the_beginning_of_the_log_and_may_come_back(npt: bool) -> None:
    box = Written(npt=npt)
    assert box.writable() == [0, 1, 2, 3]
    flushed = flushes(box.vm)
    box.log()
    assert box.writable() == []
    assert all(box.spte(i) & (MMU_W | HOST_W) == MMU_W | HOST_W for i in range(4))
    assert flushes(box.vm) > flushed


@pytest.mark.parametrize("npt", [False, True])
def test_a_written_page_is_in_the_log_once_for_each_write_after_its_reading(npt: bool) -> None:
    box = Written(npt=npt)
    box.log()
    box.dirty()
    for i in (1, 3):
        assert box.guest.write(box.gva(i)) == "done"
    assert box.writable() == [1, 3]
    assert box.dirty() == [1, 3]
    # Reading protects again what was set, and only that.
    assert box.writable() == []
    assert box.dirty() == []
    assert box.guest.write(box.gva(3)) == "done"
    assert box.dirty() == [3]


def test_reading_a_clean_log_does_not_flush_and_a_dirty_one_does() -> None:
    box = Written()
    box.log()
    box.dirty()
    flushed = flushes(box.vm)
    assert box.dirty() == []
    assert flushes(box.vm) == flushed
    assert box.guest.write(box.gva(0)) == "done"
    flushed = flushes(box.vm)
    assert box.dirty() == [0]
    assert flushes(box.vm) == flushed + 1


def test_the_beginning_flushes_even_if_nothing_was_writable() -> None:
    box = Written()
    box.log()
    flushed = flushes(box.vm)
    with slots_held(box.vm):
        dirty.slot_log_enabled(box.vm, box.slot())
    assert flushes(box.vm) == flushed + 1


@pytest.mark.parametrize("bit", [0, 1, 31, 32, 62, 63])
def test_a_mask_names_gfns_from_its_base_on(bit: int) -> None:
    box = Written()
    box.log()
    for i in range(4):
        box.guest.write(box.gva(i))
    with held(box.vm):
        gfnrange.write_protect_masked(box.vm, box.slot(), GFN + 2 - bit, 1 << bit)
    assert box.writable() == [0, 1, 3]
    with held(box.vm):
        gfnrange.write_protect_masked(box.vm, box.slot(), GFN, 2**64 - 1)
    assert box.writable() == []


def test_words_are_taken_and_the_bitmap_is_clean_afterwards() -> None:
    box = Written()
    box.log()
    box.dirty()
    box.guest.write(box.gva(2))
    with held(box.vm):
        words = dirty.take_words(box.vm, box.slot())
        assert not any(dirty.take_words(box.vm, box.slot()))
    assert len(words) == 4096 // 64
    assert words[(GFN + 2) // 64] & 1 << (GFN + 2) % 64
    assert len(box.guest.world.dirty_log(0)) == 4096 // 8


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (0x2_0000, errno.EINVAL),
        (0x7FFC, errno.EINVAL),
        (0x7FFB, errno.ENOENT),
        (5, errno.ENOENT),
        (0, errno.ENOENT),
        (0x1_0000, errno.ENOENT),
    ],
)
def test_a_log_that_is_not_there(number: int, error: int) -> None:
    box = Written()
    with pytest.raises(KvmIoctlError) as caught:
        dirty.get_dirty_log(box.vm, number)
    assert caught.value.errno == error
    assert box.vm.slots_lock.is_free()
    assert box.vm.mmu_lock.is_free()


def test_every_level_of_a_slot_is_protected() -> None:
    guest = Guest("4-level", "host_page=2m", npt=True)
    guest.tables.map(VA, LARGE, SIZE_2M, RW | AD)
    assert guest.write(VA) == "done"
    leaf = guest.world.walk(guest.vcpu, LARGE)[-1]
    assert (leaf.level, leaf.spte & W) == (2, W)
    slot = guest.vcpu.gfn_to_memslot(LARGE >> 12)
    assert slot is not None
    assert gfnrange.write_protect_slot(guest.world.vm, slot)
    assert not gfnrange.write_protect_slot(guest.world.vm, slot)
    assert guest.world.memory.read_once(leaf.hpa) & W == 0


def small_then_large() -> tuple[Guest, Memslot]:
    """A guest whose large page was mapped small while it was logged."""
    guest = Guest("4-level", "host_page=2m", "tdp_mmu=off", npt=True)
    guest.tables.map(VA, LARGE, SIZE_2M, RW | AD)
    guest.world.set_region(UserMemoryRegion(0, 1, 0, MEMORY, guest.hva))
    for page in (0, 9):
        assert guest.write(VA + page * 4096) == "done"
    assert guest.world.walk(guest.vcpu, LARGE)[-1].level == 1
    slot = guest.vcpu.gfn_to_memslot(LARGE >> 12)
    assert slot is not None
    return guest, slot


def test_the_end_of_the_log_zaps_small_leaves_where_a_large_one_may_be() -> None:
    guest, _ = small_then_large()
    flushed = flushes(guest.world.vm)
    guest.world.set_region(UserMemoryRegion(0, 0, 0, MEMORY, guest.hva))
    assert guest.world.walk(guest.vcpu, LARGE)[-1].spte == 1 << 63
    assert flushes(guest.world.vm) == flushed + 1
    assert guest.write(VA) == "done"
    assert guest.world.walk(guest.vcpu, LARGE)[-1].level == 2


def test_a_collapse_flushes_what_went_each_time_it_yields() -> None:
    guest, slot = small_then_large()
    vm = guest.world.vm
    leaves, flushed = vm.stat.pages_4k, flushes(vm)
    with held(vm):
        Others(vm)
        assert not gfnrange.zap_collapsible(vm, slot)
        vm.gate.disarm()
    assert flushes(vm) - flushed == leaves - vm.stat.pages_4k > 0


def test_small_leaves_stay_where_no_large_page_can_be() -> None:
    guest, slot = small_then_large()
    array = slot.lpage_array
    assert array is not None
    array[LARGE >> 21] += 1
    leaves = guest.world.vm.stat.pages_4k
    with held(guest.world.vm):
        gfnrange.zap_collapsible(guest.world.vm, slot)
    assert guest.world.walk(guest.vcpu, LARGE)[-1].spte & W
    assert guest.world.vm.stat.pages_4k <= leaves


def test_leaves_of_indirect_pages_are_not_collapsed() -> None:
    guest = Guest("4-level", "host_page=2m")
    guest.tables.map(VA, LARGE, flags=RW | AD)
    assert guest.write(VA) == "done"
    slot = guest.vcpu.gfn_to_memslot(LARGE >> 12)
    assert slot is not None
    with held(guest.world.vm):
        assert not gfnrange.zap_collapsible(guest.world.vm, slot)
    assert guest.world.walk(guest.vcpu, VA)[-1].spte & W


def test_a_slot_that_was_never_mapped_has_nothing_to_do() -> None:
    guest = Guest()
    slot = Memslot(3, 1, 0x90000, 16, 0)
    flushed = flushes(guest.world.vm)
    with slots_held(guest.world.vm):
        dirty.slot_log_disabled(guest.world.vm, slot)
        assert flushes(guest.world.vm) == flushed
        dirty.slot_log_enabled(guest.world.vm, slot)
    assert flushes(guest.world.vm) == flushed + 1


# Manual protection: reading only reads, clearing is another call.

MANUAL, FULL = 1, 3
ALL_ONES = b"\xff" * 8


def manual(options: int = MANUAL, *settings: str, npt: bool = False) -> Written:
    """The four pages, logged after the capability was enabled, and nothing of it set but by the mode itself."""
    box = Written(*settings, npt=npt)
    box.guest.world.enable_cap(168, options)
    box.log()
    return box


@pytest.mark.parametrize("npt", [False, True])
def test_manual_reading_clears_protects_and_flushes_nothing(npt: bool) -> None:
    box = manual(npt=npt)
    assert box.writable() == []
    box.guest.write(box.gva(2))
    before = flushes(box.vm)
    assert [box.dirty(), box.dirty(), box.writable()] == [[2], [2], [2]]
    assert flushes(box.vm) == before


@pytest.mark.parametrize("npt", [False, True])
def test_clearing_protects_what_was_set_and_asked_for_and_flushes_once_if_anything_was(npt: bool) -> None:
    box = manual(npt=npt)
    world = box.guest.world
    for i in (0, 2):
        box.guest.write(box.gva(i))
    first = GFN & ~63
    before = flushes(box.vm)
    world.clear_dirty_log(0, first, 64, (1 << (GFN + 2 - first) | 1 << (GFN + 3 - first)).to_bytes(8, "little"))
    assert (box.dirty(), box.writable(), flushes(box.vm) - before) == ([0], [0], 1)
    world.audit()
    world.clear_dirty_log(0, first, 64, (1 << (GFN + 2 - first)).to_bytes(8, "little"))
    assert flushes(box.vm) - before == 1, "nothing was set"
    box.guest.write(box.gva(2))
    assert box.dirty() == [0, 2]
    # Neighbours of the range stay.
    world.clear_dirty_log(0, first + 64, 64, ALL_ONES)
    assert box.dirty() == [0, 2]


def test_clearing_works_without_manual_protection() -> None:
    box = Written()
    box.log()
    box.guest.write(box.gva(1))
    box.guest.world.clear_dirty_log(0, GFN & ~63, 64, ALL_ONES)
    assert (box.writable(), box.dirty()) == ([], [])


@pytest.mark.parametrize("npt", [False, True])
def test_a_log_that_begins_full_protects_nothing_until_it_is_cleared(npt: bool) -> None:
    box = manual(FULL, npt=npt)
    before = flushes(box.vm)
    assert (box.writable(), flushes(box.vm)) == ([0, 1, 2, 3], before)
    assert box.guest.world.dirty_log(0) == b"\xff" * (MEMORY // 4096 // 8)
    box.guest.world.clear_dirty_log(0, GFN & ~63, 64, ALL_ONES)
    assert box.writable() == []
    box.guest.write(box.gva(3))
    assert box.dirty() == [3]


@pytest.mark.parametrize("npt", [False, True])
def test_a_huge_page_of_a_full_log_is_written_until_a_page_in_it_is_cleared_and_split_by_the_next_write(
    npt: bool,
) -> None:
    guest = Guest("4-level", "host_page=2m", "tdp_mmu=off", npt=npt)
    guest.tables.map(VA, LARGE, size=SIZE_2M, flags=RW | AD)
    assert guest.write(VA) == "done"
    where = LARGE if npt else VA
    world, gfn = guest.world, LARGE >> 12
    world.enable_cap(168, FULL)
    world.set_region(UserMemoryRegion(0, 1, 0, MEMORY, guest.hva))
    leaf = world.walk(guest.vcpu, where)[-1]
    assert (leaf.level, leaf.spte & (W | MMU_W)) == (2, W | MMU_W)
    world.clear_dirty_log(0, gfn, 64, (1 << 5).to_bytes(8, "little"))
    leaf = world.walk(guest.vcpu, where)[-1]
    assert (leaf.level, leaf.spte & (W | MMU_W | HOST_W)) == (2, HOST_W), "the fast path cannot undo it"
    world.audit()
    assert guest.write(VA + 0x5000) == "done"
    assert world.walk(guest.vcpu, where + 0x5000)[-1].level == 1
    log = int.from_bytes(world.dirty_log(0), "little") >> gfn
    assert log & 63 == 2**64 - 1 & 63, "written again"
    world.clear_dirty_log(0, gfn, 64, ALL_ONES)
    assert guest.write(VA + 0x7000) == "done"
    assert int.from_bytes(world.dirty_log(0), "little") >> gfn & 2**64 - 1 == 1 << 7


@pytest.mark.parametrize(
    ("base", "bits", "expected"),
    [
        # Pages of two blocks in one word: both are protected ...
        (512 - 32, 1 << 31 | 1 << 33, [0, 1]),
        # ... but a last page that begins a block counts to the one below (the kernel rounds both addresses up) ...
        (512 - 32, 1 << 31 | 1 << 32, [0]),
        # ... and a first page that begins one is looked at twice.
        (512 - 32, 1 << 32 | 1 << 33, [1]),
        (512 - 32, 1 << 0 | 1 << 31, [0]),
        (512 - 32, 1 << 40, [1]),
        # A block's first page alone is its own block's.
        (512 - 32, 1 << 32, [1]),
    ],
)
@pytest.mark.parametrize("tdp_mmu", ["tdp_mmu=off", "tdp_mmu=on"])
def test_which_huge_pages_of_a_mask_are_protected(tdp_mmu: str, base: int, bits: int, expected: list[int]) -> None:
    guest = Guest("4-level", "host_page=2m", tdp_mmu, "eager_page_split=off", npt=True)
    world = guest.world
    for i in range(2):
        guest.tables.map(VA + (i << 21), LARGE + (i << 21), size=SIZE_2M, flags=RW | AD)
        assert guest.write(VA + (i << 21)) == "done"
    world.vm.manual_dirty_log_protect = FULL
    slot = guest.vcpu.gfn_to_memslot(LARGE >> 12)
    assert slot is not None
    with held(world.vm):
        dirty.protect_again(world.vm, slot, (LARGE >> 12) + base, bits)
    protected = [i for i in range(2) if not world.walk(guest.vcpu, LARGE + (i << 21))[-1].spte & W]
    assert protected == expected


#: Of a slot of 100 pages.
CLEARS = [
    ("all", (0, 0, 100, 16), 0),
    ("one word", (0, 0, 64, 8), 0),
    ("the rest", (0, 64, 36, 8), 0),
    ("nothing", (0, 0, 0, 0), 0),
    ("nothing at the end of the words", (0, 64, 0, 0), 0),
    ("more bytes than pages", (0, 0, 64, 4096), 0),
    ("address space 2", (2 << 16, 0, 64, 8), errno.EINVAL),
    ("internal slot", (32764, 0, 64, 8), errno.EINVAL),
    ("first_page not a multiple of 64, in no slot", (9, 63, 64, 8), errno.EINVAL),
    ("no such slot", (9, 0, 64, 8), errno.ENOENT),
    ("a slot that is not logged", (1, 0, 64, 8), errno.ENOENT),
    ("the other address space", (1 << 16, 0, 64, 8), errno.ENOENT),
    ("behind the end", (0, 128, 0, 0), errno.EINVAL),
    ("beyond the end", (0, 64, 37, 8), errno.EINVAL),
    ("far beyond the end", (0, 1 << 63, 64, 8), errno.EINVAL),
    ("not to the end, not a multiple of 64", (0, 0, 63, 8), errno.EINVAL),
    ("too short a bitmap", (0, 0, 100, 15), errno.EFAULT),
    ("none", (0, 0, 64, 0), errno.EFAULT),
    ("too far before too short", (0, 0, 128, 0), errno.EINVAL),
]


@pytest.mark.parametrize(("name", "asked", "error"), CLEARS)
def test_what_clearing_accepts(name: str, asked: tuple[int, int, int, int], error: int) -> None:
    world = World(Params(), nr_frames=1 << 12)
    world.enable_cap(168, FULL)
    world.add_slot(0, 0, 100 * 4096, flags=1)
    world.add_slot(1, 1 << 20, 4096)
    slot, first, count, nr_bytes = asked
    before = world.dirty_log(0)
    bitmap = b"\xff" * nr_bytes
    if error:
        with pytest.raises(KvmIoctlError, match=errno.errorcode[error]) as refused:
            world.clear_dirty_log(slot, first, count, bitmap)
        assert refused.value.errno == error, name
    else:
        world.clear_dirty_log(slot, first, count, bitmap)
    if error:
        assert world.dirty_log(0) == before
    else:
        have = int.from_bytes(world.dirty_log(0), "little")
        cleared = sum(1 << page for page in range(first, first + count))
        assert have == (1 << 100) - 1 & ~cleared
    assert world.vm.slots_lock.is_free()
    assert world.vm.mmu_lock.is_free()


@pytest.mark.parametrize(
    ("cap", "argument", "flags", "error"),
    [
        (168, 0, 0, 0),
        (168, 1, 0, 0),
        (168, 3, 0, 0),
        (168, 2, 0, errno.EINVAL),
        (168, 4, 0, errno.EINVAL),
        (168, 1 << 63 | 1, 0, errno.EINVAL),
        (168, 1, 1, errno.EINVAL),
        (0, 0, 0, errno.EINVAL),
        (192, 4096, 0, errno.EINVAL),
    ],
)
def test_what_the_capability_accepts(cap: int, argument: int, flags: int, error: int) -> None:
    world = World(Params(), nr_frames=1 << 12)
    got = 0
    try:
        world.enable_cap(cap, argument, flags=flags)
    except KvmIoctlError as refused:
        got = refused.errno
    assert (got, world.vm.manual_dirty_log_protect) == (error, 0 if error else argument)


def test_the_capability_can_be_taken_back_and_a_logged_slot_keeps_its_bitmap() -> None:
    box = manual(FULL)
    assert all(box.guest.world.dirty_log(0))
    box.guest.world.enable_cap(168, 0)
    assert all(box.guest.world.dirty_log(0))
    assert not any(box.guest.world.dirty_log(0)), "read as without manual protection"
    assert box.writable() == []


class Log(RuleBasedStateMachine):
    """Guest and VMM write and read logs; the model is the set of dirty pages and the order of the calls.

    Pages are those of two 2M blocks and of a word that crosses their border; the backing is huge, so that a log that
    begins full begins with huge pages.
    """

    PAGES = (0, 1, 63, 64, 479, 480, 511, 512, 513, 575, 576, 1023)

    @initialize(mmu=st.sampled_from(["", "on", "off"]), options=st.sampled_from([0, MANUAL, FULL]), huge=st.booleans())
    def begin(self, mmu: str, options: int, huge: bool) -> None:
        chosen = ([f"tdp_mmu={mmu}"] if mmu else []) + (["host_page=2m"] if huge else [])
        self.guest = Guest("4-level", *chosen, npt=mmu != "")
        for i in range(2):
            self.guest.tables.map(VA + (i << 21), LARGE + (i << 21), size=SIZE_2M, flags=RW | AD)
        self.options = options
        self.world = self.guest.world
        self.world.enable_cap(168, options)
        self.first = LARGE >> 12
        self.nr = MEMORY >> 12
        #: None: not logged.
        self.dirty: set[int] | None = None
        #: Read since: kvm maps it writable where host and guest allow that, and then says at once that it is dirty.
        self.may_be_dirty: set[int] = set()

    @rule(page=st.sampled_from(PAGES), kvm=st.booleans())
    def write(self, page: int, kvm: bool) -> None:
        if kvm:
            self.world.kvm_write_guest(LARGE + page * 4096, 7, 1)
        else:
            assert self.guest.write(VA + page * 4096) == "done"
        if self.dirty is not None:
            self.dirty.add(self.first + page)

    @rule(page=st.sampled_from(PAGES))
    def read_memory(self, page: int) -> None:
        assert isinstance(self.guest.read(VA + page * 4096), int)
        self.may_be_dirty.add(self.first + page)

    @rule()
    def toggle(self) -> None:
        on = self.dirty is None
        self.world.set_region(UserMemoryRegion(0, int(on), 0, MEMORY, self.guest.hva))
        full = set(range(self.nr)) if self.options == FULL else set()
        self.dirty = full if on else None
        self.may_be_dirty = set()

    @rule()
    def read_log(self) -> None:
        if self.dirty is None:
            return
        log = int.from_bytes(self.world.dirty_log(0), "little")
        pages = {page for page in range(self.nr) if log >> page & 1}
        # The guest's own tables are written by the walker (A, D) and lie in the slot too.
        pages -= self.tables()
        assert self.dirty - self.tables() <= pages <= self.dirty | self.may_be_dirty
        if not self.options & MANUAL:
            self.dirty = set()
            self.may_be_dirty = set()

    @rule(word=st.sampled_from([0, 1, 7, 8, 9, 15]), nr=st.integers(0, 2), bits=st.integers(0, 2**128 - 1))
    def clear(self, word: int, nr: int, bits: int) -> None:
        if self.dirty is None:
            return
        first = self.first + 64 * word
        self.world.clear_dirty_log(0, first, 64 * nr, bits.to_bytes(16, "little"))
        self.dirty -= {first + i for i in range(64 * nr) if bits >> i & 1}

    def tables(self) -> set[int]:
        return set(range(TABLES >> 12, (TABLES >> 12) + 64))

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "world"):
            self.world.audit()


TestLog = Log.TestCase
TestLog.settings = settings(max_examples=40, stateful_step_count=25)


# Huge pages of a log that begins full: the TDP MMU splits those of the pages that are cleared.


def logged(flags: int, *settings: str) -> Guest:
    """A guest with a large page of the host that was written before its slot was logged in the mode of ``flags``."""
    guest = Guest("4-level", "host_page=2m", *settings, npt=True)
    guest.tables.map(VA, LARGE, SIZE_2M, RW | AD)
    assert guest.write(VA) == "done"
    dirty.set_manual_protect(guest.world.vm, flags)
    guest.world.set_region(UserMemoryRegion(0, 1, 0, MEMORY, guest.hva))
    return guest


def pages_in(log: bytes) -> list[int]:
    return [page for page in range(8 * len(log)) if log[page >> 3] >> (page & 7) & 1]


def clear(guest: Guest, first: int, count: int, *pages: int) -> None:
    bits = sum(1 << (page - first) for page in pages)
    dirty.clear_dirty_log(guest.world.vm, 0, first, count, bits.to_bytes(-(-count // 64) * 8, "little"))


@pytest.mark.parametrize("setting", ["eager_page_split=on", "eager_page_split=off", "tdp_mmu=off"])
def test_clearing_splits_huge_pages_where_that_is_wanted(setting: str) -> None:
    guest = logged(3, setting)
    page = LARGE >> 12
    assert len(pages_in(guest.world.dirty_log(0))) == MEMORY >> 12
    level, spte = [(one.level, one.spte) for one in guest.world.walk(guest.vcpu, LARGE)][-1]
    assert (level, spte & W) == (2, W)
    clear(guest, page, 64, page + 5)
    level, spte = [(one.level, one.spte) for one in guest.world.walk(guest.vcpu, LARGE + 0x5000)][-1]
    assert (level, spte & W) == (1 if setting == "eager_page_split=on" else 2, 0)
    assert page + 5 not in pages_in(guest.world.dirty_log(0))
    assert guest.write(VA + 5 * 4096) == "done"
    assert page + 5 in pages_in(guest.world.dirty_log(0))
    guest.audit()


def test_a_slot_may_end_between_words() -> None:
    guest = Guest(npt=True)
    guest.world.add_slot(1, 64 << 20, 70 << 12, flags=1)
    dirty.clear_dirty_log(guest.world.vm, 1, 64, 6, bytes(8))
    slot = Memslot(5, 1, 0, 70, 0)
    slot.alloc_dirty_bitmap(True)
    assert list(slot.dirty_array)[:3] == [(1 << 64) - 1, 63, 0]  # type: ignore[arg-type]
