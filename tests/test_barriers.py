# SPDX-License-Identifier: GPL-2.0-only
"""Barriers are operations of the seam: each stands where the reference has it, and only there.

They do nothing while the gate is closed; an armed gate hears of them. Those of 32-bit hosts and of the dirty ring come
with their code.
"""

from __future__ import annotations

import ast

import pytest

import house
from kvmmu import Params, World

#: (room, function, barrier, how often) -> the reference's section that has it.
BARRIERS = {
    ("kvm.mmu.track", "account_shadowed", "smp_mb", 1): "8.2: the count is seen before the table is protected",
    ("kvm.vm", "set_shadow_root_allocated", "smp_store_release", 1): "9.1: the slots have their arrays",
    ("kvm.vm", "is_shadow_root_allocated", "smp_load_acquire", 1): "9.1: the other side",
    ("kvm.mmu.unsync", "try_to_unsync", "smp_wmb", 1): "11.2: unsync is seen before the writable spte",
    ("kvm.mmu.resync", "is_unsync_root", "smp_rmb", 1): "11.3: the lock-free test",
    ("kvm.mmu.gptewrite", "track_write", "smp_mb", 1): "12.2: the store is made before the count is read",
    ("kvm.invalidation", "sample", "smp_rmb", 1): "13.6 and 21.2: sequence before the pfn",
    ("kvm.vm", "publish_slots", "smp_store_release", 1): "17.5: publication",
    ("kvm.invalidation", "end", "smp_wmb", 1): "21.2: sequence before the count",
    ("kvm.invalidation", "covers_unlocked", "smp_rmb", 1): "21.2: count before the sequence",
    ("kvm.mode", "enter_guest_mode", "smp_store_release", 1): "23.2: entry, step 3",
    ("kvm.run", "enter", "smp_mb", 1): "23.2: entry, step 5",
    ("kvm.run", "resume", "smp_mb", 1): "23.2: entry, step 5",
    ("kvm.mode", "kick", "smp_mb", 1): "23.2: request before the mode is read",
    ("kvm.mode", "begin_reading", "smp_mb", 1): "23.2: the mode is seen before the walk reads",
    ("kvm.mode", "end_reading", "smp_store_release", 1): "23.2: the walk has read before the mode changes",
    ("kvm.requests", "make_request", "smp_wmb", 1): "requests: what was stored before is seen by who serves it",
    ("kvm.requests", "check_request", "smp_mb", 1): "requests: the other side",
}


def barriers_of(source: str) -> dict[tuple[str, str], int]:
    """(function, barrier) -> how often it is called there."""
    found: dict[tuple[str, str], int] = {}
    for function in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(function):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr.startswith("smp_")
            ):
                key = (function.name, node.func.attr)
                found[key] = found.get(key, 0) + 1
    return found


def test_every_barrier_is_one_of_the_reference_and_none_is_missing() -> None:
    found = {
        (module, function, barrier, count)
        for module, path in house.modules().items()
        for (function, barrier), count in barriers_of(path.read_text(encoding="utf-8")).items()
    }
    assert found == set(BARRIERS)


def test_a_barrier_is_found_in_the_text_of_a_function() -> None:
    source = "class A:\n    def f(self):\n        self.gate.smp_mb()\n        self.gate.smp_mb()\n"
    assert barriers_of(source) == {("f", "smp_mb"): 2}


class Listener:
    """A checker that lets everything pass and remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, object]] = []

    def point(self, kind: str, where: object, key: object) -> None:
        self.heard.append((kind, key))

    def barrier(self, kind: str) -> None:
        self.heard.append(("barrier", kind))

    def wait(self, kind: str, where: object, condition: object) -> None:
        raise AssertionError(f"{kind} waits: one actor runs")


@pytest.mark.parametrize("npt", [False, True])
def test_an_armed_gate_hears_of_words_locks_and_barriers_in_their_order(npt: bool) -> None:
    world = World(Params(npt=npt))
    world.add_slot(0, gpa=0, size=16 << 20)
    vcpu = world.create_vcpu()
    tables = world.tables("4-level", root=0x10000)
    tables.map(0x400000, 0x200000)
    world.load_registers(vcpu, tables.registers())
    listener = Listener()
    world.vm.gate.arm(listener)
    assert world.write(vcpu, 0x400000, 42).kind == "done"
    world.vm.gate.disarm()
    heard = listener.heard
    # The sequence is read, then a barrier, and only then is the host asked and the lock taken.
    at = heard.index(("read", "seq"))
    assert heard[at + 1] == ("barrier", "rmb")
    assert ("read_lock" if npt else "write_lock", 0) in heard[at:]
    # The vCPU sets its mode, passes a full barrier and looks at its requests.
    at = max(i for i, what in enumerate(heard) if what == ("write", "mode"))
    assert heard[at - 1] == ("barrier", "store-release")
    assert ("barrier", "mb") in heard[at : at + 4]
    assert ("read", "requests") in heard[at : at + 5]
    if not npt:
        at = heard.index(("write", "indirect_shadow_pages"))
        assert heard[at + 1] == ("barrier", "mb")
    assert not world.vm.gate.holds_any()


def test_a_closed_gate_hears_nothing() -> None:
    world = World(Params(npt=False))
    gate = world.vm.gate
    for barrier in (gate.smp_mb, gate.smp_rmb, gate.smp_wmb, gate.smp_store_release, gate.smp_load_acquire):
        assert barrier() == 0
