# SPDX-License-Identifier: GPL-2.0-only
"""Page roles and CPU roles: the two words that decide which shadow pages may be shared.

A page role (32 bits) says how to read a shadow page: its level, the format of the guest table behind it, the rights
inherited from above. Roles are compared as whole words. A CPU role (64 bits) describes the guest's paging mode: a
page role in the low half, the extended role in the high half.

======  ================  =====================================================================================
bits    page role         note
======  ================  =====================================================================================
0-3     level             of the shadow page
4       has_4_byte_gpte   a 32-bit non-PAE guest table is behind it
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
from .spte import ACCESS_NAMES

ROLE_LEVEL_MASK = 0xF
ROLE_HAS_4_BYTE_GPTE = 1 << 4
ROLE_QUADRANT_SHIFT = 5
ROLE_QUADRANT_MASK = 3 << 5
ROLE_DIRECT = 1 << 7
ROLE_ACCESS_SHIFT = 8
ROLE_ACCESS_MASK = 7 << 8
ROLE_INVALID = 1 << 11
ROLE_EFER_NX = 1 << 12
ROLE_CR0_WP = 1 << 13
ROLE_SMEP_ANDNOT_WP = 1 << 14
ROLE_SMAP_ANDNOT_WP = 1 << 15
ROLE_AD_DISABLED = 1 << 16
ROLE_GUEST_MODE = 1 << 17
ROLE_PASSTHROUGH = 1 << 18
ROLE_SMM_SHIFT = 24
ROLE_SMM_MASK = 0xFF << 24

#: The low half of a CPU role is a page role.
CPU_ROLE_BASE_MASK = 0xFFFF_FFFF
EXT_VALID = 1 << 32
EXT_EXECONLY = 1 << 33
EXT_CR4_PSE = 1 << 34
EXT_CR4_PKE = 1 << 35
EXT_CR4_SMAP = 1 << 36
EXT_CR4_SMEP = 1 << 37
EXT_CR4_LA57 = 1 << 38
EXT_EFER_LMA = 1 << 39

PT32_ROOT_LEVEL = 2
PT32E_ROOT_LEVEL = 3
PT64_ROOT_4LEVEL = 4
PT64_ROOT_5LEVEL = 5

#: One-bit fields of a page role, lowest first.
ROLE_FLAGS: tuple[tuple[str, int], ...] = (
    ("has_4_byte_gpte", ROLE_HAS_4_BYTE_GPTE),
    ("direct", ROLE_DIRECT),
    ("invalid", ROLE_INVALID),
    ("efer_nx", ROLE_EFER_NX),
    ("cr0_wp", ROLE_CR0_WP),
    ("smep_andnot_wp", ROLE_SMEP_ANDNOT_WP),
    ("smap_andnot_wp", ROLE_SMAP_ANDNOT_WP),
    ("ad_disabled", ROLE_AD_DISABLED),
    ("guest_mode", ROLE_GUEST_MODE),
    ("passthrough", ROLE_PASSTHROUGH),
)
#: One-bit fields of the extended role, lowest first.
EXT_FLAGS: tuple[tuple[str, int], ...] = (
    ("valid", EXT_VALID),
    ("execonly", EXT_EXECONLY),
    ("cr4_pse", EXT_CR4_PSE),
    ("cr4_pke", EXT_CR4_PKE),
    ("cr4_smap", EXT_CR4_SMAP),
    ("cr4_smep", EXT_CR4_SMEP),
    ("cr4_la57", EXT_CR4_LA57),
    ("efer_lma", EXT_EFER_LMA),
)

_LEVEL_MASK = ROLE_LEVEL_MASK
_HAS_4_BYTE_GPTE = ROLE_HAS_4_BYTE_GPTE
_QUADRANT_SHIFT = ROLE_QUADRANT_SHIFT
_QUADRANT_MASK = ROLE_QUADRANT_MASK
_DIRECT = ROLE_DIRECT
_ACCESS_SHIFT = ROLE_ACCESS_SHIFT
_ACCESS_MASK = ROLE_ACCESS_MASK
_INVALID = ROLE_INVALID
_EFER_NX = ROLE_EFER_NX
_CR0_WP = ROLE_CR0_WP
_SMEP_ANDNOT_WP = ROLE_SMEP_ANDNOT_WP
_SMAP_ANDNOT_WP = ROLE_SMAP_ANDNOT_WP
_AD_DISABLED = ROLE_AD_DISABLED
_GUEST_MODE = ROLE_GUEST_MODE
_PASSTHROUGH = ROLE_PASSTHROUGH
_SMM_SHIFT = ROLE_SMM_SHIFT
_SMM_MASK = ROLE_SMM_MASK
_BASE_MASK = CPU_ROLE_BASE_MASK
_EXT_VALID = EXT_VALID
_EXT_CR4_PSE = EXT_CR4_PSE
_EXT_CR4_PKE = EXT_CR4_PKE
_EXT_CR4_SMAP = EXT_CR4_SMAP
_EXT_CR4_SMEP = EXT_CR4_SMEP
_EXT_CR4_LA57 = EXT_CR4_LA57
_EXT_EFER_LMA = EXT_EFER_LMA

_X86_CR0_WP = CR0_WP
_X86_CR0_PG = CR0_PG
_X86_CR4_PSE = CR4_PSE
_X86_CR4_PAE = CR4_PAE
_X86_CR4_LA57 = CR4_LA57
_X86_CR4_SMEP = CR4_SMEP
_X86_CR4_SMAP = CR4_SMAP
_X86_CR4_PKE = CR4_PKE
_X86_EFER_LMA = EFER_LMA
_X86_EFER_NX = EFER_NX
_PT32_ROOT_LEVEL = PT32_ROOT_LEVEL
_PT32E_ROOT_LEVEL = PT32E_ROOT_LEVEL
_PT64_ROOT_4LEVEL = PT64_ROOT_4LEVEL
_PT64_ROOT_5LEVEL = PT64_ROOT_5LEVEL
_SMM_ONE = 1 << ROLE_SMM_SHIFT
_ZERO = 0


def role_level(role: int) -> int:
    """Level of the page: 1 holds 4K leaves."""
    return role & _LEVEL_MASK


def role_access(role: int) -> int:
    """Access triple that the levels above allow."""
    return (role & _ACCESS_MASK) >> _ACCESS_SHIFT


def role_quadrant(role: int) -> int:
    """Which part of a 4-byte table the page shadows."""
    return (role & _QUADRANT_MASK) >> _QUADRANT_SHIFT


def role_smm(role: int) -> int:
    """Address space that the page belongs to: 0 normal, 1 SMM."""
    return (role & _SMM_MASK) >> _SMM_SHIFT


def role_direct(role: int) -> bool:
    """Whether no guest table is behind the page."""
    return (role & _DIRECT) != 0


def role_invalid(role: int) -> bool:
    """Whether the page has been zapped and lives on as a root only."""
    return (role & _INVALID) != 0


def role_has_4_byte_gpte(role: int) -> bool:
    """Whether the guest table behind the page has 4-byte entries."""
    return (role & _HAS_4_BYTE_GPTE) != 0


def role_ad_disabled(role: int) -> bool:
    """Whether A and D bits of the page's sptes are not in use."""
    return (role & _AD_DISABLED) != 0


