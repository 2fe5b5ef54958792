# SPDX-License-Identifier: GPL-2.0-only
"""Nanoseconds per TLB hit and per hardware page walk whose tables are in the real CPU's cache.

The loop is Python's, so each figure is the best of seven runs of the call minus the best of seven of one that does next
to nothing (``Cpu.pdptr``).
"""

from __future__ import annotations

from collections.abc import Callable

from figures import Figure, best_ns, run

from kvmmu.hw.bits import CR0_PE, CR0_PG, CR0_WP, CR4_PAE, EFER_LMA, EFER_LME, EFER_NX
from kvmmu.hw.cpu import Cpu
from kvmmu.hw.cpumodel import CpuModel
from kvmmu.hw.memory import PhysicalMemory
from kvmmu.hw.paging import Walk, page_walk

_ENTRY = 0x67  # P W U A D
_CALLS = 200_000
_GVA = 0x12345


def _identity_table(memory: PhysicalMemory, root: int, pages: int) -> int:
    """Map the first ``pages`` 4K pages (at most 512) onto themselves below ``root``; return ``root``."""
    for level in range(3):
        memory.write_once(root + 0x1000 * level, (root + 0x1000 * (level + 1)) | _ENTRY)
    for i in range(pages):
        memory.write_once(root + 0x3000 + 8 * i, (i << 12) | _ENTRY)
    return root


def _make_cpu(keep_all: bool, nested: bool) -> Cpu:
    memory = PhysicalMemory(4096)
    cpu = Cpu(0, memory, CpuModel(keep_all=keep_all))
    cpu.load_guest(
        CR0_PE | CR0_PG | CR0_WP, _identity_table(memory, 0x100000, 512), CR4_PAE, EFER_LME | EFER_LMA | EFER_NX
    )
    if nested:
        cpu.set_nested(_identity_table(memory, 0x110000, 512), 4)
        memory.write_once(0x112000, 0x67 | 0x80)
    return cpu


def _nanoseconds(call: Callable[[], object], empty: Callable[[], object]) -> float:
    """Best of seven of ``call`` minus best of seven of ``empty``, per call."""

    def loop(function: Callable[[], object]) -> float:
        def calls() -> None:
            for _ in range(_CALLS):
                function()

        return best_ns(calls, 7) / _CALLS

    return loop(call) - loop(empty)


def measure() -> list[Figure]:
    """Nanoseconds per hit and per walk."""
    cpu, kept, guest, record = _make_cpu(False, False), _make_cpu(True, False), _make_cpu(False, True), Walk()
    for each in (cpu, kept, guest):
        each.access(_GVA, 0)
    empty = cpu.pdptr
    hit = _nanoseconds(lambda: cpu.access(_GVA, 4), lambda: empty(0))
    walked = _nanoseconds(lambda: page_walk(cpu, _GVA, 4, record), lambda: empty(0))
    nested = _nanoseconds(lambda: page_walk(guest, _GVA, 4, record), lambda: empty(0))
    return [
        Figure("TLB hit", hit, "ns"),
        Figure("TLB hit, tlb_keep_all", _nanoseconds(lambda: kept.access(_GVA, 4), lambda: empty(0)), "ns"),
        Figure("walk, 4-level", walked, "ns"),
        Figure("walk, 4-level under 2M NPT", nested, "ns", note=f"{nested / walked:.1f} times a walk without"),
    ]


if __name__ == "__main__":
    run(measure)
