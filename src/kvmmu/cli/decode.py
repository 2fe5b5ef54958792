# SPDX-License-Identifier: GPL-2.0-only
"""``kvmmu decode``: what the bits of one word mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from ..errors import UserError
from ..hw.bits import (
    PFERR_NAMES,
    PT_FRAME,
    PT_NAMES,
    PT_PAGE_SIZE,
    PT_PKEY_SHIFT,
    PT_PRESENT,
    describe_access,
    describe_flags,
)
from ..hw.modes import MODES, Limits, PagingMode, is_large_level, reserved_bits
from ..kvm.mmu.bits import FROZEN_SPTE, SHADOW_NONPRESENT_VALUE, SPTE_BASE_ADDR_MASK, SPTE_MMU_PRESENT, SPTE_TDP_AD_MASK
from ..kvm.mmu.role import describe_cpu_role, describe_role, role_text
from ..kvm.mmu.spte import describe_spte, make_npt_format, make_shadow_format, mmio_generation


class Kind(StrEnum):
    """What the word is."""

    SPTE = "spte"
    ROLE = "role"
    PFERR = "pferr"
    GPTE = "gpte"


class Format(StrEnum):
    """The table format of an spte."""

    SHADOW = "shadow"
    NPT = "npt"
    EPT = "ept"


#: Paging modes by the names that --mode takes.
MODE_NAMES = {
    mode.name.replace(" ", "-").lower(): mode for mode in MODES if mode.levels and not mode.name.startswith("NPT")
}
Mode = StrEnum("Mode", {name.upper().replace("-", "_"): name for name in MODE_NAMES})  # type: ignore[misc]
_DEFAULT_MODE = Mode("4-level")
_DEFAULT_MAXPHYADDR = 46

_SIZES = {1: "4K", 2: "2M", 3: "1G"}


@dataclass(frozen=True)
class _Word:
    # One word to decode, with what its meaning depends on.
    value: int
    format: Format
    level: int
    mode: PagingMode
    maxphyaddr: int


def command(
    kind: Annotated[Kind, typer.Argument(help="What the word is.")],
    word: Annotated[str, typer.Argument(help="The word in hex, with or without 0x, as traces print it.")],
    table_format: Annotated[
        Format, typer.Option("--format", help="Of an spte: whose tables it is in.")
    ] = Format.SHADOW,
    level: Annotated[int, typer.Option(help="Of an entry: the level of its table, 1 = 4K ...")] = 1,
    mode: Annotated[Mode, typer.Option(help="Of a gpte: the guest's paging mode.")] = _DEFAULT_MODE,
    maxphyaddr: Annotated[
        int, typer.Option(help="Physical address bits: reserved bits and MMIO depend on it.")
    ] = _DEFAULT_MAXPHYADDR,
) -> None:
    """Say what the bits of a word mean: an spte, a shadow page's role, a page-fault error code, a guest's entry."""
    limit = 5 if kind is Kind.SPTE else MODE_NAMES[mode].levels
    if not 1 <= level <= limit:
        raise UserError(f"--level {level}: a table here has a level of 1 to {limit}")
    if not 32 <= maxphyaddr <= 52:
        raise UserError(f"--maxphyaddr {maxphyaddr}: a CPU has 32 to 52 physical address bits")
    value = parse_word(word, 32 if kind is Kind.GPTE and MODE_NAMES[mode].entry_size == 4 else 64)
    decoded = _Word(value, table_format, level, MODE_NAMES[mode], maxphyaddr)
    for line in _DECODERS[kind](decoded):
        typer.echo(line)


def parse_word(text: str, bits: int) -> int:
    """The word that ``text`` is in hex. Raises UserError when it is no hex number of at most ``bits`` bits."""
    digits = text.lower().removeprefix("0x").replace("_", "")
    if not digits or any(digit not in "0123456789abcdef" for digit in digits):
        raise UserError(f"word {text!r}: not a hex number; write it like 0x8000000000000e67 or e67")
    value = int(digits, 16)
    if value >> bits:
        raise UserError(f"word {text!r}: has {value.bit_length()} bits, this kind of word has {bits}")
    return value


# ---- spte


def _decode_spte(word: _Word) -> Iterator[str]:
    if word.format is Format.EPT:
        yield describe_ept_spte(word.value, word.level)
        return
    make_format = make_npt_format if word.format is Format.NPT else make_shadow_format
    yield describe_spte(word.value, make_format(word.maxphyaddr, mmio_caching=True), word.level)


# EPT, as Linux 6.12 uses it; this release builds no such tables, it only reads the words of others.
_EPT_MEMTYPES = {0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB"}
_EPT_READ, _EPT_WRITE, _EPT_EXEC = 1, 2, 4
_EPT_IPAT = 1 << 6
_EPT_ACCESSED, _EPT_DIRTY = 1 << 8, 1 << 9
_EPT_HOST_WRITABLE, _EPT_MMU_WRITABLE = 1 << 57, 1 << 58
_EPT_SAVED_READ, _EPT_SAVED_EXEC = 1 << 54, 1 << 56
_EPT_SUPPRESS_VE = 1 << 63
_EPT_MMIO_MASK = _EPT_SUPPRESS_VE | 7
_EPT_MMIO_VALUE = _EPT_WRITE | _EPT_EXEC
_AD_TYPES = {0: "", 1: " ad-disabled", 2: " ad-wrprot-only", 3: " ad-type-3"}


def describe_ept_spte(word: int, level: int) -> str:
    """One line for the spte ``word`` at ``level`` of an EPT table; the form of ``describe_spte()``."""
    if word == SHADOW_NONPRESENT_VALUE:
        return "NP"
    if word == FROZEN_SPTE:
        return "FROZEN"
    if word & SPTE_MMU_PRESENT:
        return _describe_ept_present(word, level)
    if word & _EPT_MMIO_MASK == _EPT_MMIO_VALUE:
        return f"mmio gfn {(word & SPTE_BASE_ADDR_MASK) >> 12:#x} gen {mmio_generation(word):#x}"
    return f"not shadow-present {word:#x}"


def _describe_ept_present(word: int, level: int) -> str:
    is_leaf = level == 1 or bool(word & PT_PAGE_SIZE)
    flags: list[tuple[str, int]] = [("R", _EPT_READ), ("W", _EPT_WRITE), ("X", _EPT_EXEC), ("A", _EPT_ACCESSED)]
    known = 7 | _EPT_ACCESSED | SPTE_MMU_PRESENT | SPTE_BASE_ADDR_MASK | SPTE_TDP_AD_MASK | _EPT_SUPPRESS_VE
    if is_leaf:
        flags = [("W-host", _EPT_HOST_WRITABLE), ("W-mmu", _EPT_MMU_WRITABLE), *flags, ("D", _EPT_DIRTY)]
        known |= _EPT_HOST_WRITABLE | _EPT_MMU_WRITABLE | _EPT_DIRTY | 0x78 | _EPT_SAVED_READ | _EPT_SAVED_EXEC
        known |= PT_PAGE_SIZE if level > 1 else 0
    text = " ".join(name if word & mask else name + "-" for name, mask in flags)
    if not is_leaf:
        text = f"nonleaf {text} table {word & SPTE_BASE_ADDR_MASK:#x}"
    else:
        memtype = (word >> 3) & 7
        text = f"{_SIZES.get(level, f'L{level}')} {text} {_EPT_MEMTYPES.get(memtype, f'memtype-{memtype}')}"
        text += f"{' IPAT' if word & _EPT_IPAT else ''} pfn {(word & SPTE_BASE_ADDR_MASK) >> 12:#x}"
        saved = "".join(name for name, bit in (("R", _EPT_SAVED_READ), ("X", _EPT_SAVED_EXEC)) if word & bit)
        text += f" saved {saved}" if saved else ""
    text += _AD_TYPES[(word & SPTE_TDP_AD_MASK) >> 52] + ("" if word & _EPT_SUPPRESS_VE else " suppress-ve-")
    return text + (f" bits {word & ~known:#x}" if word & ~known else "")


# ---- role


def _decode_role(word: _Word) -> Iterator[str]:
    if word.value >> 32:
        yield f"cpu role: {describe_cpu_role(word.value)}"
        return
    yield describe_role(word.value)
    yield f"in traces: {role_text(word.value)}"


# ---- page-fault error code


def _decode_pferr(word: _Word) -> Iterator[str]:
    value = word.value
    yield describe_flags(value, PFERR_NAMES)
    cause = "the entry is present" if value & 1 else "no entry is present"
    if value & 8:
        cause = "a reserved bit is set in an entry"
    yield f"{describe_access(value & 0x16)}: {cause}"


# ---- a guest's entry


def _decode_gpte(word: _Word) -> Iterator[str]:
    value, mode, level = word.value, word.mode, word.level
    limits = Limits(word.maxphyaddr, has_nx=True, has_gbpages=True)
    if not value & PT_PRESENT:
        yield f"not present, {value:#x} is the guest's own"
        return
    is_large = level > 1 and bool(value & PT_PAGE_SIZE) and is_large_level(mode, level, limits)
    is_leaf = level == 1 or is_large
    names: Mapping[int, str] = PT_NAMES | ({PT_PAGE_SIZE: "PAT"} if level == 1 else {})
    if mode.entry_size == 4:
        names = {bit: name for bit, name in names.items() if bit < 1 << 32}
    flags = describe_flags(value & sum(names), names)
    yield f"{_entry_kind(mode, level, is_leaf)} {flags} {_entry_target(word, is_leaf)}"
    reserved = value & reserved_bits(mode, level, is_large, limits)
    if reserved:
        yield f"reserved bits set: {reserved:#x} (an access ends in #PF with RSVD)"


def _entry_kind(mode: PagingMode, level: int, is_leaf: bool) -> str:
    if not is_leaf:
        return f"level {level} entry"
    size = "4M" if mode.entry_size == 4 and level == 2 else _SIZES[level]
    return f"{size} page"


def _entry_target(word: _Word, is_leaf: bool) -> str:
    value, mode = word.value, word.mode
    if mode.entry_size == 4:
        if is_leaf and word.level == 2:
            return f"gfn {((value & 0xFFC0_0000) | ((value >> 13) & 0xFF) << 32) >> 12:#x}"
        return f"gfn {value >> 12:#x}"
    gfn = (value & PT_FRAME & ~((1 << (12 + 9 * (word.level - 1))) - 1 if is_leaf else 0)) >> 12
    pkey = (value >> PT_PKEY_SHIFT) & 0xF
    return f"gfn {gfn:#x}" + (f" pkey {pkey}" if is_leaf and mode.has_pkeys and pkey else "")


_DECODERS: dict[Kind, Callable[[_Word], Iterator[str]]] = {
    Kind.SPTE: _decode_spte,
    Kind.ROLE: _decode_role,
    Kind.PFERR: _decode_pferr,
    Kind.GPTE: _decode_gpte,
}
