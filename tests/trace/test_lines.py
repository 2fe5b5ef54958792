# SPDX-License-Identifier: GPL-2.0-only
"""Lines of traces as tools print them: all are read, all say the same, none ends the reading of a file."""

from __future__ import annotations

import pathlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmmu.trace.exits import SVM_EXITS
from kvmmu.trace.files import read_event_file
from kvmmu.trace.text import LineCounts, TraceLine, format_line, parse_line, read_line, read_lines
from kvmmu.trace.toolforms import SVM_PLUGIN_EXITS, exit_of_tool, read_tool_form
from kvmmu.tracepoint import EVENTS

DATA = pathlib.Path(__file__).parent / "data"


def lines_of(name: str) -> list[str]:
    return (DATA / name).read_text(encoding="utf-8").splitlines()


def read(name: str) -> tuple[list[TraceLine], LineCounts]:
    counts = LineCounts()
    return list(read_lines(lines_of(name), counts)), counts


@pytest.mark.parametrize("path", sorted(DATA.glob("*.txt")), ids=lambda path: path.stem)
def test_every_line_of_every_tool_is_read(path: pathlib.Path) -> None:
    found, counts = read(path.name)
    assert counts.unknown == 0
    assert not counts.unread
    assert counts.events + counts.others.total() == len(found)
    assert counts.lines == len(lines_of(path.name))
    assert counts.events > 3


@pytest.mark.parametrize("name", ["report-R.txt", "report-l.txt", "report-t.txt", "report.txt", "report33.txt"])
def test_the_same_events_are_the_same_whatever_prints_them(name: str) -> None:
    # With -N the tool prints the kernel's own text, which tells the most.
    kernels, _ = read("report-N.txt")
    tools, _ = read(name)
    assert [line.name for line in tools] == [line.name for line in kernels]
    compared = 0
    for mine, theirs in zip(kernels, tools, strict=True):
        assert (mine.task, mine.pid, mine.cpu) == (theirs.task, theirs.pid, theirs.cpu)
        assert abs(mine.position - theirs.position) <= 1
        assert (mine.event is None) == (theirs.event is None)
        if mine.event is None or theirs.event is None:
            continue
        for field, left, right in zip(EVENTS[mine.name][1], mine.event[1:], theirs.event[1:], strict=True):
            if field not in mine.missing and field not in theirs.missing:
                assert (mine.name, field, left) == (mine.name, field, right)
                compared += 1
    assert compared > 100


