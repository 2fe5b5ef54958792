# SPDX-License-Identifier: GPL-2.0-only
"""The emulator's path to memory: what kvm does with an access that the guest could not make itself.

Two reasons lead here: the address is a device's (MMIO), or it is a mirrored guest table, where the store is made on the
guest's behalf and its consequences are drawn. The model has accesses, not instructions: size and data come from the
caller, who also says whether the instruction is one that writes page tables.
Reference: "Emulator memory path, retry and unprotect".
"""

from __future__ import annotations

from ..addr import INVALID_PAGE, PAGE_MASK, PAGE_SIZE, U64, Gpa, Gva, gpa_to_gfn, page_offset
from ..host.mm import NO_HPA
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
)
from .exception import UD_VECTOR, queue_exception
from .guestmem import gpa_to_hpa, mark_page_dirty_in_slot
from .kvmtrace import (
    EMUL_PROT64,
    MMIO_READ,
    MMIO_READ_UNSATISFIED,
    MMIO_WRITE,
    trace_emulate_insn,
    trace_kvm_mmio,
    trace_vcpu_match_mmio,
)
from .mmu.context import permission_fault
from .mmu.gptewrite import track_write, unprotect_and_retry
from .mmu.mmio import match_gpa, match_gva
from .mmu.pagefault import EMULTYPE_ALLOW_RETRY_PF, EMULTYPE_WRITE_PF_TO_SP, inject_page_fault
from .mmu.role import cpu_role_paging, role_direct
from .mmu.walker import gva_to_gpa_walk
from .vcpu import Vcpu

#: How an emulated access ends: done in RAM; a device's, at ``vcpu.mmio_gpa``; an exception for the guest; not emulated
#: after all, because the table is no longer mirrored and the guest may try again.
EMULATED = 0
MMIO = 1
EMULATED_FAULT = 2
RETRY_INSN = 3
#: Kvm gives up: the supervisor's instruction lies in a device.
UNHANDLEABLE = 4
#: Beside the ACCESS_* bits of an access: the instruction is not of those that usually write page tables (it is a string
#: move, an xor ...), so kvm rather stops mirroring the table than emulates.
ACCESS_NOT_PT_INSN = 1 << 16
#: Where the local APIC's registers are by default.
APIC_DEFAULT_PHYS_BASE = 0xFEE0_0000

_INVALID_PAGE = INVALID_PAGE
_PAGE_MASK = PAGE_MASK
_PAGE_SIZE = PAGE_SIZE
_U64 = U64
_U32 = 0xFFFF_FFFF
_EFER_LMA = EFER_LMA
_NO_HPA = NO_HPA
_PFERR_WRITE = PFERR_WRITE
_PFERR_USER = PFERR_USER
_PFERR_FETCH = PFERR_FETCH
_PFERR_IMPLICIT = PFERR_IMPLICIT_ACCESS
_APIC_DEFAULT_PHYS_BASE = APIC_DEFAULT_PHYS_BASE
_KIND_WRITE = ACCESS_WRITE
_KIND_USER = ACCESS_USER
_KIND_FETCH = ACCESS_FETCH
_KIND_IMPLICIT = ACCESS_IMPLICIT
_KIND_NOT_PT_INSN = ACCESS_NOT_PT_INSN
_DONE = EMULATED
_MMIO = MMIO
_FAULT = EMULATED_FAULT
_RETRY = RETRY_INSN
_UNHANDLEABLE = UNHANDLEABLE
_UD_VECTOR = UD_VECTOR
_EMULTYPE_WRITE_PF_TO_SP = EMULTYPE_WRITE_PF_TO_SP
_MMIO_WRITE = MMIO_WRITE
_MMIO_READ_UNSATISFIED = MMIO_READ_UNSATISFIED
_MMIO_READ = MMIO_READ
_EMULTYPE_ALLOW_RETRY_PF = EMULTYPE_ALLOW_RETRY_PF


def walk_access(kind: int) -> int:
    """The software walk's access word for an access of this kind."""
    access = _PFERR_WRITE if kind & _KIND_WRITE else 0
    if kind & _KIND_FETCH:
        access = _PFERR_FETCH
    if kind & _KIND_IMPLICIT:
        return access | _PFERR_IMPLICIT
    return access | (_PFERR_USER if kind & _KIND_USER else 0)


