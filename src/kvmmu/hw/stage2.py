# SPDX-License-Identifier: GPL-2.0-only
"""Formats of second stages: AMD's nested tables and Intel's EPT, as rows of a table.

A row says what the walk (:mod:`kvmmu.hw.tdp`) asks of an entry: which bits make it present, which ones each kind of
access needs at every level, which are A and D, how a fault is told. Rights are ANDed over the levels after the bits in
``inverted`` are turned around, because NX forbids where all others allow. Memory types are not modelled beyond what is
illegal. A guest runs on NPT so far: :mod:`kvmmu.hw.paging` has no place yet for pages that may not be read. Source: AMD
APM volume 2, "Nested Paging"; Intel SDM volume 3, "The Extended Page Table Mechanism (EPT)".
"""

from __future__ import annotations

from .bits import (
    EPT_ACCESSED,
    EPT_DIRTY,
    EPT_EXEC,
    EPT_READ,
    EPT_RWX,
    EPT_WRITE,
    PT_ACCESSED,
    PT_DIRTY,
    PT_NX,
    PT_PRESENT,
    PT_USER,
    PT_WRITABLE,
)
from .modes import MODE_EPT4, MODE_NPT4, ept_illegal_low_bits


class SecondStage:
    """One format. ``mode`` is the number of its 4-level mode in :data:`~kvmmu.hw.modes.MODES`; see the module."""

    __slots__ = (
        "accessed",
        "dirty",
        "fetch",
        "illegal_low_bits",
        "inverted",
        "is_ept",
        "mode",
        "name",
        "present",
        "read",
        "write",
    )

    def __init__(self, name: str, mode: int, *, is_ept: bool) -> None:
        self.name = name
        self.mode = mode
        self.is_ept = is_ept
        self.present = 0
        self.inverted = 0
        self.read = 0
        self.write = 0
        self.fetch = 0
        self.accessed = 0
        self.dirty = 0
        self.illegal_low_bits = 0

    def __repr__(self) -> str:
        return f"<SecondStage {self.name}>"


# Every access is a user's; NX may be used, since the host runs with EFER.NX set.
def _npt() -> SecondStage:
    fmt = SecondStage("NPT", MODE_NPT4, is_ept=False)
    fmt.present = PT_PRESENT
    fmt.inverted = PT_NX
    fmt.read = PT_USER
    fmt.write = PT_USER | PT_WRITABLE
    fmt.fetch = PT_USER | PT_NX
    fmt.accessed = PT_ACCESSED
    fmt.dirty = PT_DIRTY
    return fmt


def ept(*, has_ad: bool, has_execonly: bool) -> SecondStage:
    """EPT with A and D bits or without, on a CPU that has entries which are executable alone, or has not."""
    fmt = SecondStage(f"EPT{'' if has_ad else ' without A/D'}", MODE_EPT4, is_ept=True)
    fmt.present = EPT_RWX
    fmt.read = EPT_READ
    fmt.write = EPT_WRITE
    fmt.fetch = EPT_EXEC
    if has_ad:
        fmt.accessed = EPT_ACCESSED
        fmt.dirty = EPT_DIRTY
    fmt.illegal_low_bits = ept_illegal_low_bits(has_execonly)
    return fmt


NPT = _npt()
EPT = ept(has_ad=True, has_execonly=True)
