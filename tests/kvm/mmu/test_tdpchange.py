# SPDX-License-Identifier: GPL-2.0-only
"""The door of the TDP MMU: which changes it makes, what follows from them, and which it refuses."""

from __future__ import annotations

import pytest

from kvmmu import KvmBug
from kvmmu.kvm.mmu import tdpchange
from kvmmu.kvm.mmu.tdpiter import TdpIter, make_iter

from .machines import EMPTY, HOST_W, MMU_W, SHADOW, Others, Tdp, W, held, shared

A, D, PS, NX = 0x20, 0x40, 0x80, 1 << 63
FROZEN = EMPTY | 0x5A0
FRAME = 0x000F_FFFF_FFFF_F000


def at(box: Tdp, gfn: int, level: int = 1) -> TdpIter:
    """A walk that stands on the entry of ``gfn`` at ``level``."""
    it = make_iter()
    it.start(box.world.memory, box.root, level, gfn)
    while it.level > level:
        it.next(box.world.memory)
    return it


def frame_of(spte: int) -> int:
    return (spte & FRAME) >> 12


@pytest.mark.parametrize(
    ("flags", "level", "volatile"),
    [
        (SHADOW | HOST_W | MMU_W | W | A | D, 1, False),
        (SHADOW | HOST_W | MMU_W | W | A, 1, True),
        (SHADOW | HOST_W | MMU_W | W | D, 1, True),
        (SHADOW | HOST_W | MMU_W | A, 1, True),
        (SHADOW | HOST_W | A, 1, False),
        (SHADOW | A, 2, False),
        (SHADOW | PS, 2, True),
        (SHADOW, 2, False),
        (EMPTY, 1, False),
    ],
)
def test_only_a_present_leaf_whose_bits_may_turn_is_exchanged(flags: int, level: int, volatile: bool) -> None:
    box = Tdp()
    box.touch(0)
    assert tdpchange.needs_xchg(box.vm, flags, level) == volatile
    place = box.sptep(0)
    others = Others(box.vm)
    tdpchange.write_spte(box.vm, place, flags, EMPTY, level)
    box.vm.gate.disarm()
    assert others.heard == [("xchg" if volatile else "write", place)]


def test_a_bit_that_turned_meanwhile_is_seen_and_handed_to_the_frame() -> None:
    box = Tdp()
    box.touch(0x1000)
    place, mem = box.sptep(0x1000), box.world.memory
    clean = box.spte(0x1000) & ~(A | D)
    mem.write_once(place, clean)
    frame = frame_of(clean)
    assert box.world.frames.flags_of(frame) == 0
    with held(box.vm):
        it = at(box, 1)
        mem.write_once(place, clean | A | D)
        tdpchange.set_spte(box.vm, it, EMPTY)
    assert it.old_spte == clean | A | D
    assert box.world.frames.flags_of(frame) == 3
    assert box.changes() == [(1, 1, clean | A | D, EMPTY)]
    assert box.vm.stat.pages_4k == 0


@pytest.mark.parametrize(
    ("old", "new", "flags"),
    [
        (A | D, A | D, 0), (A | D, A, 1), (A | D, D, 2), (A | D, None, 3), (A, None, 2), (D, None, 1), (0, None, 0),
        (0, A | D, 0),
    ],
)  # fmt: skip
def test_a_and_d_that_are_lost_are_the_frames(old: int, new: int | None, flags: int) -> None:
    box = Tdp()
    box.touch(0x1000)
    spte = box.spte(0x1000) & ~(A | D)
    frame = frame_of(spte)
    assert box.world.frames.flags_of(frame) == 0
    with held(box.vm):
        tdpchange.handle_changed(box.vm, 0, 1, spte | old, EMPTY if new is None else spte | new, 1)
    assert box.world.frames.flags_of(frame) == flags


