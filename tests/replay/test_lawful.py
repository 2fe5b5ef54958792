# SPDX-License-Identifier: GPL-2.0-only
"""Where machine and model hold different translations: accepted if both were valid since the flush, else a mismatch.

What the machine did is what the recording says; what the model holds comes of playing it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from kvmmu.hw import tlb as tlb_room
from kvmmu.hw.bits import CR4_PAE, CR4_PCIDE, CR4_PGE
from kvmmu.record import format as f
from kvmmu.record.encoder import Registers
from kvmmu.record.reader import Reader
from kvmmu.replay import lawful, past
from kvmmu.replay.lawful import Judge, Lawful
from kvmmu.replay.machine import build_machine
from kvmmu.replay.player import Player
from kvmmu.replay.replay import MMUS, Options, replay
from kvmmu.replay.result import Result
from replay.small import CR3, DEVICE, HEADER, LONG, TABLE, Small, leaves, table

Fill = Callable[[Small], None]
MMU = pytest.mark.parametrize("mmu", MMUS)
GVA = 0x20000
ENTRY = TABLE + 8 * 0x20
GLOBAL = 0x100
PAGED = LONG._replace(cr4=CR4_PAE | CR4_PGE)
TAGGED = LONG._replace(cr4=CR4_PAE | CR4_PGE | CR4_PCIDE)
PCID_HEADER = f.Header(HEADER.cpus, HEADER.memory, maxphyaddr=40, features=(*HEADER.features, "pcid"))


def play(tmp_path: Path, mmu: str, fill: Fill, header: f.Header = HEADER) -> Result:
    with Small(tmp_path / "small.kmr", header) as small:
        fill(small)
    return replay(small.path, Options(mmu))


def edit(small: Small, gpa: int, flags: int = 0x67) -> None:
    """The guest lets GVA's entry point at ``gpa``."""
    small.store(ENTRY, gpa | flags)


def regs(small: Small, what: int, registers: Registers, cpu: int = 0) -> None:
    small.encoder.set_regs(cpu, what, registers)


def found(result: Result) -> tuple[int, int]:
    return result.mismatches, result.tlb_differences


@MMU
def test_an_edit_without_a_flush_is_accepted(tmp_path: Path, mmu: str) -> None:
    def fill(small: Small) -> None:
        small.read(GVA)
        edit(small, 0x21000)
        small.read(GVA, 0x21000)
        edit(small, 0x22000)
        small.read(GVA, 0x22000)
        small.encoder.invlpg(0, GVA)
        small.read(GVA, 0x22000)

    result = play(tmp_path, mmu, fill)
    assert result.mismatches == 0
    if mmu == "none":
        assert result.tlb_differences == 2
    assert result.to_json()["tlb_differences"] == result.tlb_differences


@MMU
def test_a_machine_that_kept_what_the_model_dropped_is_accepted(tmp_path: Path, mmu: str) -> None:
    """The recording has the old translation, the model (which never saw it used) walks to the new one."""

    def fill(small: Small) -> None:
        edit(small, 0x21000)
        small.read(GVA, GVA)

    assert found(play(tmp_path, mmu, fill)) == (0, 1)


@MMU
def test_a_machine_that_kept_an_entry_that_is_gone_is_accepted(tmp_path: Path, mmu: str) -> None:
    """The model gets a page fault, since the entry is not present any more; or since it allows less."""

    def fill(small: Small) -> None:
        edit(small, 0, 0)
        small.read(GVA)
        edit(small, GVA, 0x63)
        small.read(GVA, access=f.K_USER)
        edit(small, GVA, 0x65)
        small.read(GVA, access=f.K_USER | f.K_WRITE)
        edit(small, GVA, 0x67)
        small.read(GVA, access=f.K_USER | f.K_WRITE)

    assert found(play(tmp_path, mmu, fill)) == (0, 3)


@MMU
@pytest.mark.parametrize("flush", ["invlpg", "cr3", "cr4"])
def test_what_was_valid_before_the_flush_is_a_mismatch(tmp_path: Path, mmu: str, flush: str) -> None:
    """As if the machine had dropped the flush."""

    def fill(small: Small) -> None:
        small.read(GVA)
        edit(small, 0x21000)
        if flush == "invlpg":
            small.encoder.invlpg(0, GVA)
        elif flush == "cr3":
            small.flush()
        else:
            regs(small, f.W_CR4, PAGED)
        small.read(GVA, GVA)

    result = play(tmp_path, mmu, fill)
    assert found(result) == (1, 0)
    assert result.details[0].lawful == ["gpa 0x21000 wux"]


