# SPDX-License-Identifier: GPL-2.0-only
"""Audit of reverse maps, parent links and their descriptors (I5); the debugfs file that counts rmaps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from ....addr import Hpa
from ....host.frames import nonzero_words
from ....page_types import ENTRIES
from .known import differing_words
from .survey import DESC_WORDS, ListKey, Survey, name_of, parents_key, rmap_key

if TYPE_CHECKING:
    from ...memslots import Memslot
    from ...vm import Vm
    from ..page import ShadowPage

_LEVELS = (1, 2, 3)
_LEVEL_NAMES = {1: "4K", 2: "2M", 3: "1G"}
_DESC_ENTRIES = 14
_ZEROS = bytes(ENTRIES * 8)


def check_rmaps(survey: Survey) -> None:
    """Every leaf is in the rmap of its gfn once, and no rmap lists anything else."""
    for as_id, slots in enumerate(survey.vm.memslots):
        for slot in slots.slots:
            for level, gfn, head in _rmap_heads(slot, nonzero_words):
                check_rmap(survey, head, (as_id, level, gfn))
    check_listed(survey, survey.leaves)


class RmapHeads:
    """The heads of all rmaps of ``vm`` that are not empty, in ``heads``, as of the last :meth:`look`."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.heads: dict[ListKey, int] = {}
        # (address space, slot, level, first element) -> bytes of the parts of the arrays that are not all zero.
        self._parts: dict[tuple[int, int, int, int], bytes] = {}
        self.look()

    def look(self) -> dict[ListKey, int]:
        """Look again, with the same slots; return the heads as they were of those that changed."""
        before: dict[ListKey, int] = {}
        for as_id, slots in enumerate(self.vm.memslots):
            for slot in slots.slots:
                for level, start, array in _rmap_arrays(slot):
                    for at in range(0, len(array), ENTRIES):
                        place = (as_id, slot.id, level, at)
                        now, held = array[at : at + ENTRIES].tobytes(), self._parts.get(place)
                        if now == held or (held is None and now == _ZEROS[: len(now)]):
                            continue
                        self._parts[place] = now
                        for index in differing_words(held or _ZEROS[: len(now)], now):
                            key = (as_id, level, (start + at + index) << (9 * (level - 1)))
                            before[key] = self.heads.pop(key, 0)
                            if head := array[at + index]:
                                self.heads[key] = head
        return before


def check_listed(survey: Survey, places: Iterable[int]) -> None:
    """Each leaf at one of ``places`` was found in one list."""
    leaves, seen = survey.leaves, survey.rmap_seen
    for sptep in places:
        if seen.get(sptep) != 1 and sptep in leaves:
            gfn, level, as_id = leaves[sptep]
            place = f"gfn {gfn:#x} level {level} address space {as_id}"
            text = survey.spte_text(sptep, survey.spts[sptep & ~0xFFF])
            survey.bad("I5", f"{seen.get(sptep, 0)} rmap entries, of {place}: {text}")


def check_rmap(survey: Survey, head: int, key: ListKey) -> None:
    """The rmap ``key`` lists leaves of its gfn and level."""
    count_listed(survey, head, key, read_list(survey, head, key))


def count_listed(survey: Survey, head: int, key: ListKey, entries: Iterable[int]) -> None:
    """The rmap ``key`` lists ``entries``: count them, and check them."""
    seen = survey.rmap_seen
    for sptep in entries:
        seen[sptep] = seen.get(sptep, 0) + 1
    check_members(survey, head, key, entries)


def check_members(survey: Survey, head: int, key: ListKey, entries: Iterable[int]) -> None:
    """``entries``, which the rmap ``key`` lists, are leaves of its gfn and level."""
    leaves = survey.leaves
    as_id, level, gfn = key
    wanted = gfn, level, as_id
    for sptep in entries:
        leaf = leaves.get(sptep)
        # Aligned as it should be, or at least in the block of the rmap.
        if leaf != wanted and (leaf is None or rmap_key(leaf) != key):
            _complain(survey, head, key, sptep)


