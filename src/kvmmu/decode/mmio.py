# SPDX-License-Identifier: GPL-2.0-only
"""MMIO sptes of any kernel: gfn, access, generation, and what their high bits give away about the host.

In shadow and NPT format an MMIO spte has P and bit 51, a reserved address bit; an AMD host with memory encryption sets
every address bit from MAXPHYADDR on. In EPT format bits 2:0 are 110, a misconfiguration. On a CPU with the L1TF bug
the five address bits below what the L1 cache sees are set, and the gfn's own are kept five bits further up. Source:
reference "MMIO spte"; the sources of :mod:`.layouts`.
"""

from __future__ import annotations

from collections.abc import Iterator

from .layouts import Layout
from .reading import Machine, Reading, bit_names, bits, field_of

#: Access triples that an MMIO spte of shadow or NPT format holds: W and U.
MMIO_ACCESS = ("---", "--x", "w--", "w-x", "-u-", "-ux", "wu-", "wux")

_L1TF_LEN = 5
_MARK = 1 << 51
_P = 1
_ACCESS = 6
_SUPPRESS_VE = 1 << 63
#: Widths that an L1 cache with the bug sees: those of CPUs that have it.
_L1TF_WIDTHS = (36, 39, 40, 42, 44, 46)
#: What Linux takes for CPUs whose cache sees more than CPUID says.
_ASSUMED_CACHE_BITS = 44


def is_mmio(word: int, table_format: str, layout: Layout) -> bool:
    """Whether ``word`` caches that its gfn has no memory."""
    if layout.mmu_present is not None and word >> layout.mmu_present & 1:
        return False
    if layout.mmio_mark is not None and word & layout.mmio_mark[0] != layout.mmio_mark[1]:
        return False
    if table_format == "ept":
        mask = 7 | (_SUPPRESS_VE if layout.has_suppress_ve else 0)
        return word & mask == _ACCESS
    return word & (_MARK | _P) == _MARK | _P


# Before 5.13 the kind of an spte alone says MMIO, also where no address bit is reserved for it.
def _is_wide_mmio(word: int, layout: Layout, machine: Machine) -> bool:
    if machine.maxphyaddr != 52 or layout.mmio_mark is None or layout.since < (5, 4):
        return False
    return word & layout.mmio_mark[0] == layout.mmio_mark[1] and not word & _P


def generation(word: int, layout: Layout) -> int:
    """The part of the memslots' generation that the MMIO spte ``word`` holds."""
    low = field_of(word, layout.gen_low)
    return low | field_of(word, layout.gen_high) << (layout.gen_low[1] - layout.gen_low[0] + 1)


def l1tf_gfn(word: int, cache_bits: int) -> int:
    """The gfn of an MMIO spte on a host with the L1TF mitigation, whose L1 cache sees ``cache_bits`` address bits."""
    low = cache_bits - _L1TF_LEN
    mask = bits(low, cache_bits - 1)
    return ((word & bits(12, low - 1)) | ((word >> _L1TF_LEN) & mask)) >> 12


def l1tf_width(word: int, gfn: int) -> int | None:
    """The width of the L1 cache with which the MMIO spte ``word`` is of ``gfn``; None if it is so without L1TF."""
    address = word & bits(12, 50)
    if address >> 12 == gfn or not address >> 31:
        return None
    fitting = (width for width in range(32, 47) if _fits_l1tf(address, width))
    return next((width for width in fitting if l1tf_gfn(word, width) == gfn), None)


