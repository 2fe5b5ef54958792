# SPDX-License-Identifier: GPL-2.0-only
"""The audit of what changed, of the TDP MMU and of TLBs: it says what the whole audit says.

Also where what changed is not the entry: the host's page, the dirty log, the TLB, the way to a table.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvm.mmu.machines import AD, DATA, EMPTY, HOLE, LARGE, MMU_W, RW, VA, VB, Guest, Tdp, W
from kvm.mmu.test_audit_changed import compare
from kvm.mmu.test_audit_tdp import DAMAGES, HUGE, machine, put
from kvmmu import UserMemoryRegion
from kvmmu.guest.tables import SIZE_1G, SIZE_2M
from kvmmu.hw.bits import TR_LEVEL_SHIFT
from kvmmu.kvm.bits import KVM_REQ_TLB_FLUSH
from kvmmu.kvm.mmu import roots, zap
from kvmmu.kvm.mmu.audit import Auditor, find_violations
from kvmmu.kvm.mmu.page import ShadowPage
from kvmmu.page_types import ONE

SMALL = HUGE * 2 + 0x1000
NX = ONE << 63


def sound(box: Tdp) -> Auditor:
    """An auditor that has seen all of a sound machine."""
    auditor = Auditor(box.world.vm)
    assert auditor.audit().problems == []
    assert same(auditor, box) == []
    return auditor


def same(auditor: Auditor, box: Tdp) -> list[str]:
    """What both audits say."""
    return compare(auditor, box.world)  # type: ignore[arg-type]


def named(found: list[str], wanted: str) -> None:
    """``wanted`` is the beginning of one of the problems found."""
    assert any(problem.startswith(wanted) for problem in found), found


# The TDP MMU.


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_each_damage_is_found(damage: Callable[[Tdp], str]) -> None:
    box = machine()
    auditor = sound(box)
    damage(box)
    found = same(auditor, box)
    assert found
    # The audit after one that found something is a whole one, and so finds it again.
    assert same(auditor, box) == found


def test_work_is_followed() -> None:
    box = Tdp("host_page=2m", "nx_huge_pages=on")
    auditor = sound(box)
    for step in range(40):
        box.touch((step * 0x23_1000) % (16 << 20), write=step % 3 > 0)
        if step % 8 == 5:
            box.world.mm.dontneed(box.hva + step * 0x1000, 0x40_0000)
        if step % 8 == 7:
            box.log(step % 16 // 8)
        assert same(auditor, box) == []


def logged(base: int = 0) -> tuple[Tdp, int]:
    """A machine that logs what is written, two pages of it; the gpa of the first. The slot begins at ``base``."""
    box = machine() if not base else Tdp()
    gpa = HUGE * 2
    if base:
        hva = box.world.mm.mmap(0x40_3000)
        box.world.set_region(UserMemoryRegion(1, 1, base, 0x40_3000, hva))
        gpa = base + 0x20_0000
    box.log()
    for page in (1, 2):
        box.touch(gpa + page * 0x1000)
    return box, gpa


# One slot's tables lie in it whole; the other's cover its borders, and its log begins at another gfn than they.
@pytest.mark.parametrize("base", [0, 0x4000_3000])
@pytest.mark.parametrize("page", [1, 2])
def test_a_bit_that_goes_from_the_log_is_missed(base: int, page: int) -> None:
    box, gpa = logged(base)
    auditor = sound(box)
    slot = box.vm.slots_of(0).search((gpa + page * 0x1000) >> 12)  # type: ignore[arg-type]
    assert slot is not None
    assert slot.dirty_array is not None
    bit = ((gpa + page * 0x1000) >> 12) - slot.base_gfn
    slot.dirty_array[bit >> 6] &= ~(1 << (bit & 63))
    named(same(auditor, box), f"I8: gfn {(gpa >> 12) + page:#x} can be written and is not in the dirty log")


@pytest.mark.parametrize("base", [0, 0x4000_3000])
def test_a_page_that_the_host_takes_is_missed(base: int) -> None:
    """The spte is that of before: kvm was told, and its entry brought back."""
    box, gpa = logged(base)
    auditor = sound(box)
    sptep, spte = box.sptep(gpa + 0x1000), box.spte(gpa + 0x1000)
    slot = box.vm.slots_of(0).search(gpa >> 12)  # type: ignore[arg-type]
    assert slot is not None
    box.world.mm.dontneed(slot.gfn_to_hva((gpa >> 12) + 1), 0x1000)  # type: ignore[arg-type]
    box.world.memory.write_once(sptep, spte)
    named(same(auditor, box), "I1: the host has 0x0 for gfn")


def test_what_the_cpu_sets_breaks_nothing() -> None:
    box = machine()
    box.log()
    box.touch(SMALL, write=False)
    auditor = sound(box)
    put(box, SMALL, box.spte(SMALL) ^ 0x60)
    assert same(auditor, box) == []
    # Not being checked, it is no excuse for what else changed then, or later.
    put(box, SMALL, box.spte(SMALL) ^ 0x60 ^ MMU_W ^ W)
    assert same(auditor, box)


def test_a_table_that_moves_is_another() -> None:
    """What an entry means, its place in the tree decides as well: the same bytes under another root, or gfn."""
    box = machine()
    auditor = sound(box)
    table = box.world.frames.owner(box.sptep(SMALL) >> 12)
    word = box.world.memory.read_once(box.sptep(SMALL, 2))
    put(box, SMALL, EMPTY, 2)
    put(box, HUGE * 3, word, 2)
    table.gfn = HUGE * 3 >> 12
    table.ptep = box.sptep(HUGE * 3, 2)
    named(same(auditor, box), "I1: the host has")


def test_a_device_entry_that_goes_is_counted_no_more() -> None:
    box = machine()
    auditor = sound(box)
    box.world.memory.write_once(box.sptep(HOLE), EMPTY)
    assert same(auditor, box) == []
    assert auditor.audit().mmio == 0


def test_of_what_is_not_present_every_bit_counts() -> None:
    """The bits that are A and D of a present entry, too."""
    box = machine()
    auditor = sound(box)
    put(box, SMALL + 0x5000, EMPTY | 0x20)
    named(same(auditor, box), "I16")


# What is believed to be as it was.


def test_what_is_believed_is_not_believed_by_a_full_audit() -> None:
    """Bookkeeping that was damaged itself hides a damage from the audits on the way, not from the one at the end."""
    box = machine()
    auditor = sound(box)
    put(box, SMALL, box.spte(SMALL) ^ 0x1000)
    survey = auditor._survey
    assert survey is not None
    spt = box.sptep(SMALL) & ~0xFFF
    now = box.world.memory.read(spt, 4096)  # type: ignore[arg-type]
    survey.known_tdp.tables[spt].words = survey.known_tlbs.tables[spt].words = now
    assert auditor.find_violations().problems == []
    named(find_violations(box.vm).problems, "I1: the host has")
    named(auditor.find_violations(full=True).problems, "I1: the host has")


# TLBs.


class Translated:
    """A guest whose TLB holds two pages, one of ``size``, and an auditor that has seen them."""

    def __init__(self, mmu: str, size: int = 4096) -> None:
        is_npt = mmu != "shadow"
        host_page = "2m" if size == SIZE_2M else "4k"
        tdp_mmu = "on" if mmu == "tdp" else "off"
        self.guest = Guest("4-level", f"host_page={host_page}", f"tdp_mmu={tdp_mmu}", npt=is_npt)
        self.world, self.vcpu, self.vm = self.guest.world, self.guest.vcpu, self.guest.world.vm
        self.gva, gpa = VA, LARGE if size == SIZE_2M else DATA
        self.guest.tables.map(self.gva, gpa, size=size, flags=RW | AD)
        self.guest.tables.map(VB, DATA + 0x2000, flags=RW | AD)
        self.guest.reload_cr3()
        for page in (self.gva, VB):
            assert self.guest.write(page) == "done"
        self.place = gpa if is_npt else self.gva
        self.auditor = Auditor(self.vm)
        assert self.auditor.audit().tlb_entries >= 2
        assert self.compare() == []

    def compare(self) -> list[str]:
        return compare(self.auditor, self.world)  # type: ignore[arg-type]

    def levels(self) -> dict[int, int]:
        """Level of each table, by where it is."""
        pages = [owner for owner in self.world.frames.all_owners() if isinstance(owner, ShadowPage)]
        return {page.spt: page.role & 15 for page in pages}

    def entry(self, level: int = 1) -> tuple[int, int]:
        """Place and word of the spte of ``level`` that translates the first page."""
        element = next(e for e in self.world.walk(self.vcpu, self.place) if e.level == level)
        return element.hpa, element.spte

    def put(self, word: int, level: int = 1) -> None:
        """Change the spte of the first page behind kvm's back: no flush follows."""
        self.world.memory.write_once(self.entry(level)[0], word)  # type: ignore[arg-type]

    def misses(self, broken: str) -> None:
        """Both audits miss the first page in the tables."""
        found = [problem for problem in self.compare() if "no flush is due" in problem]
        assert any(p.startswith(f"{broken}: vCPU 0, gva {self.gva:#x}") for p in found), found


