# SPDX-License-Identifier: GPL-2.0-only
"""What the VMM does: ioctls of kvm by the name of what they are for, and its own loads and stores of guest memory."""

from __future__ import annotations

import errno
from dataclasses import replace

from . import access, arguments, guard, look
from .addr import Gpa, Gva, Hva
from .calls import working
from .errors import GuestMisuse, KvmIoctlError, KvmmuError
from .guest.tables import ControlRegisters
from .hw.cpu import Cpu
from .hw.cpumodel import CpuModel
from .kvm import guestmem, regions, run, sregs
from .kvm.bits import KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
from .kvm.cpuid import CpuFeatures
from .kvm.mmu import dirty
from .kvm.mmu.recovery import recover_nx_huge_pages
from .kvm.regions import UserMemoryRegion
from .kvm.vcpu import Vcpu
from .page_types import PAGE_SIZE
from .parts import Parts

_U32 = (1 << 32) - 1


class Ioctls(Parts):
    """The VMM's calls."""

    @working
    def add_slot(
        self,
        slot: int,
        gpa: Gpa | int,
        size: int,
        *,
        flags: int = 0,
        backing: str = "anonymous",
        populate: bool = False,
    ) -> Hva:
        """Give the guest ``size`` bytes of fresh memory at ``gpa`` as memslot ``slot``; return where it lies (hva).

        ``flags``: KVM_MEM_*; ``backing``: "anonymous" or "shared"; ``populate`` faults every page in at once. Huge
        backing follows ``params.host_page``.

        :raises KvmIoctlError: what KVM_SET_USER_MEMORY_REGION refuses, with its errno.
        :raises UserError: a number that the ioctl's field cannot hold.
        :raises OutOfFrames: ``populate`` found no free frame. Nothing stays mapped after an error.
        """
        arguments.flag("populate", populate)
        region = UserMemoryRegion(slot, flags, Gpa(gpa), size, Hva(0))
        if size <= 0 or size % PAGE_SIZE:
            raise KvmIoctlError(22, f"memory_size {size:#x}: a slot has whole pages, at least one; round up to 4096")
        mm = self.vm.mm
        hva = mm.mmap(size, backing, self.params.host_page_level)
        try:
            if populate:
                mm.populate(hva, size)
            regions.set_user_memory_region(self.vm, replace(region, userspace_addr=hva))
        except KvmmuError:
            mm.munmap(hva, size)
            raise
        return hva

    @working
    def set_region(self, region: UserMemoryRegion) -> None:
        """KVM_SET_USER_MEMORY_REGION.

        :raises KvmIoctlError: with the kernel's errno.
        """
        arguments.instance("region", region, UserMemoryRegion, "add_slot() makes one with its memory")
        regions.set_user_memory_region(self.vm, region)

    def delete_slot(self, slot: int) -> None:
        """Delete memslot ``slot``; its memory stays mapped in the process.

        :raises KvmIoctlError: EINVAL, there is no such slot.
        """
        self.set_region(UserMemoryRegion(slot, 0, Gpa(0), 0, Hva(0)))

    @working
    def dirty_log(self, slot: int) -> bytes:
        """KVM_GET_DIRTY_LOG: one bit per page of ``slot``, cleared with this call unless :meth:`enable_cap` said no.

        :raises KvmIoctlError: EINVAL for a number that no slot can have, ENOENT for a slot that is not logged.
        """
        arguments.number("slot", slot, _U32)
        return dirty.get_dirty_log(self.vm, slot)

    @working
    def clear_dirty_log(self, slot: int, first_page: int, num_pages: int, bitmap: bytes) -> None:
        """KVM_CLEAR_DIRTY_LOG: what is set in ``bitmap`` (bit 0: ``first_page``) is clean, and its next write logged.

        :raises KvmIoctlError: EINVAL, ENOENT as :meth:`dirty_log`; EINVAL unless ``first_page`` is a multiple of 64 and
            the ``num_pages`` end with the slot or are a multiple of 64; EFAULT for too short a bitmap.
        """
        arguments.number("slot", slot, _U32)
        arguments.number("first_page", first_page)
        arguments.number("num_pages", num_pages, _U32)
        arguments.instance("bitmap", bitmap, bytes, "dirty_log() returns one")
        dirty.clear_dirty_log(self.vm, slot, first_page, num_pages, bitmap)

    @working
    def recover_nx_huge_pages(self) -> int:
        """One pass of the worker that undoes what ``nx_huge_pages`` split: how many tables it took.

        One in ``nx_huge_pages_recovery_ratio`` of them, rounded up, the oldest first; 0 with the mitigation off. The
        kernel makes a pass per minute to hour; in a world time does not pass, so that the caller says when.
        """
        return recover_nx_huge_pages(self.vm)

    @working
    def enable_cap(self, cap: int, argument: int = 0, *, flags: int = 0) -> None:
        """KVM_ENABLE_CAP of the VM: ``KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`` (168) with its options as ``argument``.

        Options: 1, :meth:`dirty_log` only reads and :meth:`clear_dirty_log` clears; 1 | 2, also a log begins with every
        page written. They hold for what comes: slots that are logged already keep their bitmaps.

        :raises KvmIoctlError: EINVAL for another capability, other options, or any ``flags``.
        """
        arguments.number("cap", cap, _U32)
        arguments.number("argument", argument)
        arguments.number("flags", flags, _U32)
        if cap != KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
            known = f"the model has KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 ({KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2})"
            raise KvmIoctlError(errno.EINVAL, f"EINVAL: KVM_ENABLE_CAP: capability {cap}: {known}")
        if flags:
            raise KvmIoctlError(errno.EINVAL, f"EINVAL: KVM_ENABLE_CAP: flags {flags:#x}: must be 0")
        dirty.set_manual_protect(self.vm, argument)

    @working
    def create_vcpu(self, cpu: CpuFeatures | None = None) -> Vcpu:
        """A new vCPU with paging off, on a CPU of its own; ``cpu`` is its CPUID, by default the world's.

        :raises UserError: no :class:`~kvmmu.CpuFeatures`.
        """
        if cpu is not None:
            _features(cpu)
        params = self.params
        model = CpuModel(
            maxphyaddr=params.host_maxphyaddr,
            tlb_entries_4k=params.tlb_entries_4k,
            tlb_entries_2m=params.tlb_entries_2m,
            tlb_entries_1g=params.tlb_entries_1g,
            keep_all=params.tlb_keep_all,
            tracks_gfns=params.range_flush,
        )
        vcpu = run.create_vcpu(self.vm, Cpu(len(self.vm.vcpus), self.memory, model))
        # What two vCPUs share a TLB for is nothing: each has an address-space tag of its own.
        vcpu.cpu.set_space(vcpu.vcpu_id + 1)
        sregs.set_cpuid(vcpu, cpu or self.cpu)
        return vcpu

    @working
    def set_cpuid(self, vcpu: Vcpu, cpu: CpuFeatures) -> None:
        """KVM_SET_CPUID2: give ``vcpu`` the features ``cpu``, before it runs; later only the same ones again.

        :raises KvmIoctlError: EINVAL, the vCPU has run and has others.
        """
        guard.own_vcpu(self.vm, vcpu)
        _features(cpu)
        if vcpu.has_run and cpu != vcpu.features:
            raise KvmIoctlError(
                errno.EINVAL,
                f"EINVAL: KVM_SET_CPUID2, vCPU {vcpu.vcpu_id} has run, with {vcpu.features!r}; create another",
            )
        sregs.set_cpuid(vcpu, cpu)

    @working
    def load_registers(self, vcpu: Vcpu, registers: ControlRegisters) -> None:
        """KVM_SET_SREGS as far as paging goes: all four registers at once (``GuestTables.registers()``).

        :raises KvmIoctlError: EINVAL, no CPU accepts them; nothing is changed.
        """
        guard.registers(self.vm, vcpu, registers)
        sregs.set_sregs(vcpu, registers.cr0, registers.cr3, registers.cr4, registers.efer)

    @working
    def translate(self, vcpu: Vcpu, gva: Gva | int) -> Gpa | None:
        """KVM_TRANSLATE: where the guest's tables map ``gva`` for a supervisor's read; None: nowhere (``valid`` 0).

        Like every walk by kvm it sets A bits in the guest's tables. Nothing need be at the gpa.
        """
        guard.operands(self.vm, vcpu, gva=gva)
        return look.translate(vcpu, gva)

    # The guest's memory, from outside.

    def poke(self, gpa: Gpa | int, data: bytes | int, size: int = 8) -> None:
        """Store ``data`` (an int is ``size`` bytes, little endian) at ``gpa`` as the VMM does: to the process's memory.

        That is past the memslot: a ROM takes it, no exit, no dirty log, no tracking; kvm hears of it only if the host
        must find another page. All of ``data`` is stored or, after an error, nothing.
        """
        access.poke(self._door, self.vm, gpa, data, size)

    @working
    def kvm_write_guest(self, gpa: Gpa | int, data: bytes | int, size: int = 8) -> None:
        """Store as kvm itself does (steal time, an MSR's page): not into a ROM, and the dirty log has it.

        What it cannot write ends it with :class:`GuestMisuse`; the pages before that have been written, as in KVM.
        """
        raw = access.bytes_at(gpa, data, size)
        if guestmem.write_guest(self.vm, 0, Gpa(gpa), raw):
            raise GuestMisuse(f"gpa {gpa:#x}: no writable memslot there; add_slot() first")

    def peek(self, gpa: Gpa | int, size: int = 8) -> bytes:
        """``size`` bytes of guest memory at ``gpa``.

        :raises UserError: not all of it lies in memslots.
        """
        return access.peek(self._door, self.vm, gpa, size)


def _features(cpu: object) -> None:
    arguments.instance("cpu", cpu, CpuFeatures, "CpuFeatures(nx=False)")
