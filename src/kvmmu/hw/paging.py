# SPDX-License-Identifier: GPL-2.0-only
"""First-stage walk: gva to hpa, in every paging mode, by one loop over the mode's shape (:mod:`kvmmu.hw.regs`).

What silicon leaves open is decided so:

* a walk that faults sets no A bit anywhere; one that succeeds sets A at every level, and D in the leaf of a write;
* not present and reserved bits are found on the way down, permissions judged once at the end: a page that is not
  present and not allowed reports P=0;
* RSVD comes with P and without PK (reserved bits are looked at in present entries only);
* bit 8 of a directory entry is ignored (Intel; AMD reserves it in levels 4 and 5).

A non-canonical gva is the caller's #GP and never comes here: the walk uses the bits that the mode translates. PAE
takes its PDPTEs from the registers, but under a second stage it reads them from the guest's memory as AMD-V does.

With a second stage, each table's gpa and the final one pass :func:`kvmmu.hw.tdp.translate`; A and D of the guest are
set through the table's host address. Source: Intel SDM volume 3, "Paging"; AMD APM volume 2, "Nested Paging".
"""

from __future__ import annotations

from ..addr import Address, Gpa, Gva, Hpa
from ..page_types import INVALID_PAGE, ONE, PAGE_SHIFT
from .bits import (
    ACCESS_IMPLICIT,
    ACCESS_USER,
    HW_HIT,
    HW_NESTED_FAULT,
    HW_PAGE_FAULT,
    PFERR_FETCH,
    PFERR_GUEST_FINAL,
    PFERR_GUEST_PAGE,
    PFERR_PK,
    PFERR_RSVD,
    PFERR_USER,
    PFERR_WRITE,
    PT_ACCESSED,
    PT_DIRTY,
    PT_FRAME,
    PT_GLOBAL,
    PT_NX,
    PT_PAGE_SIZE,
    PT_PKEY_SHIFT,
    PT_PRESENT,
    PT_PSE36_LOW,
    PT_PSE36_SHIFT,
    PT_USER,
    PT_WRITABLE,
    TR_DIRTY,
    TR_EXECUTABLE,
    TR_GLOBAL,
    TR_HOST_WRITABLE,
    TR_LEVEL_SHIFT,
    TR_PIECE_SHIFT,
    TR_PKEY_SHIFT,
    TR_USER,
    TR_WRITABLE,
)
from .regs import Registers, kind_index
from .tdp import NestedWalk, translate

_RESTART = -2
_WRITE_USER = PFERR_WRITE | PFERR_USER
_WRITE_FETCH = PFERR_WRITE | PFERR_FETCH
_TABLE_ACCESS = PFERR_GUEST_PAGE | PFERR_USER | PFERR_WRITE
_FINAL_ACCESS = PFERR_GUEST_FINAL | PFERR_USER
_TR_BOTH = TR_WRITABLE | TR_USER
# What a second stage may still take away.
_TR_HOST_ALL = TR_HOST_WRITABLE | TR_DIRTY

# W and U have the same places in an entry and in a translation word, so levels are joined by one AND.
if (PT_WRITABLE, PT_USER, PT_DIRTY) != (TR_WRITABLE, TR_USER, TR_DIRTY):
    raise AssertionError("translation words must keep W, U and D where entries have them")


class Walk:
    """One walk, element by element, and its result; its owner uses it again and again.

    After HW_HIT ``hpa``, ``level`` and the permissions hold, after HW_PAGE_FAULT ``error_code``, after HW_NESTED_FAULT
    ``fault_gpa`` and ``fault_code``. ``nested`` is the last second-stage walk that was made on the way.
    """

    __slots__ = (
        "dirty",
        "entries",
        "error_code",
        "executable",
        "fault_code",
        "fault_gpa",
        "gpa",
        "hpa",
        "is_global",
        "large4m",
        "level",
        "levels",
        "nested",
        "nr",
        "pkey",
        "places",
        "tlb_level",
        "translation",
        "user",
        "writable",
    )

    def __init__(self) -> None:
        self.nr = 0
        self.levels = [0] * 6
        self.entries: list[Address] = [0] * 6
        self.places: list[Address] = [0] * 6
        self.gpa = Gpa(0)
        self.hpa = Hpa(0)
        self.level = 0
        self.tlb_level = 0
        self.large4m = False
        self.writable = False
        self.user = False
        self.executable = False
        self.dirty = False
        self.is_global = False
        self.pkey = 0
        self.translation = 0
        self.error_code = 0
        self.fault_gpa = Gpa(0)
        self.fault_code = 0
        self.nested = NestedWalk()

    def elements(self) -> list[tuple[int, int, int]]:
        """(level, entry as read, hpa that it was read from) of each element, top level first.

        A PDPTE that came from its register has no address: INVALID_PAGE.
        """
        return [(self.levels[i], self.entries[i], self.places[i]) for i in range(self.nr)]


