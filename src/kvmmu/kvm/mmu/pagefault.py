# SPDX-License-Identifier: GPL-2.0-only
"""The path of one page fault, top to bottom.

``page_fault()`` is the entry (``kvm_mmu_page_fault``): MMIO first, then the op of the MMU's mode
(``paging_page_fault()`` for a guest with page tables under shadow paging, ``direct_page_fault()`` otherwise), then what
the verdict means for the guest. The two ops differ in what comes before the lock; ``map_fault()`` is what both do under
it. Each stage is a call and an early return. Reference: "Page-fault pipeline", "MMIO" handle_mmio_page_fault.

Numbers: a verdict is RET_PF_* or, if negative, an errno for userspace. What must be emulated is no number of that kind
but ``vcpu.emultype``, EMULTYPE_* bits, 0 for nothing.
"""

from __future__ import annotations

from errno import ENOMEM

from ...addr import Address, gpa_to_gfn
from ...errors import KvmBug
from ...hw.bits import (
    PF_VECTOR,
    PFERR_GUEST_PAGE,
    PFERR_PRESENT,
    PFERR_RSVD,
    PFERR_WRITE,
)
from ...page_types import INVALID_PAGE
from ..bits import KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS
from ..exception import queue_exception
from ..vcpu import Vcpu
from ..vm import Vm
from .bits import (
    ACC_ALL,
    ACC_EXEC,
    ACC_USER,
    ACC_WRITE,
    FAULT_OP_NONPAGING,
    FAULT_OP_PAGING,
    KVM_MMU_ROOT_CURRENT,
    MIN_FREE_FRAMES,
    MMIO_SPTE_GEN_MASK,
)
from .context import is_rsvd_spte
from .direct import direct_map
from .fastpf import fast_page_fault
from .fault import PageFault, cause_of, limit_of, make_fault
from .faultin import faultin, is_stale, release_pfn
from .gptewrite import unprotect_and_retry
from .leaf import Leaf, make_leaf
from .mmio import cache_record, generation, match_gpa, match_gva
from .mmutrace import trace_check_mmio_spte, trace_handle_mmio_page_fault
from .resync import invalidate_addr
from .role import cpu_role_cr0_wp, cpu_role_smep, role_direct
from .shadow import fetch
from .shadowwalk import (
    begin_lockless_walk,
    clear_flood_counts,
    end_lockless_walk,
    is_dummy_root,
    walk_level,
    walk_next,
    walk_sptep,
    walk_start,
)
from .spte import describe_spte, is_mmio, is_shadow_present, mmio_access, mmio_generation, mmio_gfn
from .tdpmap import tdp_map
from .track import is_write_tracked
from .verdict import (
    CAUSE_GUEST,
    CAUSE_MMIO_CACHED,
    CAUSE_RETRY,
    EMULTYPE_ALLOW_RETRY_PF,
    EMULTYPE_PF,
    EMULTYPE_WRITE_PF_TO_SP,
    LIMIT_NONE,
    LIMIT_UNPAGED,
    RET_PF_CONTINUE,
    RET_PF_EMULATE,
    RET_PF_FIXED,
    RET_PF_INVALID,
    RET_PF_RETRY,
    RET_PF_SPURIOUS,
    RET_PF_WRITE_PROTECTED,
)
from .walker import GuestWalk, walk_addr
from .zap import make_pages_available

_PFERR_PT_WRITE = PFERR_GUEST_PAGE | PFERR_WRITE | PFERR_PRESENT


def page_fault(vcpu: Vcpu, addr: Address, error_code: int) -> int:
    """Handle one fault (``kvm_mmu_page_fault``): ``addr`` is a gva, or a gpa under nested paging.

    Return 0, or a negative errno that ends KVM_RUN. After 0 ``vcpu.emultype`` says what kvm must do: nothing, let the
    guest go on; or EMULTYPE_* bits, emulate the access (MMIO, or a write to a mirrored table). ``vcpu.fault_cause`` is
    what the fault was about, ``vcpu.fault_limit`` why it maps no larger page. Takes ``mmu_lock``.
    """
    vcpu.emultype = 0
    vcpu.fault_cause = CAUSE_RETRY
    vcpu.fault_limit = LIMIT_NONE
    if vcpu.mmu.root_hpa == INVALID_PAGE:
        return 0
    verdict = RET_PF_INVALID
    if error_code & PFERR_RSVD:
        verdict = handle_mmio_page_fault(vcpu, addr, role_direct(vcpu.mmu.root_role))
        if verdict == RET_PF_EMULATE:
            vcpu.fault_cause = CAUSE_MMIO_CACHED
            vcpu.emultype = EMULTYPE_PF
            return 0
    if verdict == RET_PF_INVALID:
        verdict = do_page_fault(vcpu, addr, error_code)
    if verdict < 0:
        return verdict
    if verdict == RET_PF_WRITE_PROTECTED:
        verdict = handle_write_protected(vcpu, addr, error_code)
    elif verdict == RET_PF_EMULATE:
        vcpu.emultype |= EMULTYPE_PF
    count_verdict(vcpu, verdict)
    if verdict != RET_PF_EMULATE:
        vcpu.emultype = 0
    return 0