def _complain(survey: Survey, head: int, key: ListKey, sptep: int) -> None:
    leaf = survey.leaves.get(sptep)
    if leaf is None:
        text = f"{sptep:#x} is no present leaf ({survey.word_at(sptep)})"
    else:
        text = f"the leaf maps gfn {leaf[0]:#x} level {leaf[1]} address space {leaf[2]}"
        text += f": {survey.spte_text(sptep, survey.spts[sptep & ~0xFFF])}"
    survey.bad("I5", f"{_list_name(survey, head, key)}: {text}")


def check_parents(survey: Survey, sp: ShadowPage) -> None:
    """``sp`` knows exactly the entries that link it."""
    listed = Counter(read_list(survey, sp.parent_ptes, parents_key(sp)))
    actual = Counter(survey.parents.get(sp.spt, ()))
    for sptep in (listed - actual).elements():
        survey.bad("I5", f"{name_of(sp)} lists parent {sptep:#x}, which does not link it ({survey.word_at(sptep)})")
    for sptep in (actual - listed).elements():
        link = survey.spte_text(sptep, survey.spts[sptep & ~0xFFF])
        survey.bad("I5", f"not among the parents of {name_of(sp)}: {link}")


def read_list(survey: Survey, head: int, key: ListKey) -> list[int]:
    """Entries of a list, with every rule about its descriptors checked on the way."""
    if head & 1 == 0:
        return [head] if head else []
    entries: list[int] = []
    chain: list[tuple[int, int]] = []
    desc = head & ~7
    while desc:
        if desc & (DESC_WORDS * 8 - 1) or desc >= survey.vm.memory.size or desc in survey.descs:
            text = f"descriptor {desc:#x} is misplaced or used twice"
            survey.bad("I5", f"{_list_name(survey, head, key)}: {text}")
            return entries
        survey.descs[desc] = key
        more, counts, *sptes = survey.read_words(desc, DESC_WORDS)
        count = counts & 0xFFFF_FFFF
        if not 1 <= count <= _DESC_ENTRIES or (chain and count != _DESC_ENTRIES):
            rule = "1 to 14 in the head, 14 in all others"
            survey.bad("I5", f"{_list_name(survey, head, key)}: descriptor {desc:#x} holds {count} entries; {rule}")
        entries += sptes[: min(count, _DESC_ENTRIES)]
        chain.append((desc, counts))
        desc = more
    tail = 0
    for desc, counts in reversed(chain):
        if counts >> 32 != tail:
            text = f"descriptor {desc:#x} counts {counts >> 32} entries behind it, there are {tail}"
            survey.bad("I5", f"{_list_name(survey, head, key)}: {text}")
        tail += counts & 0xFFFF_FFFF
    survey.lists[key] = entries, [place for place, _ in chain]
    return entries


def _list_name(survey: Survey, head: int, key: ListKey) -> str:
    as_id, level, gfn = key
    if as_id < 0:
        return f"parents of {name_of(survey.spts[gfn])}"
    return f"rmap of gfn {gfn:#x} level {level} address space {as_id} (head {head:#x})"


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
    for level, first, array in _rmap_arrays(slot):
        for i, head in of(array):
            yield level, (first + i) << (9 * (level - 1)), head


# (level, first block, heads) of each level of a slot.
def _rmap_arrays(slot: Memslot) -> Iterator[tuple[int, int, memoryview]]:
    if slot.rmap_array is None:
        return
    start = 0
    for level in (2, 3, 1):
        count = slot.nr_lpages(level)
        yield level, slot.base_gfn >> (9 * (level - 1)), slot.rmap_array[start : start + count]
        start += count


def _list_length(vm: Vm, head: int) -> int:
    if head & 1 == 0:
        return 1 if head else 0
    counts = vm.memory.read_once(Hpa((head & ~7) + 8))
    return (counts & 0xFFFF_FFFF) + (counts >> 32)
