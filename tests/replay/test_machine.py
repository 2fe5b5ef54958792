# SPDX-License-Identifier: GPL-2.0-only
"""The machine of a replay: maps that change in every way, memory of any size, registers that no CPU has."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kvmmu.addr import Gfn
from kvmmu.errors import RecordingError
from kvmmu.kvm.bits import KVM_ADDRESS_SPACE_NUM
from kvmmu.record import format as f
from kvmmu.record.encoder import Registers
from kvmmu.record.piece import cut
from kvmmu.record.reader import Reader
from kvmmu.replay.machine import build_machine
from kvmmu.replay.player import Player
from kvmmu.replay.replay import MMUS, Options, replay
from kvmmu.replay.tables import play_to
from replay.small import CR3, HEADER, RAM, TABLE, Small, leaves, table

BAR = 0xE000_0000
OTHER_BAR = 0xE800_0000
VIDEO = 0x100 << 12
MMU = pytest.mark.parametrize("mmu", MMUS)


def verified(path: Path, mmu: str) -> None:
    """The recording replays, without a mismatch."""
    result = replay(path, Options(mmu))
    assert [line for mismatch in result.details for line in mismatch.lines()] == []


def pointing(gpa: int) -> bytes:
    """The last level of the small guest's tables, with page 0x100 at ``gpa``."""
    return table(leaves() | {0x100: gpa | 0x67})


def record_bar_that_moves(path: Path) -> Path:
    """A device's memory is seen page by page, then as a whole, then elsewhere, then back, then in part ROM."""
    with Small(path) as small:
        encoder = small.encoder

        def look(gpa: int) -> None:
            encoder.snapshot(0, TABLE, pointing(gpa))
            small.flush()
            small.read(VIDEO, gpa)

        encoder.remap(0, BAR, 0x1000, f.MAP_RAM, (255, 0))
        look(BAR)
        encoder.remap(0, BAR, 16 << 20, f.MAP_RAM, (255, 0))
        look(BAR)
        look(BAR + 0x5000)
        encoder.remap(0, BAR, 16 << 20, f.MAP_IO, (255, 0))
        encoder.remap(0, OTHER_BAR, 16 << 20, f.MAP_RAM, (255, 0))
        look(OTHER_BAR + 0x5000)
        encoder.remap(0, OTHER_BAR, 16 << 20, f.MAP_IO, (255, 0))
        encoder.remap(0, BAR + 0x4000, 0x4000, f.MAP_ROM, (255, 0))
        encoder.remap(0, BAR + 0x6000, 1 << 30, f.MAP_RAM, (255, 0))
        look(BAR + 0x5000)
        look(BAR + (900 << 20))
        encoder.remap(0, BAR - (64 << 20), 2 << 30, f.MAP_RAM, (255, 0))
        look(BAR + 0x7000)
    return path


@MMU
def test_a_device_region_that_moves_and_grows_is_verified(tmp_path: Path, mmu: str) -> None:
    verified(record_bar_that_moves(tmp_path / "x.kmr"), mmu)


@MMU
def test_every_piece_of_it_is_verified(tmp_path: Path, mmu: str) -> None:
    path = record_bar_that_moves(tmp_path / "x.kmr")
    with Reader(str(path)) as reader:
        total = reader.total
    for first in range(1, total):
        cut(str(path), str(tmp_path / "piece.kmr"), first, level=1)
        verified(tmp_path / "piece.kmr", mmu)


@MMU
def test_memory_that_the_header_names_may_grow(tmp_path: Path, mmu: str) -> None:
    with Small(tmp_path / "x.kmr") as small:
        small.encoder.remap(0, BAR, 0x10000, f.MAP_RAM, (0, 8 << 20))
        small.encoder.snapshot(0, TABLE, pointing(BAR + 0x3000))
        small.flush()
        small.read(VIDEO, BAR + 0x3000)
    verified(small.path, mmu)


def record_window(path: Path) -> Path:
    """Tables move into memory of a device that goes and comes back with what it held."""
    moved = BAR + 0x1000
    with Small(path) as small:
        encoder = small.encoder
        encoder.remap(0, BAR, 0x4000, f.MAP_RAM, (255, 0))
        encoder.snapshot(0, moved, table(leaves()))
        encoder.snapshot(0, 0x12000, table({0: moved | 0x27}))
        small.flush()
        small.read(0x5000)
        encoder.snapshot(0, 0x12000, table({0: TABLE | 0x27}))
        small.flush()
        encoder.remap(0, BAR, 0x4000, f.MAP_IO, (255, 0))
        small.read(0x6000)
        encoder.remap(0, BAR, 0x4000, f.MAP_RAM, (255, 0))
        encoder.snapshot(0, 0x12000, table({0: moved | 0x27}))
        small.flush()
        small.read(0x7000)
    return path


@pytest.mark.parametrize("mmu", ["shadow", "tdp-legacy"])
def test_pieces_keep_tables_that_are_hidden_for_a_while(tmp_path: Path, mmu: str) -> None:
    path = record_window(tmp_path / "x.kmr")
    verified(path, mmu)
    with Reader(str(path)) as reader:
        total = reader.total
    for first in range(1, total):
        cut(str(path), str(tmp_path / "piece.kmr"), first, level=1)
        verified(tmp_path / "piece.kmr", mmu)