MMUS = ["shadow", "tdp-legacy", "tdp"]


@pytest.mark.parametrize("mmu", MMUS)
def test_a_leaf_that_gives_less_than_the_tlb(mmu: str) -> None:
    machine = Translated(mmu)
    machine.put(machine.entry()[1] & ~W)
    machine.misses("I2")


@pytest.mark.parametrize("mmu", MMUS)
def test_a_leaf_that_gives_no_execution(mmu: str) -> None:
    machine = Translated(mmu)
    machine.put(machine.entry()[1] | NX)
    machine.misses("I2")


@pytest.mark.parametrize("mmu", MMUS)
def test_a_leaf_that_gives_more_takes_nothing_back(mmu: str) -> None:
    machine = Translated(mmu)
    machine.guest.vcpu.cpu.flush_all()
    machine.put(machine.entry()[1] & ~W)
    assert machine.guest.read(VB) is not None
    before = machine.compare()
    machine.put(machine.entry()[1] | W)
    assert [text for text in machine.compare() if "no flush is due" in text] == []
    assert [text for text in before if "no flush is due" in text] == []


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("word", [EMPTY, None])
def test_a_leaf_that_is_gone_or_of_another_page(mmu: str, word: int | None) -> None:
    machine = Translated(mmu)
    machine.put(machine.entry()[1] ^ 0x20_0000 if word is None else word)
    machine.misses("I1")


