# SPDX-License-Identifier: GPL-2.0-only
"""KVM_SET_USER_MEMORY_REGION: each errno in its order, the swaps, and random requests against a slow model."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvmmu.errors import KvmBug, KvmIoctlError, UserError
from kvmmu.host.frames import SmallArrays
from kvmmu.kvm import regions
from kvmmu.kvm.bits import KVM_MEMSLOT_INVALID
from kvmmu.kvm.invalidation import Invalidation
from kvmmu.kvm.memslots import Memslots
from kvmmu.kvm.regions import UserMemoryRegion, set_memory_region, set_nr_mmu_pages, set_user_memory_region
from kvmmu.lockorder import RANK_LEAF, RANK_MMU, RANK_SLOTS, RANK_SLOTS_ARCH
from kvmmu.sync import Gate, Mutex, RwLock, Srcu

LOG, READONLY = 1, 2
FLAG = 1 << 63
HVA = 0x7F00_0000_0000
PAGE = 4096


class FakeVm:
    """What regions.py knows of a VM, and a diary of the hooks that it calls."""

    def __init__(self) -> None:
        gate = Gate()
        self.gate = gate
        self.slots_lock = Mutex("slots_lock", gate, RANK_SLOTS)
        self.slots_arch_lock = Mutex("slots_arch_lock", gate, RANK_SLOTS_ARCH)
        self.small_arrays = SmallArrays()
        self.mmu_lock = RwLock("mmu_lock", gate, RANK_MMU)
        self.srcu = Srcu("srcu", gate)
        self.invalidation = Invalidation(gate, self.mmu_lock, Mutex("mn_invalidate_lock", gate, RANK_LEAF))
        self.memslots = [Memslots(0), Memslots(1)]
        self.nr_memslot_pages = 0
        self.nr_memslots_dirty_logging = 0
        self.n_requested_mmu_pages = 0
        self.n_max_mmu_pages = 0
        self.max_gfn = (1 << 40) - 1
        self.tracks_writes = False
        self.begins_full = False
        self.policy = SimpleNamespace(slot_zap_all=True)
        self.diary: list[Any] = []

    def is_write_tracking_enabled(self) -> bool:
        return self.tracks_writes

    def has_rmaps(self) -> bool:
        return True

    def is_log_initially_set(self) -> bool:
        return self.begins_full

    def slots_of(self, as_id: int) -> Memslots:
        return self.memslots[as_id]

    def publish_slots(self, slots: Memslots) -> None:
        self.slots_arch_lock.assert_held()
        self.memslots[slots.as_id] = slots

    def view(self, as_id: int = 0) -> list[tuple[int, int, int, int]]:
        """(id, base gfn, pages, flags) of the published slots."""
        return [(slot.id, slot.base_gfn, slot.npages, slot.flags) for slot in self.memslots[as_id].slots]


def note_zap_all_fast(vm: FakeVm) -> None:
    vm.slots_lock.assert_held()
    assert vm.slots_arch_lock.is_free()
    vm.diary.append(("zap_all_fast", vm.memslots[0].generation, vm.view()))


def note_change_mmu_pages(vm: FakeVm, goal: int) -> None:
    vm.n_max_mmu_pages = goal
    vm.diary.append(("change_mmu_pages", goal))


@pytest.fixture(autouse=True)
def hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch.setattr)


def install(setattr_: Any) -> None:
    """Let regions.py call stand-ins that write the VM's diary."""
    zap = SimpleNamespace(zap_all_fast=note_zap_all_fast, change_mmu_pages=note_change_mmu_pages)
    dirty = SimpleNamespace(
        slot_log_enabled=lambda vm, slot: vm.diary.append(("log_enabled", slot.id)),
        slot_log_disabled=lambda vm, slot: vm.diary.append(("log_disabled", slot.id)),
    )
    requests = SimpleNamespace(kick_all=lambda vm: vm.diary.append(("kick", vm.memslots[0].generation)))
    for name, module in (("zap", zap), ("dirty", dirty), ("requests", requests)):
        setattr_(regions, name, module)