def do_page_fault(vcpu: Vcpu, addr: Address, error_code: int) -> int:
    """The op of the MMU's mode, with its cause noted; a verdict or a negative errno."""
    vcpu.stat.pf_taken += 1
    fault = make_fault(addr, error_code)
    if vcpu.mmu.fault_op == FAULT_OP_PAGING:
        verdict = paging_page_fault(vcpu, fault)
    else:
        verdict = direct_page_fault(vcpu, fault)
    if verdict == RET_PF_INVALID:
        raise KvmBug(f"the slow path cannot tell either: {fault!r}")
    vcpu.fault_cause = cause_of(fault, verdict)
    vcpu.fault_limit = limit_of(fault) if vcpu.vm.trace.on else fault.limit
    if fault.write_fault_to_shadow_pgtable:
        vcpu.emultype |= EMULTYPE_WRITE_PF_TO_SP
    return verdict


def paging_page_fault(vcpu: Vcpu, fault: PageFault) -> int:
    """Shadow paging, guest paging on: walk the guest's tables, then mirror what they say."""
    gw = vcpu.guest_walk
    if not walk_addr(vcpu, vcpu.mmu, gw, fault.addr, fault.error_code & ~PFERR_RSVD):
        fault.cause = CAUSE_GUEST
        if not fault.prefetch:
            inject_page_fault(vcpu, gw)
        return RET_PF_RETRY
    fault.gfn = gw.gfn
    fault.max_level = gw.level
    fault.slot = vcpu.gfn_to_memslot(fault.gfn)
    if is_tracked_write(vcpu, fault):
        clear_flood_counts(vcpu, fault.addr)
        return RET_PF_WRITE_PROTECTED
    verdict = topup_caches(vcpu.vm)
    if verdict:
        return verdict
    verdict = faultin(vcpu, fault, gw.pte_access)
    if verdict != RET_PF_CONTINUE:
        return verdict
    leaf = make_leaf()
    leaf.access = effective_access(vcpu, fault, gw)
    return map_fault(vcpu, fault, gw, leaf)


def direct_page_fault(vcpu: Vcpu, fault: PageFault) -> int:
    """No guest tables in the way: nested paging, by either MMU, or a guest without paging."""
    fault.gfn = gpa_to_gfn(fault.addr)
    fault.slot = vcpu.gfn_to_memslot(fault.gfn)
    if vcpu.mmu.fault_op == FAULT_OP_NONPAGING:
        fault.max_level = 2
        fault.limit = LIMIT_UNPAGED
    if is_dummy_root(vcpu.vm, vcpu.mmu.root_hpa):
        return RET_PF_RETRY
    if is_tracked_write(vcpu, fault):
        return RET_PF_WRITE_PROTECTED
    verdict = fast_page_fault(vcpu, fault)
    if verdict != RET_PF_INVALID:
        return verdict
    verdict = topup_caches(vcpu.vm)
    if verdict:
        return verdict
    verdict = faultin(vcpu, fault, ACC_ALL)
    if verdict != RET_PF_CONTINUE:
        return verdict
    if vcpu.vm.policy.tdp_mmu:
        return map_fault_shared(vcpu, fault)
    return map_fault(vcpu, fault, None, make_leaf())


def map_fault_shared(vcpu: Vcpu, fault: PageFault) -> int:
    """:func:`map_fault` of the TDP MMU: takes ``mmu_lock`` shared, and has no limit of pages."""
    vm = vcpu.vm
    pfn = fault.pfn
    vm.mmu_lock.read_lock()
    try:
        verdict = RET_PF_RETRY
        if not is_stale(vcpu, fault):
            verdict = tdp_map(vcpu, fault, make_leaf())
    finally:
        vm.mmu_lock.read_unlock()
        release_pfn(vm, pfn)
    return verdict


def map_fault(vcpu: Vcpu, fault: PageFault, gw: GuestWalk | None, leaf: Leaf) -> int:
    """Map the page that ``faultin()`` found, as ``gw`` says (None: a direct MMU), and drop its reference.

    Takes ``mmu_lock`` exclusively. Reclaim comes before the test for staleness: it may zap the root itself.
    """
    vm = vcpu.vm
    pfn = fault.pfn
    vm.mmu_lock.write_lock()
    try:
        verdict = make_pages_available(vm)
        if verdict == 0:
            verdict = RET_PF_RETRY
            if not is_stale(vcpu, fault):
                verdict = direct_map(vcpu, fault, leaf) if gw is None else fetch(vcpu, fault, gw, leaf)
    finally:
        vm.mmu_lock.write_unlock()
        release_pfn(vm, pfn)
    return verdict


def topup_caches(vm: Vm) -> int:
    """Everything that the fault may need under the lock must be at hand before it is taken: 0, or -ENOMEM."""
    return 0 if vm.frames.nr_free >= MIN_FREE_FRAMES else -ENOMEM


