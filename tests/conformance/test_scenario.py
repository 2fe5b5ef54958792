# SPDX-License-Identifier: GPL-2.0-only
"""Reading scenarios and transcripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmmu.conformance.scenario import HostAction, Op, Poke, SlotLine, number_of, parse_scenario, read_scenario
from kvmmu.conformance.transcript import Exit, Transcript, parse_results, parse_trace
from kvmmu.errors import RecordingError

TEXT = """
mode pae            # a comment
reg cr4 0x30
nocpuid gbpages
slot 0 0 0x1000000 pop
slot 3 0x4000000 0x40000 log ro thp
mem8 0x10000 0x11001
mem4 0x20000 0x1ffffffff
op w4 0x400000 010
host dumpspt
op end
host !remap 0x4000000 0x1000
"""


def test_every_statement_is_read() -> None:
    scenario = parse_scenario(TEXT, "name", "name.scn")
    assert (scenario.name, scenario.mode) == ("name", "pae")
    assert scenario.registers == {"cr4": 0x30}
    assert scenario.without_cpuid == {"gbpages"}
    assert scenario.slots == [
        SlotLine(0, 0, 0x1000000, 0, False, True),
        SlotLine(3, 0x4000000, 0x40000, 3, True, False),
    ]
    assert scenario.memory == [Poke(0x10000, 0x11001, 8), Poke(0x20000, 0xFFFFFFFF, 4)]
    assert scenario.ops == [Op("w4", 0x400000, 8), Op("end", 0, 0)]
    assert scenario.host == [
        HostAction(1, ("dumpspt",), False),
        HostAction(2, ("remap", "0x4000000", "0x1000"), True),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("frob 1", r"x\.scn:2: statement 'frob'; known are mode, reg"),
        ("mode vm86", r"x\.scn:2: 'mode vm86': mode 'vm86'; known are long, pae"),
        ("reg pkru 1", r"x\.scn:2: 'reg pkru 1': register 'pkru'"),
        ("op jump 1 2", r"x\.scn:2: 'op jump 1 2': operation 'jump'"),
        ("mem8 0x1000", r"x\.scn:2: 'mem8 0x1000': a word is missing"),
        ("mem8 0x1000 zero", r"x\.scn:2: 'mem8 0x1000 zero': "),
        ("mem8 0x10000000000000000 0", r"x\.scn:2: .* must fit in 64 bits"),
        ("slot 0 0 0x1000 huge", r"x\.scn:2: .*slot word 'huge'"),
        ("host", r"x\.scn:2: 'host': a word is missing"),
    ],
)
def test_a_bad_statement_is_named_with_file_and_line(line: str, message: str) -> None:
    with pytest.raises(RecordingError, match=message):
        parse_scenario(f"mode long\n{line}\n", "x", "x.scn")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"none\.scn: cannot be read"):
        read_scenario(tmp_path / "none.scn")


@pytest.mark.parametrize(("word", "value"), [("10", 10), ("0x10", 16), ("010", 8), ("0", 0)])
def test_numbers_are_c_literals(word: str, value: int) -> None:
    assert number_of(word) == value


def test_a_trace_is_cut_at_marks_and_exits() -> None:
    steps = parse_trace(
        "== begin x\n   kvm_mmu_walker_error pferr 0 \n   x_flush_remote\n"
        "   exit PF excp rip=0x1057 info1=2 info2=14000 intr=80000b0e err=3\n   b\n   c\n== end\n",
        "t",
    )
    assert [(step.number, step.text, step.events) for step in steps] == [
        (1, "begin x", ["kvm_mmu_walker_error pferr 0"]),
        (4, "exit PF excp rip=0x1057 info1=2 info2=14000 intr=80000b0e err=3", ["b", "c"]),
        (7, "end", []),
    ]
    assert steps[1].exit == Exit("PF excp", 0x1057, 2, 0x14000, 0x80000B0E, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("   kvm_mmu_walker_error pferr 0\n", "t:1: an event before the first mark"),
        ("== begin\n   exit PF excp rip=1\n", "t:2: not an exit of the normalised form"),
        ("\n", "t: holds no marks"),
    ],
)
def test_a_bad_trace_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(RecordingError, match=message):
        parse_trace(text, "t")


def test_results_are_read() -> None:
    transcript = Transcript("x", "shadow", [])
    parse_results(
        transcript,
        "begin x\nstat pf_taken 3\nop 0 r4 1 0\nspt root=1000 level=4\nspt L4 000000000000 0000000000002027 at 1000\n"
        "dirty slot=2: 3 1f\ndirty slot=1 errno=2\nhlt\nres 0 r4 a=1 b=0 -> ok 5\n"
        "res 1 w4 a=1 b=0 -> FAULT e000000e00000003\n    vec=14 err=3 cr2=402000\n"
        "rmaps Rmap_Count:\t0\t1\nrmaps Level=4K:\t5\t6\t\nstat vcpu0/invlpg 4\nexits 5\nend\n",
        "r",
    )
    assert [counters.values for counters in transcript.counters] == [{"pf_taken": 3}, {"invlpg": 4}]
    assert transcript.counters[1].rmaps == {"4K": [5, 6]}
    assert (transcript.dumps[0].root, transcript.dumps[0].level) == (0x1000, 4)
    assert transcript.dumps[0].entries[0].word == 0x2027
    assert transcript.dirty_logs == [(2, [3, 0x1F])]
    assert [(result.index, result.is_fault, result.cr2) for result in transcript.results] == [
        (0, False, 0),
        (1, True, 0x402000),
    ]


def test_a_bad_result_is_named_with_its_line() -> None:
    with pytest.raises(RecordingError, match="r:2: not a line of its form"):
        parse_results(Transcript("x", "shadow", []), "begin\nres 0 r4 nonsense\n", "r")
