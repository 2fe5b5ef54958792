# SPDX-License-Identifier: GPL-2.0-only
"""How the calls of the API pass the door of their world: each is :func:`working` or :func:`looking`.

The most frequent ones, accesses, do it themselves, in ``access``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from .door import Door


class Doored(Protocol):
    """What has calls that pass a door."""

    _door: Door


_W = TypeVar("_W", bound=Doored)
_P = ParamSpec("_P")
_R = TypeVar("_R")


def working(method: Callable[Concatenate[_W, _P], _R]) -> Callable[Concatenate[_W, _P], _R]:
    """The method may touch the machine: it has the door for itself while it runs.

    :raises GuestMisuse: the world is closed, or somebody works with it (:meth:`Door.refusal`).
    """

    @functools.wraps(method)
    def inside(self: _W, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        door = self._door
        door.enter()
        try:
            return method(self, *args, **kwargs)
        finally:
            door.leave()

    return inside


def looking(method: Callable[Concatenate[_W, _P], _R]) -> Callable[Concatenate[_W, _P], _R]:
    """The method only looks: a sink may call it too, in the middle of another call of its thread.

    :raises GuestMisuse: the world is closed, or another thread works with it.
    """

    @functools.wraps(method)
    def inside(self: _W, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        door = self._door
        if not door.look():
            return method(self, *args, **kwargs)
        try:
            return method(self, *args, **kwargs)
        finally:
            door.leave()

    return inside
