# SPDX-License-Identifier: GPL-2.0-only
"""Page roles and CPU roles: the two words that decide which shadow pages may be shared.

A page role (32 bits) says how to read a shadow page: its level, the format of the guest table behind it, the rights
inherited from above. Roles are compared as whole words. A CPU role (64 bits) describes the guest's paging mode: a
page role in the low half, the extended role in the high half.

======  ================  =====================================================================================
bits    page role         note
======  ================  =====================================================================================
0-3     level             of the shadow page
4       has_4_byte_gpte   a 2-level guest table is behind it
5-6     quadrant          which part of that table
7       direct            no guest table behind it
8-10    access            inherited from upper guest levels, or of the huge gpte that a direct page splits
11      invalid           zapped, but still somebody's root
12      efer_nx
13      cr0_wp
14      smep_andnot_wp
15      smap_andnot_wp
16      ad_disabled
17      guest_mode        serves a nested guest
18      passthrough       extra top level
24-31   smm               address space
======  ================  =====================================================================================

Extended role: 32 valid, 33 execonly, 34 cr4_pse, 35 cr4_pke, 36 cr4_smap, 37 cr4_smep, 38 cr4_la57, 39 efer_lma.
Reference: "Roles".
"""

from __future__ import annotations

from ...hw.bits import (
    CR0_PG,
    CR0_WP,
    CR4_LA57,
    CR4_PAE,
    CR4_PKE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_NX,
)
from .bits import (
    ACC_NAMES,
    CPU_ROLE_BASE_MASK,
    EXT_CR4_LA57,
    EXT_CR4_PKE,
    EXT_CR4_PSE,
    EXT_CR4_SMAP,
    EXT_CR4_SMEP,
    EXT_EFER_LMA,
    EXT_EXECONLY,
    EXT_FLAGS,
    EXT_VALID,
    PT32_ROOT_LEVEL,
    PT32E_ROOT_LEVEL,
    PT64_ROOT_4LEVEL,
    PT64_ROOT_5LEVEL,
    ROLE_ACCESS_MASK,
    ROLE_ACCESS_SHIFT,
    ROLE_AD_DISABLED,
    ROLE_CR0_WP,
    ROLE_DIRECT,
    ROLE_EFER_NX,
    ROLE_FLAGS,
    ROLE_GUEST_MODE,
    ROLE_HAS_4_BYTE_GPTE,
    ROLE_INVALID,
    ROLE_LEVEL_MASK,
    ROLE_PASSTHROUGH,
    ROLE_QUADRANT_MASK,
    ROLE_QUADRANT_SHIFT,
    ROLE_SMAP_ANDNOT_WP,
    ROLE_SMEP_ANDNOT_WP,
    ROLE_SMM_MASK,
    ROLE_SMM_SHIFT,
)

_SMM_ONE = 1 << ROLE_SMM_SHIFT
_ZERO = 0


def role_level(role: int) -> int:
    """Level of the page: 1 holds 4K leaves."""
    return role & ROLE_LEVEL_MASK


def role_access(role: int) -> int:
    """Access triple that the levels above allow."""
    return (role & ROLE_ACCESS_MASK) >> ROLE_ACCESS_SHIFT


def role_quadrant(role: int) -> int:
    """Which part of a 4-byte table the page shadows."""
    return (role & ROLE_QUADRANT_MASK) >> ROLE_QUADRANT_SHIFT


def role_smm(role: int) -> int:
    """Address space that the page belongs to: 0 normal, 1 SMM."""
    return (role & ROLE_SMM_MASK) >> ROLE_SMM_SHIFT


def role_direct(role: int) -> bool:
    """Whether no guest table is behind the page."""
    return (role & ROLE_DIRECT) != 0


def role_invalid(role: int) -> bool:
    """Whether the page has been zapped and lives on as a root only."""
    return (role & ROLE_INVALID) != 0


def role_has_4_byte_gpte(role: int) -> bool:
    """Whether the guest table behind the page has 4-byte entries."""
    return (role & ROLE_HAS_4_BYTE_GPTE) != 0


def role_ad_disabled(role: int) -> bool:
    """Whether A and D bits of the page's sptes are not in use."""
    return (role & ROLE_AD_DISABLED) != 0


