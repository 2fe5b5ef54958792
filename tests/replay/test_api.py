# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu.run()``: its result as values and as frames, its intervals, the fault that it stops at, its errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

import kvmmu
from kvmmu import build_info
from kvmmu.errors import ConfigError, UserError
from kvmmu.kvm.mmu.verdict import CAUSES
from kvmmu.record import format as f
from kvmmu.replay.result import Result
from replay.small import DEVICE, Small

NAME = "linux-6.12-smp2"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """260 records: 5 to boot, 254 reads of 254 pages, one store to a table of tables."""
    with Small(tmp_path / "small.kmr") as small:
        for page in range(1, 0xFF):
            small.read(page << 12)
        small.store(0x12008, 0)
    return small.path


def test_a_path_and_a_name_are_recordings(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for recording in (small, str(small)):
        result = kvmmu.run(recording)
        assert (result.accesses, result.mismatches, result.stopped, result.mmu) == (255, 0, "end", "shadow")
    monkeypatch.chdir(small.parent)
    assert kvmmu.run("small.kmr", "none").accesses == 255
    assert kvmmu.run(NAME, "tdp-legacy", until=100).position == 100
    assert next(iter(kvmmu.bundled())) == "linux-6.12-boot"


def test_what_the_command_reports_is_in_the_result(small: Path) -> None:
    result = kvmmu.run(small, mmio_caching=False, nr_mmu_pages=70)
    assert result.faults["map"] > 200
    assert sum(result.faults.values()) == result.counters["pf_taken"]
    assert result.exits == result.counters["exits"] > 0
    assert (result.stores, result.emulated_stores, result.audits) == (1, 1, 1)
    assert (result.fault, result.intervals) == (None, [])


def test_parameters_reach_the_world(tmp_path: Path) -> None:
    with Small(tmp_path / "device.kmr") as small:
        for _ in range(3):
            small.encoder.mmio(0, 0, 0x10_0000, DEVICE, bytes(4))
    assert "mmio-cached" in kvmmu.run(small.path).faults
    uncached = [{"mmio_caching": False}, {"mmio_caching": "off"}, {"kvm.mmio_caching": "N"}]
    for params in uncached:
        assert set(kvmmu.run(small.path, **params).faults) & {"mmio-cached", "mmio-install"} == set()


def sums(result: Result) -> dict[str, Any]:
    """The intervals put together."""
    names = ("accesses", "stores", "emulated_stores", "exits", "mismatches", "smm_records")
    out: dict[str, Any] = {name: sum(getattr(one, name) for one in result.intervals) for name in names}
    out["faults"] = {cause: sum(one.faults.get(cause, 0) for one in result.intervals) for cause in result.faults}
    return out


@pytest.mark.parametrize("mmu", kvmmu.MMUS)
@pytest.mark.parametrize(("first", "until", "size"), [(0, 500, 200), (300, 700, 100), (0, 300, 5_000)])
def test_intervals_cover_the_replay_and_add_up(mmu: str, first: int, until: int, size: int) -> None:
    result = kvmmu.run(NAME, mmu, first=first, until=until, interval=size)
    bounds = [one.first for one in result.intervals] + [result.intervals[-1].until]
    assert bounds == [*range(first, until, size), until]
    assert [one.until for one in result.intervals] == bounds[1:]
    assert sums(result) == {name: getattr(result, name) for name in sums(result)}
    if mmu != "none":
        assert result.intervals[-1].counters == result.counters
        taken = [one.counters["pf_taken"] for one in result.intervals]
        assert taken == sorted(taken)
        assert taken[-1] > 0


def test_intervals_change_nothing_else() -> None:
    with_them = kvmmu.run(NAME, until=600, interval=99).to_json()
    without = kvmmu.run(NAME, until=600).to_json()
    for name in ("intervals", "seconds", "peak_rss_bytes"):
        with_them.pop(name)
        without.pop(name)
    assert with_them == without


def test_a_stop_closes_the_interval(small: Path) -> None:
    result = kvmmu.run(small, interval=100, break_cause="write-protected")
    assert (result.stopped, result.position) == ("break", 260)
    assert [one.until for one in result.intervals] == [100, 200, 260]
    assert sums(result)["faults"] == result.faults


def test_frames_have_the_values_and_go_together() -> None:
    runs = [kvmmu.run(NAME, mmu, until=300, interval=100) for mmu in kvmmu.MMUS]
    totals = pl.concat(run.totals_frame() for run in runs)
    assert totals["mmu"].to_list() == list(kvmmu.MMUS)
    assert totals["recording"].to_list() == [NAME] * len(kvmmu.MMUS)
    assert totals["accesses"].to_list() == [run.accesses for run in runs]
    assert totals["faults"].to_list() == [None, *(sum(run.faults.values()) for run in runs[1:])]
    faults = pl.concat(run.faults_frame() for run in runs)
    assert {(mmu, cause): count for _, mmu, cause, count in faults.iter_rows()} == {
        (run.mmu, cause): count for run in runs for cause, count in run.faults.items()
    }
    intervals = pl.concat(run.intervals_frame() for run in runs)
    assert intervals.height == 3 * len(kvmmu.MMUS)
    assert set(CAUSES[1:]) <= set(intervals.columns)
    shadow = intervals.filter(mmu="shadow")
    assert shadow["map"].to_list() == [one.faults.get("map", 0) for one in runs[1].intervals]
    assert shadow["faults"].sum() == sum(runs[1].faults.values())
    assert intervals.filter(mmu="none")["map"].to_list() == [None] * 3
    counters = pl.concat(run.counters_frame() for run in runs)
    assert counters.filter(mmu="tdp-legacy")["position"].to_list() == [100, 200, 300]
    assert counters.filter(mmu="shadow")["exits"].to_list() == [one.counters["exits"] for one in runs[1].intervals]
    assert set(runs[1].counters) == set(counters.columns) - {"recording", "mmu", "position"}
    alone = kvmmu.run(NAME, until=100).counters_frame()
    assert alone["position"].to_list() == [100]


def test_the_fault_that_it_stops_at_is_shown(small: Path) -> None:
    result = kvmmu.run(small, break_cause="write-protected")
    fault = result.fault
    assert fault is not None
    gva = 0x12008
    assert (fault.position, fault.kind, fault.cpu, fault.access) == (259, "store", 0, "supervisor write")
    assert (fault.gva, fault.gpa, fault.address, fault.error_code) == (gva, gva, gva, 3)
    assert [line.split(":")[0] for line in fault.guest_walk] == [
        "level 4 at gpa 0x10000",
        "level 3 at gpa 0x11000",
        "level 2 at gpa 0x12000",
        "level 1 at gpa 0x13090",
    ]
    assert "0x0000000000012067 P|W|U|A|D" in fault.guest_walk[-1]
    assert len(fault.kvm_walk) == 4
    assert "W-host W-mmu- W- U X A D-" in fault.kvm_walk[-1]
    lines = "\n".join(fault.lines())
    assert "record 259: cpu 0 supervisor write gva 0x12008 (store): write-protected fault" in lines
    for walk in (fault.guest_walk, fault.kvm_walk, fault.kvm_walk_after):
        assert all(line in lines for line in walk)


def test_kvms_entries_are_shown_before_and_after_the_fault(small: Path) -> None:
    for mmu in ("shadow", "tdp-legacy"):
        fault = kvmmu.run(small, mmu, break_cause="map", first=100).fault
        assert fault is not None
        assert fault.position >= 100
        assert fault.kvm_walk != fault.kvm_walk_after
        assert "pfn" in fault.kvm_walk_after[-1]
        assert "pfn" not in fault.kvm_walk[-1]


@pytest.mark.parametrize("recording", [NAME, "linux-686-boot", "linux-686-pae-boot"])
def test_every_kind_of_tables_is_walked(recording: str) -> None:
    if not build_info().is_compiled and recording != NAME:
        pytest.skip("paging begins too late in this boot for the interpreted build")
    first = 150_000 if build_info().is_compiled else 4_000
    for mmu in ("shadow", "tdp-legacy"):
        result = kvmmu.run(recording, mmu, first=first, until=first + 3_000, break_cause="map")
        assert result.fault is not None
        levels = {NAME: 4, "linux-686-boot": 2, "linux-686-pae-boot": 3}[recording]
        assert 1 < len(result.fault.guest_walk) <= levels
        assert result.fault.guest_walk[0].startswith(f"level {levels} at gpa ")
        assert all(" P" in line for line in result.fault.guest_walk)


def test_the_look_at_a_fault_changes_no_result(small: Path) -> None:
    with_look = kvmmu.run(small, break_cause="map", first=50)
    plain = kvmmu.run(small, first=50, until=with_look.position)
    assert with_look.counters == plain.counters
    assert with_look.faults == plain.faults


def test_a_cause_that_does_not_happen_is_no_fault(small: Path) -> None:
    result = kvmmu.run(small, break_cause="fast")
    assert (result.stopped, result.fault) == ("end", None)


def test_a_mismatch_is_a_result(tmp_path: Path) -> None:
    with Small(tmp_path / "bad.kmr") as bad:
        bad.read(0x5000, gpa=0x6000)
        bad.read(0x7000)
    result = kvmmu.run(bad.path, interval=2)
    assert (result.mismatches, result.accesses, result.details[0].gva) == (1, 2, 0x5000)
    assert [one.mismatches for one in result.intervals] == [0, 0, 1, 0][: len(result.intervals)]


def test_progress_is_told(small: Path) -> None:
    calls: list[tuple[int, int]] = []
    kvmmu.run(small, progress=lambda position, total: calls.append((position, total)))
    assert calls[-1] == (260, 260)


def test_an_interruption_ends_a_loop_of_replays(small: Path) -> None:
    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kvmmu.run(small, progress=interrupt)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mmu": "ept"}, "mmu=ept: there is no such MMU; take none, shadow, tdp, tdp-legacy"),
        ({"mmu": None}, "mmu=None: there is no such MMU"),
        ({"first": 9, "until": 9}, "until=9: must be above first=9"),
        ({"first": 9, "until": 5}, "until=5: must be above first=9"),
        ({"first": 9999}, "first=9999: the recording has 260 records"),
        ({"first": -1}, "first=-1: must be a whole number, 0 or more"),
        ({"first": "x"}, "first='x': must be a whole number, 0 or more"),
        ({"first": None}, "first=None: must be a whole number, 0 or more"),
        ({"first": True}, "first=True: must be a whole number, 0 or more"),
        ({"until": 2.5}, "until=2.5: must be a whole number, 0 or more"),
        ({"interval": 0}, "interval=0: must be a whole number, 1 or more"),
        ({"interval": -5}, "interval=-5: must be a whole number, 1 or more"),
        ({"interval": "all"}, "interval='all': must be a whole number, 1 or more"),
        ({"break_cause": "boredom"}, "break_cause=boredom: no fault has that cause; take guest, table"),
        ({"break_cause": "none"}, "break_cause=none: no fault has that cause"),
        ({"audit": "half"}, "audit='half': must be True (of what changed), \"full\" or False"),
        ({"events": "x.csv"}, "events=x.csv: the suffix says the form of the file; take .ftrace, .txt"),
        ({"mmu": "none", "audit": True}, "mmu=none has no kvm: parameters, break_cause, events and audit mean nothing"),
        ({"mmu": "none", "mmio_caching": True}, "mmu=none has no kvm"),
        ({"nonsense": 1}, "unknown parameter 'nonsense'"),
        ({"mmio_cachin": 1}, "unknown parameter 'mmio_cachin': did you mean mmio_caching"),
        ({"intervall": 5}, "unknown argument 'intervall': did you mean interval?"),
        ({"host_levels": 6}, "host_levels=6: must be 4 or 5"),
        ({"host_levels": True}, "host_levels=on: must be 4 or 5"),
        ({"host_levels": None}, "host_levels=None: must be 4 or 5"),
        ({"nr_mmu_pages": 3}, "nr_mmu_pages=3: KVM accepts 64 or more"),
        ({"nr_mmu_pages": [1]}, "nr_mmu_pages=[1]: must be a number"),
        ({"mmio_caching": 2}, "mmio_caching=2: must be on or off"),
        ({"npt": True}, "npt: mmu=shadow decides that; choose the MMU with mmu"),
        ({"events": 5}, "events=5: must be a path"),
        ({"recording": 5}, "recording=5: must be a path or the name of a bundled recording"),
        ({"recording": None}, "recording=None: must be a path or the name of a bundled recording"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(small: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        kvmmu.run(**({"recording": small} | arguments))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_many_intervals_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        kvmmu.run(NAME, interval=1)
    assert str(caught.value) == "interval=1: more than 10,000 intervals; take 79 or more"
    assert len(kvmmu.run(NAME, until=300, interval=1).intervals) == 300


def test_a_recording_that_cannot_be_used_is_one_line_that_names_it(small: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.kmr"
    cut.write_bytes(small.read_bytes()[:700])
    text = tmp_path / "text.kmr"
    text.write_text("no recording")
    for recording in ("no-such-name", tmp_path / "none.kmr", cut, text, tmp_path):
        with pytest.raises((UserError, OSError)) as caught:
            kvmmu.run(recording)
        assert Path(recording).name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"^host_maxphyaddr=36: .*host_maxphyaddr=40"):
        kvmmu.run(small, host_maxphyaddr=36)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_events_of_faults_carry_their_cause(suffix: str, small: Path, tmp_path: Path) -> None:
    path = tmp_path / f"events{suffix}"
    result = kvmmu.run(small, events=path)
    frame = pl.read_parquet(path) if suffix == ".parquet" else pl.read_ndjson(path, infer_schema_length=None)
    faults = frame.filter(event="kvm_page_fault").group_by("cause").len()
    assert dict(faults.iter_rows()) == result.faults
    assert frame.filter(pl.col("event") != "kvm_page_fault")["cause"].null_count() == (
        frame.height - sum(result.faults.values())
    )
    stores = frame.filter(cause="write-protected")
    assert stores["position"].to_list() == [259]


def test_causes_reach_a_file_whose_groups_end_inside_faults(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvmmu.trace import files

    kinds = {suffix: (opener, 3) for suffix, (opener, _) in files._KINDS.items()}
    monkeypatch.setattr(files, "_KINDS", kinds)
    path = tmp_path / "events.jsonl"
    result = kvmmu.run(small, events=path)
    frame = pl.read_ndjson(path, infer_schema_length=None)
    assert frame["seq"].to_list() == list(range(frame.height))
    assert dict(frame.filter(event="kvm_page_fault").group_by("cause").len().iter_rows()) == result.faults


def test_access_kinds_are_told(tmp_path: Path) -> None:
    with Small(tmp_path / "user.kmr") as small:
        small.read(0x5000, access=f.K_USER | f.K_FETCH)
    fault = kvmmu.run(small.path, break_cause="table").fault
    assert fault is not None
    assert (fault.access, fault.kind) == ("user fetch", "access")
