# SPDX-License-Identifier: GPL-2.0-only
"""The registers that paging obeys, and what follows from them: the mode's shape and the table of permissions.

:class:`Registers` is the base of :class:`kvmmu.hw.cpu.Cpu`. It derives, once per change of a register, everything
that a walk or a TLB hit needs, so that neither asks which mode it is in:

* the walk's shape: levels, index bits, entry size, reserved bits per level (from :mod:`kvmmu.hw.modes`);
* for each kind of access, ``(mask, want)``: an access passes a translation word ``tr`` iff ``tr & mask == want``.
  The walker and the TLB use the same table, so a cached translation can never be judged by other rules.
"""

from __future__ import annotations

from ..addr import Hpa
from ..errors import ConfigError
from ..page_types import ONE
from .bits import (
    ACCESS_AC,
    ACCESS_FETCH,
    ACCESS_IMPLICIT,
    ACCESS_USER,
    ACCESS_WRITE,
    CR0_PG,
    CR0_WP,
    CR4_LA57,
    CR4_PAE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PKE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_NX,
    PKRU_AD,
    PKRU_WD,
    TR_DIRTY,
    TR_EXECUTABLE,
    TR_HOST_WRITABLE,
    TR_PKEY_SHIFT,
    TR_USER,
    TR_WRITABLE,
)
from .cpumodel import CpuModel
from .memory import PhysicalMemory
from .modes import Limits, PagingMode, bit_range, is_large_level, paging_mode, reserved_bits, second_stage_mode
from .stage2 import NPT, SecondStage

_CR0_SHAPE = CR0_PG | CR0_WP
_CR4_SHAPE = CR4_PSE | CR4_PAE | CR4_PGE | CR4_LA57 | CR4_PCIDE | CR4_SMEP | CR4_SMAP | CR4_PKE
_EFER_SHAPE = EFER_LMA | EFER_NX
# No register state has this shape.
_NO_SHAPE = 0xFFFF_FFFF_FFFF_FFFF

#: The access kinds that exist; the permission table has a row for each.
KINDS = tuple(
    what | who | ac
    for what in (0, ACCESS_WRITE, ACCESS_FETCH)
    for who in (0, ACCESS_USER, ACCESS_IMPLICIT, ACCESS_IMPLICIT | ACCESS_USER)
    for ac in (0, ACCESS_AC)
)
# No translation word has bit 0, so a row that wants it lets nothing pass.
_NEVER = 1


def kind_index(kind: int) -> int:
    """Row of an access kind in the permission table, 0 to 63: its five bits moved together."""
    return ((kind >> 1) & 11) | ((kind >> 4) & 0x30)


