# SPDX-License-Identifier: GPL-2.0-only
"""One slot change costs its own pages and a few steps more, however many slots there are."""

from __future__ import annotations

import errno
import gc
import statistics
import time

import pytest

from kvmmu import KvmIoctlError, Params, UserMemoryRegion, World, build_info
from kvmmu.kvm.mmu.notify import overlapping_slots

PAGE = 4096
USER_SLOTS = 32764
# 32.8 is as many times the slots. Interpreted, every object of a slot is the collector's too.
LIMIT = 40 if build_info().compiled else 60


def build(count: int) -> tuple[World, float]:
    """A world of ``count`` slots of one page, and the CPU time that they took, the garbage collector's with it."""
    world = World(Params(), nr_frames=1 << 12)
    gc.collect()
    started = time.process_time()
    for number in range(count):
        world.add_slot(number, 2 * PAGE * number, PAGE)
    return world, time.process_time() - started


def test_the_collector_has_little_to_look_at() -> None:
    # How often it looks at everything grows with what there is: a slot's own objects decide what many slots cost.
    world, _ = build(100)
    before = len(gc.get_objects())
    for number in range(100, 300):
        world.add_slot(number, 2 * PAGE * number, PAGE)
    gc.collect()
    per_slot = (len(gc.get_objects()) - before) / 200
    assert per_slot < (1.2 if build_info().compiled else 16.2)


def test_eight_times_the_slots_cost_less_than_sixteen_times() -> None:
    few = min(build(500)[1] for _ in range(3))
    many = min(build(4000)[1] for _ in range(2))
    assert many < 16 * few


@pytest.mark.slow
def test_all_slots_that_kvm_allows_cost_at_most_forty_times_what_a_thousand_cost() -> None:
    # Medians of alternating rounds: both sides see the same machine.
    firsts, alls = [], []
    for _ in range(3):
        firsts += [build(1000)[1] for _ in range(7)]
        alls.append(build(USER_SLOTS)[1])
    few = statistics.median(firsts)
    assert statistics.median(alls) <= LIMIT * few
    world, _ = build(USER_SLOTS)
    with pytest.raises(KvmIoctlError, match="user slots are 0 to 32763") as refused:
        world.add_slot(USER_SLOTS, 1 << 40, PAGE)
    assert refused.value.errno == errno.EINVAL
    # Changing and deleting one costs the same, and so does finding: nothing goes through all of them.
    vm = world.vm
    for number in (0, 5, USER_SLOTS // 2, USER_SLOTS - 1):
        slot = vm.gfn_to_memslot(2 * number, 0)  # type: ignore[arg-type]
        assert slot is not None
        assert slot.id == number
        hva = slot.userspace_addr
        assert [one.id for one in overlapping_slots(vm, hva, hva + 1)] == [number]  # type: ignore[arg-type]
        world.set_region(UserMemoryRegion(number, 1, 2 * PAGE * number, PAGE, hva))  # type: ignore[arg-type]
        world.delete_slot(number)
        assert vm.gfn_to_memslot(2 * number, 0) is None  # type: ignore[arg-type]
    started = time.process_time()
    for number in range(100, 600):
        world.delete_slot(number)
    assert time.process_time() - started <= few, "500 deletions, two swaps each, in the time of 1,000 creations"
    started = time.process_time()
    world.close()
    assert time.process_time() - started <= few
