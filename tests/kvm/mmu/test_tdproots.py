# SPDX-License-Identifier: GPL-2.0-only
"""Roots of the TDP MMU: who shares one, when it turns invalid, how its tree is zapped, and when it goes."""

from __future__ import annotations

import pytest

from kvmmu import KvmBug
from kvmmu.kvm.mmu import roots, tdproots, zap
from kvmmu.kvm.mmu.page import ShadowPage

from .machines import EMPTY, HOLE, INVALID, Others, Tdp, held

FROZEN = EMPTY | 0x5A0


def listed(box: Tdp) -> list[ShadowPage]:
    found = []
    root = box.vm.tdp_mmu_roots.link_next
    while root is not box.vm.tdp_mmu_roots:
        assert root is not None
        found.append(root)
        root = root.link_next
    return found


def test_the_first_vcpu_makes_a_root_that_others_share() -> None:
    box = Tdp()
    box.touch(0)
    (root,) = listed(box)
    # The vCPU's use, and the TDP MMU's.
    assert (root.root_count, root.role & 15, root.gfn, root.ptep, root.spt) == (2, 4, 0, 0, box.vcpu.mmu.root_hpa)
    second = box.world.create_vcpu()
    assert box.world.read(second, 0).kind == "done"
    assert (listed(box), root.root_count, second.mmu.root_hpa) == ([root], 3, root.spt)
    assert box.vm.n_used_mmu_pages == 0
    box.world.audit()


def test_a_root_is_there_when_its_last_vcpu_has_gone() -> None:
    box = Tdp()
    box.touch(0)
    (root,) = listed(box)
    roots.unload(box.vcpu)
    assert (root.root_count, listed(box)) == (1, [root])
    box.events.clear()
    box.touch(0)
    assert (box.vcpu.mmu.root_hpa, root.root_count) == (root.spt, 2)
    box.world.audit()


def test_another_address_space_has_another_root() -> None:
    box = Tdp()
    box.touch(0)
    box.vcpu.mmu.root_role |= 1 << 24
    tdproots.take_root(box.vcpu)
    smm, normal = listed(box)
    assert [smm.role >> 24, normal.role >> 24] == [1, 0]
    for as_id, wanted in ((0, [normal]), (1, [smm]), (-1, [smm, normal])):
        with held(box.vm):
            seen = []
            root = tdproots.next_root(box.vm, None, as_id, True)
            while root is not None:
                seen.append((root, root.root_count))
                root = tdproots.next_root(box.vm, root, as_id, True)
        assert [root for root, _ in seen] == wanted
    # While it was looked at, each had a user more.
    assert [count for _, count in seen] == [3, 3]
    assert (smm.root_count, normal.root_count) == (2, 2)


def test_a_memslot_that_goes_invalidates_the_root_and_zaps_its_tree() -> None:
    box = Tdp()
    box.touch(0x1000, 0x200000)
    assert box.world.read(box.vcpu, HOLE).kind == "mmio"
    (old,) = listed(box)
    box.events.clear()
    box.world.delete_slot(0)
    names = [event[0] for event in box.events]
    assert names[0] == "kvm_mmu_zap_all_fast"
    # 4K leaves, then tables of level 2, 3 and the root's entries, all of whose entries are frozen one by one.
    changes = [(gfn, level, new) for gfn, level, _, new in box.changes()]
    assert changes[:2] == [(1, 1, EMPTY), (0x200, 1, EMPTY)]
    assert changes[2] == (0, 2, EMPTY)
    assert changes[3:515] == [(gfn, 1, FROZEN) for gfn in range(512)]
    assert changes[515] == (0x200, 2, EMPTY)
    assert changes[-513:] == [(0, 4, EMPTY), *((gfn << 18, 3, FROZEN) for gfn in range(512))]
    # The vCPU still has it, and drops it when it enters.
    assert (listed(box), old.root_count, old.role & INVALID, old.scheduled_to_zap) == ([old], 1, INVALID, False)
    assert box.vm.tdp_mmu_pages == 0
    box.world.audit()
    free = box.world.frames.nr_free
    assert box.world.read(box.vcpu, HOLE).kind == "mmio"
    (new,) = listed(box)
    assert new is not old
    assert box.world.frames.nr_free == free + 1 - 4
    box.world.audit()