def test_what_stays_the_same_is_no_change() -> None:
    box = Tdp()
    box.touch(0x1000)
    with held(box.vm):
        tdpchange.handle_changed(box.vm, 0, 1, box.spte(0x1000), box.spte(0x1000), 1)
    assert box.events == []


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (0x1000 | SHADOW | A, 0x2000 | SHADOW | A, "pfn changed in place"),
        (EMPTY, 0, "an empty entry changed"),
        (EMPTY, SHADOW | 0x1000 | W, "writable but not MMU-writable"),
    ],
)
def test_a_change_that_no_caller_may_make_is_a_bug(old: int, new: int, text: str) -> None:
    box = Tdp()
    box.touch(0)
    with held(box.vm), pytest.raises(KvmBug, match=text):
        tdpchange.handle_changed(box.vm, 0, 1, old, new, 1)


def test_a_table_may_not_be_exchanged_for_another() -> None:
    box = Tdp()
    box.touch(0)
    link = box.world.memory.read_once(box.sptep(0, 2))
    with held(box.vm), pytest.raises(KvmBug, match="a table was exchanged"):
        tdpchange.handle_changed(box.vm, 0, 0, link, link ^ 0x1000, 2)


def test_a_lost_race_changes_nothing_and_shows_what_is_there_now() -> None:
    box = Tdp()
    box.touch(0x1000)
    place = box.sptep(0x1000)
    with shared(box.vm):
        it = at(box, 1)
        now = box.spte(0x1000) & ~D
        box.world.memory.write_once(place, now)
        assert not tdpchange.set_spte_atomic(box.vm, it, EMPTY)
        assert not tdpchange.zap_spte_atomic(box.vm, at(box, 1)) or box.spte(0x1000) == EMPTY
    assert it.old_spte == now


def test_a_zapped_entry_is_frozen_until_tlbs_are_flushed_and_its_event_shows_it_empty() -> None:
    box = Tdp()
    box.touch(0x200000, 0x201000)
    vm, place = box.vm, box.sptep(0x200000, 2)
    words: list[int] = []

    class Watch(Others):
        def point(self, kind: str, where: object, key: object) -> None:
            if kind == "or" and key == "requests":
                self.gate.disarm()
                words.append(box.world.memory.read_once(place))
                self.gate.arm(self)

    before = vm.stat.remote_tlb_flush_requests
    free = box.world.frames.nr_free
    with shared(vm):
        it = at(box, 0x200, 2)
        Watch(vm)
        assert tdpchange.zap_spte_atomic(vm, it)
        vm.gate.disarm()
        # The table's frame waits for the end of this section.
        assert box.world.frames.nr_free == free
    assert words == [FROZEN]
    assert box.world.frames.nr_free == free + 1
    assert vm.stat.remote_tlb_flush_requests == before + 1
    names = [event[0] for event in box.events]
    assert names[:2] == ["kvm_tdp_mmu_spte_changed", "kvm_mmu_prepare_zap_page"]
    changes = box.changes()
    assert [(gfn, level, new) for gfn, level, _, new in changes[:1]] == [(0x200, 2, EMPTY)]
    assert [(gfn, level, new) for gfn, level, _, new in changes[1:]] == [(0x200 + i, 1, FROZEN) for i in range(512)]
    assert (vm.stat.pages_4k, vm.tdp_mmu_pages) == (0, 2)
    box.world.audit()


def test_under_the_exclusive_lock_only_what_is_present_is_taken_out_of_a_table() -> None:
    box = Tdp()
    box.touch(0x200000, 0x203000, 0x400000)
    with held(box.vm):
        box.vm.rcu.read_lock()
        tdpchange.set_spte(box.vm, at(box, 0, 3), EMPTY)
        box.vm.rcu.read_unlock()
    changes = [(gfn, level, new) for gfn, level, _, new in box.changes()]
    # Entry, table, its entries; what one of them links follows at once.
    assert changes == [
        (0, 3, EMPTY),
        (0x200, 2, FROZEN), (0x200, 1, FROZEN), (0x203, 1, FROZEN),
        (0x400, 2, FROZEN), (0x400, 1, FROZEN),
    ]  # fmt: skip
    assert (box.vm.stat.pages_4k, box.vm.tdp_mmu_pages, box.vm.stat.mmu_shadow_zapped) == (0, 1, 0)
    box.flush()
    box.world.audit()


