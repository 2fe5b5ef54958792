# SPDX-License-Identifier: GPL-2.0-only
"""Second-stage walk: a second table translates every guest physical address.

The table's format is a row of :mod:`kvmmu.hw.stage2`, NPT or EPT, of 4 or 5 levels. What both have in common:

* the guest's own bits (U, CR0.WP ...) mean nothing here: an access needs its right at each level;
* an access to a guest page table is what the caller says: for NPT, and EPT with A and D, a write;
* a gpa wider than the table translates is not mapped.

A fault is a value: ``fault_gpa`` and ``fault_code`` in the record. NPT: the code has #PF-style bits 0 to 4 and bit 32
(final translation) or 33 (guest page table); RSVD comes with P, as in a #PF. EPT: the code is the exit qualification,
and an entry that is not legal at all is HW_NESTED_MISCONFIG, without one.
"""

from __future__ import annotations

from ..addr import Address, Gpa, Hpa
from ..page_types import LEVEL_BITS, ONE, PAGE_SHIFT
from .bits import (
    EPT_RWX,
    EPT_VIOLATION_ACC_INSTR,
    EPT_VIOLATION_ACC_READ,
    EPT_VIOLATION_ACC_WRITE,
    EPT_VIOLATION_GVA_IS_VALID,
    EPT_VIOLATION_GVA_TRANSLATED,
    EPT_VIOLATION_RWX_SHIFT,
    HW_HIT,
    HW_NESTED_FAULT,
    HW_NESTED_MISCONFIG,
    PFERR_FETCH,
    PFERR_GUEST_FINAL,
    PFERR_GUEST_PAGE,
    PFERR_PRESENT,
    PFERR_RSVD,
    PFERR_WRITE,
    PT_FRAME,
    PT_PAGE_SIZE,
)
from .regs import Registers
from .stage2 import SecondStage

# An entry changed between its read and the update of its A and D bits: walk again, as silicon does.
_RESTART = -2


