# SPDX-License-Identifier: GPL-2.0-only
"""The TDP MMU: a fault against one of the legacy direct MMU, passes against a fault, and how costs grow.

``fault``: each round is a new machine, whose process has every page at hand and whose guest, without paging, touches
one page after the other in ascending order; rounds of both MMUs alternate, medians are compared. The legacy MMU maps
the neighbours of a page ahead of need: its guest touches one page in eight, whose neighbours do not exist, so that
either MMU installs one spte a fault; the TDP MMU's guest does the same.
``passes``: 2M pages are split, write-protected, and their log cleared, per 4K spte.
``growth``: faults of the TDP MMU on the first 10**3 pages, and on the last up to 65536 of 10**4 to 10**7.
"""

from __future__ import annotations

import statistics

from figures import Figure, cpu_ns, run

from kvmmu.kvm.mmu import dirty, gfnrange
from kvmmu.kvm.run import access
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.params import Params
from kvmmu.world import World

_PAGE = 4096
_FAULTS = 1 << 14
_GROUP = 8
_ROUNDS = 9
_HUGE = 512
_HUGE_PAGES = 64
_GROWTH = (10**3, 10**4, 10**5, 10**6, 10**7)


def _world(pages: int, *settings: str) -> tuple[World, Vcpu]:
    params = Params().with_settings(["nr_mmu_pages=1000000", *settings])
    world = World(params, nr_frames=pages + (pages >> 3) + 65536)
    world.add_slot(0, 0, pages * _PAGE)
    return world, world.create_vcpu()


def _touch(vcpu: Vcpu, first: int, count: int, step: int) -> float:
    # CPU ns of each touch.
    gvas = [(first + i * step) * _PAGE for i in range(count)]
    start = cpu_ns()
    for gva in gvas:
        access(vcpu, gva, 0)
    return (cpu_ns() - start) / count


def _fault_ns(tdp_mmu: str) -> float:
    world, vcpu = _world(_FAULTS * _GROUP, f"tdp_mmu={tdp_mmu}")
    slot = world.vm.memslots[0].find(0)
    for page in range(0, _FAULTS * _GROUP, _GROUP):
        world.mm.fault_in(slot.userspace_addr + page * _PAGE, True)  # type: ignore[union-attr, arg-type]
    access(vcpu, 0, 0)
    spent = _touch(vcpu, _GROUP, _FAULTS - 1, _GROUP)
    if world.counters()["pages_4k"] != _FAULTS:
        raise SystemExit("bench_tdp: not one spte a fault")
    return spent


def _pass_ns() -> tuple[float, float, float]:
    # ns of a split, a write protection and a clear, per 4K spte.
    world, vcpu = _world(_HUGE_PAGES * _HUGE, "host_page=2m")
    vm = world.vm
    for page in range(_HUGE_PAGES):
        world.write(vcpu, page * _HUGE * _PAGE, b"x")
    if vm.stat.pages_2m != _HUGE_PAGES:
        raise SystemExit("bench_tdp: no huge pages")
    sptes = _HUGE_PAGES * _HUGE
    slot = vm.memslots[0].find(0)
    start = cpu_ns()
    gfnrange.split_slot(vm, slot)
    split = cpu_ns() - start
    if vm.stat.pages_4k != sptes:
        raise SystemExit("bench_tdp: nothing was split")
    start = cpu_ns()
    gfnrange.write_protect_slot(vm, slot)
    protect = cpu_ns() - start
    dirty.set_manual_protect(vm, 3)
    world.set_region(_logged(slot))
    slot = vm.memslots[0].find(0)
    _make_writable(vcpu, sptes)
    log = b"\xff" * (sptes // 8)
    start = cpu_ns()
    dirty.clear_dirty_log(vm, 0, 0, sptes, log)
    clear = cpu_ns() - start
    return split / sptes, protect / sptes, clear / sptes


def _logged(slot: object) -> object:
    from kvmmu.kvm.regions import UserMemoryRegion

    return UserMemoryRegion(0, 1, 0, slot.npages * _PAGE, slot.userspace_addr)  # type: ignore[attr-defined, arg-type]


def _make_writable(vcpu: Vcpu, sptes: int) -> None:
    for page in range(sptes):
        access(vcpu, page * _PAGE, 2)


def _growth() -> list[tuple[int, float]]:
    # Memory beyond 4G takes a guest with paging: pages of 1G, whose tables lie behind all that is touched.
    pages = _GROWTH[-1] + 4096
    world, vcpu = _world(pages)
    tables = world.tables("4-level", _GROWTH[-1] * _PAGE, nr_bytes=4096 * _PAGE)
    tables.map_range(0, 0, -(-pages * _PAGE >> 30) << 30, 1 << 30)
    world.load_registers(vcpu, tables.registers())
    slot = world.vm.memslots[0].find(0)
    access(vcpu, 0, 0)
    before = world.counters()["pages_4k"] - 1
    found = []
    at = 0
    for goal in _GROWTH:
        step = 1 << 16
        while at < goal:
            count = min(step, goal - at)
            for page in range(at, at + count):
                world.mm.fault_in(slot.userspace_addr + page * _PAGE, True)  # type: ignore[union-attr, arg-type]
            spent = _touch(vcpu, at, count, 1)
            at += count
        if world.counters()["pages_4k"] - before != goal:
            raise SystemExit(f"bench_tdp: not {goal} sptes")
        found.append((goal, spent))
    return found


def figures() -> list[Figure]:
    """All figures of the TDP MMU."""
    legacy, tdp, passes = [], [], []
    for _ in range(_ROUNDS):
        legacy.append(_fault_ns("off"))
        tdp.append(_fault_ns("on"))
        passes.append(_pass_ns())
    fault = statistics.median(tdp)
    split, protect, clear = (statistics.median(column) for column in zip(*passes, strict=True))
    out = [
        Figure("TDP MMU fault", 1e9 / fault, "faults/s", None, True, f"{fault:.0f} ns a fault"),
        Figure("TDP MMU fault : legacy TDP fault", fault / statistics.median(legacy), "times", 0.85),
        Figure("fault : eager split of a 4K spte", fault / split, "times", 25, True, f"{split:.1f} ns"),
        Figure("fault : write protection of a page", fault / protect, "times", 15, True, f"{protect:.1f} ns"),
        Figure("fault : clearing of a page", fault / clear, "times", 15, True, f"{clear:.1f} ns"),
    ]
    growth = _growth()
    base = growth[0][1]
    out += [
        Figure(f"TDP MMU fault behind {goal} sptes : the first 1000", spent / base, "times", 1.2)
        for goal, spent in growth[1:]
    ]
    return out


if __name__ == "__main__":
    run(figures)
