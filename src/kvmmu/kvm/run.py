# SPDX-License-Identifier: GPL-2.0-only
"""Running a vCPU: serve its requests, enter, let the CPU make an access, handle the exit, until the access is done.

Reference: "TLB flush rules, vCPU modes, requests".
"""

from __future__ import annotations

from ..addr import Gva
from ..errors import KvmBug
from ..host.mm import Mm
from ..hw.bits import HW_HIT, HW_PAGE_FAULT
from ..hw.cpu import Cpu
from ..page_types import INVALID_PAGE
from ..params import Params
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
)
from .kvmtrace import trace_inj_exception, trace_kvm_page_fault
from .mmu.pagefault import page_fault
from .mmu.resync import sync_roots
from .mmu.roots import create_mmu, destroy_mmu, free_obsolete_roots, load, sync_prev_roots
from .mmu.setup import init_mmu
from .mmu.verdict import CAUSES, LIMITS
from .mmu.walker import GuestWalk
from .mode import enter_guest_mode, is_kicked, leave_guest_mode, vcpu_load, vcpu_put
from .outcome import RUN_EMULATE, RUN_ERROR, RUN_FAULT, RUN_HIT, RUN_SHUTDOWN
from .requests import check_request, has_requests, must_be_known
from .svm import Svm
from .vcpu import Vcpu
from .vm import Vm


def create_vm(mm: Mm, params: Params) -> Vm:
    """A new VM of the process ``mm``, without slots and vCPUs, on the hardware that ``params`` describe."""
    return Vm(mm, params, Svm())


def create_vcpu(vm: Vm, cpu: Cpu) -> Vcpu:
    """A new vCPU of ``vm``, run by ``cpu``, in the state after reset: paging off, no root yet."""
    vcpu = Vcpu(vm, len(vm.vcpus), cpu, GuestWalk())
    create_mmu(vcpu)
    init_mmu(vcpu)
    vm.add_vcpu(vcpu)
    return vcpu


def destroy_vcpu(vcpu: Vcpu) -> None:
    """Free what the MMU of ``vcpu`` holds; the vCPU leaves its VM."""
    destroy_mmu(vcpu)
    vcpu.vm.remove_vcpu(vcpu)


def flush_tlb_guest(vcpu: Vcpu) -> int:
    """What the guest flushed is gone from the TLB, and from shadow tables that stand in for it."""
    vcpu.stat.tlb_flush += 1
    if not vcpu.vm.tdp_enabled:
        sync_roots(vcpu)
        sync_prev_roots(vcpu)
    return vcpu.vm.vendor.flush_tlb_current(vcpu)


def serve_requests(vcpu: Vcpu) -> int:
    """In the kernel's order: sync before the flush, which throws away what stale sptes allowed."""
    if check_request(vcpu, KVM_REQ_MMU_FREE_OBSOLETE_ROOTS):
        free_obsolete_roots(vcpu)
    if check_request(vcpu, KVM_REQ_MMU_SYNC):
        sync_roots(vcpu)
    if check_request(vcpu, KVM_REQ_LOAD_MMU_PGD) and vcpu.mmu.root_hpa != INVALID_PAGE:
        vcpu.vm.vendor.load_mmu_pgd(vcpu)
    if check_request(vcpu, KVM_REQ_TLB_FLUSH):
        vcpu.stat.tlb_flush += 1
        vcpu.vm.vendor.flush_tlb_current(vcpu)
        check_request(vcpu, KVM_REQ_TLB_FLUSH_CURRENT)
    if check_request(vcpu, KVM_REQ_TLB_FLUSH_CURRENT):
        vcpu.stat.tlb_flush += 1
        vcpu.vm.vendor.flush_tlb_current(vcpu)
    if check_request(vcpu, KVM_REQ_TLB_FLUSH_GUEST):
        flush_tlb_guest(vcpu)
    return 0


def enter(vcpu: Vcpu) -> int:
    """Everything between an exit and the next entry: requests, the pending exception, a root.

    Return 0: the guest may run. RUN_ERROR: KVM_RUN ends with ``vcpu.run_errno``. RUN_SHUTDOWN: the guest is gone after
    a triple fault. Reads the memslots inside ``srcu``.
    """
    vm = vcpu.vm
    leave_guest_mode(vcpu)
    status = 0
    is_announced = False
    while status == 0:
        vcpu_load(vcpu)
        try:
            status = prepare_entry(vcpu, is_announced)
            if status == 0:
                vcpu.has_run = True
                enter_guest_mode(vcpu)
        finally:
            vcpu_put(vcpu)
        is_announced = True
        if status == 0:
            # Whoever made a request, or a kick, after it was looked for sees the mode, and is seen here.
            vm.gate.smp_mb()
            if not must_exit(vcpu):
                return 0
            leave_guest_mode(vcpu)
    return status


