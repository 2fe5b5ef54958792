# SPDX-License-Identifier: GPL-2.0-only
"""Ground truth: the transcripts of real KVM, played into the model, come out equal."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kvmmu.conformance.comparison import Outcome, comparable
from kvmmu.conformance.faultreplay import FaultReplay, replay_file
from kvmmu.conformance.faultreplay import replay as replay_with_yields
from kvmmu.conformance.scenario import read_scenario
from kvmmu.conformance.transcript import Transcript, read_transcript
from kvmmu.errors import RecordingError

DATA = Path(__file__).parent / "data" / "6.12"
#: Every scenario, and every recording of one: its folder, name and mode.
SCENARIOS = sorted(DATA.parent.glob("*/*.scn"))
RECORDINGS = [(path.parent, *path.name.split(".")[:2]) for path in sorted(DATA.parent.glob("*/*.norm.xz"))]
#: Modes that every scenario of 6.12 is recorded in.
MODES = ("shadow", "tdp", "tdplegacy")
#: What the project's first release promises in shadow mode.
PROMISED = ("basic-long", "basic-pae", "basic-pse32", "features", "many-small", "nopaging-prot", "nopaging-real")


def describe(outcome: Outcome) -> str:
    """The differences of ``outcome`` as text."""
    return "\n".join(str(difference) for difference in outcome.differences)


def test_the_promised_scenarios_are_here() -> None:
    assert set(PROMISED) <= {path.stem for path in SCENARIOS}
    wanted = {(DATA, path.stem, mode) for path in DATA.glob("*.scn") for mode in MODES}
    assert wanted <= set(RECORDINGS)


@pytest.mark.parametrize(
    ("folder", "name", "mode"), RECORDINGS, ids=[".".join(recording[1:]) for recording in RECORDINGS]
)
def test_the_model_does_what_real_kvm_did(folder: Path, name: str, mode: str) -> None:
    outcome = replay_file(folder, name, mode)
    assert outcome.is_equal, describe(outcome)
    # Everything that was recorded was compared: events, table dumps, counters, the results of what the guest did.
    transcript = read_transcript(folder, name, mode)
    wanted = sum(comparable(line) is not None for step in transcript.steps for line in step.events)
    assert outcome.nr_events == wanted
    assert outcome.nr_exits == sum(step.exit is not None for step in transcript.steps)
    assert outcome.nr_dumps == len(transcript.dumps)
    assert outcome.nr_counters == len(transcript.counters)
    nr_done = sum(step.text.startswith("op ") for step in transcript.steps)
    nr_results = min(nr_done, len(transcript.results))
    # A call into memory that holds no RET has no result that could be known.
    nr_calls = sum(result.op in ("x", "ux", "rdcr3") for result in transcript.results)
    assert nr_results - nr_calls <= outcome.nr_results <= nr_results
    assert outcome.is_complete
    assert outcome.nr_dirty_logs == len(transcript.dirty_logs)


# What follows: the comparison itself can fail. Each changes one thing that was recorded.


def basic_long(mode: str = "shadow") -> Transcript:
    """A fresh copy of one transcript."""
    return read_transcript(DATA, "basic-long", mode)


def replay(transcript: Transcript) -> Outcome:
    """Play ``transcript`` of basic-long."""
    return FaultReplay(read_scenario(DATA / "basic-long.scn"), transcript).run()


def test_a_missing_event_is_found_with_its_place() -> None:
    transcript = basic_long()
    step = next(step for step in transcript.steps if any("kvm_mmu_unsync_page" in line for line in step.events))
    step.events = [line for line in step.events if "kvm_mmu_unsync_page" not in line]
    (first,) = replay(transcript).differences
    assert first.line == step.number
    assert first.place == "op 4 w8 14000 203067"
    assert first.got.startswith("kvm_mmu_unsync_page")
    assert first.expected.startswith("set_spte gfn=14 ")


def test_an_event_too_many_is_found() -> None:
    transcript = basic_long()
    step = next(step for step in transcript.steps if step.text.startswith("op 3 "))
    step.events.append("kvm_mmu_sync_page sp gen 0 gfn 14 l1 8-byte q0 wux nxe ad root 0 unsync")
    first = replay(transcript).differences[0]
    assert (first.line, first.expected) == (step.number, step.events[0])


def test_the_order_of_events_counts() -> None:
    transcript = basic_long()
    step = next(step for step in transcript.steps if sum("set_spte" in line for line in step.events) > 4)
    step.events[-1], step.events[-2] = step.events[-2], step.events[-1]
    assert replay(transcript).differences[0].line == step.number


def test_one_bit_of_an_spte_counts() -> None:
    transcript = basic_long()
    step = next(step for step in transcript.steps if any("spte=e63|" in line for line in step.events))
    step.events = [line.replace("spte=e63|", "spte=e43|") for line in step.events]
    assert replay(transcript).differences[0].expected.startswith("set_spte gfn=1 spte=e43|")


def test_the_pages_zapped_at_the_end_count() -> None:
    transcript = basic_long()
    step = next(step for step in transcript.steps if step.text == "hlt")
    del step.events[-1]
    assert replay(transcript).differences[0].got.startswith("kvm_mmu_prepare_zap_page")


def test_a_counter_counts() -> None:
    transcript = basic_long()
    transcript.counters[-1].values["mmu_cache_miss"] += 1
    (only,) = replay(transcript).differences
    assert only.what == "counter mmu_cache_miss"
    assert int(only.expected) == int(only.got) + 1


def test_a_counter_that_was_0_counts() -> None:
    transcript = basic_long()
    del transcript.counters[-1].values["mmu_pte_write"]
    (only,) = replay(transcript).differences
    assert (only.what, only.expected) == ("counter mmu_pte_write", "0")


def test_the_rmap_histogram_counts() -> None:
    transcript = basic_long()
    transcript.counters[-1].rmaps["4K"][1] += 1
    (only,) = replay(transcript).differences
    assert only.what == "mmu_rmaps_stat 4K"


def test_a_flag_in_a_table_counts_and_a_and_d_bits_do_not() -> None:
    transcript = basic_long()
    entries = transcript.dumps[0].entries
    at = next(i for i, spte in enumerate(entries) if spte.level == 1 and spte.word & 1)
    entry = entries[at]
    entries[at] = type(entry)(entry.level, entry.address, entry.word ^ 0x60, entry.sptep)
    assert replay(transcript).is_equal
    entries[at] = type(entry)(entry.level, entry.address, entry.word ^ 2, entry.sptep)
    (only,) = replay(transcript).differences
    assert only.what == "live tables"


def test_two_pages_on_one_frame_are_found_in_a_table() -> None:
    transcript = basic_long()
    entries = transcript.dumps[0].entries
    one, other = [i for i, spte in enumerate(entries) if spte.level == 1 and spte.word & 1][:2]
    pfn_mask = 0x000F_FFFF_FFFF_F000
    word = (entries[other].word & ~pfn_mask) | (entries[one].word & pfn_mask)
    entries[other] = type(entries[other])(1, entries[other].address, word, entries[other].sptep)
    (only,) = replay(transcript).differences
    assert only.what == "live tables"


def test_a_result_counts() -> None:
    transcript = basic_long()
    last = transcript.results[5]
    transcript.results[5] = type(last)(last.index, last.op, last.is_fault, last.value + 1, last.cr2)
    (only,) = replay(transcript).differences
    assert only.what == "result 5 (r4)"


def test_an_exit_that_the_model_would_have_had_is_missed() -> None:
    transcript = basic_long()
    at = next(i for i, step in enumerate(transcript.steps) if step.exit is not None and step.exit.info2 == 0x400000)
    del transcript.steps[at]
    first = replay(transcript).differences[0]
    assert first.expected == "no exit for <Access load of 4 bytes at 0x400000>"


def test_an_exit_for_a_fault_that_the_cpu_does_not_have_is_found() -> None:
    transcript = basic_long()
    step = next(step for step in transcript.steps if step.exit is not None and step.exit.info2 == 0x400000)
    step.exit = replace(step.exit, info1=step.exit.info1 ^ 2)
    first = replay(transcript).differences[0]
    assert (first.line, first.expected, first.got) == (
        step.number,
        "0x400000 error code 0x2",
        "0x400000 error code 0x0",
    )


def test_a_note_of_a_host_action_counts() -> None:
    folder = DATA.parent / "6.12-cases"
    transcript = read_transcript(folder, "wild-long-9201", "shadow")
    at = next(i for i, step in enumerate(transcript.steps) if step.text == "nrmmu errno=22")
    del transcript.steps[at]
    first = FaultReplay(read_scenario(folder / "wild-long-9201.scn"), transcript).run().differences[0]
    assert (first.what, first.expected, first.got) == ("what the action noted", "nothing", "nrmmu errno=22")


def test_dumps_of_freed_tables_are_counted_as_left_out() -> None:
    outcome = replay_file(DATA.parent / "6.12-qemu10", "churn-pae-0", "tdplegacy")
    assert outcome.nr_dumps_skipped < outcome.nr_dumps


# Files that cannot be played.


def copy(folder: Path, name: str = "basic-long") -> Path:
    """The files of one transcript in ``folder``, to be damaged."""
    for path in DATA.glob(f"{name}.*"):
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("suffix", ["shadow.norm.xz", "shadow.res.xz"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = copy(tmp_path) / f"basic-long.{suffix}"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RecordingError, match=rf"basic-long\.{suffix}: cannot be read"):
        replay_file(tmp_path, "basic-long", "shadow")


def test_a_mode_that_is_none_is_refused(tmp_path: Path) -> None:
    for path in copy(tmp_path).glob("*.tdplegacy.*"):
        path.rename(tmp_path / path.name.replace("tdplegacy", "ept"))
    with pytest.raises(RecordingError, match=r"mode 'ept'; known are shadow, tdp,"):
        replay_file(tmp_path, "basic-long", "ept")


def test_a_host_action_that_the_model_has_not_is_named(tmp_path: Path) -> None:
    scenario = copy(tmp_path) / "basic-long.scn"
    transcript = basic_long()
    step = next(step for step in transcript.steps if step.text == "host dumpspt")
    step.text = "host collapse 0x400000 0x200000"
    with pytest.raises(RecordingError, match="host collapse 0x400000 0x200000: the model cannot do this"):
        FaultReplay(read_scenario(scenario), transcript).run()


def test_a_recording_that_is_cut_is_refused() -> None:
    transcript = basic_long()
    del transcript.steps[-1]
    with pytest.raises(RecordingError, match="its last mark is not 'end'"):
        replay(transcript)


def test_a_capability_that_the_model_has_not_is_named(tmp_path: Path) -> None:
    scenario = copy(tmp_path) / "basic-long.scn"
    scenario.write_text("cap nx_huge 1\n" + scenario.read_text())
    with pytest.raises(RecordingError, match="cap nx_huge"):
        replay_file(tmp_path, "basic-long", "shadow")


# Flushes of passes that the timer interrupted.


@pytest.mark.parametrize(
    ("more", "is_equal", "nr_yield_flushes"),
    [(-1, False, 0), (0, True, 0), (1, True, 1), (2, True, 2), (1000, False, 0)],
)
def test_kvm_may_flush_more_often_by_the_yields_that_there_can_be(
    more: int, is_equal: bool, nr_yield_flushes: int
) -> None:
    folder = DATA.parent / "6.12-seeds"
    scenario, transcript = (
        read_scenario(folder / "huge-long-101.scn"),
        read_transcript(folder, "huge-long-101", "shadow"),
    )
    values = transcript.counters[-1].values
    assert values["remote_tlb_flush_requests"] > 2
    values["remote_tlb_flush_requests"] += more
    outcome = replay_with_yields(scenario, transcript)
    assert (outcome.is_equal, outcome.nr_yield_flushes) == (is_equal, nr_yield_flushes)
    assert outcome.is_complete
    assert [difference.what for difference in outcome.differences] == (
        [] if is_equal else ["counter remote_tlb_flush_requests"]
    )
    assert replay_with_yields(scenario, transcript, is_exact=True).is_equal == (more == 0)


def test_more_flushes_excuse_nothing_else() -> None:
    folder = DATA.parent / "6.12-seeds"
    scenario, transcript = (
        read_scenario(folder / "huge-long-101.scn"),
        read_transcript(folder, "huge-long-101", "shadow"),
    )
    transcript.counters[-1].values["remote_tlb_flush_requests"] += 1
    transcript.counters[-1].values["pf_fixed"] += 1
    outcome = replay_with_yields(scenario, transcript)
    assert [difference.what for difference in outcome.differences] == [
        "counter pf_fixed",
        "counter remote_tlb_flush_requests",
    ]
