# SPDX-License-Identifier: GPL-2.0-only
"""What callers hand in, looked at once, at the door of the API: numbers, flags, bytes, sinks.

Compiled rooms take C words: they would cut a wide number, wrap a negative one, and follow a None. So nothing passes
the door that is not what it should be, and each refusal is one line with the value, the rule, and the way out, equal
in both builds. Rooms behind the door do not look again.
"""

from __future__ import annotations

from typing import Any

from .errors import GuestMisuse
from .page_types import PAGE_SIZE, U64

# So much of a wrong value is shown.
_SHOWN = 60


def describe(value: object) -> str:
    """``value`` as an error shows it: numbers in hex, plain values as they are, of other objects the type."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:#x}"
    if value is None or isinstance(value, bool | float | str | bytes):
        text = repr(value)
        return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return f"of type {type(value).__name__}"


def _short(number: int) -> str:
    return f"{number:#x}" if number else "0"


def whole(what: str, value: Any) -> None:
    """Nothing, if ``value`` is a whole number; the caller says how large it may be.

    :raises GuestMisuse: another type (a bool, a float, None ...).
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise GuestMisuse(f"{what} {describe(value)}: must be a whole number, an int")


def number(what: str, value: Any, last: int = U64, first: int = 0) -> int:
    """``value`` if it is a whole number from ``first`` to ``last``; ``what`` is its name in the error.

    :raises GuestMisuse: as :func:`whole`, or a number outside.
    """
    whole(what, value)
    if not first <= value <= last:
        raise GuestMisuse(f"{what} {value:#x}: must be from {_short(first)} to {last:#x}")
    return int(value)


def numbers(**values: Any) -> None:
    """:func:`number` for each keyword, which is its name: words of 64 bits."""
    for what, value in values.items():
        number(what, value)


def flag(what: str, value: Any) -> bool:
    """``value`` if it is a bool.

    :raises GuestMisuse: it is not.
    """
    if not isinstance(value, bool):
        raise GuestMisuse(f"{what} {describe(value)}: must be True or False")
    return value


def function(what: str, value: Any) -> None:
    """Nothing, if ``value`` can be called.

    :raises GuestMisuse: it cannot.
    """
    if not callable(value):
        raise GuestMisuse(f"{what} {describe(value)}: must be a function, or another object that can be called")


def instance(what: str, value: Any, kind: type[Any], way_out: str) -> None:
    """Nothing, if ``value`` is a ``kind``.

    :raises GuestMisuse: it is not; ``way_out`` says where one comes from.
    """
    if not isinstance(value, kind):
        raise GuestMisuse(f"{what} {describe(value)}: must be a {kind.__name__}; {way_out}")


def length(what: str, address: int, size: Any) -> int:
    """``size`` if so many bytes follow ``address`` (checked by the caller) below 2**64.

    :raises GuestMisuse: not a number, or a range that leaves the address space.
    """
    number(f"{what} {address:#x}: size", size)
    if address + size > U64 + 1:
        raise GuestMisuse(f"{what} {address:#x}: {size:#x} bytes from there pass 2**64, where addresses end")
    return int(size)


def data_bytes(data: Any, size: Any) -> bytes:
    """``data`` as bytes: bytes as they are, a number as ``size`` (1 to 4096) bytes, little endian.

    :raises GuestMisuse: neither, or a number that does not fit.
    """
    if type(data) is int or (isinstance(data, int) and not isinstance(data, bool)):
        number("size", size, PAGE_SIZE, 1)
        if not 0 <= data < 1 << (8 * size):
            raise GuestMisuse(f"value {data:#x} does not fit into {size} bytes")
        return data.to_bytes(size, "little")
    if isinstance(data, bytes):
        return data
    if isinstance(data, bytearray | memoryview):
        return bytes(data)
    raise GuestMisuse(f"data {describe(data)}: must be bytes, or a number that is stored as size bytes")
