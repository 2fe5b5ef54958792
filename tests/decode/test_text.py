# SPDX-License-Identifier: GPL-2.0-only
"""Pasted text: each form that people paste has its words found and read, and no text is too much."""

from __future__ import annotations

import lzma
import pathlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmmu.decode.annotate import Annotated, Annotator
from kvmmu.decode.find import Around, find_words, look_around
from kvmmu.decode.layouts import layout_of
from kvmmu.decode.reading import Machine
from kvmmu.decode.spte import Format
from kvmmu.decode.words import Context
from kvmmu.tracepoint import EVENTS
from oracle import spte_model
from oracle.spte_model import Leaf

DATA = pathlib.Path(__file__).parent.parent / "trace" / "data"
_NOTHING = Context()


def annotate(text: str, context: Context = _NOTHING) -> list[Annotated]:
    return list(Annotator(context).annotate(text.splitlines()))


def said(text: str, context: Context = _NOTHING) -> list[str]:
    """Everything that is said below the lines of ``text``."""
    return [
        line for one in annotate(text, context) for line in [*(told for word in one.words for told in word.lines()),
                                                             *one.remarks]
    ]  # fmt: skip


# ---- splats


def splat(words: list[int], is_new: bool, reserved: int = 0) -> str:
    if is_new:
        head = "get_mmio_spte: reserved bits set on MMU-present spte, addr 0x8000, hierarchy:"
        steps = [
            f"------ spte = {word:#x} level = {len(words) - index}, rsvd bits = {reserved:#x}"
            for index, word in enumerate(words)
        ]
    else:
        head = "walk_shadow_page_get_mmio_spte: detect reserved bits on spte, addr 0x8000, dump hierarchy:"
        steps = [f"------ spte {word:#x} level {len(words) - index}." for index, word in enumerate(words)]
    return "\n".join(f"[ 1234.567890] {line}" for line in [head, *steps])


OLD_EPT = [0x1000007ABB7007, 0x1000007ABB8007, 0x1000007ABB9007, 0x1000005D48FC76]


def test_a_splat_of_5_4_names_format_level_and_reason() -> None:
    text = splat(OLD_EPT, is_new=False)
    found = said(text + "\nCPU: 3 PID: 1 Comm: CPU 0/KVM Not tainted 5.4.0-42-generic #46-Ubuntu")
    assert "reason: level 1: EPT misconfiguration: W without R (bits 2:0 are 110)" in found
    assert any("read as ept tables" in line and "5.4 to 5.5" in line for line in found)
    assert any("level 1: 4K W-host W-mmu R- W X A- D- WB IPAT pfn 0x5d48f ad-disabled" in line for line in found)
    assert any("level 4: nonleaf R W X A- table 0x7abb7000 ad-disabled" in line for line in found)
    assert "the fault was at 0x8000 (gfn 0x8); its tables, from the root down:" in found


def test_the_older_form_alone_says_that_the_layout_is_an_older_one() -> None:
    found = said(splat(OLD_EPT, is_new=False))
    assert any("read as ept tables" in line and "5.4 to 5.12" in line for line in found)
    assert any("W-host W-mmu R- W X" in line for line in found)


TRIPLES = [(1, 1, 1), (1, 1, 0), (1, 0, 0)]
FAULTS = {
    "ept": {
        "W without R": lambda word: word & ~1 | 6,
        "memory type 2": lambda word: word & ~0x38 | 2 << 3,
        "memory type 7": lambda word: word | 7 << 3,
    },
    "shadow": {"bit 8": lambda word: word | 1 << 8, "bit 3": lambda word: word | 1 << 3},
}


