# SPDX-License-Identifier: GPL-2.0-only
"""An spte in shadow, NPT or EPT format, of any kernel: what it says, and which rules it breaks.

Two kinds of rules: what the CPU reserves or forbids (an access then ends in a fault with RSVD, or in an EPT
misconfiguration), and what kvm never makes (a bit that no field explains, an illegal writable state). The second kind
tells formats, levels and kernels apart where nobody says which they are. Source: Intel SDM volume 3, "EPT
Misconfigurations"; the sources of :mod:`.layouts`; reference "SPTE formats", "Per-format masks", "Legal writable
triples".
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from .layouts import Layout
from .mmio import read_mmio
from .reading import Machine, Reading, bit_names, bits, flags_text


class Format(StrEnum):
    """The table format of an spte."""

    SHADOW = "shadow"
    NPT = "npt"
    EPT = "ept"


ADDRESS = bits(12, 51)
_SIZES = {1: "4K", 2: "2M", 3: "1G"}
_PS = 1 << 7
_NX = 1 << 63

# x86 format: present, writable, user, accessed, dirty.
_P, _W, _U, _A, _D = 1, 2, 4, 1 << 5, 1 << 6
# EPT format.
_R, _X = 1, 4
_RWX = 7
_MEMTYPE = bits(3, 5)
_IPAT = 1 << 6
_EPT_A, _EPT_D = 1 << 8, 1 << 9
_SUPPRESS_VE = 1 << 63
_MEMTYPES = {0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB"}


def read_spte(word: int, table_format: Format, level: int, layout: Layout, machine: Machine) -> Reading:
    """The spte ``word`` at ``level`` (1 = 4K ... 5) of a table in ``table_format``, of a kernel with ``layout``."""
    kind = f"{table_format} spte"
    if word == layout.nonpresent:
        return Reading(kind, "NP", notes=("an empty entry",) if word == 0 else ())
    if word == layout.removed:
        return Reading(kind, layout.removed_name, notes=tuple(_removed_notes(layout)))
    mmio = read_mmio(word, table_format, layout, machine)
    if mmio is not None:
        return mmio
    if not is_shadow_present(word, layout):
        return _read_nonpresent(kind, word)
    read = _read_ept if table_format is Format.EPT else _read_x86
    text, problems, notes = read(word, level, layout, machine)
    return Reading(kind, text, (), tuple(problems), tuple(notes))


def _removed_notes(layout: Layout) -> Iterator[str]:
    yield "another CPU is changing the entry; only the TDP MMU makes such words"
    if layout.removed_name == "REMOVED":
        yield "called FROZEN since 6.11, and 0x80000000000005a0 since 6.10"


def is_shadow_present(word: int, layout: Layout) -> bool:
    """Whether ``word``, which is neither empty, removed nor MMIO, maps or links something."""
    if layout.mmu_present is None:
        return word != 0
    return bool(word >> layout.mmu_present & 1)


def is_leaf(word: int, level: int) -> bool:
    """Whether the shadow-present ``word`` at ``level`` maps a page."""
    return level == 1 or bool(word & _PS)


def _read_nonpresent(kind: str, word: int) -> Reading:
    text = f"not shadow-present {word:#x}"
    if word == 0:
        return Reading(kind, text, notes=("an empty entry before 6.10, and in a PAE root; since then empty is bit 63",))
    return Reading(kind, text, (), (f"{bit_names(word)} set in an entry that is neither present, empty nor MMIO",))


# ---- what both formats share


def _writable_masks(table_format: Format, layout: Layout) -> tuple[int, int]:
    host, mmu = layout.ept_writable if table_format is Format.EPT else layout.writable
    return 1 << host, 1 << mmu


# Host-writable, MMU-writable and W of a leaf: one of four rows.
def _triple_problems(word: int, host: int, mmu: int) -> Iterator[str]:
    if word & mmu and not word & host:
        yield f"MMU-writable ({bit_names(mmu)}) without host-writable ({bit_names(host)}): kvm never sets that"
    if word & _W and not word & mmu:
        yield f"W without MMU-writable ({bit_names(mmu)}): kvm never sets that in a leaf"


def _address_problems(word: int, level: int, leaf: bool, machine: Machine) -> Iterator[str]:
    high = word & machine.reserved_address
    if high:
        yield f"reserved address {bit_names(high)}: at or above MAXPHYADDR {machine.maxphyaddr}"
    if leaf and 1 < level < 4:
        low = word & bits(12, 11 + 9 * (level - 1))
        if low:
            yield f"reserved address {bit_names(low)}: a {_SIZES[level]} page is aligned to its size"


def _address_notes(word: int, machine: Machine) -> Iterator[str]:
    need = (word & ADDRESS).bit_length()
    if machine.maxphyaddr is None and need > 39:
        yield f"the address is legal only where MAXPHYADDR is at least {need} (or {bit_names(1 << need - 1)} encrypts)"


def _unknown(word: int, known: int) -> Iterator[str]:
    rest = word & ~known
    if rest:
        yield f"{bit_names(rest)} ({rest:#x}) set: no field of kvm's in this format"


def _ad_type(word: int, layout: Layout) -> str:
    mask, disabled, wrprot = layout.ad_types
    kind = word & mask
    if not kind:
        return ""
    return " ad-disabled" if kind == disabled else " ad-wrprot-only" if kind == wrprot else " ad-type-3"


def _tail(word: int, known: int) -> str:
    return f" bits {word & ~known:#x}" if word & ~known else ""


# ---- shadow and NPT


def _read_x86(word: int, level: int, layout: Layout, machine: Machine) -> tuple[str, list[str], list[str]]:
    leaf = is_leaf(word, level)
    host, mmu = _writable_masks(Format.SHADOW, layout)
    present = 0 if layout.mmu_present is None else 1 << layout.mmu_present
    known = present | ADDRESS | layout.ad_types[0] | _P | _NX | _W | _U | _A
    flags = [("W", _W), ("U", _U), ("X", 0), ("A", _A)]
    if leaf:
        flags = [("W-host", host), ("W-mmu", mmu), *flags, ("D", _D)]
        known |= _D | host | mmu | (_PS if level in {2, 3} else 0)
    text = " ".join(_x_flag(word) if name == "X" else flags_text(word, [(name, mask)]) for name, mask in flags)
    tail = _ad_type(word, layout) + _tail(word, known)
    if leaf:
        text = f"{_SIZES.get(level, f'L{level}')} {text} pfn {(word & ADDRESS) >> 12:#x}{tail}"
    else:
        text = f"nonleaf level {level} {text} table {word & ADDRESS:#x}{tail}"
    problems = list(_x86_problems(word, level, leaf, layout))
    problems += _address_problems(word, level, leaf, machine)
    if leaf:
        problems += _triple_problems(word, host, mmu)
    problems += _unknown(word, known)
    return text, problems, list(_address_notes(word, machine))


def _x_flag(word: int) -> str:
    return "X-" if word & _NX else "X"


def _x86_problems(word: int, level: int, leaf: bool, layout: Layout) -> Iterator[str]:
    if not word & _P:
        yield "shadow-present, but P is clear: the CPU does not see it"
    if word & _PS and level >= 4:
        yield f"reserved bit 7: there are no large pages at level {level}"
    if word & layout.ad_types[0]:
        yield f"an A/D type ({bit_names(word & layout.ad_types[0])}): only EPT tables have one"
    if not leaf and word & _P and word & (_W | _U) != _W | _U:
        yield "kvm sets W and U in every entry that links a table"
    if not leaf and word & _NX:
        yield "kvm sets no NX in an entry that links a table"


# ---- EPT


def _read_ept(word: int, level: int, layout: Layout, machine: Machine) -> tuple[str, list[str], list[str]]:
    leaf = is_leaf(word, level)
    host, mmu = _writable_masks(Format.EPT, layout)
    present = 0 if layout.mmu_present is None else 1 << layout.mmu_present
    ve = _SUPPRESS_VE if layout.has_suppress_ve else 0
    known = _RWX | _EPT_A | present | ADDRESS | layout.ad_types[0] | ve
    flags = [("R", _R), ("W", _W), ("X", _X), ("A", _EPT_A)]
    saved = (_R | _X) << layout.saved_shift
    if leaf:
        flags = [("W-host", host), ("W-mmu", mmu), *flags, ("D", _EPT_D)]
        known |= host | mmu | _EPT_D | _MEMTYPE | _IPAT | saved | (_PS if level in {2, 3} else 0)
    text = flags_text(word, flags)
    if leaf:
        text = f"{_SIZES.get(level, f'L{level}')} {text} {_memory_type(word)} pfn {(word & ADDRESS) >> 12:#x}"
        kept = "".join(name for name, bit in (("R", _R), ("X", _X)) if word >> layout.saved_shift & bit)
        text += f" saved {kept}" if kept else ""
    else:
        text = f"nonleaf {text} table {word & ADDRESS:#x}"
    text += _ad_type(word, layout) + (" suppress-ve-" if ve and not word & ve else "") + _tail(word, known)
    problems = list(_ept_problems(word, level, leaf, layout))
    if word & _RWX:
        problems += [f"EPT misconfiguration: {told}" for told in _address_problems(word, level, leaf, machine)]
    if leaf:
        problems += _triple_problems(word, host, mmu)
    if ve and not word & ve:
        problems.append("bit 63 is clear: kvm sets it in every EPT spte but MMIO ones since 6.10")
    # What the CPU reserves in a table is told above, by its rule.
    problems += _unknown(word, known | (0 if leaf else bits(3, 7)))
    return text, problems, [*_ept_notes(word, layout), *_address_notes(word, machine)]


def _memory_type(word: int) -> str:
    memtype = (word & _MEMTYPE) >> 3
    return f"{_MEMTYPES.get(memtype, f'memtype-{memtype}')}{' IPAT' if word & _IPAT else ''}"


def _ept_problems(word: int, level: int, leaf: bool, layout: Layout) -> Iterator[str]:
    rights = word & _RWX
    if rights in {2, 6}:
        yield f"EPT misconfiguration: W without R (bits 2:0 are {rights:03b})"
    reserved = word & (bits(3, 7) if level >= 4 else bits(3, 6))
    if rights and reserved and not leaf:
        yield f"EPT misconfiguration: {bit_names(reserved)} set, reserved in an entry that links a table"
    if leaf and level >= 4:
        yield f"EPT misconfiguration: bit 7 set, there are no large pages at level {level}"
    memtype = (word & _MEMTYPE) >> 3
    if leaf and rights and memtype not in _MEMTYPES:
        yield f"EPT misconfiguration: memory type {memtype} (bits 5:3) is reserved"
    if leaf and word & _IPAT and memtype in {1, 4, 5}:
        yield f"IPAT with {_MEMTYPES[memtype]}: kvm sets it with UC and WB alone"
    elif leaf and layout.since >= (6, 11) and memtype in {1, 4, 5}:
        yield f"memory type {_MEMTYPES[memtype]}: kvm makes UC and WB alone since guests' MTRRs do not count"
    if not leaf and rights not in {2, 6, 7}:
        yield "kvm sets R, W and X in every entry that links a table"
    if word & layout.ad_types[0] == layout.ad_types[0] and layout.ad_types[2]:
        yield f"A/D type 3 ({bit_names(layout.ad_types[0])}) does not exist in a present spte"
    if leaf and not rights and word & layout.ad_types[0] != layout.ad_types[1]:
        yield "no right is left, and the entry is not access-tracked (A/D type 1)"


def _ept_notes(word: int, layout: Layout) -> Iterator[str]:
    rights = word & _RWX
    if rights == _X:
        yield "X without R: a misconfiguration on a CPU without execute-only EPT entries"
    if not rights and word & layout.ad_types[0] == layout.ad_types[1]:
        yield "access-tracked: the rights were taken away to notice the next access"
