# SPDX-License-Identifier: GPL-2.0-only
"""Whether kvm works for a vCPU, and where that vCPU is: in the guest, outside, or reading kvm's tables without a lock.

The owner of ``vcpu.mode``. A sender of a request that must be acted upon looks at the mode after it made the request;
the vCPU looks at its requests after it set the mode: one of the two sees the other. Reference: "TLB flush rules, vCPU
modes, requests".
"""

from __future__ import annotations

from .bits import EXITING_GUEST_MODE, IN_GUEST_MODE, NO_VCPU, OUTSIDE_GUEST_MODE, READING_SHADOW_PAGE_TABLES
from .vcpu import Vcpu


def vcpu_load(vcpu: Vcpu) -> int:
    """Kvm works on behalf of ``vcpu`` from here to :func:`vcpu_put`: events carry it, memslots that it finds stay.

    Pairs do not nest. Return 0.
    """
    vcpu.vm.trace.vcpu_id = vcpu.vcpu_id
    return vcpu.vm.srcu.read_lock()


def vcpu_put(vcpu: Vcpu) -> int:
    """The work that began with :func:`vcpu_load` is done, also where it raises. Return 0."""
    vcpu.vm.trace.vcpu_id = NO_VCPU
    return vcpu.vm.srcu.read_unlock()


def _set_mode(vcpu: Vcpu, mode: int) -> int:
    if vcpu.gate.armed:
        vcpu.gate.announce("write", vcpu, "mode")
    vcpu.mode = mode
    return 0


def enter_guest_mode(vcpu: Vcpu) -> int:
    """The vCPU is about to run the guest; the caller then passes a full barrier and looks at its requests."""
    vcpu.gate.smp_store_release()
    _set_mode(vcpu, IN_GUEST_MODE)
    return 0


def leave_guest_mode(vcpu: Vcpu) -> int:
    """The CPU is back in kvm, where a remote flush does not interrupt it. Return 0."""
    _set_mode(vcpu, OUTSIDE_GUEST_MODE)
    return 0


def begin_reading(vcpu: Vcpu) -> int:
    """A lockless walk of kvm's tables begins: a remote flush, and with it the freeing of tables, waits for its end."""
    _set_mode(vcpu, READING_SHADOW_PAGE_TABLES)
    vcpu.gate.smp_mb()
    return 0


def end_reading(vcpu: Vcpu) -> int:
    """The lockless walk is over. Return 0."""
    vcpu.gate.smp_store_release()
    _set_mode(vcpu, OUTSIDE_GUEST_MODE)
    return 0


def kick(vcpu: Vcpu) -> int:
    """Make the vCPU leave the guest, if it is there; return its old mode (``kvm_vcpu_exiting_guest_mode``)."""
    gate = vcpu.gate
    gate.smp_mb()
    if gate.armed:
        gate.announce("cmpxchg", vcpu, "mode")
    old = vcpu.mode
    if old == IN_GUEST_MODE:
        vcpu.mode = EXITING_GUEST_MODE
    return old


def is_kicked(vcpu: Vcpu) -> bool:
    """Whether the vCPU, in the guest, has been told to leave it."""
    return vcpu.mode == EXITING_GUEST_MODE


def wait_for_reading(vcpu: Vcpu) -> int:
    """Wait until the vCPU has acknowledged an interrupt: a lockless walk, during which it takes none, is over.

    A guest that runs acknowledges at once. Return 0; :class:`~kvmmu.errors.KvmBug` if the walk is the caller's own.
    """
    if vcpu.mode == READING_SHADOW_PAGE_TABLES:
        vcpu.gate.wait("ipi", vcpu, vcpu.is_not_reading)
    return 0
