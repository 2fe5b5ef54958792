# SPDX-License-Identifier: GPL-2.0-only
"""What a world is made of.

:class:`Parts` has no calls; those are in ``ioctls`` (what the VMM asks of kvm), ``instructions`` (what the guest
executes), ``process`` (what the process does to its memory) and ``world``.
"""

from __future__ import annotations

from typing import Any

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
from .process import Process
from .sync import Gate


class Parts:
    """Physical memory, the process, and its VM; they stay the same ones."""

    _door: Door
    params: Params
    #: The features of a vCPU that is given none of its own.
    cpu: CpuFeatures
    memory: PhysicalMemory
    frames: FrameAllocator
    mm: Process
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
        door = Door()
        parts = {"_door": door, "params": params, "cpu": cpu or CpuFeatures(), "memory": memory, "frames": frames}
        self.__dict__.update(parts, mm=Process(door, mm), vm=vm)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in Parts.__annotations__:
            raise AttributeError(f"{name}: the parts of a world stay what they are; build another world")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        used = self.frames.nr_frames - self.frames.nr_free
        end = " closed" if self._door.is_closed() else ""
        return f"<World{end} {self.vm!r} frames {used:#x} of {self.frames.nr_frames:#x}>"
