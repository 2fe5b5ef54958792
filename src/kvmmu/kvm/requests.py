# SPDX-License-Identifier: GPL-2.0-only
"""Requests: what one actor asks of vCPUs, served before their next entry; and the remote TLB flush built on them.

Reference: "TLB flush rules, vCPU modes, requests".
"""

from __future__ import annotations

from ..addr import Gfn
from ..page_types import ONE
from .bits import (
    KVM_REQ_TLB_FLUSH,
    OUTSIDE_GUEST_MODE,
)
from .vcpu import Vcpu
from .vm import Vm


def make_request(vcpu: Vcpu, req: int) -> None:
    """Ask ``vcpu`` for ``req`` (a ``KVM_REQ_*`` number)."""
    vcpu.requests |= ONE << req


def has_request(vcpu: Vcpu, req: int) -> bool:
    """Whether ``req`` is pending; it stays so."""
    return (vcpu.requests >> req) & ONE != 0


def check_request(vcpu: Vcpu, req: int) -> bool:
    """Whether ``req`` was pending; it no longer is."""
    if (vcpu.requests >> req) & ONE == 0:
        return False
    vcpu.requests &= ~(ONE << req)
    return True


def make_all_cpus_request(vm: Vm, req: int) -> bool:
    """Ask every vCPU for ``req``. Return whether one was not in userspace, so that an IPI had to be sent."""
    ipi = False
    for vcpu in vm.vcpus:
        vcpu.requests |= ONE << req
        if vcpu.mode != OUTSIDE_GUEST_MODE:
            ipi = True
    return ipi


def kick_all(vm: Vm) -> None:
    """Make every vCPU leave the guest before it goes on: here each serves its requests at its next entry anyway."""


def flush_remote_tlbs(vm: Vm) -> int:
    """Flush the TLBs of all vCPUs before they run again (``kvm_flush_remote_tlbs``); also ends lockless walks."""
    vm.stat.remote_tlb_flush_requests += 1
    if make_all_cpus_request(vm, KVM_REQ_TLB_FLUSH):
        vm.stat.remote_tlb_flush += 1
    return 0


def flush_remote_tlbs_gfn(vm: Vm, gfn: Gfn, level: int) -> int:
    """Flush the naturally aligned ``level`` block around ``gfn``; without a range hook the flush is full."""
    return flush_remote_tlbs(vm)
