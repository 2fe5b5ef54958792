# SPDX-License-Identifier: GPL-2.0-only
"""The machine that a recording is played into, built from the facts in its header.

RAM becomes memslots on shared memory of the process, ROM read-only slots; when a gpa range changes its meaning the
slots change with it. A bare machine is the same memory with the guest's CPUs on it and no hypervisor.
"""

from __future__ import annotations

from dataclasses import replace

from ..addr import Gpa, Hpa
from ..errors import RecordingError
from ..host.bits import NO_HPA
from ..hw.bits import CR0_PG, CR4_PAE, CR4_PKE, EFER_LMA, PT_ACCESSED, PT_DIRTY
from ..hw.cpu import Cpu
from ..hw.cpumodel import CpuModel
from ..hw.memory import PhysicalMemory
from ..kvm import sregs
from ..kvm.bits import KVM_MEM_READONLY
from ..kvm.guestmem import gpa_to_hpa
from ..kvm.regions import UserMemoryRegion
from ..kvm.vcpu import Vcpu
from ..kvm.vm import Vm
from ..page_types import PAGE_SIZE, U64
from ..params import Params
from ..record.format import MAP_IO, MAP_ROM, MEMORY_UNKNOWN, Header, Region
from ..record.reader import Reader
from ..world import World, nr_frames_for