def page_walk(regs: Registers, gva: Gva, kind: int, out: Walk) -> int:
    """Translate ``gva`` for an access of ``kind`` (ACCESS_* bits) by the tables that ``regs`` select.

    Return an HW_* word and fill ``out``. A and D bits are set in the real entries by cmpxchg; the
    walk starts again when one fails. No TLB is asked or filled.
    """
    if kind & ACCESS_IMPLICIT:
        kind = kind & ~ACCESS_USER
    gva &= regs.gva_mask
    status = _RESTART
    while status == _RESTART:
        if regs.levels == 0:
            status = _walk_unpaged(regs, gva, kind, out)
        else:
            status = _walk_tables(regs, gva, kind, out)
    return status


# Without paging a gva is the gpa, and everything is allowed.
def _walk_unpaged(regs: Registers, gva: Gva, kind: int, out: Walk) -> int:
    out.nr = 0
    out.gpa = gva  # type: ignore[assignment]  # without paging a gva is its gpa
    out.level = 3
    out.large4m = False
    out.is_global = False
    out.pkey = 0
    out.translation = _TR_BOTH | TR_EXECUTABLE | _TR_HOST_ALL
    return _finish(regs, kind, out)


def _walk_tables(regs: Registers, gva: Gva, kind: int, out: Walk) -> int:
    out.nr = 0
    level = regs.levels
    table = regs.cr3 & regs.root_mask
    allowed = _TR_BOTH
    nx = 0
    while True:
        status = _read_entry(regs, table, _entry_offset(regs, gva, level), out)
        if status != HW_HIT:
            return status
        entry = out.entries[out.nr]
        out.levels[out.nr] = level
        out.nr += 1
        if not entry & PT_PRESENT:
            return _page_fault(regs, kind, 0, out)
        is_large = (entry & PT_PAGE_SIZE) != 0 and (regs.large_levels >> level) & 1 != 0
        if entry & (regs.rsvd_large[level] if is_large else regs.rsvd[level]):
            return _page_fault(regs, kind, PT_PRESENT | PFERR_RSVD, out)
        if not (regs.has_pdptrs and level == 3):
            allowed &= entry
            nx |= entry
        if level == 1 or is_large:
            break
        table = entry & PT_FRAME
        level -= 1
    _decode_leaf(regs, gva, entry, level, out)
    out.translation = allowed | (0 if nx & PT_NX else TR_EXECUTABLE) | _TR_HOST_ALL
    code = _denial(regs, kind, out)
    if code:
        return _page_fault(regs, kind, code, out)
    if _set_accessed_dirty(regs, kind, out) == _RESTART:
        return _RESTART
    return _finish(regs, kind, out)


# Byte offset of the entry for gva in a table of this level.
def _entry_offset(regs: Registers, gva: Gva, level: int) -> int:
    index = (gva >> (PAGE_SHIFT + regs.index_bits * (level - 1))) & ((ONE << regs.index_bits) - 1)
    if regs.has_pdptrs and level == 3:
        index &= 3
    return index * regs.entry_size


# Read the entry into the element number out.nr, which the caller then counts.
def _read_entry(regs: Registers, table: Address, offset: int, out: Walk) -> int:
    if regs.has_pdptrs and out.nr == 0 and not regs.nested:
        out.places[0] = INVALID_PAGE
        out.entries[0] = regs.pdptrs[offset >> 3]
        return HW_HIT
    place: Address = table + offset
    if regs.nested:
        if translate(regs, place, _TABLE_ACCESS, out.nested) != HW_HIT:
            return _nested_fault(out)
        place = out.nested.hpa
    out.places[out.nr] = place
    if regs.entry_size == 4:
        out.entries[out.nr] = regs.memory.read_once32(place)
    else:
        out.entries[out.nr] = regs.memory.read_once(place)
    return HW_HIT


