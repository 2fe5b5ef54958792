# SPDX-License-Identifier: GPL-2.0-only
"""The text of events: the kernel's own, and readable again."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmmu.errors import UserError
from kvmmu.trace.exits import SVM_EXITS, VMX_EXITS
from kvmmu.trace.text import (
    FTRACE_HEADER,
    event_text,
    exit_name,
    format_event,
    format_line,
    parse_event,
    parse_exit_name,
    parse_line,
)
from kvmmu.tracepoint import EVENTS, Event, VcpuEvent, vcpu_of
from oracle.event_text import EXAMPLES

FORMATS = pathlib.Path(__file__).parent.parent / "conformance" / "data" / "6.12" / "formats.txt"


@pytest.mark.parametrize(("event", "text"), EXAMPLES)
def test_an_event_prints_as_the_kernel_prints_it(event: Event, text: str) -> None:
    assert event_text(event) == text
    assert format_event(event) == f"{event[0]}: {text}"


@pytest.mark.parametrize(("event", "text"), EXAMPLES)
def test_the_text_reads_back_as_the_event(event: Event, text: str) -> None:
    assert parse_event(event[0], text) == event
    assert parse_event(event[0], text.rstrip()) == event
    assert parse_event(event[0], text + "\0\n") == event


def test_every_event_has_an_example() -> None:
    assert {event[0] for event, _ in EXAMPLES} == set(EVENTS)


# ---- the kernel's format files


def format_files() -> dict[str, tuple[list[str], str, str]]:
    """Event -> (fields in order, format string, its arguments)."""
    found = {}
    for block in FORMATS.read_text(encoding="utf-8").strip().split("\n\n"):
        name = block.splitlines()[0].removeprefix("name: ")
        fields = re.findall(r"field:[^;]*?(\w+)(?:\[\d+\])?;", block)
        match = re.search(r'^print fmt: "(.*?)", (.*)$', block, re.MULTILINE)
        assert match is not None
        found[name] = (fields, match[1], match[2])
    return found


def test_fields_are_those_of_the_kernel_in_its_order() -> None:
    files = format_files()
    assert {name: list(fields) for name, (_, fields) in EVENTS.items()} == {name: row[0] for name, row in files.items()}


#: Events whose print format has plain fields only, so that C's rules print them.
PLAIN = [name for name, (_, _, arguments) in format_files().items() if re.fullmatch(r"(REC->\w+(, )?)+", arguments)]


def c_format(text: str, values: list[int]) -> str:
    """What C prints for hex and decimal conversions of unsigned words."""
    parts = re.split(r"(%#?\d*(?:ll|l)?[xudp])", text)
    out = ""
    for part in parts:
        if not part.startswith("%"):
            out += part
            continue
        value = values.pop(0)
        flags = re.fullmatch(r"%(#?)(0?)(\d*)(?:ll|l)?([xudp])", part)
        assert flags is not None
        digits = f"{value:x}" if flags[4] in "xp" else str(value)
        width = 16 if flags[4] == "p" else int(flags[3] or 0) - (2 if flags[1] else 0)
        out += ("0x" if flags[1] else "") + digits.rjust(width, "0" if flags[2] or flags[4] == "p" else " ")
    return out


@pytest.mark.parametrize(("vcpu_id", "task"), [(None, "      kvmmu: "), (0, "  CPU 0/KVM: "), (12, " CPU 12/KVM: ")])
def test_the_task_is_printed_where_it_is_asked_for(vcpu_id: int | None, task: str) -> None:
    event = VcpuEvent(("kvm_mmu_set_dirty_bit", 0x1000), vcpu_id)
    text = "kvm_mmu_set_dirty_bit: gpa 1000"
    assert format_event(event) == text
    assert format_event(event, with_vcpu=True) == task + text


def test_the_threads_of_qemu_are_vcpus() -> None:
    line = "       CPU 1/KVM-4711    [003] .....     7.000001: kvm_mmu_set_dirty_bit: gpa 1000"
    row = parse_line(line)
    assert row is not None
    assert row == (7_000_001, 3, ("kvm_mmu_set_dirty_bit", 0x1000))
    assert vcpu_of(row[2]) == 1
    other = parse_line(line.replace("CPU 1/KVM", "qemu-system"))
    assert other is not None
    assert vcpu_of(other[2]) is None


def test_most_formats_are_checked_by_the_format_files() -> None:
    assert len(PLAIN) >= 8


@pytest.mark.parametrize("name", PLAIN)
@given(words=st.lists(st.integers(0, 2**64 - 1), min_size=8, max_size=8))
def test_the_text_is_what_the_format_file_makes_of_the_fields(name: str, words: list[int]) -> None:
    fields, text, arguments = format_files()[name]
    record = dict(zip(fields, words, strict=False))
    values = [record[field] for field in re.findall(r"REC->(\w+)", arguments)]
    assert event_text((name, *record.values())) == c_format(text, values)


# ---- any event

U8, U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
#: Bits of a role that the text shows.
ROLE = st.builds(lambda word, level: (word & 0x11FF0) | level, U32, st.integers(0, 15))
SP = (U8, U64, ROLE, U32, st.booleans())
INSN = st.binary(max_size=15)
EXITS = st.sampled_from([(2, code) for code in SVM_EXITS] + [(1, code) for code in VMX_EXITS] + [(1, 0x80000021)])


def flat(event: tuple[object, ...]) -> Event:
    """Undo the grouping of fields that depend on one another."""
    out: list[object] = []
    for field in event:
        out += field if isinstance(field, tuple) else [field]
    return tuple(out)


FIELDS: dict[str, tuple[st.SearchStrategy[object], ...]] = {
    "kvm_mmu_pagetable_walk": (U64, U32),
    "kvm_mmu_paging_element": (U64, U32),
    "kvm_mmu_set_accessed_bit": (U64,),
    "kvm_mmu_set_dirty_bit": (U64,),
    "kvm_mmu_walker_error": (U32,),
    "kvm_mmu_get_page": (*SP, st.booleans()),
    "kvm_mmu_sync_page": SP,
    "kvm_mmu_unsync_page": SP,
    "kvm_mmu_prepare_zap_page": SP,
    "mark_mmio_spte": (U64, U64, U32, U32),
    "handle_mmio_page_fault": (U64, U64, U32),
    "fast_page_fault": (U32, U64, U64, U64, U64, U64, st.sampled_from([4, 5, 6])),
    "kvm_mmu_zap_all_fast": (U8, U32),
    "check_mmio_spte": (U32, U32, U64),
    "kvm_mmu_set_spte": (U64, U64, U64, U8, st.booleans(), st.booleans(), st.sampled_from([-1, 0, 1])),
    "kvm_mmu_spte_requested": (U64, U64, U8),
    "kvm_entry": (U32, U64, st.booleans()),
    "kvm_exit": (st.tuples(EXITS, U64).map(lambda v: (v[0][1], v[1], v[0][0])), U64, U64, U32, U32, U32),
    "kvm_page_fault": (U32, U64, U64, U64),
    "kvm_inj_exception": (
        U8,
        st.one_of(U32.map(lambda code: (True, code)), st.just((False, 0))),
        st.booleans(),
    ),
    "kvm_cr": (st.integers(0, 1), U32, U64),
    "kvm_msr": (st.integers(0, 1), U32, U64, st.integers(0, 1)),
    "kvm_mmio": (U32, U32, U64, U64),
    "vcpu_match_mmio": (U64, U64, st.booleans(), st.booleans()),
    "kvm_emulate_insn": (U64, U32, INSN.map(lambda code: (len(code), code)), U8, st.booleans()),
    "kvm_unmap_hva_range": (U64, U64),
}

#: Any event that its text tells completely.
EVENT = st.one_of(
    [st.tuples(st.just(name), *fields).map(flat) for name, fields in FIELDS.items()],
)


@given(event=EVENT)
def test_any_event_reads_back(event: Event) -> None:
    assert parse_event(event[0], event_text(event)) == event


@given(event=EVENT, position=st.integers(0, 2**40), cpu=st.integers(0, 999))
def test_any_line_reads_back(event: Event, position: int, cpu: int) -> None:
    assert parse_line(format_line(event, position, cpu)) == (position, cpu, event)


# ---- what text cannot tell, and what is no text


@pytest.mark.parametrize("mask", [1 << 13, 1 << 14, 1 << 15, 1 << 17, 1 << 18, 1 << 24])
def test_role_bits_that_the_kernel_does_not_print_are_lost(mask: int) -> None:
    event = ("kvm_mmu_sync_page", 0, 0x14, 0x1701 | mask, 0, True)
    assert parse_event(event[0], event_text(event)) == ("kvm_mmu_sync_page", 0, 0x14, 0x1701, 0, True)


@pytest.mark.parametrize("old", ["0", "0x0"])
def test_both_ways_to_print_a_zero_with_its_prefix_are_read(old: str) -> None:
    text = f"gva {old} gpa 0xe0000000 Read GPA"
    assert parse_event("vcpu_match_mmio", text) == ("vcpu_match_mmio", 0, 0xE0000000, False, True)


@pytest.mark.parametrize(("name", "text"), [
    ("kvm_mmu_set_spte", "gfn 1 spte e63 (rwx-) level 1"),
    ("kvm_mmu_get_page", "sp gen 0 gfn 11 l2 8-byte q0 wux nxe ad root 0 sync"),
    ("kvm_mmu_sync_page", "sp gen 0 gfn 11 l2 8-byte q0 wux nxe ad root 0 sync new"),
    ("kvm_page_fault", ""),
])  # fmt: skip
def test_text_of_another_form_is_refused_with_the_fields(name: str, text: str) -> None:
    with pytest.raises(UserError, match=f"{name}: .* expected the fields {EVENTS[name][1][0]}"):
        parse_event(name, text)


@pytest.mark.parametrize(
    "act", [lambda: parse_event("kvm_hypercall", "nr 0"), lambda: event_text(("kvm_hypercall", 0))]
)
def test_an_unknown_event_is_refused_with_the_known_ones(act: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=r"unknown event 'kvm_hypercall': known are kvm_mmu_pagetable_walk, .*"):
        act()


def test_a_line_of_the_kernels_own_file_is_read() -> None:
    line = "          labvmm-113     [000] d..1.     3.146591: kvm_mmu_spte_requested: gfn 1 pfn 2bca level 1\n"
    assert parse_line(line) == (3146591, 0, ("kvm_mmu_spte_requested", 1, 0x2BCA, 1))


def test_comments_and_unknown_events_are_passed_over() -> None:
    assert [parse_line(line) for line in FTRACE_HEADER.splitlines()] == [None] * 6
    assert parse_line("  x-1  [000] d..1.  3.146591: kvm_hypercall: nr 0\n") is None
    assert parse_line("\n") is None


@pytest.mark.parametrize("reason", [0x4E, 0x400, 0x999])
def test_exit_reasons_have_their_names(reason: int) -> None:
    name = {0x4E: "PF excp", 0x400: "npf", 0x999: "0x999"}[reason]
    assert exit_name(2, reason) == name
    assert parse_exit_name(name) == (2, reason)


def test_flags_of_an_exit_without_a_name_say_vmx() -> None:
    assert exit_name(1, 0x80000050) == "0x50 FAILED_VMENTRY"
    assert parse_exit_name("0x50 FAILED_VMENTRY") == (1, 0x80000050)
