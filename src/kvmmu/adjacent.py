# SPDX-License-Identifier: GPL-2.0-only
"""Pieces of an address space that lie side by side and are alike, made one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypeVar


class Piece(Protocol):
    """What can be joined: a dataclass with a length, which knows what continues it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def nr_bytes(self) -> int:
        """Its length."""

    def is_followed_by(self, other: Any) -> bool:
        """Whether ``other`` begins where this ends, and is alike in all the rest."""


_P = TypeVar("_P", bound=Piece)


def joined(pieces: Iterable[_P]) -> Iterator[_P]:
    """``pieces``, ascending, with each run of pieces that follow one another as one."""
    last: _P | None = None
    for one in pieces:
        if last is not None and last.is_followed_by(one):
            last = replace(last, nr_bytes=last.nr_bytes + one.nr_bytes)
            continue
        if last is not None:
            yield last
        last = one
    if last is not None:
        yield last