def role_guest_mode(role: int) -> bool:
    """Whether the page serves a nested guest."""
    return (role & _GUEST_MODE) != 0


def role_passthrough(role: int) -> bool:
    """Whether the page is an extra top level without a guest table of its own."""
    return (role & _PASSTHROUGH) != 0


def role_with_level(role: int, level: int) -> int:
    """``role`` at another ``level``."""
    return (role & ~_LEVEL_MASK) | level


def role_with_access(role: int, access: int) -> int:
    """``role`` with another ``access`` triple."""
    return (role & ~_ACCESS_MASK) | (access << _ACCESS_SHIFT)


def role_with_quadrant(role: int, quadrant: int) -> int:
    """``role`` of another ``quadrant``, 0 to 3."""
    return (role & ~_QUADRANT_MASK) | (quadrant << _QUADRANT_SHIFT)


def child_role(parent_role: int, parent_index: int, direct: bool, access: int) -> int:
    """Role of the page that entry ``parent_index`` (0 to 511) of a page with ``parent_role`` links.

    The child of a page that shadows 4-byte entries is at level 1 and covers 2M of the guest table's 4M, which half is
    the index's low bit. ``invalid`` is cleared: an invalid parent links nothing, and the caller has warned.
    Source: reference "Child role"; 2e65e842c57d ("KVM: x86/mmu: Derive shadow MMU page role from parent", 6.0).
    """
    role = parent_role & ~(_LEVEL_MASK | _ACCESS_MASK | _DIRECT | _INVALID | _PASSTHROUGH)
    role |= ((parent_role & _LEVEL_MASK) - 1) | (access << _ACCESS_SHIFT)
    if direct:
        role |= _DIRECT
    if role & _HAS_4_BYTE_GPTE:
        role = (role & ~_QUADRANT_MASK) | ((parent_index & 1) << _QUADRANT_SHIFT)
    return role


def calc_cpu_role(cr0: int, cr4: int, efer: int, smm: bool) -> int:
    """The CPU role of a guest with these registers; EFER.LMA counts only with CR4.PAE.

    Without paging the level is 0 and nothing but ``direct``, the access triple and the address space is set.
    """
    role = _EXT_VALID | _ACCESS_MASK
    if smm:
        role |= _SMM_ONE
    if (cr0 & _X86_CR0_PG) == 0:
        return role | _DIRECT
    if efer & _X86_EFER_NX:
        role |= _EFER_NX
    if cr4 & _X86_CR4_PSE:
        role |= _EXT_CR4_PSE
    return role | _supervisor_role(cr0, cr4) | _level_role(cr4, efer)


