# SPDX-License-Identifier: GPL-2.0-only
"""From a gfn to the host's page, and the test whether the answer has gone stale meanwhile.

Sample the invalidate sequence, then ask the host; under ``mmu_lock``, before anything is installed, look whether an
invalidation passed in between. Reference: "Page-fault pipeline", "MMU notifiers" retry rule.
"""

from __future__ import annotations

from errno import EFAULT

from ...addr import Pfn
from ...host.bits import GUP_ERRORS, NO_PFN
from ..bits import (
    KVM_HVA_ERR_BAD,
    KVM_PFN_ERR_FAULT,
    KVM_PFN_ERR_RO_FAULT,
    KVM_PFN_NOSLOT,
    KVM_REQ_MMU_FREE_OBSOLETE_ROOTS,
)
from ..memslots import Memslot, is_error_pfn, is_noslot_pfn
from ..requests import has_request
from ..vcpu import Vcpu
from ..vm import Vm
from .bits import FAULT_OP_TDP
from .fault import PageFault
from .mmio import cache_record
from .pages import is_obsolete, root_to_sp
from .verdict import RET_PF_CONTINUE, RET_PF_EMULATE, RET_PF_RETRY


def find_pfn(vm: Vm, fault: PageFault) -> int:
    """Set hva, pfn (or an error pfn) and map_writable of fault, whose slot is visible."""
    mm = vm.mm
    slot: Memslot = fault.slot  # type: ignore[assignment]  # it is visible, so it is there
    readonly = slot.is_readonly()
    if fault.write and readonly:
        fault.pfn = KVM_PFN_ERR_RO_FAULT
        return 0
    fault.hva = slot.gfn_to_hva(fault.gfn)
    if not readonly:
        pfn = mm.gup_fast(fault.hva, True)
        if pfn != NO_PFN:
            fault.pfn = pfn
            fault.map_writable = True
            return 0
    pfn = mm.gup(fault.hva, fault.write)
    if pfn >= GUP_ERRORS:
        fault.pfn = KVM_PFN_ERR_FAULT
        return 0
    fault.pfn = pfn
    fault.map_writable = fault.write
    if not fault.write and not readonly and mm.gup_fast(fault.hva, True) != NO_PFN:
        # A read fault whose page may be written: map it so, and keep one of the two references.
        fault.map_writable = True
        vm.frames.put(pfn)
    return 0


def handle_noslot(vcpu: Vcpu, fault: PageFault, access: int) -> int:
    """MMIO: remember it, and go on to an MMIO spte unless that is impossible."""
    vm = vcpu.vm
    gva = 0 if vcpu.mmu.fault_op == FAULT_OP_TDP else fault.addr
    cache_record(vcpu, gva, fault.gfn, access & vm.fmt.mmio_access_mask)  # type: ignore[arg-type]  # with TDP there is no gva, else addr is one
    fault.slot = None
    fault.pfn = KVM_PFN_NOSLOT
    fault.map_writable = False
    fault.hva = KVM_HVA_ERR_BAD
    if not vm.policy.mmio_caching or fault.gfn > vm.max_gfn:
        return RET_PF_EMULATE
    return RET_PF_CONTINUE


def faultin(vcpu: Vcpu, fault: PageFault, access: int) -> int:
    """Find the page of fault.gfn. CONTINUE: fault.pfn is set (a reference is held, unless MMIO); else the verdict."""
    vm = vcpu.vm
    fault.mmu_seq = vm.invalidation.sample()
    if fault.slot is None:
        return handle_noslot(vcpu, fault, access)
    if fault.slot.is_invalid():
        return RET_PF_RETRY
    if vm.invalidation.covers_unlocked(fault.gfn, fault.mmu_seq):
        return RET_PF_RETRY
    find_pfn(vm, fault)
    if is_error_pfn(fault.pfn):
        return RET_PF_EMULATE if fault.pfn == KVM_PFN_ERR_RO_FAULT else -EFAULT
    if vm.invalidation.covers_unlocked(fault.gfn, fault.mmu_seq):
        release_pfn(vm, fault.pfn)
        return RET_PF_RETRY
    return RET_PF_CONTINUE


def is_stale(vcpu: Vcpu, fault: PageFault) -> bool:
    """mmu_lock held: has what fault found been taken back, or the root with it?"""
    sp = root_to_sp(vcpu.vm, vcpu.mmu.root_hpa)
    if sp is not None and is_obsolete(vcpu.vm, sp):
        return True
    if sp is None and has_request(vcpu, KVM_REQ_MMU_FREE_OBSOLETE_ROOTS):
        return True
    return fault.slot is not None and vcpu.vm.invalidation.covers(fault.gfn, fault.mmu_seq)


def release_pfn(vm: Vm, pfn: Pfn) -> int:
    """Drop the reference that faultin() took."""
    if not is_error_pfn(pfn) and not is_noslot_pfn(pfn):
        vm.frames.put(pfn)
    return 0