def test_a_frozen_entry_is_nobodys_to_change() -> None:
    box = Tdp()
    box.touch(0x1000)
    box.world.memory.write_once(box.sptep(0x1000), FROZEN)
    with shared(box.vm), pytest.raises(KvmBug, match="not the caller's to change"):
        tdpchange.set_spte_atomic(box.vm, at(box, 1), EMPTY)
    with held(box.vm), pytest.raises(KvmBug, match="frozen under an exclusive lock"):
        tdpchange.set_spte(box.vm, at(box, 1), EMPTY)
    with held(box.vm), pytest.raises(KvmBug, match="is frozen, and nobody else runs"):
        tdpchange.freeze(box.vm, box.sptep(0x1000))


def test_a_walk_that_yielded_may_change_nothing() -> None:
    box = Tdp()
    box.touch(0x1000)
    it = at(box, 1)
    it.yielded = True
    with held(box.vm), pytest.raises(KvmBug, match="the walk has yielded"):
        tdpchange.set_spte(box.vm, it, EMPTY)
    with shared(box.vm), pytest.raises(KvmBug, match="not the caller's to change"):
        tdpchange.set_spte_atomic(box.vm, it, EMPTY)


def test_who_freezes_waits_for_another_who_does() -> None:
    box = Tdp()
    box.touch(0x1000)
    place, spte = box.sptep(0x1000), box.spte(0x1000)
    box.world.memory.write_once(place, FROZEN)

    class Filler(Others):
        def point(self, kind: str, where: object, key: object) -> None:
            if kind == "cpu_relax":
                self.gate.disarm()
                box.world.memory.write_once(place, spte)
                self.gate.arm(self)

    with shared(box.vm):
        Filler(box.vm)
        assert tdpchange.freeze(box.vm, place) == spte
        box.vm.gate.disarm()
    assert box.world.memory.read_once(place) == FROZEN
    box.world.memory.write_once(place, spte)


@pytest.mark.parametrize("volatile", [True, False])
def test_clearing_bits_is_atomic_where_they_may_turn_and_does_no_accounts(volatile: bool) -> None:
    box = Tdp()
    box.touch(0x1000)
    place = box.sptep(0x1000)
    spte = box.spte(0x1000) & ~D if volatile else box.spte(0x1000)
    box.world.memory.write_once(place, spte)
    frame = frame_of(spte)
    assert box.world.frames.flags_of(frame) == 0
    with held(box.vm):
        it = at(box, 1)
        others = Others(box.vm)
        assert tdpchange.clear_bits(box.vm, it, A) == spte
        box.vm.gate.disarm()
    assert others.heard == [("and" if volatile else "write", place)]
    assert box.spte(0x1000) == spte & ~A
    assert box.changes() == [(1, 1, spte, spte & ~A)]
    assert box.world.frames.flags_of(frame) == 0


def test_each_door_wants_its_mode_of_the_lock() -> None:
    box = Tdp()
    box.touch(0x1000)
    with held(box.vm):
        for change in (
            lambda: tdpchange.set_spte_atomic(box.vm, at(box, 1), EMPTY),
            lambda: tdpchange.zap_spte_atomic(box.vm, at(box, 1)),
        ):
            with pytest.raises(KvmBug, match="must be held shared"):
                change()
    with shared(box.vm):
        for change in (
            lambda: tdpchange.set_spte(box.vm, at(box, 1), EMPTY),
            lambda: tdpchange.clear_bits(box.vm, at(box, 1), A),
        ):
            with pytest.raises(KvmBug, match="must be held exclusively"):
                change()
    assert box.spte(0x1000) & SHADOW


def test_a_child_has_its_parents_role_a_level_down() -> None:
    box = Tdp()
    box.touch(0)
    sp = tdpchange.alloc_table(box.vm)
    tdpchange.init_child(box.vm, sp, at(box, 0x300, 2))
    assert (sp.gfn, sp.role, sp.ptep, sp.is_tdp) == (0x200, box.root.role - 3, box.sptep(0, 2) + 8, True)
    event = ("kvm_mmu_get_page", 0, 0x200, sp.role, 0, False, True)
    assert box.events[-1] == event
    tdpchange.clear_table(box.vm, sp)
    assert set(memoryview(box.world.memory.read(sp.spt, 4096)).cast("Q")) == {EMPTY}
    tdpchange.free_table(box.vm, sp)
    assert box.world.frames.owner(sp.spt >> 12) is None
