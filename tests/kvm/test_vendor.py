# SPDX-License-Identifier: GPL-2.0-only
"""What kvm asks of its hardware through the vendor, when, and with whose context in hand."""

from __future__ import annotations

import pytest

from kvmmu import KvmBug, Params, World
from kvmmu.host.frames import FrameAllocator
from kvmmu.host.mm import Mm
from kvmmu.hw.memory import PhysicalMemory
from kvmmu.kvm import run
from kvmmu.kvm.bits import KVM_REQ_LOAD_MMU_PGD, KVM_REQ_TLB_FLUSH, KVM_REQ_TLB_FLUSH_CURRENT, KVM_REQ_TLB_FLUSH_GUEST
from kvmmu.kvm.mmu import resync, roots
from kvmmu.kvm.requests import make_request
from kvmmu.kvm.svm import Svm
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.kvm.vendor import Vendor
from kvmmu.kvm.vm import Vm
from kvmmu.sync import Gate


class Recorder(Vendor):
    """A vendor written in Python that only remembers; the root that was current is part of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def load_mmu_pgd(self, vcpu: Vcpu) -> int:
        self.calls.append(("load", vcpu.vcpu_id, vcpu.mmu.root_hpa))
        return 0

    def flush_tlb_current(self, vcpu: Vcpu) -> int:
        self.calls.append(("flush", vcpu.vcpu_id, vcpu.mmu.root_hpa))
        return 0

    def flush_tlb_gva(self, vcpu: Vcpu, gva: int) -> int:
        self.calls.append(("gva", vcpu.vcpu_id, gva))
        return 0


def machine(npt: bool) -> tuple[Recorder, Vcpu]:
    """The second vCPU of a VM on other hardware, after reset, with a root."""
    vendor = Recorder()
    vm = Vm(Mm(FrameAllocator(PhysicalMemory(2048, Gate()))), Params(npt=npt, nr_mmu_pages=64), vendor)
    cpus = [World(Params(), nr_frames=64).create_vcpu().cpu for _ in range(2)]
    vcpu = [run.create_vcpu(vm, cpu) for cpu in cpus][1]
    assert roots.load(vcpu) == 0
    return vendor, vcpu


@pytest.mark.parametrize("npt", [False, True])
def test_a_new_root_is_loaded_and_what_the_tlb_holds_of_it_flushed(npt: bool) -> None:
    vendor, vcpu = machine(npt)
    root = vcpu.mmu.root_hpa
    assert root != 2**64 - 1
    assert vendor.calls == [("load", 1, root), ("flush", 1, root)]


@pytest.mark.parametrize(
    ("requests", "names"),
    [
        ([KVM_REQ_LOAD_MMU_PGD], ["load"]),
        ([KVM_REQ_TLB_FLUSH], ["flush"]),
        ([KVM_REQ_TLB_FLUSH_CURRENT], ["flush"]),
        ([KVM_REQ_TLB_FLUSH_GUEST], ["flush"]),
        # The larger flush does for the smaller one; a load comes before both.
        ([KVM_REQ_TLB_FLUSH, KVM_REQ_TLB_FLUSH_CURRENT], ["flush"]),
        ([KVM_REQ_TLB_FLUSH, KVM_REQ_LOAD_MMU_PGD], ["load", "flush"]),
    ],
)
@pytest.mark.parametrize("npt", [False, True])
def test_a_request_ends_at_the_vendor(npt: bool, requests: list[int], names: list[str]) -> None:
    vendor, vcpu = machine(npt)
    vendor.calls.clear()
    for request in requests:
        make_request(vcpu, request)
    run.serve_requests(vcpu)
    assert vendor.calls == [(name, 1, vcpu.mmu.root_hpa) for name in names]
    assert vcpu.requests == 0


def test_one_address_is_flushed_unless_it_has_no_translation() -> None:
    vendor, vcpu = machine(npt=False)
    vendor.calls.clear()
    resync.invalidate_addr(vcpu, 0x1234_5678, 1)
    resync.invalidate_addr(vcpu, 1 << 62, 1)
    assert vendor.calls == [("gva", 1, 0x1234_5678)]


def test_a_vendor_answers_all_calls() -> None:
    vendor, (_, vcpu) = Vendor(), machine(npt=False)
    for call in (vendor.load_mmu_pgd, vendor.flush_tlb_current):
        with pytest.raises(KvmBug, match=r"no vendor .* <Vcpu 1 "):
            call(vcpu)
    with pytest.raises(KvmBug, match="no vendor flushes 0x5000 of <Vcpu 1 "):
        vendor.flush_tlb_gva(vcpu, 0x5000)


@pytest.mark.parametrize("npt", [False, True])
def test_a_new_vm_runs_on_svm(npt: bool) -> None:
    assert isinstance(World(Params(npt=npt), nr_frames=64).vm.vendor, Svm)
