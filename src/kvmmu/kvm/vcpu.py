# SPDX-License-Identifier: GPL-2.0-only
"""Vcpu: the state of one virtual CPU (``struct kvm_vcpu``), as far as paging knows it.

State only, as in ``vm``: registers are changed by ``sregs``, requests are served and the guest is run by ``run``.
Reference: "Data structures", per-vCPU.
"""

from __future__ import annotations

from typing import Any

from ..addr import Address, Gfn, Gpa, Gva
from ..errors import UserError
from ..hw.cpu import Cpu, CpuRunner
from ..hw.runner import Runner
from ..page_types import ONE, U64
from .bits import OUTSIDE_GUEST_MODE, READING_SHADOW_PAGE_TABLES, RESET_CR0
from .cpuid import CpuFeatures
from .memslots import Memslot, Memslots
from .mmu.context import Mmu
from .stats import VcpuStat
from .vm import Vm


class Vcpu:
    """One virtual CPU of ``vm``, run by the logical CPU ``cpu``; made by ``run.create_vcpu()``."""

    __slots__ = (
        "amd_compatible",
        "cpu",
        "cr0",
        "cr2",
        "cr3",
        "cr4",
        "cr4_guest_rsvd_bits",
        "efer",
        "efer_guest_rsvd_bits",
        "exception_address",
        "exception_error_code",
        "exception_has_error",
        "exception_pending",
        "exception_reinjected",
        "exception_vector",
        "emultype",
        "exit_address",
        "fault_cause",
        "fault_limit",
        "fault_counts",
        "features",
        "fetches_insns",
        "gate",
        "guest_mmu",
        "guest_walk",
        "has_gbpages",
        "has_run",
        "last_retry_addr",
        "last_retry_eip",
        "last_used_slot",
        "last_used_slot_gen",
        "maxphyaddr",
        "mmio_access",
        "mmio_gen",
        "mmio_gfn",
        "mmio_gpa",
        "mmio_gva",
        "mmu",
        "mode",
        "nested_mmu",
        "pkru",
        "requests",
        "reserved_gpa_bits",
        "rflags",
        "rip",
        "root_mmu",
        "run_errno",
        "runner",
        "smm",
        "stat",
        "vcpu_id",
        "vm",
        "walk_mmu",
    )

    def __init__(self, vm: Vm, vcpu_id: int, cpu: Cpu, guest_walk: Any) -> None:
        self.vcpu_id = vcpu_id
        self.vm = vm
        self.gate = vm.gate
        self.cpu = cpu
        self.runner: Runner = CpuRunner(cpu)
        self.root_mmu = Mmu()
        self.guest_mmu = Mmu()
        self.nested_mmu = Mmu()
        self.mmu = self.root_mmu
        self.walk_mmu = self.root_mmu
        self.stat = VcpuStat()
        self.cr0 = RESET_CR0
        self.cr2 = 0
        self.cr3 = 0
        self.cr4 = 0
        self.efer = 0
        self.pkru = 0
        self.rflags = 2
        self.rip: Address = 0
        self.smm = False
        self.set_cpuid(CpuFeatures())
        self.has_run = False
        self.guest_walk = guest_walk
        self.fault_cause = 0
        self.fault_limit = 0
        self.fault_counts = [0] * 16
        self.exit_address: Address = 0
        self.emultype = 0
        self.run_errno = 0
        self.mmio_gpa = Gpa(0)
        self.fetches_insns = False
        self.requests = 0
        self.mode = OUTSIDE_GUEST_MODE
        self.exception_pending = False
        self.exception_reinjected = False
        self.exception_vector = 0
        self.exception_has_error = False
        self.exception_error_code = 0
        self.exception_address = 0
        self.mmio_gva = Gva(0)
        self.mmio_access = 0
        self.mmio_gfn = Gfn(0)
        self.mmio_gen = 0
        self.last_used_slot: Memslot | None = None
        self.last_used_slot_gen = 0
        self.last_retry_eip = 0
        self.last_retry_addr = 0

    def set_cpuid(self, features: CpuFeatures) -> None:
        """The guest's CPUID as far as paging asks; the caller resets the MMU (``sregs.after_set_cpuid()``)."""
        self.features = features
        self.maxphyaddr = self.vm.host_maxphyaddr if features.maxphyaddr is None else features.maxphyaddr
        self.reserved_gpa_bits = U64 & ~((ONE << self.maxphyaddr) - 1)
        # Hardware that walks the guest's tables by itself cannot be told to have no 1G pages.
        self.has_gbpages = features.has_cpuid and (self.vm.tdp_enabled or features.gbpages)
        self.amd_compatible = features.amd
        self.cr4_guest_rsvd_bits = features.cr4_guest_rsvd_bits
        self.efer_guest_rsvd_bits = features.efer_guest_rsvd_bits

    def set_runner(self, runner: Runner) -> None:
        """Let ``runner`` run the vCPU: it is told registers and flushes from now on.

        :raises UserError: it is no :class:`~kvmmu.hw.runner.Runner`.
        """
        if not isinstance(runner, Runner):
            raise UserError(f"runner {runner!r}: must be a Runner, such as CpuRunner(cpu)")
        self.runner = runner

    def nr_faults(self, cause: int) -> int:
        """Page-fault exits with this cause (CAUSE_*) so far."""
        return self.fault_counts[cause]

    def memslots(self) -> Memslots:
        """The published memslots of the address space that the vCPU is in."""
        return self.vm.slots_of(1 if self.smm else 0)

    def gfn_to_memslot(self, gfn: Gfn) -> Memslot | None:
        """The slot of ``gfn`` in the vCPU's address space, or None (``kvm_vcpu_gfn_to_memslot``).

        Tries the one that this vCPU found last first, if that was in the generation of today.
        """
        slots: Memslots = self.vm.slots_of(1 if self.smm else 0)
        generation = slots.read_generation(self.gate)
        if generation != self.last_used_slot_gen:
            self.last_used_slot = None
            self.last_used_slot_gen = generation
        slot = self.last_used_slot
        if slot is not None and slot.base_gfn <= gfn < slot.end_gfn:
            return slot
        slot = slots.search(gfn)
        if slot is not None:
            self.last_used_slot = slot
        return slot

    def is_not_reading(self) -> bool:
        """Whether no lockless walk of this vCPU is under way (``mode``)."""
        return self.mode != READING_SHADOW_PAGE_TABLES

    def __repr__(self) -> str:
        return (
            f"<Vcpu {self.vcpu_id} cr0 {self.cr0:#x} cr3 {self.cr3:#x} cr4 {self.cr4:#x} efer {self.efer:#x}"
            f" root {self.mmu.root_hpa:#x}>"
        )
