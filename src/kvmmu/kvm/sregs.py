# SPDX-License-Identifier: GPL-2.0-only
"""Control registers as kvm handles them: what a write means for roots, roles, requests and TLBs.

Each ``set_*`` is what an intercepted instruction (or userspace) does; DONE, or GP: the guest gets ``#GP`` and nothing
changed. Which instructions are intercepted is said in ``insn``.
Reference: "MMU contexts and reserved-bit tables" triggers, "Roots, CR3, PCID, invalidation instructions".
"""

from __future__ import annotations

from ..addr import Gva
from ..hw.bits import (
    CR0_CD,
    CR0_ET,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_LA57,
    CR4_PAE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PKE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_LME,
    EFER_NX,
)
from ..hw.cpu import INVPCID_ADDRESS, INVPCID_ALL, INVPCID_CONTEXT, INVPCID_NON_GLOBAL
from .mmu.context import KVM_MMU_NUM_PREV_ROOTS
from .mmu.resync import KVM_MMU_ROOTS_ALL, invalidate_addr, is_noncanonical
from .mmu.roots import free_roots, new_pgd, unload
from .mmu.setup import forget_roles, init_mmu
from .mmu.walker import PDPTRS_BAD, PDPTRS_CHANGED, load_pdptrs
from .requests import (
    KVM_REQ_LOAD_MMU_PGD,
    KVM_REQ_MMU_SYNC,
    KVM_REQ_TLB_FLUSH_CURRENT,
    KVM_REQ_TLB_FLUSH_GUEST,
    make_request,
)
from .vcpu import Vcpu

DONE = 0
GP = 1

_ONE = 1
_CR0_PG = CR0_PG
_CR0_PE = CR0_PE
_CR0_ET = CR0_ET
_CR0_WP = CR0_WP
_CR0_CD = CR0_CD
_CR0_NW = CR0_NW
_CR0_CD_NW = CR0_CD | CR0_NW
_CR4_LA57 = CR4_LA57
_CR4_PKE = CR4_PKE
_EFER_NX = EFER_NX
_CR4_PAE = CR4_PAE
_CR4_PGE = CR4_PGE
_CR4_PCIDE = CR4_PCIDE
_CR4_SMEP = CR4_SMEP
#: CR4 bits that a role is made of, and those that reload PDPTEs in PAE paging.
_CR4_ROLE_BITS = CR4_PSE | CR4_PAE | CR4_LA57 | CR4_SMEP | CR4_SMAP | CR4_PKE
_CR4_PDPTR_BITS = CR4_PGE | CR4_PSE | CR4_PAE | CR4_SMEP
_EFER_LMA = EFER_LMA
_EFER_LME = EFER_LME
_EFER_ROLE_BITS = EFER_LME | EFER_NX
_CR3_NOFLUSH = 1 << 63
_CR3_PCID_MASK = 0xFFF
_DONE = DONE
_GP = GP
_PDPTRS_CHANGED = PDPTRS_CHANGED
_MMU_SYNC = KVM_REQ_MMU_SYNC
_LOAD_MMU_PGD = KVM_REQ_LOAD_MMU_PGD
_TLB_FLUSH_CURRENT = KVM_REQ_TLB_FLUSH_CURRENT
_TLB_FLUSH_GUEST = KVM_REQ_TLB_FLUSH_GUEST


def is_pae_paging(vcpu: Vcpu) -> bool:
    """Whether the guest uses PAE tables outside long mode, whose top entries are cached in registers."""
    return vcpu.cr0 & _CR0_PG != 0 and vcpu.cr4 & _CR4_PAE != 0 and vcpu.efer & _EFER_LMA == 0


def is_paging_32(vcpu: Vcpu) -> bool:
    """Paging outside long mode, with or without PAE."""
    return vcpu.cr0 & _CR0_PG != 0 and vcpu.efer & _EFER_LMA == 0


def reload_pdptrs(vcpu: Vcpu, cr3: int) -> bool:
    """Read the four PDPTEs at cr3; False: reserved bits, so #GP. Changed ones are baked into the PAE root: drop it."""
    result = load_pdptrs(vcpu, cr3)
    if result == PDPTRS_BAD:
        return False
    if result == _PDPTRS_CHANGED:
        if not vcpu.vm.tdp_enabled:
            free_roots(vcpu.vm, vcpu.mmu, 1)
        make_request(vcpu, _LOAD_MMU_PGD)
    return True


def reset_context(vcpu: Vcpu) -> int:
    """Drop all roots and rebuild the MMU for the registers as they are (``kvm_mmu_reset_context``)."""
    unload(vcpu)
    init_mmu(vcpu)
    make_request(vcpu, _LOAD_MMU_PGD)
    return 0


