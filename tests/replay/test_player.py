# SPDX-License-Identifier: GPL-2.0-only
"""Each kind of record does what it says, and whatever does not fit is a mismatch that names both walks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kvmmu.record import format as f
from kvmmu.record.encoder import Registers
from kvmmu.replay.replay import MMUS, Options, replay
from kvmmu.replay.result import Result
from replay.small import DEVICE, HEADER, LONG, RAM, TABLE, Small, table

Fill = Callable[[Small], None]


def play(tmp_path: Path, mmu: str, fill: Fill) -> Result:
    with Small(tmp_path / "small.kmr") as small:
        fill(small)
    return replay(small.path, Options(mmu))


@pytest.mark.parametrize("mmu", MMUS)
def test_accesses_that_the_tables_allow_are_verified(tmp_path: Path, mmu: str) -> None:
    def fill(small: Small) -> None:
        for page in range(1, 0x100):
            small.read(page << 12 | 8, access=f.K_WRITE if page % 2 and not 0x10 <= page <= 0x13 else 0)

    result = play(tmp_path, mmu, fill)
    assert (result.accesses, result.mismatches, result.stopped) == (255, 0, "end")


@pytest.mark.parametrize("mmu", MMUS)
def test_a_translation_that_differs_is_a_mismatch(tmp_path: Path, mmu: str) -> None:
    result = play(tmp_path, mmu, lambda small: small.read(0x5000, gpa=0x6000))
    assert result.mismatches == 1
    lines = "\n".join(result.details[0].lines())
    assert "gva 0x5000" in lines
    assert "the machine used gpa 0x6000" in lines
    assert "0x0000000000005067" in lines or mmu != "shadow"


@pytest.mark.parametrize("mmu", MMUS)
def test_an_access_that_the_tables_forbid_is_a_mismatch(tmp_path: Path, mmu: str) -> None:
    result = play(tmp_path, mmu, lambda small: small.read(0x101000))
    assert result.mismatches == 1
    assert "exception" in result.details[0].problem


@pytest.mark.parametrize("mmu", ["shadow", "tdp-legacy"])
def test_memory_where_the_machine_found_a_device_is_a_mismatch(tmp_path: Path, mmu: str) -> None:
    def fill(small: Small) -> None:
        small.encoder.mmio(0, 0, 0x5000, 0xF000_0000, bytes(4))

    result = play(tmp_path, mmu, fill)
    assert result.mismatches == 1
    assert "device" in result.details[0].problem


@pytest.mark.parametrize("mmu", ["shadow", "tdp-legacy"])
def test_a_device_where_the_machine_found_memory_is_a_mismatch(tmp_path: Path, mmu: str) -> None:
    result = play(tmp_path, mmu, lambda small: small.read(0x100000, gpa=0x5000))
    assert result.mismatches == 1


@pytest.mark.parametrize("mmu", MMUS)
def test_device_accesses_are_verified(tmp_path: Path, mmu: str) -> None:
    def fill(small: Small) -> None:
        for offset in (0, 8, 0x10):
            small.encoder.mmio(0, 0, 0x100000 + offset, DEVICE + offset, bytes(4))
            small.encoder.mmio(0, f.K_WRITE, 0x100000 + offset, DEVICE + offset, bytes(8))

    result = play(tmp_path, mmu, fill)
    assert (result.accesses, result.mismatches) == (6, 0)
    if mmu != "none":
        assert result.faults["mmio-install"] == 1
        assert result.faults["mmio-cached"] == 5


@pytest.mark.parametrize("access", [f.K_FETCH, f.K_FETCH | f.K_USER], ids=["cpl-0", "cpl-3"])
@pytest.mark.parametrize("mmu", ["shadow", "tdp-legacy"])
def test_a_fetch_from_a_device_is_an_emulation_failure_there(tmp_path: Path, mmu: str, access: int) -> None:
    def fill(small: Small) -> None:
        small.encoder.mmio(0, access, 0x100010, DEVICE + 0x10, bytes(4))
        small.encoder.mmio(0, access, 0x100020, DEVICE + 0x20, bytes(4))
        small.read(0x5000)

    result = play(tmp_path, mmu, fill)
    assert (result.accesses, result.mismatches) == (3, 0)
    assert (result.counters["insn_emulation_fail"], result.counters["mmio_exits"]) == (2, 0)
    elsewhere = play(tmp_path, mmu, lambda small: small.encoder.mmio(0, access, 0x100010, DEVICE + 0x1010, bytes(4)))
    assert [found.problem for found in elsewhere.details] == [f"kvm's own walk finds gpa {DEVICE + 0x10:#x}"]


@pytest.mark.parametrize("mmu", MMUS)
def test_a_store_to_a_table_changes_what_comes_after_the_flush(tmp_path: Path, mmu: str) -> None:
    def fill(small: Small) -> None:
        small.read(0x20000)
        small.store(TABLE + 8 * 0x20, 0x21067)
        small.flush()
        small.read(0x20000, gpa=0x21000)
        small.store(TABLE + 8 * 0x20, 0x22067)
        small.encoder.invlpg(0, 0x20000)
        small.read(0x20000, gpa=0x22000)

    result = play(tmp_path, mmu, fill)
    assert (result.stores, result.mismatches) == (2, 0)


def test_a_store_to_an_upper_table_is_emulated(tmp_path: Path) -> None:
    def fill(small: Small) -> None:
        small.read(0x20000)
        small.store(0x12008, TABLE | 0x27)
        small.read(0x220000, gpa=0x20000)

    result = play(tmp_path, "shadow", fill)
    assert (result.emulated_stores, result.mismatches) == (1, 0)
    assert result.faults["write-protected"] == 1


def test_a_table_written_unseen_is_no_longer_mirrored(tmp_path: Path) -> None:
    def fill(small: Small) -> None:
        small.read(0x20000)
        entries = {index: index + 1 << 12 | 0x67 for index in range(1, 0x80)}
        entries |= {index: index << 12 | 0x67 for index in range(0x10, 0x14)}
        small.encoder.snapshot(0, TABLE, b"".join(entries.get(i, 0).to_bytes(8, "little") for i in range(512)))
        small.flush()
        small.read(0x20000, gpa=0x21000)

    assert play(tmp_path, "shadow", fill).mismatches == 0


@pytest.mark.parametrize("mmu", MMUS)
def test_rom_is_read_as_memory(tmp_path: Path, mmu: str) -> None:
    assert play(tmp_path, mmu, lambda small: small.read(RAM + 0x1000)).mismatches == 0


@pytest.mark.parametrize("mmu", ["shadow", "tdp-legacy"])
def test_a_map_change_is_a_slot_change(tmp_path: Path, mmu: str) -> None:
    def fill(small: Small) -> None:
        small.read(0xA0000)
        small.encoder.remap(0, 0xA0000, 0x20000, f.MAP_IO, (0, 0))
        small.encoder.mmio(0, 0, 0xA0000, 0xA0000, bytes(4))
        small.read(0x90000)
        small.read(0xC0000)
        small.encoder.remap(0, 0xA0000, 0x20000, f.MAP_RAM, (0, 0xA0000))
        small.read(0xA0000)

    result = play(tmp_path, mmu, fill)
    assert (result.mismatches, result.faults["mmio-install"]) == (0, 1)


def test_two_cpus_have_registers_of_their_own(tmp_path: Path) -> None:
    def fill(small: Small) -> None:
        small.boot(1)
        small.read(0x20000, cpu=1)
        small.store(TABLE + 8 * 0x20, 0x21067, cpu=0)
        small.flush(cpu=1)
        small.read(0x20000, gpa=0x21000, cpu=1)

    assert play(tmp_path, "shadow", fill).mismatches == 0


def test_registers_that_do_not_follow_are_a_mismatch(tmp_path: Path) -> None:
    def fill(small: Small) -> None:
        small.encoder.set_regs(0, f.W_CR3, LONG._replace(cr4=0x30))

    result = play(tmp_path, "shadow", fill)
    assert "registers differ" in result.details[0].problem


def test_from_takes_over_the_state_of_what_it_skips(tmp_path: Path) -> None:
    with Small(tmp_path / "small.kmr") as small:
        small.read(0x20000)
        small.store(TABLE + 8 * 0x20, 0x21067)
        small.flush()
        small.read(0x20000, gpa=0x21000)
    for mmu in MMUS:
        result = replay(small.path, Options(mmu, first=8))
        assert (result.accesses, result.mismatches) == (1, 0)


def test_it_stops_at_the_first_fault_of_a_cause(tmp_path: Path) -> None:
    with Small(tmp_path / "small.kmr") as small:
        small.read(0x20000)
        small.encoder.mmio(0, 0, 0x100000, DEVICE, bytes(4))
        small.read(0x30000)
    result = replay(small.path, Options("shadow", break_cause="mmio-install"))
    assert (result.stopped, result.position) == ("break", 7)


@pytest.mark.parametrize("mmu", ["shadow", "tdp-legacy"])
def test_causes_sum_to_the_page_fault_exits(tmp_path: Path, mmu: str) -> None:
    def fill(small: Small) -> None:
        for page in range(1, 0x80):
            small.read(page << 12)
        small.encoder.mmio(0, 0, 0x100000, DEVICE, bytes(4))
        small.encoder.mmio(0, 0, 0x100008, DEVICE + 8, bytes(4))

    result = play(tmp_path, mmu, fill)
    cached = result.faults["mmio-cached"]
    assert sum(result.faults.values()) == result.counters["pf_taken"] + cached


@pytest.mark.parametrize("mmu", MMUS)
def test_what_happened_in_smm_is_left_out(tmp_path: Path, mmu: str) -> None:
    """Registers, tables and accesses of SMM are none of the program's that it interrupts."""

    def fill(small: Small) -> None:
        small.read(0x5000)
        small.encoder.smm = 1
        small.encoder.set_regs(0, f.W_INIT, Registers(0x10, 0, 0, 0, 0))
        small.encoder.snapshot(0, TABLE, bytes(4096))
        small.encoder.access(0, 0, 0xF000_0000, 0xF000_0000)
        small.encoder.smm = 0
        small.read(0x6000)

    result = play(tmp_path, mmu, fill)
    assert (result.accesses, result.mismatches, result.smm_records) == (2, 0, 3)
    assert result.to_json()["smm_records"] == 3


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("bits", [0x20, 0x06, 0x1E6])
def test_reserved_bits_that_qemu_lets_pass_in_pdptes_are_cleared(tmp_path: Path, mmu: str, bits: int) -> None:
    """A, and what a 64-bit kernel has there on a CPU without long mode."""
    header = replace(HEADER, features=("nx",))
    with Small(tmp_path / "small.kmr", header) as small:
        small.encoder.snapshot(0, 0x20000, table({0: 0x21001 | bits}))
        small.encoder.snapshot(0, 0x21000, table({0: 0x22067}))
        small.encoder.snapshot(0, 0x22000, table({index: index << 12 | 0x67 for index in range(1, 64)}))
        small.encoder.set_regs(0, f.W_INIT, Registers(0x8001_0011, 0x20000, 0x20, 0, 0))
        small.read(0x5000)
        # The same table once more, as after a store that nobody saw.
        small.encoder.snapshot(0, 0x20000, table({0: 0x21001 | bits, 1: 0x21001 | bits}))
        small.encoder.set_regs(0, f.W_CR3, Registers(0x8001_0011, 0x20000, 0x20, 0, 0))
        small.read(0x4000_6000, 0x6000)
    result = replay(small.path, Options(mmu))
    assert (result.accesses, result.mismatches) == (2, 0)


