# SPDX-License-Identifier: GPL-2.0-only
"""The audit of the TDP MMU: a sound machine passes, and each kind of damage is named."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from kvmmu.kvm.mmu.audit import find_violations
from kvmmu.kvm.mmu.tdpchange import alloc_table, init_table
from kvmmu.kvm.mmu.tdproots import link_root

from .machines import EMPTY, HOLE, INVALID, MMU_W, Tdp, W

HUGE = 0x200000
FROZEN = EMPTY | 0x5A0


def machine() -> Tdp:
    """A huge page, small ones, a device, and a table of executable pages."""
    box = Tdp("host_page=2m", "nx_huge_pages=on", memory=16 << 20)
    box.touch(HUGE)
    box.world.poke(HUGE * 2, 0xC3)
    assert box.world.fetch(box.vcpu, HUGE * 2).kind == "done"
    box.touch(HUGE * 2 + 0x1000)
    assert box.world.read(box.vcpu, HOLE).kind == "mmio"
    return box


def put(box: Tdp, gpa: int, word: int, level: int = 1) -> None:
    box.world.memory.write_once(box.sptep(gpa, level), word)


def problems(box: Tdp) -> list[str]:
    return find_violations(box.vm).problems


def test_a_sound_machine_passes_and_is_counted() -> None:
    box = machine()
    seen = find_violations(box.vm)
    assert seen.problems == []
    assert (seen.pages, seen.leaves, seen.nonleaves, seen.mmio) == (6, 3, 5, 1)


def freeze(box: Tdp) -> str:
    put(box, HUGE * 2 + 0x5000, FROZEN)
    return "I9: frozen"


def leave_rubbish(box: Tdp) -> str:
    put(box, HUGE * 2 + 0x5000, 0)
    return "I16: neither present nor MMIO nor empty"


def map_another_page(box: Tdp) -> str:
    put(box, HUGE * 2 + 0x1000, box.spte(HUGE * 2 + 0x1000) ^ 0x1000)
    return "I1: the host has"


def keep_what_the_host_took(box: Tdp) -> str:
    spte = box.spte(HUGE * 2 + 0x1000)
    box.world.mm.dontneed(box.hva + HUGE * 2 + 0x1000, 0x1000)
    put(box, HUGE * 2 + 0x1000, spte)
    return "I1: the host has 0x0"


def map_larger_than_the_host(box: Tdp) -> str:
    spte = box.spte(HUGE)
    box.world.mm.mprotect(box.hva + HUGE, 0x1000, False)
    box.world.mm.mprotect(box.hva + HUGE, 0x1000, True)
    put(box, HUGE, spte, 2)
    return "I1: the host's page for gfn 0x200 is of level 1"


def map_beyond_the_slot(box: Tdp) -> str:
    put(box, HOLE, box.spte(HUGE * 2 + 0x1000))
    return "I1: maps gfn 0x40000, which has no memory"


def break_triple(box: Tdp) -> str:
    put(box, HUGE * 2 + 0x1000, box.spte(HUGE * 2 + 0x1000) & ~MMU_W)
    return "I9: illegal"


def misalign(box: Tdp) -> str:
    put(box, HUGE, box.spte(HUGE) + 0x1000, 2)
    return "I5: no leaf of level 2"


def make_huge_executable(box: Tdp) -> str:
    put(box, HUGE, box.spte(HUGE) & ~(1 << 63), 2)
    return "I9: executable huge page"


def write_unlogged(box: Tdp) -> str:
    box.slot.flags |= 1
    box.slot.alloc_dirty_bitmap()
    return "I8: gfn 0x401 can be written and is not in the dirty log"


def link_twice(box: Tdp) -> str:
    put(box, HUGE * 3, box.world.memory.read_once(box.sptep(HUGE * 2, 2)), 2)
    return "I7: links a table that has a place already"


def link_no_table(box: Tdp) -> str:
    put(box, HUGE * 3, 0x827 | 0x3F_F000, 2)
    return "I7: links a table that is none of the TDP MMU's"


def lie_about_the_link(box: Tdp) -> str:
    box.world.frames.owner(box.sptep(HUGE * 2) >> 12).ptep = 0x1000
    return "I5: .* thinks that 0x1000 links it"


def give_another_role(box: Tdp) -> str:
    box.world.frames.owner(box.sptep(HUGE * 2) >> 12).role ^= 1 << 13
    return "I14: role of"


def give_another_gfn(box: Tdp) -> str:
    box.world.frames.owner(box.sptep(HUGE * 2) >> 12).gfn = 0x800
    return "I14: .* is linked for gfn 0x400"


def map_below_an_invalid_root(box: Tdp) -> str:
    box.root.role |= INVALID
    return "I7: invalid root maps"


def leave_scheduled(box: Tdp) -> str:
    box.root.scheduled_to_zap = True
    return "I7: .* still waits to be zapped"


def miscount_users(box: Tdp) -> str:
    box.root.root_count = 1
    return "I7: root_count is 1, 2 use"


def make_a_second_root(box: Tdp) -> str:
    other = alloc_table(box.vm)
    box.world.memory.fill_words(other.spt, EMPTY, 512)
    init_table(box.vm, other, 0, box.root.role, 0)
    box.vm.tdp_mmu_pages_lock.lock()
    link_root(box.vm, other)
    box.vm.tdp_mmu_pages_lock.unlock()
    other.root_count = 1
    return "I7: .* has the role of the valid"


def make_no_root(box: Tdp) -> str:
    box.root.gfn = 4  # type: ignore[assignment]
    return "I14: no root of the TDP MMU"


def list_twice(box: Tdp) -> str:
    box.vm.tdp_mmu_pages_lock.lock()
    link_root(box.vm, box.root)
    box.vm.tdp_mmu_pages_lock.unlock()
    return "I7: the list of roots runs in a circle"


def miscount_tables(box: Tdp) -> str:
    box.vm.tdp_mmu_pages += 1
    return "I11: tdp_mmu_pages is 6, 5 tables are linked"


def miscount_pages(box: Tdp) -> str:
    box.vm.stat.pages_2m += 1
    return "I11: pages_2m is 2, there are 1"


def take_a_reference(box: Tdp) -> str:
    box.world.frames.get(box.sptep(HUGE * 2) >> 12)
    return "frames: the table of .* has 2 references"


def stay_a_reader(box: Tdp) -> str:
    box.vm.rcu.read_lock()
    return "I15: nobody runs"


def forget_why(box: Tdp) -> str:
    sp = box.vm.possible_nx_huge_pages.nx_next
    assert sp is not None
    sp.nx_huge_page_disallowed = False
    return "I11: the list of possible NX huge pages has .*, where none was forbidden"


def miscount_splits(box: Tdp) -> str:
    box.vm.stat.nx_lpage_splits += 1
    return "I11: nx_lpage_splits is 2, there are 1"


def list_what_is_gone(box: Tdp) -> str:
    sp = box.vm.possible_nx_huge_pages.nx_next
    assert sp is not None
    put(box, HUGE * 2, EMPTY, 2)
    return "I11: the list of possible NX huge pages has .*, which is gone"


DAMAGES = [
    freeze, leave_rubbish, map_another_page, keep_what_the_host_took, map_larger_than_the_host, map_beyond_the_slot,
    break_triple, misalign, make_huge_executable, write_unlogged, link_twice, link_no_table, lie_about_the_link,
    give_another_role, give_another_gfn, map_below_an_invalid_root, leave_scheduled, miscount_users, make_a_second_root,
    make_no_root, list_twice, miscount_tables, miscount_pages, take_a_reference, stay_a_reader, forget_why,
    miscount_splits, list_what_is_gone,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damage_is_named(damage: Callable[[Tdp], str]) -> None:
    box = machine()
    assert problems(box) == []
    wanted = damage(box)
    found = problems(box)
    assert any(re.match(wanted, problem) for problem in found), found


def test_an_unlogged_write_of_a_read_only_page_is_none() -> None:
    box = machine()
    box.slot.flags |= 1
    box.slot.alloc_dirty_bitmap()
    box.flush()
    for page in (0, 1):
        put(box, HUGE * 2 + page * 4096, box.spte(HUGE * 2 + page * 4096) & ~W)
    assert problems(box) == []
