# SPDX-License-Identifier: GPL-2.0-only
"""How one access of the guest ended, as a value (``World.read()``, ``write()``, ``fetch()``), and kvm's way to it.

Where the CPU could not make the access kvm does, and that may end KVM_RUN.
Reference: "Emulator memory path, retry and unprotect".
"""

from __future__ import annotations

from dataclasses import dataclass

from .addr import Gpa, Gva, Hpa
from .errors import KvmBug
from .hw.bits import ACCESS_FETCH, PF_VECTOR
from .kvm import emulate, guestmem
from .kvm.bits import INVALID_GPA
from .kvm.mmu import walker
from .kvm.outcome import X86EMUL_IO_NEEDED, X86EMUL_PROPAGATE_FAULT, X86EMUL_RETRY_INSTR, X86EMUL_UNHANDLEABLE
from .kvm.vcpu import Vcpu
from .page_types import PAGE_SIZE

#: KVM_INTERNAL_ERROR_EMULATION: the suberror of an emulation failure.
KVM_INTERNAL_ERROR_EMULATION = 1
#: Flag of its data: the bytes of the instruction follow, as far as they could be fetched.
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1
#: Reasons of an SVM exit: ``#PF`` intercepted (shadow paging), and a nested page fault.
SVM_EXIT_EXCP_PF = 0x4E
SVM_EXIT_NPF = 0x400

#: Most bytes of an instruction; what could not be fetched of them is NOPs in struct kvm_run.
INSN_MAX = 15
_NOP = b"\x90"


@dataclass(frozen=True, slots=True)
class EmulationFailure:
    """KVM_EXIT_INTERNAL_ERROR with suberror 1: kvm could not emulate an instruction, and KVM_RUN ended.

    ``exit_reason``, ``exit_info1`` (the fault's error code) and ``exit_info2`` (its gva, or gpa under nested paging)
    are the CPU's exit; ``insn_bytes`` what could be fetched; ``ud_queued``: who runs on gives the guest ``#UD``.
    """

    exit_reason: int
    exit_info1: int
    exit_info2: int
    insn_bytes: bytes = b""
    ud_queued: bool = True
    suberror: int = KVM_INTERNAL_ERROR_EMULATION

    @property
    def flags(self) -> int:
        """The first word of the data."""
        return KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES if self.insn_bytes else 0

    @property
    def data(self) -> tuple[int, ...]:
        """``kvm_run.internal.data`` up to ``ndata``: flags, size and bytes of the instruction, the exit's five words.

        The last two, an event whose delivery the exit interrupted and its error code, are always 0 here.
        """
        insn: tuple[int, ...] = ()
        if self.insn_bytes:
            raw = bytes([len(self.insn_bytes)]) + self.insn_bytes.ljust(INSN_MAX, _NOP)
            insn = (int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little"))
        return (self.flags, *insn, self.exit_reason, self.exit_info1, self.exit_info2, 0, 0)


@dataclass(frozen=True, slots=True)
class Access:
    """How one guest access ended.

    ``kind``: ``"done"`` (``data`` is what a read found), ``"fault"`` (the guest got exception ``vector``: ``#PF`` with
    ``error_code`` at ``address``, or ``#UD`` for the instruction there), ``"mmio"`` (a device at gpa ``address`` must
    answer), or ``"emulation-failure"`` (KVM_RUN ended at the instruction at ``address``; ``failure`` has the facts).
    """

    kind: str
    data: bytes = b""
    error_code: int = 0
    address: int = 0
    vector: int = PF_VECTOR
    failure: EmulationFailure | None = None

    def __repr__(self) -> str:
        if self.kind == "fault" and self.vector != PF_VECTOR:
            return f"<Access fault #UD at {self.address:#x}>"
        if self.kind == "fault":
            return f"<Access fault #PF({self.error_code:#x}) at {self.address:#x}>"
        if self.kind == "mmio":
            return f"<Access mmio gpa {self.address:#x}>"
        if self.kind == "emulation-failure":
            return f"<Access emulation-failure at {self.address:#x}: {self.failure!r}>"
        return f"<Access done {self.data.hex()}>"


def emulate_access(
    vcpu: Vcpu, gva: Gva, kind: int, data: bytes | None, size: int, places: list[tuple[Hpa, int, int]]
) -> Access | None:
    """Let kvm make an access that ended with RUN_EMULATE; None: the guest must try again.

    Arguments as of ``kvm.emulate.emulate()``; ``places``: the pages before, where each is and from which byte to which.
    An exception that the guest gets is delivered; the ``#UD`` of an emulation failure waits for the next KVM_RUN.
    """
    outcome = emulate.emulate(vcpu, gva, kind, data, size)
    if outcome == X86EMUL_PROPAGATE_FAULT:
        vcpu.exception_pending = False
        if vcpu.exception_vector != PF_VECTOR:
            return Access("fault", address=_insn_at(vcpu, gva, kind), vector=vcpu.exception_vector)
        return Access("fault", error_code=vcpu.exception_error_code, address=vcpu.cr2)
    if outcome == X86EMUL_IO_NEEDED:
        return Access("mmio", address=vcpu.mmio_gpa)
    if outcome == X86EMUL_UNHANDLEABLE:
        return Access("emulation-failure", address=_insn_at(vcpu, gva, kind), failure=_failure(vcpu, kind, places))
    if outcome == X86EMUL_RETRY_INSTR:
        return None
    return Access("done", b"" if data is not None else _emulated_read(vcpu, gva, kind, size))


# Where the instruction is: a fetch is of itself.
def _insn_at(vcpu: Vcpu, gva: Gva, kind: int) -> Gva:
    return gva if kind & ACCESS_FETCH else Gva(vcpu.rip)


# KVM_RUN ended. Of an instruction in two pages, what lies in the first was fetched if the second is the hole.
def _failure(vcpu: Vcpu, kind: int, places: list[tuple[Hpa, int, int]]) -> EmulationFailure:
    insn = b""
    if kind & ACCESS_FETCH and places and vcpu.mmio_gpa % PAGE_SIZE == 0:
        hpa, start, end = places[0]
        insn = vcpu.vm.memory.read(hpa, min(end - start, INSN_MAX))
    cpu = vcpu.cpu
    reason, code = (SVM_EXIT_NPF, cpu.fault_code) if vcpu.vm.tdp_enabled else (SVM_EXIT_EXCP_PF, cpu.error_code)
    return EmulationFailure(reason, code, vcpu.exit_address, insn, vcpu.exception_pending)


# What a read finds that kvm has just made; its last part lies at vcpu.mmio_gpa.
def _emulated_read(vcpu: Vcpu, gva: Gva, kind: int, size: int) -> bytes:
    first = min(size, PAGE_SIZE - gva % PAGE_SIZE)
    if size == first:
        return _read(vcpu, vcpu.mmio_gpa, size)
    second = _read(vcpu, vcpu.mmio_gpa, size - first)
    gpa = walker.gva_to_gpa(vcpu, vcpu.walk_mmu, gva, emulate.walk_access(kind))
    return _read(vcpu, Gpa(vcpu.exit_address) if gpa == INVALID_GPA else gpa, first) + second


def _read(vcpu: Vcpu, gpa: Gpa, size: int) -> bytes:
    data = guestmem.read_guest(vcpu.vm, 0, gpa, size)
    if data is None:
        raise KvmBug(f"gpa {gpa:#x}: kvm read {size} bytes there, and finds no memory now")
    return data
