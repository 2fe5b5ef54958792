# SPDX-License-Identifier: GPL-2.0-only
"""The machine that a recording is played into, built from the facts in its header.

RAM becomes memslots on shared memory of the process, ROM read-only slots; when a gpa range changes its meaning the
slots change with it. As a VMM does, the machine gathers changes that nothing happens between, and then asks kvm for
those of its slots that are others than before: first deletions, then creations. A bare machine is the same memory with
the guest's CPUs on it and no hypervisor.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from operator import itemgetter

from ..addr import Gpa, Hpa
from ..errors import ConfigError, RecordingError
from ..host.bits import NO_HPA
from ..hw.bits import CR0_PE, CR0_PG, CR4_LA57, CR4_PAE, CR4_PKE, EFER_LMA, PT_ACCESSED, PT_DIRTY
from ..hw.cpu import Cpu
from ..hw.cpumodel import CpuModel
from ..hw.memory import PhysicalMemory
from ..kvm import sregs
from ..kvm.bits import KVM_MEM_READONLY
from ..kvm.cpuid import CR4_FEATURES, EFER_FEATURES, CpuFeatures, parse_cpu
from ..kvm.guestmem import gpa_to_hpa
from ..kvm.regions import UserMemoryRegion
from ..kvm.vcpu import Vcpu
from ..kvm.vm import Vm
from ..page_types import PAGE_SIZE, U64
from ..params import Params
from ..record.format import MAX_RANGES, Header, Region
from ..record.memmap import Change, MemoryMap
from ..record.reader import Reader
from ..world import World, nr_frames_for

# A and D of every 4-byte unit of a page, as one number; in the upper half of an 8-byte entry they are frame bits.
_PAGE_ACCESSED_DIRTY = int.from_bytes((PT_ACCESSED | PT_DIRTY).to_bytes(4, "little") * (PAGE_SIZE // 4), "little")

#: Room for memory that only the map's changes show: what devices and plugged-in modules bring.
_DEVICE_MEMORY = 4 << 30
# Such memory comes in blocks of 1 GiB.
_BLOCK = 1 << 30


# Bits 1, 2 and 5 to 8 of a PDPTE are reserved on every CPU; QEMU sets A (bit 5) there, and looks at none of them.
_PDPTE_RESERVED = 0x1E6


def clean_pdptes(machine: GuestMachine | BareMachine, cr0: int, cr3: int, cr4: int, efer: int) -> None:
    """Clear the reserved low bits of the four PDPTEs of a guest in PAE mode, where QEMU lets them pass: A, which it
    sets itself, and what the guest has put there (a 64-bit kernel's entries on a CPU without long mode).
    """
    if not cr0 & CR0_PG or not cr4 & CR4_PAE or efer & EFER_LMA:
        return
    table = machine.hpa_of(cr3 & 0xFFFF_FFE0)
    for place in range(table, table + 32, 8):
        entry = machine.memory.read_once(Hpa(place))
        if entry & _PDPTE_RESERVED:
            machine.memory.write_once(Hpa(place), entry & ~_PDPTE_RESERVED)


def check_registers(machine: GuestMachine | BareMachine, reader: Reader) -> int:
    """Refuse registers that no CPU holds together; :class:`RecordingError` names the record in hand."""
    cr0, cr4, efer = reader.cr0, reader.cr4, reader.efer
    wrong = ""
    if cr0 & CR0_PG and not cr0 & CR0_PE:
        wrong = "CR0.PG without CR0.PE"
    elif efer & EFER_LMA and not cr0 & CR0_PG:
        wrong = "EFER.LMA without CR0.PG"
    elif efer & EFER_LMA and not cr4 & CR4_PAE:
        wrong = "EFER.LMA without CR4.PAE"
    elif cr4 & CR4_LA57 and not machine.features.la57 and machine.cpu is None:
        wrong = "CR4.LA57, which the header's CPU lacks,"
    if wrong:
        raise RecordingError(
            f"{reader.path} contradicts itself at record {reader.position - 1}: CPU {reader.cpu} has {wrong}"
            f" (cr0 {cr0:#x}, cr4 {cr4:#x}, efer {efer:#x}), no CPU can"
        )
    if machine.cpu is not None:
        _check_features(machine, reader)
    return 0


# What the caller changed of the CPU must leave what the guest used.
def _check_features(machine: GuestMachine | BareMachine, reader: Reader) -> None:
    cr4 = reader.cr4 & machine.cr4_mask & machine.features.cr4_guest_rsvd_bits
    efer = reader.efer & machine.features.efer_guest_rsvd_bits
    lacking = [name for name, mask in CR4_FEATURES.items() if cr4 & mask]
    lacking += [name for name, mask in EFER_FEATURES.items() if efer & mask]
    if lacking:
        raise ConfigError(
            f"cpu {machine.cpu}: the recorded guest turns on {', '.join(lacking)} at record {reader.position - 1}"
            f" (cr4 {reader.cr4:#x}, efer {reader.efer:#x}), which that CPU lacks; leave it on"
        )


def features_of(header: Header) -> CpuFeatures:
    """The features of the recorded CPU."""
    return CpuFeatures(
        header.maxphyaddr,
        gbpages=header.has("pdpe1gb"),
        pse36=header.has("pse36"),
        nx=header.has("nx"),
        smep=header.has("smep"),
        smap=header.has("smap"),
        pku=header.has("pku"),
        la57=header.has("la57"),
        pcid=header.has("pcid"),
        lm=header.has("lm"),
        amd=header.has("svm"),
    )


def build_machine(header: Header, params: Params | None, cpu: str | None = None) -> GuestMachine | BareMachine:
    """The machine of ``header``: a VM with ``params``, or, with None, bare CPUs.

    ``cpu``: what the VM's CPUID says otherwise than the recorded machine's, as ``--cpu`` has it.
    """
    return BareMachine(header) if params is None else GuestMachine(header, params, cpu)


class BareMachine:
    """Physical memory that is the guest's own, and CPUs that walk its tables."""

    def __init__(self, header: Header) -> None:
        # Devices below 4 GiB may have memory that the map shows later.
        top = max(_DEVICE_MEMORY, header.memory_end, *(region.gpa + region.size for region in header.memory))
        self.memory = PhysicalMemory(top // PAGE_SIZE)
        features = features_of(header)
        cpu_params = CpuModel(maxphyaddr=header.maxphyaddr, has_gbpages=features.gbpages)
        self.cpus = [Cpu(number, self.memory, cpu_params) for number in range(header.cpus)]
        self.vcpus: list[Vcpu] = []
        self.vm: Vm | None = None
        self.cr4_mask = U64
        self.features = features
        self.cpu: str | None = None
        self.world: World | None = None
        self.noted: dict[int, tuple[int, int, int, int, int]] = {}

    def hpa_of(self, gpa: int) -> Hpa:
        """Where ``gpa`` is: at home."""
        return Hpa(gpa)

    def change_map(self, reader: Reader) -> None:
        """A map change means nothing to walks."""

    def commit_map(self) -> None:
        """Nothing waits."""

    def note_regs(self, reader: Reader) -> None:
        """Remember the registers of the record in hand for :meth:`load_noted_regs`."""
        check_registers(self, reader)
        self.noted[reader.cpu] = (reader.cr0, reader.cr3, reader.cr4, reader.efer, reader.pkru)

    def load_noted_regs(self) -> None:
        """Give the CPUs the registers that were noted last."""
        for number, (cr0, cr3, cr4, efer, pkru) in self.noted.items():
            cpu = self.cpus[number]
            clean_pdptes(self, cr0, cr3, cr4, efer)
            cpu.load_guest(cr0, cr3, cr4, efer)
            cpu.write_pkru(pkru)
            cpu.flush_all()


class GuestMachine:
    """A world whose VM has the recorded machine's memory and CPUs."""

    def __init__(self, header: Header, params: Params, cpu: str | None = None) -> None:
        recorded = features_of(header)
        self.features = recorded if cpu is None else parse_cpu(cpu, recorded)
        self.cpu = cpu
        if recorded.la57:
            params = replace(params, host_levels=5)
        if params.host_maxphyaddr < header.maxphyaddr:
            raise ConfigError(
                f"host_maxphyaddr={params.host_maxphyaddr}: the recorded guest has {header.maxphyaddr} physical address"
                f" bits; set host_maxphyaddr={header.maxphyaddr} or more"
            )
        sizes = header.memory_sizes()
        self.world = World(params, nr_frames_for(sum(sizes.values()) + _DEVICE_MEMORY))
        self.memory = self.world.memory
        self.vm = self.world.vm
        # KVM offers no protection keys without nested paging.
        self.cr4_mask = U64 if params.npt else U64 & ~CR4_PKE
        self.end = 1 << header.maxphyaddr
        self.backing: dict[str, Backing] = {}
        for name, size in sizes.items():
            self.backing[name] = Backing(self.world, params.host_page_level, size)
        self.map = MemoryMap(header, joins=False)
        # Numbers of the slots of each range; ranges that lose theirs, and get some, with the next commit_map().
        self.slots: dict[Region, list[int]] = {}
        self.gone: dict[Region, None] = {}
        self.come: dict[Region, None] = {}
        self.free_numbers = [0]
        for region in self.map.regions:
            self._add(region)
        self.vcpus = [self.world.create_vcpu(self.features) for _ in range(header.cpus)]
        self.cpus = [vcpu.cpu for vcpu in self.vcpus]
        self.noted: dict[int, tuple[int, int, int, int, int]] = {}

    # Make the slots of a range: one for each piece of memory of the process that backs it.
    def _add(self, region: Region) -> None:
        flags = KVM_MEM_READONLY if region.kind == "rom" else 0
        backing = self.backing.get(region.memory)
        if backing is None:
            backing = self.backing[region.memory] = Backing(self.world, 1, 0)
        gpa = region.gpa
        numbers = self.slots[region] = []
        for hva, size in backing.pieces(region.offset, region.size):
            number = self.free_numbers.pop()
            if not self.free_numbers:
                self.free_numbers.append(number + 1)
            self.world.set_region(UserMemoryRegion(number, flags, gpa, size, hva))  # type: ignore[arg-type]  # a recording's numbers have no kind
            numbers.append(number)
            gpa += size

    # Take the slots of a range away.
    def _remove(self, region: Region) -> None:
        for number in self.slots.pop(region):
            self.world.delete_slot(number)
            self.free_numbers.append(number)

    def change_map(self, reader: Reader) -> None:
        """Play the MAP record in hand: its range is cut out of the map, and put in with what it means now.

        The slots follow with :meth:`commit_map`. What lies beyond the guest's physical addresses means nothing. Raises
        :class:`RecordingError` for more memory or more ranges than the format allows.
        """
        size = min(reader.map_size, self.end - reader.gpa)
        change = Change(reader.gpa, size, reader.map_kind, reader.map_memory, reader.map_offset)
        if size <= 0 or self.map.holds(change):
            return
        before = self.map.between(reader.gpa, reader.gpa + size)
        self.map.change(change)
        start = min([reader.gpa, *(region.gpa for region in before)])
        end = max([reader.gpa + size, *(region.gpa + region.size for region in before)])
        _move(before, self.come, self.gone)
        _move(self.map.between(start, end), self.gone, self.come)
        if len(self.map.regions) > MAX_RANGES:
            raise RecordingError(f"{reader.path}: its memory map has more than {MAX_RANGES} ranges")

    def commit_map(self) -> None:
        """Let kvm's slots follow the map. A range that went and came back meanwhile keeps its slots."""
        gone, self.gone = self.gone, {}
        come, self.come = self.come, {}
        for region in gone:
            self._remove(region)
        for region in come:
            self._add(region)

    def hpa_of(self, gpa: int) -> Hpa:
        """Where ``gpa`` is in host memory, faulted in if need be."""
        hpa = gpa_to_hpa(self.vm.slots_of(0), self.vm.mm, Gpa(gpa), False)
        if hpa == NO_HPA:
            raise RecordingError(f"a page table at gpa {gpa:#x} lies in no memory of the recorded machine")
        return hpa

    def is_read_only(self, gpa: int) -> bool:
        """Whether ``gpa`` is ROM, to which stores go as to a device."""
        slot = self.vm.gfn_to_memslot(gpa >> 12, 0)  # type: ignore[arg-type]  # a recording's numbers have no kind
        return slot is not None and slot.is_readonly()

    def read_guest(self, gpa: int, size: int) -> bytes:
        """``size`` bytes at ``gpa``, within one page."""
        return self.memory.read(self.hpa_of(gpa), size)

    def differs(self, hpa: Hpa, data: bytes) -> bool:
        """Whether the page at ``hpa`` holds other entries than ``data``, A and D bits aside."""
        held = self.memory.read(hpa, len(data))
        if held == data:
            return False
        changed = int.from_bytes(held, "little") ^ int.from_bytes(data, "little")
        return changed & ~_PAGE_ACCESSED_DIRTY != 0

    def note_regs(self, reader: Reader) -> None:
        """Remember the registers of the record in hand for :meth:`load_noted_regs`."""
        check_registers(self, reader)
        self.noted[reader.cpu] = (reader.cr0, reader.cr3, reader.cr4, reader.efer, reader.pkru)

    def load_noted_regs(self) -> None:
        """Give the vCPUs the registers that were noted last."""
        for number, (cr0, cr3, cr4, efer, pkru) in self.noted.items():
            clean_pdptes(self, cr0, cr3, cr4, efer)
            sregs.set_sregs(self.vcpus[number], cr0, cr3, cr4 & self.cr4_mask, efer)
            self.vcpus[number].pkru = pkru
            self.vcpus[number].cpu.write_pkru(pkru)


# Ranges leave `source`, as far as they are in it, and are in `target` otherwise: who goes and comes back did neither.
def _move(regions: list[Region], source: dict[Region, None], target: dict[Region, None]) -> None:
    for region in regions:
        if region in source:
            del source[region]
        else:
            target[region] = None


class Backing:
    """One backing memory: pieces of the process's address space, made where a map first shows it.

    ``size`` bytes from its beginning on are one piece with pages of up to ``page_level``; others are whole blocks of
    1 GiB of which only what is touched takes memory.
    """

    def __init__(self, world: World, page_level: int, size: int) -> None:
        self.world = world
        # Where each piece begins and ends in this memory, and its hva; ascending.
        self.extents: list[tuple[int, int, int]] = []
        if size:
            self.extents.append((0, size, world.mm.mmap(size, "shared", page_level, False)))

    def pieces(self, offset: int, size: int) -> list[tuple[int, int]]:
        """``(hva, size)`` of the pieces that ``size`` bytes at ``offset`` lie in, in order."""
        found = []
        end = offset + size
        while offset < end:
            start, stop, hva = self._extent(offset, end)
            found.append((hva + offset - start, min(stop, end) - offset))
            offset = stop
        return found

    # The extent that holds offset, made if need be: whole blocks up to end, as far as no other extent has them.
    def _extent(self, offset: int, end: int) -> tuple[int, int, int]:
        index = bisect_right(self.extents, offset, key=itemgetter(0))
        start = offset & ~(_BLOCK - 1)
        stop = -(-end // _BLOCK) * _BLOCK
        if index:
            before = self.extents[index - 1]
            if offset < before[1]:
                return before
            start = max(start, before[1])
        if index < len(self.extents):
            stop = min(stop, self.extents[index][0])
        extent = (start, stop, self.world.mm.mmap(stop - start, "shared", 1, False, _BLOCK))
        self.extents.insert(index, extent)
        return extent
