# SPDX-License-Identifier: GPL-2.0-only
"""An entry of a guest's (or any x86) page table: fields, and each reserved bit with its rule.

Source: Intel SDM volume 3, "Paging"; the modes of :mod:`kvmmu.hw.modes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ..hw.bits import PT_FRAME, PT_NAMES, PT_PAGE_SIZE, PT_PKEY_SHIFT, PT_PRESENT, describe_flags
from ..hw.modes import MODES, Limits, PagingMode, is_large_level, reserved_bits
from ..kvm.cpuid import CpuFeatures
from .reading import MAX_MAXPHYADDR, Machine, Reading, bit_names, bits

#: Paging modes by the names that ``--mode`` takes.
MODE_NAMES = {mode.name: mode for mode in MODES if mode.levels and mode.is_guests}
# Of a CPU that nothing is said of, nothing is called reserved that another has.
_ANY_CPU = CpuFeatures(amd=False)
_SIZES = {1: "4K", 2: "2M", 3: "1G"}


def read_gpte(word: int, level: int, mode: PagingMode, machine: Machine) -> Reading:
    """The entry ``word`` at ``level`` of tables of ``mode``."""
    kind = f"gpte {mode.name} level {level}"
    if not word & PT_PRESENT:
        return Reading(kind, f"not present, {word:#x} is the guest's own" if word else "not present, empty")
    cpu = machine.cpu or _ANY_CPU
    limits = replace(cpu.limits(has_nx=True, widest=machine.maxphyaddr or MAX_MAXPHYADDR), has_reserved_bit8=cpu.amd)
    is_large = level > 1 and bool(word & PT_PAGE_SIZE) and is_large_level(mode, level, limits)
    leaf = level == 1 or is_large
    names: Mapping[int, str] = PT_NAMES | ({PT_PAGE_SIZE: "PAT"} if level == 1 else {})
    if mode.entry_size == 4:
        names = {bit: name for bit, name in names.items() if bit < 1 << 32}
    flags = describe_flags(word & sum(names), names)
    text = f"{_entry_kind(mode, level, leaf)} {flags} {_target(word, mode, level, leaf, cpu)}"
    reserved = word & reserved_bits(mode, level, is_large, limits)
    problems = (*_problems(reserved, mode, level, is_large, limits), *_impossible(mode, cpu))
    return Reading(kind, text, (), problems, tuple(_notes(word, mode, machine)))


def _problems(reserved: int, mode: PagingMode, level: int, is_large: bool, limits: Limits) -> Iterator[str]:
    if not reserved:
        return
    yield f"reserved bits set: {reserved:#x} (an access ends in #PF with RSVD)"
    maxphyaddr = limits.maxphyaddr
    address = bits(maxphyaddr, 51) & reserved if mode.entry_size == 8 else 0
    low = bits(13, 29) & reserved & ~address if is_large else 0
    rules = (
        (address, f"at or above MAXPHYADDR {maxphyaddr}"),
        (low, "of a large page's address, which is aligned to its size"),
        (reserved & bits(7, 7), f"there are no large pages at level {level}"),
        (reserved & bits(63, 63) if not limits.has_nx else 0, "NX, which this CPU lacks"),
        (reserved & bits(52, 63 if limits.has_nx else 62), "reserved in PAE tables"),
        (reserved & bits(1, 8) & ~bits(7, 7) if level == 3 else 0, "reserved in a PDPTE"),
        (reserved & bits(8, 8) if level > 3 else 0, "reserved on AMD at levels 4 and 5"),
    )
    for found, rule in rules:
        if found:
            yield f"{bit_names(found)}: {rule}"


def _impossible(mode: PagingMode, cpu: CpuFeatures) -> Iterator[str]:
    if mode.levels > 3 and not cpu.lm:
        yield f"{mode.name} tables need long mode, which this CPU lacks"
    elif mode.levels == 5 and not cpu.la57:
        yield f"{mode.name} tables need LA57, which this CPU lacks"


def _notes(word: int, mode: PagingMode, machine: Machine) -> Iterator[str]:
    need = (word & PT_FRAME).bit_length()
    if (
        machine.maxphyaddr is None
        and (machine.cpu is None or machine.cpu.maxphyaddr is None)
        and mode.entry_size == 8
        and need > 39
    ):
        yield f"legal only where MAXPHYADDR is at least {need}: else a reserved address bit is set"


def _entry_kind(mode: PagingMode, level: int, leaf: bool) -> str:
    if not leaf:
        return f"level {level} entry"
    return f"{'4M' if mode.entry_size == 4 and level == 2 else _SIZES[level]} page"


def _target(word: int, mode: PagingMode, level: int, leaf: bool, cpu: CpuFeatures) -> str:
    if mode.entry_size == 4:
        if leaf and level == 2:
            high = (word >> 13) & 0xFF if cpu.pse36 else 0
            return f"gfn {((word & 0xFFC0_0000) | high << 32) >> 12:#x}"
        return f"gfn {word >> 12:#x}"
    gfn = (word & PT_FRAME & ~((1 << (12 + 9 * (level - 1))) - 1 if leaf else 0)) >> 12
    pkey = (word >> PT_PKEY_SHIFT) & 0xF
    return f"gfn {gfn:#x}" + (f" pkey {pkey}" if leaf and mode.has_pkeys and cpu.pku and pkey else "")
