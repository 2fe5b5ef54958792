# SPDX-License-Identifier: GPL-2.0-only
"""The audit of what changed says what the whole audit says: of every planted damage, and of machines at work.

``tests/stateful`` compares the two after each step of its random machines.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from kvm.mmu.test_audit import DAMAGES, LOW, LOW2, MIDDLE, WRITE, World, first_leaf, make_shadow, make_tdp
from kvmmu.errors import KvmBug
from kvmmu.kvm.mmu import change, gptewrite, rmap, roots, track, unsync, zap
from kvmmu.kvm.mmu.audit import Auditor, find_violations
from kvmmu.kvm.mmu.page import ShadowPage
from kvmmu.kvm.mmu.pages import mark_invalid, set_translation

USER = 4


def compare(auditor: Auditor, world: World) -> list[str]:
    """Both audits say the same; return it."""
    whole = find_violations(world.vm)
    changed = auditor.find_violations()
    assert Counter(changed.problems) == Counter(whole.problems)
    if not whole.problems:
        assert changed == whole
    return whole.problems


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_each_damage_is_found(damage: Callable[[World], str]) -> None:
    world = make_shadow()
    auditor = Auditor(world.vm)
    assert auditor.audit().problems == []
    damage(world)
    assert compare(auditor, world)


@pytest.mark.parametrize("make", [make_shadow, make_tdp])
def test_work_is_followed(make: Callable[[], World]) -> None:
    world = make()
    auditor = Auditor(world.vm)
    code = WRITE | USER | (1 << 32 if world.vm.tdp_enabled else 0)
    for step in range(60):
        world.fault((step * 0x1000 + (step % 3) * 0x200000) & 0x3F_FFFF, code)
        if step % 20 == 19:
            zap.change_mmu_pages(world.vm, 3)
            world.vm.n_max_mmu_pages = 1000
        assert compare(auditor, world) == []


# Broken kvm: each misuses a door, as a caller would that forgot its other half.
def leaf_of(world: World) -> tuple[ShadowPage, int]:
    sp = world.page(LOW, 1)
    index = next(i for i in range(512) if world.read(world.sptep(sp, i)) & 0x800)
    return sp, world.sptep(sp, index)


def clear_without_rmap(world: World) -> None:
    change.clear_track_bits(world.vm, leaf_of(world)[1])  # type: ignore[arg-type]


def list_twice(world: World) -> None:
    sptep = leaf_of(world)[1]
    rmap.rmap_add(world.vm, world.slot, sptep, 0x999, 7)  # type: ignore[arg-type]


def forget_in_rmap(world: World) -> None:
    rmap.rmap_remove(world.vm, leaf_of(world)[1])  # type: ignore[arg-type]


def translate_wrongly(world: World) -> None:
    sp, sptep = leaf_of(world)
    set_translation(world.vm, sp, (sptep >> 3) & 511, 0x77, 7)  # type: ignore[arg-type]


def let_a_table_be_written(world: World) -> None:
    world.vm.mmu_lock.write_unlock()
    world.fault(MIDDLE << 12, 0)
    world.vm.mmu_lock.write_lock()
    sptep = world.sptep(first_leaf(world)[0], MIDDLE)
    change.update_spte(world.vm, sptep, world.read(sptep) | 0x402)  # type: ignore[arg-type]


def track_another(world: World) -> None:
    track.change_write_track(world.vm, world.slot, 0x401, 1)  # type: ignore[arg-type]


def account_twice(world: World) -> None:
    track.account_shadowed(world.vm, world.page(MIDDLE, 2))


def unlink_without_parent(world: World) -> None:
    change.clear_no_track(world.vm, world.sptep(world.page(MIDDLE, 2), 1))  # type: ignore[arg-type]


def link_without_parent(world: World) -> None:
    change.set_spte(world.vm, world.sptep(world.page(MIDDLE, 2), 200), world.page(LOW2, 1).spt | 0x827)  # type: ignore[arg-type]


def parent_without_link(world: World) -> None:
    zap.add_parent_pte(world.vm, world.page(LOW2, 1), world.sptep(world.page(MIDDLE, 2), 201))  # type: ignore[arg-type]


def invalidate(world: World) -> None:
    mark_invalid(world.vm, world.page(LOW2, 1))


def sync_without_walk(world: World) -> None:
    sp = next(sp for sp in world.pages() if sp.unsync)
    unsync.unlink_unsync_page(world.vm, sp)


def mark_without_reason(world: World) -> None:
    unsync.mark_unsync(world.vm, world.sptep(world.page(MIDDLE, 2), 0))  # type: ignore[arg-type]


DOORS = [
    clear_without_rmap, list_twice, forget_in_rmap, translate_wrongly, let_a_table_be_written, track_another,
    account_twice, unlink_without_parent, link_without_parent, parent_without_link, invalidate, sync_without_walk,
    mark_without_reason,
]  # fmt: skip


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_each_misuse_of_a_door_is_found(door: Callable[[World], None]) -> None:
    world = make_shadow()
    auditor = Auditor(world.vm)
    assert auditor.audit().problems == []
    misuse(world, door)
    found = compare(auditor, world)
    # A bit that is set without cause is what KVM leaves behind itself, and clears when it next walks by.
    assert found or door in (sync_without_walk, mark_without_reason)
    assert compare(auditor, world) == found


def misuse(world: World, door: Callable[[World], None]) -> None:
    world.vm.mmu_lock.write_lock()
    try:
        door(world)
    finally:
        if not world.vm.mmu_lock.is_free():
            world.vm.mmu_lock.write_unlock()


class Work(RuleBasedStateMachine):
    """Faults, zaps, audits of what changed, in any order; at the end one misuse of a door."""

    def __init__(self) -> None:
        super().__init__()
        self.world = make_shadow()
        self.auditor = Auditor(self.world.vm)

    @rule(gfn=st.integers(0, 0x2FF), code=st.sampled_from([0, USER, WRITE, WRITE | USER]))
    def fault(self, gfn: int, code: int) -> None:
        self.world.fault(gfn << 12, code)

    @rule(gfn=st.sampled_from([LOW, LOW2]), index=st.integers(0, 511), frame=st.integers(0, 0x40))
    def write_table(self, gfn: int, index: int, frame: int) -> None:
        self.world.poke(gfn, index, frame << 12 | 0x67)
        gptewrite.track_write(self.world.vcpu, (gfn << 12) + index * 8, 8)  # type: ignore[arg-type]

    @rule(keep=st.integers(1, 8))
    def recycle(self, keep: int) -> None:
        zap.change_mmu_pages(self.world.vm, keep)
        self.world.vm.n_max_mmu_pages = 1000

    @rule()
    def zap_all(self) -> None:
        self.world.vm.slots_lock.lock()
        zap.zap_all_fast(self.world.vm)
        self.world.vm.slots_lock.unlock()
        roots.unload(self.world.vcpu)
        assert roots.load(self.world.vcpu) == 0

    @rule()
    def audit(self) -> None:
        assert compare(self.auditor, self.world) == []

    @rule(door=st.sampled_from(DOORS))
    def damage(self, door: Callable[[World], None]) -> None:
        assert compare(self.auditor, self.world) == []
        with contextlib.suppress(AssertionError, StopIteration, KvmBug):
            misuse(self.world, door)
        compare(self.auditor, self.world)
        self.__init__()  # type: ignore[misc]


TestWork = Work.TestCase
TestWork.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
