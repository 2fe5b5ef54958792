# SPDX-License-Identifier: GPL-2.0-only
"""Every attribute of every object that a world leads to, set to what it should not be; a script (``test_writable``).

Whoever looks at a running machine may also write to it, on purpose or by a slip at a prompt. What comes of that may be
a refusal, an error or nonsense; it may not be the end of the process. Each case is a process of its own, forked from
one with a machine in use: set one attribute, then use the machine. It prints one JSON object: the case, and how its
process ended: ``refused`` (the attribute cannot be set so), ``ran``, ``hangs`` or ``signal N``.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

from kvmmu import Params, World

#: Seconds that a case may take; a broken list may have no end.
TIMEOUT = int(os.environ.get("KVMMU_TEST_SECONDS", "10"))
_REFUSED, _RAN = 10, 11
_GVA, _GPA = 0x40_0000, 0x20_0000


class Rig:
    """A machine in use: pages of every kind, tables that are out of sync, an MMIO page, two vCPUs."""

    def __init__(self, npt: bool) -> None:
        self.world = World(Params(npt=npt), nr_frames=4096)
        self.hva = self.world.add_slot(0, 0, 8 << 20, flags=1)
        self.world.add_slot(1, 16 << 20, 1 << 20, flags=2)
        self.world.on_event(str)
        self.tables = self.world.tables("4-level", 0x10000)
        self.tables.map_range(_GVA, _GPA, 0x10000)
        self.tables.map_range(0x7000_0000_0000, 0, 0x20_0000)
        self.tables.map(0x50_0000, 0xE000_0000)
        self.vcpus = [self.world.create_vcpu() for _ in range(2)]
        for vcpu in self.vcpus:
            self.world.load_registers(vcpu, self.tables.registers())
        self.use()

    def steps(self) -> Iterator[Any]:
        """What people do with a machine."""
        world = self.world
        edited = world.tables("4-level", 0x10000, vcpu=self.vcpus[0], window=0x7000_0000_0000)
        for vcpu in self.vcpus:
            yield lambda vcpu=vcpu: world.write(vcpu, _GVA, b"x" * 16)
            yield lambda vcpu=vcpu: world.read(vcpu, _GVA + 0xFFC, 8)
            yield lambda vcpu=vcpu: world.fetch(vcpu, _GVA + 0x2000)
            yield lambda vcpu=vcpu: world.read(vcpu, 0x50_0000)
            yield lambda vcpu=vcpu: world.invlpg(vcpu, _GVA)
            yield lambda vcpu=vcpu: world.mov_cr3(vcpu, vcpu.cr3)
            yield lambda vcpu=vcpu: world.translate(vcpu, _GVA)
            yield lambda vcpu=vcpu: world.walk(vcpu, _GVA)
        yield lambda: edited.set_entry(_GVA, 1, _GPA | 0x67)
        yield lambda: edited.clear_bits(_GVA, 2)
        yield lambda: world.write(self.vcpus[1], _GVA, b"y")
        yield lambda: world.mm.dontneed(self.hva + _GPA, 0x4000)
        yield lambda: world.read(self.vcpus[0], _GVA)
        yield lambda: world.dirty_log(0)
        yield lambda: world.poke(0x30_0000, b"z")
        yield lambda: world.peek(0x30_0000)
        yield world.shadow_pages
        yield world.counters
        yield lambda: repr(world) + repr(self.vcpus) + repr(world.vm.memslots)
        yield world.audit
        yield world.digest
        yield lambda: world.delete_slot(1)
        yield lambda: world.add_slot(2, 32 << 20, 1 << 20)

    def use(self) -> None:
        """Every step; what Python or kvmmu raises is an answer."""
        for step in self.steps():
            with contextlib.suppress(Exception):
                step()


def is_ours(value: object) -> bool:
    """Whether ``value`` is an object of a class of the package."""
    return type(value).__module__.partition(".")[0] == "kvmmu" and not isinstance(value, type)


def names_of(value: object) -> list[str]:
    """Attributes of ``value`` that hold something: fields of every kind, methods not."""
    names = [name for name in dir(value) if not name.startswith("__")]
    out = []
    for name in names:
        with contextlib.suppress(Exception):
            if not callable(getattr(value, name)):
                out.append(name)
    return out


#: Of these classes objects differ: a sentinel and pages of each level, the MMU in use and those that are not.
SEVERAL = {"ShadowPage": 6, "Mmu": 3, "Memslot": 3}


def crawl(world: World) -> dict[str, Any]:
    """Objects of each class that is reachable by attributes, items of lists included, by their paths."""
    found: dict[str, Any] = {}
    classes: Counter[type] = Counter()
    seen: set[int] = set()
    todo = deque([("world", world)])
    while todo:
        path, value = todo.popleft()
        if isinstance(value, (list, tuple)):
            todo.extend((f"{path}[{i}]", item) for i, item in enumerate(value[:4]))
        if isinstance(value, dict):
            todo.extend((f"{path}[{key!r}]", item) for key, item in list(value.items())[:4])
        if not is_ours(value) or id(value) in seen or classes[type(value)] >= SEVERAL.get(type(value).__name__, 1):
            continue
        seen.add(id(value))
        classes[type(value)] += 1
        found[path] = value
        todo.extend((f"{path}.{name}", getattr(value, name)) for name in names_of(value))
    return found


def wrong_values(stranger: object) -> dict[str, Any]:
    """What an attribute should not be."""
    return {"none": None, "5": 5, "ones32": (1 << 32) - 1, "ones64": (1 << 64) - 1, "text": "x", "stranger": stranger}


def outcome(rig: Rig, value: object, name: str, wrong: object) -> str:
    """Set the attribute and use the machine, in a process of its own; how that ended."""
    child = os.fork()
    if child == 0:
        signal.alarm(TIMEOUT)
        try:
            setattr(value, name, wrong)
        except Exception:  # noqa: BLE001 - any error is a refusal
            os._exit(_REFUSED)
        with contextlib.redirect_stdout(io.StringIO()):
            rig.use()
            with contextlib.suppress(Exception):
                rig.world.close()
        os._exit(_RAN)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "hangs" if number == signal.SIGALRM else f"signal {number}"
    return {_REFUSED: "refused", _RAN: "ran"}.get(os.WEXITSTATUS(status), f"status {os.WEXITSTATUS(status)}")


def main() -> None:
    """Print all outcomes of the machines that the arguments name (``shadow``, ``npt``)."""
    out: dict[str, str] = {}
    for kind in sys.argv[1:]:
        rig = Rig(kind == "npt")
        for path, value in crawl(rig.world).items():
            for name in names_of(value):
                for what, wrong in wrong_values(
                    rig.world.mm if value is not rig.world.mm else rig.world.frames
                ).items():
                    out[f"{kind} {path}.{name} = {what} ({type(value).__name__})"] = outcome(rig, value, name, wrong)
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    main()