@MMU
def test_an_invlpg_of_another_page_covers_nothing_else(tmp_path: Path, mmu: str) -> None:
    def fill(small: Small) -> None:
        edit(small, 0x21000)
        small.encoder.invlpg(0, GVA + 0x1000)
        small.read(GVA, GVA)

    assert found(play(tmp_path, mmu, fill)) == (0, 1)


@MMU
def test_a_flush_of_one_cpu_covers_no_other(tmp_path: Path, mmu: str) -> None:
    def fill(small: Small) -> None:
        small.boot(1)
        edit(small, 0x21000)
        small.encoder.invlpg(0, GVA)
        small.read(GVA, GVA, cpu=1)
        small.read(GVA, GVA, cpu=0)

    assert found(play(tmp_path, mmu, fill)) == (1, 1)


@MMU
@pytest.mark.parametrize("hidden", [f.K_INVLPG, f.K_REGS])
def test_a_model_that_drops_a_flush_is_caught(tmp_path: Path, mmu: str, hidden: int) -> None:
    """The player plays a recording in which a flush is something harmless; the judge reads the one that has it."""
    for name in ("deaf.kmr", "whole.kmr"):
        with Small(tmp_path / name) as small:
            small.read(GVA)
            edit(small, 0x21000)
            if name == "deaf.kmr":
                small.encoder.invlpg(0, 0x80000)
            elif hidden == f.K_INVLPG:
                small.encoder.invlpg(0, GVA)
            else:
                small.flush()
            small.read(GVA, 0x21000)
    for name, expected in (("deaf.kmr", (0, 1)), ("whole.kmr", (1, 0))):
        with Reader(str(tmp_path / "deaf.kmr")) as reader:
            player = Player(reader, build_machine(reader.header, Options(mmu).params()))
            player.judge = Judge(str(tmp_path / name), reader.header)
            player.play(reader.total)
            player.close()
            # Where kvm emulated the edit, it flushed by itself.
            if mmu == "none" or player.mismatches + player.tlb_differences:
                assert (player.mismatches, player.tlb_differences) == expected


@MMU
def test_a_translation_that_never_was_is_a_mismatch_and_names_the_tlb(tmp_path: Path, mmu: str) -> None:
    def fill(small: Small) -> None:
        small.read(GVA)
        edit(small, 0x21000)
        small.read(GVA, 0x24000)

    result = play(tmp_path, mmu, fill)
    assert found(result) == (1, 0)
    text = "\n".join(result.details[0].lines())
    assert "the CPU's TLB: holds 4K at hpa 0x" in text
    assert "gpa 0x21000 wux\n    gpa 0x20000 wux (older)" in text


def test_the_tlb_word_in_a_mismatch_is_the_old_one(tmp_path: Path) -> None:
    """Both walks end at the new frame; only the TLB shows where the access went."""

    def fill(small: Small) -> None:
        small.read(GVA)
        edit(small, 0x21000)
        small.read(GVA, 0x24000)

    mismatch = play(tmp_path, "none", fill).details[0]
    assert mismatch.hardware_walk[-1] == "hpa 0x21000"
    assert mismatch.tlb == "holds 4K at hpa 0x20000, W|U|HW|X|D"


@MMU
def test_a_tlb_that_holds_nothing_says_so(tmp_path: Path, mmu: str) -> None:
    result = play(tmp_path, mmu, lambda small: small.read(0x101000))
    assert result.details[0].tlb == "holds nothing for it"


@MMU
def test_global_pages_survive_a_cr3_load_and_not_an_invlpg(tmp_path: Path, mmu: str) -> None:
    def fill(small: Small) -> None:
        edit(small, GVA, 0x67 | GLOBAL)
        regs(small, f.W_CR4, PAGED)
        small.read(GVA)
        edit(small, 0x21000, 0x67 | GLOBAL)
        regs(small, f.W_CR3, PAGED)
        small.read(GVA, GVA)
        small.encoder.invlpg(0, GVA)
        small.read(GVA, GVA)

    result = play(tmp_path, mmu, fill)
    assert result.mismatches == 1
    assert result.details[0].position == result.position - 1