def role_guest_mode(role: int) -> bool:
    """Whether the page serves a nested guest."""
    return (role & ROLE_GUEST_MODE) != 0


def role_passthrough(role: int) -> bool:
    """Whether the page is an extra top level without a guest table of its own."""
    return (role & ROLE_PASSTHROUGH) != 0


def role_with_level(role: int, level: int) -> int:
    """``role`` at another ``level``."""
    return (role & ~ROLE_LEVEL_MASK) | level


def role_with_quadrant(role: int, quadrant: int) -> int:
    """``role`` of another ``quadrant``, 0 to 3."""
    return (role & ~ROLE_QUADRANT_MASK) | (quadrant << ROLE_QUADRANT_SHIFT)


def child_role(parent_role: int, parent_index: int, direct: bool, access: int) -> int:
    """Role of the page that entry ``parent_index`` (0 to 511) of a page with ``parent_role`` links.

    The child of a page that shadows 4-byte entries is at level 1 and covers 2M of the guest table's 4M, which half is
    the index's low bit. ``invalid`` is cleared: an invalid parent links nothing, and the caller has warned.
    Source: reference "Child role"; 2e65e842c57d ("KVM: x86/mmu: Derive shadow MMU page role from parent", 6.0).
    """
    role = parent_role & ~(ROLE_LEVEL_MASK | ROLE_ACCESS_MASK | ROLE_DIRECT | ROLE_INVALID | ROLE_PASSTHROUGH)
    role |= ((parent_role & ROLE_LEVEL_MASK) - 1) | (access << ROLE_ACCESS_SHIFT)
    if direct:
        role |= ROLE_DIRECT
    if role & ROLE_HAS_4_BYTE_GPTE:
        role = (role & ~ROLE_QUADRANT_MASK) | ((parent_index & 1) << ROLE_QUADRANT_SHIFT)
    return role


def calc_cpu_role(cr0: int, cr4: int, efer: int, smm: bool) -> int:
    """The CPU role of a guest with these registers; EFER.LMA counts only with CR4.PAE.

    Without paging the level is 0 and nothing but ``direct``, the access triple and the address space is set.
    """
    role = EXT_VALID | ROLE_ACCESS_MASK
    if smm:
        role |= _SMM_ONE
    if (cr0 & CR0_PG) == 0:
        return role | ROLE_DIRECT
    if efer & EFER_NX:
        role |= ROLE_EFER_NX
    if cr4 & CR4_PSE:
        role |= EXT_CR4_PSE
    return role | _supervisor_role(cr0, cr4) | _level_role(cr4, efer)


# The bits that say what supervisor accesses may do.
def _supervisor_role(cr0: int, cr4: int) -> int:
    role = _ZERO
    if cr0 & CR0_WP:
        role |= ROLE_CR0_WP
    if cr4 & CR4_SMEP:
        role |= EXT_CR4_SMEP
        if (cr0 & CR0_WP) == 0:
            role |= ROLE_SMEP_ANDNOT_WP
    if cr4 & CR4_SMAP:
        role |= EXT_CR4_SMAP
        if (cr0 & CR0_WP) == 0:
            role |= ROLE_SMAP_ANDNOT_WP
    return role


# The bits that follow from the format of the guest's tables. Protection keys and LA57 exist in long mode only.
def _level_role(cr4: int, efer: int) -> int:
    if (cr4 & CR4_PAE) == 0:
        return ROLE_HAS_4_BYTE_GPTE | PT32_ROOT_LEVEL
    if (efer & EFER_LMA) == 0:
        return PT32E_ROOT_LEVEL
    role = EXT_EFER_LMA
    if cr4 & CR4_PKE:
        role |= EXT_CR4_PKE
    if cr4 & CR4_LA57:
        return role | EXT_CR4_LA57 | PT64_ROOT_5LEVEL
    return role | PT64_ROOT_4LEVEL