# What the leaf itself says: frame, page size, global, protection key.
def _decode_leaf(regs: Registers, gva: Gva, entry: Address, level: int, out: Walk) -> int:
    offset = (ONE << (PAGE_SHIFT + regs.index_bits * (level - 1))) - 1
    gpa = (entry & PT_FRAME & ~offset) | (gva & offset)
    out.large4m = regs.entry_size == 4 and level == 2
    if out.large4m:
        gpa |= (entry & PT_PSE36_LOW) << PT_PSE36_SHIFT
    out.gpa = gpa
    out.level = level
    out.is_global = regs.has_global and (entry & PT_GLOBAL) != 0
    out.pkey = (entry >> PT_PKEY_SHIFT) & 15 if regs.has_pkeys else 0
    return 0


# 0 if the tables allow the access, else P with PK if the protection key has its part in it.
def _denial(regs: Registers, kind: int, out: Walk) -> int:
    index = kind_index(kind)
    code = 0
    if (out.translation & regs.mask[index]) != regs.want[index]:
        code = PT_PRESENT
    if regs.pkru_active and regs.is_pkru_denied(out.translation | (ONE * out.pkey << TR_PKEY_SHIFT), index):
        code = PT_PRESENT | PFERR_PK
    return code


# Set A at every level and D in the leaf of a write; a PDPTE has neither.
def _set_accessed_dirty(regs: Registers, kind: int, out: Walk) -> int:
    last = out.nr - 1
    i = 1 if regs.has_pdptrs else 0
    entry = 0
    while i <= last:
        entry = out.entries[i]
        new = entry | PT_ACCESSED
        if i == last and kind & PFERR_WRITE:
            new |= PT_DIRTY
        if new != entry and not _update_entry(regs, out.places[i], entry, new):
            return _RESTART
        entry = new
        i += 1
    if not entry & PT_DIRTY:
        out.translation = out.translation & ~TR_DIRTY
    return HW_HIT


def _update_entry(regs: Registers, place: Address, entry: int, new: int) -> bool:
    if regs.entry_size == 4:
        return regs.memory.cmpxchg32(place, entry, new)
    return regs.memory.cmpxchg(place, entry, new)


# The second stage of the final address, and the translation word.
def _finish(regs: Registers, kind: int, out: Walk) -> int:
    out.hpa = out.gpa  # type: ignore[assignment]  # without a second stage a gpa is its hpa
    out.tlb_level = out.level
    if regs.nested:
        if translate(regs, out.gpa, _FINAL_ACCESS | (kind & _WRITE_FETCH), out.nested) != HW_HIT:
            return _nested_fault(out)
        _join_nested(out)
    out.writable = (out.translation & TR_WRITABLE) != 0
    out.user = (out.translation & TR_USER) != 0
    out.executable = (out.translation & TR_EXECUTABLE) != 0
    out.dirty = (out.translation & TR_DIRTY) != 0
    offset = (ONE << (PAGE_SHIFT + 9 * (out.tlb_level - 1))) - 1
    out.translation |= (out.hpa & ~offset) | (ONE * out.tlb_level << TR_LEVEL_SHIFT)
    out.translation |= ONE * out.pkey << TR_PKEY_SHIFT
    if out.is_global:
        out.translation |= TR_GLOBAL
    if out.nr and (out.large4m or out.level != out.tlb_level):
        # A piece of a larger guest page: INVLPG of any of its addresses must find it.
        piece = 2 if out.large4m else (1 if out.level == 2 else 3)
        out.translation |= ONE * piece << TR_PIECE_SHIFT
    return HW_HIT


# The smaller of both page sizes, the stricter of both permissions.
def _join_nested(out: Walk) -> int:
    nested = out.nested
    out.hpa = nested.hpa
    if nested.level < out.tlb_level:
        out.tlb_level = nested.level
    if not nested.writable:
        out.translation = out.translation & ~TR_HOST_WRITABLE
    if not nested.executable:
        out.translation = out.translation & ~TR_EXECUTABLE
    if not nested.dirty:
        out.translation = out.translation & ~TR_DIRTY
    return 0


def _page_fault(regs: Registers, kind: int, code: int, out: Walk) -> int:
    out.error_code = code | (kind & (_WRITE_USER | regs.fetch_bit))
    return HW_PAGE_FAULT


def _nested_fault(out: Walk) -> int:
    out.fault_gpa = out.nested.fault_gpa
    out.fault_code = out.nested.fault_code
    return HW_NESTED_FAULT