def region(slot: int = 0, flags: int = 0, gpa: int = 0, pages: float = 16, hva: int = HVA) -> UserMemoryRegion:
    return UserMemoryRegion(slot, flags, gpa, int(pages * PAGE), hva)


def refused(vm: FakeVm, asked: UserMemoryRegion, number: int, text: str) -> None:
    """The request is refused for that reason and leaves no trace."""
    before = [(slots.generation, vm.view(slots.as_id)) for slots in vm.memslots]
    with pytest.raises(KvmIoctlError, match=text) as caught:
        set_user_memory_region(vm, asked)
    assert caught.value.errno == number
    assert isinstance(caught.value, OSError)
    assert before == [(slots.generation, vm.view(slots.as_id)) for slots in vm.memslots]
    assert vm.slots_lock.is_free()
    assert vm.slots_arch_lock.is_free()


# ------------------------------------------------------------------------------------------------ errnos

BAD_FLAGS = {"flags": 4}
BAD_ID = {"slot": 32764}
BAD_SIZE = {"pages": 1.5}
BAD_GPA = {"gpa": 0x800}
BAD_HVA = {"hva": HVA + 1}
HIGH_HVA = {"hva": 0x7FFF_FFFF_F000}
BAD_SPACE = {"slot": 2 << 16}
WRAPS = {"gpa": 2**64 - PAGE}
TOO_BIG = {"pages": 2**31, "hva": 0}
ROWS: list[tuple[dict[str, Any], str]] = [
    (BAD_FLAGS, "flags 0x4"),
    ({"flags": KVM_MEMSLOT_INVALID}, "flags 0x10000"),
    (BAD_ID, "slot id 32764: user slots"),
    (BAD_SIZE, "memory_size 0x1800"),
    (BAD_GPA, "guest_phys_addr 0x800"),
    (BAD_HVA, "userspace_addr 0x7f0000000001"),
    (HIGH_HVA, "user addresses end at 0x7ffffffff000"),
    ({"hva": 2**64 - PAGE}, "user addresses end"),
    (BAD_SPACE, "address space 2"),
    (WRAPS, "wraps"),
    ({**WRAPS, "pages": 1}, "wraps"),
    (TOO_BIG, r"at most 2\*\*31 - 1 pages"),
    ({"pages": 0}, "slot 0:0 does not exist"),
    ({"gpa": 1 << 52}, "last gfn 0x1000000000f"),
]


@pytest.mark.parametrize(("fields", "text"), ROWS)
def test_a_bad_request_is_einval_with_its_reason(fields: dict[str, Any], text: str) -> None:
    refused(FakeVm(), region(**fields), errno.EINVAL, text)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (BAD_FLAGS, BAD_ID), (BAD_ID, BAD_SIZE), (BAD_SIZE, BAD_GPA), (BAD_GPA, BAD_HVA), (BAD_HVA, BAD_SPACE),
        (HIGH_HVA, BAD_SPACE), (BAD_SPACE, WRAPS), (WRAPS, TOO_BIG),
    ],
)  # fmt: skip
def test_of_two_mistakes_the_kernels_first_is_told(first: dict[str, Any], second: dict[str, Any]) -> None:
    both = {**second, **first}
    if "slot" in first and "slot" in second:
        both["slot"] = 32764 | 2 << 16
    texts = {id(fields): text for fields, text in ROWS}
    refused(FakeVm(), region(**both), errno.EINVAL, texts[id(first)])


@pytest.mark.parametrize(
    "fields", [{"hva": 0x7FFF_FFFF_F000 - 16 * PAGE}, {"pages": 2**31 - 1, "hva": 0}, {"slot": 32763}]
)
def test_the_last_value_that_a_rule_allows_is_accepted(fields: dict[str, Any]) -> None:
    vm = FakeVm()
    set_user_memory_region(vm, region(**fields))
    assert len(vm.view()) == 1


