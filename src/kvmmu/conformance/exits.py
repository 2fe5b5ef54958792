# SPDX-License-Identifier: GPL-2.0-only
"""What kvm does for each exit of a transcript: the half of fault replay that stands for ``svm.c`` and the emulator.

An exit comes with its reason, its address and its error code. The model's guest must be where it happened, kvm handles
it, and enters again unless the VMM is to act first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from ..addr import Gva
from ..errors import RecordingError
from ..hw.bits import (
    ACCESS_USER,
    ACCESS_WRITE,
    CR0_CD,
    CR0_ET,
    CR0_NW,
    CR0_PG,
    GP_VECTOR,
    PFERR_USER,
    PFERR_WRITE,
    UD_VECTOR,
)
from ..kvm import emulate, run, sregs
from ..kvm.bits import ACCESS_NOT_PT_INSN
from ..kvm.exception import queue_exception
from ..kvm.mmu.role import role_level
from ..kvm.mmu.walker import gva_to_gpa
from ..kvm.mode import leave_guest_mode
from ..kvm.outcome import RUN_ERROR, RUN_SHUTDOWN, X86EMUL_CONTINUE, X86EMUL_IO_NEEDED, X86EMUL_UNHANDLEABLE
from ..tracepoint import Event
from .comparison import NOTHING_MORE, Comparison
from .guest import Guest, Parted
from .program import Access, modified
from .scenario import Scenario
from .transcript import Exit, Transcript
from .vmm import Vmm

_INTR_VALID = 1 << 31
_INTR_HAS_ERROR = 1 << 11
_INTR_EXCEPTION = 3
_MSR_EFER = 0xC000_0080
_U32 = 0xFFFF_FFFF
_PAGE_FAULTS = ("PF excp", "npf")


class Exits:
    """A transcript in play, as far as its exits go: :meth:`play_exit` for each."""

    def __init__(self, scenario: Scenario, transcript: Transcript) -> None:
        self.scenario = scenario
        self.transcript = transcript
        self.vmm = Vmm(scenario, transcript.mode)
        self.vcpu = self.vmm.vcpu
        self.guest = Guest(self.vmm)
        self.events: list[Event] = []
        self.compare = Comparison(self.vmm, transcript, f"{scenario.name}.{transcript.mode}")
        self.outcome = self.compare.outcome
        for slot_id in self.vmm.slots:
            self.compare.name_slot(slot_id)
        self.vmm.world.on_event(self.events.append)
        # Whether KVM_RUN was called for the last time.
        self.has_ended = False
        # A device access that the VMM is to answer.
        self.mmio: Access | None = None
        # What KVM_RUN failed with.
        self.run_errno = 0
        # KVM_RUN failed in the middle of an operation, which goes on when the VMM has mended what it can.
        self.has_failed = False

    def play_exit(self, exit_: Exit) -> None:
        """The guest runs to where it exited; kvm handles that, and enters again unless the VMM must act first.

        :raises Parted: the guest is not there, or the model's CPU does not fault as the recorded one did.
        :raises RecordingError: an exit that the model cannot play.
        """
        vcpu = self.vcpu
        self.has_failed = False
        self.guest.flush()
        access = self.guest.catch_up(exit_.rip, exit_.info2)
        if exit_.reason in _PAGE_FAULTS and self.guest.expect_fault(access, exit_.info2, exit_.info1, exit_.rip):
            self.outcome.nr_faults += 1
        if self.events:
            raise Parted(
                "the guest ran without an exit", NOTHING_MORE, self.compare.normaliser.line(self.events[0]) or ""
            )
        vcpu.rip = exit_.rip
        leave_guest_mode(vcpu)
        pdptes = self.guest.pdptes
        if exit_.info2 >> 12 != vcpu.cr3 >> 12:
            pdptes.note_walk(exit_.rip)
        pdptes.show()
        self._handle_exit(exit_, access)
        pdptes.hide()
        if self.mmio is None and not self.run_errno and not self.has_ended:
            self.enter()

    def _handle_exit(self, exit_: Exit, access: Access | None) -> None:
        self._note_interrupted(exit_)
        if exit_.reason in _PAGE_FAULTS:
            self._page_fault(exit_, access)
        else:
            handler = self._EXITS.get(exit_.reason)
            if handler is None:
                raise RecordingError(f"{self.outcome.transcript}: exit {exit_.reason!r}: the model cannot play it")
            handler(self, exit_)

    # An exit during the delivery of an exception: kvm must deliver it again.
    def _note_interrupted(self, exit_: Exit) -> None:
        is_exception = exit_.intr & _INTR_VALID != 0 and exit_.intr >> 8 & 7 == _INTR_EXCEPTION
        self.vcpu.exception_pending = is_exception
        self.vcpu.exception_reinjected = is_exception
        if is_exception:
            self.vcpu.exception_vector = exit_.intr & 0xFF
            self.vcpu.exception_has_error = exit_.intr & _INTR_HAS_ERROR != 0
            self.vcpu.exception_error_code = exit_.err

    def enter(self) -> None:
        """Enter the guest, or note why KVM_RUN ends."""
        vcpu = self.vcpu
        ret = run.enter(vcpu)
        if ret == RUN_ERROR:
            self.run_errno = -vcpu.run_errno
            return
        if ret == RUN_SHUTDOWN:
            self.end_guest()
            return
        self.compare.loaded_root = (vcpu.mmu.root_hpa, role_level(vcpu.mmu.root_role))
        if vcpu.exception_pending and not vcpu.exception_reinjected:
            self.guest.got_exception(vcpu.exception_vector, vcpu.exception_error_code)
        vcpu.exception_pending = False
        vcpu.exception_reinjected = False

    # Fetch and decode the instruction at rip, as kvm must do without the CPU's help; False: that faulted.
    def _decode(self, exit_: Exit) -> bool:
        execution = self.guest.execution
        is_user = execution is not None and execution.is_user_code(exit_.rip)
        kind = ACCESS_USER if is_user else 0
        self.vcpu.emultype = 0
        outcome = emulate.decode_insn(self.vcpu, kind)
        if outcome != X86EMUL_CONTINUE:
            emulate.decode_failed(self.vcpu, Gva(self.vcpu.rip), kind, outcome)
        return outcome == X86EMUL_CONTINUE

    def _operand(self, *names: str) -> int:
        execution = self.guest.execution
        if execution is None or execution.op.name not in names:
            raise RecordingError(f"{self.outcome.transcript}: {self.compare.place}: does not do {' or '.join(names)}")
        execution.has_insn = False
        return execution.op.a if self.scenario.mode == "long" else execution.op.a & _U32

    def end_guest(self) -> None:
        """The guest runs no more; its last operation stays as it is."""
        self.has_ended = True
        self.guest.execution = None

    def _page_fault(self, exit_: Exit, access: Access | None) -> None:
        ret = run.handle_page_fault(self.vcpu, exit_.info2, exit_.info1)
        if ret < 0:
            self.run_errno = -ret
        elif self.vcpu.emultype:
            if access is None:
                raise RecordingError(
                    f"{self.outcome.transcript}: {self.compare.place}: the access at {exit_.info2:#x} is unknown"
                )
            self._emulate(access)

    def _emulate(self, access: Access) -> None:
        if access.is_modify:
            self._emulate_modify(access)
            return
        outcome = emulate.emulate(self.vcpu, Gva(access.gva), access.kind, access.data, access.size)
        if outcome == X86EMUL_UNHANDLEABLE:
            self.end_guest()
        elif outcome == X86EMUL_IO_NEEDED:
            self.mmio = access
        elif outcome == X86EMUL_CONTINUE:
            found = None if access.data is not None else self.vmm.peek(self.vcpu.mmio_gpa, access.size)
            self.guest.done(access, found)

    # A load and a store by one instruction, of a kind that does not write page tables as a rule.
    def _emulate_modify(self, access: Access) -> None:
        kind = access.kind & ~ACCESS_WRITE | ACCESS_NOT_PT_INSN
        outcome = emulate.emulate(self.vcpu, Gva(access.gva), kind, None, access.size)
        if outcome == X86EMUL_CONTINUE:
            self.store_modified(access, int.from_bytes(self.vmm.peek(self.vcpu.mmio_gpa, access.size), "little"))
        elif outcome == X86EMUL_IO_NEEDED:
            self.mmio = access

    def look_for_exchange(self, access: Access) -> None:
        """A locked instruction is a cmpxchg for kvm: it looks where that would be before it finds a device there."""
        execution = self.guest.execution
        if execution is not None and execution.op.name in ("add", "uadd"):
            user = PFERR_USER if access.kind & ACCESS_USER else 0
            gva_to_gpa(self.vcpu, self.vcpu.walk_mmu, Gva(access.gva), PFERR_WRITE | user)

    def store_modified(self, access: Access, old: int) -> None:
        """The second half of a read-modify-write instruction: the store, over ``old``, which the load found."""
        if self.guest.execution is None:
            return
        data = modified(access, self.guest.execution.op, old).to_bytes(access.size, "little")
        outcome = emulate.emulate_memory(self.vcpu, Gva(access.gva), access.kind, data, access.size)
        if outcome == X86EMUL_CONTINUE:
            self.guest.done(access, None)
        elif outcome == X86EMUL_IO_NEEDED:
            self.mmio = access

    def _exit_invlpg(self, exit_: Exit) -> None:
        if self._decode(exit_):
            sregs.invlpg(self.vcpu, Gva(self._operand("invlpg")))

    def _exit_cr0(self, exit_: Exit) -> None:
        if self._decode(exit_) and sregs.set_cr0(self.vcpu, self._operand("cr0")):
            queue_exception(self.vcpu, GP_VECTOR, True, 0)

    def _exit_cr3(self, exit_: Exit) -> None:
        if self._decode(exit_) and sregs.set_cr3(self.vcpu, self._operand("cr3")):
            queue_exception(self.vcpu, GP_VECTOR, True, 0)

    def _exit_cr4(self, exit_: Exit) -> None:
        if not self._decode(exit_):
            return
        value = self._operand("cr4")
        if sregs.set_cr4(self.vcpu, value):
            queue_exception(self.vcpu, GP_VECTOR, True, 0)

    # The MSR is written before the instruction is skipped.
    def _exit_msr(self, exit_: Exit) -> None:
        msr = self._operand("wrmsr") & _U32
        execution = self.guest.execution
        value = execution.op.b & _U32 if execution is not None else 0
        if msr == _MSR_EFER and sregs.set_efer(self.vcpu, value):
            queue_exception(self.vcpu, GP_VECTOR, True, 0)
            return
        self._decode(exit_)

    def _exit_undefined(self, exit_: Exit) -> None:
        if self._decode(exit_):
            queue_exception(self.vcpu, UD_VECTOR, False, 0)

    def _exit_hlt(self, exit_: Exit) -> None:
        self._decode(exit_)
        self.end_guest()

    # Kvm resets the vCPU as INIT does, since its state is undefined.
    def _exit_shutdown(self, exit_: Exit) -> None:
        vcpu = self.vcpu
        paged = vcpu.cr0 & CR0_PG
        vcpu.cr0 = CR0_ET | vcpu.cr0 & (CR0_NW | CR0_CD)
        vcpu.cr3 = vcpu.cr4 = vcpu.efer = 0
        if paged:
            sregs.reset_context(vcpu)
        self.end_guest()

    def _exit_read_cr(self, exit_: Exit) -> None:
        self._decode(exit_)
        execution = self.guest.execution
        if execution is not None and execution.op.name == "rdcr3":
            execution.has_insn = False
            execution.result = self.vcpu.cr3

    _EXITS: ClassVar[dict[str, Callable[[Exits, Exit], None]]] = {
        "invlpg": _exit_invlpg,
        "write_cr0": _exit_cr0,
        "cr0_sel_write": _exit_cr0,
        "write_cr3": _exit_cr3,
        "write_cr4": _exit_cr4,
        "msr": _exit_msr,
        "UD excp": _exit_undefined,
        "hlt": _exit_hlt,
        "shutdown": _exit_shutdown,
        # QEMU 10 says read_cr0 when the guest reads CR2, which 7.2 does not intercept.
        "read_cr0": _exit_read_cr,
        "read_cr2": _exit_read_cr,
        "read_cr3": _exit_read_cr,
        "read_cr4": _exit_read_cr,
    }
