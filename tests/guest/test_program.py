# SPDX-License-Identifier: GPL-2.0-only
"""Programs of guests: each step does its one thing, and says what came of it."""

from __future__ import annotations

from typing import Any

import pytest

from kvmmu import world as world_room
from kvmmu.errors import GuestMisuse
from kvmmu.guest.program import (
    DONE,
    GP,
    Access,
    ClearBits,
    Invlpg,
    Invpcid,
    Map,
    MovCr0,
    MovCr3,
    MovCr4,
    SetBits,
    SetEntry,
    Step,
    Unmap,
    WrmsrEfer,
    Wrpkru,
    run,
)
from kvmmu.guest.tables import SIZE_2M, GuestTables
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.params import Params
from kvmmu.world import World

P, W, U = 1, 2, 4
ROOT = 0x10000
#: The guest sees its first 4 MiB, its tables among them, at this gva.
WINDOW = 0x8000_0000


def machine(*, npt: bool = False) -> tuple[World, Vcpu, GuestTables]:
    """A 4-level guest in which WINDOW shows the memory that holds its tables."""
    world = World(Params(npt=npt))
    world.add_slot(0, 0, 16 << 20)
    vcpu = world.create_vcpu()
    tables = world.tables("4-level", ROOT)
    tables.map_range(WINDOW, 0, 4 << 20, SIZE_2M)
    world.load_registers(vcpu, tables.registers())
    return world, vcpu, tables


def own_tables(world: World, vcpu: Vcpu) -> GuestTables:
    """The tables of machine() as the guest itself edits them: by stores through its window."""
    own = world.tables("4-level", ROOT, vcpu=vcpu, window=WINDOW)
    # Two pages after the root are what the window's mapping took.
    for _ in range(2):
        own.new_table()
    return own


class Recorder:
    """A machine that notes what it was asked, and answers as it was told."""

    def __init__(self, *, answer: bool) -> None:
        self.answer = answer
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def call(vcpu: object, *args: object, **kwargs: object) -> bool:
            assert vcpu == "vcpu"
            self.calls.append((name, *args, *kwargs.values()))
            return self.answer

        return call


CALLS: list[tuple[Step, tuple[Any, ...]]] = [
    (Access("read", 0x1000, 4, user=True), ("read", 0x1000, 4, True)),
    (Access("write", 0x1000, data=b"ab"), ("write", 0x1000, b"ab", False)),
    (Access("write", 0x1000, 3), ("write", 0x1000, b"\0\0\0", False)),
    (Access("fetch", 0x1000, 2), ("fetch", 0x1000, 2, False)),
    (Invlpg(0x5000), ("invlpg", 0x5000)),
    (Invpcid(1, 7, 0x5000), ("invpcid", 1, 7, 0x5000)),
    (MovCr0(1), ("mov_cr0", 1)),
    (MovCr3(0x3000), ("mov_cr3", 0x3000)),
    (MovCr4(0x20), ("mov_cr4", 0x20)),
    (WrmsrEfer(0xD00), ("wrmsr_efer", 0xD00)),
    (Wrpkru(0xC), ("wrpkru", 0xC)),
]


@pytest.mark.parametrize(("step", "call"), CALLS, ids=[repr(step) for step, _ in CALLS])
def test_a_step_is_one_call_of_the_machine(step: Step, call: tuple[Any, ...]) -> None:
    for answer in (True, False):
        recorder = Recorder(answer=answer)
        (result,) = run([step], recorder, "vcpu", None)  # type: ignore[arg-type]
        assert recorder.calls == [call]
        assert result == (answer if isinstance(step, Access) else DONE if answer else GP)


def test_a_program_gives_a_result_for_each_step_in_order() -> None:
    world, vcpu, _ = machine()
    tables = own_tables(world, vcpu)
    leaf = tables.map(0x400000, 0x200000, flags=P)
    program: list[Step] = [
        Access("write", 0x400000, data=b"hello", user=True),
        SetBits(0x400000, W | U),
        Invlpg(0x400000),
        Access("write", 0x400000, data=b"hello", user=True),
        Access("read", 0x400001, 4),
        ClearBits(0x400000, U),
        Invlpg(0x400000),
        Access("fetch", 0x400000, 1, user=True),
        Map(0x401000, 0xE000_0000),
        Access("read", 0x401008, 4),
        SetEntry(0x401000, 1, 0x20_0003),
        Invlpg(0x401000),
        Access("read", 0x401000, 5),
        Unmap(0x401000),
        Invlpg(0x401000),
        Access("read", 0x401000, 5),
    ]
    results = run(program, world, vcpu, tables)
    done, fault = "done", "fault"
    assert results == [
        world_room.Access(fault, error_code=7, address=0x400000),
        results[1],
        DONE,
        world_room.Access(done),
        world_room.Access(done, b"ello"),
        results[5],
        DONE,
        world_room.Access(fault, error_code=0x15, address=0x400000),
        leaf + 8,
        world_room.Access("mmio", address=0xE000_0008),
        leaf + 8,
        DONE,
        world_room.Access(done, b"hello"),
        leaf + 8,
        DONE,
        world_room.Access(fault, error_code=0, address=0x401000),
    ]
    # The CPU set A and D meanwhile; W and U are what the steps changed.
    assert isinstance(results[1], int)
    assert isinstance(results[5], int)
    assert (results[1] & 7, results[5] & 7) == (P | W | U, P | W)
    assert results[1] & ~0xFFF == results[5] & ~0xFFF == 0x200000
    world.audit()


