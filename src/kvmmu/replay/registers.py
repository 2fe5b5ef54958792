# SPDX-License-Identifier: GPL-2.0-only
"""Recorded register changes: refused if no CPU holds such registers, made fit for one, and executed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..addr import Hpa
from ..errors import ConfigError, RecordingError
from ..hw.bits import CR0_PE, CR0_PG, CR4_LA57, CR4_PAE, EFER_LMA
from ..hw.cpu import Cpu
from ..kvm import sregs
from ..kvm.cpuid import CR4_FEATURES, EFER_FEATURES
from ..kvm.insn import mov_cr0, mov_cr3, mov_cr4, wrmsr_efer, wrpkru
from ..kvm.vcpu import Vcpu
from ..record.format import W_CR0, W_CR3, W_CR4, W_EFER
from ..record.reader import Reader

if TYPE_CHECKING:
    from .machine import BareMachine, GuestMachine, NotedRegisters

# Bits 1, 2 and 5 to 8 of a PDPTE are reserved on every CPU; QEMU sets A (bit 5) there, and looks at none of them.
_PDPTE_RESERVED = 0x1E6
# Bits of CR3 that say where the PDPTEs are.
_PDPTES = 0xFFFF_FFE0


def clean_pdptes(machine: GuestMachine | BareMachine, cr0: int, cr3: int, cr4: int, efer: int) -> int:
    """Clear the reserved low bits of the four PDPTEs of a guest in PAE mode, where QEMU lets them pass: A, which it
    sets itself, and what the guest has put there (a 64-bit kernel's entries on a CPU without long mode). Return 0.
    """
    if not cr0 & CR0_PG or not cr4 & CR4_PAE or efer & EFER_LMA:
        return 0
    table = machine.hpa_of(cr3 & _PDPTES)
    for place in range(table, table + 32, 8):
        entry = machine.memory.read_once(Hpa(place))
        if entry & _PDPTE_RESERVED:
            machine.memory.write_once(Hpa(place), entry & ~_PDPTE_RESERVED)
    return 0


def clean_snapshot(machine: GuestMachine | BareMachine, cpus: list[Cpu], vcpus: list[Vcpu], gfn: int) -> int:
    """:func:`clean_pdptes` of those whose tables are in frame ``gfn``; ``vcpus`` is empty without kvm. Return 0."""
    if not vcpus:
        for cpu in cpus:
            if cpu.cr3 >> 12 == gfn:
                clean_pdptes(machine, cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer)
    for vcpu in vcpus:
        if vcpu.cr3 >> 12 == gfn:
            clean_pdptes(machine, vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer)
    return 0


def check_registers(has_la57: bool, reader: Reader) -> int:
    """Refuse registers that no CPU holds together (``has_la57``: 5-level paging may be there); return 0.

    :class:`RecordingError` names the record in hand.
    """
    if reader.cr0 & CR0_PG and not reader.cr0 & CR0_PE:
        return _refuse(reader, "CR0.PG without CR0.PE")
    if reader.efer & EFER_LMA and not reader.cr0 & CR0_PG:
        return _refuse(reader, "EFER.LMA without CR0.PG")
    if reader.efer & EFER_LMA and not reader.cr4 & CR4_PAE:
        return _refuse(reader, "EFER.LMA without CR4.PAE")
    if reader.cr4 & CR4_LA57 and not has_la57:
        return _refuse(reader, "CR4.LA57, which the header's CPU lacks,")
    return 0


def check_features(machine: NotedRegisters, reader: Reader) -> None:
    """What the caller changed of the CPU must leave what the guest used; :class:`ConfigError` if not."""
    cr4 = reader.cr4 & machine.cr4_mask & machine.features.cr4_guest_rsvd_bits
    efer = reader.efer & machine.features.efer_guest_rsvd_bits
    lacking = [name for name, mask in CR4_FEATURES.items() if cr4 & mask]
    lacking += [name for name, mask in EFER_FEATURES.items() if efer & mask]
    if lacking:
        raise ConfigError(
            f"cpu {machine.cpu}: the recorded guest turns on {', '.join(lacking)} at record {reader.position - 1}"
            f" (cr4 {reader.cr4:#x}, efer {reader.efer:#x}), which that CPU lacks; leave it on"
        )


def _refuse(reader: Reader, wrong: str) -> int:
    raise RecordingError(
        f"{reader.path} contradicts itself at record {reader.position - 1}: CPU {reader.cpu} has {wrong}"
        f" (cr0 {reader.cr0:#x}, cr4 {reader.cr4:#x}, efer {reader.efer:#x}), no CPU can"
    )


def change_register(cpu: Cpu, vcpu: Vcpu | None, reader: Reader, cr4: int) -> int:
    """Execute the register change in hand, whose CR4 is ``cr4`` without what the machine does not offer.

    ``vcpu`` is None for a bare ``cpu``. Return what kvm's or the CPU's instruction returns: not 0 if it refuses.
    """
    ret = 0
    if reader.what == W_CR3:
        ret = cpu.write_cr3(reader.cr3) if vcpu is None else mov_cr3(vcpu, reader.cr3)
    elif reader.what == W_CR0:
        ret = cpu.write_cr0(reader.cr0) if vcpu is None else mov_cr0(vcpu, reader.cr0)
    elif reader.what == W_CR4:
        ret = cpu.write_cr4(cr4) if vcpu is None else mov_cr4(vcpu, cr4)
    elif reader.what == W_EFER:
        ret = cpu.write_efer(reader.efer) if vcpu is None else wrmsr_efer(vcpu, reader.efer)
    if vcpu is None:
        cpu.write_pkru(reader.pkru)
    elif reader.pkru != vcpu.pkru:
        wrpkru(vcpu, reader.pkru)
    return ret


def has_registers(cpu: Cpu, vcpu: Vcpu | None, reader: Reader, cr4: int) -> bool:
    """Whether the control registers are those of the record in hand."""
    if vcpu is None:
        return cpu.cr0 == reader.cr0 and cpu.cr3 == reader.cr3 and cpu.cr4 == cr4 and cpu.efer == reader.efer
    return vcpu.cr0 == reader.cr0 and vcpu.cr3 == reader.cr3 and vcpu.cr4 == cr4 and vcpu.efer == reader.efer


def load_registers(cpu: Cpu, vcpu: Vcpu | None, reader: Reader, cr4: int) -> int:
    """Give the model the control registers of the record in hand, all at once, with a flush. Return 0."""
    if vcpu is not None:
        sregs.set_sregs(vcpu, reader.cr0, reader.cr3, cr4, reader.efer)
        return 0
    cpu.load_guest(reader.cr0, reader.cr3, cr4, reader.efer)
    return cpu.flush_all()
