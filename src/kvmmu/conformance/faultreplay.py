# SPDX-License-Identifier: GPL-2.0-only
"""Fault replay: the recorded exits are given to the model, and the recorded events must come out, in order.

What the world outside the MMU decided is input: exits with their addresses and error codes, the VMM's marks. What kvm
did is compared: every event between two inputs, the live tables and the counters where the transcript has them, the
guest's results, the pages zapped when the VM ends. Between exits the guest runs on the model's own CPU (``guest``),
which forgets its TLB at each exit, as QEMU's TCG does, on which the transcripts were made.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from ..addr import Gva
from ..errors import KvmBug, KvmIoctlError, KvmmuError, RecordingError
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
from .comparison import NOTHING_MORE, Comparison, Outcome
from .guest import Guest, Parted
from .program import Access, modified
from .scenario import Scenario, read_scenario
from .transcript import Exit, Step, Transcript, read_transcript
from .vmm import NOTES, Vmm

_INTR_VALID = 1 << 31
_INTR_HAS_ERROR = 1 << 11
_INTR_EXCEPTION = 3
_MSR_EFER = 0xC000_0080
_U32 = 0xFFFF_FFFF
#: What the VMM answers to a device read, beside the address in the low half.
_MMIO_FILL = 0xA5A5_A5A5_0000_0000
_PAGE_MASK = 0xFFF
_SLOT_ACTIONS = ("setflags", "move", "delete", "restore")
_PAGE_FAULTS = ("PF excp", "npf")
#: Marks after which the VMM dumps the tables and ends.
_STOPS = ("hlt", "internal", "exit")


def replay_file(folder: Path, name: str, mode: str) -> Outcome:
    """Play the recording ``NAME.MODE`` of the scenario ``NAME.scn`` in ``folder``.

    :raises RecordingError: what cannot be read, and what the model cannot play.
    """
    scenario = read_scenario(folder / f"{name}.scn")
    return FaultReplay(scenario, read_transcript(folder, name, mode)).run()


class FaultReplay:
    """One transcript in play: :meth:`run` once."""

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
        # Whether KVM_RUN was called for the first time, and for the last.
        self.has_begun = self.has_ended = False
        # A device access that the VMM is to answer, and the parts of the answer so far.
        self.mmio: Access | None = None
        self.mmio_data = b""
        # What KVM_RUN failed with.
        self.run_errno = 0
        # KVM_RUN failed in the middle of an operation, which goes on when the VMM has mended what it can.
        self.has_failed = False
        self.unknown_results: set[int] = set()
        self.last_op = -1

    def run(self) -> Outcome:
        """Play everything.

        :raises RecordingError: an action or an exit that the model cannot play.
        """
        steps = self.transcript.steps
        if steps[-1].text != "end":
            raise RecordingError(f"{self.outcome.transcript}: the transcript is cut: its last mark is not 'end'")
        for i, step in enumerate(steps):
            following = steps[i + 1] if i + 1 < len(steps) else None
            try:
                self._play(step, following)
                self.compare.compare_events(step, self.events)
            except Parted as parted:
                self.compare.part(step, parted)
                return self.outcome
            except KvmBug as bug:
                self.compare.part(step, Parted("the model broke an invariant", step.text, str(bug)))
                return self.outcome
            except RecordingError:
                raise
            except (KvmmuError, ValueError, IndexError, KeyError) as error:
                place = f"{self.outcome.transcript}: line {step.number} of the trace"
                reason = f": {error}" if isinstance(error, KvmmuError) else ""
                raise RecordingError(f"{place} cannot be played: {step.text!r}{reason}") from None
        self.compare.finish()
        return self.outcome

    # Inputs.

    def _play(self, step: Step, following: Step | None) -> None:
        if step.exit is not None:
            self.outcome.nr_exits += 1
            self._play_exit(step.exit)
            return
        name, _, rest = step.text.partition(" ")
        is_past = name in ("op", *_STOPS) or (name == "host" and not self.has_failed)
        if is_past and self.guest.execution is not None:
            self._finish_op()
        if name not in ("mmio", "slot"):
            self.compare.place = step.text
        # Each mark is written by the VMM, so KVM_RUN has returned.
        leave_guest_mode(self.vcpu)
        mark = self._MARKS.get(name)
        if mark is not None:
            mark(self, step, rest)
        if following is None:
            return
        if following.text == "end":
            self._end(step)
            return
        # The VMM calls KVM_RUN when it has nothing more to do before it.
        is_run = name in ("begin", "op", "mmio") or (following.exit is not None and self.has_begun)
        if is_run and self.mmio is None and not self.has_ended:
            self._enter()

    def _finish_op(self) -> None:
        self.guest.flush()
        unknown = self.guest.finish()
        if unknown is not None:
            self.unknown_results.add(unknown)
        if self.events:
            raise Parted(
                "the guest ran without an exit", NOTHING_MORE, self.compare.normaliser.line(self.events[0]) or ""
            )

    def _mark_begin(self, step: Step, rest: str) -> None:
        self.has_begun = True

    def _mark_op(self, step: Step, rest: str) -> None:
        self.last_op = int(rest.split(maxsplit=1)[0])
        self.guest.begin(self.last_op)

    def _mark_host(self, step: Step, rest: str) -> None:
        words = tuple(rest.split())
        self.guest.pdptes.show()
        note = self.vmm.act(words)
        self.guest.pdptes.hide()
        following = self._text_after(step)
        recorded = following if following.startswith(NOTES) else ""
        if note != recorded:
            raise Parted("what the action noted", recorded or "nothing", note or "nothing")
        if words[0] == "dumpspt":
            self.compare.compare_dump(step)
        elif words[0] == "stats":
            self.compare.compare_counters(step)
        elif words[0] == "getdirty":
            self.compare.compare_dirty_log(step, int(words[1], 0))

    # The VMM says how it wants a slot, then asks for it. The slots of the start are installed already.
    def _mark_slot(self, step: Step, rest: str) -> None:
        words = rest.split()
        if not self.has_begun or words[1] == "failed":
            return
        slot_id = int(words[0])
        self.compare.name_slot(slot_id)
        try:
            self.vmm.install_slot(slot_id)
        except KvmIoctlError as error:
            self.compare.note_refusal(step, error)

    def _mark_mmio(self, step: Step, rest: str) -> None:
        access = self.mmio
        if access is None:
            raise Parted("a device access", step.text, "no device access is under way")
        kind, address, length, _ = rest.split()
        size = int(length.removeprefix("len="))
        self.mmio_data += ((_MMIO_FILL | int(address, 16)) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        if self._has_more_mmio(step):
            return
        self.mmio = None
        data, self.mmio_data = self.mmio_data, b""
        if kind == "write":
            self.guest.done(access, None)
            return
        if len(data) < access.size:
            data = self._with_ram(access, data)
        emulate.complete_mmio_read(self.vcpu, access.size, int.from_bytes(data, "little"))
        if access.is_modify:
            self.guest.pdptes.show()
            self._look_for_exchange(access)
            self._store_modified(access, int.from_bytes(data, "little"))
            self.guest.pdptes.hide()
        else:
            self.guest.done(access, data)

    # A load that crosses between RAM and a device: data is the device's part.
    def _with_ram(self, access: Access, data: bytes) -> bytes:
        size = access.size - len(data)
        is_ram_first = self.vcpu.mmio_gpa & _PAGE_MASK == 0
        gva = access.gva if is_ram_first else access.gva + len(data)
        # Kvm looked there before; to look again must leave no trace: no event, and no PDPTE that kvm could not load.
        nr_events = len(self.events)
        self.guest.pdptes.show()
        gpa = gva_to_gpa(self.vcpu, self.vcpu.walk_mmu, Gva(gva), access.kind & ACCESS_USER)
        self.guest.pdptes.hide()
        ram = self.vmm.peek(gpa, size)
        del self.events[nr_events:]
        return ram + data if is_ram_first else data + ram

    def _has_more_mmio(self, step: Step) -> bool:
        return not step.events and self._text_after(step).startswith("mmio ")

    # The text of the next step: "" after the last.
    def _text_after(self, step: Step) -> str:
        return self.compare.text_after(step)

    def _mark_kvm_run(self, step: Step, rest: str) -> None:
        if f"errno={self.run_errno} " not in f"{rest} ":
            raise Parted("KVM_RUN failed", step.text, f"errno={self.run_errno}")
        self.run_errno = 0
        # The VMM has actions for this, then it calls KVM_RUN again; or it has none, and it ends.
        steps = self.transcript.steps
        self.has_failed = any(later.exit is not None for later in steps[self.compare.number_of(step) + 1 :])
        if not self.has_failed:
            self._end_guest()
            self.compare.compare_dump(step)

    def _mark_stop(self, step: Step, rest: str) -> None:
        self.compare.compare_dump(step)

    _MARKS: ClassVar[dict[str, Callable[[FaultReplay, Step, str], None]]] = {
        "begin": _mark_begin,
        "op": _mark_op,
        "host": _mark_host,
        "slot": _mark_slot,
        "mmio": _mark_mmio,
        "KVM_RUN": _mark_kvm_run,
        "hlt": _mark_stop,
        "internal": _mark_stop,
        "exit": _mark_stop,
    }

    # Results and counters are printed, then the VM ends.
    def _end(self, step: Step) -> None:
        self.compare.place = "the end"
        self.compare.compare_results(step, self.last_op, self.unknown_results)
        self.compare.compare_counters(step)
        self.vmm.world.close()

    # Exits.

    def _play_exit(self, exit_: Exit) -> None:
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
            self._enter()

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

    def _enter(self) -> None:
        vcpu = self.vcpu
        ret = run.enter(vcpu)
        if ret == RUN_ERROR:
            self.run_errno = -vcpu.run_errno
            return
        if ret == RUN_SHUTDOWN:
            self._end_guest()
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

    # The guest runs no more; its last operation stays as it is.
    def _end_guest(self) -> None:
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
            self._end_guest()
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
            self._store_modified(access, int.from_bytes(self.vmm.peek(self.vcpu.mmio_gpa, access.size), "little"))
        elif outcome == X86EMUL_IO_NEEDED:
            self.mmio = access

    # A locked instruction is a cmpxchg for kvm, which looks where that would be before it finds that a device is there.
    def _look_for_exchange(self, access: Access) -> None:
        execution = self.guest.execution
        if execution is not None and execution.op.name in ("add", "uadd"):
            user = PFERR_USER if access.kind & ACCESS_USER else 0
            gva_to_gpa(self.vcpu, self.vcpu.walk_mmu, Gva(access.gva), PFERR_WRITE | user)

    # The second half of it: the store, over what the load found.
    def _store_modified(self, access: Access, old: int) -> None:
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
        self._end_guest()

    # Kvm resets the vCPU as INIT does, since its state is undefined.
    def _exit_shutdown(self, exit_: Exit) -> None:
        vcpu = self.vcpu
        paged = vcpu.cr0 & CR0_PG
        vcpu.cr0 = CR0_ET | vcpu.cr0 & (CR0_NW | CR0_CD)
        vcpu.cr3 = vcpu.cr4 = vcpu.efer = 0
        if paged:
            sregs.reset_context(vcpu)
        self._end_guest()

    def _exit_read_cr(self, exit_: Exit) -> None:
        self._decode(exit_)
        execution = self.guest.execution
        if execution is not None and execution.op.name == "rdcr3":
            execution.has_insn = False
            execution.result = self.vcpu.cr3

    _EXITS: ClassVar[dict[str, Callable[[FaultReplay, Exit], None]]] = {
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