# A and D of every 4-byte unit of a page, as one number; in the upper half of an 8-byte entry they are frame bits.
_PAGE_ACCESSED_DIRTY = int.from_bytes((PT_ACCESSED | PT_DIRTY).to_bytes(4, "little") * (PAGE_SIZE // 4), "little")


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


def build_machine(header: Header, params: Params | None) -> GuestMachine | BareMachine:
    """The machine of ``header``: a VM with ``params``, or, with None, bare CPUs."""
    return BareMachine(header) if params is None else GuestMachine(header, params)


class BareMachine:
    """Physical memory that is the guest's own, and CPUs that walk its tables."""

    def __init__(self, header: Header) -> None:
        # ROM just below 4 GiB holds no tables: it need not be there.
        top = max(header.memory_end, *(region.gpa + region.size for region in header.memory if region.kind == "ram"), 0)
        self.memory = PhysicalMemory(top // PAGE_SIZE)
        cpu_params = CpuModel(maxphyaddr=header.maxphyaddr, has_gbpages=header.has("pdpe1gb"))
        self.cpus = [Cpu(number, self.memory, cpu_params) for number in range(header.cpus)]
        self.vcpus: list[Vcpu] = []
        self.vm: Vm | None = None
        self.cr4_mask = U64
        self.world: World | None = None
        self.noted: dict[int, tuple[int, int, int, int, int]] = {}

    def hpa_of(self, gpa: int) -> Hpa:
        """Where ``gpa`` is: at home."""
        return Hpa(gpa)

    def change_map(self, reader: Reader) -> None:
        """A map change means nothing to walks."""

    def note_regs(self, reader: Reader) -> None:
        """Remember the registers of the record in hand for :meth:`load_noted_regs`."""
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

    def __init__(self, header: Header, params: Params) -> None:
        if header.has("la57"):
            params = replace(params, host_levels=5)
        if params.host_maxphyaddr < header.maxphyaddr:
            raise RecordingError(
                f"the recorded guest has {header.maxphyaddr} physical address bits, the host"
                f" {params.host_maxphyaddr}; set host_maxphyaddr={header.maxphyaddr} or more"
            )
        sizes: dict[str, int] = {}
        for region in header.memory:
            sizes[region.memory] = max(sizes.get(region.memory, 0), region.offset + region.size)
        for name, size in header.backends.items():
            sizes[name] = max(sizes.get(name, 0), size)
        self.world = World(params, nr_frames_for(sum(sizes.values())))
        self.memory = self.world.memory
        self.vm = self.world.vm
        # KVM offers no protection keys without nested paging.
        self.cr4_mask = U64 if params.npt else U64 & ~CR4_PKE
        self.names = header.memories
        self.hvas = {
            name: self.world.mm.mmap(_round_up(size), "shared", params.host_page_level, False)
            for name, size in sizes.items()
        }
        self.sizes = sizes
        self.regions: dict[int, Region] = {}
        for region in header.memory:
            self._add(region)
        self.vcpus = [self._create_vcpu(header) for _ in range(header.cpus)]
        self.cpus = [vcpu.cpu for vcpu in self.vcpus]
        self.noted: dict[int, tuple[int, int, int, int, int]] = {}

    def _create_vcpu(self, header: Header) -> Vcpu:
        vcpu = self.world.create_vcpu()
        vcpu.set_cpuid(
            header.maxphyaddr,
            gbpages=header.has("pdpe1gb"),
            nx=header.has("nx"),
            pcid=header.has("pcid"),
            amd_compatible=header.has("svm"),
        )
        sregs.after_set_cpuid(vcpu)
        return vcpu

    def _add(self, region: Region) -> None:
        # A slot number per region, the lowest free one.
        number = next(n for n in range(len(self.regions) + 1) if n not in self.regions)
        flags = KVM_MEM_READONLY if region.kind == "rom" else 0
        hva = self.hvas[region.memory] + region.offset
        self.world.set_region(UserMemoryRegion(number, flags, Gpa(region.gpa), region.size, hva))
        self.regions[number] = region

    def change_map(self, reader: Reader) -> None:
        """Play the MAP record in hand: cut its range out of the slots and put in what it means now."""
        start, end = reader.gpa, reader.gpa + reader.map_size
        for number, region in list(self.regions.items()):
            if region.gpa < end and start < region.gpa + region.size:
                self.world.delete_slot(number)
                del self.regions[number]
                for piece_start, piece_end in ((region.gpa, start), (end, region.gpa + region.size)):
                    if piece_start < piece_end:
                        offset = region.offset + piece_start - region.gpa
                        self._add(replace(region, gpa=piece_start, size=piece_end - piece_start, offset=offset))
        if reader.map_kind == MAP_IO:
            return
        name, offset = self._backing(reader)
        kind = "rom" if reader.map_kind == MAP_ROM else "ram"
        self._add(Region(start, reader.map_size, kind, name, offset))

    def _backing(self, reader: Reader) -> tuple[str, int]:
        # The memory that a MAP record names, grown if the header's regions did not show so much of it.
        if reader.map_memory == MEMORY_UNKNOWN:
            name, offset = f"map-{reader.gpa:x}", 0
        else:
            name, offset = self.names[reader.map_memory], reader.map_offset
        if self.sizes.get(name, 0) < offset + reader.map_size:
            if name in self.hvas:
                raise RecordingError(f"record {reader.position}: a map change reaches beyond the memory {name!r}")
            self.sizes[name] = offset + reader.map_size
            self.hvas[name] = self.world.mm.mmap(_round_up(self.sizes[name]), "shared", 1, False)
        return name, offset

    def hpa_of(self, gpa: int) -> Hpa:
        """Where ``gpa`` is in host memory, faulted in if need be."""
        hpa = gpa_to_hpa(self.vm.slots_of(0), self.vm.mm, Gpa(gpa), False)
        if hpa == NO_HPA:
            raise RecordingError(f"a page table at gpa {gpa:#x} lies in no memory of the recorded machine")
        return hpa

    def is_read_only(self, gpa: int) -> bool:
        """Whether ``gpa`` is ROM, to which stores go as to a device."""
        slot = self.vm.gfn_to_memslot(gpa >> 12, 0)  # type: ignore[arg-type]
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
        self.noted[reader.cpu] = (reader.cr0, reader.cr3, reader.cr4, reader.efer, reader.pkru)

    def load_noted_regs(self) -> None:
        """Give the vCPUs the registers that were noted last."""
        for number, (cr0, cr3, cr4, efer, pkru) in self.noted.items():
            clean_pdptes(self, cr0, cr3, cr4, efer)
            sregs.set_sregs(self.vcpus[number], cr0, cr3, cr4 & self.cr4_mask, efer)
            self.vcpus[number].pkru = pkru
            self.vcpus[number].cpu.write_pkru(pkru)


def _round_up(size: int) -> int:
    return -(-size // PAGE_SIZE) * PAGE_SIZE