@pytest.mark.parametrize(("line", "row"), [
    # trace-cmd report without and with its flags column; no flags at all.
    ("     qemu-2345  [003] 12345.678901: kvm_entry: vcpu 1, rip 0x10", (12345678901, 3, ("kvm_entry", 1, 16, False))),
    ("     qemu-2345  [003] d..1. 12345.678901: kvm_entry: vcpu 1, rip 0x10",
     (12345678901, 3, ("kvm_entry", 1, 16, False))),
    ("qemu-2345   3d..1. 12345.678901: kvm_entry: vcpu 1, rip 0x10", (12345678901, 3, ("kvm_entry", 1, 16, False))),
    ("qemu-2345 10.N..2 12345.678901: kvm_entry: vcpu 1, rip 0x10", (12345678901, 10, ("kvm_entry", 1, 16, False))),
    # -t, and a counting clock.
    ("CPU 0/KVM-77 [000] 1.000002999: kvm_entry: vcpu 1, rip 0x10", (1000002, 0, ("kvm_entry", 1, 16, False))),
    ("CPU 0/KVM-77 [000] ..... 4711: kvm_entry: vcpu 1, rip 0x10", (4711, 0, ("kvm_entry", 1, 16, False))),
    ("<idle>-0 (-------) [001] d.h1. 0.000001: kvm_entry: vcpu 1, rip 0x10", (1, 1, ("kvm_entry", 1, 16, False))),
    # perf script.
    ("qemu-kvm  2345 [003] 12345.678901: kvm:kvm_entry: vcpu 1, rip 0x10",
     (12345678901, 3, ("kvm_entry", 1, 16, False))),
    ("CPU 0/KVM  2345/2350 [003] 12345.678901: 1 kvm:kvm_entry: vcpu 1, rip 0x10",
     (12345678901, 3, ("kvm_entry", 1, 16, False))),
    # The plugin, and earlier kernels.
    ("q-1 [000] 1.000000: kvm_entry: vcpu 3", (1000000, 0, ("kvm_entry", 3, 0, False))),
    ("q-1 [000] 1.000000: kvm_page_fault: address fee00000 error_code 181",
     (1000000, 0, ("kvm_page_fault", 0, 0, 0xFEE00000, 0x181))),
    ("q-1 [000] 1.000000: kvm_exit: reason EPT_VIOLATION rip 0xfff info 683 0",
     (1000000, 0, ("kvm_exit", 48, 0xFFF, 1, 0x683, 0, 0, 0, 0))),
    ("q-1 [000] 1.000000: kvm_exit: reason EXIT_NPF rip 0xfff info 100000014 fee00000",
     (1000000, 0, ("kvm_exit", 0x400, 0xFFF, 2, 0x100000014, 0xFEE00000, 0, 0, 0))),
    ("q-1 [000] 1.000000: kvm_exit: reason UNKNOWN (123) rip 0xfff info 0 0",
     (1000000, 0, ("kvm_exit", 123, 0xFFF, 2, 0, 0, 0, 0, 0))),
    ("q-1 [000] 1.000000: kvm_inj_exception: #PF (0x7)", (1000000, 0, ("kvm_inj_exception", 14, True, 7, False))),
    ("q-1 [000] 1.000000: kvm_mmu_get_page: existing sp gfn 10 2 q3 wux pae nxe !wp smap root 0 unsync",
     (1000000, 0, ("kvm_mmu_get_page", 0, 0x10, 0x9772, 0, True, False))),
    # Kernels after the baseline print more at the end.
    ("q-1 [0] 1.000000: kvm_exit: vcpu 2 reason npf rip 0xfff info1 0x14 info2 0xf intr_info 1 error_code 2 requests 0",
     (1000000, 0, ("kvm_exit", 0x400, 0xFFF, 2, 0x14, 0xF, 1, 2, 2))),
    ("q-1 [000] 1.000000: kvm_entry: vcpu 1, rip 0x10 intr_info 0x0 error_code 0x0[immediate exit]",
     (1000000, 0, ("kvm_entry", 1, 16, True))),
    ("q-1 [000] 1.000000: kvm_mmu_sync_page: sp gen 2 gfn 7f 4 pae q0 direct wux !nxe !ad root 0 sync",
     (1000000, 0, ("kvm_mmu_sync_page", 2, 0x7F, 0x10794, 0, False))),
    # Raw fields: the base is the kernel's where the tool knows it.
    ("q-1 [000] 1.000000: kvm_mmu_get_page:  mmu_valid_gen=1 gfn=18 role=5905 root_count=0 unsync=0 created=1",
     (1000000, 0, ("kvm_mmu_get_page", 1, 18, 5905, 0, False, True))),
    ("q-1 [000] 1.000000: kvm_mmu_set_spte:  gfn=205 spte=106cf2e47 sptep=101efe028 level=1 r=1 x=1 u=1",
     (1000000, 0, ("kvm_mmu_set_spte", 0x205, 0x106CF2E47, 0x101EFE028, 1, True, True, 1))),
])  # fmt: skip
def test_a_line_is_read(line: str, row: tuple[object, ...]) -> None:
    assert parse_line(line) == row


def test_what_a_form_does_not_tell_is_named() -> None:
    line = read_line("q-1 [000] 1.000000: kvm_exit: reason EXIT_NPF rip 0xfff info 100000014 fee00000")
    assert line is not None
    assert line.missing == ("intr_info", "error_code", "vcpu_id")
    told = read_tool_form("kvm_mmu_sync_page", "1 q0 wux !pae nxe !wp root 0 unsync")
    assert told == (("kvm_mmu_sync_page", 0, 0, 0x1701, 0, True), ("mmu_valid_gen", "gfn"))


@pytest.mark.parametrize(("line", "kind"), [
    ("gfn 1", "unknown"),
    ("=> try_to_wake_up (ffffffff8111c143)", "stack"),
    (" => entry_SYSCALL_64_after_hwframe", "stack"),
    ("\tffffffff8111c143 try_to_wake_up+0x3 ([kernel.kallsyms])", "stack"),
    ("CPU:0 [LOST 90 EVENTS]", "losses"),
    ("CPU:0 [EVENTS DROPPED]", "losses"),
    ("# tracer: nop", "comments"),
    ("", "comments"),
    ("cpus=4", "comments"),
    ("x" * 100_000, "unknown"),
    ("-1 " * 50_000, "unknown"),
])  # fmt: skip
def test_a_line_without_an_event_is_counted_and_never_an_error(line: str, kind: str) -> None:
    counts = LineCounts()
    assert parse_line(line, counts) is None
    assert {name: getattr(counts, name) for name in ("unknown", "stack", "losses", "comments")} == {
        name: int(name == kind) for name in ("unknown", "stack", "losses", "comments")
    }
    assert counts.lines == 1


