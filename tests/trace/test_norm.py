# SPDX-License-Identifier: GPL-2.0-only
"""Normalised lines: those of the recordings of real KVM, from events and back."""

from __future__ import annotations

import lzma
import pathlib
import re

import pytest

from kvmmu.errors import UserError
from kvmmu.trace.norm import Normaliser
from kvmmu.tracepoint import EVENTS, Event

DATA = pathlib.Path(__file__).parent.parent / "conformance" / "data" / "6.12"
RECORDINGS = sorted(path.name for path in DATA.glob("*.norm.xz"))

#: Where the tests put slot n: the recordings do not tell.
HVA = 0x7F00_0000_0000


def set_slots(mark: str, *normalisers: Normaliser) -> None:
    match = re.match(r"== slot (\d+) gpa=(\w+) size=(\w+)", mark)
    if match:
        slot, gpa, size = int(match[1]), int(match[2], 16), int(match[3], 16)
        for normaliser in normalisers:
            normaliser.set_slot(slot, gpa, size, HVA + (slot << 40))


def test_all_scenarios_are_here_in_all_modes() -> None:
    scenarios = [path.stem for path in DATA.glob("*.scn")]
    assert len(scenarios) >= 7
    assert {f"{name}.{mode}.norm.xz" for name in scenarios for mode in ("shadow", "tdp", "tdplegacy")} == set(
        RECORDINGS
    )


@pytest.mark.parametrize("name", RECORDINGS)
def test_every_recorded_line_reads_and_prints_the_same(name: str) -> None:
    reader, writer = Normaliser(), Normaliser()
    seen = 0
    for line in lzma.decompress((DATA / name).read_bytes()).decode().splitlines():
        if line.startswith("=="):
            set_slots(line, reader, writer)
            continue
        event = reader.parse(line)
        assert event is not None, line
        assert writer.line(event) == line.strip()
        assert len(event) == 1 + len(EVENTS[event[0]][1])
        seen += 1
    assert seen > 80


@pytest.mark.parametrize(("event", "line"), [
    (
        ("kvm_mmu_set_spte", 1, 0x2BCAE63, 0x9EBE008, 1, True, True, 0),
        "set_spte gfn=1 spte=e63|PFN (rwx-) level=1 at=[1]",
    ),
    (
        ("kvm_mmu_set_spte", 0x200, 0x8000_0000_02BC_AE65, 0x9EBEFF8, 1, True, False, 1),
        "set_spte gfn=200 spte=8000000000000e65|PFN (r--u) level=1 at=[511]",
    ),
    (("kvm_mmu_spte_requested", 5, 0x2BCA, 1), "spte_requested gfn=5 pfn=PFN level=1"),
    (("kvm_mmu_spte_requested", 0xE0000, 1 << 63, 1), "spte_requested gfn=e0000 pfn=8000000000000000 level=1"),
    (("mark_mmio_spte", 0x9EBE010, 0xE0000, 7, 2), "mark_mmio_spte sptep=[2] gfn e0000 access 7 gen 2"),
    (("kvm_mmu_pagetable_walk", 0x4000, 0), "kvm_mmu_pagetable_walk addr 4000 pferr 0"),
    (
        ("fast_page_fault", 0, 0x4000000, 0x100000007, 0x9EBE000, 0x2BCAE65, 0x2BCAE67, 5),
        (
            "fast_page_fault vcpu 0 gva 4000000 error_code P|W|U|0x100000000 sptep=[0] old e65|PFN new e67|PFN"
            " spurious 0 fixed 1"
        ),
    ),
    (
        ("kvm_exit", 0x4E, 0x1030, 2, 8, 0x50000010, 0, 0, 0),
        "exit PF excp rip=0x1030 info1=8 info2=50000010 intr=0 err=0",
    ),
    (
        ("kvm_mmu_get_page", 0, 0x11, 0x3702, 0, False, True),
        "kvm_mmu_get_page sp gen 0 gfn 11 l2 8-byte q0 wux nxe ad root 0 sync new",
    ),
])  # fmt: skip
def test_an_event_of_the_model_prints_free_of_addresses(event: Event, line: str) -> None:
    assert Normaliser().line(event) == line