def fetch_insn(vcpu: Vcpu, kind: int) -> int:
    """Fetch the instruction at rip as the emulator must without decode assists: EMULATED, _FAULT, or UNHANDLEABLE."""
    access = _PFERR_FETCH | (_PFERR_USER if kind & _KIND_USER else 0)
    gpa = gva_to_gpa_walk(vcpu, vcpu.guest_walk, vcpu.rip, access)  # type: ignore[arg-type]
    if gpa == _INVALID_PAGE:
        return _FAULT
    if gpa_to_hpa(vcpu.memslots(), vcpu.vm.mm, gpa, False) == _NO_HPA:
        return _UNHANDLEABLE
    return _DONE


def decode_insn(vcpu: Vcpu, kind: int) -> int:
    """Begin to emulate or skip the instruction at ``rip``: fetch and count it; ``kind``: ACCESS_USER at CPL 3.

    Drops an exception that was to be delivered. Return EMULATED; EMULATED_FAULT: the fetch faulted as
    ``vcpu.guest_walk`` says; or UNHANDLEABLE: a device's address. Neither is acted upon yet.
    """
    vcpu.exception_pending = False
    vcpu.exception_reinjected = False
    fetched = fetch_insn(vcpu, kind) if vcpu.fetches_insns else _DONE
    vcpu.stat.insn_emulation += 1
    if vcpu.vm.trace.on:
        trace_emulate_insn(vcpu.vm.trace, vcpu.rip)
    return fetched


def decode_failed(vcpu: Vcpu, kind: int, outcome: int) -> int:
    """What ``outcome`` of ``decode_insn()``, not EMULATED, means: RETRY_INSN, EMULATED_FAULT or UNHANDLEABLE.

    An instruction that wrote to a mirrored table is retried without the mirror, unless the table maps itself.
    """
    if vcpu.exit_action & _EMULTYPE_ALLOW_RETRY_PF and not vcpu.exit_action & _EMULTYPE_WRITE_PF_TO_SP:
        unprotect_and_retry(vcpu, vcpu.exit_address, True)
        return _RETRY
    if outcome == _FAULT:
        inject_page_fault(vcpu, vcpu.guest_walk)
        return _FAULT
    vcpu.stat.insn_emulation_fail += 1
    if vcpu.vm.trace.on:
        trace_emulate_insn(vcpu.vm.trace, vcpu.rip, EMUL_PROT64, True)
    queue_exception(vcpu, _UD_VECTOR, False, 0)
    return _FAULT if kind & _KIND_USER else _UNHANDLEABLE


def is_mmio_gpa(vcpu: Vcpu, gva: Gva, gpa: Gpa, is_write: bool) -> bool:
    """Whether gpa is known not to be RAM without asking the slots."""
    if gpa & _PAGE_MASK == _APIC_DEFAULT_PHYS_BASE:
        return True
    if not match_gpa(vcpu, gpa):
        return False
    if vcpu.vm.trace.on:
        trace_vcpu_match_mmio(vcpu.vm.trace, gva, gpa, is_write, True)
    return True


def find_gpa(vcpu: Vcpu, gva: Gva, kind: int, has_exit_gpa: bool) -> int:
    """Set vcpu.mmio_gpa to the address of gva. Returns MMIO (known to be), EMULATED (try RAM), or EMULATED_FAULT."""
    mmu = vcpu.mmu
    is_write = kind & _KIND_WRITE != 0
    if has_exit_gpa:
        vcpu.mmio_gpa = vcpu.exit_address  # type: ignore[assignment]
        return _MMIO if is_mmio_gpa(vcpu, gva, vcpu.mmio_gpa, is_write) else _DONE
    access = walk_access(kind)
    if match_gva(vcpu, gva) and (
        not cpu_role_paging(mmu.cpu_role)
        or permission_fault(mmu, vcpu.mmio_access, 0, access, vcpu.rflags, vcpu.pkru) == 0
    ):
        vcpu.mmio_gpa = (vcpu.mmio_gfn << 12) | page_offset(gva)  # type: ignore[assignment]
        if vcpu.vm.trace.on:
            trace_vcpu_match_mmio(vcpu.vm.trace, gva, vcpu.mmio_gpa, is_write, False)
        return _MMIO
    gpa = gva_to_gpa_walk(vcpu, vcpu.guest_walk, gva, access)
    if gpa == _INVALID_PAGE:
        inject_page_fault(vcpu, vcpu.guest_walk)
        return _FAULT
    vcpu.mmio_gpa = gpa
    return _MMIO if is_mmio_gpa(vcpu, gva, gpa, is_write) else _DONE