def test_level_0_of_a_bit_step_is_the_leaf_and_others_are_tables() -> None:
    world, vcpu, tables = machine()
    tables.map(0x400000, 0x200000)
    run([ClearBits(0x400000, W, 2), ClearBits(0x400000, U)], world, vcpu, tables)
    assert [step.entry & 7 for step in tables.walk(0x400000)] == [7, 7, 5, 3]


@pytest.mark.parametrize("npt", [False, True], ids=["shadow", "npt"])
@pytest.mark.parametrize(
    "step",
    [
        MovCr0(0x8000_0000),
        MovCr3(1 << 63),
        MovCr4(0),
        WrmsrEfer(0x800),
        Invpcid(0, 5, 0x1000),
        Invpcid(4),
    ],
    ids=repr,
)
def test_an_instruction_that_is_not_allowed_gets_gp_and_changes_nothing(step: Step, npt: bool) -> None:
    world, vcpu, tables = machine(npt=npt)
    before = (vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer)
    assert run([step], world, vcpu, tables) == [GP]
    assert (vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer) == before
    assert world.read(vcpu, WINDOW).kind == "done"


def test_instructions_that_are_allowed_change_the_registers() -> None:
    world, vcpu, tables = machine()
    cr0, cr4, efer = vcpu.cr0 & ~0x1_0000, vcpu.cr4 | 0x80, vcpu.efer & ~0x800
    program: list[Step] = [MovCr0(cr0), MovCr4(cr4), WrmsrEfer(efer), Wrpkru(0xC), MovCr3(ROOT), Invpcid(2)]
    assert run(program, world, vcpu, tables) == [DONE] * 6
    assert (vcpu.cr0, vcpu.cr4, vcpu.efer, vcpu.pkru) == (cr0, cr4, efer, 0xC)


@pytest.mark.parametrize("npt", [False, True], ids=["shadow", "npt"])
def test_the_guests_own_stores_edit_its_tables(npt: bool) -> None:
    world, vcpu, _ = machine(npt=npt)
    own = own_tables(world, vcpu)
    world.poke(0x30_0000, b"by store")
    program: list[Step] = [
        Map(0x400000, 0x30_0000),
        Access("read", 0x400000),
        ClearBits(0x400000, W),
        Invlpg(0x400000),
        Access("write", 0x400000, data=b"x"),
        Unmap(0x400000),
        Invlpg(0x400000),
        Access("read", 0x400000),
    ]
    results = run(program, world, vcpu, own)
    assert results[1] == world_room.Access("done", b"by store")
    assert results[4] == world_room.Access("fault", error_code=3, address=0x400000)
    assert results[7] == world_room.Access("fault", error_code=0, address=0x400000)
    world.audit()


def test_an_unknown_access_is_refused() -> None:
    world, vcpu, tables = machine()
    with pytest.raises(GuestMisuse, match="access 'jump': a guest makes read, write and fetch"):
        run([Access("jump", 0)], world, vcpu, tables)


def test_an_edit_through_a_window_that_shows_nothing_is_refused() -> None:
    world, vcpu, _ = machine()
    blind = world.tables("4-level", ROOT, vcpu=vcpu, window=0x4000_0000_0000)
    with pytest.raises(GuestMisuse, match=r"cannot reach its own table: <Access fault #PF\(0x0\) at 0x400000010"):
        run([Map(0x400000, 0x300000)], world, vcpu, blind)


def test_the_same_program_gives_the_same_results_and_the_same_machine() -> None:
    program: list[Step] = [Map(0x400000, 0x200000), Access("write", 0x400000, data=b"x"), MovCr3(ROOT), Unmap(0x400000)]
    seen = []
    for _ in range(2):
        world, vcpu, tables = machine()
        seen.append((repr(run(program, world, vcpu, tables)), world.digest()))
    assert seen[0] == seen[1]
