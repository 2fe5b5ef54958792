# SPDX-License-Identifier: GPL-2.0-only
"""Bytes that kvm's bookkeeping takes: per shadow page beyond its tables, and per rmap entry of a shared page.

Shadow pages: a guest touches pages that lie far apart, so that each needs tables of its own. What Python allocated
meanwhile (``tracemalloc``: headers of shadow pages, and whatever else was kept) and what was taken from the arena, less
the 4096 bytes of each table and of each array of translations, is divided by the number of pages.

Rmaps: one guest page is mapped at more and more addresses. A list of 14 or more entries has its descriptors in frames
of the arena; what is counted are the descriptors in use (128 bytes each) and the head word. How much of the frames
is free at that moment is said beside it.
"""

from __future__ import annotations

import gc
import tracemalloc
from array import array
from collections import Counter
from importlib import resources

from figures import Figure, run

from kvmmu.guest.tables import ControlRegisters
from kvmmu.hw.bits import CR0_PE, CR0_PG, CR0_WP, CR4_PAE, EFER_LMA, EFER_LME, EFER_NX
from kvmmu.kvm.mmu.bits import PTE_LIST_DESC_SIZE, PTE_LIST_EXT
from kvmmu.kvm.mmu.rmap import pte_list_count
from kvmmu.kvm.mmu.role import role_direct, role_level
from kvmmu.kvm.run import access
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.params import Params
from kvmmu.record.reader import Reader
from kvmmu.replay.machine import build_machine
from kvmmu.replay.player import Player
from kvmmu.world import World

_PAGE = 4096
_ENTRY = 0x67
_TABLES = 0x10_0000
_BASE = 1 << 30
_NR_TABLES = 448
_DATA = 0x80_0000
_RECORDING = "linux-6.12-processes.kmr"


def _machine(npt: bool) -> tuple[World, Vcpu]:
    params = Params().with_settings(["nr_mmu_pages=20000", f"npt={'on' if npt else 'off'}"])
    world = World(params, nr_frames=1 << 16)
    world.add_slot(0, 0, 64 << 20, populate=True)
    return world, world.create_vcpu()


def _map_guest(world: World, vcpu: Vcpu, per_table: int) -> None:
    # Level-1 tables whose first entries all map the page at _DATA.
    first = _TABLES + 3 * _PAGE
    world.poke(_TABLES, (_TABLES + _PAGE) | _ENTRY)
    world.poke(_TABLES + _PAGE + 8, (_TABLES + 2 * _PAGE) | _ENTRY)
    tables = array("Q", [(first + table * _PAGE) | _ENTRY for table in range(_NR_TABLES)])
    world.poke(_TABLES + 2 * _PAGE, tables.tobytes())
    entries = array("Q", [_DATA | _ENTRY] * per_table + [0] * (512 - per_table)).tobytes()
    for table in range(_NR_TABLES):
        world.poke(first + table * _PAGE, entries)
    registers = ControlRegisters(CR0_PE | CR0_PG | CR0_WP, _TABLES, CR4_PAE, EFER_LME | EFER_LMA | EFER_NX)
    world.load_registers(vcpu, registers)


def _arena_bytes(world: World) -> int:
    return (world.memory.nr_frames - world.frames.nr_free - world.vm.nr_desc_frames) * _PAGE


def _per_page(world: World, vcpu: Vcpu, gvas: list[int]) -> tuple[float, int]:
    # (bytes beyond the tables, pages) for the shadow pages that touching gvas makes. The first touch makes what is
    # there once: the root, the arrays of the slots, the rooms' own caches.
    access(vcpu, gvas[0], 0)
    before_pages, before_arena = len(world.shadow_pages()), _arena_bytes(world)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for gva in gvas[1:]:
        access(vcpu, gva, 0)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    pages = world.shadow_pages()
    nr_pages = len(pages) - before_pages
    tables = 0
    for sp in pages[:nr_pages]:
        tables += _PAGE if role_direct(sp.role) or role_level(sp.role) > 3 else 2 * _PAGE
    return (grown + _arena_bytes(world) - before_arena - tables) / nr_pages, nr_pages


