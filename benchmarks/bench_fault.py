# SPDX-License-Identifier: GPL-2.0-only
"""Page faults per second, from the first touch of a page to the retry that succeeds. Event recording is off.

Each round is a new machine: the guest's tables are there, the process has every page at hand, kvm has nothing. The
guest then touches one page after the other with ``kvm.run.access()``: TLB miss, hardware walk, exit, fault path, TLB
fill. Two layouts:

* ``group of 8``: the neighbours of a touched page are mapped ahead of need, eight sptes a fault;
* ``own group``: the neighbours do not exist, so that each fault installs one spte, and every page faults.

The loop is Python's and is part of every figure; what a turn of it costs with a call that does next to nothing is given
beside them. ``touched again`` is the same loop over the same pages after a TLB flush: each access walks the tables that
kvm has built, and no longer faults.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

from figures import Figure, best_ns, cpu_ns, run

from kvmmu.guest.tables import ControlRegisters
from kvmmu.hw.bits import ACCESS_WRITE, CR0_PE, CR0_PG, CR0_WP, CR4_PAE, EFER_LMA, EFER_LME, EFER_NX
from kvmmu.kvm.emulate import complete_mmio_read
from kvmmu.kvm.outcome import RUN_HIT
from kvmmu.kvm.run import access
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.params import Params
from kvmmu.world import World

_FAULTS = 1 << 15
_GROUP = 8
_ROUNDS = 5
_PAGE = 4096
_TABLES = 0x10_0000  # gpa of the guest's tables: root, level 3, level 2, then the level-1 tables
_DATA = 64 << 20  # gpa of the pages that the guest touches
_BASE = 1 << 30  # gva of the first of them
_ENTRY = 0x07
_ACCESSED_DIRTY = 0x60
_SETTINGS = ["nr_mmu_pages=100000"]


@dataclass(frozen=True)
class Round:
    """What one machine took: CPU time of all first touches, of touching all again; sptes that the former installed."""

    first_ns: int
    again_ns: int
    sptes: int


def _world(npt: bool, data_pages: int, populate: bool) -> tuple[World, Vcpu]:
    params = Params().with_settings([*_SETTINGS, f"npt={'on' if npt else 'off'}"])
    world = World(params, nr_frames=(_DATA >> 12) + data_pages + (_FAULTS >> 2))
    world.add_slot(0, 0, _DATA, populate=True)
    world.add_slot(1, _DATA, data_pages * _PAGE, populate=populate)
    return world, world.create_vcpu()


def _map_guest(world: World, stride: int, flags: int) -> None:
    # 512 level-1 tables, in which every stride-th entry maps the next page; the others are not present.
    first = _TABLES + 3 * _PAGE
    world.poke(_TABLES, (_TABLES + _PAGE) | _ENTRY)
    world.poke(_TABLES + _PAGE + 8, (_TABLES + 2 * _PAGE) | _ENTRY)
    world.poke(_TABLES + 2 * _PAGE, array("Q", [(first + table * _PAGE) | _ENTRY for table in range(512)]).tobytes())
    gpa = _DATA
    for table in range(512):
        entries = array("Q", bytes(_PAGE))
        for index in range(0, 512, stride):
            entries[index] = gpa | flags
            gpa += _PAGE
        world.poke(first + table * _PAGE, entries.tobytes())


def _touch(vcpu: Vcpu, gvas: list[int], kind: int) -> int:
    # CPU time of touching each gva once; all of them must end well.
    start = cpu_ns()
    for gva in gvas:
        access(vcpu, gva, kind)
    spent = cpu_ns() - start
    if access(vcpu, gvas[-1], kind) != RUN_HIT:
        raise SystemExit("bench_fault: an access of the benchmark faults")
    return spent


def _shadow_round(stride: int, flags: int, kind: int) -> Round:
    # One machine under shadow paging.
    world, vcpu = _world(False, _FAULTS * _GROUP // stride, True)
    _map_guest(world, stride, flags)
    registers = ControlRegisters(CR0_PE | CR0_PG | CR0_WP, _TABLES, CR4_PAE, EFER_LME | EFER_LMA | EFER_NX)
    world.load_registers(vcpu, registers)
    # Builds the root; the guest has nothing there.
    world.read(vcpu, _BASE * 2)
    return _measure(world, vcpu, [_BASE + i * _GROUP * _PAGE for i in range(_FAULTS)], kind)


def _tdp_round(*, own_group: bool) -> Round:
    # One machine with the legacy direct MMU on NPT, and a guest that does not use paging. A neighbour that the process
    # does not have at hand is not mapped ahead of need.
    world, vcpu = _world(True, _FAULTS * _GROUP, False)
    slot = world.vm.memslots[0].find(_DATA >> 12)
    for page in range(0, _FAULTS * _GROUP, _GROUP if own_group else 1):
        world.mm.fault_in(slot.userspace_addr + page * _PAGE, True)  # type: ignore[union-attr, arg-type]
    access(vcpu, 0, 0)
    return _measure(world, vcpu, [_DATA + i * _GROUP * _PAGE for i in range(_FAULTS)], 0)


def _measure(world: World, vcpu: Vcpu, gvas: list[int], kind: int) -> Round:
    before = world.counters()
    spent = _touch(vcpu, gvas, kind)
    after = world.counters()
    faults = after["pf_fixed"] - before["pf_fixed"]
    if faults != _FAULTS:
        raise SystemExit(f"bench_fault: {faults} faults, {_FAULTS} expected")
    vcpu.cpu.flush_all()
    return Round(spent, _touch(vcpu, gvas, kind), after["pages_4k"] - before["pages_4k"])


def _loop_ns(vcpu: Vcpu) -> float:
    # One turn of the loop with a call of the same shape that only looks whether a trace is on.
    gvas = [_BASE + i * _PAGE for i in range(_FAULTS)]

    def turn() -> None:
        for gva in gvas:
            complete_mmio_read(vcpu, gva, 0)

    return best_ns(turn, 7) / _FAULTS


def _figures(name: str, rounds: list[Round], target: float | None) -> list[Figure]:
    first = min(each.first_ns for each in rounds) / _FAULTS
    again = min(each.again_ns for each in rounds) / _FAULTS
    sptes = rounds[0].sptes / _FAULTS
    figures = [
        Figure(name, 1e9 / first, "faults/s", target, True, f"{first:.0f} ns a fault"),
        Figure(f"{name}: touched again", again, "ns", note=f"a fault costs {first / again:.1f} times that"),
    ]
    if sptes > 1:
        figures.insert(1, Figure(f"{name}: sptes", sptes * 1e9 / first, "sptes/s", note=f"{sptes:.1f} a fault"))
    return figures


def measure() -> list[Figure]:
    """Faults and sptes per second by MMU and layout."""
    used = _ENTRY | _ACCESSED_DIRTY
    cases: list[tuple[str, Callable[[], Round], float | None]] = [
        ("shadow, own group", lambda: _shadow_round(_GROUP, used, 0), 500_000.0),
        ("shadow, own group, write, A and D to set", lambda: _shadow_round(_GROUP, _ENTRY, ACCESS_WRITE), 500_000.0),
        ("shadow, group of 8", lambda: _shadow_round(1, used, 0), 500_000.0),
        ("legacy TDP, own group", lambda: _tdp_round(own_group=True), 1_000_000.0),
        ("legacy TDP, group of 8", lambda: _tdp_round(own_group=False), None),
    ]
    figures = []
    for name, one_round, target in cases:
        figures += _figures(name, [one_round() for _ in range(_ROUNDS)], target)
    loop = _loop_ns(_world(False, 8, True)[1])
    return [*figures, Figure("one turn of the loop", loop, "ns", note="part of each figure")]


if __name__ == "__main__":
    run(measure)