@pytest.mark.parametrize("kernel", ["5.10", "6.1", "6.12"])
@pytest.mark.parametrize(("table", "fault"), [(table, fault) for table, faults in FAULTS.items() for fault in faults])
@given(
    pfn=st.integers(1, 2**26),
    triple=st.sampled_from(TRIPLES),
    tables=st.lists(st.integers(1, 2**26), min_size=3, max_size=3),
)
def test_a_splat_of_any_kernel_is_read_in_its_own_format_and_the_broken_rule_is_told(
    kernel: str, table: str, fault: str, pfn: int, triple: tuple[int, int, int], tables: list[int]
) -> None:
    # A word made writable by the fault itself was one of the writable ones.
    triple = (1, 1, 1) if fault == "W without R" else triple
    leaf = Leaf(pfn, triple, user=True, executable=True, accessed=True, dirty=True)
    present = 0 if kernel == "5.10" else 2048
    if table == "ept":
        top = present + 0x107 + (2**63 if kernel == "6.12" else 0)
        last = spte_model.ept_leaf(kernel, leaf, 1, 6, ipat=True)
    else:
        top = present + 0x27
        last = spte_model.x86_leaf(kernel, leaf, 1)
    words = [*(top + frame * 4096 for frame in tables), FAULTS[table][fault](last)]
    found = said(splat(words, is_new=kernel != "5.10"))
    reasons = [line for line in found if line.startswith("reason: ")]
    assert any(f"read as {'ept' if table == 'ept' else 'shadow or npt'} tables" in line for line in found)
    assert len(reasons) == 1
    assert fault in reasons[0]
    assert "level 1" in reasons[0]


def test_the_reserved_bits_that_the_kernel_found_bound_the_machines_address_width() -> None:
    found = said(splat([0x8000000012345907, 0x8000008012346907, 0x8000000012347907], is_new=True, reserved=1 << 39))
    assert "reason: level 2: EPT misconfiguration: reserved address bit 39: at or above MAXPHYADDR 39" in found


def test_a_splat_without_a_broken_rule_says_so() -> None:
    found = said(splat([0x8000000012345907, 0x8600040012345B77], is_new=True))
    assert any("no rule is broken" in line and "MAXPHYADDR is at least 43" in line for line in found)


# ---- words of cases/decode.md, and of their kinds


@pytest.mark.parametrize(("text", "expected"), [
    ("error_code 0x181", "EPT violation: read, entry not present, linear address valid, final guest address"),
    ("error_code 0x83", "EPT violation: read+write, entry not present"),
    ("error_code 100000014", "nested page fault: user fetch of a final guest address"),
    ("role=14084", "decimal, 0x3704: level 4 quadrant 0 access wux smm 0 efer_nx cr0_wp"),
    ("EPT entry 0x12345837 at level 2",
     "EPT misconfiguration: bits 5:4 set, reserved in an entry that links a table"),
    ("kvm_tdp_mmu_spte_changed: as id 0 gfn 4 level 1 old_spte 5a0 new_spte 108a55e67", "REMOVED"),
    ("#PF: error_code(0x0009) - reserved bit violation", "P|RSVD; read: a reserved bit is set in an entry"),
    ("Oops: 0003 [#1] PREEMPT SMP", "P|W; write: the entry is present"),
    ("cat[123]: segfault at 0 ip 00007f12 sp 00007ffd error 15 in libc.so.6[7f0000+1000]", "P|U|F; user fetch"),
    ("error 0x11", "P|F; fetch: the entry is present"),
    ("exit_qualification 0x1aa", "EPT violation: write, entry present, allows R-X"),
    ("VMExit: intr_info=00000000 reason=00000030 qualification=0000000000000181", "EPT violation: read"),
    ("kvm_mmu_pagetable_walk: addr 1000 pferr 2 W", "W; write: no entry is present"),
    ("fast_page_fault: vcpu 0 gva 4000 error_code P|W|U|0x100000000 sptep 0xff old 0x3e65 new 3e67 spurious 0 fixed 1",
     "nested page fault: user write of a final guest address: the entry is present"),
    ("kvm_mmu_set_spte: gfn 1 spte 1e63 (rwx-) level 1 at ab85008", "4K W-host W-mmu W U- X A D pfn 0x1"),
    ("check_mmio_spte: spte 800000400c057 kvm_gen c spte-gen a valid 0", "mmio gfn 0x400c gen 0xa access wu-"),
    ("kvm_mmu_paging_element: pte 8000000000011027 level 4", "level 4 entry P|W|U|A|NX gfn 0x11"),
    ("kvm_inj_exception: #PF (0x7)", "P|W|U; user write: the entry is present"),
    ("kvm_mmu_get_page: new sp gfn 10 4 q0 wux !pae nxe wp root 0 sync", "role 0x3704: level 4"),
    ("ffff800000000000: 0000000012345000 X--DA---W",
     "gva 0xffff800000000000 maps gpa 0x12345000 (gfn 0x12345): 4K page NX|D|A|W: supervisor read, write"),
    ("00000000fee00000: 00000000fee00000 --PDACT-W", "large page PS|D|A|PCD|PWT|W"),
    ("ffff800000000000-ffff800000001000 0000000000001000 ur-", "4 KiB: user and supervisor, read"),
    ("*pde = 00cfd067 *pte = 00000000", "level 2 entry P|W|U|A|D gfn 0xcfd"),
    ("*pdpt = 0000000000a3c001 *pde = 8000000012345163", "level 3 entry P gfn 0xa3c"),
    ("   PUD: ffff888012345678 => 12067", "level 3 entry P|W|U|A|D gfn 0x12"),
    ("PML4E: 0x10067", "level 4 entry P|W|U|A|D gfn 0x10"),
    ("pml4[0] = 0x12345067", "level 4 entry P|W|U|A|D gfn 0x12345"),
    ("pmd: 122000e7", "2M page P|W|U|A|D|PS gfn 0x12200"),
    ("14084", "decimal, 0x3704: level 4"),
    ("0x181", "EPT violation: read, entry not present"),
    ("L2: 0x122000e7", "2M page P|W|U|A|D|PS gfn 0x12200"),
    ("0x80000080000c7", "mmio gfn 0x8000 gen 0x18 access wu-"),
])  # fmt: skip
def test_a_pasted_line_is_read(text: str, expected: str) -> None:
    found = said(text)
    assert any(expected in line for line in found), found


