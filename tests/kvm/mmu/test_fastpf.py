# SPDX-License-Identifier: GPL-2.0-only
"""The fast page fault: which faults may try, what a leaf may become without the lock, and what a lost race does."""

from __future__ import annotations

import itertools

import pytest

from kvm.mmu.machines import AD, DATA, HOST_W, LARGE, MEMORY, MMU_W, RW, SHADOW, VA, Guest, held
from kvmmu import UserMemoryRegion
from kvmmu.guest.tables import SIZE_2M
from kvmmu.kvm.mmu import fastpf
from kvmmu.kvm.mmu.fault import PageFault
from kvmmu.kvm.mmu.spte import make_npt_format

P, W, U, A, D, NX = 1, 2, 4, 0x20, 0x40, 1 << 63
PRESENT, WRITE, RSVD, FETCH = 1, 2, 8, 16
INVALID, FIXED, SPURIOUS = 4, 5, 6
LEAF = SHADOW | HOST_W | P | U


class Logged:
    """A nested-paging guest whose page at DATA has been written, then logged: W is gone, MMU-writable is not."""

    def __init__(self, *settings: str, log: bool = True) -> None:
        self.guest = Guest("4-level", *settings, npt=True)
        self.guest.tables.map(VA, DATA, flags=RW | AD)
        assert self.guest.write(VA) == "done"
        if log:
            self.guest.world.set_region(UserMemoryRegion(0, 1, 0, MEMORY, self.guest.hva))
            self.guest.world.dirty_log(0)
        self.vm, self.vcpu = self.guest.world.vm, self.guest.vcpu
        self.sptep = self.guest.world.walk(self.vcpu, DATA)[-1].hpa

    @property
    def spte(self) -> int:
        return self.vm.memory.read_once(self.sptep)

    def put(self, flags: int) -> None:
        self.vm.memory.write_once(self.sptep, self.spte & 0xFFFFFF000 | flags)

    def fault(self, code: int = PRESENT | WRITE, gpa: int = DATA) -> PageFault:
        fault = PageFault(gpa, code)
        fault.gfn = gpa >> 12
        fault.slot = self.vcpu.gfn_to_memslot(gpa >> 12)
        return fault

    def is_dirty(self) -> bool:
        return bool(int.from_bytes(self.guest.world.dirty_log(0), "little") >> (DATA >> 12) & 1)


def test_only_writes_to_present_pages_may_be_fast() -> None:
    vm, cases = Logged().vm, 0
    for present, write, rsvd, fetch in itertools.product((0, PRESENT), (0, WRITE), (0, RSVD), (0, FETCH)):
        fault = PageFault(DATA, present | write | rsvd | fetch)
        assert fastpf.may_be_fast(vm, fault) == bool(present and write and not rsvd)
        cases += 1
    assert cases == 16


@pytest.mark.parametrize(
    ("code", "spte", "allowed"),
    [
        (WRITE, LEAF | W, True),
        (WRITE, LEAF, False),
        (FETCH, LEAF, True),
        (FETCH, LEAF | NX, False),
        (0, LEAF, True),
        (0, SHADOW, False),
    ],
)
def test_what_an_spte_allows(code: int, spte: int, allowed: bool) -> None:
    assert fastpf.is_access_allowed(make_npt_format(46, True), PageFault(DATA, code), spte) == allowed


def test_w_is_given_back_where_only_w_was_taken() -> None:
    box = Logged()
    assert box.spte & (W | MMU_W) == MMU_W
    before = box.spte
    fault = box.fault()
    assert fastpf.fast_page_fault(box.vcpu, fault) == FIXED
    assert box.spte == before | W
    assert box.vcpu.stat.pf_fast == 1
    assert box.is_dirty()


def test_the_walk_is_over_when_it_returns() -> None:
    """For who frees pages of the legacy MMU the vCPU's mode tells, for the TDP MMU a section of RCU."""
    box = Logged("tdp_mmu=off")
    assert fastpf.fast_page_fault(box.vcpu, box.fault()) == FIXED
    assert box.vcpu.mode == 0
    box = Logged()
    mode = box.vcpu.mode
    assert fastpf.fast_page_fault(box.vcpu, box.fault()) == FIXED
    assert (box.vcpu.mode, box.vm.rcu.readers) == (mode, 0)


def test_it_needs_no_lock() -> None:
    box = Logged()
    with held(box.vm):
        assert fastpf.fast_page_fault(box.vcpu, box.fault()) == FIXED