def is_valid_cr0(vcpu: Vcpu, cr0: int) -> bool:
    """CS.L is not modelled: long mode is entered and left with it clear."""
    if cr0 >> 32 or (cr0 & _CR0_NW and not cr0 & _CR0_CD) or (cr0 & _CR0_PG and not cr0 & _CR0_PE):
        return False
    if not cr0 & _CR0_PG:
        return vcpu.cr4 & _CR4_PCIDE == 0
    return not vcpu.efer & _EFER_LME or vcpu.cr0 & _CR0_PG != 0 or vcpu.cr4 & _CR4_PAE != 0


def set_cr0(vcpu: Vcpu, cr0: int) -> int:
    """Set CR0 as MOV to CR0 does, LMA included; DONE or GP (bits that exclude each other, bad PDPTEs)."""
    old = vcpu.cr0
    if not is_valid_cr0(vcpu, cr0):
        return _GP
    cr0 |= _CR0_ET
    changed = old ^ cr0
    if not vcpu.efer & _EFER_LME and vcpu.cr4 & _CR4_PAE and cr0 & _CR0_PG and changed & (_CR0_PG | _CR0_CD_NW):
        if not reload_pdptrs(vcpu, vcpu.cr3):
            return _GP
    if vcpu.efer & _EFER_LME:
        if changed & cr0 & _CR0_PG:
            vcpu.efer |= _EFER_LMA
        elif changed & _CR0_PG:
            vcpu.efer &= ~_EFER_LMA
    vcpu.cr0 = cr0
    make_request(vcpu, _LOAD_MMU_PGD)
    return post_set_cr0(vcpu, old, cr0)


def post_set_cr0(vcpu: Vcpu, old: int, cr0: int) -> int:
    """What follows from CR0 having changed from ``old`` to ``cr0`` (``kvm_post_set_cr0``)."""
    changed = old ^ cr0
    if changed == _CR0_WP:
        if not cr0 & _CR0_PG:
            return _DONE
        if vcpu.vm.tdp_enabled:
            init_mmu(vcpu)
            return _DONE
    if changed & _CR0_PG and not cr0 & _CR0_PG:
        make_request(vcpu, _TLB_FLUSH_GUEST)
    if changed & (_CR0_PG | _CR0_WP):
        reset_context(vcpu)
    return _DONE


def is_valid_cr4(vcpu: Vcpu, cr4: int) -> bool:
    """Protection keys are hidden from the guest without nested paging."""
    if cr4 & _CR4_PKE and not vcpu.vm.tdp_enabled:
        return False
    changed = vcpu.cr4 ^ cr4
    if vcpu.efer & _EFER_LMA:
        if not cr4 & _CR4_PAE or changed & _CR4_LA57:
            return False
        return not changed & cr4 & _CR4_PCIDE or vcpu.cr3 & _CR3_PCID_MASK == 0
    return not changed & cr4 & _CR4_PCIDE


def set_cr4(vcpu: Vcpu, cr4: int) -> int:
    """Set CR4 as MOV to CR4 does; DONE or GP (what long mode, PCIDs or the host forbid, bad PDPTEs)."""
    old = vcpu.cr4
    changed = old ^ cr4
    if not is_valid_cr4(vcpu, cr4):
        return _GP
    if is_paging_32(vcpu) and changed & _CR4_PDPTR_BITS and cr4 & _CR4_PAE:
        if not reload_pdptrs(vcpu, vcpu.cr3):
            return _GP
    vcpu.cr4 = cr4
    make_request(vcpu, _LOAD_MMU_PGD)
    if changed & _CR4_ROLE_BITS:
        reset_context(vcpu)
    if not vcpu.vm.tdp_enabled and changed & cr4 & _CR4_PCIDE:
        unload(vcpu)
    if changed & _CR4_PGE or changed & old & _CR4_PCIDE:
        make_request(vcpu, _TLB_FLUSH_GUEST)
    elif changed & _CR4_PAE or changed & cr4 & _CR4_SMEP:
        make_request(vcpu, _TLB_FLUSH_CURRENT)
    return _DONE


def set_efer(vcpu: Vcpu, efer: int) -> int:
    """Set EFER as WRMSR does; LMA is the CPU's own. DONE, or GP: LME cannot change while paging, no NX in CPUID."""
    changed = (vcpu.efer ^ efer) & ~_EFER_LMA
    if (changed & _EFER_LME and vcpu.cr0 & _CR0_PG) or (efer & _EFER_NX and not vcpu.has_nx):
        return _GP
    vcpu.efer = (efer & ~_EFER_LMA) | (vcpu.efer & _EFER_LMA)
    make_request(vcpu, _LOAD_MMU_PGD)
    if changed & _EFER_ROLE_BITS:
        reset_context(vcpu)
    return _DONE


