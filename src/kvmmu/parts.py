# SPDX-License-Identifier: GPL-2.0-only
"""What a world is made of, and how its calls pass its door.

:class:`Parts` has no calls; those are in ``ioctls`` (what the VMM asks of kvm), ``instructions`` (what the guest
executes) and ``world``. Each is :func:`working` or :func:`looking`, or, the most frequent, in ``access``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from . import arguments, guard
from .door import Door
from .host.frames import FrameAllocator
from .host.mm import Mm
from .hw.memory import PhysicalMemory
from .kvm import run
from .kvm.cpuid import CpuFeatures
from .kvm.mmu.notify import MmuNotifier
from .kvm.vm import Vm
from .params import Params
from .sync import Gate


class Parts:
    """Physical memory, the process, and its VM; they stay the same ones."""

    _door: Door
    params: Params
    #: The features of a vCPU that is given none of its own.
    cpu: CpuFeatures
    memory: PhysicalMemory
    frames: FrameAllocator
    mm: Mm
    vm: Vm

    def __init__(self, params: Params | None, nr_frames: int, cpu: CpuFeatures | None) -> None:
        guard.host(params, nr_frames)
        if cpu is not None:
            arguments.instance("cpu", cpu, CpuFeatures, "CpuFeatures(nx=False), or None for all features")
        params = params or Params()
        memory = PhysicalMemory(nr_frames, Gate())
        frames = FrameAllocator(memory)
        mm = Mm(frames)
        vm = run.create_vm(mm, params)
        mm.chain.register(MmuNotifier(vm))
        parts = {"_door": Door(), "params": params, "cpu": cpu or CpuFeatures(), "memory": memory, "frames": frames}
        self.__dict__.update(parts, mm=mm, vm=vm)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in Parts.__annotations__:
            raise AttributeError(f"{name}: the parts of a world stay what they are; build another world")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        used = self.frames.nr_frames - self.frames.nr_free
        end = " closed" if self._door.is_closed() else ""
        return f"<World{end} {self.vm!r} frames {used:#x} of {self.frames.nr_frames:#x}>"


_W = TypeVar("_W", bound=Parts)
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