def test_ids_of_kvms_own_slots_end_at_32767() -> None:
    vm = FakeVm()
    vm.slots_lock.lock()
    set_memory_region(vm, region(32766))
    with pytest.raises(KvmIoctlError, match="ids end at 32767"):
        set_memory_region(vm, region(32767, gpa=1 << 30))
    vm.slots_lock.unlock()
    assert vm.view() == [(32766, 0, 16, 0)]


def test_the_number_of_all_pages_must_fit() -> None:
    vm = FakeVm()
    vm.nr_memslot_pages = 2**64 - 15
    refused(vm, region(), errno.EINVAL, "must fit in 64 bits")
    vm.nr_memslot_pages -= 2
    set_user_memory_region(vm, region())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"hva": HVA + PAGE}, "userspace_addr"),
        ({"pages": 15}, "memory_size"),
        ({"flags": READONLY}, "READONLY of"),
        ({"flags": READONLY, "gpa": 1 << 20}, "READONLY of"),
    ],
)
def test_address_size_and_readonly_of_a_slot_are_fixed(fields: dict[str, Any], text: str) -> None:
    vm = FakeVm()
    set_user_memory_region(vm, region())
    refused(vm, region(**fields), errno.EINVAL, text)


def test_overlap_is_eexist_for_create_and_move_within_one_address_space() -> None:
    vm = FakeVm()
    set_user_memory_region(vm, region(0))
    set_user_memory_region(vm, region(1, gpa=16 * PAGE))
    refused(vm, region(2, gpa=15 * PAGE), errno.EEXIST, r"slot 0:2: gfns \[0xf, 0x1f\) overlap <Memslot 0:0")
    refused(vm, region(0, gpa=8 * PAGE), errno.EEXIST, "overlap <Memslot 0:1")
    set_user_memory_region(vm, region(1 << 16))
    set_user_memory_region(vm, region(1, gpa=24 * PAGE))


def test_eexist_comes_before_the_largest_gfn() -> None:
    vm = FakeVm()
    vm.max_gfn = 20
    set_user_memory_region(vm, region(0))
    refused(vm, region(1, gpa=8 * PAGE), errno.EEXIST, "overlap")
    refused(vm, region(1, gpa=16 * PAGE), errno.EINVAL, "last gfn 0x1f: the largest that can be mapped is 0x14")
    set_user_memory_region(vm, region(1, gpa=16 * PAGE, pages=5))


