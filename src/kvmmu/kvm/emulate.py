# SPDX-License-Identifier: GPL-2.0-only
"""The emulator's path to memory: what kvm does with an access that the guest could not make itself.

Two reasons lead here: the address is a device's (MMIO), or it is a mirrored guest table, where the store is made on the
guest's behalf and its consequences are drawn. The model has accesses, not instructions: size and data come from the
caller, who also says whether the instruction is one that writes page tables.
Reference: "Emulator memory path, retry and unprotect".
"""

from __future__ import annotations

from ..addr import Gpa, Gva, gfn_to_gpa, gpa_to_gfn, page_offset
from ..host.bits import NO_HPA
from ..hw.bits import (
    ACCESS_FETCH,
    ACCESS_IMPLICIT,
    ACCESS_USER,
    ACCESS_WRITE,
    EFER_LMA,
    PFERR_FETCH,
    PFERR_IMPLICIT_ACCESS,
    PFERR_USER,
    PFERR_WRITE,
    UD_VECTOR,
)
from ..page_types import PAGE_MASK, PAGE_SIZE, U32, U64
from .bits import (
    ACCESS_NOT_PT_INSN,
    APIC_DEFAULT_PHYS_BASE,
    INVALID_GPA,
    KVM_EMUL_INSN_PROT64,
    KVM_TRACE_MMIO_READ,
    KVM_TRACE_MMIO_READ_UNSATISFIED,
    KVM_TRACE_MMIO_WRITE,
)
from .dirtylog import mark_page_dirty_in_slot
from .exception import queue_exception
from .guestmem import gpa_to_hpa
from .kvmtrace import trace_emulate_insn, trace_kvm_mmio, trace_vcpu_match_mmio
from .mmu.context import permission_fault
from .mmu.gptewrite import track_write, unprotect_and_retry
from .mmu.mmio import match_gpa, match_gva
from .mmu.pagefault import inject_page_fault
from .mmu.role import cpu_role_paging, role_direct
from .mmu.verdict import EMULTYPE_ALLOW_RETRY_PF, EMULTYPE_WRITE_PF_TO_SP
from .mmu.walker import gva_to_gpa_walk
from .mode import vcpu_load, vcpu_put
from .outcome import (
    X86EMUL_CONTINUE,
    X86EMUL_IO_NEEDED,
    X86EMUL_PROPAGATE_FAULT,
    X86EMUL_RETRY_INSTR,
    X86EMUL_UNHANDLEABLE,
)
from .vcpu import Vcpu


def walk_access(kind: int) -> int:
    """The software walk's access word for an access of this kind."""
    access = PFERR_WRITE if kind & ACCESS_WRITE else 0
    if kind & ACCESS_FETCH:
        access = PFERR_FETCH
    if kind & ACCESS_IMPLICIT:
        return access | PFERR_IMPLICIT_ACCESS
    return access | (PFERR_USER if kind & ACCESS_USER else 0)


def fetch_insn(vcpu: Vcpu, rip: Gva, kind: int) -> int:
    """Fetch from ``rip``, within one page, as without decode assists: CONTINUE, PROPAGATE_FAULT or UNHANDLEABLE.

    The guest's tables say where that is, never the exit or the MMIO record: ``vcpu.mmio_gpa``, unless it faults.
    """
    access = PFERR_FETCH | (PFERR_USER if kind & ACCESS_USER else 0)
    gpa = gva_to_gpa_walk(vcpu, vcpu.walk_mmu, vcpu.guest_walk, rip, access)
    if gpa == INVALID_GPA:
        return X86EMUL_PROPAGATE_FAULT
    vcpu.mmio_gpa = gpa
    if gpa_to_hpa(vcpu.memslots(), vcpu.vm.mm, gpa, False) == NO_HPA:
        return X86EMUL_UNHANDLEABLE
    return X86EMUL_CONTINUE


def decode_insn(vcpu: Vcpu, kind: int) -> int:
    """Begin to emulate or skip the instruction at ``rip``: fetch and count it; ``kind``: ACCESS_USER at CPL 3.

    Drops an exception that was to be delivered. Return X86EMUL_CONTINUE; X86EMUL_PROPAGATE_FAULT: the fetch faulted as
    ``vcpu.guest_walk`` says; or X86EMUL_UNHANDLEABLE: no memory there. Neither is acted upon yet.
    """
    return decode_at(vcpu, vcpu.rip, kind, 1 if vcpu.fetches_insns else 0)


def decode_at(vcpu: Vcpu, rip: Gva, kind: int, size: int) -> int:
    """:func:`decode_insn` for ``size`` bytes (0: none is fetched) at ``rip``, in one page or two.

    They are at ``vcpu.mmio_gpa``, or those in the second page are, if all could be fetched.
    """
    vcpu.exception_pending = False
    vcpu.exception_reinjected = False
    fetched = X86EMUL_CONTINUE
    if size:
        first = min(size, PAGE_SIZE - page_offset(rip))
        fetched = fetch_insn(vcpu, rip, kind)
        if fetched == X86EMUL_CONTINUE and size > first:
            fetched = fetch_insn(vcpu, (rip + first) & (U64 if vcpu.efer & EFER_LMA else U32), kind)
    vcpu.stat.insn_emulation += 1
    if vcpu.vm.trace.on:
        trace_emulate_insn(vcpu.vm.trace, rip)
    return fetched