@pytest.mark.parametrize("mmu", MMUS)
def test_a_translation_that_no_table_has(mmu: str) -> None:
    """The tables are as they were; the TLB gained an entry."""
    machine = Translated(mmu)
    tlb = machine.vcpu.cpu.tlb
    assert tlb.peek(machine.gva) >> TR_LEVEL_SHIFT & 3 == 1
    # A frame above all that has a leaf.
    tlb.fill(machine.gva, tlb.peek(machine.gva) | 0x3F00_0000)
    machine.misses("I1")


def test_a_translation_of_another_address() -> None:
    """Under shadow paging a leaf says at which address a page may be: the same word elsewhere is wrong."""
    machine = Translated("shadow")
    tlb = machine.vcpu.cpu.tlb
    tlb.fill(machine.gva + 0x1000, tlb.peek(machine.gva))
    assert any(f"gva {machine.gva + 0x1000:#x}" in problem for problem in machine.compare())


@pytest.mark.parametrize("mmu", ["tdp-legacy", "tdp"])
def test_frames_that_are_tables_of_another_level_now(mmu: str) -> None:
    machine = Translated(mmu)
    seen = machine.levels()
    is_other = False
    for _ in range(4):
        machine.vm.slots_lock.lock()
        zap.zap_all_fast(machine.vm)
        machine.vm.slots_lock.unlock()
        roots.unload(machine.vcpu)
        # Somebody else takes a frame: what comes next has another.
        assert machine.world.frames.alloc()
        assert roots.load(machine.vcpu) == 0
        for page in (machine.gva, VB):
            assert machine.guest.write(page) == "done"
        assert machine.compare() == []
        now = machine.levels()
        is_other |= any(seen.get(spt, level) != level for spt, level in now.items())
        seen = now
    assert is_other
    machine.put(machine.entry()[1] & ~W)
    machine.misses("I2")


@pytest.mark.parametrize("mmu", ["tdp-legacy", "tdp"])
@pytest.mark.parametrize("level", [2, 3, 4])
def test_a_table_that_the_root_does_not_lead_to_any_more(mmu: str, level: int) -> None:
    machine = Translated(mmu)
    machine.put(EMPTY, level)
    machine.misses("I1")


@pytest.mark.parametrize("mmu", ["tdp-legacy", "tdp"])
def test_a_root_that_is_not_the_one_of_before(mmu: str) -> None:
    machine = Translated(mmu)
    machine.vcpu.mmu.root_hpa = machine.world.frames.zero_pfn << 12  # type: ignore[assignment]
    machine.misses("I1")


