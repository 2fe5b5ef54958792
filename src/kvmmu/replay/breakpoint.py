# SPDX-License-Identifier: GPL-2.0-only
"""The fault that a replay stopped at: what the CPU met, and what kvm made of it, entry by entry.

When a replay knows that a record raised the fault that it waits for, the fault has been handled. Replays are
deterministic: :func:`examine_fault` plays the recording once more up to that record, and looks on as it is played.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import GuestMisuse, KvmBug
from ..hw.bits import CR0_PG, PT_NAMES, describe_flags
from ..hw.modes import paging_mode
from ..record.describe import describe_access
from ..record.format import KIND_NAMES
from ..tracepoint import Event, event_cause, event_limit
from .result import Fault

if TYPE_CHECKING:
    from ..kvm.vcpu import Vcpu
    from ..world import World
    from .player import Player

_CR3_ROOT = 0x000F_FFFF_FFFF_F000
_CR3_ROOT_PAE = 0xFFFF_FFE0


class FaultWatch:
    """A sink that takes down both walks at each fault, before kvm handles it."""

    def __init__(self, player: Player, world: World) -> None:
        self.player = player
        self.world = world
        #: Each fault with the walks of that moment: the guest's, kvm's.
        self.faults: list[tuple[Event, list[str], list[str]]] = []

    def __call__(self, event: Event) -> None:
        """Take ``event`` if it is a fault."""
        if event[0] == "kvm_page_fault":
            vcpu = self.world.vm.vcpus[event[1]]
            guest = guest_lines(self.world, vcpu, self.player.reader.gva)
            self.faults.append((event, guest, kvm_lines(self.world, vcpu, event[3])))


def examine_fault(player: Player, position: int, cause: str) -> Fault:
    """The fault of ``cause`` that record ``position`` raises; ``player`` is a new one that has played nothing of it.

    :raises KvmBug: there is no such fault, so that this replay differs from the one before it.
    """
    world = player.machine.world
    player.break_cause = 0
    player.stop_at_mismatch = False
    player.play(position)
    watch = FaultWatch(player, world)
    stop = world.on_event(watch)
    player.play(position + 1)
    stop()
    reader = player.reader
    for event, guest, before in watch.faults:
        if event_cause(event) == cause:
            _, vcpu_id, _, address, error_code = event
            after = kvm_lines(world, world.vm.vcpus[vcpu_id], address)
            access = describe_access(reader.access)
            place = (position, KIND_NAMES[reader.kind], vcpu_id, access, reader.gva, reader.gpa)
            return Fault(*place, cause, event_limit(event), address, error_code, guest, before, after)
    raise KvmBug(f"record {position} raised a fault of cause {cause}, and does not when it is played again")


def guest_lines(world: World, vcpu: Vcpu, gva: int) -> list[str]:
    """The guest's own entries on the way to ``gva``, top first, as text; nothing is changed, not even A bits."""
    if not vcpu.cr0 & CR0_PG:
        return ["paging is off: the address is the gpa"]
    mode = paging_mode(vcpu.cr0, vcpu.cr4, vcpu.efer).name
    root = vcpu.cr3 & (_CR3_ROOT_PAE if mode == "pae" else _CR3_ROOT)
    lines = []
    try:
        tables = world.tables(mode, root)
        for element in tables.walk(gva):
            flags = describe_flags(element.entry & 0xFFF, PT_NAMES) or "not present"
            lines.append(f"level {element.level} at gpa {element.gpa:#x}: {element.entry:#018x} {flags}")
    except GuestMisuse as error:
        lines.append(str(error))
    return lines


def kvm_lines(world: World, vcpu: Vcpu, address: int) -> list[str]:
    """Kvm's own entries on the way to ``address`` (a gva, or a gpa under nested paging), top first, as text."""
    return [
        f"level {element.level} at hpa {element.hpa:#x}: {element.spte:#018x} {element.text}"
        for element in world.walk(vcpu, address)
    ] or ["kvm has no table for it"]
