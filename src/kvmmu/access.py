# SPDX-License-Identifier: GPL-2.0-only
"""Accesses through a world's door: the guest's loads, stores and fetches, and the VMM's to the guest's memory.

These are the calls that a test or a fuzzer makes millions of times. Each checks what it was handed, as every call
of the API does (:mod:`kvmmu.guard` has the words of a refusal), and is then done in compiled code.
"""

from __future__ import annotations

from typing import Any

from . import arguments, guard
from .addr import Gpa, Gva, Hpa
from .door import Door
from .emulationfailure import INSN_MAX, SVM_EXIT_EXCP_PF, SVM_EXIT_NPF, EmulationFailure
from .errors import GuestMisuse, KvmBug
from .hw.bits import ACCESS_AC, ACCESS_FETCH, CR4_LA57, EFER_LMA, PF_VECTOR, X86_EFLAGS_AC
from .kvm import emulate
from .kvm.bits import INVALID_GPA
from .kvm.guestmem import read_guest, write_from_process
from .kvm.mmu import walker
from .kvm.outcome import (
    RUN_ERROR,
    RUN_FAULT,
    RUN_HIT,
    RUN_SHUTDOWN,
    X86EMUL_IO_NEEDED,
    X86EMUL_PROPAGATE_FAULT,
    X86EMUL_RETRY_INSTR,
    X86EMUL_UNHANDLEABLE,
)
from .kvm.run import access, enter
from .kvm.vcpu import Vcpu
from .kvm.vm import Vm
from .page_types import PAGE_SIZE, U64

# Ranges of at most a page from here down do not pass the end of addresses.
_LAST_WORD = U64 - PAGE_SIZE


class Access:
    """How one guest access ended.

    ``kind``: ``"done"`` (``data`` is what a read found), ``"fault"`` (the guest got exception ``vector``: ``#PF`` with
    ``error_code`` at ``address``, or ``#UD`` for the instruction there), ``"mmio"`` (a device at gpa ``address`` must
    answer), or ``"emulation-failure"`` (KVM_RUN ended at the instruction at ``address``; ``failure`` has the facts).
    Values that are equal in all fields are equal; none changes.
    """

    __slots__ = ("address", "data", "error_code", "failure", "kind", "vector")
    __match_args__ = ("kind", "data", "error_code", "address", "vector", "failure")

    def __init__(
        self,
        kind: str,
        data: bytes = b"",
        error_code: int = 0,
        address: int = 0,
        vector: int = PF_VECTOR,
        failure: EmulationFailure | None = None,
    ) -> None:
        self.kind = kind
        self.data = data
        self.error_code = error_code
        self.address = address
        self.vector = vector
        self.failure = failure

    def _fields(self) -> tuple[Any, ...]:
        return (self.kind, self.data, self.error_code, self.address, self.vector, self.failure)

    def __eq__(self, other: object) -> bool:
        return other._fields() == self._fields() if isinstance(other, Access) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._fields())

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


_DONE = Access("done")


# The VMM's.


def peek(door: Door, vm: Vm, gpa: Any, size: Any) -> bytes:
    """``size`` bytes of guest memory at ``gpa``: ``World.peek()``."""
    door.enter()
    try:
        if type(gpa) is not int or type(size) is not int or not 0 <= gpa <= _LAST_WORD or not 0 <= size <= PAGE_SIZE:
            guard.span(gpa, size)
        data = read_guest(vm, 0, gpa, size)
        if data is None:
            raise GuestMisuse(f"gpa {gpa:#x}: no memslot there; add_slot() first")
        return data
    finally:
        door.leave()


def poke(door: Door, vm: Vm, gpa: Any, data: Any, size: Any) -> None:
    """Store ``data`` at ``gpa`` as the VMM does: ``World.poke()``."""
    door.enter()
    try:
        raw = bytes_at(gpa, data, size)
        if gpa % PAGE_SIZE + len(raw) > PAGE_SIZE:
            guard.store(vm, gpa, len(raw))
        if write_from_process(vm, 0, gpa, raw):
            raise GuestMisuse(f"gpa {gpa:#x}: no memslot there, or the process has nothing to write; add_slot() first")
    finally:
        door.leave()


def bytes_at(gpa: Any, data: Any, size: Any) -> bytes:
    """What to store at ``gpa``, if there is such a range of addresses.

    :raises GuestMisuse: there is none, or ``data`` (with ``size``, if it is a number) is nothing that can be stored.
    """
    raw = data if type(data) is bytes else arguments.data_bytes(data, size)
    if type(gpa) is not int or not 0 <= gpa <= _LAST_WORD or len(raw) > PAGE_SIZE:
        guard.span(gpa, len(raw))
    return raw