def decode_failed(vcpu: Vcpu, rip: Gva, kind: int, outcome: int) -> int:
    """What ``outcome`` of decoding at ``rip``, not CONTINUE, means: RETRY_INSTR, PROPAGATE_FAULT or UNHANDLEABLE.

    An instruction that wrote to a mirrored table is retried without the mirror, unless the table maps itself. Else
    UNHANDLEABLE ends KVM_RUN; the guest has ``#UD`` queued then, unless ``exit_on_emulation_error`` forbids that.
    """
    if vcpu.emultype & EMULTYPE_ALLOW_RETRY_PF and not vcpu.emultype & EMULTYPE_WRITE_PF_TO_SP:
        unprotect_and_retry(vcpu, vcpu.exit_address, True)
        return X86EMUL_RETRY_INSTR
    if outcome == X86EMUL_PROPAGATE_FAULT:
        inject_page_fault(vcpu, vcpu.guest_walk)
        return X86EMUL_PROPAGATE_FAULT
    vcpu.stat.insn_emulation_fail += 1
    if vcpu.vm.trace.on:
        trace_emulate_insn(vcpu.vm.trace, rip, KVM_EMUL_INSN_PROT64, True)
    if vcpu.vm.policy.exit_on_emulation_error:
        return X86EMUL_UNHANDLEABLE
    queue_exception(vcpu, UD_VECTOR, False, 0)
    return X86EMUL_PROPAGATE_FAULT if kind & ACCESS_USER else X86EMUL_UNHANDLEABLE


def is_mmio_gpa(vcpu: Vcpu, gva: Gva, gpa: Gpa, is_write: bool) -> bool:
    """Whether gpa is known not to be RAM without asking the slots."""
    if gpa & PAGE_MASK == APIC_DEFAULT_PHYS_BASE:
        return True
    if not match_gpa(vcpu, gpa):
        return False
    if vcpu.vm.trace.on:
        trace_vcpu_match_mmio(vcpu.vm.trace, gva, gpa, is_write, True)
    return True


def find_gpa(vcpu: Vcpu, gva: Gva, kind: int, has_exit_gpa: bool) -> int:
    """Set vcpu.mmio_gpa to where gva lies: IO_NEEDED (known to be MMIO), CONTINUE (try RAM) or PROPAGATE_FAULT."""
    mmu = vcpu.mmu
    is_write = kind & ACCESS_WRITE != 0
    if has_exit_gpa:
        vcpu.mmio_gpa = vcpu.exit_address
        return X86EMUL_IO_NEEDED if is_mmio_gpa(vcpu, gva, vcpu.mmio_gpa, is_write) else X86EMUL_CONTINUE
    access = walk_access(kind)
    if match_gva(vcpu, gva) and (
        not cpu_role_paging(mmu.cpu_role)
        or permission_fault(mmu, vcpu.mmio_access, 0, access, vcpu.rflags, vcpu.pkru) == 0
    ):
        vcpu.mmio_gpa = gfn_to_gpa(vcpu.mmio_gfn) | page_offset(gva)
        if vcpu.vm.trace.on:
            trace_vcpu_match_mmio(vcpu.vm.trace, gva, vcpu.mmio_gpa, is_write, False)
        return X86EMUL_IO_NEEDED
    gpa = gva_to_gpa_walk(vcpu, vcpu.walk_mmu, vcpu.guest_walk, gva, access)
    if gpa == INVALID_GPA:
        inject_page_fault(vcpu, vcpu.guest_walk)
        return X86EMUL_PROPAGATE_FAULT
    vcpu.mmio_gpa = gpa
    return X86EMUL_IO_NEEDED if is_mmio_gpa(vcpu, gva, gpa, is_write) else X86EMUL_CONTINUE


def write_ram(vcpu: Vcpu, gpa: Gpa, data: bytes) -> int:
    """Store data, which lies in one page, on the guest's behalf. X86EMUL_CONTINUE, or IO_NEEDED: no RAM there."""
    vm = vcpu.vm
    slots = vcpu.memslots()
    hpa = gpa_to_hpa(slots, vm.mm, gpa, True)
    if hpa == NO_HPA:
        return X86EMUL_IO_NEEDED
    vm.memory.write(hpa, data)
    mark_page_dirty_in_slot(vcpu.vm, vcpu, slots.find(gpa_to_gfn(gpa)), gpa_to_gfn(gpa))
    track_write(vcpu, gpa, len(data))
    return X86EMUL_CONTINUE


