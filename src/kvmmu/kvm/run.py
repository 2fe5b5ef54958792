# SPDX-License-Identifier: GPL-2.0-only
"""Running a vCPU: serve its requests, enter, let the CPU make an access, handle the exit, until the access is done.

Reference: "TLB flush rules, vCPU modes, requests".
"""

from __future__ import annotations

from ..addr import Gva
from ..errors import KvmBug
from ..hw.bits import HW_HIT, HW_PAGE_FAULT
from ..hw.cpu import Cpu
from ..page_types import INVALID_PAGE
from .bits import (
    IN_GUEST_MODE,
    KVM_REQ_LOAD_MMU_PGD,
    KVM_REQ_MMU_FREE_OBSOLETE_ROOTS,
    KVM_REQ_MMU_SYNC,
    KVM_REQ_TLB_FLUSH,
    KVM_REQ_TLB_FLUSH_CURRENT,
    KVM_REQ_TLB_FLUSH_GUEST,
    KVM_REQ_TRIPLE_FAULT,
    MAX_TRIES,
    NO_VCPU,
    OUTSIDE_GUEST_MODE,
)
from .kvmtrace import trace_inj_exception, trace_kvm_page_fault
from .mmu.pagefault import page_fault
from .mmu.resync import sync_roots
from .mmu.roots import create_mmu, destroy_mmu, free_obsolete_roots, load, sync_prev_roots
from .mmu.setup import init_mmu
from .mmu.verdict import RESUME
from .mmu.walker import GuestWalk
from .outcome import RUN_EMULATE, RUN_ERROR, RUN_FAULT, RUN_HIT, RUN_SHUTDOWN
from .requests import check_request
from .svm import flush_tlb_current, load_mmu_pgd
from .vcpu import Vcpu
from .vm import Vm


def create_vcpu(vm: Vm, cpu: Cpu) -> Vcpu:
    """A new vCPU of ``vm``, run by ``cpu``, in the state after reset: paging off, no root yet."""
    vcpu = Vcpu(vm, len(vm.vcpus), cpu, GuestWalk())
    create_mmu(vcpu)
    init_mmu(vcpu)
    vm.vcpus.append(vcpu)
    return vcpu


def destroy_vcpu(vcpu: Vcpu) -> None:
    """Free what the MMU of ``vcpu`` holds; the vCPU leaves its VM."""
    destroy_mmu(vcpu)
    vcpu.vm.vcpus.remove(vcpu)


def flush_tlb_guest(vcpu: Vcpu) -> int:
    """What the guest flushed is gone from the TLB, and from shadow tables that stand in for it."""
    vcpu.stat.tlb_flush += 1
    if not vcpu.vm.tdp_enabled:
        sync_roots(vcpu)
        sync_prev_roots(vcpu)
    return flush_tlb_current(vcpu)


def serve_requests(vcpu: Vcpu) -> int:
    """In the kernel's order: sync before the flush, which throws away what stale sptes allowed."""
    if check_request(vcpu, KVM_REQ_MMU_FREE_OBSOLETE_ROOTS):
        free_obsolete_roots(vcpu)
    if check_request(vcpu, KVM_REQ_MMU_SYNC):
        sync_roots(vcpu)
    if check_request(vcpu, KVM_REQ_LOAD_MMU_PGD) and vcpu.mmu.root_hpa != INVALID_PAGE:
        load_mmu_pgd(vcpu)
    if check_request(vcpu, KVM_REQ_TLB_FLUSH):
        vcpu.stat.tlb_flush += 1
        flush_tlb_current(vcpu)
        check_request(vcpu, KVM_REQ_TLB_FLUSH_CURRENT)
    if check_request(vcpu, KVM_REQ_TLB_FLUSH_CURRENT):
        vcpu.stat.tlb_flush += 1
        flush_tlb_current(vcpu)
    if check_request(vcpu, KVM_REQ_TLB_FLUSH_GUEST):
        flush_tlb_guest(vcpu)
    return 0


def enter(vcpu: Vcpu) -> int:
    """Everything between an exit and the next entry: requests, the pending exception, a root.

    Return 0; a negative errno that ends KVM_RUN; or RUN_SHUTDOWN: the guest is gone after a triple fault.
    """
    vcpu.vm.trace.vcpu_id = vcpu.vcpu_id
    try:
        return prepare_entry(vcpu)
    finally:
        vcpu.vm.trace.vcpu_id = NO_VCPU