def test_a_present_entry_hides_its_frame_and_an_absent_one_shows_its_address() -> None:
    line = Normaliser().line(("fast_page_fault", 0, 0, 1, 0, 0x80000E00001E6, 0x1001, 4))
    assert line is not None
    assert "old 1e6|80000e0000000 new 1|PFN" in line


def test_entries_and_exits_by_the_hosts_timing_have_no_line() -> None:
    normaliser = Normaliser()
    assert normaliser.line(("kvm_entry", 0, 0x1000, False)) is None
    assert normaliser.line(("kvm_exit", 0x60, 0x1000, 2, 0, 0, 0, 0, 0)) is None
    assert normaliser.line(("kvm_exit", 0x7B, 0x1000, 2, 0, 0, 0, 0, 0)) is None
    assert normaliser.line(("kvm_exit", 0x79, 0x1000, 2, 0, 0, 0, 0, 0)) is not None


@pytest.mark.parametrize(("before", "is_kept"), [
    (("kvm_exit", 0x4E, 0, 2, 0, 0, 0, 0, 0), True),
    (("kvm_exit", 0x60, 0, 2, 0, 0, 0, 0, 0), False),
    (("kvm_inj_exception", 14, True, 7, False), False),
])  # fmt: skip
def test_a_reinjection_counts_unless_the_hosts_timing_caused_it(before: Event, is_kept: bool) -> None:
    normaliser = Normaliser()
    normaliser.line(before)
    normaliser.line(("kvm_entry", 0, 0, False))
    line = normaliser.line(("kvm_inj_exception", 14, True, 7, True))
    assert line == ("kvm_inj_exception #PF (0x7) [reinjected]" if is_kept else None)


def test_an_unmapped_range_prints_the_slots_that_it_touches() -> None:
    normaliser = Normaliser()
    normaliser.set_slot(0, 0, 0x100000, 0x10000000)
    normaliser.set_slot(3, 0x4000000, 0x200000, 0x10100000)
    event = ("kvm_unmap_hva_range", 0x100FF000, 0x10102000)
    assert normaliser.line(event) == "kvm_unmap_hva_range slot0:gfn ff-100 slot3:gfn 4000-4002"
    normaliser.set_slot(3, 0x4000000, 0, 0)
    assert normaliser.line(event) == "kvm_unmap_hva_range slot0:gfn ff-100"
    assert normaliser.line(("kvm_unmap_hva_range", 0x20000000, 0x20001000)) is None


def test_marks_and_unknown_events_are_no_events() -> None:
    assert Normaliser().parse("== op 0 r4 400000 0") is None
    assert Normaliser().parse("   kvm_nested_vmexit vcpu 0") is None


def test_an_event_of_another_task_names_it() -> None:
    normaliser = Normaliser()
    normaliser.set_slot(0, 0, 0x100000, HVA)
    event = normaliser.parse("   kvm_age_hva slot0:gfn 0-1   [sh]")
    assert event == ("kvm_age_hva", HVA, HVA + 0x1000)
    assert normaliser.line(event) == "kvm_age_hva slot0:gfn 0-1"
    assert normaliser.line(("kvm_test_age_hva", HVA + 0x2000)) == "kvm_test_age_hva slot0:gfn 2-3"
    assert normaliser.parse("   kvm_test_age_hva slot0:gfn 2-3") == ("kvm_test_age_hva", HVA + 0x2000)


@pytest.mark.parametrize("line", ["set_spte gfn=1 spte=e63|PFN level=1", "exit PF excp", "mark_mmio_spte sptep=1"])
def test_a_line_of_another_form_is_refused(line: str) -> None:
    with pytest.raises(UserError, match="not a normalised line of its event"):
        Normaliser().parse(line)


def test_a_range_in_an_unknown_slot_is_refused() -> None:
    with pytest.raises(UserError, match=r"names slot 4, which is not known: call set_slot\(\) first"):
        Normaliser().parse("kvm_unmap_hva_range slot4:gfn 4000-4002")
