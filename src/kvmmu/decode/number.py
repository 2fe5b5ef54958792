# SPDX-License-Identifier: GPL-2.0-only
"""Numbers as people paste them: hex with or without ``0x``, or decimal where nothing says so."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import UserError

_HEX = re.compile(r"(?:0[xX])?[0-9a-fA-F](?:_?[0-9a-fA-F])*")
_DIGITS = re.compile(r"[1-9][0-9]*")


@dataclass(frozen=True, slots=True)
class Number:
    """A word as it was written: its value in hex, and in decimal if it can be a decimal number as well."""

    text: str
    value: int
    decimal: int | None


def parse_number(text: str, bits: int = 64) -> Number:
    """The word ``text``. Raises UserError when it is no hex number of at most ``bits`` bits."""
    digits = text.strip().rstrip("uUlL") if text[:2].lower() == "0x" else text.strip()
    if digits.lower().endswith("h") and not digits.lower().startswith("0x"):
        digits = digits[:-1]
    if len(digits) > 100 or _HEX.fullmatch(digits) is None:
        raise UserError(f"word {text[:40]!r}: not a hex number; write it like 0x8000000000000e67 or e67")
    value = int(digits.replace("_", ""), 16)
    decimal = int(digits) if _DIGITS.fullmatch(digits) and len(digits) > 1 else None
    if decimal is not None and decimal >> bits:
        decimal = None
    if value >> bits and decimal is not None:
        return Number(text, decimal, None)
    if value >> bits:
        raise UserError(f"word {text!r}: has {value.bit_length()} bits, this kind of word has {bits}")
    return Number(text, value, decimal)
