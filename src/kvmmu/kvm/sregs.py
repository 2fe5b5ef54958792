# SPDX-License-Identifier: GPL-2.0-only
"""Control registers as kvm handles them: what a write means for roots, roles, requests and TLBs.

Each ``set_*`` is what an intercepted instruction (or userspace) does. It returns INSN_DONE, or INSN_GP: the guest gets
``#GP`` and nothing changed. Which instructions are intercepted is said in ``insn``.
Reference: "MMU contexts and reserved-bit tables" triggers, "Roots, CR3, PCID, invalidation instructions".
"""

from __future__ import annotations

from ..addr import Gva
from ..hw.bits import (
    CR0_CD,
    CR0_DEFINED,
    CR0_ET,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_DEFINED,
    CR4_LA57,
    CR4_PAE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PKE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_DEFINED,
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    INSN_DONE,
    INSN_GP,
    INVPCID_ADDRESS,
    INVPCID_ALL,
    INVPCID_CONTEXT,
    INVPCID_NON_GLOBAL,
)
from ..page_types import ONE
from .bits import (
    KVM_REQ_LOAD_MMU_PGD,
    KVM_REQ_MMU_SYNC,
    KVM_REQ_TLB_FLUSH_CURRENT,
    KVM_REQ_TLB_FLUSH_GUEST,
)
from .cpuid import CpuFeatures
from .mmu.bits import KVM_MMU_NUM_PREV_ROOTS, KVM_MMU_ROOTS_ALL, PDPTRS_BAD, PDPTRS_CHANGED
from .mmu.resync import invalidate_addr, is_noncanonical
from .mmu.roots import free_roots, new_pgd, unload
from .mmu.setup import forget_roles, init_mmu
from .mmu.walker import load_pdptrs
from .mode import vcpu_load, vcpu_put
from .requests import make_request
from .vcpu import Vcpu

_CR0_CD_NW = CR0_CD | CR0_NW
#: CR4 bits that a role is made of, and those that reload PDPTEs in PAE paging.
_CR4_ROLE_BITS = CR4_PSE | CR4_PAE | CR4_LA57 | CR4_SMEP | CR4_SMAP | CR4_PKE
_CR4_PDPTR_BITS = CR4_PGE | CR4_PSE | CR4_PAE | CR4_SMEP
_EFER_ROLE_BITS = EFER_LME | EFER_NX
_CR3_NOFLUSH = 1 << 63
_CR3_PCID_MASK = 0xFFF


def is_pae_paging(vcpu: Vcpu) -> bool:
    """Whether the guest uses PAE tables outside long mode, whose top entries are cached in registers."""
    return vcpu.cr0 & CR0_PG != 0 and vcpu.cr4 & CR4_PAE != 0 and vcpu.efer & EFER_LMA == 0


def is_paging_32(vcpu: Vcpu) -> bool:
    """Paging outside long mode, with or without PAE."""
    return vcpu.cr0 & CR0_PG != 0 and vcpu.efer & EFER_LMA == 0


def reload_pdptrs(vcpu: Vcpu, cr3: int) -> bool:
    """Read the four PDPTEs at cr3; False: reserved bits, so #GP. Changed ones are baked into the PAE root: drop it."""
    result = load_pdptrs(vcpu, vcpu.walk_mmu, cr3)
    if result == PDPTRS_BAD:
        return False
    if result == PDPTRS_CHANGED:
        if not vcpu.vm.tdp_enabled:
            free_roots(vcpu.vm, vcpu.mmu, 1)
        make_request(vcpu, KVM_REQ_LOAD_MMU_PGD)
    return True


def reset_context(vcpu: Vcpu) -> int:
    """Drop all roots and rebuild the MMU for the registers as they are (``kvm_mmu_reset_context``)."""
    unload(vcpu)
    init_mmu(vcpu)
    make_request(vcpu, KVM_REQ_LOAD_MMU_PGD)
    return 0


def is_valid_cr0(vcpu: Vcpu, cr0: int) -> bool:
    """CS.L is not modelled: long mode is entered and left with it clear."""
    if cr0 >> 32 or (cr0 & CR0_NW and not cr0 & CR0_CD) or (cr0 & CR0_PG and not cr0 & CR0_PE):
        return False
    if not cr0 & CR0_PG:
        return vcpu.cr4 & CR4_PCIDE == 0
    return not vcpu.efer & EFER_LME or vcpu.cr0 & CR0_PG != 0 or vcpu.cr4 & CR4_PAE != 0


