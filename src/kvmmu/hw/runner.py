# SPDX-License-Identifier: GPL-2.0-only
"""Runner: what runs a vCPU, as a hypervisor speaks to it: here are the guest's registers, forget these translations.

Our CPU is one (:class:`~kvmmu.hw.cpu.CpuRunner`). An emulator that executes real code and keeps a TLB of its own is
another: it derives from this class and answers the calls.
"""

from __future__ import annotations

from ..addr import Gfn, Gva, Hpa
from ..errors import KvmBug


class Runner:
    """The calls; whoever runs a vCPU answers all of them."""

    __slots__ = ()

    def load_guest(self, cr0: int, cr3: int, cr4: int, efer: int) -> int:
        """Load the guest's control registers as VMRUN does; INSN_DONE, or INSN_GP: a PDPTE has reserved bits."""
        raise KvmBug(f"{self!r} cannot load {cr0:#x} {cr3:#x} {cr4:#x} {efer:#x}")

    def set_nested(self, ncr3: Hpa, levels: int) -> int:
        """Walk the second-stage table of ``levels`` levels at ``ncr3`` from now on; 0 levels: none. Return 0."""
        raise KvmBug(f"{self!r} cannot use a second stage of {levels} levels at {ncr3:#x}")

    def flush_asid(self) -> int:
        """Forget every translation of the current address-space tag; return 0."""
        raise KvmBug(f"{self!r} cannot flush")

    def flush_gva(self, gva: Gva) -> int:
        """Forget the page of ``gva`` under every PCID of the current address-space tag; return 0."""
        raise KvmBug(f"{self!r} cannot flush {gva:#x}")

    def flush_gfns(self, gfn: Gfn, nr_pages: int) -> int:
        """Forget what was translated through ``nr_pages`` frames of guest memory from ``gfn`` on; return 0.

        Asked for only where ``params.range_flush`` is on.
        """
        raise KvmBug(f"{self!r} cannot flush {nr_pages:#x} frames from {gfn:#x}")
