# SPDX-License-Identifier: GPL-2.0-only
"""The host's address space: faults, copy on write, borders, and who hears of it."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from host.spaces import M2, make, pfn_of
from kvmmu.errors import OutOfFrames, UserError
from kvmmu.host.bits import (
    GUP_ERRORS,
    GUP_NO_VMA,
    GUP_READ_ONLY,
    MMAP_BASE,
    NO_HPA,
    NO_PFN,
    VM_FAULT_NO_VMA,
    VM_FAULT_OK,
    VM_FAULT_READ_ONLY,
)


def test_an_untouched_page_is_not_mapped_and_has_level_1() -> None:
    mm, _ = make()
    hva = mm.mmap(0x3000)
    assert hva == MMAP_BASE
    assert (mm.hpte(hva), mm.mapping_level(hva)) == (0, 1)
    assert mm.gup_fast(hva, False) == NO_PFN


def test_gup_fast_takes_a_reference_only_when_it_finds_the_page() -> None:
    mm, _ = make()
    hva = mm.mmap(0x1000)
    mm.fault_in(hva, True)
    pfn = pfn_of(mm, hva)
    assert mm.frames.nr_refs(pfn) == 1
    assert mm.gup_fast(hva, True) == pfn
    assert mm.frames.nr_refs(pfn) == 2


def test_what_the_process_may_not_do_comes_back_as_a_value() -> None:
    mm, _ = make()
    hva = mm.mmap(0x1000)
    mm.mprotect(hva, 0x1000, False)
    assert mm.gup(hva, True) == GUP_READ_ONLY >= GUP_ERRORS
    assert mm.fault_in(hva, True) == VM_FAULT_READ_ONLY
    assert mm.user_access(hva, True) == NO_HPA
    for outside in (hva - 1, hva + 0x1000, 0, 0xFFFF_FFFF_FFFF_FFFF):
        assert mm.gup(outside, False) == GUP_NO_VMA >= GUP_ERRORS
        assert mm.fault_in(outside, False) == VM_FAULT_NO_VMA
        assert mm.user_access(outside, False) == NO_HPA
        assert mm.gup_fast(outside, False) == NO_PFN
        assert mm.hpte(outside) == 0
        assert mm.find_vma(outside) is None
    assert mm.fault_in(hva, False) == VM_FAULT_OK


def test_user_access_gives_the_byte_and_faults_it_in() -> None:
    mm, chain = make()
    hva = mm.mmap(0x2000)
    read = mm.user_access(hva + 0x1FFF, False)
    assert read == (mm.frames.zero_pfn << 12) + 0xFFF
    hpa = mm.user_access(hva + 0x1FF8, True)
    assert hpa >> 12 == pfn_of(mm, hva + 0x1000) != mm.frames.zero_pfn
    assert hpa & 0xFFF == 0xFF8
    assert mm.user_access(hva + 0x1FF8, False) == hpa
    assert mm.frames.nr_refs(hpa >> 12) == 1
    assert chain.ranges() == [(hva + 0x1000, hva + 0x2000)]


def test_populate_backs_everything_with_the_largest_pages() -> None:
    mm, chain = make()
    hva = mm.mmap(2 * M2 + 0x3000, page_level=2, populate=True)
    assert [mm.mapping_level(hva + n) for n in (0, M2, 2 * M2, 2 * M2 + 0x2000)] == [2, 2, 1, 1]
    assert mm.hpte(hva + 2 * M2 + 0x2000)
    assert not chain.events
    with pytest.raises(OutOfFrames):
        mm.mmap(64 * M2, populate=True)


def test_munmap_tells_first_and_returns_every_frame() -> None:
    mm, chain = make()
    free = mm.frames.nr_free
    hva = mm.mmap(M2 + 0x4000, page_level=2, populate=True)
    mm.munmap(hva, M2 + 0x4000)
    assert chain.ranges() == [(hva, hva + M2 + 0x4000)]
    assert mm.frames.nr_free == free
    assert mm.find_vma(hva) is None
    assert not mm.table.pte_tables
    assert not mm.table.pmd_tables


def test_mprotect_takes_write_permission_between_start_and_end() -> None:
    mm, chain = make()
    hva = mm.mmap(0x4000, populate=True)
    pfn = pfn_of(mm, hva + 0x1000)
    mm.mprotect(hva + 0x1000, 0x2000, False)
    assert chain.ranges() == [(hva + 0x1000, hva + 0x3000)]
    assert [mm.hpte(hva + n * 0x1000) & 3 for n in range(4)] == [3, 1, 1, 3]
    assert len(mm.vmas) == 3
    mm.mprotect(hva + 0x1000, 0x2000, True)
    assert [mm.hpte(hva + n * 0x1000) & 3 for n in range(4)] == [3, 3, 3, 3]
    assert pfn_of(mm, hva + 0x1000) == pfn
    assert len(mm.vmas) == 1


def test_mprotect_of_what_is_not_touched_yet_tells_nobody() -> None:
    mm, chain = make()
    hva = mm.mmap(M2 * 2, page_level=2)
    mm.mprotect(hva + 0x1000, 0x2000, False)
    assert not chain.events


def test_mprotect_that_changes_nothing_cuts_nothing() -> None:
    mm, chain = make()
    hva = mm.mmap(M2, page_level=2, populate=True)
    mm.mprotect(hva + 0x1000, 0x1000, True)
    assert not chain.events
    assert mm.mapping_level(hva) == 2


def test_a_border_announces_the_whole_block_even_without_a_huge_page() -> None:
    mm, chain = make()
    hva = mm.mmap(3 * M2, page_level=1, align=M2)
    mm.fault_in(hva, True)
    mm.mprotect(hva + M2 + 0x1000, M2, False)
    assert chain.ranges() == [
        (hva + M2, hva + 2 * M2),
        (hva + 2 * M2, hva + 3 * M2),
        (hva + M2 + 0x1000, hva + 2 * M2 + 0x1000),
    ]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda mm: mm.mmap(0), "multiple of 0x1000"),
        (lambda mm: mm.mmap(0x1001), "0x1001"),
        (lambda mm: mm.mmap(0x1000, "hugetlb"), "hugetlb"),
        (lambda mm: mm.mmap(0x1000, page_level=4), "page_level 4"),
        (lambda mm: mm.mmap(0x1000, align=0x1800), "0x1800"),
        (lambda mm: mm.mmap(1 << 47), "no such gap below 0x7ffffffff000"),
        (lambda mm: mm.munmap(0x1000, 0x1000), "nothing is mapped"),
        (lambda mm: mm.munmap(0x1001, 0x1000), "multiples"),
        (lambda mm: mm.mprotect(0x1000, 0x1000, False), "not mapped"),
        (lambda mm: mm.clear_young(0x1000, 0x1000), "not mapped"),
        (lambda mm: mm.clear_flush_young(0x1000, 0x1000), "not mapped"),
        (lambda mm: mm.populate(mm.mmap(0x1000), 0x2000), "not mapped"),
        (lambda mm: mm.populate(mm.mmap(0x1000), 0x800), "multiples"),
    ],
)
def test_misuse_is_one_line_that_names_the_value(call, text: str) -> None:
    mm, _ = make()
    with pytest.raises(UserError, match=text):
        call(mm)


class AddressSpace(RuleBasedStateMachine):
    """Random life of an address space; the model knows for each page its protection and its content."""

    def __init__(self) -> None:
        super().__init__()
        self.mm, self.chain = make(1 << 13)
        self.total = self.mm.frames.nr_free
        self.pages: dict[int, bool] = {}  # page -> writable
        self.bytes: dict[int, int] = {}  # page -> its first word, where it was written

    def snapshot(self) -> dict[int, int]:
        return {page: self.mm.hpte(page) for page in self.pages}

    def check_told(self, before: dict[int, int]) -> None:
        """Whoever used a page by its old word was told, unless it only gained permission or lost size."""
        told = self.chain.ranges()
        for page, old in before.items():
            new = self.mm.hpte(page) if page in self.pages else 0
            same_frame = new & 0x000F_FFFF_FFFF_F000 == old & 0x000F_FFFF_FFFF_F000
            if old & 1 and not (same_frame and new & 1 and new & 2 >= old & 2):
                assert any(start <= page < end for start, end in told), hex(page)
        self.chain.events.clear()

    @rule(nr=st.integers(1, 1100), backing=st.sampled_from(["anonymous", "shared"]), level=st.sampled_from([1, 2]))
    def mmap(self, nr: int, backing: str, level: int) -> None:
        if len(self.pages) > 3000:
            return
        hva = self.mm.mmap(nr * 4096, backing, level)
        for n in range(nr):
            assert hva + n * 4096 not in self.pages
            self.pages[hva + n * 4096] = True

    def run_of(self, data: st.DataObject) -> list[int]:
        """Some mapped pages in a row."""
        pages = sorted(self.pages)
        at = data.draw(st.integers(0, len(pages) - 1))
        length = data.draw(st.sampled_from([1, 2, 3, 500, 512, 1024]))
        run = [pages[at]]
        while len(run) < length and run[-1] + 4096 in self.pages:
            run.append(run[-1] + 4096)
        return run

    @precondition(lambda self: self.pages)
    @rule(data=st.data())
    def munmap(self, data: st.DataObject) -> None:
        run, before = self.run_of(data), self.snapshot()
        self.mm.munmap(run[0], len(run) * 4096)
        for page in run:
            del self.pages[page]
            self.bytes.pop(page, None)
            assert self.mm.find_vma(page) is None
        self.check_told(before)

    @precondition(lambda self: self.pages)
    @rule(data=st.data(), writable=st.booleans())
    def mprotect(self, data: st.DataObject, writable: bool) -> None:
        run, before = self.run_of(data), self.snapshot()
        self.mm.mprotect(run[0], len(run) * 4096, writable)
        for page in run:
            self.pages[page] = writable
        self.check_told(before)

    @precondition(lambda self: self.pages)
    @rule(data=st.data(), value=st.integers(1, 2**64 - 1))
    def write(self, data: st.DataObject, value: int) -> None:
        for page in self.run_of(data)[:3]:
            before = self.snapshot()
            hpa = self.mm.user_access(page, True)
            if not self.pages[page]:
                assert hpa == NO_HPA
            else:
                assert hpa >> 12 != self.mm.frames.zero_pfn
                self.mm.memory.write_once(hpa, value)
                self.bytes[page] = value
            self.check_told(before)

    @precondition(lambda self: self.pages)
    @rule(data=st.data(), write=st.booleans())
    def gup(self, data: st.DataObject, write: bool) -> None:
        page = self.run_of(data)[0]
        before = self.snapshot()
        pfn = self.mm.gup(page, write)
        if write and not self.pages[page]:
            assert pfn == GUP_READ_ONLY
        else:
            assert pfn == pfn_of(self.mm, page)
            assert self.mm.gup_fast(page, write) == pfn
            self.mm.frames.put(pfn)
            self.mm.frames.put(pfn)
        self.check_told(before)

    @precondition(lambda self: self.pages)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        for page in self.run_of(data)[:50]:
            hpa = self.mm.user_access(page, False)
            assert self.mm.memory.read_once(hpa) == self.bytes.get(page, 0)
        self.chain.events.clear()

    @rule()
    def every_frame_is_accounted_for(self) -> None:
        """A block stays whole until the last of its pages is unmapped; so count blocks, not pages."""
        heads: dict[int, int] = {}
        for page in self.pages:
            hpte, pfn = self.mm.hpte(page), pfn_of(self.mm, page)
            writable = bool(hpte & 2)
            assert not writable or self.pages[page]
            if hpte and pfn != self.mm.frames.zero_pfn:
                head = self.mm.frames.head(pfn)
                covers = 1 if hpte >> 3 & 3 == 1 else 1 / 512
                heads[head] = heads.get(head, 0) + covers
        for head, nr in heads.items():
            assert self.mm.frames.nr_refs(head) == nr
        is_block = [self.mm.frames.flags_of(head) & 8 for head in heads]
        assert self.total - self.mm.frames.nr_free == sum(512 if block else 1 for block in is_block)


TestAddressSpace = AddressSpace.TestCase
TestAddressSpace.settings = settings(max_examples=25, stateful_step_count=25)


def test_a_fixed_mapping_takes_the_place_of_what_is_there() -> None:
    mm, chain = make()
    hva = mm.mmap(0x4000, populate=True)
    free = mm.frames.nr_free
    mm.mmap_fixed(hva + 0x1000, 0x2000)
    assert chain.ranges() == [(hva + 0x1000, hva + 0x3000)]
    assert mm.frames.nr_free == free + 2
    assert [bool(mm.hpte(hva + n)) for n in range(0, 0x4000, 0x1000)] == [True, False, False, True]
    assert mm.fault_in(hva + 0x1000, True) == VM_FAULT_OK
    # Where nothing is mapped nobody needs to hear of it, and later mappings begin where they would have.
    mm.munmap(hva, 0x1000)
    chain.events.clear()
    mm.mmap_fixed(hva, 0x1000)
    assert not chain.events
    assert mm.mmap(0x1000) > hva + 0x4000


def test_huge_pages_can_be_forbidden_and_allowed_for_a_range() -> None:
    mm, chain = make()
    hva = mm.mmap(3 * M2, page_level=2)
    mm.allow_huge(hva + M2, M2, 1)
    mm.populate(hva, 3 * M2)
    assert [mm.mapping_level(hva + n * M2) for n in range(3)] == [2, 1, 2]
    mm.allow_huge(hva, 3 * M2, 1)
    assert mm.mapping_level(hva) == 2
    mm.dontneed(hva, 3 * M2)
    mm.allow_huge(hva, M2, 2)
    mm.populate(hva, 2 * M2)
    assert [mm.mapping_level(hva + n * M2) for n in range(2)] == [2, 1]
    assert len(chain.ranges()) == 3


def test_the_huge_zero_page_is_split_by_the_first_write() -> None:
    mm, chain = make()
    hva = mm.mmap(2 * M2, page_level=2)
    mm.fault_in(hva, False)
    assert mm.mapping_level(hva) == 1
    mm.munmap(hva, 2 * M2)
    mm.table.has_huge_zero = True
    free = mm.frames.nr_free
    hva = mm.mmap(2 * M2, page_level=2)
    chain.events.clear()
    mm.fault_in(hva + 0x5000, False)
    mm.fault_in(hva + M2, False)
    assert [mm.mapping_level(hva), mm.mapping_level(hva + M2)] == [2, 2]
    # One block backs both, and it belongs to nobody.
    assert mm.frames.nr_free == free - 512
    assert mm.user_access(hva + 0x5004, False) == mm.user_access(hva + M2 + 0x5004, False)
    assert mm.gup_fast(hva, True) == NO_PFN
    assert not chain.events
    mm.fault_in(hva + 0x3000, True)
    assert chain.ranges() == [(hva, hva + M2), (hva + 0x3000, hva + 0x4000)]
    assert mm.mapping_level(hva + 0x5000) == 1
    assert mm.user_access(hva + 0x5000, False) >> 12 == mm.frames.zero_pfn
    mm.mprotect(hva, 2 * M2, False)
    mm.mprotect(hva, 2 * M2, True)
    assert mm.gup_fast(hva + M2, True) == NO_PFN
    chain.events.clear()
    mm.dontneed(hva + M2 + 0x1000, 0x1000)
    assert ("start", hva + M2, hva + 2 * M2) in chain.events
    mm.munmap(hva, 2 * M2)
    assert mm.frames.nr_free == free - 512
