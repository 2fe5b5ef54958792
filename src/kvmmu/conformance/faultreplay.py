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
)
from ..kvm import emulate
from ..kvm.mmu.walker import gva_to_gpa
from ..kvm.mode import leave_guest_mode
from ..kvm.vm import Vm
from .comparison import NOTHING_MORE, Outcome
from .exits import Exits
from .guest import Parted
from .program import Access
from .scenario import Scenario, read_scenario
from .transcript import Step, Transcript, read_transcript
from .vmm import NOTES

#: What the VMM answers to a device read, beside the address in the low half.
_MMIO_FILL = 0xA5A5_A5A5_0000_0000
_PAGE_MASK = 0xFFF
_SLOT_ACTIONS = ("setflags", "move", "delete", "restore")
#: Marks after which the VMM dumps the tables and ends.
_STOPS = ("hlt", "internal", "exit")


def replay_file(folder: Path, name: str, mode: str) -> Outcome:
    """Play the recording ``NAME.MODE`` of the scenario ``NAME.scn`` in ``folder``.

    :raises RecordingError: what cannot be read, and what the model cannot play.
    """
    return replay(read_scenario(folder / f"{name}.scn"), read_transcript(folder, name, mode))


def replay(scenario: Scenario, transcript: Transcript, is_exact: bool = False) -> Outcome:
    """Play ``transcript``; once more with interruptions, unless ``is_exact``, if kvm did nothing but flush more often.

    kvm lets others have mmu_lock when the timer interrupts a pass, and flushes before what the pass took away so far.
    Where that was is in no transcript, so as many flushes are right as lie between never and once in every pass.

    :raises RecordingError: what the model cannot play.
    """
    first = FaultReplay(scenario, transcript)
    outcome = first.run()
    if is_exact or outcome.is_equal or not outcome.has_more_flushes:
        return outcome
    again = FaultReplay(scenario, transcript)
    again.interrupt(first.compare.flushes)
    interrupted = again.run()
    return interrupted if interrupted.is_equal else outcome


class Interruptions:
    """A checker that lets each pass yield until something was flushed for that, and nobody come in between.

    Once in a pass is more often than a timer of 250 or 1000 Hz interrupts one.
    """

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        # What was flushed before the pass took the lock; whether it takes the lock again.
        self.nr_before = 0
        self.is_yielding = False

    def point(self, kind: str, where: object, key: object) -> None:
        """An access or lock operation: where a pass begins counts."""
        if kind in ("read_lock", "write_lock"):
            if not self.is_yielding:
                self.nr_before = self.vm.stat.remote_tlb_flush_requests
            self.is_yielding = False

    def barrier(self, kind: str) -> None:
        """Nobody listens."""

    def wait(self, kind: str, where: object, condition: Callable[[], bool]) -> None:
        """Nobody could make it true."""

    def must_yield(self, where: object) -> bool:
        """Until the pass has flushed."""
        self.is_yielding = self.vm.stat.remote_tlb_flush_requests == self.nr_before
        return self.is_yielding


class FaultReplay(Exits):
    """One transcript in play: :meth:`run` once."""

    def __init__(self, scenario: Scenario, transcript: Transcript) -> None:
        super().__init__(scenario, transcript)
        # Whether KVM_RUN was called for the first time.
        self.has_begun = False
        # The parts of the answer to a device access so far.
        self.mmio_data = b""
        self.unknown_results: set[int] = set()
        self.last_op = -1

    def interrupt(self, least_flushes: list[int]) -> None:
        """Let every pass yield; without that, each set of counters had ``least_flushes``."""
        self.compare.least_flushes = least_flushes
        self.vmm.world.vm.gate.arm(Interruptions(self.vmm.world.vm))

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
            self.play_exit(step.exit)
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
            self.enter()

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
            self.look_for_exchange(access)
            self.store_modified(access, int.from_bytes(data, "little"))
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
            self.end_guest()
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