def prepare_entry(vcpu: Vcpu) -> int:
    """:func:`enter`, in the context of ``vcpu``."""
    vcpu.mode = OUTSIDE_GUEST_MODE
    is_shutdown = check_request(vcpu, KVM_REQ_TRIPLE_FAULT)
    serve_requests(vcpu)
    if is_shutdown:
        return RUN_SHUTDOWN
    if vcpu.exception_pending and vcpu.vm.trace.on:
        trace_inj_exception(
            vcpu.vm.trace,
            vcpu.exception_vector,
            vcpu.exception_has_error,
            vcpu.exception_error_code,
            vcpu.exception_reinjected,
        )
    while vcpu.requests or vcpu.mmu.root_hpa == INVALID_PAGE:
        if vcpu.mmu.root_hpa == INVALID_PAGE:
            ret = load(vcpu)
            if ret < 0:
                return ret
        serve_requests(vcpu)
    vcpu.mode = IN_GUEST_MODE
    return 0


def leave(vcpu: Vcpu) -> int:
    """An exit: the CPU is back in kvm, where remote flushes do not interrupt it.

    From here to the next entry, or until the work is done, kvm works in the context of ``vcpu``.
    """
    vcpu.vm.trace.vcpu_id = vcpu.vcpu_id
    vcpu.mode = OUTSIDE_GUEST_MODE
    vcpu.stat.exits += 1
    return 0


def exit_page_fault(vcpu: Vcpu, gva: Gva, status: int) -> int:
    """Handle the exit that ``cpu.access()`` ended with (``status``): RESUME, EMULTYPE_* bits, or a negative errno."""
    cpu = vcpu.cpu
    if status == HW_PAGE_FAULT:
        return handle_page_fault(vcpu, gva, cpu.error_code)
    return handle_page_fault(vcpu, cpu.fault_gpa, cpu.fault_code)


def handle_page_fault(vcpu: Vcpu, address: int, code: int) -> int:
    """Handle a page-fault exit: ``address`` is a gva, or a gpa under nested paging, ``code`` the exit's error code.

    Return RESUME, EMULTYPE_* bits, or a negative errno, also kept in ``vcpu.exit_action``.
    """
    leave(vcpu)
    if vcpu.vm.trace.on:
        trace_kvm_page_fault(vcpu.vm.trace, vcpu.vcpu_id, vcpu.rip, address, code)
    vcpu.exit_address = address
    vcpu.exit_action = page_fault(vcpu, address, code)
    vcpu.fault_counts[vcpu.fault_cause] += 1
    return vcpu.exit_action


def access(vcpu: Vcpu, gva: Gva, kind: int) -> int:
    """Let the guest make an access of ``kind`` (ACCESS_* bits of ``hw.bits``) to the byte at ``gva``.

    Return RUN_HIT, RUN_FAULT, RUN_EMULATE or RUN_ERROR (``vcpu.exit_action`` says which: an errno, or RUN_SHUTDOWN).
    :class:`KvmBug` if the same access exits again and again.
    """
    cpu = vcpu.cpu
    if vcpu.requests or vcpu.mmu.root_hpa == INVALID_PAGE:
        ret = enter(vcpu)
        if ret:
            vcpu.exit_action = ret
            return RUN_ERROR
    vcpu.mode = IN_GUEST_MODE
    status = cpu.access(gva, kind)
    if status == HW_HIT:
        return RUN_HIT
    try:
        return access_missed(vcpu, gva, kind, status)
    finally:
        vcpu.vm.trace.vcpu_id = NO_VCPU


def access_missed(vcpu: Vcpu, gva: Gva, kind: int, status: int) -> int:
    """Go on with an access that ended with ``status``: exit, enter, try again, until it is decided."""
    tries = 0
    while True:
        # Under nested paging a #PF is the guest's own affair: the CPU delivers it without an exit.
        if status == HW_PAGE_FAULT and vcpu.vm.tdp_enabled:
            vcpu.exception_error_code = vcpu.cpu.error_code
            vcpu.cr2 = gva
            return RUN_FAULT
        ret = exit_page_fault(vcpu, gva, status)
        if ret < 0:
            return RUN_ERROR
        if ret != RESUME:
            return RUN_EMULATE
        ret = enter(vcpu)
        if ret:
            vcpu.exit_action = ret
            return RUN_ERROR
        if vcpu.exception_pending:
            vcpu.exception_pending = False
            return RUN_FAULT
        status = vcpu.cpu.access(gva, kind)
        if status == HW_HIT:
            return RUN_HIT
        tries += 1
        if tries > MAX_TRIES:
            raise KvmBug(f"access {kind:#x} at {gva:#x} exits forever: {vcpu!r}")