def set_cr0(vcpu: Vcpu, cr0: int) -> int:
    """Set CR0 as MOV to CR0 does, LMA included; INSN_DONE or INSN_GP (bits that exclude each other, bad PDPTEs).

    Bits that do not exist are ignored, those above bit 31 are not.
    """
    old = vcpu.cr0
    if not is_valid_cr0(vcpu, cr0):
        return INSN_GP
    cr0 = (cr0 | CR0_ET) & CR0_DEFINED
    changed = old ^ cr0
    if not vcpu.efer & EFER_LME and vcpu.cr4 & CR4_PAE and cr0 & CR0_PG and changed & (CR0_PG | _CR0_CD_NW):
        if not reload_pdptrs(vcpu, vcpu.cr3):
            return INSN_GP
    if vcpu.efer & EFER_LME:
        if changed & cr0 & CR0_PG:
            vcpu.efer |= EFER_LMA
        elif changed & CR0_PG:
            vcpu.efer &= ~EFER_LMA
    vcpu.cr0 = cr0
    make_request(vcpu, KVM_REQ_LOAD_MMU_PGD)
    return post_set_cr0(vcpu, old, cr0)


def post_set_cr0(vcpu: Vcpu, old: int, cr0: int) -> int:
    """What follows from CR0 having changed from ``old`` to ``cr0`` (``kvm_post_set_cr0``)."""
    changed = old ^ cr0
    if changed == CR0_WP:
        if not cr0 & CR0_PG:
            return INSN_DONE
        if vcpu.vm.tdp_enabled:
            init_mmu(vcpu)
            return INSN_DONE
    if changed & CR0_PG and not cr0 & CR0_PG:
        make_request(vcpu, KVM_REQ_TLB_FLUSH_GUEST)
    if changed & (CR0_PG | CR0_WP):
        reset_context(vcpu)
    return INSN_DONE


def is_valid_cr4(vcpu: Vcpu, cr4: int) -> bool:
    """No bit that CPUID lacks; protection keys are hidden from the guest without nested paging."""
    if cr4 & ~CR4_DEFINED or cr4 & vcpu.cr4_guest_rsvd_bits:
        return False
    if cr4 & CR4_PKE and not vcpu.vm.tdp_enabled:
        return False
    changed = vcpu.cr4 ^ cr4
    if vcpu.efer & EFER_LMA:
        if not cr4 & CR4_PAE or changed & CR4_LA57:
            return False
        return not changed & cr4 & CR4_PCIDE or vcpu.cr3 & _CR3_PCID_MASK == 0
    return not changed & cr4 & CR4_PCIDE


def set_cr4(vcpu: Vcpu, cr4: int) -> int:
    """Set CR4 as MOV to CR4 does; INSN_DONE or INSN_GP (what long mode, PCIDs or the host forbid, bad PDPTEs)."""
    old = vcpu.cr4
    changed = old ^ cr4
    if not is_valid_cr4(vcpu, cr4):
        return INSN_GP
    if is_paging_32(vcpu) and changed & _CR4_PDPTR_BITS and cr4 & CR4_PAE:
        if not reload_pdptrs(vcpu, vcpu.cr3):
            return INSN_GP
    vcpu.cr4 = cr4
    make_request(vcpu, KVM_REQ_LOAD_MMU_PGD)
    if changed & _CR4_ROLE_BITS:
        reset_context(vcpu)
    if not vcpu.vm.tdp_enabled and changed & cr4 & CR4_PCIDE:
        unload(vcpu)
    if changed & CR4_PGE or changed & old & CR4_PCIDE:
        make_request(vcpu, KVM_REQ_TLB_FLUSH_GUEST)
    elif changed & CR4_PAE or changed & cr4 & CR4_SMEP:
        make_request(vcpu, KVM_REQ_TLB_FLUSH_CURRENT)
    return INSN_DONE


def set_efer(vcpu: Vcpu, efer: int) -> int:
    """Set EFER as WRMSR does; LMA is the CPU's own. INSN_GP: a bit that CPUID lacks, LME while paging."""
    changed = (vcpu.efer ^ efer) & ~EFER_LMA
    if efer & ~EFER_DEFINED or efer & vcpu.efer_guest_rsvd_bits:
        return INSN_GP
    if changed & EFER_LME and vcpu.cr0 & CR0_PG:
        return INSN_GP
    vcpu.efer = (efer & ~EFER_LMA) | (vcpu.efer & EFER_LMA)
    make_request(vcpu, KVM_REQ_LOAD_MMU_PGD)
    if changed & _EFER_ROLE_BITS:
        reset_context(vcpu)
    return INSN_DONE


def set_cr3(vcpu: Vcpu, cr3: int) -> int:
    """Set CR3 as MOV to CR3 does, bit 63 (no flush, with CR4.PCIDE) included; INSN_DONE or INSN_GP."""
    keep = False
    pcid = 0
    if vcpu.cr4 & CR4_PCIDE:
        keep = cr3 & _CR3_NOFLUSH != 0
        cr3 &= ~_CR3_NOFLUSH
        pcid = cr3 & _CR3_PCID_MASK
    if cr3 != vcpu.cr3 or is_pae_paging(vcpu):
        if cr3 & vcpu.reserved_gpa_bits:
            return INSN_GP
        if is_pae_paging(vcpu) and not reload_pdptrs(vcpu, cr3):
            return INSN_GP
        if cr3 != vcpu.cr3:
            new_pgd(vcpu, cr3)
        vcpu.cr3 = cr3
        if vcpu.vm.tdp_enabled:
            make_request(vcpu, KVM_REQ_LOAD_MMU_PGD)
    if not keep:
        invalidate_pcid(vcpu, pcid)
    return INSN_DONE