def write_ram(vcpu: Vcpu, gpa: Gpa, data: bytes) -> int:
    """Store data, which lies in one page, on the guest's behalf. EMULATED, or MMIO: no RAM there."""
    vm = vcpu.vm
    slots = vcpu.memslots()
    hpa = gpa_to_hpa(slots, vm.mm, gpa, True)
    if hpa == _NO_HPA:
        return _MMIO
    vm.memory.write(hpa, data)
    mark_page_dirty_in_slot(slots.find(gpa_to_gfn(gpa)), gpa_to_gfn(gpa))
    track_write(vcpu, gpa, len(data))
    return _DONE


def one_page(vcpu: Vcpu, gva: Gva, kind: int, data: bytes | None, size: int, has_exit_gpa: bool) -> int:
    """The part of an access that lies in one page."""
    ret = find_gpa(vcpu, gva, kind, has_exit_gpa)
    if ret == _FAULT:
        return _FAULT
    gpa = vcpu.mmio_gpa
    if ret == _DONE:
        if data is not None:
            ret = write_ram(vcpu, gpa, data)
        elif gpa_to_hpa(vcpu.memslots(), vcpu.vm.mm, gpa, False) == _NO_HPA:
            ret = _MMIO
        if ret == _DONE:
            return _DONE
    if data is not None and vcpu.vm.trace.on:
        trace_kvm_mmio(vcpu.vm.trace, _MMIO_WRITE, size, gpa, int.from_bytes(data[:8], "little"))
    return _MMIO


def emulate_memory(vcpu: Vcpu, gva: Gva, kind: int, data: bytes | None, size: int) -> int:
    """Make one access of an instruction that is being emulated: arguments and result as of :func:`emulate`.

    Each page of an access that crosses is translated by itself; what is a device's there becomes one device access,
    whose address is that of its first part (``vcpu.mmio_gpa``).
    """
    direct = role_direct(vcpu.mmu.root_role)
    offset = page_offset(vcpu.exit_address)
    first = min(size, _PAGE_SIZE - page_offset(gva))
    has_exit_gpa = direct and offset == page_offset(gva)
    is_mmio = False
    fragment = vcpu.mmio_gpa
    ret = one_page(vcpu, gva, kind, None if data is None else data[:first], first, has_exit_gpa)
    if ret == _MMIO:
        is_mmio = True
        fragment = vcpu.mmio_gpa
    if ret != _FAULT and size > first:
        size -= first
        gva = (gva + first) & (_U64 if vcpu.efer & _EFER_LMA else _U32)  # type: ignore[assignment]
        ret = one_page(vcpu, gva, kind, None if data is None else data[first:], size, direct and offset == 0)
        if ret == _MMIO and not is_mmio:
            is_mmio = True
            fragment = vcpu.mmio_gpa
    if ret == _FAULT or not is_mmio:
        return ret
    vcpu.mmio_gpa = fragment
    if data is None and vcpu.vm.trace.on:
        trace_kvm_mmio(vcpu.vm.trace, _MMIO_READ_UNSATISFIED, size, fragment, 0)
    vcpu.stat.mmio_exits += 1
    return _MMIO


def emulate(vcpu: Vcpu, gva: Gva, kind: int, data: bytes | None, size: int) -> int:
    """Make an access that ended with EMULATE: a store of ``data`` or, with None, a read of ``size`` bytes at ``gva``.

    ``kind``: ACCESS_* bits, and ACCESS_NOT_PT_INSN. The access may cross into the next page. Return EMULATED, MMIO
    (``vcpu.mmio_gpa`` is the device's address; a read goes on with ``complete_mmio_read()``), EMULATED_FAULT
    (``vcpu.exception_*``), RETRY_INSN, or UNHANDLEABLE (KVM_RUN ends with an internal error). Takes ``mmu_lock`` for
    stores to mirrored tables.
    """
    outcome = decode_insn(vcpu, kind)
    if outcome != _DONE:
        return decode_failed(vcpu, kind, outcome)
    if kind & _KIND_NOT_PT_INSN and vcpu.exit_action & _EMULTYPE_ALLOW_RETRY_PF:
        if unprotect_and_retry(vcpu, vcpu.exit_address, False):
            return _RETRY
    return emulate_memory(vcpu, gva, kind, data, size)


def complete_mmio_read(vcpu: Vcpu, size: int, value: int) -> int:
    """The device answered a read of ``size`` bytes at ``vcpu.mmio_gpa`` with ``value``."""
    if vcpu.vm.trace.on:
        trace_kvm_mmio(vcpu.vm.trace, _MMIO_READ, size, vcpu.mmio_gpa, value)
    return 0
