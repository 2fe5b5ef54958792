# SPDX-License-Identifier: GPL-2.0-only
"""Mmu: the paging mode of one vCPU, and what follows from it for every walk of the guest's tables.

Roles are stored here by ``setup.init_mmu()`` when the guest's mode changes; from them come, once per change,

* ``permissions``: a byte for each kind of access, a bit in it for each access triple, 1 = fault;
* ``pkru_mask``: which PKRU bits count for which access;
* the reserved bits of guest entries and of sptes, per level.

Sources: reference "kvm_mmu", "Reserved-bit tables", "permissions[16] and pkru_mask".
"""

from __future__ import annotations

from ...addr import Address, Gpa, Hpa
from ...hw.bits import (
    PFERR_FETCH,
    PFERR_IMPLICIT_ACCESS,
    PFERR_PK,
    PFERR_PRESENT,
    PFERR_RSVD,
    PFERR_USER,
    PFERR_WRITE,
    X86_EFLAGS_AC,
)
from ...hw.modes import ept_illegal_low_bits
from ...page_types import INVALID_PAGE, NOTHING, ONE, PG_LEVEL_1G, PG_LEVEL_2M
from .bits import (
    ACC_EXEC,
    ACC_USER,
    ACC_WRITE,
    FAULT_OP_NONPAGING,
    PT32_ROOT_LEVEL,
    PT32E_ROOT_LEVEL,
    PT64_ROOT_5LEVEL,
    RSVD_LEVELS,
)
from .gpte import GPTE_64, GpteFormat
from .role import cpu_role_cr0_wp, cpu_role_efer_nx, cpu_role_pke, cpu_role_smap, cpu_role_smep

# Bits of an access that the tables are indexed by; what else a caller passes must not lead outside them.
_PFERR_INDEX = PFERR_WRITE | PFERR_USER | PFERR_FETCH

_BIT_7 = 1 << 7
_BIT_8 = 1 << 8
_BIT_63 = 1 << 63
_BITS_51_0 = (1 << 52) - 1
_BITS_62_0 = (1 << 63) - 1


class Mmu:
    """What one vCPU's MMU is now (``struct kvm_mmu``): roots, roles, and the tables made from the roles."""

    __slots__ = (
        "bad_mt_xwr",
        "can_sync",
        "cpu_role",
        "fault_op",
        "eptp",
        "gpte",
        "guest_rsvd",
        "pae_root",
        "pdptrs",
        "permissions",
        "pkru_mask",
        "prev_hpa",
        "prev_pgd",
        "root_hpa",
        "root_pgd",
        "root_role",
        "shadow_rsvd",
    )

    def __init__(self) -> None:
        self.root_hpa: Hpa = INVALID_PAGE
        self.root_pgd: Gpa = NOTHING
        self.prev_hpa: list[Hpa] = [INVALID_PAGE] * 3
        self.prev_pgd: list[Gpa] = [INVALID_PAGE] * 3
        self.cpu_role = 0
        self.root_role = 0
        self.fault_op = FAULT_OP_NONPAGING
        self.can_sync = False
        self.gpte: GpteFormat = GPTE_64
        self.permissions = [0] * 16
        self.pkru_mask = 0
        self.guest_rsvd = [0] * 10
        self.bad_mt_xwr = 0
        self.eptp: Address = 0
        self.shadow_rsvd = [0] * 10
        self.pdptrs = [0] * 4
        self.pae_root: Hpa = NOTHING

    def prev_root(self, index: int) -> tuple[Hpa, Gpa]:
        """Root address and CR3 of previous root ``index`` (0 to 2, most recent first)."""
        return self.prev_hpa[index], self.prev_pgd[index]

    def __repr__(self) -> str:
        return (
            f"<Mmu cpu_role {self.cpu_role:#x} root_role {self.root_role:#x} root {self.root_hpa:#x}"
            f" pgd {self.root_pgd:#x}>"
        )


# Place of an entry's reserved bits in a table of them.
def _rsvd_index(entry: int, level: int) -> int:
    if entry & _BIT_7:
        return level + 4
    return level - 1


