# SPDX-License-Identifier: GPL-2.0-only
"""The walk of the TDP MMU's tables: its order, where it stops, and what happens when it lets others in."""

from __future__ import annotations

import pytest

from kvmmu import KvmBug
from kvmmu.kvm.mmu.page import ShadowPage
from kvmmu.kvm.mmu.tdpiter import TdpIter, make_iter, yield_walk

from .machines import EMPTY, Others, Tdp, held, shared

SIZE_2M = 512


def entries(box: Tdp, start: int, end: int, min_level: int = 1) -> list[tuple[int, int]]:
    """(level, gfn) of what a walk of [start, end) looks at."""
    found = []
    it = make_iter()
    it.start(box.world.memory, box.root, min_level, start)
    while it.valid and it.gfn < end:
        assert it.old_spte == box.world.memory.read_once(it.sptep)
        found.append((it.level, it.gfn))
        it.next(box.world.memory)
    return found


def test_the_way_to_one_gfn_is_the_walk_of_hardware() -> None:
    box = Tdp()
    box.touch(0x5000)
    assert entries(box, 5, 6) == [(4, 0), (3, 0), (2, 0), (1, 5)]
    assert [level for level, _ in box.way(0x5000)] == [4, 3, 2, 1]


def test_each_entry_comes_before_those_of_the_table_below_it_ascending() -> None:
    box = Tdp()
    box.touch(0x1FE000, 0x400000)
    small = [(1, gfn) for gfn in (510, 511)]
    # The second table is missing, the third is there.
    assert entries(box, 510, 1027) == [
        (4, 0), (3, 0), (2, 0), *small, (2, 512), (2, 1024), (1, 1024), (1, 1025), (1, 1026),
    ]  # fmt: skip


def test_the_walk_goes_no_deeper_than_it_is_told() -> None:
    box = Tdp()
    box.touch(0, 0x200000)
    assert entries(box, 0, 3 * SIZE_2M, 2) == [(4, 0), (3, 0), (2, 0), (2, 512), (2, 1024)]
    assert entries(box, 700, 701, 3) == [(4, 0), (3, 0)]


def test_a_leaf_above_the_lowest_level_is_not_gone_into_and_begins_below_the_start() -> None:
    box = Tdp("host_page=2m")
    box.touch(0x200000)
    assert entries(box, 700, 701) == [(4, 0), (3, 0), (2, 512)]


def test_the_end_of_the_tables_ends_the_walk() -> None:
    box = Tdp()
    box.touch(0)
    it = make_iter()
    it.start(box.world.memory, box.root, 1, (1 << 36) - 1)
    assert (it.level, it.gfn, it.valid) == (4, 511 << 27, True)
    it.next(box.world.memory)
    assert not it.valid
    assert "at the end" in repr(it)


@pytest.mark.parametrize("levels", [4, 5])
def test_a_walk_begins_at_the_roots_own_level(levels: int) -> None:
    box = Tdp(f"host_levels={levels}")
    box.touch(0)
    assert entries(box, 0, 1)[0] == (levels, 0)


def test_what_is_no_root_is_a_bug() -> None:
    box = Tdp()
    with pytest.raises(KvmBug, match="no root of the TDP MMU"):
        TdpIter().start(box.world.memory, ShadowPage(0, 0x80, 0x1000), 1, 0)


def test_an_entry_is_read_again_before_the_walk_goes_through_it() -> None:
    box = Tdp()
    box.touch(0)
    it = make_iter()
    it.start(box.world.memory, box.root, 1, 0)
    for _ in range(2):
        it.next(box.world.memory)
    assert it.level == 2
    box.world.memory.write_once(it.sptep, EMPTY)
    it.next(box.world.memory)
    assert (it.level, it.gfn) == (2, 512)


# Yields.


def test_nobody_waits_while_the_gate_is_closed() -> None:
    box = Tdp()
    box.touch(0)
    it = make_iter()
    with shared(box.vm):
        it.start(box.world.memory, box.root, 1, 0)
        it.next(box.world.memory)
        assert not yield_walk(box.vm, it, False)


@pytest.mark.parametrize("mode", ["shared", "exclusive"])
def test_a_yield_drops_the_lock_takes_it_in_its_mode_and_begins_at_the_root(mode: str) -> None:
    box = Tdp()
    box.touch(0, 0x3000)
    vm, mem, it = box.vm, box.world.memory, make_iter()
    seen: list[bool] = []
    with shared(vm) if mode == "shared" else held(vm):
        if mode == "exclusive":
            vm.rcu.read_lock()
        it.start(mem, box.root, 1, 0)
        while it.level > 1 or it.gfn < 2:
            it.next(mem)
        others = Others(vm, lambda: seen.append(vm.mmu_lock.is_free() and not vm.rcu.readers))
        assert yield_walk(vm, it, False)
        vm.gate.disarm()
        assert seen == [True]
        assert (it.yielded, vm.mmu_lock.is_exclusive(), vm.rcu.readers) == (True, mode == "exclusive", 1)
        it.next(mem)
        assert (it.level, it.gfn, it.next_last_level_gfn, it.yielded) == (4, 0, 2, False)
        for _ in range(3):
            it.next(mem)
        assert (it.level, it.gfn) == (1, 2)
        # Not twice at the same place: whoever yields gets on.
        vm.gate.arm(others)
        assert not yield_walk(vm, it, False)
        vm.gate.disarm()
        if mode == "exclusive":
            vm.rcu.read_unlock()


@pytest.mark.parametrize("flush", [False, True])
def test_what_is_pending_is_flushed_before_the_lock_is_dropped(flush: bool) -> None:
    box = Tdp()
    box.touch(0, 0x3000)
    vm, it = box.vm, make_iter()
    with held(vm):
        vm.rcu.read_lock()
        it.start(box.world.memory, box.root, 1, 0)
        for _ in range(4):
            it.next(box.world.memory)
        before = vm.stat.remote_tlb_flush_requests
        counts: list[int] = []
        Others(vm, lambda: counts.append(vm.stat.remote_tlb_flush_requests - before))
        assert yield_walk(vm, it, flush)
        vm.gate.disarm()
        vm.rcu.read_unlock()
    assert counts == [flush]


def test_a_table_that_goes_while_the_walk_yields_is_not_gone_into() -> None:
    """Where the walk was is found again from the root, whatever happened to the tables."""
    box = Tdp()
    box.touch(0x200000, 0x400000)
    vm, mem, it = box.vm, box.world.memory, make_iter()
    with held(vm):
        vm.rcu.read_lock()
        it.start(mem, box.root, 1, 512)
        for _ in range(5):
            it.next(mem)
        assert (it.level, it.gfn) == (1, 514)
        place = box.sptep(0x200000, 2)
        Others(vm, lambda: mem.write_once(place, EMPTY))
        assert yield_walk(vm, it, False)
        vm.gate.disarm()
        seen = []
        while it.valid and it.gfn <= 1024:
            it.next(mem)
            seen.append((it.level, it.gfn))
        vm.rcu.read_unlock()
    assert seen[:5] == [(4, 0), (3, 0), (2, 512), (2, 1024), (1, 1024)]
