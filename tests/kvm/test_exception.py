# SPDX-License-Identifier: GPL-2.0-only
"""Queued exceptions: what two of them make together, and what a third one does."""

from __future__ import annotations

import pytest

from kvmmu.hw.bits import DF_VECTOR, PF_VECTOR
from kvmmu.kvm import run, sregs
from kvmmu.kvm.exception import queue_exception
from kvmmu.kvm.mmu.pagefault import inject_page_fault
from kvmmu.kvm.mmu.walker import walk_addr
from kvmmu.kvm.outcome import RUN_SHUTDOWN
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.world import World

DE, DB, UD, TS, NP, SS, GP = 0, 1, 6, 10, 11, 12, 13
PF, DF = PF_VECTOR, DF_VECTOR


def vcpu_that_delivers(vector: int) -> Vcpu:
    """A vCPU whose last exit interrupted the delivery of ``vector``."""
    world = World()
    world.add_slot(0, 0, 1 << 20)
    vcpu = world.create_vcpu()
    vcpu.exception_pending = vcpu.exception_reinjected = True
    vcpu.exception_vector = vector
    return vcpu


# The manual's table, "Conditions for Generating a Double Fault", written out.
CONTRIBUTORY = (DE, TS, NP, SS, GP)
BENIGN = (DB, UD)


@pytest.mark.parametrize("second", [*CONTRIBUTORY, *BENIGN, PF])
@pytest.mark.parametrize("first", [*CONTRIBUTORY, *BENIGN, PF])
def test_two_exceptions_make_what_the_manual_says(first: int, second: int) -> None:
    if first in CONTRIBUTORY:
        is_double = second in CONTRIBUTORY
    else:
        is_double = first == PF and (second in CONTRIBUTORY or second == PF)
    vcpu = vcpu_that_delivers(first)
    assert queue_exception(vcpu, second, False, 0) == (DF if is_double else second)
    assert vcpu.exception_vector == (DF if is_double else second)
    assert vcpu.exception_has_error is is_double
    assert vcpu.exception_pending
    assert not vcpu.exception_reinjected


def test_a_page_fault_while_one_is_delivered_leaves_cr2() -> None:
    vcpu = vcpu_that_delivers(PF)
    vcpu.cr2 = 0x1234
    # All of the guest's tables are empty.
    sregs.set_sregs(vcpu, 0x8001_0011, 0x10000, 0x20, 0xD00)
    assert not walk_addr(vcpu, vcpu.walk_mmu, vcpu.guest_walk, 0x5000, 2)
    inject_page_fault(vcpu, vcpu.guest_walk)
    assert (vcpu.exception_vector, vcpu.exception_error_code, vcpu.cr2) == (DF, 0, 0x1234)
    assert vcpu.stat.pf_guest == 1


def test_any_exception_while_a_double_fault_is_delivered_ends_the_guest() -> None:
    vcpu = vcpu_that_delivers(DF)
    queue_exception(vcpu, UD, False, 0)
    assert run.enter(vcpu) == RUN_SHUTDOWN


def test_a_first_exception_is_queued_as_it_is() -> None:
    vcpu = vcpu_that_delivers(PF)
    vcpu.exception_pending = vcpu.exception_reinjected = False
    assert queue_exception(vcpu, GP, True, 7) == GP
    assert (vcpu.exception_has_error, vcpu.exception_error_code) == (True, 7)
