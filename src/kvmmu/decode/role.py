# SPDX-License-Identifier: GPL-2.0-only
"""Page roles and CPU roles of any kernel, and which of two numbers a pasted role is.

``trace-cmd`` prints the role of a shadow page in decimal, crash and debuggers print it in hex, and both leave out what
tells them apart. Source: reference "Roles"; the sources of :mod:`.layouts`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..kvm.mmu.bits import ACC_NAMES
from .layouts import Layout
from .reading import Reading, bit_names, set_names

_LEVEL = 0xF
_BIT4 = 1 << 4
_QUADRANT = 3 << 5
_DIRECT = 1 << 7
_ACCESS = 7 << 8
_INVALID = 1 << 11
_EFER_NX = 1 << 12
_CR0_WP = 1 << 13
_ANDNOT_WP = 3 << 14
_AD_DISABLED = 1 << 16
_GUEST_MODE = 1 << 17
_SMM = 0xFF << 24
_PAGE_ROLE = 0xFFFF_FFFF


def has_4_byte_gpte(role: int, layout: Layout) -> bool:
    """Whether the guest table behind the page has 4-byte entries."""
    return bool(role & _BIT4) == layout.bit4_is_4_byte


def page_role_text(role: int, layout: Layout) -> str:
    """Every field of a page role by name; flags that are clear are left out, nameless bits follow as ``bits 0x...``."""
    text = f"level {role & _LEVEL} quadrant {(role & _QUADRANT) >> 5} access {ACC_NAMES[(role & _ACCESS) >> 8]}"
    text += f" smm {(role & _SMM) >> 24}"
    flags = {"has_4_byte_gpte" if layout.bit4_is_4_byte else "gpte_is_8_bytes": _BIT4, **layout.role_flags}
    known = _LEVEL | _QUADRANT | _ACCESS | _SMM | sum(flags.values())
    return " ".join([text, *set_names(role, flags)]) + (f" bits {role & ~known:#x}" if role & ~known else "")


def trace_text(role: int, layout: Layout) -> str:
    """The page role as tracepoints print it: ``l4 8-byte q0 direct wux nxe ad``."""
    return (
        f"l{role & _LEVEL} {4 if has_4_byte_gpte(role, layout) else 8}-byte q{(role & _QUADRANT) >> 5}"
        f"{' direct' if role & _DIRECT else ''} {ACC_NAMES[(role & _ACCESS) >> 8]}"
        f"{' invalid' if role & _INVALID else ''} {'' if role & _EFER_NX else '!'}nxe"
        f" {'!' if role & _AD_DISABLED else ''}ad"
    )


def read_role(word: int, layout: Layout) -> Reading:
    """A page role, or a CPU role if bits above 31 are set."""
    if word >> 32:
        return _read_cpu_role(word, layout)
    more = (f"in traces: {trace_text(word, layout)}",)
    return Reading("role", page_role_text(word, layout), more, tuple(_problems(word, layout)))


def _read_cpu_role(word: int, layout: Layout) -> Reading:
    high = word & ~_PAGE_ROLE
    flags = set_names(high, layout.ext_flags)
    rest = high & ~sum(layout.ext_flags.values())
    if "cr0_pg" in layout.ext_flags:
        # In these kernels the guest's MAXPHYADDR lies above the flags.
        flags.append(f"maxphyaddr {word >> 41 & 0x3F}")
        rest &= ~(0x3F << 41)
    text = " ".join([page_role_text(word & _PAGE_ROLE, layout), "|", *flags])
    problems = (f"{bit_names(rest)} set: no field of a CPU role",) if rest else ()
    return Reading("cpu role", f"cpu role: {text}" + (f" bits {rest:#x}" if rest else ""), (), problems)


def _problems(role: int, layout: Layout) -> Iterator[str]:
    level = role & _LEVEL
    if not 1 <= level <= 5:
        yield f"level {level}: a shadow page has 1 to 5"
    known = _LEVEL | _BIT4 | _QUADRANT | _ACCESS | _SMM | sum(layout.role_flags.values())
    if role & ~known:
        yield f"{bit_names(role & ~known)} set: no field of a role"
    if role & _QUADRANT and not has_4_byte_gpte(role, layout):
        yield "a quadrant, but the guest's entries have 8 bytes"
    if has_4_byte_gpte(role, layout) and level > 3:
        yield "4-byte gptes above level 3: only where a 32-bit hypervisor nests"
    if role & _CR0_WP and role & _ANDNOT_WP:
        yield "cr0_wp and a bit that says that CR0.WP is clear"
    if role & _DIRECT and level >= 4 and role & _ACCESS != _ACCESS:
        yield "a direct page of a top level whose access is not wux"
    if (role & _SMM) >> 24 > 1:
        yield f"address space {(role & _SMM) >> 24}: there are two"
    # Since 6.0 as far as sources here tell: NX is usable in each table but those that shadow a nested EPT.
    if layout.since >= (6, 0) and not role & (_EFER_NX | _GUEST_MODE):
        yield "efer_nx is clear outside guest_mode"