def test_an_oops_gives_the_guests_own_entries_their_levels() -> None:
    text = "PGD 10067 P4D 11067 PUD 12067 PMD 13067 PTE 800000fffffee163"
    found = said(text, Context(machine=Machine(39)))
    assert found[:4] == [
        "PGD 10067: level 5 entry P|W|U|A|D gfn 0x10", "P4D 11067: level 4 entry P|W|U|A|D gfn 0x11",
        "PUD 12067: level 3 entry P|W|U|A|D gfn 0x12", "PMD 13067: level 2 entry P|W|U|A|D gfn 0x13",
    ]  # fmt: skip
    assert "  wrong: bit 39: at or above MAXPHYADDR 39" in found
    # The width may stand in the text as well.
    assert "  wrong: bit 39: at or above MAXPHYADDR 39" in said(
        f"address sizes\t: 39 bits physical, 48 bits virtual\n{text}"
    )
    assert "  note: legal only where MAXPHYADDR is at least 40: else a reserved address bit is set" in said(text)


def test_a_folded_p4d_is_the_pgd_of_four_levels() -> None:
    assert said("PGD 8000000123456067 P4D 8000000123456067 PUD 0") == [
        "PGD 8000000123456067: level 4 entry P|W|U|A|D|NX gfn 0x123456", "PUD 0: not present, empty",
    ]  # fmt: skip


@pytest.mark.parametrize("text", [
    "level 5: 0x10067\nlevel 4: 0x11067\nlevel 3: 0x12067\nlevel 2: 0x122000e7",
    "level 5: 0x10067 0x11067 0x12067 0x122000e7",
    "level 5: 10067\n11067\n12067\n122000e7",
    "level 5: 0x10067, 0x11067, 0x12067, 0x122000e7",
    "lvl 5 = 0x10067\nlvl 4 = 0x11067\nlvl 3 = 0x12067\nlvl 2 = 0x122000e7",
])  # fmt: skip
def test_the_level_of_a_dump_comes_from_the_text(text: str) -> None:
    found = [line for line in said(text) if not line.startswith("  ")]
    assert [line.split(": ")[-1] for line in found] == [
        "level 5 entry P|W|U|A|D gfn 0x10", "level 4 entry P|W|U|A|D gfn 0x11", "level 3 entry P|W|U|A|D gfn 0x12",
        "2M page P|W|U|A|D|PS gfn 0x12200",
    ]  # fmt: skip