def inject_page_fault(vcpu: Vcpu, gw: GuestWalk) -> int:
    """Queue the ``#PF`` that walk ``gw`` ended with; first forget a stale translation that would repeat it forever."""
    if gw.error_code & PFERR_PRESENT and not gw.error_code & PFERR_RSVD:
        invalidate_addr(vcpu, gw.fault_address, KVM_MMU_ROOT_CURRENT)
    vcpu.stat.pf_guest += 1
    if queue_exception(vcpu, PF_VECTOR, True, gw.error_code) == PF_VECTOR:
        vcpu.exception_address = gw.fault_address
        vcpu.cr2 = gw.fault_address
    return 0


def is_tracked_write(vcpu: Vcpu, fault: PageFault) -> bool:
    """A write to a present, write-tracked page: it must not be let through."""
    if fault.rsvd or not fault.present or not fault.write:
        return False
    return is_write_tracked(vcpu.vm, fault.slot, fault.gfn)


def effective_access(vcpu: Vcpu, fault: PageFault, gw: GuestWalk) -> int:
    """The guest's rights; with CR0.WP clear, a supervisor's write makes a read-only page kernel-only and writable."""
    mmu = vcpu.mmu
    access = gw.pte_access
    if fault.write and not access & ACC_WRITE and not fault.user and fault.slot is not None:
        if not cpu_role_cr0_wp(mmu.cpu_role):
            access = (access | ACC_WRITE) & ~ACC_USER
            if cpu_role_smep(mmu.cpu_role):
                access &= ~ACC_EXEC
    return access


def walk_for_mmio(vcpu: Vcpu, addr: Address) -> int:
    """The last spte on the way to addr, found without the lock; 0: no walk. Reserved bits on the way are a bug."""
    spte = 0
    begin_lockless_walk(vcpu)
    try:
        step = walk_start(vcpu, vcpu.mmu.root_hpa, addr)
        while step:
            spte = vcpu.vm.memory.read_once(walk_sptep(step, addr))
            if is_shadow_present(spte) and is_rsvd_spte(vcpu.mmu, spte, walk_level(step)):
                raise KvmBug(f"reserved bits in {spte:#x}: {describe_spte(spte, vcpu.vm.fmt, walk_level(step))}")
            step = walk_next(step, spte)
    finally:
        end_lockless_walk(vcpu)
    return spte


def handle_mmio_page_fault(vcpu: Vcpu, addr: Address, direct: bool) -> int:
    """A reserved-bit fault: EMULATE if record or spte say that addr is MMIO; INVALID: the slow path must look."""
    vm = vcpu.vm
    if match_gpa(vcpu, addr) if direct else match_gva(vcpu, addr):
        return RET_PF_EMULATE
    spte = walk_for_mmio(vcpu, addr)
    if not is_mmio(vm.fmt, spte):
        return RET_PF_RETRY
    gen = generation(vcpu)
    if gen & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS:
        return RET_PF_INVALID
    if vm.trace.on:
        trace_check_mmio_spte(vm.trace, gen, mmio_generation(spte), spte)
    if mmio_generation(spte) != gen & MMIO_SPTE_GEN_MASK:
        return RET_PF_INVALID
    if direct:
        addr = 0
    gfn = mmio_gfn(vm.fmt, spte)
    access = mmio_access(vm.fmt, spte)
    if vm.trace.on:
        trace_handle_mmio_page_fault(vm.trace, addr, gfn, access)
    cache_record(vcpu, addr, gfn, access)
    return RET_PF_EMULATE


def count_verdict(vcpu: Vcpu, verdict: int) -> int:
    """Count ``verdict`` in pf_fixed, pf_emulate or pf_spurious."""
    if verdict == RET_PF_FIXED:
        vcpu.stat.pf_fixed += 1
    elif verdict == RET_PF_EMULATE:
        vcpu.stat.pf_emulate += 1
    elif verdict == RET_PF_SPURIOUS:
        vcpu.stat.pf_spurious += 1
    return 0


def handle_write_protected(vcpu: Vcpu, addr: Address, error_code: int) -> int:
    """RETRY if the page was unprotected; else EMULATE, with EMULTYPE_* bits added to ``vcpu.emultype``."""
    direct = role_direct(vcpu.mmu.root_role)
    vcpu.emultype |= EMULTYPE_PF
    if vcpu.last_retry_eip == vcpu.rip and vcpu.last_retry_addr == addr:
        return RET_PF_EMULATE
    vcpu.last_retry_eip = 0
    vcpu.last_retry_addr = 0
    if match_gpa(vcpu, addr) if direct else match_gva(vcpu, addr):
        return RET_PF_EMULATE
    if (direct and error_code & _PFERR_PT_WRITE == _PFERR_PT_WRITE) or (not direct and vcpu.exception_reinjected):
        if unprotect_and_retry(vcpu, addr, False):
            return RET_PF_RETRY
    vcpu.emultype |= EMULTYPE_ALLOW_RETRY_PF
    return RET_PF_EMULATE
