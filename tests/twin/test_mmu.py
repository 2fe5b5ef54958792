# SPDX-License-Identifier: GPL-2.0-only
"""The whole MMU on both builds: the same programs and recordings give the same events, results and digests."""

from __future__ import annotations

import random
from typing import Any

import pytest

from twin.builds import Build, assert_twins_agree

CR3 = 0x10000
RAM = 8 << 20
TABLES = 0x10000
NR_TABLES = 12
DEVICE = 0xE000_0000
#: Guest modes: control registers (cr0, cr4, efer) and size of an entry.
MODES = {
    "2-level": (0x8001_0011, 0x10, 0, 4),
    "pae": (0x8001_0011, 0x20, 0x800, 8),
    "4-level": (0x8001_0011, 0x20, 0xD00, 8),
    "5-level": (0x8001_0011, 0x1020, 0xD00, 8),
}


def random_entry(rng: random.Random, size: int) -> int:
    """An entry that is often present, points to RAM, a table or a device, and now and then is nonsense."""
    choice = rng.random()
    if choice < 0.35:
        frame = TABLES + rng.randrange(NR_TABLES) * 4096
    elif choice < 0.9:
        frame = rng.randrange(RAM >> 12) << 12
    else:
        frame = DEVICE
    flags = rng.choice([0x67, 0x27, 0x63, 0x25, 0x07, 0x21, 0xE7, 0x87, 0x00, 0x1E7])
    entry: int = frame | flags
    if size == 8 and rng.random() < 0.1:
        entry |= 1 << 63
    if size == 8 and rng.random() < 0.03:
        entry |= 1 << 50
    return entry


def start(build: Build, npt: bool, mode: str, seed: int) -> tuple[Any, Any, list[Any], random.Random]:
    """A world with random tables in low memory, its vCPU in ``mode``, and the list that its events go to."""
    rng = random.Random(seed)
    world_room = build.room("world")
    params = build.room("params").Params(npt=npt, nr_mmu_pages=64, host_page=rng.choice(["4k", "2m"]))
    world = world_room.World(params, 1 << 13)
    world.add_slot(0, 0, RAM, backing=rng.choice(["shared", "anonymous"]))
    size = MODES[mode][3]
    for page in range(NR_TABLES):
        for _ in range(24):
            world.poke(TABLES + page * 4096 + rng.randrange(4096 // size) * size, random_entry(rng, size), size)
    if mode == "pae":
        for i in range(4):
            world.poke(CR3 + 8 * i, (TABLES + (1 + i) * 4096) | 1)
    # A way to the tables and to some memory that always holds.
    vcpu = world.create_vcpu()
    cr0, cr4, efer, _ = MODES[mode]
    build.room("kvm.sregs").set_sregs(vcpu, cr0, CR3, cr4, efer)
    events: list[Any] = []
    world.on_event(events.append)
    return world, vcpu, events, rng


def random_address(rng: random.Random, mode: str) -> int:
    """An address that random tables have a chance to translate."""
    low = rng.choice([rng.randrange(0, 8 << 20), rng.randrange(24) << rng.choice([12, 21, 22]), rng.randrange(1 << 31)])
    if mode in ("4-level", "5-level") and rng.random() < 0.3:
        return rng.randrange(1 << 47)
    return low


def step(build: Build, world: Any, vcpu: Any, rng: random.Random, mode: str) -> Any:
    """One random thing that a guest or its owner does."""
    insn = build.room("kvm.insn")
    size = MODES[mode][3]
    kind = rng.random()
    user = rng.random() < 0.3
    address = random_address(rng, mode)
    if kind < 0.35:
        return repr(world.read(vcpu, address & ~7, 8, user=user))
    if kind < 0.5:
        return repr(world.fetch(vcpu, address, user=user))
    if kind < 0.75:
        length = rng.choice([1, 2, 4, 8, 16])
        value = random_entry(rng, size).to_bytes(8, "little") * 2
        return repr(world.write(vcpu, address & ~(length - 1), value[:length], user=user))
    if kind < 0.8:
        return insn.insn_invlpg(vcpu, address)
    if kind < 0.9:
        return insn.mov_cr3(vcpu, CR3 if mode == "pae" or rng.random() < 0.7 else TABLES + rng.randrange(4) * 4096)
    if kind < 0.93:
        return insn.mov_cr0(vcpu, vcpu.cr0 ^ 0x10000)
    if kind < 0.96:
        return insn.mov_cr4(vcpu, vcpu.cr4 ^ rng.choice([0x80, 1 << 20, 1 << 21]))
    where = TABLES + rng.randrange(NR_TABLES) * 4096 + rng.randrange(4096 // size) * size
    return world.poke(where, random_entry(rng, size), size)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("npt", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_random_programs_give_equal_events_and_digests(mode: str, npt: bool, seed: int) -> None:
    def program(build: Build) -> Any:
        world, vcpu, events, rng = start(build, npt, mode, seed)
        results = []
        digests = []
        for number in range(300):
            results.append(step(build, world, vcpu, rng, mode))
            if number % 50 == 0:
                digests.append(world.digest())
        problems = build.room("kvm.mmu.audit").find_violations(world.vm).problems
        digests.append(world.digest())
        world.close()
        return results, events, digests, problems, world.frames.nr_free

    results, events, _, problems, _ = assert_twins_agree(program)
    assert problems == []
    assert len(events) > (10 if npt else 200)
    assert len({str(result)[:14] for result in results}) > 2


@pytest.mark.parametrize("mmu", ["none", "shadow", "tdp-legacy"])
@pytest.mark.parametrize("name", ["linux-6.12-processes", "linux-686-boot"])
def test_a_recording_gives_equal_results(name: str, mmu: str) -> None:
    def program(build: Build) -> Any:
        room = build.room("replay.replay")
        path = room.bundled_recording(name)
        result = room.replay(path, room.Options(mmu, first=150_000, until=158_000, interval=1_500))
        facts = result.to_json()
        for name_of_run in ("recording", "build", "seconds", "peak_rss_bytes"):
            facts.pop(name_of_run)
        return facts

    facts = assert_twins_agree(program)
    assert facts["mismatches"] == 0
    assert facts["accesses"] > 4_000
    assert len(facts["intervals"]) == 6


@pytest.mark.parametrize(
    ("room", "call"),
    [
        ("world", lambda room: room.World().add_slot(0, 5, 4096)),
        ("world", lambda room: room.World().create_vcpu().nr_faults("x")),
    ],
)
def test_misuse_is_refused_by_both(room: str, call: Any) -> None:
    def program(build: Build) -> str:
        try:
            call(build.room(room))
        except Exception:  # noqa: BLE001 - which exception a wrong type raises is each build's own
            return "refused"
        return "taken"

    assert assert_twins_agree(program) == "refused"