def is_rsvd_bits_set(mmu: Mmu, gpte: int, level: int) -> bool:
    """Whether the present guest entry ``gpte`` at ``level`` has a reserved bit set, or in EPT a mix that is none."""
    if gpte & mmu.guest_rsvd[_rsvd_index(gpte, level)]:
        return True
    return (mmu.bad_mt_xwr >> (gpte & 63)) & 1 != 0


def is_rsvd_spte(mmu: Mmu, spte: int, level: int) -> bool:
    """Whether ``spte`` at ``level`` has a bit set that hardware reserves in kvm's tables."""
    return (spte & mmu.shadow_rsvd[_rsvd_index(spte, level)]) != 0


def permission_fault(mmu: Mmu, pte_access: int, pkey: int, access: int, rflags: int, pkru: int) -> int:
    """Whether an access that a walk resolved to the triple ``pte_access`` and key ``pkey`` is refused.

    ``access`` has the bits of a page-fault error code (W, U, F), and bit 48 for an implicit supervisor access;
    ``rflags`` and ``pkru`` are the vCPU's. Returns 0 if it is allowed, else the error code's P and PK bits.
    Source: reference "permissions[16] and pkru_mask".
    """
    pfec = access & _PFERR_INDEX
    index = pfec
    if (rflags & X86_EFLAGS_AC) != 0 and (access & PFERR_IMPLICIT_ACCESS) == 0:
        index |= PFERR_RSVD
    fault = (mmu.permissions[index >> 1] >> pte_access) & 1
    errcode = PFERR_PRESENT
    if mmu.pkru_mask:
        if pte_access & ACC_USER:
            pfec |= PFERR_RSVD
        if (pkru >> (pkey * 2)) & 3 & (mmu.pkru_mask >> pfec):
            errcode |= PFERR_PK
            fault = 1
    return errcode if fault else 0


def update_permission_bitmask(mmu: Mmu) -> int:
    """Rebuild ``permissions`` from the CPU role and the entries' format; return 0."""
    for index in range(16):
        byte = 0
        for acc in range(8):
            if mmu.gpte.is_ept:
                refused = _is_refused_by_ept(index << 1, acc)
            else:
                refused = _is_refused(mmu.cpu_role, index << 1, acc)
            if refused:
                byte |= ONE << acc
        mmu.permissions[index] = byte
    return 0


# Whether an access with error-code bits pfec is refused on a page with rights acc. The RSVD bit says "SMAP is off".
def _is_refused(cpu_role: int, pfec: int, acc: int) -> bool:
    is_user = (pfec & PFERR_USER) != 0
    if is_user and not acc & ACC_USER:
        return True
    if pfec & PFERR_WRITE and not acc & ACC_WRITE and (is_user or cpu_role_cr0_wp(cpu_role)):
        return True
    if pfec & PFERR_FETCH and not acc & ACC_EXEC and cpu_role_efer_nx(cpu_role):
        return True
    if is_user or not acc & ACC_USER:
        return False
    if pfec & PFERR_FETCH:
        return cpu_role_smep(cpu_role)
    return cpu_role_smap(cpu_role) and not pfec & PFERR_RSVD


# The same in EPT, where no register comes into it, USER of an access says "read", and that of a page "readable".
def _is_refused_by_ept(pfec: int, acc: int) -> bool:
    if pfec & PFERR_USER and not acc & ACC_USER:
        return True
    if pfec & PFERR_WRITE and not acc & ACC_WRITE:
        return True
    return pfec & PFERR_FETCH != 0 and not acc & ACC_EXEC


def update_pkru_mask(mmu: Mmu) -> int:
    """Rebuild ``pkru_mask`` from the CPU role: two bits (AD, WD) for each error code and user bit; return 0."""
    mmu.pkru_mask = 0
    if not cpu_role_pke(mmu.cpu_role):
        return 0
    for index in range(16):
        pfec = index << 1
        # Only data accesses to user pages are checked; the RSVD bit stands for the page's user bit.
        if pfec & PFERR_FETCH or not pfec & PFERR_RSVD:
            continue
        bits = ONE
        if pfec & PFERR_WRITE and (pfec & PFERR_USER or cpu_role_cr0_wp(mmu.cpu_role)):
            bits = 3
        mmu.pkru_mask |= bits << pfec
    return 0