def active_pcid(vcpu: Vcpu, pgd: int) -> int:
    """The PCID in pgd; 0 while PCIDs are off."""
    return pgd & _CR3_PCID_MASK if vcpu.cr4 & CR4_PCIDE else 0


def invalidate_pcid(vcpu: Vcpu, pcid: int) -> int:
    """The guest flushes one PCID."""
    if vcpu.vm.tdp_enabled:
        make_request(vcpu, KVM_REQ_TLB_FLUSH_GUEST)
        return 0
    if active_pcid(vcpu, vcpu.cr3) == pcid:
        make_request(vcpu, KVM_REQ_MMU_SYNC)
        make_request(vcpu, KVM_REQ_TLB_FLUSH_CURRENT)
    if not vcpu.cr4 & CR4_PCIDE:
        return 0
    roots = 0
    for i in range(3):
        if active_pcid(vcpu, vcpu.mmu.prev_pgd[i]) == pcid:
            roots |= ONE << (i + 1)
    return free_roots(vcpu.vm, vcpu.mmu, roots)


def invlpg(vcpu: Vcpu, gva: Gva) -> int:
    """INVLPG: invalidate ``gva`` under the current and every previous root (it may be global). INSN_DONE."""
    invalidate_addr(vcpu, gva, KVM_MMU_ROOTS_ALL)
    vcpu.stat.invlpg += 1
    return INSN_DONE


def invpcid(vcpu: Vcpu, kind: int, pcid: int, gva: Gva) -> int:
    """INVPCID of type ``kind`` (INVPCID_*); INSN_DONE or INSN_GP (bad type, PCID, or address)."""
    if pcid >> 12 or (kind <= INVPCID_CONTEXT and pcid and not vcpu.cr4 & CR4_PCIDE):
        return INSN_GP
    if kind == INVPCID_ADDRESS:
        if is_noncanonical(vcpu.vm, gva):
            return INSN_GP
        roots = 1 if active_pcid(vcpu, vcpu.cr3) == pcid else 0
        for i in range(KVM_MMU_NUM_PREV_ROOTS):
            if active_pcid(vcpu, vcpu.mmu.prev_pgd[i]) == pcid:
                roots |= ONE << (i + 1)
        if roots:
            invalidate_addr(vcpu, gva, roots)
        vcpu.stat.invlpg += 1
        return INSN_DONE
    if kind == INVPCID_CONTEXT:
        invalidate_pcid(vcpu, pcid)
        return INSN_DONE
    if kind in (INVPCID_ALL, INVPCID_NON_GLOBAL):
        make_request(vcpu, KVM_REQ_TLB_FLUSH_GUEST)
        return INSN_DONE
    return INSN_GP


def after_set_cpuid(vcpu: Vcpu) -> None:
    """The guest's CPUID changed: no cached role is true any more (``kvm_mmu_after_set_cpuid``)."""
    forget_roles(vcpu)
    reset_context(vcpu)


def set_cpuid(vcpu: Vcpu, features: CpuFeatures) -> None:
    """KVM_SET_CPUID2: the guest's CPUID becomes ``features``.

    A vCPU that has run keeps its own: the caller has seen that it is told no other.
    """
    if vcpu.has_run:
        return
    vcpu.set_cpuid(features)
    after_set_cpuid(vcpu)


def set_sregs(vcpu: Vcpu, cr0: int, cr3: int, cr4: int, efer: int) -> None:
    """Load registers as KVM_SET_SREGS does: all at once; any difference resets the MMU and flushes the guest's TLB.

    PDPTEs are read from the guest's memory in PAE mode (a reset by itself); bad ones count as not loaded.
    """
    vcpu_load(vcpu)
    try:
        load_sregs(vcpu, cr0, cr3, cr4, efer)
    finally:
        vcpu_put(vcpu)


def load_sregs(vcpu: Vcpu, cr0: int, cr3: int, cr4: int, efer: int) -> None:
    """:func:`set_sregs`, on behalf of ``vcpu``."""
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


def note_cr3(vcpu: Vcpu, cr3: int) -> int:
    """The CPU loaded CR3 by itself, under nested paging; INSN_DONE."""
    vcpu.cr3 = cr3
    return INSN_DONE


def note_pkru(vcpu: Vcpu, pkru: int) -> int:
    """The guest wrote PKRU, which never exits; INSN_DONE."""
    vcpu.pkru = pkru
    return INSN_DONE