@pytest.mark.parametrize("mmu", MMUS)
def test_what_waited_for_a_flush_and_got_none(mmu: str) -> None:
    """While a flush is due nothing is wrong, and nothing is known to be right either."""
    machine = Translated(mmu)
    place, word = machine.entry()
    bit = ONE << KVM_REQ_TLB_FLUSH
    machine.put(word & ~W)
    machine.vcpu.requests |= bit
    assert [text for text in machine.compare() if "no flush is due" in text] == []
    machine.vcpu.requests &= ~bit
    machine.misses("I2")
    assert place == machine.entry()[0]


@pytest.mark.parametrize("mmu", MMUS)
def test_a_huge_leaf_that_gives_less(mmu: str) -> None:
    machine = Translated(mmu, SIZE_2M)
    assert machine.vcpu.cpu.tlb.peek(machine.gva) >> TR_LEVEL_SHIFT & 3 == 2
    machine.put(machine.entry(2)[1] & ~W, 2)
    machine.misses("I2")


def test_a_piece_of_a_split_page_that_gives_less() -> None:
    """The TLB holds the page whole, as it may, until one of the pieces says otherwise."""
    machine = Translated("tdp", SIZE_2M)
    guest = machine.guest
    tlb = machine.vcpu.cpu.tlb
    whole = tlb.peek(machine.gva)
    guest.world.mm.mprotect(guest.hva + LARGE, 0x1000, False)
    guest.world.mm.mprotect(guest.hva + LARGE, 0x1000, True)
    for page in range(512):
        guest.world.poke(LARGE + page * 0x1000, page)
    guest.tables.map(VB, LARGE + 0x1000, flags=RW | AD)
    guest.reload_cr3()
    for page in range(512):
        assert guest.write(machine.gva + page * 0x1000) == "done"
    assert machine.entry(1)[1]
    tlb.flush_all()
    tlb.fill(machine.gva, whole)
    assert machine.compare() == []
    machine.put(machine.entry(1)[1] & ~W)
    machine.misses("I1")


def test_a_page_of_a_gigabyte_that_gives_less() -> None:
    box = Tdp("host_page=1g", memory=2 * SIZE_1G, nr_frames=(3 * SIZE_1G + (64 << 20)) >> 12)
    box.touch(0x1000, SIZE_1G - 0x1000)
    assert box.vcpu.cpu.tlb.peek(0x1000) >> TR_LEVEL_SHIFT & 3 == 3  # type: ignore[arg-type]
    auditor = sound(box)
    put(box, 0, box.spte(0) & ~W, 3)
    named(same(auditor, box), "I2: vCPU 0, gva 0x0")


def test_a_small_translation_of_a_page_of_a_gigabyte_that_gives_less() -> None:
    """Guest tables of 4K pages: what the TLB holds is small, and lies far from the beginning of the leaf."""
    box = Tdp("host_page=1g", memory=2 * SIZE_1G, nr_frames=(3 * SIZE_1G + (64 << 20)) >> 12)
    box.touch(0x1000)
    tlb = box.vcpu.cpu.tlb
    huge = tlb.peek(0x1000)  # type: ignore[arg-type]
    tlb.flush_all()
    gpa = SIZE_1G - 0x1000
    tlb.fill(gpa, (huge ^ 3 << TR_LEVEL_SHIFT ^ ONE << TR_LEVEL_SHIFT) + gpa)  # type: ignore[arg-type]
    auditor = sound(box)
    put(box, 0, box.spte(0) & ~W, 3)
    named(same(auditor, box), f"I2: vCPU 0, gva {gpa:#x}")


def test_a_piece_of_a_split_page_of_a_gigabyte_that_gives_less() -> None:
    """The host split its page; kvm maps the pieces, of 2M but for the first 512, and the TLB holds the page whole."""
    box = Tdp("host_page=1g", memory=2 * SIZE_1G, nr_frames=(3 * SIZE_1G + (64 << 20)) >> 12)
    box.touch(0)
    tlb = box.vcpu.cpu.tlb
    whole = tlb.peek(0)  # type: ignore[arg-type]
    for writable in (False, True):
        box.world.mm.mprotect(box.hva, 0x1000, writable)
    box.touch(*range(0, SIZE_2M, 0x1000), *range(SIZE_2M, SIZE_1G, SIZE_2M))
    assert [level for level, _ in box.way(SIZE_1G // 2)][-1] == 2
    tlb.flush_all()
    tlb.fill(0, whole)  # type: ignore[arg-type]
    auditor = sound(box)
    assert auditor.audit().tlb_entries == 1
    put(box, SIZE_1G // 2, box.spte(SIZE_1G // 2) & ~W, 2)
    named(same(auditor, box), "I1: vCPU 0, gva 0x0")