@pytest.mark.parametrize("step", ["_alloc_metadata", "_prepare_dirty_bitmap"])
def test_no_memory_for_arrays_is_enomem(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("1 byte")

    monkeypatch.setattr(regions, step, fail)
    vm = FakeVm()
    refused(vm, region(flags=LOG), errno.ENOMEM, "arrays for <Memslot 0:0")
    assert vm.nr_memslot_pages == 0


def test_a_value_wider_than_its_field_is_the_callers_mistake() -> None:
    for fields in ({"slot": 2**32}, {"slot": -1}, {"flags": 2**32}, {"gpa": 2**64}, {"hva": -1}, {"pages": 2**52}):
        with pytest.raises(UserError, match="must be from 0 to"):
            region(**fields)


# ------------------------------------------------------------------------------------------------ the update


def test_create_swaps_once_and_counts() -> None:
    vm = FakeVm()
    set_user_memory_region(vm, region(pages=5000))
    assert vm.view() == [(0, 0, 5000, 0)]
    assert [slots.generation for slots in vm.memslots] == [2, 1]
    assert vm.nr_memslot_pages == 5000
    assert vm.diary == [("kick", FLAG), ("change_mmu_pages", 100)]


def test_the_two_address_spaces_count_apart() -> None:
    vm = FakeVm()
    set_user_memory_region(vm, region(1 << 16))
    set_user_memory_region(vm, region(1 << 16, flags=LOG))
    assert [slots.generation for slots in vm.memslots] == [0, 5]


def test_delete_publishes_an_invalid_copy_first_and_zaps() -> None:
    vm = FakeVm()
    set_user_memory_region(vm, region(3))
    vm.diary.clear()
    set_user_memory_region(vm, region(3, pages=0))
    assert vm.diary == [
        ("kick", 2 | FLAG),
        ("zap_all_fast", 4, [(3, 0, 16, KVM_MEMSLOT_INVALID)]),
        ("kick", 4 | FLAG),
        ("change_mmu_pages", 64),
    ]
    assert vm.view() == []
    assert (vm.memslots[0].generation, vm.nr_memslot_pages) == (6, 0)


def test_move_keeps_the_count_and_gives_fresh_arrays() -> None:
    vm = FakeVm()
    vm.rmaps = True
    set_user_memory_region(vm, region(3, flags=LOG))
    old = vm.memslots[0].find_id(3)
    old.dirty_array[0] = 5
    old.rmap_array[1] = 6
    vm.diary.clear()
    set_user_memory_region(vm, region(3, flags=LOG, gpa=512 * PAGE))
    assert vm.diary == [
        ("kick", 2 | FLAG),
        ("zap_all_fast", 4, [(3, 0, 16, KVM_MEMSLOT_INVALID | LOG)]),
        ("kick", 4 | FLAG),
    ]
    new = vm.memslots[0].find_id(3)
    assert vm.view() == [(3, 512, 16, LOG)]
    assert new.dirty_array[0] == 5
    assert new.rmap_array[1] == 0
    assert old.nr_disallowed(0, 2) == new.nr_disallowed(512, 2) == 1
    assert (vm.nr_memslot_pages, vm.nr_memslots_dirty_logging) == (16, 1)


def test_a_move_that_fails_puts_the_original_back_after_two_swaps() -> None:
    vm = FakeVm()
    set_user_memory_region(vm, region(3))
    original = vm.memslots[0].find_id(3)
    with pytest.raises(KvmIoctlError, match="last gfn"):
        set_user_memory_region(vm, region(3, gpa=1 << 52))
    assert vm.memslots[0].find_id(3) is original
    assert original.flags == 0
    assert vm.memslots[0].generation == 6
    assert vm.slots_arch_lock.is_free()
    assert vm.slots_lock.is_free()


def test_arrays_that_the_invalid_copy_gained_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    vm = FakeVm()
    set_user_memory_region(vm, region(3))
    original = vm.memslots[0].find_id(3)

    def first_shadow_root(vm: FakeVm) -> None:
        vm.memslots[0].find_id(3).alloc_rmap()

    monkeypatch.setattr(regions.zap, "zap_all_fast", first_shadow_root)
    with pytest.raises(KvmIoctlError):
        set_user_memory_region(vm, region(3, gpa=1 << 52))
    assert original.rmap_array is not None


def test_flags_only_swaps_once_shares_arrays_and_tells_dirty_logging() -> None:
    vm = FakeVm()
    vm.rmaps = True
    set_user_memory_region(vm, region(3))
    old = vm.memslots[0].find_id(3)
    vm.diary.clear()
    set_user_memory_region(vm, region(3, flags=LOG))
    logged = vm.memslots[0].find_id(3)
    assert logged.rmap_array is old.rmap_array
    assert len(logged.dirty_array) == 2
    assert not any(logged.dirty_array)
    assert (vm.memslots[0].generation, vm.nr_memslots_dirty_logging) == (4, 1)
    set_user_memory_region(vm, region(3))
    assert vm.memslots[0].find_id(3).dirty_array is None
    assert (vm.memslots[0].generation, vm.nr_memslots_dirty_logging) == (6, 0)
    assert vm.diary == [("kick", 2 | FLAG), ("log_enabled", 3), ("kick", 4 | FLAG), ("log_disabled", 3)]


def test_a_readonly_slot_is_logged_without_touching_its_mappings() -> None:
    vm = FakeVm()
    set_user_memory_region(vm, region(3, flags=READONLY))
    vm.diary.clear()
    set_user_memory_region(vm, region(3, flags=READONLY | LOG))
    assert vm.diary == [("kick", 2 | FLAG)]
    assert vm.nr_memslots_dirty_logging == 1


def test_a_logged_slot_counts_from_creation_to_deletion() -> None:
    vm = FakeVm()
    set_user_memory_region(vm, region(3, flags=LOG))
    assert vm.nr_memslots_dirty_logging == 1
    set_user_memory_region(vm, region(3, pages=0))
    assert vm.nr_memslots_dirty_logging == 0


def test_the_same_request_again_does_nothing() -> None:
    vm = FakeVm()
    set_user_memory_region(vm, region(3, flags=LOG))
    vm.diary.clear()
    set_user_memory_region(vm, region(3, flags=LOG))
    assert vm.diary == []
    assert vm.memslots[0].generation == 2


@pytest.mark.parametrize("as_id", [0, 1])
def test_a_wrap_of_the_mmio_generation_zaps_before_the_final_number(as_id: int) -> None:
    vm = FakeVm()
    vm.memslots[as_id] = Memslots(as_id, (1 << 19) - 4 + as_id)
    set_user_memory_region(vm, region(as_id << 16))
    assert [entry[0] for entry in vm.diary] == ["kick", "change_mmu_pages"]
    vm.diary.clear()
    set_user_memory_region(vm, region(as_id << 16, flags=LOG))
    assert [entry[0] for entry in vm.diary] == ["zap_all_fast", "kick", "log_enabled"]
    if as_id == 0:
        assert vm.diary[0][1] == (1 << 19) - 2 | FLAG
    assert vm.memslots[as_id].generation == (1 << 19) + as_id


def test_a_slot_has_rmaps_and_counts_tables_only_while_tracking_is_on() -> None:
    vm = FakeVm()
    set_user_memory_region(vm, region(0))
    vm.tracks_writes = True
    set_user_memory_region(vm, region(1, gpa=1 << 20))
    plain, full = vm.memslots[0].slots
    assert len(plain.rmap_array) == len(full.rmap_array) == 18
    assert plain.write_track_array is None
    assert len(full.write_track_array) == 16


def test_a_log_begins_full_where_that_was_asked_for_and_an_older_bitmap_stays() -> None:
    vm = FakeVm()
    set_user_memory_region(vm, region(0, flags=LOG))
    vm.begins_full = True
    set_user_memory_region(vm, region(1, flags=LOG, gpa=1 << 20, pages=130))
    set_user_memory_region(vm, region(0, flags=LOG, gpa=1 << 22))
    old, new = vm.memslots[0].find_id(0), vm.memslots[0].find_id(1)
    assert list(old.dirty_array) == [0, 0]
    assert list(new.dirty_array) == [2**64 - 1, 2**64 - 1, 3, 0, 0, 0]


def test_a_set_that_somebody_may_read_does_not_change() -> None:
    vm = FakeVm()
    set_user_memory_region(vm, region(0))
    set_user_memory_region(vm, region(1, gpa=1 << 20))
    seen: list[tuple[Any, ...]] = []
    changes = [region(0, flags=LOG), region(2, gpa=1 << 21), region(0, flags=LOG, gpa=1 << 22), region(1, pages=0)]
    for change in changes:
        before, ids = vm.memslots[0], vm.view()

        def wait_for_readers(before: Memslots = before, ids: list[Any] = ids) -> None:
            # The set that was published before this swap is whole until its last reader is gone.
            old = vm.memslots[0].inactive()
            seen.append((old is before, [(s.id, s.base_gfn, s.npages, s.flags) for s in old.slots] == ids))

        vm.srcu = SimpleNamespace(synchronize=wait_for_readers)
        set_user_memory_region(vm, change)
    # Moving and deleting swap twice: the second finds the set of the first, with the INVALID copy.
    assert seen == [(True, True), (True, True), (True, True), (False, False), (True, True), (False, False)]


def test_an_update_publishes_the_other_of_two_sets_and_both_end_alike() -> None:
    vm = FakeVm()
    first = vm.memslots[0]
    for request, nr_swaps in ((region(0), 1), (region(1, gpa=1 << 20), 1), (region(0, pages=0), 2)):
        before = vm.memslots[0]
        set_user_memory_region(vm, request)
        assert (vm.memslots[0] is before) == (nr_swaps == 2)
        assert vm.memslots[0].inactive().slots == vm.memslots[0].slots
        assert vm.memslots[0] in (first, first.inactive())


def test_an_update_inside_a_host_invalidation_is_a_deadlock() -> None:
    vm = FakeVm()
    vm.invalidation.enter()
    with pytest.raises(KvmBug, match="waits forever"):
        set_user_memory_region(vm, region())


def test_an_update_by_a_reader_of_the_memslots_is_a_deadlock() -> None:
    vm = FakeVm()
    vm.srcu.read_lock()
    with pytest.raises(KvmBug, match="inside a section"):
        set_user_memory_region(vm, region())


def test_a_checker_may_end_the_invalidation_and_the_reader_that_an_update_waits_for() -> None:
    vm = FakeVm()
    vm.invalidation.enter()
    vm.gate.run(1)
    vm.srcu.read_lock()
    vm.gate.run(0)
    told: list[str] = []

    class Checker:
        def point(self, kind: str, where: object, key: object) -> None:
            told.append(kind)

        def barrier(self, kind: str) -> None:
            told.append(kind)

        def wait(self, kind: str, where: object, condition: Callable[[], bool]) -> None:
            told.append(f"wait {kind}")
            assert not condition()
            vm.gate.run(1)
            if kind == "wait_for_invalidations":
                assert vm.view() == []
                vm.invalidation.leave()
            else:
                assert len(vm.view()) == 1
                vm.srcu.read_unlock()
            vm.gate.run(0)
            assert condition()

    vm.gate.arm(Checker())
    set_user_memory_region(vm, region())
    waits = [what for what in told if what.startswith("wait")]
    assert waits == ["wait wait_for_invalidations", "wait synchronize_srcu"]
    assert not vm.gate.holds_any()


def test_nr_mmu_pages_of_the_user_stay() -> None:
    vm = FakeVm()
    with pytest.raises(KvmIoctlError, match="63 MMU pages") as caught:
        set_nr_mmu_pages(vm, 63)
    assert caught.value.errno == errno.EINVAL
    set_nr_mmu_pages(vm, 64)
    set_user_memory_region(vm, region(pages=100_000))
    set_user_memory_region(vm, region(pages=0))
    assert [entry for entry in vm.diary if entry[0] == "change_mmu_pages"] == [("change_mmu_pages", 64)]
    assert (vm.n_requested_mmu_pages, vm.n_max_mmu_pages) == (64, 64)


def test_the_wrong_accounting_of_pages_is_a_bug() -> None:
    vm = FakeVm()
    set_user_memory_region(vm, region())
    vm.nr_memslot_pages = 3
    with pytest.raises(KvmBug, match="3 pages in all slots"):
        set_user_memory_region(vm, region(pages=0))


# ------------------------------------------------------------------------------------------------ random requests


class Slots(RuleBasedStateMachine):
    """Random requests; the model is a dict (space, id) -> (gpa, pages, flags, hva) and a count of swaps."""

    def __init__(self) -> None:
        super().__init__()
        self.saved = (regions.zap, regions.dirty, regions.requests)
        install(setattr)
        self.vm = FakeVm()
        self.vm.max_gfn = 40
        self.slots: dict[tuple[int, int], tuple[int, int, int, int]] = {}
        self.swaps = [0, 0]

    def teardown(self) -> None:
        regions.zap, regions.dirty, regions.requests = self.saved

    def expect(self, as_id: int, number: int, flags: int, place: tuple[int, int, int]) -> int:
        """The errno that the ioctl owes (0: none), and what it does to the model."""
        gpa, size, hva = place
        bad = flags not in (0, 1, 2, 3) or number >= 32764 or size % PAGE or gpa % PAGE or hva % PAGE
        if bad or hva + size > 0x7FFF_FFFF_F000 or as_id >= 2 or gpa + size >= 2**64 or size // PAGE >= 2**31:
            return errno.EINVAL
        key, pages = (as_id, number), size // PAGE
        old = self.slots.get(key)
        if not pages:
            if old is None:
                return errno.EINVAL
            del self.slots[key]
            self.swaps[as_id] += 2
            return 0
        new = (gpa, pages, flags, hva)
        if old is not None:
            if (old[1], old[3]) != (pages, hva) or (old[2] ^ flags) & READONLY:
                return errno.EINVAL
            if old == new:
                return 0
        gfns = set(range(gpa // PAGE, gpa // PAGE + pages)) if pages < 1000 else {0, 10**9}
        if old is None or old[0] != gpa:
            for (space, other), (start, length, _, _) in self.slots.items():
                if space == as_id and other != number and gfns & set(range(start // PAGE, start // PAGE + length)):
                    return errno.EEXIST
            if max(gfns) > 40:
                self.swaps[as_id] += 2 if old else 0
                return errno.EINVAL
        self.swaps[as_id] += 2 if old is not None and old[0] != gpa else 1
        self.slots[key] = new
        return 0

    @rule(
        as_id=st.sampled_from([0, 0, 0, 0, 1, 1, 2]),
        number=st.sampled_from([0, 0, 1, 1, 2, 3, 32763, 32764]),
        flags=st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3, 4]),
        gfn=st.sampled_from([*range(0, 44, 4), *range(0, 44, 4), 2**52 - 4, 0.5]),
        pages=st.sampled_from([0, 0, 4, 4, 4, 8, 5, 2**31, 1.5]),
        hva=st.sampled_from([HVA, HVA, HVA, HVA, HVA, HVA + PAGE, HVA + 1, 0x7FFF_FFFF_E000, 2**63]),
    )
    def ioctl(self, as_id: int, number: int, flags: int, gfn: float, pages: float, hva: int) -> None:
        gpa, size = int(gfn * 2 if gfn == 0.5 else gfn * PAGE), int(pages * PAGE)
        if gfn == 2**52 - 4:
            gpa = 2**64 - 4 * PAGE
        expected = self.expect(as_id, number, flags, (gpa, size, hva))
        got = 0
        try:
            set_user_memory_region(self.vm, UserMemoryRegion(as_id << 16 | number, flags, gpa, size, hva))
        except KvmIoctlError as error:
            got = error.errno
        assert got == expected

    @rule(gfn=st.integers(0, 45), as_id=st.integers(0, 1))
    def lookup(self, gfn: int, as_id: int) -> None:
        found = [
            number
            for (space, number), (gpa, pages, _, _) in self.slots.items()
            if space == as_id and gpa // PAGE <= gfn < gpa // PAGE + pages
        ]
        slot = self.vm.memslots[as_id].find(gfn)
        assert ([] if slot is None else [slot.id]) == found

    @invariant()
    def published_sets_agree(self) -> None:
        for as_id in (0, 1):
            model = sorted(
                (number, gpa // PAGE, pages, flags)
                for (space, number), (gpa, pages, flags, _) in self.slots.items()
                if space == as_id
            )
            assert sorted(self.vm.view(as_id)) == model
            assert self.vm.memslots[as_id].generation == as_id + 2 * self.swaps[as_id]
        assert self.vm.nr_memslot_pages == sum(slot[1] for slot in self.slots.values())
        assert self.vm.nr_memslots_dirty_logging == sum(slot[2] & LOG for slot in self.slots.values())
        for slots in self.vm.memslots:
            twin = slots.inactive()
            assert (twin.slots, twin.by_id) == (slots.slots, slots.by_id)
            # After a move that failed, slots of one hva may come in another order in the other set.
            by_hva = [sorted(repr(slot) for slot in one.in_hva_range(0, 1 << 64)) for one in (slots, twin)]
            assert by_hva[0] == by_hva[1]
            for slot in slots.slots:
                assert (slot.dirty_array is not None) == bool(slot.flags & LOG)
        assert self.vm.slots_lock.is_free()
        assert self.vm.slots_arch_lock.is_free()


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=200, stateful_step_count=30)