def test_a_dump_that_does_not_say_whose_it_is_is_read_both_ways_where_both_make_sense() -> None:
    assert [line.split(":")[0] for line in said("level 2: 0x12345827")] == [
        "level 2 0x12345827 as gpte 4-level level 2", "level 2 0x12345827 as shadow or npt spte level 2",
    ]  # fmt: skip
    assert len(said("level 2: 0x12345027")) == 1


def test_the_text_around_says_kernel_format_and_width() -> None:
    around = Around(_NOTHING)
    for line in (
        "Hardware name: none", "CPU: 1 PID: 2 Comm: qemu Tainted: G        W  O      5.10.0-28-amd64 #1",
        " ? handle_ept_misconfig+0x10/0x20 [kvm_intel]", "MAXPHYADDR = 39",
    ):  # fmt: skip
        look_around(line, around)
    context = around.context()
    assert (context.layout, context.format, context.machine.maxphyaddr) == (layout_of((5, 10)), Format.EPT, 39)
    assert context.format_is_hint
    # What somebody says wins.
    options = Context(layout_of((6, 1)), Machine(46), Format.NPT)
    context = Around(options, layout=layout_of((5, 10)), maxphyaddr=39, format=Format.EPT).context()
    assert (context.layout, context.format, context.machine.maxphyaddr) == (layout_of((6, 1)), Format.NPT, 46)


def test_a_text_of_a_kernel_before_the_table_is_read_all_the_same() -> None:
    found = said("Linux version 4.18.0-305\n" + splat(OLD_EPT, is_new=False))
    assert any("older than the table" in line for line in found)
    assert any(line.startswith("reason: level 1: EPT misconfiguration") for line in found)


@pytest.mark.parametrize("text", [
    "VMExit: reason=0000001c qualification=0000000000000181", "the page was added at dead beef", "spte add to the list",
    "role model", "level 3 cache", "PTE", "PGD", "error_code", "a b c d e f", "level 1 added",
])  # fmt: skip
def test_prose_is_no_word(text: str) -> None:
    assert said(text) == []


# ---- traces


def test_exits_of_a_trace_say_what_an_error_code_is() -> None:
    intel = (
        "q-1 [000] 1.0: kvm_exit: vcpu 0 reason EPT_VIOLATION rip 0x1 info1 0x0000000000000003 info2 0x0"
        " intr_info 0x0 error_code 0x0\nq-1 [000] 1.1: kvm_page_fault: vcpu 0 rip 0x1 address 0x1000 error_code 0x3"
    )
    assert said(intel)[-1].startswith("error_code 0x3 as EPT exit qualification: EPT violation: read+write")
    amd = (
        "q-1 [000] 1.0: kvm_exit: reason EXIT_EXCP_PF rip 0x1 info 3 1000\n"
        "q-1 [000] 1.1: kvm_page_fault: address 1000 error_code 3"
    )
    assert said(amd)[-1] == "error_code 3 as #PF error code: P|W; write: the entry is present"


def test_an_mmio_spte_beside_its_gfn_shows_the_l1tf_mitigation() -> None:
    # Of a real trace of an Intel CPU with 40 address bits.
    line = "kvm_tdp_mmu_spte_changed: as id 0 gfn 4000 level 1 old_spte 8000000000000000 new_spte f804000096"
    assert any("mmio gfn 0x4000 gen 0x12" in one for one in said(line))


