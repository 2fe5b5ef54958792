# SPDX-License-Identifier: GPL-2.0-only
"""Event files: text, JSON lines, Parquet; whole after an interrupt, clear when they cannot be written."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tracemalloc

import polars as pl
import pytest

from kvmmu.errors import OutputError, UserError
from kvmmu.trace import files, parquet
from kvmmu.trace.files import SUFFIXES, EventWriter, read_event_file
from kvmmu.trace.parquet import SCHEMA, to_frame
from kvmmu.trace.text import FTRACE_HEADER, format_line
from kvmmu.tracepoint import EVENTS, Event, VcpuEvent, event_cause, vcpu_of
from oracle.event_text import EXAMPLES

ALL: list[Event] = [event for event, _ in EXAMPLES]


def write(path: pathlib.Path, events: list[Event]) -> None:
    with EventWriter(path) as writer:
        for number, event in enumerate(events):
            writer.position = number * 10
            writer.cpu = number % 2
            writer(event)


def rows(events: list[Event]) -> list[tuple[int, int, Event]]:
    return [(number * 10, number % 2, event) for number, event in enumerate(events)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_event_reads_back_from_every_kind_of_file(suffix: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / f"events{suffix}"
    write(path, ALL)
    assert list(read_event_file(path)) == rows(ALL)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_groups_keep_order_and_number(suffix: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {name: (kind[0], 7) for name, kind in files._KINDS.items()}
    monkeypatch.setattr(files, "_KINDS", kinds)
    path = tmp_path / f"events{suffix}"
    write(path, ALL * 3)
    assert list(read_event_file(path)) == rows(ALL * 3)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_without_events_is_a_file(suffix: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / f"events{suffix}"
    write(path, [])
    assert list(read_event_file(path)) == []


def test_text_is_an_ftrace_file_with_the_record_as_time(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "events.ftrace"
    write(path, ALL)
    lines = [format_line(event, position, cpu) for position, cpu, event in rows(ALL)]
    assert path.read_text(encoding="utf-8") == FTRACE_HEADER + "".join(line + "\n" for line in lines)
    assert lines[1] == "           kvmmu-1       [001] .....     0.000010: kvm_mmu_pagetable_walk: addr 4000 pferr 0 "


def test_json_lines_name_every_field(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, [("kvm_emulate_insn", 0x1089, 0, 3, b"\x0f\x01\x3e", 9, False)])
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "seq": 0, "position": 0, "cpu": 0, "vcpu": None, "event": "kvm_emulate_insn", "system": "kvm",
        "rip": 0x1089, "csbase": 0, "len": 3, "insn": "0f013e", "flags": 9, "failed": False,
    }  # fmt: skip


def test_parquet_is_one_wide_table(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "events.parquet"
    write(path, ALL)
    frame = pl.read_parquet(path)
    assert dict(frame.schema) == SCHEMA
    assert frame["seq"].to_list() == list(range(len(ALL)))
    own = {"seq", "position", "cpu", "vcpu", "event", "system", "cause"}
    assert set(SCHEMA) == own | {f for _, fs in EVENTS.values() for f in fs}
    row = frame.filter(pl.col("event") == "mark_mmio_spte").row(0, named=True)
    present = {name for name, value in row.items() if value is not None}
    assert present == {"seq", "position", "cpu", "event", "system", "sptep", "gfn", "access", "gen"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file_keeps_the_vcpu(suffix: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / f"events{suffix}"
    vcpus = [(None, 0, 1, 255)[number % 4] for number in range(len(ALL))]
    write(path, [VcpuEvent(event, vcpu_id) for event, vcpu_id in zip(ALL, vcpus, strict=True)])
    read = [event for _, _, event in read_event_file(path)]
    assert read == ALL
    assert [vcpu_of(event) for event in read] == vcpus


def test_text_tells_the_vcpu_as_the_task_that_worked(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "events.txt"
    event = ("kvm_mmu_set_dirty_bit", 0x1000)
    write(path, [event, VcpuEvent(event, 3)])
    of_process, of_vcpu = path.read_text(encoding="utf-8").splitlines()[-2:]
    assert of_process == "           kvmmu-1       [000] .....     0.000000: kvm_mmu_set_dirty_bit: gpa 1000"
    assert of_vcpu == "       CPU 3/KVM-5       [001] .....     0.000010: kvm_mmu_set_dirty_bit: gpa 1000"


def test_a_file_from_before_events_knew_their_vcpu_still_reads(tmp_path: pathlib.Path) -> None:
    new = tmp_path / "new.jsonl"
    write(new, ALL)
    old = tmp_path / "old.jsonl"
    lines = [json.loads(line) for line in new.read_text(encoding="utf-8").splitlines()]
    old.write_text(
        "".join(json.dumps({k: v for k, v in line.items() if k != "vcpu"}) + "\n" for line in lines), encoding="utf-8"
    )
    table = tmp_path / "new.parquet"
    write(table, ALL)
    pl.read_parquet(table).drop("vcpu").write_parquet(tmp_path / "old.parquet")
    for path in (old, tmp_path / "old.parquet"):
        assert list(read_event_file(path)) == rows(ALL)
        assert {vcpu_of(event) for _, _, event in read_event_file(path)} == {None}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_tables_keep_the_cause_and_old_ones_have_none(suffix: str, tmp_path: pathlib.Path) -> None:
    fault = ("kvm_page_fault", 1, 0, 0x1000, 2)
    path = tmp_path / f"events{suffix}"
    write(path, [VcpuEvent(fault, 1, "unsync"), VcpuEvent(fault, 1), fault])
    assert [event_cause(event) for _, _, event in read_event_file(path)] == ["unsync", None, None]
    old = tmp_path / f"old{suffix}"
    if suffix == ".parquet":
        pl.read_parquet(path).drop("cause").write_parquet(old)
    else:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert json.loads(lines[0])["cause"] == "unsync"
        old.write_text("".join(line.replace(', "cause": "unsync"', "") + "\n" for line in lines), encoding="utf-8")
    assert [event_cause(event) for _, _, event in read_event_file(old)] == [None] * 3


def test_a_group_waits_for_the_cause_of_its_last_fault_but_not_for_ever(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "events.jsonl"
    fault = VcpuEvent(("kvm_page_fault", 0, 0, 0x1000, 2), 0)
    other = VcpuEvent(("kvm_mmu_set_dirty_bit", 8), 0)

    def written() -> int:
        return len(path.read_text(encoding="utf-8").splitlines())

    with EventWriter(path) as writer:
        for event in [other] * 4_000 + [fault] + [other] * 95:
            writer(event)
        assert written() == 4_000
        for _ in range(4_100):
            writer(other)
        assert written() == 4_000
        fault.cause = "map"
        writer(other)
        assert written() == 4_000 + 1 + 95 + 4_100 + 1
        writer(VcpuEvent(fault, 0))
        for _ in range(16 * 4_096):
            writer(other)
        assert written() > 4_000 + 16 * 4_096
    found = [(number, event_cause(event)) for number, (_, _, event) in enumerate(read_event_file(path))]
    assert [(number, cause) for number, cause in found if cause] == [(4_000, "map")]


def test_a_frame_of_kept_events_has_their_vcpus() -> None:
    events = [VcpuEvent(("kvm_mmu_set_dirty_bit", 8), vcpu_id) for vcpu_id in (None, 0, 7)]
    assert to_frame(events)["vcpu"].to_list() == [None, 0, 7]


def test_a_frame_of_kept_events_has_their_words() -> None:
    frame = to_frame([("kvm_mmu_set_spte", 1, 2**64 - 1, 8, 1, True, False, -1)])
    assert frame.schema["spte"] == pl.UInt64()
    assert frame["spte"].to_list() == [2**64 - 1]
    assert frame["u"].to_list() == [-1]
    assert to_frame([]).schema == SCHEMA


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_interrupted_run_leaves_what_came_before(suffix: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / f"events{suffix}"

    def run() -> None:
        with EventWriter(path) as writer:
            for event in ALL:
                writer(event)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert [event for _, _, event in read_event_file(path)] == ALL


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.parametrize("when", ["in the middle", "at the end"])
def test_an_interrupt_in_the_middle_of_a_write_costs_nothing(
    suffix: str, when: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"events{suffix}"
    writer = EventWriter(path)
    for event in ALL:
        writer(event)
    real = os.pwrite

    def interrupted(fd: int, data: memoryview, offset: int) -> int:
        monkeypatch.setattr(os, "pwrite", real)
        real(fd, data[: 100 if when == "in the middle" else len(data)], offset)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.flush()
    writer(ALL[0])
    writer.close()
    assert [event for _, _, event in read_event_file(path)] == [*ALL, ALL[0]]


def test_an_interrupt_after_a_parquet_group_costs_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.parquet"
    writer = EventWriter(path)
    for event in ALL:
        writer(event)
    real = parquet.ParquetStream.write

    def interrupted(self: parquet.ParquetStream, group: list[parquet.Row], first_seq: int) -> None:
        real(self, group, first_seq)
        raise KeyboardInterrupt

    monkeypatch.setattr(parquet.ParquetStream, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.flush()
    monkeypatch.setattr(parquet.ParquetStream, "write", real)
    writer(ALL[0])
    writer.close()
    assert [event for _, _, event in read_event_file(path)] == [*ALL, ALL[0]]


def test_an_unknown_suffix_names_the_known_ones(tmp_path: pathlib.Path) -> None:
    for act in (EventWriter, lambda path: list(read_event_file(path))):
        with pytest.raises(UserError, match=r"'\.csv' is none of \.ftrace, \.txt, \.jsonl, \.parquet"):
            act(tmp_path / "events.csv")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_directory_that_is_not_there_is_one_clear_line(suffix: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "missing" / f"events{suffix}"
    with pytest.raises(UserError, match=rf"{path}: cannot write events: No such file or directory$"):
        EventWriter(path)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_full_disk_is_one_clear_line_and_ends_the_writer(suffix: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / f"events{suffix}"
    path.symlink_to("/dev/full")

    def run() -> None:
        with EventWriter(path) as writer:
            writer(ALL[0])

    with pytest.raises(OutputError, match=rf"{path}: cannot write events: No space left on device: free some space"):
        run()


# Python ignores the signal of a file that grows beyond its limit, so that writes fail as on a full disk.
_LIMITED = """
import resource, sys
from kvmmu.errors import OutputError, UserError
from kvmmu.trace.files import EventWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
writer = EventWriter(sys.argv[1])
try:
    for number in range(200_000):
        writer(("kvm_mmu_set_dirty_bit", number * 0x9E3779B97F4A7C15 % 2**64))
    writer.close()
