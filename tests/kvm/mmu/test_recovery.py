# SPDX-License-Identifier: GPL-2.0-only
"""The NX mitigation: fetches split huge pages, other accesses do not; tables that it made are counted and recovered."""

from __future__ import annotations

import pytest

from kvmmu.kvm.mmu import nxpage
from kvmmu.kvm.mmu.page import ShadowPage

from .machines import SHADOW, Others, Tdp, W, held

NX = 1 << 63
HUGE = 0x200000
MMUS = pytest.mark.parametrize("mmu", ["tdp_mmu=on", "tdp_mmu=off"])


def machine(mmu: str, *settings: str) -> Tdp:
    return Tdp("host_page=2m", "nx_huge_pages=on", mmu, *settings)


def fetch(box: Tdp, *gpas: int) -> None:
    for gpa in gpas:
        box.world.poke(gpa, b"\xc3", 1)
        assert box.world.fetch(box.vcpu, gpa).kind == "done"


def listed(box: Tdp) -> list[int]:
    found = []
    sp = box.vm.possible_nx_huge_pages.nx_next
    while sp is not box.vm.possible_nx_huge_pages:
        assert sp is not None
        found.append(sp.gfn)
        sp = sp.nx_next
    return found


@MMUS
def test_a_huge_page_is_never_executable_and_a_fetch_maps_4k(mmu: str) -> None:
    box = machine(mmu)
    box.touch(HUGE)
    level, spte = box.way(HUGE)[-1]
    assert (level, spte & NX, spte & W) == (2, NX, W)
    fetch(box, HUGE + 0x3000)
    level, spte = box.way(HUGE + 0x3000)[-1]
    assert (level, spte & NX) == (1, 0)
    assert (box.vm.stat.nx_lpage_splits, listed(box)) == (1, [0x200])
    box.world.audit()


@MMUS
def test_without_the_mitigation_a_fetch_maps_huge(mmu: str) -> None:
    box = Tdp("host_page=2m", mmu)
    fetch(box, HUGE)
    level, spte = box.way(HUGE)[-1]
    assert (level, spte & NX, box.vm.stat.nx_lpage_splits) == (2, 0, 0)


@MMUS
def test_a_table_of_executable_pages_is_not_replaced_by_a_huge_page(mmu: str) -> None:
    box = machine(mmu)
    fetch(box, HUGE)
    box.touch(HUGE + 0x5000)
    assert [box.way(HUGE + at)[-1][0] for at in (0, 0x5000)] == [1, 1]
    # The frame is that of the page, not of the block's first.
    assert box.world.read(box.vcpu, HUGE + 0x5000, 1).data == b"x"
    box.world.audit()


@MMUS
def test_where_no_huge_page_could_be_the_table_is_not_counted(mmu: str) -> None:
    box = Tdp("nx_huge_pages=on", mmu)
    fetch(box, HUGE)
    assert (box.vm.stat.nx_lpage_splits, listed(box)) == (0, [])
    box.world.audit()


@MMUS
def test_a_pass_zaps_one_in_so_many_rounded_up_oldest_first(mmu: str) -> None:
    box = machine(mmu, "nx_huge_pages_recovery_ratio=2")
    fetch(box, HUGE, HUGE * 3, HUGE * 2)
    assert listed(box) == [0x200, 0x600, 0x400]
    before = box.vm.stat.remote_tlb_flush_requests
    assert box.world.recover_nx_huge_pages() == 2
    assert listed(box) == [0x400]
    assert box.vm.stat.remote_tlb_flush_requests == before + 1
    assert not box.way(HUGE)[-1][1] & SHADOW
    box.world.audit()
    box.touch(HUGE)
    assert box.way(HUGE)[-1][0] == 2
    assert box.world.recover_nx_huge_pages() == 1
    assert box.world.recover_nx_huge_pages() == 0
    assert box.vm.stat.remote_tlb_flush_requests == before + 2
    box.world.audit()


@MMUS
@pytest.mark.parametrize("setting", ["nx_huge_pages_recovery_ratio=0", "nx_huge_pages_recovery_ratio=1"])
def test_a_ratio_of_0_recovers_nothing(mmu: str, setting: str) -> None:
    box = machine(mmu, setting)
    fetch(box, HUGE, HUGE * 2)
    assert box.world.recover_nx_huge_pages() == (0 if setting.endswith("=0") else 2)


@MMUS
def test_in_a_logged_slot_a_table_only_leaves_the_list(mmu: str) -> None:
    box = machine(mmu, "nx_huge_pages_recovery_ratio=1")
    fetch(box, HUGE)
    box.log()
    spte = box.spte(HUGE)
    assert box.world.recover_nx_huge_pages() == 1
    assert (listed(box), box.spte(HUGE)) == ([], spte)
    box.world.audit()


@MMUS
def test_the_table_leaves_the_list_when_it_goes_otherwise(mmu: str) -> None:
    box = machine(mmu)
    fetch(box, HUGE)
    box.world.delete_slot(0)
    assert (listed(box), box.vm.stat.nx_lpage_splits) == ([], 0)
    box.world.audit()


def test_a_pass_that_yields_flushes_before_it_does() -> None:
    box = machine("tdp_mmu=on", "nx_huge_pages_recovery_ratio=1")
    fetch(box, HUGE, HUGE * 2, HUGE * 3)
    before = box.vm.stat.remote_tlb_flush_requests
    Others(box.vm)
    assert box.world.recover_nx_huge_pages() == 3
    box.vm.gate.disarm()
    assert box.vm.stat.remote_tlb_flush_requests == before + 3
    box.world.audit()


def test_the_frames_of_zapped_tables_wait_for_the_flush() -> None:
    box = machine("tdp_mmu=on", "nx_huge_pages_recovery_ratio=1")
    fetch(box, HUGE)
    free = box.world.frames.nr_free
    seen: list[int] = []

    class Watch(Others):
        def must_yield(self, where: object) -> bool:
            return False

        def point(self, kind: str, where: object, key: object) -> None:
            if (kind, key) == ("or", "requests"):
                seen.append(box.world.frames.nr_free)

    Watch(box.vm)
    box.world.recover_nx_huge_pages()
    box.vm.gate.disarm()
    assert (seen, box.world.frames.nr_free) == ([free], free + 1)


def test_the_list_keeps_its_order_and_its_counter() -> None:
    box = machine("tdp_mmu=on")
    vm = box.vm
    pages = [ShadowPage(gfn, 0, 0) for gfn in (1, 2, 3)]
    for sp in pages:
        nxpage.set_disallowed(vm, sp, True)
        nxpage.track_possible(vm, sp)
        nxpage.track_possible(vm, sp)
    assert (listed(box), vm.stat.nx_lpage_splits) == ([1, 2, 3], 3)
    nxpage.forget(vm, pages[1])
    nxpage.forget(vm, pages[1])
    assert (listed(box), vm.stat.nx_lpage_splits, nxpage.is_disallowed(vm, pages[1])) == ([1, 3], 2, False)
    with held(vm):
        assert nxpage.first_possible(vm) is pages[0]
        for sp in (pages[0], pages[2]):
            nxpage.forget(vm, sp)
        assert nxpage.first_possible(vm) is None
