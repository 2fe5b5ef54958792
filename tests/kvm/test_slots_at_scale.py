# SPDX-License-Identifier: GPL-2.0-only
"""One slot change costs its own pages and a few steps more, however many slots there are.

What it takes on the clock is measured by ``benchmarks/bench_slots.py``; here steps and objects are counted, which do
not vary.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest

from kvmmu import KvmIoctlError, Params, UserMemoryRegion, World, build_info
from kvmmu.kvm.mmu.notify import overlapping_slots

PAGE = 4096
USER_SLOTS = 32764
#: Numbers of slots, each twice the one before, at which steps are counted.
SIZES = (500, 1000, 2000, 4000, 8000)


def build(count: int) -> World:
    """A world of ``count`` slots of one page."""
    world = World(Params(), nr_frames=1 << 12)
    for number in range(count):
        world.add_slot(number, 2 * PAGE * number, PAGE)
    return world


def lines_of(call: Callable[[], object]) -> int:
    """Lines of Python that ``call`` runs: all of the package's where it is interpreted."""
    count = 0

    def trace(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return count


def count_steps() -> dict[str, list[int]]:
    """By what is done, the lines that it runs at each of SIZES."""
    world = World(Params(), nr_frames=1 << 12)
    vm = world.vm
    found: dict[str, list[int]] = {"create": [], "find": [], "find hva": [], "delete": []}
    for number in range(SIZES[-1] + 1):
        if number not in SIZES:
            world.add_slot(number, 2 * PAGE * number, PAGE)
            continue
        found["create"].append(lines_of(lambda at=number: world.add_slot(at, 2 * PAGE * at, PAGE)))  # type: ignore[misc]
        slot = vm.gfn_to_memslot(2 * number, 0)  # type: ignore[arg-type]
        assert slot is not None
        hva = slot.userspace_addr
        found["find"].append(lines_of(lambda at=number: vm.gfn_to_memslot(at, 0)))  # type: ignore[misc]
        found["find hva"].append(lines_of(lambda at=hva: overlapping_slots(vm, at, at + 1)))  # type: ignore[misc]
        found["delete"].append(lines_of(lambda at=number: world.delete_slot(at // 2)))  # type: ignore[misc]
    return found


def test_twice_the_slots_cost_a_few_steps_more() -> None:
    # In a process of its own, that is interpreted: compiled code has no lines.
    environment = {name: value for name, value in os.environ.items() if name != "KVMMU_REQUIRE_COMPILED"}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json; from kvm import test_slots_at_scale as t; print(json.dumps(t.count_steps()))",
        ],
        env=environment | {"KVMMU_PURE": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert set(found) == {"create", "find", "find hva", "delete"}
    for name, steps in found.items():
        assert len(steps) == len(SIZES)
        assert all(steps), name
        # A level more of each tree: some 25 lines to create, 150 to delete, 10 to find.
        assert all(after - before <= 200 for before, after in pairwise(steps)), (name, steps)


def test_the_collector_has_little_to_look_at() -> None:
    # How often it looks at everything grows with what there is: a slot's own objects decide what many slots cost.
    world = build(100)
    before = len(gc.get_objects())
    for number in range(100, 300):
        world.add_slot(number, 2 * PAGE * number, PAGE)
    gc.collect()
    per_slot = (len(gc.get_objects()) - before) / 200
    assert per_slot < (1.2 if build_info().compiled else 16.2)


@pytest.mark.slow
def test_all_slots_that_kvm_allows_can_be_made_found_moved_and_deleted() -> None:
    world = build(USER_SLOTS)
    with pytest.raises(KvmIoctlError, match="user slots are 0 to 32763") as refused:
        world.add_slot(USER_SLOTS, 1 << 40, PAGE)
    assert refused.value.errno == errno.EINVAL
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
    for number in range(100, 600):
        world.delete_slot(number)
    world.close()