@MMU
def test_global_pages_do_not_survive_a_change_of_pge(tmp_path: Path, mmu: str) -> None:
    def fill(small: Small) -> None:
        edit(small, GVA, 0x67 | GLOBAL)
        regs(small, f.W_CR4, PAGED)
        edit(small, 0x21000, 0x67 | GLOBAL)
        regs(small, f.W_CR4, LONG)
        small.read(GVA, GVA)

    assert found(play(tmp_path, mmu, fill)) == (1, 0)


def second_space(small: Small, leaf: int) -> int:
    """Tables of another address space: the same but for GVA, which is at ``leaf``; return its root."""
    for gpa, entries in (
        (0x14000, {0: 0x15027}),
        (0x15000, {0: 0x16027}),
        (0x16000, {0: 0x17027}),
        (0x17000, leaves() | {0x20: leaf}),
    ):
        small.encoder.snapshot(0, gpa, table(entries))
    return 0x14000


@MMU
@pytest.mark.parametrize("flag", [0, GLOBAL])
def test_another_root_lends_only_its_global_pages(tmp_path: Path, mmu: str, flag: int) -> None:
    def fill(small: Small) -> None:
        edit(small, GVA, 0x67 | flag)
        regs(small, f.W_CR4, PAGED)
        root = second_space(small, 0x21067 | flag)
        regs(small, f.W_CR3, PAGED._replace(cr3=root))
        small.read(GVA, GVA)

    assert found(play(tmp_path, mmu, fill)) == ((0, 1) if flag else (1, 0))


@MMU
@pytest.mark.parametrize("flush", ["none", "address", "elsewhere", "context", "other", "all", "non-global"])
def test_pcids_are_flushed_apart(tmp_path: Path, mmu: str, flush: str) -> None:
    """INVPCID of the page's PCID, or of all, covers it; of another PCID, or another page, it does not."""
    kinds = {
        "address": (0, 1, GVA),
        "elsewhere": (0, 1, GVA + 0x1000),
        "context": (1, 1, 0),
        "other": (1, 2, 0),
        "all": (2, 0, 0),
        "non-global": (3, 0, 0),
    }

    def fill(small: Small) -> None:
        regs(small, f.W_CR4, TAGGED)
        regs(small, f.W_CR3, TAGGED._replace(cr3=CR3 | 1))
        edit(small, 0x21000)
        if flush in kinds:
            small.encoder.invpcid(0, *kinds[flush])
        small.read(GVA, GVA)

    result = play(tmp_path, mmu, fill, PCID_HEADER)
    assert found(result) == ((0, 1) if flush in ("none", "other", "elsewhere") else (1, 0))


@MMU
@pytest.mark.parametrize("flush", ["address", "context", "all", "non-global"])
def test_invpcid_spares_global_pages_unless_it_is_of_all(tmp_path: Path, mmu: str, flush: str) -> None:
    kinds = {"address": (0, 0, GVA), "context": (1, 0, 0), "all": (2, 0, 0), "non-global": (3, 0, 0)}

    def fill(small: Small) -> None:
        regs(small, f.W_CR4, TAGGED)
        edit(small, GVA, 0x67 | GLOBAL)
        edit(small, 0x21000, 0x67 | GLOBAL)
        small.encoder.invpcid(0, *kinds[flush])
        small.read(GVA, GVA)

    assert found(play(tmp_path, mmu, fill, PCID_HEADER)) == ((1, 0) if flush == "all" else (0, 1))


@MMU
def test_another_pcid_lends_only_its_global_pages(tmp_path: Path, mmu: str) -> None:
    def fill(small: Small) -> None:
        regs(small, f.W_CR4, TAGGED)
        regs(small, f.W_CR3, TAGGED._replace(cr3=CR3 | 1))
        small.store(TABLE + 8 * 0x21, 0x21067 | GLOBAL)
        root = second_space(small, 0x22067)
        regs(small, f.W_CR3, TAGGED._replace(cr3=root | 2))
        small.store(0x17000 + 8 * 0x21, 0x23067)
        small.read(GVA + 0x1000, 0x21000)
        small.read(GVA, GVA)

    result = play(tmp_path, mmu, fill, PCID_HEADER)
    assert found(result) == (1, 1)
    assert result.details[0].gva == GVA


