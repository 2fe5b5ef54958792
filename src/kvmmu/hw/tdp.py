# SPDX-License-Identifier: GPL-2.0-only
"""Second-stage walk: the nested table of AMD-V translates every guest physical address.

The format is that of long mode, 4 or 5 levels, read with these rules (AMD APM volume 2, "Nested Paging"):

* every access is a user access, so U must be set at each level; W and NX have no override;
* an access to a guest page table counts as a user write, whatever the guest does, and so sets A and D;
* a gpa wider than the table translates is not mapped.

A fault is a value: ``fault_gpa`` and ``fault_code`` in the record, the latter with #PF-style bits 0 to 4 and bit 32
(final translation) or 33 (guest page table). RSVD comes with P, as in a #PF.
"""

from __future__ import annotations

from ..addr import Address, Gpa, Hpa
from ..page_types import LEVEL_BITS, ONE, PAGE_SHIFT
from .bits import (
    HW_HIT,
    HW_NESTED_FAULT,
    PFERR_FETCH,
    PFERR_PRESENT,
    PFERR_RSVD,
    PFERR_WRITE,
    PT_ACCESSED,
    PT_DIRTY,
    PT_FRAME,
    PT_NX,
    PT_PAGE_SIZE,
    PT_PRESENT,
    PT_USER,
    PT_WRITABLE,
)
from .regs import Registers

# An entry changed between its read and the update of its A and D bits: walk again, as silicon does.
_RESTART = -2


class NestedWalk:
    """One second-stage walk, element by element, and its result; its owner uses it again and again.

    ``elements()`` and ``nr`` tell what was read; ``hpa``, ``level``, ``writable``, ``executable`` and ``dirty`` hold
    after a HW_HIT, ``fault_gpa`` and ``fault_code`` after a HW_NESTED_FAULT.
    """

    __slots__ = (
        "dirty",
        "entries",
        "executable",
        "fault_code",
        "fault_gpa",
        "hpa",
        "level",
        "levels",
        "nr",
        "places",
        "writable",
    )

    def __init__(self) -> None:
        self.nr = 0
        self.levels = [0] * 6
        self.entries: list[Address] = [0] * 6
        self.places: list[Address] = [0] * 6
        self.hpa = Hpa(0)
        self.level = 0
        self.writable = False
        self.executable = False
        self.dirty = False
        self.fault_gpa = Gpa(0)
        self.fault_code = 0

    def elements(self) -> list[tuple[int, int, int]]:
        """(level, entry as read, hpa that it was read from) of each element, top level first."""
        return [(self.levels[i], self.entries[i], self.places[i]) for i in range(self.nr)]


def translate(regs: Registers, gpa: Gpa, access: int, out: NestedWalk) -> int:
    """Translate ``gpa`` through the nested table of ``regs``; return HW_HIT or HW_NESTED_FAULT and fill ``out``.

    :param access: the #PF-style bits of the access (U always set) with PFERR_GUEST_FINAL or PFERR_GUEST_PAGE.

    A and D are set in the nested entries with cmpxchg, but only if the translation succeeds.
    """
    status = _walk(regs, gpa, access, out)
    while status == _RESTART:
        status = _walk(regs, gpa, access, out)
    return status


def _walk(regs: Registers, gpa: Gpa, access: int, out: NestedWalk) -> int:
    level = regs.nested_levels
    out.nr = 0
    if gpa >> (PAGE_SHIFT + LEVEL_BITS * level):
        return _fault(out, gpa, access)
    table: Address = regs.ncr3 & PT_FRAME
    allowed = PT_WRITABLE | PT_USER
    is_nx = False
    while True:
        place = table + ((gpa >> (PAGE_SHIFT + LEVEL_BITS * (level - 1))) & 511) * 8
        entry = regs.memory.read_once(place)
        out.levels[out.nr] = level
        out.entries[out.nr] = entry
        out.places[out.nr] = place
        out.nr += 1
        if not entry & PT_PRESENT:
            return _fault(out, gpa, access)
        is_large = (entry & PT_PAGE_SIZE) != 0 and (regs.nested_large_levels >> level) & 1 != 0
        if entry & (regs.nested_rsvd_large[level] if is_large else regs.nested_rsvd[level]):
            return _fault(out, gpa, access | PFERR_PRESENT | PFERR_RSVD)
        allowed &= entry
        is_nx = is_nx or (entry & PT_NX) != 0
        if level == 1 or is_large:
            break
        table = entry & PT_FRAME
        level -= 1
    if (
        not allowed & PT_USER
        or (access & PFERR_WRITE and not allowed & PT_WRITABLE)
        or (access & PFERR_FETCH and is_nx)
    ):
        return _fault(out, gpa, access | PFERR_PRESENT)
    offset = (ONE << (PAGE_SHIFT + LEVEL_BITS * (level - 1))) - 1
    out.hpa = (entry & PT_FRAME & ~offset) | (gpa & offset)  # type: ignore[assignment]
    out.level = level
    out.writable = (allowed & PT_WRITABLE) != 0
    out.executable = not is_nx
    return _set_accessed_dirty(regs, access, out)


def _fault(out: NestedWalk, gpa: Gpa, code: int) -> int:
    out.fault_gpa = gpa
    out.fault_code = code
    return HW_NESTED_FAULT


# A at every level, D in the leaf of a write.
def _set_accessed_dirty(regs: Registers, access: int, out: NestedWalk) -> int:
    last = out.nr - 1
    i = 0
    new = 0
    while i <= last:
        entry = out.entries[i]
        new = entry | PT_ACCESSED
        if i == last and access & PFERR_WRITE:
            new |= PT_DIRTY
        if new != entry and not regs.memory.cmpxchg(out.places[i], entry, new):
            return _RESTART
        i += 1
    out.dirty = (new & PT_DIRTY) != 0
    return HW_HIT
