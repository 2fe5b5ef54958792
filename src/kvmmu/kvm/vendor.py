# SPDX-License-Identifier: GPL-2.0-only
"""Vendor: what AMD's and Intel's virtualization do in different ways, as kvm asks for it (``kvm_x86_ops``).

``vm.vendor`` is one of its kinds; no other room knows which. Reference: "TLB flush rules", hardware scope.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import KvmBug

if TYPE_CHECKING:
    from ..addr import Gfn, Gva


class Vendor:
    """The calls; each kind of hardware answers all of them. Needs no lock: they act on the vCPU's own CPU."""

    __slots__ = ()

    def load_mmu_pgd(self, vcpu: Any) -> int:
        """Make whatever runs ``vcpu`` use its current root; return 0."""
        raise KvmBug(f"no vendor loads the root of {vcpu!r}")

    def flush_tlb_current(self, vcpu: Any) -> int:
        """Flush the translations that ``vcpu`` can use in its current context; return 0."""
        raise KvmBug(f"no vendor flushes {vcpu!r}")

    def flush_tlb_gva(self, vcpu: Any, gva: Gva) -> int:
        """Flush the translations of ``gva`` in the current context of ``vcpu``; return 0."""
        raise KvmBug(f"no vendor flushes {gva:#x} of {vcpu!r}")

    def flush_remote_tlbs_range(self, vm: Any, gfn: Gfn, nr_pages: int) -> int:
        """Flush at once what the TLBs of all vCPUs of ``vm`` have of ``nr_pages`` gfns from ``gfn`` on.

        0, or -EOPNOTSUPP: the hardware cannot, and nothing was done.
        """
        raise KvmBug(f"no vendor flushes {nr_pages:#x} pages from gfn {gfn:#x} of {vm!r}")