def prepare_entry(vcpu: Vcpu, is_announced: bool) -> int:
    """One round of :func:`enter`: serve requests until none is left, load a root. Return as it does."""
    is_shutdown = check_request(vcpu, KVM_REQ_TRIPLE_FAULT)
    serve_requests(vcpu)
    if is_shutdown:
        return RUN_SHUTDOWN
    if vcpu.exception_pending and vcpu.vm.trace.on and not is_announced:
        trace_inj_exception(
            vcpu.vm.trace,
            vcpu.exception_vector,
            vcpu.exception_has_error,
            vcpu.exception_error_code,
            vcpu.exception_reinjected,
        )
    while has_requests(vcpu) or vcpu.mmu.root_hpa == INVALID_PAGE:
        must_be_known(vcpu)
        if vcpu.mmu.root_hpa == INVALID_PAGE:
            vcpu.run_errno = load(vcpu)
            if vcpu.run_errno < 0:
                return RUN_ERROR
        serve_requests(vcpu)
    return 0


def resume(vcpu: Vcpu) -> int:
    """Go on running the guest after an exit that was handled, or begin; return as :func:`enter`."""
    if has_requests(vcpu) or vcpu.mmu.root_hpa == INVALID_PAGE:
        return enter(vcpu)
    enter_guest_mode(vcpu)
    vcpu.gate.smp_mb()
    return enter(vcpu) if must_exit(vcpu) else 0


def must_exit(vcpu: Vcpu) -> bool:
    """Whether a vCPU that has just entered the guest must not run there (``kvm_vcpu_exit_request``)."""
    return is_kicked(vcpu) or has_requests(vcpu)


def leave(vcpu: Vcpu) -> int:
    """An exit: the CPU is back in kvm, where remote flushes do not interrupt it."""
    leave_guest_mode(vcpu)
    vcpu.stat.exits += 1
    return 0


def exit_page_fault(vcpu: Vcpu, gva: Gva, status: int) -> int:
    """Handle the exit that ``cpu.access()`` ended with (``status``, an HW_* word); return as the next."""
    cpu = vcpu.cpu
    if status == HW_PAGE_FAULT:
        return handle_page_fault(vcpu, gva, cpu.error_code)
    return handle_page_fault(vcpu, cpu.fault_gpa, cpu.fault_code)


def handle_page_fault(vcpu: Vcpu, address: int, code: int) -> int:
    """Handle a page-fault exit: ``address`` is a gva, or a gpa under nested paging, ``code`` the exit's error code.

    Return 0, or a negative errno that ends KVM_RUN. After 0 ``vcpu.emultype`` says whether the access must be emulated.
    """
    leave(vcpu)
    event = None
    vcpu.exit_address = address
    vcpu_load(vcpu)
    try:
        if vcpu.vm.trace.on:
            event = trace_kvm_page_fault(vcpu.vm.trace, vcpu.vcpu_id, vcpu.rip, address, code)
        ret = page_fault(vcpu, address, code)
    finally:
        vcpu_put(vcpu)
    vcpu.fault_counts[vcpu.fault_cause] += 1
    if event is not None:
        event.cause = CAUSES[vcpu.fault_cause]
        event.limit = LIMITS[vcpu.fault_limit]
    return ret


def access(vcpu: Vcpu, gva: Gva, kind: int) -> int:
    """Let the guest make an access of ``kind`` (ACCESS_* bits of ``hw.bits``) to the byte at ``gva``.

    Return RUN_HIT, RUN_FAULT, RUN_EMULATE, RUN_ERROR (``vcpu.run_errno`` is negative) or RUN_SHUTDOWN.
    :class:`KvmBug` if the same access exits again and again.
    """
    # With the gate closed nobody else can have changed mode or requests meanwhile: a look is enough.
    if vcpu.gate.armed or vcpu.requests or vcpu.mode != IN_GUEST_MODE or vcpu.mmu.root_hpa == INVALID_PAGE:
        ret = resume(vcpu)
        if ret:
            return ret
    status = vcpu.cpu.access(gva, kind)
    if status == HW_HIT:
        return RUN_HIT
    return access_missed(vcpu, gva, kind, status)


def access_missed(vcpu: Vcpu, gva: Gva, kind: int, status: int) -> int:
    """Go on with an access that ended with ``status``: exit, enter, try again, until it is decided."""
    tries = 0
    while True:
        # Under nested paging a #PF is the guest's own affair: the CPU delivers it without an exit.
        if status == HW_PAGE_FAULT and vcpu.vm.tdp_enabled:
            vcpu.exception_error_code = vcpu.cpu.error_code
            vcpu.cr2 = gva
            return RUN_FAULT
        vcpu.run_errno = exit_page_fault(vcpu, gva, status)
        if vcpu.run_errno < 0:
            return RUN_ERROR
        if vcpu.emultype:
            return RUN_EMULATE
        ret = enter(vcpu)
        if ret:
            return ret
        if vcpu.exception_pending:
            vcpu.exception_pending = False
            return RUN_FAULT
        status = vcpu.cpu.access(gva, kind)
        if status == HW_HIT:
            return RUN_HIT
        tries += 1
        if tries > MAX_TRIES:
            raise KvmBug(f"access {kind:#x} at {gva:#x} exits forever: {vcpu!r}")
