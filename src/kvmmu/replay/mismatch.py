# SPDX-License-Identifier: GPL-2.0-only
"""A mismatch, entry by entry: what the guest's tables say, and what the CPU found in the tables that it walks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..hw.bits import ACCESS_FETCH, ACCESS_USER, ACCESS_WRITE, HW_HIT, describe_translation
from ..hw.paging import Walk, page_walk
from ..kvm.mmu.spte import describe_spte, is_shadow_present
from ..kvm.mmu.walker import GuestWalk, walk_addr
from ..record.format import K_ACCESS, K_MMIO, K_STORE, KIND_NAMES
from .result import Mismatch

if TYPE_CHECKING:
    from ..kvm.vcpu import Vcpu
    from .player import Player


def describe_mismatch(player: Player) -> Mismatch:
    """The mismatch of the record that the player's reader holds, with both walks made anew."""
    reader = player.reader
    if reader.kind not in (K_ACCESS, K_STORE, K_MMIO):
        return Mismatch(reader.position - 1, reader.cpu, 0, 0, KIND_NAMES[reader.kind], _registers(player), [], [])
    bare = player.bare
    # Before the walks, which fill nothing.
    cpu = player.cpus[reader.cpu]
    held = cpu.tlb.peek(reader.gva & cpu.gva_mask)
    return Mismatch(
        position=reader.position - 1,
        cpu=reader.cpu,
        gva=reader.gva,
        gpa=reader.gpa,
        access=_describe_access(reader.access),
        problem=player.problem,
        guest_walk=_hardware_lines(player) if bare else _guest_lines(player.vcpus[reader.cpu], reader.gva),
        hardware_walk=_hardware_lines(player),
        tlb=describe_translation(held) if held else "holds nothing for it",
        lawful=_lawful_lines(player),
    )


def _registers(player: Player) -> str:
    reader = player.reader
    holder = player.cpus[reader.cpu] if player.bare else player.vcpus[reader.cpu]
    names = ("cr0", "cr3", "cr4", "efer")
    machine = " ".join(f"{name} {getattr(reader, name):#x}" for name in names)
    model = " ".join(f"{name} {getattr(holder, name):#x}" for name in names)
    return f"{player.problem}; machine: {machine}; model: {model}"


def _lawful_lines(player: Player) -> list[str]:
    if player.judge is None:
        return []
    # Translations that differ in time only look alike.
    return list(dict.fromkeys(str(page) for page in player.judge.lawful(player.reader)))


def _describe_access(access: int) -> str:
    who = "user" if access & ACCESS_USER else "supervisor"
    if access & ACCESS_FETCH:
        return f"{who} fetch"
    return f"{who} {'write' if access & ACCESS_WRITE else 'read'}"


def _guest_lines(vcpu: Vcpu, gva: int) -> list[str]:
    # A read by the supervisor meets the least resistance: it shows all there is.
    gw = GuestWalk()
    if vcpu.cr0 >> 31 == 0:
        return ["paging is off"]
    trace = vcpu.vm.trace
    listening = trace.on
    trace.on = False
    done = walk_addr(vcpu, vcpu.walk_mmu, gw, gva, 0)  # type: ignore[arg-type]  # a recording's numbers have no kind
    trace.on = listening
    lines = [
        f"level {level} at gpa {gw.gpte_gpa(level):#x}: {gw.gpte(level):#018x}"
        for level in range(gw.max_level, max(gw.level, 1) - 1, -1)
    ]
    lines.append(f"gpa {gw.gpa:#x}" if done else f"#PF({gw.error_code:#x})")
    return lines


def _hardware_lines(player: Player) -> list[str]:
    cpu = player.cpus[player.reader.cpu]
    out = Walk()
    status = page_walk(cpu, player.reader.gva & cpu.gva_mask, player.reader.access, out)
    lines = []
    for level, entry, place in out.elements():
        text = f"level {level} at hpa {place:#x}: {entry:#018x}"
        if player.vm is not None and not player.vm.tdp_enabled and is_shadow_present(entry):
            text += f" ({describe_spte(entry, player.vm.fmt, level)})"
        lines.append(text)
    if status == HW_HIT:
        lines.append(f"hpa {out.hpa:#x}")
    else:
        lines.append(f"#PF({out.error_code:#x})" if out.error_code or not cpu.nested else "nested page fault")
    return lines