class EntryRules:
    """What decides the reserved bits of the entries of one set of page tables.

    ``level`` is the number of levels (2 to 5), ``reserved_bits`` the address bits that do not exist. The rest, false
    at first: NX usable, 1G pages known, CR4.PSE (2-level tables), AMD's reserved bit 8 in upper entries.
    """

    __slots__ = ("amd_compatible", "gbpages", "level", "nx", "pse", "reserved_bits")

    def __init__(self, level: int, reserved_bits: int) -> None:
        self.level = level
        self.reserved_bits = reserved_bits
        self.nx = False
        self.gbpages = False
        self.pse = False
        self.amd_compatible = False


def rsvd_bits_table(rules: EntryRules) -> list[int]:
    """Reserved bits by bit 7 of the entry and level: ``[5 * bit 7 + level - 1]``, 0 for levels that do not exist.

    Source: reference "Reserved-bit tables".
    """
    clear = [0] * RSVD_LEVELS
    large = [0] * RSVD_LEVELS
    if rules.level == PT32_ROOT_LEVEL:
        # Bit 7 of a directory entry is ignored without PSE; PSE-36 leaves bits 21:17.
        large[1] = _bits(17, 21) if rules.pse else 0
        return clear + large
    is_pae = rules.level == PT32E_ROOT_LEVEL
    high = rules.reserved_bits & (_BITS_62_0 if is_pae else _BITS_51_0)
    if not rules.nx:
        high |= _BIT_63
    clear[0] = large[0] = clear[1] = high
    large[1] = high | _bits(13, 20)
    if is_pae:
        # Bit 7 of a PDPTE does not mean "large": it is one of the reserved bits of either row.
        clear[2] = large[2] = high | _BIT_63 | _bits(5, 8) | _bits(1, 2)
        return clear + large
    no_gbpages = 0 if rules.gbpages else _BIT_7
    clear[2] = high | no_gbpages
    large[2] = high | no_gbpages | _bits(13, 29)
    upper = high | _BIT_7 | (_BIT_8 if rules.amd_compatible else 0)
    clear[3] = large[3] = upper
    if rules.level == PT64_ROOT_5LEVEL:
        clear[4] = large[4] = upper
    return clear + large


def ept_rsvd_table(reserved_bits: int, huge_page_level: int) -> list[int]:
    """As :func:`rsvd_bits_table`, of EPT entries; pages are at most those of level ``huge_page_level`` (1 to 3)."""
    high = reserved_bits & _BITS_51_0
    upper = high | _bits(3, 7)
    no_2m = _BIT_7 if huge_page_level < PG_LEVEL_2M else 0
    no_1g = _BIT_7 if huge_page_level < PG_LEVEL_1G else 0
    clear = [high, high | _bits(3, 6) | no_2m, high | _bits(3, 6) | no_1g, upper, upper]
    large = [high, high | _bits(12, 20) | no_2m, high | _bits(12, 29) | no_1g, upper, upper]
    return clear + large


# Bits low to high, both included.
def _bits(low: int, high: int) -> int:
    return ((ONE << (high + 1)) - 1) & ~((ONE << low) - 1)


def reset_guest_rsvd(mmu: Mmu, rules: EntryRules) -> int:
    """Give ``mmu`` the reserved bits of the guest's tables; return 0."""
    table = rsvd_bits_table(rules)
    for i in range(2 * RSVD_LEVELS):
        mmu.guest_rsvd[i] = table[i]
    mmu.bad_mt_xwr = 0
    return 0


def reset_ept_rsvd(mmu: Mmu, reserved_bits: int, has_execonly: bool, huge_page_level: int) -> int:
    """Give ``mmu`` the reserved bits of a guest's EPT, whose entries may be executable alone or not; return 0."""
    table = ept_rsvd_table(reserved_bits, huge_page_level)
    for i in range(2 * RSVD_LEVELS):
        mmu.guest_rsvd[i] = table[i]
    mmu.bad_mt_xwr = ept_illegal_low_bits(has_execonly)
    return 0


def reset_shadow_rsvd(mmu: Mmu, rules: EntryRules) -> int:
    """Give ``mmu`` the reserved bits of kvm's tables; return 0."""
    table = rsvd_bits_table(rules)
    for i in range(2 * RSVD_LEVELS):
        mmu.shadow_rsvd[i] = table[i]
    return 0
