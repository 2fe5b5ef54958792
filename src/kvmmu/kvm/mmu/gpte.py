# SPDX-License-Identifier: GPL-2.0-only
"""GpteFormat: how the entries of a guest's tables are laid out, as a row of a table; what one entry says.

The walker, the sync of single entries and the prefetch ask the row of their MMU; none of them knows modes. 4- and
5-level tables share a row: the number of levels is the role's. In an EPT entry bits 2:0 are X, W and R: any of them
makes it present, and the access triple has R in the place of U, since EPT knows no users. A and D are bits 8 and 9, or
none at all: then no entry is ever changed, and every leaf counts as accessed and dirty. Reference: "Guest page-table
walker", the instances.
"""

from __future__ import annotations

from ...addr import Address, Gfn, gpa_to_gfn
from ...hw.bits import EPT_ACCESSED, EPT_DIRTY, EPT_EXEC, EPT_READ, EPT_RWX, PT_ACCESSED, PT_DIRTY, PT_NX, PT_PRESENT
from ...page_types import ONE, U32, U64
from .bits import ACC_ALL, ACC_EXEC, ACC_USER, ACC_WRITE, SPTE_BASE_ADDR_MASK

_NX_SHIFT = 63


class GpteFormat:
    """One layout. ``size`` is 4 or 8 bytes; ``nx_mask`` the bit that forbids fetches, 0: there is none."""

    __slots__ = (
        "accessed_mask",
        "dirty_mask",
        "has_pdptrs",
        "index_bits",
        "index_mask",
        "is_ept",
        "name",
        "nx_mask",
        "present_mask",
        "size",
        "size_shift",
        "width_mask",
    )

    def __init__(self, name: str, size: int, nx_mask: int, *, has_pdptrs: bool = False) -> None:
        self.name = name
        self.size = size
        self.size_shift = 2 if size == 4 else 3
        self.index_bits = 12 - self.size_shift
        self.index_mask = (ONE << self.index_bits) - 1
        self.width_mask = U32 if size == 4 else U64
        self.nx_mask = nx_mask
        self.present_mask = PT_PRESENT
        self.accessed_mask = PT_ACCESSED
        self.dirty_mask = PT_DIRTY
        self.has_pdptrs = has_pdptrs
        self.is_ept = False

    def __repr__(self) -> str:
        return f"<GpteFormat {self.name} {self.size} bytes>"


#: 4-byte entries: no NX, two levels.
GPTE_2_LEVEL = GpteFormat("2-level", 4, 0)
#: 8-byte entries below four PDPTEs, which are cached when CR3 is loaded.
GPTE_PAE = GpteFormat("pae", 8, PT_NX, has_pdptrs=True)
#: 8-byte entries of 4 or 5 levels.
GPTE_64 = GpteFormat("4-level, 5-level", 8, PT_NX)


def _ept(name: str, accessed_mask: int, dirty_mask: int) -> GpteFormat:
    fmt = GpteFormat(name, 8, 0)
    fmt.is_ept = True
    fmt.present_mask = EPT_RWX
    fmt.accessed_mask = accessed_mask
    fmt.dirty_mask = dirty_mask
    return fmt


#: EPT entries of a hypervisor inside, whose EPTP enables A and D bits.
GPTE_EPT = _ept("EPT", EPT_ACCESSED, EPT_DIRTY)
#: The same, whose EPTP does not.
GPTE_EPT_WITHOUT_AD = _ept("EPT without A/D", 0, 0)


def is_present_gpte(fmt: GpteFormat, gpte: int) -> bool:
    """Whether ``gpte`` maps or links something."""
    return (gpte & fmt.present_mask) != 0


def gpte_access(fmt: GpteFormat, gpte: int) -> int:
    """Access triple that the present ``gpte`` alone allows; without an NX bit everything is executable.

    Of an EPT entry, USER says that it may be read.
    """
    if fmt.is_ept:
        access = gpte & ACC_WRITE
        if gpte & EPT_EXEC:
            access |= ACC_EXEC
        if gpte & EPT_READ:
            access |= ACC_USER
        return access
    return (gpte & ACC_ALL) ^ ((gpte & fmt.nx_mask) >> _NX_SHIFT)


def protect_clean(fmt: GpteFormat, access: int, gpte: int) -> int:
    """``access`` without WRITE while D of the leaf ``gpte`` is clear, so that the first write is noticed."""
    if gpte & fmt.dirty_mask == fmt.dirty_mask:
        return access
    return access & ~ACC_WRITE


def gpte_to_gfn(gpte: Address) -> Gfn:
    """Guest frame that the 4K leaf or directory entry ``gpte`` names."""
    return gpa_to_gfn(gpte & SPTE_BASE_ADDR_MASK)