@MMU
def test_a_cr3_load_flushes_its_pcid(tmp_path: Path, mmu: str) -> None:
    def fill(small: Small) -> None:
        regs(small, f.W_CR4, TAGGED)
        edit(small, 0x21000)
        regs(small, f.W_CR3, TAGGED)
        small.read(GVA, GVA)

    assert found(play(tmp_path, mmu, fill, PCID_HEADER)) == (1, 0)


@MMU
def test_an_upper_entry_may_be_kept(tmp_path: Path, mmu: str) -> None:
    """The directory points elsewhere now; the old table's entries may be used, also those written since."""

    def fill(small: Small) -> None:
        small.encoder.snapshot(0, 0x17000, table(leaves() | {0x20: 0x25067}))
        small.store(0x12000, 0x17067)
        small.read(GVA, 0x20000)
        edit(small, 0x23000)
        small.read(GVA, 0x23000)

    assert found(play(tmp_path, mmu, fill)) == (0, 2)


@MMU
def test_a_kept_upper_entry_ends_with_any_invlpg(tmp_path: Path, mmu: str) -> None:
    """INVLPG drops the paging-structure caches: what is written after it is not found through an older one."""

    def fill(small: Small) -> None:
        small.encoder.snapshot(0, 0x17000, table(leaves() | {0x20: 0x25067}))
        small.store(0x12000, 0x17067)
        small.encoder.invlpg(0, 0x30000)
        edit(small, 0x23000)
        small.read(GVA, 0x23000)

    assert found(play(tmp_path, mmu, fill)) == (1, 0)


@MMU
def test_an_old_leaf_under_a_new_directory_is_no_translation(tmp_path: Path, mmu: str) -> None:
    """A walk reads downwards: what the table held before the directory pointed at it was never a translation."""

    def fill(small: Small) -> None:
        small.encoder.snapshot(0, 0x17000, table(leaves() | {0x20: 0x25067}))
        small.store(0x17000 + 8 * 0x20, 0x26067)
        small.store(0x12000, 0x17067)
        small.read(GVA, 0x25000)

    assert found(play(tmp_path, mmu, fill)) == (1, 0)


@MMU
def test_a_store_goes_where_the_machine_stored(tmp_path: Path, mmu: str) -> None:
    """The guest edits a table through a page whose translation it has changed: the next walk finds the new entry."""
    spare = 0x40 << 12

    def fill(small: Small) -> None:
        small.read(spare)
        small.store(TABLE + 8 * 0x40, TABLE | 0x67)
        data = (0x21067).to_bytes(8, "little")
        small.encoder.store(0, f.K_WRITE, spare + 8 * 0x20, ENTRY, data)
        small.encoder.invlpg(0, GVA)
        small.read(GVA, 0x21000)

    result = play(tmp_path, mmu, fill)
    assert (result.mismatches, result.stores) == (0, 2)
    if mmu == "none":
        assert result.tlb_differences == 1


@MMU
def test_a_device_that_a_page_became_is_accepted(tmp_path: Path, mmu: str) -> None:
    def fill(small: Small) -> None:
        small.read(GVA)
        edit(small, DEVICE)
        small.encoder.mmio(0, 0, GVA, DEVICE, bytes(4))
        small.encoder.mmio(0, f.K_WRITE, GVA, DEVICE, bytes(4))

    assert play(tmp_path, mmu, fill).mismatches == 0


@pytest.mark.parametrize("mmu", ["shadow", "tdp-legacy"])
def test_memory_that_a_device_became_is_accepted(tmp_path: Path, mmu: str) -> None:
    """The model goes to the device, from its tables; the machine still had the memory. And the other way round."""

    def fill(small: Small) -> None:
        edit(small, DEVICE)
        small.read(GVA, GVA)
        small.read(GVA, GVA, access=f.K_WRITE)
        edit(small, 0x21000)
        small.encoder.mmio(0, 0, GVA, DEVICE, bytes(4))

    # Under shadow paging kvm's MMIO spte outlives the edit of the unsync table, as QEMU's device entry does.
    assert found(play(tmp_path, mmu, fill)) == (0, 2 if mmu == "shadow" else 3)