def test_a_whole_trace_is_annotated_and_summed_up() -> None:
    annotator = Annotator(_NOTHING)
    lines = (DATA / "ftrace-ept.txt").read_text(encoding="utf-8").splitlines()
    annotated = list(annotator.annotate(lines))
    assert [one.line for one in annotated] == lines
    assert [one.number for one in annotated] == list(range(1, len(lines) + 1))
    problems = [reading.problems for one in annotated for word in one.words for reading in word.readings]
    assert len(problems) > 20
    assert not any(problems)
    summary = annotator.summary
    assert summary.events["kvm_exit"] == sum(summary.exits.values()) > 0
    assert summary.events["kvm_page_fault"] == sum(
        n for (_, name), n in summary.pages.items() if name == "kvm_page_fault"
    )
    assert {value % 4096 for value, _ in summary.pages} == {0}
    text = "\n".join(summary.lines(annotator.counts))
    assert "page of the guest" in text
    assert "EPT_VIOLATION" in text


@pytest.mark.parametrize("path", sorted(DATA.glob("*.txt")), ids=lambda path: path.stem)
def test_no_word_of_a_real_trace_breaks_a_rule(path: pathlib.Path) -> None:
    annotator = Annotator(_NOTHING)
    for one in annotator.annotate(path.read_text(encoding="utf-8").splitlines()):
        for word in one.words:
            assert not all(reading.problems for reading in word.readings), (one.line, word)


# ---- any text

PIECES = st.sampled_from([
    "------ spte = 0x", "------ spte 0x", "level ", "level = ", ", rsvd bits = 0x", "PGD ", "P4D ", "PTE ", "*pte = ",
    "error_code ", "role=", "pferr ", "0x", "=> ", "[#1]", "Oops: ", "reason EPT_VIOLATION ", "info1 ",
    "q-1 [000] 1.0: ", "kvm_exit: ", "kvm_mmu_get_page: ", "Not tainted ", "5.10.0", "MAXPHYADDR ", "old_spte ", "L4: ",
    "\n", " ", "8" * 30, "ffff800000000000-", "X--DA---W", "gfn ", "entry ", "EPT entry ",
    "detect reserved bits on spte, addr 0x",
])  # fmt: skip
TEXT = st.lists(
    st.one_of(PIECES, st.text(max_size=20), st.integers(0, 2**70).map(hex), st.integers().map(str)), max_size=40
)


@given(pieces=TEXT, table=st.sampled_from([None, *Format]), level=st.sampled_from([None, 1, 5]))
def test_no_text_is_too_much(pieces: list[str], table: Format | None, level: int | None) -> None:
    annotator = Annotator(Context(format=table, level=level))
    text = "".join(pieces)
    annotated = list(annotator.annotate(text.split("\n")))
    assert [one.line for one in annotated] == [line.rstrip("\r\n") for line in text.split("\n")]
    for one in annotated:
        assert one.to_json()["line"] == one.number


@given(name=st.sampled_from(sorted(EVENTS)), text=st.text(max_size=100))
def test_no_events_text_is_too_much(name: str, text: str) -> None:
    lines = [f"{name}: {text}", f"q-1 [000] 1.0: {name}: {text}"]
    assert [one.number for one in Annotator(_NOTHING).annotate(lines)] == [1, 2]


def test_no_line_takes_long() -> None:
    start = time.process_time()
    pieces = (
        "0x1 ",
        "level 1 ",
        "PGD 1 ",
        "a",
        "1",
        "spte 1 ",
        "P|",
        "role=",
        "reason A",
        "0x1 at level 1, ",
        " ",
        "W|" * 7,
    )
    for piece in pieces:
        line = piece * (100_000 // len(piece))
        around = Around(_NOTHING)
        look_around(line, around)
        find_words(line, around)
        list(Annotator(_NOTHING).annotate([line]))
    assert time.process_time() - start < 10


def test_a_long_trace_is_read_in_time() -> None:
    with lzma.open(pathlib.Path(__file__).parent / "spte-changes.txt.xz", "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()
    start = time.process_time()
    annotator = Annotator(_NOTHING)
    for _ in annotator.annotate(lines):
        pass
    assert annotator.counts.lines == len(lines) > 8000
    assert time.process_time() - start < 0.005 * len(lines)