def set_cr3(vcpu: Vcpu, cr3: int) -> int:
    """Set CR3 as MOV to CR3 does, bit 63 (no flush, with CR4.PCIDE) included; DONE or GP."""
    keep = False
    pcid = 0
    if vcpu.cr4 & _CR4_PCIDE:
        keep = cr3 & _CR3_NOFLUSH != 0
        cr3 &= ~_CR3_NOFLUSH
        pcid = cr3 & _CR3_PCID_MASK
    if cr3 != vcpu.cr3 or is_pae_paging(vcpu):
        if cr3 & vcpu.reserved_gpa_bits:
            return _GP
        if is_pae_paging(vcpu) and not reload_pdptrs(vcpu, cr3):
            return _GP
        if cr3 != vcpu.cr3:
            new_pgd(vcpu, cr3)
        vcpu.cr3 = cr3
        if vcpu.vm.tdp_enabled:
            make_request(vcpu, _LOAD_MMU_PGD)
    if not keep:
        invalidate_pcid(vcpu, pcid)
    return _DONE


def active_pcid(vcpu: Vcpu, pgd: int) -> int:
    """The PCID in pgd; 0 while PCIDs are off."""
    return pgd & _CR3_PCID_MASK if vcpu.cr4 & _CR4_PCIDE else 0


def invalidate_pcid(vcpu: Vcpu, pcid: int) -> int:
    """The guest flushes one PCID."""
    if vcpu.vm.tdp_enabled:
        make_request(vcpu, _TLB_FLUSH_GUEST)
        return 0
    if active_pcid(vcpu, vcpu.cr3) == pcid:
        make_request(vcpu, _MMU_SYNC)
        make_request(vcpu, _TLB_FLUSH_CURRENT)
    if not vcpu.cr4 & _CR4_PCIDE:
        return 0
    roots = 0
    for i in range(3):
        if active_pcid(vcpu, vcpu.mmu.prev_pgd[i]) == pcid:
            roots |= _ONE << (i + 1)
    return free_roots(vcpu.vm, vcpu.mmu, roots)


def invlpg(vcpu: Vcpu, gva: Gva) -> int:
    """INVLPG: invalidate ``gva`` under the current and every previous root (it may be global). DONE."""
    invalidate_addr(vcpu, gva, KVM_MMU_ROOTS_ALL)
    vcpu.stat.invlpg += 1
    return _DONE


def invpcid(vcpu: Vcpu, kind: int, pcid: int, gva: Gva) -> int:
    """INVPCID of type ``kind`` (INVPCID_*); DONE or GP (bad type, PCID, or address)."""
    if pcid >> 12 or (kind <= INVPCID_CONTEXT and pcid and not vcpu.cr4 & _CR4_PCIDE):
        return _GP
    if kind == INVPCID_ADDRESS:
        if is_noncanonical(vcpu.vm, gva):
            return _GP
        roots = 1 if active_pcid(vcpu, vcpu.cr3) == pcid else 0
        for i in range(KVM_MMU_NUM_PREV_ROOTS):
            if active_pcid(vcpu, vcpu.mmu.prev_pgd[i]) == pcid:
                roots |= _ONE << (i + 1)
        if roots:
            invalidate_addr(vcpu, gva, roots)
        vcpu.stat.invlpg += 1
        return _DONE
    if kind == INVPCID_CONTEXT:
        invalidate_pcid(vcpu, pcid)
        return _DONE
    if kind in (INVPCID_ALL, INVPCID_NON_GLOBAL):
        make_request(vcpu, _TLB_FLUSH_GUEST)
        return _DONE
    return _GP


def after_set_cpuid(vcpu: Vcpu) -> None:
    """The guest's CPUID changed: no cached role is true any more (``kvm_mmu_after_set_cpuid``)."""
    forget_roles(vcpu)
    reset_context(vcpu)


def set_sregs(vcpu: Vcpu, cr0: int, cr3: int, cr4: int, efer: int) -> None:
    """Load registers as KVM_SET_SREGS does: all at once; any difference resets the MMU and flushes the guest's TLB.

    PDPTEs are read from the guest's memory in PAE mode (a reset by itself); bad ones count as not loaded.
    """
    reset = vcpu.cr3 != cr3 or vcpu.cr0 != cr0 or vcpu.cr4 != cr4 or vcpu.efer != efer
    vcpu.cr0 = cr0
    vcpu.cr3 = cr3
    vcpu.cr4 = cr4
    vcpu.efer = efer
    if is_pae_paging(vcpu):
        reload_pdptrs(vcpu, cr3)
        reset = True
    if reset:
        reset_context(vcpu)
        make_request(vcpu, KVM_REQ_TLB_FLUSH_GUEST)