def test_a_file_of_another_tool_with_lines_of_no_form_is_read_to_its_end(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "report.txt"
    lines = lines_of("report.txt")
    path.write_text("\n".join(["no line", *lines[:9], "q-1 [000] 1.0: kvm_exit: cut he", *lines[9:]]), encoding="utf-8")
    counts = LineCounts()
    expected = [parse_line(line, counts) for line in lines]
    assert list(read_event_file(path)) == [row for row in expected if row is not None]


def test_an_event_in_an_unknown_form_is_counted_by_its_name() -> None:
    counts = LineCounts()
    assert parse_line("q-1 [000] 1.000000: kvm_page_fault: it happened", counts) is None
    assert parse_line("q-1 [000] 1.000000: kvm_hypercall: nr 0", counts) is None
    assert counts.unread == {"kvm_page_fault": 1}
    assert counts.others == {"kvm_hypercall": 1}


@pytest.mark.parametrize("text", [
    "vcpu 0 gva 1 error_code X sptep 0 old 0x0 new 0 spurious 0 fixed 0",
    "vcpu 0 reason nonsense rip 0x0 info1 0x0 info2 0x0 intr_info 0x0 error_code 0x0",
    "mmio sideways len 4 gpa 0x0 val 0x0",
    "0:0:zz (prot64)",
    "sp gen 0 gfn 11 l2 8-byte q0 ??? nxe ad root 0 sync",
    "role=x", "insn=ARRAY[zz]", "exit_reason=0xg",
])  # fmt: skip
def test_a_word_where_a_number_is_due_is_no_error(text: str) -> None:
    for name in EVENTS:
        counts = LineCounts()
        parse_line(f"q-1 [000] 1.000000: {name}: {text}", counts)
        assert counts.lines == 1


def test_the_plugins_names_of_exits_are_the_kernels_codes() -> None:
    assert {SVM_EXITS[exit_of_tool(name)[1]] for name in ("EXIT_NPF", "EXIT_EXCP_PF", "EXIT_IOIO", "EXIT_INTR")} == {  # type: ignore[index]
        "npf", "PF excp", "io", "interrupt",
    }  # fmt: skip
    assert SVM_PLUGIN_EXITS["EXIT_CR0_SEL_WRITE"] == 0x65
    assert exit_of_tool("EPT_MISCONFIG") == (1, 49)
    assert exit_of_tool("NO_SUCH_EXIT") is None


NOISE = st.text(st.sampled_from("0123456789abcdefx-=:[]().,| \tkvm_qRW#\0"), max_size=200)


@given(text=st.one_of(st.text(max_size=300), NOISE), name=st.sampled_from(sorted(EVENTS)))
def test_no_text_is_too_much_for_the_reader(text: str, name: str) -> None:
    for line in (text, f"q-1 [000] 1.000000: {name}: {text}", f"q 1 [000] 1.000000: kvm:{name}: {text}"):
        counts = LineCounts()
        read_line(line, counts)
        assert counts.lines == 1


def test_no_line_takes_long() -> None:
    start = time.process_time()
    for line in ("a-1 " * 1023, "a 1 " * 1023, "[000] " * 680, "1" * 4096, "- " * 2000, "vcpu 0 reason " * 290):
        read_line(line, LineCounts())
        read_line(f"q-1 [000] 1.000000: kvm_exit: {line[:4000]}", LineCounts())
        read_line(f"q-1 [000] 1.000000: kvm_mmu_get_page: {line[:4000]}", LineCounts())
    assert time.process_time() - start < 2


@given(position=st.integers(0, 2**40), cpu=st.integers(0, 999), option=st.sampled_from(["", "-N", "perf"]))
def test_our_own_lines_read_back_without_their_flags_too(position: int, cpu: int, option: str) -> None:
    event = ("kvm_mmu_paging_element", 0x8000000000011027, 4)
    line = format_line(event, position, cpu)
    if option == "-N":
        line = line.replace(" .....", "")
    elif option == "perf":
        line = line.replace("-1 ", " 1 ").replace(" .....", "").replace(": kvm_mmu", ": kvmmmu:kvm_mmu")
    assert parse_line(line) == (position, cpu, event)
