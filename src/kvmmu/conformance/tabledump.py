# SPDX-License-Identifier: GPL-2.0-only
"""The model's live tables and rmap statistics in the form that the transcripts print, and their comparison.

Frames have other numbers on another host, so they are symbols: in a dump each frame of one side must stand for one
frame of the other, wherever it appears, and each page of kvm's tables for one page of tables. A and D bits of present
entries are masked: the hardware sets them at its own time.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..addr import Gfn, Hpa
from ..hw.bits import PT_PAGE_SIZE, PT_PRESENT
from ..kvm.mmu.bits import SHADOW_NONPRESENT_VALUE, SPTE_MMU_PRESENT
from ..kvm.mmu.rmap import pte_list_count
from ..kvm.vm import Vm
from .transcript import Spte, TableDump

_PFN_MASK = 0x000F_FFFF_FFFF_F000
_AD_MASK = 0x60
_PAE_LEVEL = 3
_LEVELS = {"4K": 1, "2M": 2, "1G": 3}
_RMAP_BUCKETS = 11


def dump_tables(vm: Vm, root: Hpa, level: int) -> TableDump:
    """Every entry of the tables below ``root`` that is neither 0 nor nonpresent, top down; none for a level of 0."""
    entries = _walk(vm, root, level, 0, level == _PAE_LEVEL) if level else ()
    return TableDump(root, level, list(entries))


def _walk(vm: Vm, table: Hpa, level: int, address: int, is_pae_root: bool) -> Iterator[Spte]:
    for index in range(4 if is_pae_root else 512):
        place = Hpa(table + 8 * index)
        word = vm.memory.read_once(place)
        if word in (0, SHADOW_NONPRESENT_VALUE):
            continue
        first = address | index << (12 + 9 * (level - 1))
        yield Spte(level, first, word, place)
        is_table = word & PT_PRESENT if is_pae_root else word & SPTE_MMU_PRESENT
        if level > 1 and not word & PT_PAGE_SIZE and is_table:
            yield from _walk(vm, Hpa(word & _PFN_MASK), level - 1, first, False)


class _Pairs:
    # Which page of one host stands for which of the other, in one dump.

    def __init__(self) -> None:
        self.there: dict[int, int] = {}
        self.back: dict[int, int] = {}

    def agree(self, recorded: int, model: int) -> bool:
        return self.there.setdefault(recorded, model) == model and self.back.setdefault(model, recorded) == recorded


def _flags(word: int) -> int:
    if not word & PT_PRESENT:
        return word
    return word & ~_PFN_MASK & ~_AD_MASK


def compare_tables(recorded: TableDump, model: TableDump) -> str | None:
    """Where ``model`` differs first from ``recorded``, in words; None if it does not."""
    wanted = [spte for spte in recorded.entries if spte.word not in (0, SHADOW_NONPRESENT_VALUE)]
    frames, tables = _Pairs(), _Pairs()
    for i in range(max(len(wanted), len(model.entries))):
        if i == len(wanted):
            return f"recorded: no more entries; model: {_text(model.entries[i])}"
        if i == len(model.entries):
            return f"recorded: {_text(wanted[i])}; model: no more entries"
        want, got = wanted[i], model.entries[i]
        is_same = (want.level, want.address, _flags(want.word)) == (got.level, got.address, _flags(got.word))
        is_same = is_same and want.sptep & 0xFFF == got.sptep & 0xFFF
        is_same = is_same and tables.agree(want.sptep & _PFN_MASK, got.sptep & _PFN_MASK)
        if is_same and want.word & PT_PRESENT:
            is_leaf = want.level == 1 or want.word & PT_PAGE_SIZE
            is_same = (frames if is_leaf else tables).agree(want.word & _PFN_MASK, got.word & _PFN_MASK)
        if not is_same:
            return f"recorded: {_text(want)}; model: {_text(got)}"
    return None


def _text(spte: Spte) -> str:
    return f"L{spte.level} {spte.address:#x} {spte.word:#x} at index {(spte.sptep & 0xFFF) >> 3}"


def rmap_histogram(vm: Vm) -> dict[str, list[int]]:
    """``mmu_rmaps_stat``: for each page size, how many rmaps have a length whose lowest set bit is 1, 2, 4 ...

    The kernel's file sorts by the lowest set bit, not by the magnitude that its headings name. First column: empty.
    """
    out: dict[str, list[int]] = {}
    for name, level in _LEVELS.items():
        counts = [0] * _RMAP_BUCKETS
        for slots in (vm.slots_of(0), vm.slots_of(1)):
            for slot in slots.slots:
                gfn = slot.base_gfn
                for _ in range(slot.nr_lpages(level)):
                    length = pte_list_count(vm, slot.rmap_word(gfn, level)) if slot.rmap_array is not None else 0
                    counts[(length & -length).bit_length()] += 1
                    gfn = Gfn((gfn // 512 ** (level - 1) + 1) * 512 ** (level - 1))
        out[name] = counts
    return out