# The guest's.


def guest_access(door: Door, vm: Vm, vcpu: Any, gva: Any, kind: int, data: bytes | None, size: Any) -> Access:
    """An access of ``kind`` (ACCESS_* bits) to ``size`` bytes at ``gva`` by the code that ``vcpu`` runs.

    ``data``: what a store stores; None: a load or fetch.

    :raises UserError: what is no access of a vCPU of ``vm``.
    """
    door.enter()
    try:
        if type(gva) is not int or type(size) is not int or type(vcpu) is not Vcpu or vcpu.vm is not vm:
            guard.access(vm, vcpu, gva, size)
        if not (0 <= gva <= U64 and 1 <= size <= PAGE_SIZE and is_linear(vcpu, gva, size)):
            guard.linear(vcpu, gva, size)
        return _access(vcpu, gva, kind, data, size)
    finally:
        door.leave()


def is_linear(vcpu: Vcpu, gva: int, size: int) -> bool:
    """Whether one instruction can access ``size`` (1 to 4096) bytes at ``gva``: canonical, or below 4 GiB."""
    last = (gva + size - 1) & U64
    if not vcpu.efer & EFER_LMA:
        return gva <= last and last >> 32 == 0
    unused = 56 if vcpu.cr4 & CR4_LA57 else 47
    top = gva >> unused
    return top in (0, U64 >> unused) and last >> unused == top


def _access(vcpu: Vcpu, gva: int, kind: int, data: bytes | None, size: int) -> Access:
    if vcpu.rflags & X86_EFLAGS_AC:
        kind |= ACCESS_AC
    first = PAGE_SIZE - gva % PAGE_SIZE
    if first < size:
        return _access_two(vcpu, gva, kind, data, size, first)
    while True:
        status = _run(vcpu, gva, kind)
        if status == RUN_HIT:
            break
        ended = _end(vcpu, status, gva, kind, data, size, [])
        if ended is not None:
            return ended
    if data is None:
        return Access("done", vcpu.vm.memory.read(vcpu.cpu.hpa, size))
    vcpu.vm.memory.write(vcpu.cpu.hpa, data)
    return _DONE


# Bytes from `first` on are in the next page. Both must be reachable before anything is stored.
def _access_two(vcpu: Vcpu, gva: int, kind: int, data: bytes | None, size: int, first: int) -> Access:
    memory = vcpu.vm.memory
    while True:
        places: list[tuple[Hpa, int, int]] = []
        status = _run(vcpu, gva, kind)
        if status == RUN_HIT:
            places.append((vcpu.cpu.hpa, 0, first))
            status = _run(vcpu, gva + first, kind)
        if status == RUN_HIT:
            break
        ended = _end(vcpu, status, gva, kind, data, size, places)
        if ended is not None:
            return ended
    places.append((vcpu.cpu.hpa, first, size))
    if data is None:
        return Access("done", b"".join([memory.read(hpa, end - start) for hpa, start, end in places]))
    for hpa, start, end in places:
        memory.write(hpa, data[start:end])
    return _DONE


def _run(vcpu: Vcpu, gva: int, kind: int) -> int:
    # The #UD of an emulation failure is delivered when the vCPU runs on.
    if vcpu.exception_pending:
        status = enter(vcpu)
        vcpu.exception_pending = False
        if status:
            return status
    return access(vcpu, Gva(gva), kind)


# How an access ended that missed with `status` in the page after `places`; None: the guest must try again.
def _end(
    vcpu: Vcpu, status: int, gva: int, kind: int, data: bytes | None, size: int, places: list[tuple[Hpa, int, int]]
) -> Access | None:
    if status == RUN_FAULT:
        return Access("fault", error_code=vcpu.exception_error_code, address=vcpu.cr2)
    if status == RUN_SHUTDOWN:
        raise GuestMisuse(f"access at {gva:#x}: vCPU {vcpu.vcpu_id} shut down after a triple fault")
    if status == RUN_ERROR:
        raise guard.run_error(vcpu, gva)
    return _emulate(vcpu, Gva(gva), kind, data, size, places)


# Kvm makes the access. An exception that the guest gets is delivered; the #UD of an emulation failure waits for the
# next KVM_RUN. Reference: "Emulator memory path, retry and unprotect".
def _emulate(
    vcpu: Vcpu, gva: Gva, kind: int, data: bytes | None, size: int, places: list[tuple[Hpa, int, int]]
) -> Access | None:
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
    data = read_guest(vcpu.vm, 0, gpa, size)
    if data is None:
        raise KvmBug(f"gpa {gpa:#x}: kvm read {size} bytes there, and finds no memory now")
    return data
