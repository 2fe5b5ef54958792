# SPDX-License-Identifier: GPL-2.0-only
"""Audit of reverse maps, parent links and their descriptors (I5); the debugfs file that counts rmaps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ....addr import Hpa
from ....host.frames import nonzero_words
from .survey import DESC_WORDS, Survey, name_of

if TYPE_CHECKING:
    from ...memslots import Memslot
    from ...vm import Vm
    from ..page import ShadowPage

_LEVELS = (1, 2, 3)
_LEVEL_NAMES = {1: "4K", 2: "2M", 3: "1G"}
_DESC_ENTRIES = 14


def check_rmaps(survey: Survey) -> None:
    """Every leaf is in the rmap of its gfn once, and no rmap lists anything else."""
    for as_id, slots in enumerate(survey.vm.memslots):
        for slot in slots.slots:
            for level, gfn, head in _rmap_heads(slot, nonzero_words):
                _check_rmap(survey, head, gfn, level, as_id)
    for sptep, (gfn, level, as_id) in survey.leaves.items():
        count = survey.rmap_seen[sptep]
        if count != 1:
            sp = survey.spts[sptep & ~0xFFF]
            place = f"gfn {gfn:#x} level {level} address space {as_id}"
            survey.bad("I5", f"{count} rmap entries, of {place}: {survey.spte_text(sptep, sp)}")


def _check_rmap(survey: Survey, head: int, gfn: int, level: int, as_id: int) -> None:
    what = f"rmap of gfn {gfn:#x} level {level} address space {as_id} (head {head:#x})"
    for sptep in _read_list(survey, head, what):
        survey.result.rmap_entries += 1
        survey.rmap_seen[sptep] += 1
        leaf = survey.leaves.get(sptep)
        if leaf is None:
            survey.bad("I5", f"{what}: {sptep:#x} is no present leaf ({survey.word_at(sptep)})")
        elif (leaf[0] >> (9 * (level - 1)), *leaf[1:]) != (gfn >> (9 * (level - 1)), level, as_id):
            text = f"the leaf maps gfn {leaf[0]:#x} level {leaf[1]} address space {leaf[2]}"
            survey.bad("I5", f"{what}: {text}: {survey.spte_text(sptep, survey.spts[sptep & ~0xFFF])}")


def check_parents(survey: Survey, sp: ShadowPage) -> None:
    """``sp`` knows exactly the entries that link it."""
    listed = Counter(_read_list(survey, sp.parent_ptes, f"parents of {name_of(sp)}"))
    actual = Counter(survey.parents.get(sp.spt, ()))
    for sptep in (listed - actual).elements():
        survey.bad("I5", f"{name_of(sp)} lists parent {sptep:#x}, which does not link it ({survey.word_at(sptep)})")
    for sptep in (actual - listed).elements():
        link = survey.spte_text(sptep, survey.spts[sptep & ~0xFFF])
        survey.bad("I5", f"not among the parents of {name_of(sp)}: {link}")


# Entries of a list, with every rule about its descriptors checked on the way.
def _read_list(survey: Survey, head: int, what: str) -> list[int]:
    if head & 1 == 0:
        return [head] if head else []
    entries: list[int] = []
    chain: list[tuple[int, int]] = []
    desc = head & ~7
    while desc:
        if desc & (DESC_WORDS * 8 - 1) or desc >= survey.vm.memory.size or desc in survey.descs:
            survey.bad("I5", f"{what}: descriptor {desc:#x} is misplaced or used twice")
            return entries
        survey.descs.add(desc)
        more, counts, *sptes = survey.read_words(desc, DESC_WORDS)
        count = counts & 0xFFFF_FFFF
        if not 1 <= count <= _DESC_ENTRIES or (chain and count != _DESC_ENTRIES):
            rule = "1 to 14 in the head, 14 in all others"
            survey.bad("I5", f"{what}: descriptor {desc:#x} holds {count} entries; {rule}")
        entries += sptes[: min(count, _DESC_ENTRIES)]
        chain.append((desc, counts))
        desc = more
    _check_tail_counts(survey, chain, what)
    return entries


def _check_tail_counts(survey: Survey, chain: Sequence[tuple[int, int]], what: str) -> None:
    tail = 0
    for desc, counts in reversed(chain):
        if counts >> 32 != tail:
            text = f"descriptor {desc:#x} counts {counts >> 32} entries behind it"
            survey.bad("I5", f"{what}: {text}, there are {tail}")
        tail += counts & 0xFFFF_FFFF


def mmu_rmaps_stat(vm: Vm) -> str:
    """The debugfs file ``mmu_rmaps_stat``: rmap lists by level and by the lowest set bit of their length.

    Source: reference "debugfs".
    """
    log = {level: [0] * 11 for level in _LEVELS}
    for slots in vm.memslots:
        for slot in slots.slots:
            for level, _, head in _rmap_heads(slot, enumerate):
                length = _list_length(vm, head)
                log[level][min((length & -length).bit_length(), 10)] += 1
    ranges = "".join(f"{1 << (i - 1)}-{(1 << i) - 1}\t" for i in range(2, 11))
    lines = [f"Rmap_Count:\t0\t1\t{ranges}\n"]
    for level in _LEVELS:
        counts = "".join(f"{count}\t" for count in log[level])
        lines.append(f"Level={_LEVEL_NAMES[level]}:\t{counts}\n")
    return "".join(lines)


# (level, first gfn, head word) of the rmaps of a slot that `of` picks: `enumerate` for all, `nonzero_words` for those
# that are not empty, since a slot may be large and hardly used.
def _rmap_heads(slot: Memslot, of: Callable[[memoryview], Iterable[tuple[int, int]]]) -> Iterator[tuple[int, int, int]]:
    if slot.rmap_array is None:
        return
    start = 0
    for level in (2, 3, 1):
        count = slot.nr_lpages(level)
        first = slot.base_gfn >> (9 * (level - 1))
        for i, head in of(slot.rmap_array[start : start + count]):
            yield level, (first + i) << (9 * (level - 1)), head
        start += count


def _list_length(vm: Vm, head: int) -> int:
    if head & 1 == 0:
        return 1 if head else 0
    counts = vm.memory.read_once(Hpa((head & ~7) + 8))
    return (counts & 0xFFFF_FFFF) + (counts >> 32)
