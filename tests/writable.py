# SPDX-License-Identifier: GPL-2.0-only
"""Every attribute of every object that a world leads to, set to what it should not be; a script (``test_writable``).

So is every item of what those attributes hold: of lists, arrays, memoryviews, dicts and sets, down to lists in lists;
and they lose items, gain some, and end. Whoever looks at a running machine may also write to it, on purpose or by a
slip at a prompt. What comes of that may be a refusal, an error or nonsense; it may not be the end of the process.
Each case is a process of its own, forked from one with a machine in use: change one thing, then use the machine. It
prints one JSON object: the case, and how its process ended: ``refused`` (it cannot be changed so), ``ran``, ``hangs``
or ``signal N``. Arguments: the machine (``shadow``, ``npt``), what is tried (``attributes``, ``items``), and of how
many cases one (1: all).
"""

from __future__ import annotations

import array
import contextlib
import functools
import io
import json
import mmap
import operator
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kvmmu import Params, World, build_info

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
    """What an attribute should not be.

    Interpreted, without 2**32 - 1: where that is a number to shift by, Python makes one of half a gigabyte, again and
    again. Compiled, what is shifted by is read-only.
    """
    values = {"none": None, "5": 5, "ones32": (1 << 32) - 1, "ones64": (1 << 64) - 1, "text": "x", "stranger": stranger}
    if not build_info().is_compiled:
        del values["ones32"]
    return values


def is_view(value: object) -> bool:
    """Whether ``value`` is a memoryview, Python's or Cython's."""
    return isinstance(value, memoryview) or type(value).__name__ == "_memoryviewslice"


def containers(path: str, value: object, depth: int = 3) -> Iterator[tuple[str, Any]]:
    """What holds items in ``value``, itself included, by its path; of many alike the first of each kind."""
    holds = isinstance(value, (list, tuple, dict, set, bytearray, array.array, mmap.mmap)) or is_view(value)
    if not holds or not depth:
        return
    yield path, value
    inner: Iterable[tuple[object, object]] = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, (list, tuple)):
        inner = enumerate(value)
    kinds: set[type] = set()
    for key, item in inner:
        if type(item) not in kinds:
            kinds.add(type(item))
            yield from containers(f"{path}[{key!r}]", item, depth - 1)


def keys_of(value: Any) -> list[Any]:
    """Where items of ``value`` are: the first, the last, and the first that holds something."""
    if isinstance(value, dict):
        return list(value)[:2]
    if not len(value):
        return []
    held = next((i for i, item in enumerate(value) if item), 0) if not isinstance(value, mmap.mmap) else 0
    return sorted({0, held, len(value) - 1})


def fill(value: Any, byte: int) -> None:
    """Every byte of ``value`` is ``byte``."""
    view = memoryview(value).cast("B")
    view[:] = bytes([byte]) * len(view)


def shift(value: Any) -> None:
    """The words of ``value`` change places, by a page and two words where it has so many: they name what others did."""
    view = memoryview(value).cast("B")
    places = 4112 % len(view)
    view[:] = bytes(view[places:]) + bytes(view[:places])


def changes(value: Any, stranger: object) -> Iterator[tuple[str, Callable[[], object]]]:
    """What can be done to a container, by words."""
    wrong = wrong_values(stranger) | {"0": 0, "ones8": 255, "list": [], "tuple": (5,)}
    if isinstance(value, set):
        yield "clear()", value.clear
        for what, item in wrong.items():
            if what != "list":
                yield f"add({what})", functools.partial(value.add, item)
        return
    for key in keys_of(value):
        for what, item in wrong.items():
            yield f"[{key!r}] = {what}", functools.partial(operator.setitem, value, key, item)
        yield f"del [{key!r}]", functools.partial(operator.delitem, value, key)
    if isinstance(value, dict):
        for what, item in wrong.items():
            yield f"[5] = {what}", functools.partial(operator.setitem, value, 5, item)
    if isinstance(value, (list, array.array, bytearray)):
        for what, item in wrong.items():
            yield f"append({what})", functools.partial(value.append, item)
        yield "insert(0, None)", lambda: value.insert(0, None)
        yield "insert(0, 0)", lambda: value.insert(0, 0)
        yield "reverse()", value.reverse
        yield "del half", lambda: operator.delitem(value, slice(len(value) // 2, None))
        yield "*= 2", lambda: operator.imul(value, 2)
    if (is_view(value) or isinstance(value, (array.array, mmap.mmap))) and len(value):
        for what, byte in (("zeros", 0), ("ones", 0xFF), ("fives", 5)):
            yield f"filled with {what}", functools.partial(fill, value, byte)
        yield "shifted", functools.partial(shift, value)
    for name in ("clear", "pop", "popitem", "release", "close"):
        if hasattr(value, name):
            yield f"{name}()", getattr(value, name)
    if isinstance(value, mmap.mmap):
        yield "resize()", lambda: value.resize(4096)


def outcome(rig: Rig, change: Callable[[], object]) -> str:
    """Make the change and use the machine, in a process of its own; how that ended."""
    child = os.fork()
    if child == 0:
        signal.alarm(TIMEOUT)
        try:
            change()
        except Exception:  # noqa: BLE001 - any error is a refusal
            os._exit(_REFUSED)
        with contextlib.redirect_stdout(io.StringIO()):
            for end in (rig.use, rig.world.close):
                with contextlib.suppress(Exception):
                    end()
        os._exit(_RAN)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "hangs" if number == signal.SIGALRM else f"signal {number}"
    return {_REFUSED: "refused", _RAN: "ran"}.get(os.WEXITSTATUS(status), f"status {os.WEXITSTATUS(status)}")


def cases(rig: Rig, what: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every change of ``attributes`` or of ``items``, by its words."""
    parts = (rig.world.vm.mm, rig.world.frames)
    for path, value in crawl(rig.world).items():
        stranger = parts[value is parts[0]]
        for name in names_of(value):
            if what == "attributes":
                for wrong_name, wrong in wrong_values(stranger).items():
                    words = f"{path}.{name} = {wrong_name} ({type(value).__name__})"
                    yield words, functools.partial(setattr, value, name, wrong)
                continue
            for place, container in containers(f"{path}.{name}", getattr(value, name)):
                for words, change in changes(container, stranger):
                    yield f"{place} {words} ({type(value).__name__})", change


def main() -> None:
    """Print the outcomes of the machine that the first argument names, of one in so many cases (the third)."""
    kind, what, step = sys.argv[1:]
    rig = Rig(kind == "npt")
    some = list(cases(rig, what))[:: int(step)]
    json.dump({f"{kind} {words}": outcome(rig, change) for words, change in some}, sys.stdout)


if __name__ == "__main__":
    main()
