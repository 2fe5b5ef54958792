# SPDX-License-Identifier: GPL-2.0-only
"""A walk over the TDP MMU's tables in ascending order, each entry before those of the table that it links.

``it.start(mem, root, min_level, gfn)`` stands on the root's entry of ``gfn``; while ``it.valid`` and ``it.gfn`` is
below the end, look at the entry (``sptep``, ``level``, ``gfn`` rounded to the level, ``old_spte`` as it was read) and
go on with ``it.next(mem)``. Others may change entries and unlink tables meanwhile: each word is read again before the
walk goes down through it, and the walker is a reader of ``vm.rcu``, so that no table goes under its feet. A walk that
let others in (:func:`yield_walk`) begins again at the root. Reference: "TDP MMU", iterator.
"""

from __future__ import annotations

from ...addr import Gfn, Hpa, pages_per_level, round_gfn
from ...errors import KvmBug
from ...hw.memory import PhysicalMemory
from ...page_types import INVALID_PAGE, LEVEL_BITS, NOTHING
from ..requests import flush_remote_tlbs
from ..vm import Vm
from .bits import PT64_ROOT_5LEVEL, SPTE_BASE_ADDR_MASK
from .page import ShadowPage
from .role import role_level, role_smm
from .spte import is_last, is_shadow_present

_INDEX_MASK = 511


class TdpIter:
    """Where a walk stands. The caller is inside a section of ``vm.rcu`` and holds ``mmu_lock`` in a mode, or reads."""

    __slots__ = (
        "as_id",
        "gfn",
        "level",
        "min_level",
        "next_last_level_gfn",
        "old_spte",
        "pt_path",
        "root_level",
        "sptep",
        "valid",
        "yielded",
        "yielded_gfn",
    )

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> int:
        """Do what ``__init__`` does, without a Python call (compiled rooms make objects with it)."""
        self.next_last_level_gfn: Gfn = NOTHING
        self.yielded_gfn: Gfn = INVALID_PAGE
        self.pt_path: list[Hpa] = [NOTHING] * 6
        self.sptep: Hpa = NOTHING
        self.gfn: Gfn = NOTHING
        self.root_level = 0
        self.min_level = 1
        self.level = 0
        self.as_id = 0
        self.old_spte = 0
        self.valid = False
        self.yielded = False
        return 0

    def __repr__(self) -> str:
        state = " yielded" if self.yielded else "" if self.valid else " at the end"
        return f"<TdpIter level {self.level} gfn {self.gfn:#x} spte {self.old_spte:#x} at {self.sptep:#x}{state}>"

    def start(self, mem: PhysicalMemory, root: ShadowPage, min_level: int, start_gfn: Gfn) -> int:
        """Stand on the root's entry that leads to ``start_gfn``; the walk goes no deeper than ``min_level``."""
        level = role_level(root.role)
        if level < 1 or level > PT64_ROOT_5LEVEL:
            raise KvmBug(f"no root of the TDP MMU: {root!r}")
        self.next_last_level_gfn = start_gfn
        self.root_level = level
        self.min_level = min_level
        self.pt_path[level] = root.spt
        self.as_id = role_smm(root.role)
        return self.restart(mem)

    def restart(self, mem: PhysicalMemory) -> int:
        """Stand on the root's entry again, on the way to where the walk was."""
        self.yielded = False
        self.yielded_gfn = self.next_last_level_gfn
        self.level = self.root_level
        self.gfn = round_gfn(self.next_last_level_gfn, self.level)
        self.valid = True
        return self.refresh(mem)

    def refresh(self, mem: PhysicalMemory) -> int:
        """Read the entry of ``gfn`` in the table in hand."""
        index = (self.gfn >> (LEVEL_BITS * (self.level - 1))) & _INDEX_MASK
        self.sptep = self.pt_path[self.level] + (index << 3)
        self.old_spte = mem.read_once(self.sptep)
        return 0

    def next(self, mem: PhysicalMemory) -> int:
        """Go on to the next entry in order: down, else aside, else up and aside; the first one again after a yield."""
        if self.yielded:
            return self.restart(mem)
        if self.step_down(mem):
            return 0
        while not self.step_side(mem):
            if not self.step_up(mem):
                self.valid = False
                return 0
        return 0

    def step_down(self, mem: PhysicalMemory) -> bool:
        """Into the table that the entry links; False: it links none, or is as deep as the walk goes."""
        if self.level == self.min_level:
            return False
        # Read again: what the caller did, or somebody else, may have unlinked the table.
        self.old_spte = mem.read_once(self.sptep)
        if not is_shadow_present(self.old_spte) or is_last(self.old_spte, self.level):
            return False
        self.level -= 1
        self.pt_path[self.level] = self.old_spte & SPTE_BASE_ADDR_MASK  # type: ignore[call-overload]  # the word names an hpa
        self.gfn = round_gfn(self.next_last_level_gfn, self.level)
        self.refresh(mem)
        return True

    def step_side(self, mem: PhysicalMemory) -> bool:
        """To the next entry of the table in hand; False: this was its last."""
        if (self.gfn >> (LEVEL_BITS * (self.level - 1))) & _INDEX_MASK == _INDEX_MASK:
            return False
        self.gfn += pages_per_level(self.level)
        self.next_last_level_gfn = self.gfn
        self.sptep += 8
        self.old_spte = mem.read_once(self.sptep)
        return True

    def step_up(self, mem: PhysicalMemory) -> bool:
        """To the entry that links the table in hand; False: that is the root."""
        if self.level == self.root_level:
            return False
        self.level += 1
        self.gfn = round_gfn(self.gfn, self.level)
        self.refresh(mem)
        return True


def make_iter() -> TdpIter:
    """TdpIter() for compiled rooms."""
    it = TdpIter.__new__(TdpIter)
    it.begin()
    return it


def yield_walk(vm: Vm, it: TdpIter, flush: bool) -> bool:
    """Let others have ``mmu_lock`` if they wait for it, with TLBs flushed before if ``flush`` says so.

    Return whether the lock was dropped and taken again, in its mode: then ``it`` has *yielded* and must only go on to
    ``next()``. Never twice without having got further in between.
    """
    if not vm.gate.armed or it.next_last_level_gfn == it.yielded_gfn:
        return False
    if not vm.gate.must_yield(vm.mmu_lock):
        return False
    if flush:
        flush_remote_tlbs(vm)
    vm.rcu.read_unlock()
    vm.mmu_lock.relax()
    vm.rcu.read_lock()
    it.yielded = True
    return True
