# SPDX-License-Identifier: GPL-2.0-only
"""The page tables of a recorded machine at a record: whose they are, and what they map.

The guest's tables are read as its CPU reads them; where no memory is, that finds all ones. Kvm's are those that the
model built while the records before were played.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..addr import Gpa
from ..errors import ConfigError, GuestMisuse, RecordingError
from ..guest.layout import tables_mode
from ..guest.ranges import Mapping
from ..guest.tables import GuestTables
from ..host.bits import NO_HPA
from ..hw.bits import EFER_NX
from ..hw.cpu import Cpu
from ..hw.modes import Limits, PagingMode, bit_range, paging_mode
from ..kvm.guestmem import gpa_to_hpa
from ..kvm.mmu.mappings import SpteRange, find_root, root_ranges
from ..kvm.mmu.role import role_direct, role_level
from ..kvm.mmu.shadowwalk import is_dummy_root
from ..kvm.vcpu import Vcpu
from ..page_types import INVALID_PAGE
from ..record.reader import Reader
from .machine import build_machine, features_of
from .player import Player
from .replay import PROGRESS_RECORDS, Options
from .result import STOP_END


@dataclass(frozen=True, slots=True)
class Tables:
    """One root: who uses it (none: a root that no CPU uses now), what it is, and all that it maps.

    ``mode`` is the guest's paging mode, "none" while paging is off; ``root`` where the top table lies (a gpa of the
    guest's tables, an hpa of kvm's), None if there is none; ``level`` its level.
    """

    cpus: tuple[int, ...]
    cr3: int
    mode: str
    root: int | None
    level: int
    ranges: Iterator[Mapping] | Iterator[SpteRange]


def play_to(reader: Reader, mmu: str, at: int | None) -> Player:
    """Play the records before ``at`` (None: all) through ``mmu``, one of ``MMUS``; mismatches are counted.

    :raises ConfigError: no such MMU, or not so many records.
    :raises RecordingError: the recording cannot be used.
    """
    params = Options(mmu).params()
    if reader.total == 0:
        raise RecordingError(f"{reader.path} has no records: there is nothing to look at")
    end = reader.total if at is None else at
    if end > reader.total:
        raise ConfigError(f"--at {at}: {reader.path} has {reader.total} records")
    player = Player(reader, build_machine(reader.header, params))
    player.stop_at_mismatch = False
    while reader.position < end:
        if player.play(min(end, reader.position + PROGRESS_RECORDS)) == STOP_END:
            break
    player.settle()
    return player


def guest_tables(player: Player, cr3: int | None = None) -> list[Tables]:
    """The guest's tables: of each CR3 in use, or of ``cr3`` in the mode of the first CPU that pages.

    :raises ConfigError: no CPU pages, or there is no memory at ``cr3``.
    """
    found = []
    for holder, mode, cpus in _paging_modes(player):
        if cr3 is not None and mode.levels == 0:
            continue
        root = (holder.cr3 if cr3 is None else cr3) & bit_range(*mode.root_bits)
        if mode.levels == 0:
            found.append(Tables(cpus, holder.cr3, "none", None, 0, iter(())))
            continue
        if cr3 is not None:
            if not _has_memory(player, root):
                raise ConfigError(f"--cr3 {cr3:#x}: there is no memory at gpa {root:#x}")
            cpus = tuple(cpu for held, _, cpus in _paging_modes(player) if _is_cr3(held, mode, cr3) for cpu in cpus)
        tables = _tables_at(player, mode, root)
        name = tables.mode_name
        limits = _limits(player, bool(holder.efer & EFER_NX))
        found.append(Tables(cpus, holder.cr3 if cr3 is None else cr3, name, root, mode.levels, tables.ranges(limits)))
        if cr3 is not None:
            break
    if not found:
        raise ConfigError(f"--cr3 {cr3:#x}: no CPU has paging on at record {player.reader.position}")
    return found


def kvm_tables(player: Player, cr3: int | None = None) -> list[Tables]:
    """Kvm's tables: of each root in use, or those that shadow the guest's ``cr3``.

    :raises ConfigError: there is no kvm, it has no tables for ``cr3``, or they do not depend on it.
    """
    vm = player.vm
    if vm is None:
        raise ConfigError("--of kvm: --mmu none has no kvm; take --mmu shadow or --mmu tdp")
    if cr3 is not None:
        return [_tables_of_cr3(player, cr3)]
    found: dict[int, Tables] = {}
    for vcpu in player.vcpus:
        root = None if vcpu.mmu.root_hpa == INVALID_PAGE or is_dummy_root(vm, vcpu.mmu.root_hpa) else vcpu.mmu.root_hpa
        before = found.get(root) if root is not None else None
        cpus = (*(before.cpus if before else ()), vcpu.vcpu_id)
        level = role_level(vcpu.mmu.root_role) if root is not None else 0
        ranges = iter(()) if root is None else root_ranges(vm, root, level, not role_direct(vcpu.mmu.root_role))
        key = -1 - vcpu.vcpu_id if root is None else root
        cr3_of = before.cr3 if before else vcpu.cr3
        found[key] = Tables(cpus, cr3_of, _mode_name(vcpu), root, level, ranges)
    return list(found.values())


def _tables_of_cr3(player: Player, cr3: int) -> Tables:
    vm = player.vm
    paging = [vcpu for vcpu in player.vcpus if not role_direct(vcpu.mmu.root_role)]
    if vm is None or vm.tdp_enabled:
        raise ConfigError(f"--cr3 {cr3:#x}: kvm's nested tables do not depend on the guest's CR3")
    for vcpu in paging:
        mode = paging_mode(vcpu.cr0, vcpu.cr4, vcpu.efer)
        root = find_root(vm, [vcpu.mmu], cr3, bit_range(*mode.root_bits))
        if root is not None:
            ranges = root_ranges(vm, root[0], root[1], True)
            cpus = tuple(one.vcpu_id for one in paging if one.mmu.root_hpa == root[0])
            return Tables(cpus, cr3, _mode_name(vcpu), root[0], root[1], ranges)
    raise ConfigError(f"--cr3 {cr3:#x}: kvm has no tables for it at record {player.reader.position}")


# Who holds registers, its mode, and the CPUs that use the same tables in the same way.
def _paging_modes(player: Player) -> list[tuple[Vcpu | Cpu, PagingMode, tuple[int, ...]]]:
    found: dict[tuple[int, int], tuple[Vcpu | Cpu, PagingMode, tuple[int, ...]]] = {}
    holders: Sequence[Vcpu | Cpu] = player.cpus if player.bare else player.vcpus
    for number, holder in enumerate(holders):
        mode = paging_mode(holder.cr0, holder.cr4, holder.efer)
        key = (mode.number, holder.cr3 & bit_range(*mode.root_bits) if mode.levels else 0)
        first, _, cpus = found.get(key, (holder, mode, ()))
        found[key] = (first, mode, (*cpus, number))
    return list(found.values())


def _is_cr3(holder: Vcpu | Cpu, mode: PagingMode, cr3: int) -> bool:
    is_mode = paging_mode(holder.cr0, holder.cr4, holder.efer) == mode
    return is_mode and not (holder.cr3 ^ cr3) & bit_range(*mode.root_bits)


def _mode_name(vcpu: Vcpu) -> str:
    return paging_mode(vcpu.cr0, vcpu.cr4, vcpu.efer).name


def _limits(player: Player, has_nx: bool) -> Limits:
    header = player.reader.header
    return features_of(header).limits(has_nx=has_nx, widest=header.maxphyaddr)


def _has_memory(player: Player, gpa: int) -> bool:
    if player.vm is None:
        return any(region.gpa <= gpa < region.gpa + region.size for region in player.reader.header.memory)
    return gpa_to_hpa(player.vm.slots_of(0), player.vm.mm, Gpa(gpa), False) != NO_HPA


def _tables_at(player: Player, mode: PagingMode, root: int) -> GuestTables:
    def load_bytes(gpa: Gpa, nr_bytes: int) -> bytes:
        try:
            return bytes(player.memory.read(player.machine.hpa_of(gpa), nr_bytes))
        except RecordingError:
            return b"\xff" * nr_bytes

    def load(gpa: Gpa, size: int) -> int:
        return int.from_bytes(load_bytes(gpa, size), "little")

    def refuse(*_: object) -> None:
        raise GuestMisuse("the tables of a recording are only looked at")

    return GuestTables(tables_mode(mode), load, refuse, root, refuse, load_bytes)  # type: ignore[arg-type]  # refuse() takes whatever it is given