def test_a_root_that_others_hold_is_not_freed_under_them() -> None:
    box = Tdp()
    box.touch(0)
    (root,) = listed(box)
    with held(box.vm):
        held_root = tdproots.next_root(box.vm, None, -1, False)
        assert held_root is root
        tdproots.invalidate_all_roots(box.vm)
    tdproots.zap_invalidated_roots(box.vm)
    roots.unload(box.vcpu)
    assert (listed(box), root.root_count) == ([root], 1)
    box.vm.rcu.read_lock()
    box.vm.mmu_lock.read_lock()
    tdproots.drop_root(box.vm, root)
    box.vm.mmu_lock.read_unlock()
    assert listed(box) == []
    # A reader may still stand on it.
    assert box.world.frames.nr_refs(root.spt >> 12) == 1
    box.vm.rcu.read_unlock()
    assert box.world.frames.nr_refs(root.spt >> 12) == 0


def test_a_root_without_users_is_not_taken() -> None:
    box = Tdp()
    box.touch(0)
    (root,) = listed(box)
    root.root_count = 0
    assert not tdproots.hold_root(box.vm, root)
    assert root.root_count == 0
    root.root_count = 2


def test_the_last_user_of_a_valid_root_is_a_bug() -> None:
    box = Tdp()
    box.touch(0)
    (root,) = listed(box)
    root.root_count = 1
    box.vm.mmu_lock.read_lock()
    with pytest.raises(KvmBug, match="the last user of a valid root left"):
        tdproots.drop_root(box.vm, root)
    box.vm.mmu_lock.read_unlock()


def test_invalid_roots_are_skipped_where_only_valid_ones_count() -> None:
    box = Tdp()
    box.touch(0)
    (root,) = listed(box)
    with held(box.vm):
        tdproots.invalidate_all_roots(box.vm)
        assert root.scheduled_to_zap
        assert tdproots.next_root(box.vm, None, -1, True) is None
        assert tdproots.find_root(box.vm, box.vcpu.mmu.root_role) is None
        # Twice does not schedule it again once it was zapped.
    tdproots.zap_invalidated_roots(box.vm)
    with held(box.vm):
        tdproots.invalidate_all_roots(box.vm)
    assert not root.scheduled_to_zap


def test_the_end_of_the_vm_zaps_exclusively_and_frees_everything() -> None:
    box = Tdp("host_page=2m")
    box.touch(0x1000, 0x400000)
    with held(box.vm):
        pass
    zap.zap_all(box.vm)
    # Present entries only, and no flush: no vCPU will run.
    assert [(gfn, level, new) for gfn, level, _, new in box.changes()] == [
        (0, 2, EMPTY), (0x400, 2, EMPTY), (0, 3, EMPTY), (0, 4, EMPTY),
    ]  # fmt: skip
    assert (box.vm.stat.pages_2m, box.vm.tdp_mmu_pages, box.vm.stat.remote_tlb_flush_requests) == (0, 0, 0)
    box.world.close()
    assert listed(box) == []


def test_a_zap_yields_between_entries_and_still_zaps_all() -> None:
    box = Tdp()
    box.touch(*range(0, 0x8000, 0x1000), 0x200000)
    second = box.world.create_vcpu()
    mapped: list[str] = []
    others = Others(box.vm, lambda: mapped.append(box.world.write(second, 0x300000, b"z").kind))
    with held(box.vm):
        tdproots.zap_all_roots(box.vm)
    box.vm.gate.disarm()
    assert mapped == ["done"]
    assert others.nr_yields > 8
    assert box.vm.stat.pages_4k == box.vm.tdp_mmu_pages == 0
    box.flush()
    box.world.audit()


def test_what_outlives_the_vm_is_a_bug() -> None:
    box = Tdp()
    box.touch(0)
    with pytest.raises(KvmBug, match="outlive the VM"):
        tdproots.uninit(box.vm)


def test_every_table_is_seen_once() -> None:
    box = Tdp()
    box.touch(0, 0x200000)
    pages = box.world.shadow_pages()
    assert [(sp.gfn, sp.role & 15) for sp in pages] == [(0, 4), (0, 3), (0, 2), (0, 1), (0x200, 1)]
    assert len(pages) == box.vm.tdp_mmu_pages + 1
    digest = box.world.digest()
    box.touch(0x1000)
    assert box.world.digest() != digest
