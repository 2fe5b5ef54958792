# SPDX-License-Identifier: GPL-2.0-only
"""Requests: what one actor asks of vCPUs, served before their next entry; and the remote TLB flush built on them.

The owner of ``vcpu.requests``. Reference: "TLB flush rules, vCPU modes, requests".
"""

from __future__ import annotations

from ..addr import Gfn, pages_per_level
from ..errors import KvmBug
from ..page_types import ONE
from .bits import IN_GUEST_MODE, KVM_REQ_ALL, KVM_REQ_TLB_FLUSH, KVM_REQ_WAIT, OUTSIDE_GUEST_MODE
from .memslots import Memslot
from .mode import kick, wait_for_reading
from .vcpu import Vcpu
from .vm import Vm


def make_request(vcpu: Vcpu, req: int) -> int:
    """Ask ``vcpu`` for ``req`` (a ``KVM_REQ_*`` number); what was stored before is seen by whoever serves it."""
    gate = vcpu.gate
    gate.smp_wmb()
    if gate.armed:
        gate.announce("or", vcpu, "requests")
    vcpu.requests |= ONE << req
    return 0


def has_request(vcpu: Vcpu, req: int) -> bool:
    """Whether ``req`` is pending; it stays so."""
    if vcpu.gate.armed:
        vcpu.gate.announce("read", vcpu, "requests")
    return (vcpu.requests >> req) & ONE != 0


def has_requests(vcpu: Vcpu) -> bool:
    """Whether anything is pending."""
    if vcpu.gate.armed:
        vcpu.gate.announce("read", vcpu, "requests")
    return vcpu.requests != 0


def must_be_known(vcpu: Vcpu) -> int:
    """Return 0; :class:`~kvmmu.errors.KvmBug` if a request is pending that nobody serves, or ever will."""
    if vcpu.requests & ~KVM_REQ_ALL:
        raise KvmBug(f"vcpu {vcpu.vcpu_id}: requests {vcpu.requests:#x}, of which {KVM_REQ_ALL:#x} are served")
    return 0


def check_request(vcpu: Vcpu, req: int) -> bool:
    """Whether ``req`` was pending; it no longer is. What its sender stored before is seen from now on."""
    gate = vcpu.gate
    if gate.armed:
        gate.announce("read", vcpu, "requests")
    if (vcpu.requests >> req) & ONE == 0:
        return False
    if gate.armed:
        gate.announce("and", vcpu, "requests")
    vcpu.requests &= ~(ONE << req)
    gate.smp_mb()
    return True


def make_all_cpus_request(vm: Vm, req: int) -> bool:
    """Ask every vCPU for ``req``, and make those leave the guest that are in it. Return whether an IPI was sent.

    A request of :data:`KVM_REQ_WAIT` goes to every vCPU that is not outside, and returns when each has acknowledged
    it: no lockless walk that began before is still under way.
    """
    ipi = False
    waits = (KVM_REQ_WAIT >> req) & ONE != 0
    for vcpu in vm.vcpus:
        make_request(vcpu, req)
        mode = kick(vcpu)
        if mode == IN_GUEST_MODE or (waits and mode != OUTSIDE_GUEST_MODE):
            ipi = True
    if waits and ipi:
        for vcpu in vm.vcpus:
            wait_for_reading(vcpu)
    return ipi


def kick_all(vm: Vm) -> int:
    """Make every vCPU leave the guest, so that it serves its requests before it goes on. Return 0."""
    for vcpu in vm.vcpus:
        kick(vcpu)
    return 0


def flush_remote_tlbs(vm: Vm) -> int:
    """Flush the TLBs of all vCPUs before they run again (``kvm_flush_remote_tlbs``); also ends lockless walks."""
    vm.stat.remote_tlb_flush_requests += 1
    if make_all_cpus_request(vm, KVM_REQ_TLB_FLUSH):
        vm.stat.remote_tlb_flush += 1
    return 0


def flush_remote_tlbs_range(vm: Vm, gfn: Gfn, nr_pages: int) -> int:
    """Flush what TLBs have of ``nr_pages`` gfns from ``gfn`` on: by the vendor's own way, or the full flush.

    The vendor's way is at once and not counted, as in the kernel. Return 0.
    """
    if vm.vendor.flush_remote_tlbs_range(vm, gfn, nr_pages) == 0:
        return 0
    return flush_remote_tlbs(vm)


def flush_remote_tlbs_gfn(vm: Vm, gfn: Gfn, level: int) -> int:
    """:func:`flush_remote_tlbs_range` of the naturally aligned ``level`` block around ``gfn``."""
    size: int = pages_per_level(level)
    return flush_remote_tlbs_range(vm, gfn & ~(size - 1), size)


def flush_remote_tlbs_memslot(vm: Vm, slot: Memslot) -> int:
    """:func:`flush_remote_tlbs_range` of all of ``slot``; slots_lock held, so that who follows sees it done."""
    vm.slots_lock.assert_held()
    return flush_remote_tlbs_range(vm, slot.base_gfn, slot.npages)
