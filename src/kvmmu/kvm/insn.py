# SPDX-License-Identifier: GPL-2.0-only
"""The guest's instructions that change paging: which exit to kvm, and which the CPU executes by itself.

Under shadow paging all of them exit. Under nested paging the guest's CR3, its INVLPG and INVPCID are the CPU's affair;
CR0, CR4 and EFER still exit. Each returns INSN_DONE or INSN_GP as in ``sregs``.
"""

from __future__ import annotations

from ..addr import Gva
from ..hw.bits import INSN_GP
from .mode import vcpu_load, vcpu_put
from .run import enter, leave
from .sregs import invlpg, invpcid, note_cr3, note_pkru, set_cr0, set_cr3, set_cr4, set_efer
from .vcpu import Vcpu


def mov_cr3(vcpu: Vcpu, value: int) -> int:
    """MOV to CR3, bit 63 meaning "no flush" with CR4.PCIDE."""
    if not vcpu.vm.tdp_enabled:
        leave(vcpu)
        vcpu_load(vcpu)
        try:
            return set_cr3(vcpu, value)
        finally:
            vcpu_put(vcpu)
    enter(vcpu)
    if vcpu.cpu.write_cr3(value):
        return INSN_GP
    return note_cr3(vcpu, vcpu.cpu.cr3)


def mov_cr0(vcpu: Vcpu, value: int) -> int:
    """MOV to CR0."""
    leave(vcpu)
    vcpu_load(vcpu)
    try:
        return set_cr0(vcpu, value)
    finally:
        vcpu_put(vcpu)


def mov_cr4(vcpu: Vcpu, value: int) -> int:
    """MOV to CR4."""
    leave(vcpu)
    vcpu_load(vcpu)
    try:
        return set_cr4(vcpu, value)
    finally:
        vcpu_put(vcpu)


def wrmsr_efer(vcpu: Vcpu, value: int) -> int:
    """WRMSR to EFER."""
    leave(vcpu)
    vcpu_load(vcpu)
    try:
        return set_efer(vcpu, value)
    finally:
        vcpu_put(vcpu)


def wrpkru(vcpu: Vcpu, value: int) -> int:
    """WRPKRU: never exits."""
    note_pkru(vcpu, value)
    return vcpu.cpu.write_pkru(value)


def insn_invlpg(vcpu: Vcpu, gva: Gva) -> int:
    """INVLPG."""
    if not vcpu.vm.tdp_enabled:
        leave(vcpu)
        vcpu_load(vcpu)
        try:
            return invlpg(vcpu, gva)
        finally:
            vcpu_put(vcpu)
    enter(vcpu)
    return vcpu.cpu.invlpg(gva)


def insn_invpcid(vcpu: Vcpu, kind: int, pcid: int, gva: Gva) -> int:
    """INVPCID of type ``kind`` 0 to 3."""
    if not vcpu.vm.tdp_enabled:
        leave(vcpu)
        vcpu_load(vcpu)
        try:
            return invpcid(vcpu, kind, pcid, gva)
        finally:
            vcpu_put(vcpu)
    enter(vcpu)
    return INSN_GP if vcpu.cpu.invpcid(kind, pcid, gva) else 0