# The bits that say what supervisor accesses may do.
def _supervisor_role(cr0: int, cr4: int) -> int:
    role = _ZERO
    if cr0 & _X86_CR0_WP:
        role |= _CR0_WP
    if cr4 & _X86_CR4_SMEP:
        role |= _EXT_CR4_SMEP
        if (cr0 & _X86_CR0_WP) == 0:
            role |= _SMEP_ANDNOT_WP
    if cr4 & _X86_CR4_SMAP:
        role |= _EXT_CR4_SMAP
        if (cr0 & _X86_CR0_WP) == 0:
            role |= _SMAP_ANDNOT_WP
    return role


# The bits that follow from the format of the guest's tables. Protection keys and LA57 exist in long mode only.
def _level_role(cr4: int, efer: int) -> int:
    if (cr4 & _X86_CR4_PAE) == 0:
        return _HAS_4_BYTE_GPTE | _PT32_ROOT_LEVEL
    if (efer & _X86_EFER_LMA) == 0:
        return _PT32E_ROOT_LEVEL
    role = _EXT_EFER_LMA
    if cr4 & _X86_CR4_PKE:
        role |= _EXT_CR4_PKE
    if cr4 & _X86_CR4_LA57:
        return role | _EXT_CR4_LA57 | _PT64_ROOT_5LEVEL
    return role | _PT64_ROOT_4LEVEL


def calc_shadow_root_role(cpu_role: int) -> int:
    """Role of the root that shadows a guest with ``cpu_role``.

    Guests with fewer than three levels, none included, are shadowed with PAE tables. NX is always usable in sptes.
    """
    role = (cpu_role & _BASE_MASK) | _EFER_NX
    if (role & _LEVEL_MASK) < _PT32E_ROOT_LEVEL:
        role = (role & ~_LEVEL_MASK) | _PT32E_ROOT_LEVEL
    return role


def calc_tdp_root_role(cpu_role: int, root_level: int, ad_disabled: bool) -> int:
    """Role of the direct root of ``root_level`` levels for a guest with ``cpu_role``; only its address space counts."""
    role = _ACCESS_MASK | _CR0_WP | _EFER_NX | _DIRECT | root_level
    role |= cpu_role & (_SMM_MASK | _GUEST_MODE)
    if ad_disabled:
        role |= _AD_DISABLED
    return role


def cpu_role_level(cpu_role: int) -> int:
    """Levels of the guest's tables, 2 to 5; 0 without paging."""
    return cpu_role & _LEVEL_MASK


def cpu_role_paging(cpu_role: int) -> bool:
    """CR0.PG."""
    return (cpu_role & _LEVEL_MASK) != 0


def cpu_role_has_4_byte_gpte(cpu_role: int) -> bool:
    """Whether the guest's tables have 4-byte entries; false without paging."""
    return (cpu_role & _HAS_4_BYTE_GPTE) != 0


def cpu_role_efer_nx(cpu_role: int) -> bool:
    """EFER.NX."""
    return (cpu_role & _EFER_NX) != 0


def cpu_role_cr0_wp(cpu_role: int) -> bool:
    """CR0.WP."""
    return (cpu_role & _CR0_WP) != 0


def cpu_role_smep(cpu_role: int) -> bool:
    """CR4.SMEP."""
    return (cpu_role & _EXT_CR4_SMEP) != 0


def cpu_role_smap(cpu_role: int) -> bool:
    """CR4.SMAP."""
    return (cpu_role & _EXT_CR4_SMAP) != 0


def cpu_role_pse(cpu_role: int) -> bool:
    """CR4.PSE."""
    return (cpu_role & _EXT_CR4_PSE) != 0


def cpu_role_pke(cpu_role: int) -> bool:
    """CR4.PKE in long mode."""
    return (cpu_role & _EXT_CR4_PKE) != 0


def cpu_role_lma(cpu_role: int) -> bool:
    """EFER.LMA."""
    return (cpu_role & _EXT_EFER_LMA) != 0


def describe_role(word: int) -> str:
    """The page role ``word``, every field by name: ``level 4 quadrant 0 access wux smm 0 direct efer_nx cr0_wp``.

    Flags that are clear are left out; bits without a name follow as ``bits 0x...``.
    """
    known = ROLE_LEVEL_MASK | ROLE_QUADRANT_MASK | ROLE_ACCESS_MASK | ROLE_SMM_MASK
    text = (
        f"level {role_level(word)} quadrant {role_quadrant(word)} access {ACCESS_NAMES[role_access(word)]}"
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


def role_text(word: int) -> str:
    """The page role as the kernel's tracepoints print it: ``l4 8-byte q0 direct wux nxe ad``.

    Source: reference "Tracepoints, system kvmmmu", the part of ``<SP>`` between gfn and root count.
    """
    return (
        f"l{role_level(word)} {4 if role_has_4_byte_gpte(word) else 8}-byte q{role_quadrant(word)}"
        f"{' direct' if role_direct(word) else ''} {ACCESS_NAMES[role_access(word)]}"
        f"{' invalid' if role_invalid(word) else ''} {'' if word & ROLE_EFER_NX else '!'}nxe"
        f" {'!' if role_ad_disabled(word) else ''}ad"
    )
