# SPDX-License-Identifier: GPL-2.0-only
"""What comes out of decoding: readings of a word, and the machine that a word is taken to be of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..kvm.cpuid import CpuFeatures

#: Physical address bits that an entry of any format can hold.
MAX_MAXPHYADDR = 52


@dataclass(frozen=True, slots=True)
class Machine:
    """What the meaning of a word depends on, beside kernel, format and level."""

    #: Physical address bits; None: not known, nothing is called reserved for its address.
    maxphyaddr: int | None = None
    #: The host mitigates the L1TF bug, which moves bits of an MMIO spte's gfn.
    l1tf: bool = False
    #: Address bits that its L1 cache sees; None: MAXPHYADDR, or the 44 that Linux takes for many CPUs.
    cache_bits: int | None = None
    #: What the CPU of a guest's entry has; None: not known, nothing is called reserved for lack of it.
    cpu: CpuFeatures | None = None

    @property
    def reserved_address(self) -> int:
        """Address bits that must be 0."""
        return bits(self.maxphyaddr, 51) if self.maxphyaddr is not None else 0


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read a word."""

    #: As what: ``ept spte``, ``#PF error code``.
    kind: str
    #: What it says, in one line.
    text: str
    #: More of what it says, a line each.
    more: tuple[str, ...] = ()
    #: Rules that the word breaks: bits that the CPU reserves or forbids, words that kvm does not make.
    problems: tuple[str, ...] = ()
    #: What else a reader should know.
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The reading as lines of text: what it says, then each broken rule and note."""
        told = [*(f"  wrong: {problem}" for problem in self.problems), *(f"  note: {note}" for note in self.notes)]
        return [self.text, *self.more, *told]

    @property
    def line(self) -> str:
        """What it says as one line, without rules and notes."""
        return "; ".join((self.text, *self.more))

    def to_json(self) -> dict[str, object]:
        """The reading as a JSON object."""
        return {"as": self.kind, "text": self.line, "problems": list(self.problems), "notes": list(self.notes)}


def bits(low: int, high: int) -> int:
    """Bits ``low`` to ``high``, both included; none if ``high`` is below ``low``."""
    return (1 << (high + 1)) - (1 << low) if high >= low else 0


def field_of(word: int, span: tuple[int, int]) -> int:
    """The bits ``span`` (first, last) of ``word`` as a number."""
    return (word & bits(*span)) >> span[0]


def bit_names(word: int) -> str:
    """The bits set in ``word`` in the manual's way: ``bit 39``, ``bits 5:4, 11``."""
    runs: list[str] = []
    bit = 0
    while word >> bit:
        if not word >> bit & 1:
            bit += 1
            continue
        low = bit
        while word >> bit & 1:
            bit += 1
        runs.append(f"{bit - 1}:{low}" if bit - 1 > low else f"{low}")
    name = "bit" if word & (word - 1) == 0 else "bits"
    return f"{name} {', '.join(reversed(runs))}"


def flags_text(word: int, flags: Iterable[tuple[str, int]]) -> str:
    """``W U-``: each name, with a minus sign where its bit is clear."""
    return " ".join(name if word & mask else name + "-" for name, mask in flags)


def set_names(word: int, flags: Mapping[str, int]) -> list[str]:
    """The names of ``flags`` whose bit is set."""
    return [name for name, mask in flags.items() if word & mask]