def calc_shadow_root_role(cpu_role: int) -> int:
    """Role of the root that shadows a guest with ``cpu_role``.

    Guests with fewer than three levels, none included, are shadowed with PAE tables. NX is always usable in sptes.
    """
    role = (cpu_role & CPU_ROLE_BASE_MASK) | ROLE_EFER_NX
    if (role & ROLE_LEVEL_MASK) < PT32E_ROOT_LEVEL:
        role = (role & ~ROLE_LEVEL_MASK) | PT32E_ROOT_LEVEL
    return role


def calc_tdp_root_role(cpu_role: int, root_level: int, ad_disabled: bool) -> int:
    """Role of the direct root of ``root_level`` levels for a guest with ``cpu_role``; only its address space counts."""
    role = ROLE_ACCESS_MASK | ROLE_CR0_WP | ROLE_EFER_NX | ROLE_DIRECT | root_level
    role |= cpu_role & (ROLE_SMM_MASK | ROLE_GUEST_MODE)
    if ad_disabled:
        role |= ROLE_AD_DISABLED
    return role


def calc_ept_role(levels: int, has_ad: bool, has_execonly: bool) -> int:
    """The CPU role, and in its low half the root role, of what mirrors a guest's EPT of ``levels`` (4 or 5) levels.

    No register of the guest's comes into it.
    """
    role = EXT_VALID | ROLE_ACCESS_MASK | ROLE_GUEST_MODE | levels
    if has_execonly:
        role |= EXT_EXECONLY
    return role if has_ad else role | ROLE_AD_DISABLED


def cpu_role_level(cpu_role: int) -> int:
    """Levels of the guest's tables, 2 to 5; 0 without paging."""
    return cpu_role & ROLE_LEVEL_MASK


def cpu_role_paging(cpu_role: int) -> bool:
    """CR0.PG."""
    return (cpu_role & ROLE_LEVEL_MASK) != 0


def cpu_role_has_4_byte_gpte(cpu_role: int) -> bool:
    """Whether the guest's tables have 4-byte entries; false without paging."""
    return (cpu_role & ROLE_HAS_4_BYTE_GPTE) != 0


def cpu_role_efer_nx(cpu_role: int) -> bool:
    """EFER.NX."""
    return (cpu_role & ROLE_EFER_NX) != 0


def cpu_role_cr0_wp(cpu_role: int) -> bool:
    """CR0.WP."""
    return (cpu_role & ROLE_CR0_WP) != 0


def cpu_role_smep(cpu_role: int) -> bool:
    """CR4.SMEP."""
    return (cpu_role & EXT_CR4_SMEP) != 0


def cpu_role_smap(cpu_role: int) -> bool:
    """CR4.SMAP."""
    return (cpu_role & EXT_CR4_SMAP) != 0


def cpu_role_pse(cpu_role: int) -> bool:
    """CR4.PSE."""
    return (cpu_role & EXT_CR4_PSE) != 0


def cpu_role_pke(cpu_role: int) -> bool:
    """CR4.PKE in long mode."""
    return (cpu_role & EXT_CR4_PKE) != 0


def describe_role(word: int) -> str:
    """The page role ``word``, every field by name: ``level 4 quadrant 0 access wux smm 0 direct efer_nx cr0_wp``.

    Flags that are clear are left out; bits without a name follow as ``bits 0x...``.
    """
    known = ROLE_LEVEL_MASK | ROLE_QUADRANT_MASK | ROLE_ACCESS_MASK | ROLE_SMM_MASK
    text = (
        f"level {role_level(word)} quadrant {role_quadrant(word)} access {ACC_NAMES[role_access(word)]}"
        f" smm {role_smm(word)}"
    )
    return text + _describe_flags(word, known, ROLE_FLAGS)


def describe_cpu_role(word: int) -> str:
    """The CPU role ``word``: its page role as :func:`describe_role`, then the extended role's flags."""
    return describe_role(word & CPU_ROLE_BASE_MASK) + " |" + _describe_flags(word & ~CPU_ROLE_BASE_MASK, 0, EXT_FLAGS)


# " name" for each flag that is set, then the bits that neither flags nor known explain.
def _describe_flags(word: int, known: int, flags: tuple[tuple[str, int], ...]) -> str:
    text = ""
    for name, mask in flags:
        known |= mask
        if word & mask:
            text += " " + name
    if word & ~known:
        text += f" bits {word & ~known:#x}"
    return text