class NestedWalk:
    """One second-stage walk, element by element, and its result; its owner uses it again and again.

    ``elements()`` and ``nr`` tell what was read; ``hpa``, ``level``, ``readable``, ``writable``, ``executable`` and
    ``dirty`` hold after a HW_HIT, ``fault_gpa`` and ``fault_code`` after anything else.
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
        "readable",
        "writable",
    )

    def __init__(self) -> None:
        self.nr = 0
        self.levels = [0] * 6
        self.entries: list[Address] = [0] * 6
        self.places: list[Address] = [0] * 6
        self.hpa = Hpa(0)
        self.level = 0
        self.readable = False
        self.writable = False
        self.executable = False
        self.dirty = False
        self.fault_gpa = Gpa(0)
        self.fault_code = 0

    def elements(self) -> list[tuple[int, int, int]]:
        """(level, entry as read, hpa that it was read from) of each element, top level first."""
        return [(self.levels[i], self.entries[i], self.places[i]) for i in range(self.nr)]


def translate(regs: Registers, gpa: Gpa, access: int, out: NestedWalk) -> int:
    """Translate ``gpa`` through the second stage of ``regs``; return HW_HIT or HW_NESTED_FAULT and fill ``out``.

    :param access: the #PF-style bits of the access (U always set) with PFERR_GUEST_FINAL or PFERR_GUEST_PAGE.

    Of EPT it may also return HW_NESTED_MISCONFIG. A and D are set in the entries with cmpxchg, but only if the
    translation succeeds.
    """
    status = _walk(regs, regs.second_stage, gpa, access, out)
    while status == _RESTART:
        status = _walk(regs, regs.second_stage, gpa, access, out)
    return status


def _walk(regs: Registers, fmt: SecondStage, gpa: Gpa, access: int, out: NestedWalk) -> int:
    level = regs.nested_levels
    out.nr = 0
    if gpa >> (PAGE_SHIFT + LEVEL_BITS * level):
        return _fault(fmt, out, gpa, access, 0)
    table: Address = regs.ncr3 & PT_FRAME
    allowed = fmt.write | fmt.fetch | fmt.read
    while True:
        place = table + ((gpa >> (PAGE_SHIFT + LEVEL_BITS * (level - 1))) & 511) * 8
        entry: Address = regs.memory.read_once(place)
        out.levels[out.nr] = level
        out.entries[out.nr] = entry
        out.places[out.nr] = place
        out.nr += 1
        allowed &= entry ^ fmt.inverted
        if not entry & fmt.present:
            return _fault(fmt, out, gpa, access, allowed)
        is_large = (entry & PT_PAGE_SIZE) != 0 and (regs.nested_large_levels >> level) & 1 != 0
        if entry & (regs.nested_rsvd_large[level] if is_large else regs.nested_rsvd[level]):
            return _fault(fmt, out, gpa, access | PFERR_PRESENT | PFERR_RSVD, allowed)
        if fmt.is_ept and (fmt.illegal_low_bits >> (entry & 63)) & 1:
            return _fault(fmt, out, gpa, access | PFERR_PRESENT | PFERR_RSVD, allowed)
        if level == 1 or is_large:
            break
        table = entry & PT_FRAME
        level -= 1
    needed = fmt.read
    if access & PFERR_WRITE:
        needed = fmt.write
    elif access & PFERR_FETCH:
        needed = fmt.fetch
    if allowed & needed != needed:
        return _fault(fmt, out, gpa, access | PFERR_PRESENT, allowed)
    offset = (ONE << (PAGE_SHIFT + LEVEL_BITS * (level - 1))) - 1
    out.hpa = (entry & PT_FRAME & ~offset) | (gpa & offset)
    out.level = level
    out.readable = (allowed & fmt.read) == fmt.read
    out.writable = (allowed & fmt.write) == fmt.write
    out.executable = (allowed & fmt.fetch) == fmt.fetch
    return _set_accessed_dirty(regs, fmt, access, out)


# `code` has the access with P and RSVD as they are, `allowed` the rights of the entries that were read.
def _fault(fmt: SecondStage, out: NestedWalk, gpa: Gpa, code: int, allowed: int) -> int:
    out.fault_gpa = gpa
    if not fmt.is_ept:
        out.fault_code = code
        return HW_NESTED_FAULT
    if code & PFERR_RSVD:
        out.fault_code = 0
        return HW_NESTED_MISCONFIG
    told = EPT_VIOLATION_GVA_IS_VALID | ((allowed & EPT_RWX) << EPT_VIOLATION_RWX_SHIFT)
    if code & PFERR_WRITE:
        told |= EPT_VIOLATION_ACC_WRITE
    elif code & PFERR_FETCH:
        told |= EPT_VIOLATION_ACC_INSTR
    else:
        told |= EPT_VIOLATION_ACC_READ
    # A guest's table is read and written at once.
    if code & PFERR_GUEST_PAGE:
        told |= EPT_VIOLATION_ACC_READ
    if code & PFERR_GUEST_FINAL:
        told |= EPT_VIOLATION_GVA_TRANSLATED
    out.fault_code = told
    return HW_NESTED_FAULT


# A at every level, D in the leaf of a write; without such bits nothing changes, and a page counts as dirty.
def _set_accessed_dirty(regs: Registers, fmt: SecondStage, access: int, out: NestedWalk) -> int:
    last = out.nr - 1
    i = 0
    new = 0
    while i <= last:
        entry = out.entries[i]
        new = entry | fmt.accessed
        if i == last and access & PFERR_WRITE:
            new |= fmt.dirty
        if new != entry and not regs.memory.cmpxchg(out.places[i], entry, new):
            return _RESTART
        i += 1
    out.dirty = (new & fmt.dirty) == fmt.dirty
    return HW_HIT