def read_mmio(word: int, table_format: str, layout: Layout, machine: Machine) -> Reading | None:
    """The MMIO spte ``word``; None for another word, and on a host with 52 address bits, which has none."""
    is_ept = table_format == "ept"
    if machine.maxphyaddr == 52 and not is_ept:
        if not _is_wide_mmio(word, layout, machine):
            return None
    elif not is_mmio(word, table_format, layout):
        return None
    top = 51 if is_ept or machine.maxphyaddr == 52 else 50
    address = word & bits(12, top)
    width = machine.maxphyaddr
    if machine.l1tf:
        cache_bits = _cache_bits(address, machine)
        gfn = l1tf_gfn(word, cache_bits)
        problems = list(_l1tf_problems(address, cache_bits))
        notes: list[str] = [f"L1TF mitigation: {_l1tf_place(cache_bits)}"]
    else:
        gfn = (address & bits(12, (width or 52) - 1)) >> 12
        problems = list(_high_problems(address, width, top))
        notes = [*_high_notes(address, width, top), *_l1tf_notes(address, machine)]
    text = f"mmio gfn {gfn:#x} gen {generation(word, layout):#x}"
    if not is_ept:
        text += f" access {MMIO_ACCESS[word & _ACCESS]}"
    if layout.mmio_mark is not None and layout.mmio_mark[0] & (bits(*layout.gen_low) | bits(*layout.gen_high)):
        notes.append(f"the kind ({bit_names(layout.mmio_mark[0])}) lies in the generation of this kernel")
    known = bits(0, 2) | bits(*layout.gen_low) | bits(*layout.gen_high) | bits(12, 51)
    known |= layout.mmio_mark[0] if layout.mmio_mark is not None else 0
    if word & ~known:
        problems.append(f"{bit_names(word & ~known)} set: no field of an MMIO spte")
    return Reading(f"{table_format} spte", text, (), tuple(problems), tuple(notes))


# The widths that the L1 cache may have, the likely ones first.
def _widths(machine: Machine) -> tuple[int, ...]:
    if machine.cache_bits is not None:
        return (machine.cache_bits,)
    if machine.maxphyaddr is None:
        return _L1TF_WIDTHS
    widths = (machine.maxphyaddr, _ASSUMED_CACHE_BITS) if machine.maxphyaddr < 44 else (machine.maxphyaddr,)
    return tuple(width for width in widths if width < 52 - _L1TF_LEN)


def _cache_bits(address: int, machine: Machine) -> int:
    widths = _widths(machine) or (_ASSUMED_CACHE_BITS,)
    return next((width for width in widths if _fits_l1tf(address, width)), widths[0])


def _l1tf_place(cache_bits: int) -> str:
    return f"bits {cache_bits - 1}:{cache_bits - 5} are set, bits {cache_bits + 4}:{cache_bits} hold the gfn's there"


def _l1tf_problems(address: int, cache_bits: int) -> Iterator[str]:
    clear = bits(cache_bits - 5, cache_bits - 1) & ~address
    if clear:
        yield f"{bit_names(clear)} clear: the L1TF mitigation sets them for a cache of {cache_bits} bits"
    high = address & bits(cache_bits + _L1TF_LEN, 51)
    if high:
        yield f"{bit_names(high)} set: above the gfn's bits that the L1TF mitigation moves"


# Address bits from MAXPHYADDR on: all set (AMD with memory encryption) or all clear.
def _high_problems(address: int, width: int | None, top: int) -> Iterator[str]:
    high = address & bits(width, top) if width is not None else 0
    if width is None or not high or (top == 50 and high | bits(width, width) == bits(width, top)):
        return
    if not any(_fits_l1tf(address, cache_bits) for cache_bits in (width, _ASSUMED_CACHE_BITS)):
        yield f"{bit_names(high)} set: at or above MAXPHYADDR {width}, neither the gfn's nor the mark's"


def _high_notes(address: int, width: int | None, top: int) -> Iterator[str]:
    if top != 50 or not address >> 50 & 1:
        return
    low = 50
    while low > 12 and address >> (low - 1) & 1:
        low -= 1
    if 32 <= low < 50 and (width is None or low in {width, width + 1}):
        yield (
            f"bits 51:{low} are all set: the mark of an AMD host with memory encryption and MAXPHYADDR {low}"
            f" (or {low - 1}): gfn {(address & bits(12, low - 1)) >> 12:#x}"
        )


def _fits_l1tf(address: int, cache_bits: int) -> bool:
    mask = bits(cache_bits - 5, cache_bits - 1)
    return address & mask == mask and not address & bits(cache_bits + _L1TF_LEN, 51)


# The other reading, where the word looks as the mitigation would make it.
def _l1tf_notes(address: int, machine: Machine) -> Iterator[str]:
    for width in _widths(machine):
        if _fits_l1tf(address, width):
            yield f"on a host with the L1TF mitigation ({width} bits): gfn {l1tf_gfn(address, width):#x}"