def _page_figures() -> list[Figure]:
    world, vcpu = _machine(False)
    _map_guest(world, vcpu, 1)
    shadow, nr_shadow = _per_page(world, vcpu, [_BASE + table * (2 << 20) for table in range(_NR_TABLES)])
    world, vcpu = _machine(True)
    direct, nr_direct = _per_page(world, vcpu, list(range(0, 64 << 20, 2 << 20)))
    return [
        Figure("indirect shadow page, beyond its two frames", shadow, "bytes", 512.0, note=f"{nr_shadow} pages"),
        Figure("direct page, beyond its frame", direct, "bytes", 512.0, note=f"{nr_direct} pages"),
    ]


def _descriptors(count: int) -> int:
    # Descriptors of a list of so many entries: only the head one may be partly filled.
    return 0 if count < 2 else -(-count // PTE_LIST_EXT)


def _chain_bytes(count: int) -> int:
    return 8 + _descriptors(count) * PTE_LIST_DESC_SIZE


def _free_descriptors(world: World) -> int:
    nr, desc = 0, world.vm.desc_free
    while desc:
        nr += 1
        desc = world.memory.read_once(desc)
    return nr


def _used_descriptors(world: World) -> int:
    return world.vm.nr_desc_frames * (_PAGE // PTE_LIST_DESC_SIZE) - _free_descriptors(world)


def _chain_figures() -> list[Figure]:
    # One page, mapped at one address more after the other; a table's 512 entries are as many addresses. The parents of
    # the tables have one entry each, which needs no descriptor.
    world, vcpu = _machine(False)
    _map_guest(world, vcpu, 512)
    slot = world.vm.gfn_to_memslot(_DATA >> 12, 0)  # type: ignore[arg-type]
    per_entry: dict[int, float] = {}
    gva = _BASE
    while True:
        access(vcpu, gva, 0)
        gva += 8 * _PAGE
        count = pte_list_count(world.vm, slot.rmap_word(_DATA >> 12, 1))  # type: ignore[union-attr, arg-type]
        if count >= PTE_LIST_EXT:
            per_entry[count] = (8 + _used_descriptors(world) * PTE_LIST_DESC_SIZE) / count
            if _used_descriptors(world) != _descriptors(count):
                raise SystemExit(f"bench_memory: {_used_descriptors(world)} descriptors for {count} entries")
        if count >= 800:
            break
    mean = sum(per_entry.values()) / len(per_entry)
    worst = max(_chain_bytes(count) / count for count in range(PTE_LIST_EXT, 1000))
    worst_at = max(range(PTE_LIST_EXT, 1000), key=lambda count: _chain_bytes(count) / count)
    return [
        Figure("rmap entry, chains of 16 to 800", mean, "bytes", 16.0, note=f"{len(per_entry)} lengths, each once"),
        Figure("rmap entry, the worst length from 14 on", worst, "bytes", note=f"a chain of {worst_at}: see docs"),
    ]


def _recorded_figures() -> list[Figure]:
    # Chains as they occur: a workload of many processes, at its end.
    with resources.as_file(resources.files("kvmmu") / "recordings" / _RECORDING) as path:
        reader = Reader(str(path))
        machine = build_machine(reader.header, Params().with_settings(["npt=off"]))
        Player(reader, machine).play(1 << 60)
    chains: Counter[int] = Counter()
    for slot in machine.vm.memslots[0].slots:
        for gfn in range(slot.base_gfn, slot.end_gfn):
            chains[pte_list_count(machine.vm, slot.rmap_word(gfn, 1))] += 1
    entries = sum(count * nr for count, nr in chains.items() if count >= PTE_LIST_EXT)
    total = sum(_chain_bytes(count) * nr for count, nr in chains.items() if count >= PTE_LIST_EXT)
    shared = sum(nr for count, nr in chains.items() if count >= PTE_LIST_EXT)
    if not entries:
        return []
    note = f"{shared} chains of 14 to {max(chains)}"
    return [Figure("rmap entry, chains as recorded", total / entries, "bytes", 16.0, note=note)]


def measure() -> list[Figure]:
    """Bytes per shadow page and per rmap entry."""
    return [*_page_figures(), *_chain_figures(), *_recorded_figures()]


if __name__ == "__main__":
    run(measure)