def one_page(vcpu: Vcpu, gva: Gva, kind: int, data: bytes | None, size: int, has_exit_gpa: bool) -> int:
    """The part of an access that lies in one page."""
    ret = find_gpa(vcpu, gva, kind, has_exit_gpa)
    if ret == X86EMUL_PROPAGATE_FAULT:
        return X86EMUL_PROPAGATE_FAULT
    gpa = vcpu.mmio_gpa
    if ret == X86EMUL_CONTINUE:
        if data is not None:
            ret = write_ram(vcpu, gpa, data)
        elif gpa_to_hpa(vcpu.memslots(), vcpu.vm.mm, gpa, False) == NO_HPA:
            ret = X86EMUL_IO_NEEDED
        if ret == X86EMUL_CONTINUE:
            return X86EMUL_CONTINUE
    if data is not None and vcpu.vm.trace.on:
        trace_kvm_mmio(vcpu.vm.trace, KVM_TRACE_MMIO_WRITE, size, gpa, int.from_bytes(data[:8], "little"))
    return X86EMUL_IO_NEEDED


def emulate_memory(vcpu: Vcpu, gva: Gva, kind: int, data: bytes | None, size: int) -> int:
    """Make one access of an instruction that is being emulated: arguments and result as of :func:`emulate`.

    Each page of an access that crosses is translated by itself; what is a device's there becomes one device access,
    whose address is that of its first part (``vcpu.mmio_gpa``).
    """
    direct = role_direct(vcpu.mmu.root_role)
    offset = page_offset(vcpu.exit_address)
    first = min(size, PAGE_SIZE - page_offset(gva))
    has_exit_gpa = direct and offset == page_offset(gva)
    is_mmio = False
    fragment = vcpu.mmio_gpa
    ret = one_page(vcpu, gva, kind, None if data is None else data[:first], first, has_exit_gpa)
    if ret == X86EMUL_IO_NEEDED:
        is_mmio = True
        fragment = vcpu.mmio_gpa
    if ret != X86EMUL_PROPAGATE_FAULT and size > first:
        size -= first
        gva = (gva + first) & (U64 if vcpu.efer & EFER_LMA else U32)
        ret = one_page(vcpu, gva, kind, None if data is None else data[first:], size, direct and offset == 0)
        if ret == X86EMUL_IO_NEEDED and not is_mmio:
            is_mmio = True
            fragment = vcpu.mmio_gpa
    if ret == X86EMUL_PROPAGATE_FAULT or not is_mmio:
        return ret
    vcpu.mmio_gpa = fragment
    if data is None and vcpu.vm.trace.on:
        trace_kvm_mmio(vcpu.vm.trace, KVM_TRACE_MMIO_READ_UNSATISFIED, size, fragment, 0)
    vcpu.stat.mmio_exits += 1
    return X86EMUL_IO_NEEDED


def emulate(vcpu: Vcpu, gva: Gva, kind: int, data: bytes | None, size: int) -> int:
    """Make an access that ended with RUN_EMULATE: a store of ``data``, or (None) a read of ``size`` bytes at ``gva``.

    ``kind``: ACCESS_* bits, and ACCESS_NOT_PT_INSN. The access may cross into the next page. Return an X86EMUL_* word:
    CONTINUE, IO_NEEDED (``vcpu.mmio_gpa`` is the device's address; a read goes on with ``complete_mmio_read()``),
    PROPAGATE_FAULT (``vcpu.exception_*``), RETRY_INSTR, or UNHANDLEABLE (KVM_RUN ends with an internal error). Takes
    ``mmu_lock`` for stores to mirrored tables. A fetch (ACCESS_FETCH) is the instruction itself, at ``gva``: it needs
    memory, and is never a device's.
    """
    is_fetch = kind & ACCESS_FETCH != 0
    rip = gva if is_fetch and not vcpu.fetches_insns else vcpu.rip
    vcpu_load(vcpu)
    try:
        outcome = decode_at(vcpu, rip, kind, size) if is_fetch else decode_insn(vcpu, kind)
        if outcome != X86EMUL_CONTINUE:
            return decode_failed(vcpu, rip, kind, outcome)
        if is_fetch:
            return X86EMUL_CONTINUE
        if kind & ACCESS_NOT_PT_INSN and vcpu.emultype & EMULTYPE_ALLOW_RETRY_PF:
            if unprotect_and_retry(vcpu, vcpu.exit_address, False):
                return X86EMUL_RETRY_INSTR
        return emulate_memory(vcpu, gva, kind, data, size)
    finally:
        vcpu_put(vcpu)


def complete_mmio_read(vcpu: Vcpu, size: int, value: int) -> int:
    """The device answered a read of ``size`` bytes at ``vcpu.mmio_gpa`` with ``value``."""
    if vcpu.vm.trace.on:
        vcpu_load(vcpu)
        trace_kvm_mmio(vcpu.vm.trace, KVM_TRACE_MMIO_READ, size, vcpu.mmio_gpa, value)
        vcpu_put(vcpu)
    return 0