@pytest.mark.parametrize(
    ("flags", "verdict"),
    [
        (LEAF | MMU_W | A, FIXED),
        (LEAF | MMU_W | W | A | D, SPURIOUS),
        (LEAF | A, INVALID),
        (LEAF & ~HOST_W, INVALID),
        (P | U, INVALID),
        (1 << 63, INVALID),
    ],
)
def test_a_write_is_fixed_if_the_leaf_was_writable_for_the_mmu(flags: int, verdict: int) -> None:
    box = Logged()
    box.put(flags)
    before = box.spte
    assert fastpf.fast_page_fault(box.vcpu, box.fault()) == verdict
    assert box.spte == before | (W if verdict == FIXED else 0)
    assert box.is_dirty() == (verdict == FIXED)
    assert box.vcpu.stat.pf_fast == (verdict != INVALID)


def test_where_the_walk_ends_early_the_slow_path_must_look() -> None:
    box = Logged()
    assert fastpf.fast_page_fault(box.vcpu, box.fault(gpa=LARGE)) == INVALID
    assert fastpf.fast_page_fault(box.vcpu, box.fault(0)) == INVALID
    root = box.vcpu.mmu.root_hpa
    box.vcpu.mmu.root_hpa = 2**64 - 1
    assert fastpf.fast_page_fault(box.vcpu, box.fault()) == INVALID
    box.vcpu.mmu.root_hpa = root
    assert (box.vcpu.stat.pf_fast, box.vm.rcu.readers) == (0, 0)


@pytest.mark.parametrize("logged", [False, True])
def test_a_large_leaf_of_a_logged_slot_is_not_made_writable(logged: bool) -> None:
    """512 pages would be, and one would be in the log."""
    guest = Guest("4-level", "host_page=2m", npt=True)
    guest.tables.map(VA, LARGE, SIZE_2M, RW | AD)
    assert guest.write(VA) == "done"
    leaf = guest.world.walk(guest.vcpu, LARGE)[-1]
    assert leaf.level == 2
    if logged:
        guest.world.set_region(UserMemoryRegion(0, 1, 0, MEMORY, guest.hva))
    guest.world.memory.write_once(leaf.hpa, leaf.spte & ~W)
    fault = PageFault(LARGE, PRESENT | WRITE)
    fault.gfn, fault.slot = LARGE >> 12, guest.vcpu.gfn_to_memslot(LARGE >> 12)
    assert fastpf.fast_page_fault(guest.vcpu, fault) == (INVALID if logged else FIXED)
    assert guest.world.memory.read_once(leaf.hpa) & W == (0 if logged else W)


def test_a_link_is_not_made_writable() -> None:
    box = Logged()
    link = box.guest.world.walk(box.vcpu, DATA)[-2].hpa
    word = box.vm.memory.read_once(link) & ~W | MMU_W
    assert fastpf.try_fix(box.vcpu, box.fault(), link, word) == INVALID


def test_a_word_that_changed_meanwhile_is_left_alone_and_looked_at_again() -> None:
    box = Logged()
    stale = box.spte ^ A
    assert fastpf.try_fix(box.vcpu, box.fault(), box.sptep, stale) == -1
    assert box.spte & W == 0
    assert not box.is_dirty()


class Racer:
    """Changes a word just before each compare-and-exchange, as long as ``wins`` last."""

    def __init__(self, box: Logged, wins: int) -> None:
        self.box, self.wins, self.tries = box, wins, 0

    def barrier(self, kind: str) -> None:
        pass

    def wait(self, kind: str, where: object, condition: object) -> None:
        raise AssertionError(f"{kind} waits: the fast path takes no lock")

    def point(self, kind: str, where: object, key: object) -> None:
        if kind != "cmpxchg":
            return
        self.tries += 1
        if self.tries <= self.wins:
            gate = self.box.vm.gate
            gate.disarm()
            self.box.vm.memory.write_once(self.box.sptep, self.box.spte ^ A)
            gate.arm(self)


@pytest.mark.parametrize(("wins", "verdict", "tries"), [(0, FIXED, 1), (1, FIXED, 2), (4, FIXED, 5), (5, INVALID, 5)])
def test_the_slow_path_takes_over_after_5_lost_races(wins: int, verdict: int, tries: int) -> None:
    box = Logged()
    racer = Racer(box, wins)
    box.vm.gate.arm(racer)
    result = fastpf.fast_page_fault(box.vcpu, box.fault())
    box.vm.gate.disarm()
    assert (result, racer.tries) == (verdict, tries)
    assert box.spte & W == (W if verdict == FIXED else 0)


def test_a_page_outside_the_log_is_fixed_and_marked_nowhere() -> None:
    box = Logged(log=False)
    box.put(box.spte & 0xFFF & ~W | 1 << 11)
    assert fastpf.fast_page_fault(box.vcpu, box.fault()) == FIXED
    assert box.spte & W