@MMU
def test_32_bit_tables_and_pdptes(tmp_path: Path, mmu: str) -> None:
    """Entries of 4 bytes; and PDPTEs as they were when CR3 was loaded, whatever memory holds since."""

    def fill(small: Small) -> None:
        entries = b"".join((index << 12 | 0x67).to_bytes(4, "little") for index in range(1024))
        small.encoder.snapshot(0, 0x30000, (0x31067).to_bytes(4, "little") + bytes(4092))
        small.encoder.snapshot(0, 0x31000, entries)
        regs(small, f.W_INIT, Registers(0x8001_0011, 0x30000, 0x10, 0, 0))
        small.read(GVA + 0x1000)
        small.store(0x31000 + 4 * 0x21, 0x22067, size=4)
        small.read(GVA + 0x1000, 0x22000)
        small.read(GVA, GVA)
        small.encoder.snapshot(0, 0x32000, table({0: 0x33001}))
        small.encoder.snapshot(0, 0x33000, table({0: 0x34067}))
        small.encoder.snapshot(0, 0x34000, table(leaves()))
        regs(small, f.W_INIT, Registers(0x8001_0011, 0x32000, 0x20, 0, 0))
        small.read(GVA)
        small.encoder.snapshot(0, 0x35000, table({0: 0x36067}))
        small.encoder.snapshot(0, 0x36000, table(leaves() | {0x20: 0x26067}))
        small.store(0x32000, 0x35001)
        small.read(GVA, 0x26000)

    result = play(tmp_path, mmu, fill)
    assert result.mismatches == 1
    assert result.details[0].lawful == ["gpa 0x20000 wux"]


@MMU
def test_what_is_forgotten_is_not_accepted(tmp_path: Path, mmu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "MOST_VALUES", 8)

    def fill(small: Small) -> None:
        edit(small, 0x21000)
        for number in range(30):
            small.store(TABLE + 8 * 0x50, number << 12 | 0x67)
        small.read(GVA, GVA)
        small.read(0x50000, 28 << 12)

    result = play(tmp_path, mmu, fill)
    assert found(result) == (1, 1)


@pytest.mark.parametrize("bound", ["MOST_PAGES", "MOST_DROPS", "MOST_ROOTS"])
def test_bounds_of_flushes_and_roots_never_allow_more(
    tmp_path: Path, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past, bound, 8)

    def fill(small: Small) -> None:
        edit(small, 0x21000)
        small.encoder.invlpg(0, GVA)
        for number in range(40):
            small.encoder.invlpg(0, 0x30000 + (number << 12))
            regs(small, f.W_CR3, LONG._replace(cr3=CR3 | (number & 7) << 3))
        small.read(GVA, GVA)

    assert found(play(tmp_path, "none", fill)) == (1, 0)


def test_a_question_costs_a_bounded_number_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lawful, "MOST_STEPS", 3)
    with Small(tmp_path / "small.kmr") as small:
        small.read(GVA)
    with Reader(str(small.path)) as reader:
        while reader.position < reader.total:
            reader.next()
        judge = Judge(str(small.path), reader.header)
        assert list(judge.lawful(reader)) == []
        monkeypatch.setattr(lawful, "MOST_STEPS", 4)
        assert list(judge.lawful(reader)) == [Lawful(GVA, True, True, True, 0, True)]
        judge.past.close()


UPPER = 0x12000