class Registers:
    """Registers of one logical CPU as the page walker sees them.

    :param memory: the memory that holds the tables.
    :param params: what the CPU model has.
    """

    __slots__ = (
        "cr0",
        "cr3",
        "cr4",
        "efer",
        "entry_size",
        "fetch_bit",
        "gva_mask",
        "has_gbpages",
        "has_global",
        "has_pcid",
        "has_pdptrs",
        "has_pkeys",
        "index_bits",
        "large_levels",
        "levels",
        "mask",
        "maxphyaddr",
        "memory",
        "mode",
        "ncr3",
        "nested",
        "nested_large_levels",
        "nested_levels",
        "nested_rsvd",
        "nested_rsvd_large",
        "pdptrs",
        "pkru",
        "pkru_active",
        "pkru_deny",
        "root_mask",
        "rsvd",
        "rsvd_large",
        "second_stage",
        "shape",
        "want",
    )

    def __init__(self, memory: PhysicalMemory, params: CpuModel) -> None:
        self.memory = memory
        self.maxphyaddr = params.maxphyaddr
        self.has_gbpages = params.has_gbpages
        self.cr0 = 0
        self.cr3 = 0
        self.cr4 = 0
        self.efer = 0
        self.pkru = 0
        self.pkru_active = False
        self.pdptrs = [0] * 4
        self.nested = False
        self.ncr3 = 0
        self.nested_levels = 0
        self.second_stage = NPT
        self.rsvd = [0] * 6
        self.rsvd_large = [0] * 6
        self.nested_rsvd = [0] * 6
        self.nested_rsvd_large = [0] * 6
        self.nested_large_levels = 0
        self.mask = [0] * 64
        self.want = [0] * 64
        self.pkru_deny = [0] * 64
        self.shape = _NO_SHAPE
        self.derive()

    def pdptr(self, index: int) -> int:
        """PDPTE register ``index`` (0 to 3): used by PAE paging instead of memory, unless there is a second stage."""
        return self.pdptrs[index & 3]

    def load_registers(self, cr0: int, cr3: int, cr4: int, efer: int) -> int:
        """Set the four control registers at once, with no check and no effect on any TLB; return 0."""
        self.cr0 = cr0
        self.cr3 = cr3
        self.cr4 = cr4
        self.efer = efer
        return self.derive()

    def load_pkru(self, pkru: int) -> int:
        """Set PKRU, which takes effect on the next access, cached or not; return 0."""
        self.pkru = pkru
        self.pkru_active = self.has_pkeys and pkru != 0
        return 0

    def load_nested(self, ncr3: Hpa, levels: int, fmt: SecondStage = NPT) -> int:
        """Let the table at ``ncr3`` with ``levels`` levels (4 or 5) translate every gpa; 0 levels: no second stage.

        ``fmt`` is the format of the table's entries, a row of :mod:`kvmmu.hw.stage2`.

        :raises ConfigError: no nested table has so many levels.
        """
        if levels not in (0, 4, 5):
            raise ConfigError(f"nested levels={levels}: a nested table has 4 or 5 levels (0 turns it off)")
        self.nested = levels != 0
        self.ncr3 = ncr3
        if levels != self.nested_levels or fmt is not self.second_stage:
            self.nested_levels = levels
            self.second_stage = fmt
            if levels:
                self._derive_nested(second_stage_mode(fmt.mode, levels))
        return 0

    def derive(self) -> int:
        """Bring what follows from the registers up to date; costs a comparison when nothing that matters changed."""
        shape = (self.cr0 & _CR0_SHAPE) | (self.cr4 & _CR4_SHAPE) | (self.efer & _EFER_SHAPE)
        if shape == self.shape:
            return 0
        self.shape = shape
        mode = paging_mode(self.cr0, self.cr4, self.efer)
        self._derive_walk(mode)
        self._derive_permissions()
        self.has_pkeys = mode.has_pkeys and self.cr4 & CR4_PKE != 0
        self.has_pcid = mode.has_pkeys and self.cr4 & CR4_PCIDE != 0
        self.has_global = self.cr4 & CR4_PGE != 0
        return self.load_pkru(self.pkru)

    # The shape of the first-stage walk.
    def _derive_walk(self, mode: PagingMode) -> int:
        limits = Limits(self.maxphyaddr, self.efer & EFER_NX != 0, self.has_gbpages)
        self.mode = mode.number
        self.levels = mode.levels
        self.index_bits = mode.index_bits
        self.entry_size = mode.entry_size
        self.has_pdptrs = mode.has_pdptrs
        self.gva_mask = bit_range(0, mode.gva_bits - 1)
        self.root_mask = bit_range(mode.root_bits[0], min(mode.root_bits[1], self.maxphyaddr - 1)) if mode.levels else 0
        self.large_levels = 0
        for level in range(1, mode.levels + 1):
            self.rsvd[level] = reserved_bits(mode, level, False, limits)
            self.rsvd_large[level] = reserved_bits(mode, level, True, limits)
            if is_large_level(mode, level, limits):
                self.large_levels |= ONE << level
        # The error code tells a fetch apart only where a fetch can fail by itself (Intel SDM, "Page-Fault
        # Exceptions", the I/D flag).
        can_tell = self.cr4 & CR4_SMEP or (self.cr4 & CR4_PAE and self.efer & EFER_NX)
        self.fetch_bit = ACCESS_FETCH if can_tell else 0
        return 0

    # The host runs with EFER.NX set, so NX is never reserved in its tables.
    def _derive_nested(self, mode: PagingMode) -> int:
        limits = Limits(self.maxphyaddr, True, self.has_gbpages)
        self.nested_large_levels = 0
        for level in range(1, mode.levels + 1):
            self.nested_rsvd[level] = reserved_bits(mode, level, False, limits)
            self.nested_rsvd_large[level] = reserved_bits(mode, level, True, limits)
            if is_large_level(mode, level, limits):
                self.nested_large_levels |= ONE << level
        return 0

    # One row of the permission table per access kind (Intel SDM, "Determination of Access Rights").
    def _derive_permissions(self) -> int:
        paged = self.cr0 & CR0_PG != 0
        for index in range(64):
            self.mask[index] = _NEVER
            self.want[index] = _NEVER
        for kind in KINDS:
            is_user = kind & (ACCESS_USER | ACCESS_IMPLICIT) == ACCESS_USER
            mask = want = 0
            if kind & ACCESS_WRITE:
                want |= TR_DIRTY | TR_HOST_WRITABLE
                if is_user or self.cr0 & CR0_WP:
                    want |= TR_WRITABLE
            if kind & ACCESS_FETCH:
                want |= TR_EXECUTABLE
            if is_user:
                want |= TR_USER
            elif paged and self._keeps_off_user_pages(kind):
                mask |= TR_USER
            index = kind_index(kind)
            self.mask[index] = mask | want
            self.want[index] = want
            self.pkru_deny[index] = self._pkru_bits(kind)
        return 0

    # SMEP and SMAP: whether a supervisor access of this kind may not touch a page that user code may.
    def _keeps_off_user_pages(self, kind: int) -> bool:
        if kind & ACCESS_FETCH:
            return self.cr4 & CR4_SMEP != 0
        return self.cr4 & CR4_SMAP != 0 and kind & (ACCESS_AC | ACCESS_IMPLICIT) != ACCESS_AC

    # The PKRU bits of a key that forbid an access of this kind to a user page.
    def _pkru_bits(self, kind: int) -> int:
        if kind & ACCESS_FETCH:
            return 0
        is_user = kind & (ACCESS_USER | ACCESS_IMPLICIT) == ACCESS_USER
        if kind & ACCESS_WRITE and (is_user or self.cr0 & CR0_WP):
            return PKRU_AD | PKRU_WD
        return PKRU_AD

    def is_pkru_denied(self, translation: int, index: int) -> bool:
        """Whether PKRU forbids the access kind in row ``index`` to a user page; ask only while ``pkru_active``."""
        if not translation & TR_USER:
            return False
        pkey = (translation >> TR_PKEY_SHIFT) & 15
        return ((self.pkru >> (2 * pkey)) & self.pkru_deny[index]) != 0
