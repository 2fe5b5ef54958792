# SPDX-License-Identifier: GPL-2.0-only
"""Control registers: what a write means for roots, requests and TLBs."""

from __future__ import annotations

import pytest

from kvmmu.kvm import sregs
from kvmmu.kvm.bits import KVM_REQ_TLB_FLUSH_GUEST
from kvmmu.kvm.requests import has_request
from kvmmu.params import Params
from kvmmu.world import World

LONG = (0x8001_0011, 0x10000, 0x20, 0xD00)


@pytest.mark.parametrize("npt", [False, True])
def test_set_sregs_flushes_the_guests_tlb_if_any_register_differs(npt: bool) -> None:
    world = World(Params(npt=npt))
    world.add_slot(0, 0, 16 << 20)
    vcpu = world.create_vcpu()
    vcpu.requests = 0
    sregs.set_sregs(vcpu, *LONG)
    assert has_request(vcpu, KVM_REQ_TLB_FLUSH_GUEST)
    vcpu.requests = 0
    sregs.set_sregs(vcpu, *LONG)
    assert vcpu.requests == 0
    # A bit that no role is made of (CR0.TS) counts as well.
    sregs.set_sregs(vcpu, LONG[0] | 8, *LONG[1:])
    assert has_request(vcpu, KVM_REQ_TLB_FLUSH_GUEST)