def edit_one(small: Small, number: int) -> int:
    """The leaf comes to map one of two pages in turn, or a page of its own each time; return the page."""
    page = (0x21 + number % 2 if number % 4 < 2 else 0x21 + number // 4 % 0xC0) << 12
    edit(small, page)
    return page


def edit_directory(small: Small, number: int) -> int:
    """The directory comes to link one of two tables in turn."""
    small.store(UPPER, (TABLE, 0x17000)[number % 2] | 0x67)
    return (GVA, 0x25000)[number % 2]


def edit_large(small: Small, number: int) -> int:
    """The directory comes to map a large page, or to link a table that maps another page."""
    small.store(UPPER, (0x17067, 0xE7)[number % 2])
    return (0x25000, GVA)[number % 2]


@pytest.mark.parametrize("change", [edit_one, edit_directory, edit_large])
def test_many_edits_cost_each_as_much_as_few(tmp_path: Path, change: Callable[[Small, int], int]) -> None:
    """Thirty steps a question; a judge that looks through what the entry held takes 500 on average."""
    count = 1000
    with Small(tmp_path / "small.kmr") as small:
        small.encoder.snapshot(0, 0x17000, table(leaves() | {0x20: 0x25067}))
        small.read(GVA)
        for number in range(count):
            small.read(GVA, change(small, number))
        small.read(GVA, 0x1D0000)
    with Reader(str(small.path)) as reader:
        player = Player(reader, build_machine(reader.header, Options("none").params()))
        player.play(reader.total)
        assert player.mismatches == 1
        assert player.tlb_differences >= count // 2
        assert player.judge.steps < 30 * player.tlb_differences
        player.close()


@MMU
@pytest.mark.slow
def test_twenty_thousand_edits_in_every_mode(tmp_path: Path, mmu: str) -> None:
    def fill(small: Small) -> None:
        small.read(GVA)
        for number in range(20_000):
            small.read(GVA, edit_one(small, number))

    assert play(tmp_path, mmu, fill).mismatches == 0


@pytest.mark.parametrize("seed", range(12))
def test_a_search_finds_what_a_look_at_everything_finds(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of many moments, for each gpa: edits of all levels, flushes of all kinds, more values than are kept."""
    random = Random(seed)
    monkeypatch.setattr(past, "MOST_VALUES", random.choice([1 << 18, 60]))
    with Small(tmp_path / "small.kmr") as small:
        small.encoder.snapshot(0, 0x17000, table(leaves() | {0x20: 0x25067}))
        small.encoder.snapshot(0, 0x18000, table({0: UPPER | 0x67}))
        for _ in range(600):
            what = random.randrange(12)
            if what < 4:
                place = random.choice([TABLE, 0x17000]) + 8 * 0x20
                small.store(place, random.randrange(0x20, 0x26) << 12 | random.choice([0x67, 0x65, 0x63, 0, 0x167]))
            elif what < 6:
                small.store(UPPER, random.choice([TABLE | 0x67, 0x17067, 0x17065, 0xE7, 0x1E7, 0]))
            elif what < 7:
                small.store(CR3, random.choice([0x11027, 0x18027]))
            elif what == 7:
                small.encoder.invlpg(0, random.choice([GVA, 0x30000]))
            elif what == 8:
                root = second_space(small, random.choice([0x21067, 0x22167])) if random.random() < 0.5 else CR3
                regs(small, random.choice([f.W_CR3, f.W_CR4]), PAGED._replace(cr3=root))
            else:
                small.read(GVA, access=random.choice([0, f.K_WRITE, f.K_USER]))
    with Reader(str(small.path)) as reader:
        judge, plain = Judge(str(small.path), reader.header), Judge(str(small.path), reader.header)
        found = 0
        while reader.next():
            if reader.kind != f.K_ACCESS:
                continue
            cpu = plain.past.cpus[0]
            passing = [page for page in plain.lawful(reader) if lawful.is_permitted(cpu, page, reader.access)]
            gpas = {page.gpa for page in passing}
            found += len(gpas)
            assert judge.permits_now(reader) == any(page.is_current for page in passing)
            for gpa in range(0x1F000, 0x28000, 0x1000):
                assert judge.permits(reader, gpa) == (gpa in gpas)
                is_home = judge.permits_home(reader, gpa ^ 0x8000, lambda gpa: gpa ^ 0x8000)
                assert is_home == (gpa in gpas - {reader.gpa})
        assert found > 100
        judge.past.close()
        plain.past.close()


def test_peek_leaves_no_trace() -> None:
    for keep_all in (False, True):
        cache = tlb_room.Tlb(tlb_room.CpuModel(keep_all=keep_all))
        word = 0x0100_0000_0002_005A
        cache.fill(GVA, word)  # type: ignore[arg-type]
        assert cache.peek(GVA) == word  # type: ignore[arg-type]
        assert cache.peek(GVA + 0x1000) == 0  # type: ignore[arg-type]
        assert (cache.hits, cache.misses) == (0, 0)