except OutputError as error:
    print(error)
try:
    writer.flush()
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_whatever_the_disk_refuses_is_said_and_no_part_stays(suffix: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / f"events{suffix}"
    run = subprocess.run([sys.executable, "-c", _LIMITED, str(path)], capture_output=True, text=True, check=False)
    assert run.stderr == ""
    said = run.stdout.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"{path}: cannot write events: ")
    assert "File too large" in said[0]
    assert said[1] == f"{path}: this event file is closed and takes no more events"
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()] == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_closing_twice_is_once(suffix: str, tmp_path: pathlib.Path) -> None:
    writer = EventWriter(tmp_path / f"events{suffix}")
    writer(ALL[0])
    assert writer.count == 1
    writer.close()
    writer.close()
    assert writer.count == 1


@pytest.mark.parametrize("suffix", [".txt", ".parquet"])
def test_memory_does_not_grow_with_the_number_of_events(
    suffix: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {name: (kind[0], 500) for name, kind in files._KINDS.items()}
    monkeypatch.setattr(files, "_KINDS", kinds)
    writer = EventWriter(tmp_path / f"events{suffix}")
    peaks = []
    tracemalloc.start()
    for _ in range(3):
        tracemalloc.reset_peak()
        for number in range(5000):
            writer(("kvm_mmu_set_dirty_bit", number << 12))
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    writer.close()
    assert peaks[2] < peaks[0] + 200_000


def test_a_missing_file_is_one_clear_line(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"events\.jsonl: no such event file"):
        list(read_event_file(tmp_path / "events.jsonl"))


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", '{"event": "kvm_nothing"}', '{"event": "kvm_mmu_zap_all_fast", "position": 1}']
)
def test_a_line_that_is_no_event_is_named(line: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"events\.jsonl, line 1: not an event as EventWriter writes it"):
        list(read_event_file(path))


def test_bytes_that_are_no_text_do_not_end_a_text(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "events.txt"
    path.write_bytes(b"\xff\xfe no event\n")
    assert list(read_event_file(path)) == []