def test_a_map_that_says_nothing_new_costs_no_slot(tmp_path: Path) -> None:
    with Small(tmp_path / "x.kmr") as small:
        for _ in range(50):
            small.encoder.remap(0, 0x4000, 0x8000, f.MAP_RAM, (0, 0x4000))
        small.read(0x5000)
    result = replay(small.path, Options("shadow"))
    assert result.mismatches == 0
    assert result.counters["mmu_shadow_zapped"] == 0


@pytest.mark.parametrize("mmu", ["shadow", "tdp-legacy"])
def test_changes_that_nothing_happens_between_are_one_commit(tmp_path: Path, mmu: str) -> None:
    """A range that goes and comes back keeps its slot and what is built on it; one that changes 99 times costs once."""
    with Small(tmp_path / "x.kmr") as small:
        small.read(0x5000)
        for _ in range(99):
            small.encoder.remap(0, BAR, 0x4000, f.MAP_RAM, (255, 0))
            small.encoder.remap(0, BAR, 0x4000, f.MAP_IO, (255, 0))
            small.encoder.remap(0, RAM, 0x10000, f.MAP_RAM, (0, RAM))
            small.encoder.remap(0, RAM, 0x10000, f.MAP_ROM, (0, RAM))
        small.encoder.remap(0, BAR, 0x4000, f.MAP_RAM, (255, 0))
        small.read(0x5000)
    with Reader(str(small.path)) as reader:
        player = Player(reader, build_machine(reader.header, Options(mmu).params()))
        player.play(6)
        vm = player.vm
        assert vm is not None
        pages, generation = vm.n_used_mmu_pages, vm.memslots[0].generation
        player.play(reader.total)
        assert player.mismatches == 0
        # One slot was made, in one update of the set, and nothing was zapped.
        assert vm.memslots[0].generation == generation + KVM_ADDRESS_SPACE_NUM
        assert vm.n_used_mmu_pages == pages
        assert vm.stat.mmu_shadow_zapped == 0


@pytest.mark.parametrize("mmu", ["shadow", "tdp-legacy"])
def test_a_map_at_the_end_reaches_the_slots(tmp_path: Path, mmu: str) -> None:
    with Small(tmp_path / "x.kmr") as small:
        small.read(0x5000)
        small.encoder.remap(0, BAR, 0x4000, f.MAP_RAM, (255, 0))
    result = replay(small.path, Options(mmu))
    assert result.mismatches == 0
    with Reader(str(small.path)) as reader:
        player = play_to(reader, mmu, None)
        assert player.vm is not None
        assert player.vm.gfn_to_memslot(Gfn(BAR >> 12), 0) is not None
        player.close()


def test_more_memory_than_the_format_has_is_refused(tmp_path: Path) -> None:
    with Small(tmp_path / "x.kmr") as small:
        for number in range(f.MAX_RANGES // 2 + 10):
            small.encoder.remap(0, BAR + (number << 13), 0x1000, f.MAP_RAM, (255, 0))
            small.encoder.remap(0, BAR + (number << 13) + 0x1000, 0x1000, f.MAP_ROM, (0, number << 12))
    with pytest.raises(RecordingError, match=f"x.kmr.* more than {f.MAX_RANGES} ranges"):
        replay(small.path, Options("shadow"))


@MMU
@pytest.mark.parametrize(
    ("registers", "words"),
    [
        (Registers(1 << 31, CR3, 0, 0), "CR0.PG without CR0.PE"),
        (Registers(1, CR3, 0x20, 0x500), "EFER.LMA without CR0.PG"),
        (Registers(0x8000_0001, CR3, 0, 0x500), "EFER.LMA without CR4.PAE"),
        (Registers(0x8000_0001, CR3, 0x1020, 0x500), "CR4.LA57, which the header's CPU lacks"),
    ],
)
@pytest.mark.parametrize("cause", [f.W_CR0, f.W_CR4, f.W_INIT])
def test_registers_that_no_cpu_has_are_refused(
    tmp_path: Path, mmu: str, registers: Registers, words: str, cause: int
) -> None:
    with Small(tmp_path / "x.kmr") as small:
        small.encoder.set_regs(0, cause, registers)
    with pytest.raises(RecordingError, match=f"x.kmr contradicts itself at record 5: CPU 0 has {words}"):
        replay(small.path, Options(mmu))
    with Small(tmp_path / "y.kmr") as small:
        small.encoder.set_regs(0, cause, registers)
        small.read(0x5000)
    with pytest.raises(RecordingError, match=words):
        replay(small.path, Options(mmu, first=6))


PROGRAM = """
import resource, sys
from kvmmu.replay.replay import Options, replay
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
replay(sys.argv[2], Options(sys.argv[1], until=3))
small = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = replay(sys.argv[3], Options(sys.argv[1]))
assert result.mismatches == 0 and result.accesses
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@MMU
@pytest.mark.parametrize("gigabytes", [64, 512, 700])
def test_memory_follows_what_is_touched(tmp_path: Path, mmu: str, gigabytes: int) -> None:
    top = gigabytes << 30
    regions = (f.Region(0, 3 << 30, "ram"), f.Region(4 << 30, top - (3 << 30), "ram", "ram", 3 << 30))
    far = (4 << 30) + top - (3 << 30) - 0x1000
    with Small(tmp_path / "small.kmr"):
        pass
    with Small(tmp_path / "large.kmr", replace(HEADER, memory=regions, maxphyaddr=46)) as small:
        small.encoder.snapshot(0, TABLE, pointing(far))
        small.flush()
        small.read(VIDEO, far)
        for page in range(1, 0x100):
            small.read(page << 12)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mmu, str(tmp_path / "small.kmr"), str(small.path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 100 << 10