@pytest.mark.parametrize("mmu", MMUS)
def test_memory_that_is_plugged_in_holds_data_and_tables(tmp_path: Path, mmu: str) -> None:
    header = replace(HEADER, backends={"m1": 1 << 20}, memory_end=2 << 32)
    at = 5 << 30
    with Small(tmp_path / "small.kmr", header) as small:
        small.encoder.remap(0, at, 1 << 20, f.MAP_RAM, (1, 0))
        small.store(TABLE + 8 * 0x101, at | 0x67)
        small.read(0x101000, at)
        # A second piece of it shows elsewhere; a table in it maps the first.
        small.encoder.snapshot(0, at + 0x2000, table({0: at | 0x67}))
        small.store(0x12008, at + 0x2000 | 0x67)
        small.read(0x200000, at)
    result = replay(small.path, Options(mmu))
    assert (result.accesses, result.mismatches) == (4, 0)


def test_a_replay_warns_of_what_was_left_out(tmp_path: Path) -> None:
    with Small(tmp_path / "small.kmr") as small:
        small.read(0x5000)
        small.writer.finish(seen=1000, stale=2, left_out={"stale": 1, "table-in-rom": 1})
        trailer = replay(small.path, Options("none"))
    assert (trailer.seen, trailer.left_out) == (1000, {"stale": 1, "table-in-rom": 1})
    assert trailer.warning == "0.2 % of the accesses were left out: 1 stale, 1 table-in-rom (docs/limits.md)"
