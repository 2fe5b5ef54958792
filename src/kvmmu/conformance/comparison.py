# SPDX-License-Identifier: GPL-2.0-only
"""What real KVM did against what the model did: events, live tables, counters, dirty logs, the guest's results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from ..addr import Hpa
from ..errors import KvmIoctlError, RecordingError
from ..hw.bits import PF_VECTOR
from ..kvm.mmu.pages import root_to_sp
from ..trace.norm import Normaliser
from ..tracepoint import Event
from .guest import Parted
from .tabledump import compare_tables, dump_tables, rmap_histogram
from .transcript import Result, Step, Transcript
from .vmm import OP_SIZE, OPS, Vmm

#: Recorded events that the model has no part in: MSR writes, interrupts.
NOT_MODELLED = ("kvm_msr", "kvm_inj_virq")
#: Counters of the host's timing, of exits to userspace, of what the model leaves out.
NOT_COMPARED = frozenset(
    {
        "exits", "fpu_reload", "halt_exits", "host_state_reload", "io_exits", "irq_exits", "preemption_other",
        "preemption_reported", "req_event", "signal_exits",
    }
)  # fmt: skip
#: What stands where one side has no more events.
NOTHING_MORE = "(nothing more before the next input)"

_RSVD = 8
# Events shown on either side of a difference.
_CONTEXT = 6
_U32 = 0xFFFF_FFFF

Recorded = TypeVar("Recorded")


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the model and the transcript part: at ``line`` of the trace, in operation or host action ``place``.

    ``kind``: events, tables, counters, dirty or results. Of events, ``before`` are the last that were equal,
    ``recorded`` and ``model`` how each side goes on.
    """

    transcript: str
    line: int
    place: str
    what: str
    expected: str
    got: str
    kind: str = "events"
    before: tuple[str, ...] = ()
    recorded: tuple[str, ...] = ()
    model: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.transcript}, line {self.line}, {self.place}: {self.what}"]
        lines += [f"    recorded: {self.expected}", f"    model:    {self.got}"]
        lines += [f"        {line}" for line in self.before]
        return "\n".join(
            lines + [f"      - {line}" for line in self.recorded] + [f"      + {line}" for line in self.model]
        )


#: The counter that grows when kvm is interrupted.
FLUSHES = "remote_tlb_flush_requests"


@dataclass(slots=True)
class Outcome:
    """How much a replay compared, and the differences; one in the events ends the replay.

    ``nr_faults``: exits for page faults where the model's own CPU was seen to fault alike; ``nr_dumps_skipped``: of
    ``nr_dumps``, those of a root that was freed meanwhile, which hold whatever came to lie there; ``is_complete``: the
    replay came to the end; ``nr_yield_flushes``: flushes that kvm made more than the model, because it was interrupted.
    """

    transcript: str
    nr_exits: int = 0
    nr_faults: int = 0
    nr_dumps_skipped: int = 0
    nr_dirty_logs: int = 0
    nr_events: int = 0
    nr_equal_events: int = 0
    is_complete: bool = False
    nr_dumps: int = 0
    nr_counters: int = 0
    nr_results: int = 0
    nr_yield_flushes: int = 0
    differences: tuple[Difference, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether the model did what real KVM did."""
        return not self.differences

    @property
    def has_more_flushes(self) -> bool:
        """Whether it came to the end, and differs only in that kvm flushed more often."""
        return self.is_complete and all(
            difference.what == f"counter {FLUSHES}" and int(difference.expected) > int(difference.got)
            for difference in self.differences
        )

    def agrees_on(self, kind: str) -> bool:
        """Whether all of ``kind`` was compared, and equal."""
        return self.is_complete and not any(difference.kind == kind for difference in self.differences)


def comparable(line: str) -> str | None:
    """A line of either side as it is compared; None for an event that the model has no part in.

    Of an emulated instruction only the address counts: the model has accesses, not instruction bytes.
    """
    name, _, rest = line.partition(" ")
    if name in NOT_MODELLED:
        return None
    if name == "kvm_emulate_insn":
        return f"{name} {rest.split(':')[1]}"
    return line


# Pages of a dirty log as text.
def _pages(pages: list[int]) -> str:
    return " ".join(f"{page:x}" for page in pages) or "none"


class Comparison:
    """One transcript, the machine that plays it, and what was found equal or different so far.

    ``place`` is the operation or host action in hand; ``loaded_root`` the root that the CPU was last given, and its
    level: what the VMM dumps.
    """

    def __init__(self, vmm: Vmm, transcript: Transcript, name: str) -> None:
        self.vmm = vmm
        # Of each set of counters: the model's flushes; and those without interruptions, if this replay has some.
        self.flushes: list[int] = []
        self.least_flushes: list[int] = []
        self.transcript = transcript
        self.normaliser = Normaliser()
        self.outcome = Outcome(name)
        self.place = "before the first mark"
        self.loaded_root = (Hpa(0), 0)
        # Line -> number of the step that begins there.
        self._numbers = {step.number: i for i, step in enumerate(transcript.steps)}

    def name_slot(self, slot_id: int) -> None:
        """Name hosts' addresses in ``slot_id`` as the transcript does."""
        slot = self.vmm.slots[slot_id]
        self.normaliser.set_slot(slot_id, slot.gpa, slot.size if slot.is_used else 0, slot.hva)

    def number_of(self, step: Step) -> int:
        """Which step of the transcript ``step`` is."""
        return self._numbers[step.number]

    def text_after(self, step: Step) -> str:
        """The text of the step behind ``step``; "" behind the last."""
        number = self.number_of(step) + 1
        return self.transcript.steps[number].text if number < len(self.transcript.steps) else ""

    def note_refusal(self, step: Step, error: KvmIoctlError) -> None:
        """The model refuses an ioctl: :class:`Parted` unless the VMM noted the same refusal."""
        answer = self.text_after(step)
        if not answer.endswith(f" errno={error.errno}"):
            raise Parted("an ioctl", answer or "no refusal", str(error)) from None

    # The VMM answers one part of a device access; kvm goes on with the last.

    def _line(self, event: Event) -> str | None:
        line = self.normaliser.line(event)
        return None if line is None else comparable(line)

    def compare_events(self, step: Step, events: list[Event]) -> None:
        """Take ``events`` of the model for the step's; :class:`Parted` at the first that differs."""
        got = [line for line in map(self._line, events) if line is not None]
        events.clear()
        expected = [line for line in map(comparable, step.events) if line is not None]
        self.outcome.nr_events += len(expected)
        for i in range(max(len(expected), len(got))):
            want = expected[i] if i < len(expected) else NOTHING_MORE
            have = got[i] if i < len(got) else NOTHING_MORE
            if want != have:
                before = tuple(got[max(0, i - _CONTEXT) : i])
                recorded, model = tuple(expected[i : i + _CONTEXT]), tuple(got[i : i + _CONTEXT])
                raise Parted(f"after {step.text!r}", want, have, before, recorded, model)
            self.outcome.nr_equal_events += 1

    def differ(self, step: Step, what: str, expected: str, got: str, kind: str) -> None:
        """Note a difference of ``kind`` at ``step``."""
        difference = Difference(self.outcome.transcript, step.number, self.place, what, expected, got, kind)
        self.outcome.differences += (difference,)

    def part(self, step: Step, parted: Parted) -> None:
        """Note where the replay of ``step`` came to an end."""
        difference = Difference(
            self.outcome.transcript,
            step.number,
            self.place,
            parted.what,
            parted.expected,
            parted.got,
            "events",
            parted.before,
            parted.recorded,
            parted.model,
        )
        self.outcome.differences += (difference,)

    def compare_dump(self, step: Step) -> None:
        """The live tables at the end of the guest, if the root that the CPU was given still is one."""
        recorded = self._next(self.transcript.dumps, self.outcome.nr_dumps, "dump of tables", step)
        self.outcome.nr_dumps += 1
        if not self._is_root_alive():
            self.outcome.nr_dumps_skipped += 1
            return
        different = compare_tables(recorded, dump_tables(self.vmm.world.vm, *self.loaded_root))
        if different is not None:
            expected, _, got = different.partition("; ")
            self.differ(step, "live tables", expected.removeprefix("recorded: "), got.removeprefix("model: "), "tables")

    def _next(self, recorded: list[Recorded], number: int, what: str, step: Step) -> Recorded:
        if number >= len(recorded):
            place = f"{self.outcome.transcript}: line {step.number} of the trace"
            raise RecordingError(f"{place} has {what} number {number + 1}, the results have {len(recorded)}")
        return recorded[number]

    def finish(self) -> None:
        """Everything was compared: raises :class:`~kvmmu.errors.RecordingError` if the results hold more."""
        transcript = self.transcript
        for what, nr, recorded in (
            ("dumps of tables", self.outcome.nr_dumps, len(transcript.dumps)),
            ("sets of counters", self.outcome.nr_counters, len(transcript.counters)),
            ("dirty logs", self.outcome.nr_dirty_logs, len(transcript.dirty_logs)),
        ):
            if nr != recorded:
                raise RecordingError(
                    f"{self.outcome.transcript}: the results hold {recorded} {what}, the trace asks for {nr}"
                )
        self.outcome.is_complete = True

    # Tables that were freed since the CPU was given them hold anything.
    def _is_root_alive(self) -> bool:
        root, level = self.loaded_root
        return level == 0 or root == self.vmm.vcpu.mmu.pae_root or root_to_sp(self.vmm.world.vm, root) is not None

    def compare_counters(self, step: Step) -> None:
        """The next counters of the transcript, and its histogram of rmaps."""
        recorded = self._next(self.transcript.counters, self.outcome.nr_counters, "counters", step)
        self.outcome.nr_counters += 1
        counters = self.vmm.world.counters()
        for name in sorted((counters.keys() | recorded.values.keys()) - NOT_COMPARED):
            want, have = recorded.values.get(name, 0), counters.get(name, 0)
            if name == FLUSHES:
                self.flushes.append(have)
                if self.least_flushes:
                    least = self.least_flushes[len(self.flushes) - 1]
                    if least <= want <= have:
                        self.outcome.nr_yield_flushes = max(self.outcome.nr_yield_flushes, want - least)
                        continue
            if want != have:
                self.differ(step, f"counter {name}", str(want), str(have), "counters")
        if recorded.rmaps:
            have_rmaps = rmap_histogram(self.vmm.world.vm)
            for level, counts in recorded.rmaps.items():
                if have_rmaps.get(level) != counts:
                    self.differ(step, f"mmu_rmaps_stat {level}", str(counts), str(have_rmaps.get(level)), "counters")

    def compare_dirty_log(self, step: Step, slot_id: int) -> None:
        """The slot's dirty log, read and cleared, or its refusal."""
        try:
            log = self.vmm.world.dirty_log(slot_id)
        except KvmIoctlError as error:
            self.note_refusal(step, error)
            return
        recorded_slot, want = self._next(self.transcript.dirty_logs, self.outcome.nr_dirty_logs, "dirty log", step)
        self.outcome.nr_dirty_logs += 1
        have = [page for page in range(8 * len(log)) if log[page >> 3] >> (page & 7) & 1]
        if (recorded_slot, want) != (slot_id, have):
            self.differ(step, f"dirty log of slot {slot_id}", _pages(want), _pages(have), "dirty")

    def compare_results(self, step: Step, last_op: int, unknown: set[int]) -> None:
        """What the guest's operations up to ``last_op`` found, but for those whose result is ``unknown``."""
        for result in self.transcript.results:
            if result.index > last_op or result.index in unknown:
                continue
            self.outcome.nr_results += 1
            entry = self.vmm.peek(OPS + OP_SIZE * result.index, OP_SIZE)
            have = self._result(result, int.from_bytes(entry[24:], "little"), int.from_bytes(entry[16:24], "little"))
            want = self._result(result, result.value, result.cr2)
            if want != have:
                self.differ(step, f"result {result.index} ({result.op})", want, have, "results")

    # QEMU's walk leaves P out of error codes with RSVD when it delivers the #PF itself.
    def _result(self, result: Result, value: int, cr2: int) -> str:
        if value >> 60 != 0xE:
            return f"ok {value:x}"
        vector, error_code = value >> 32 & 0xFF, value & _U32
        if self.vmm.is_nested and vector == PF_VECTOR and error_code & _RSVD:
            error_code |= 1
        address = f" cr2 {cr2:x}" if vector == PF_VECTOR else ""
        return f"fault {vector} {error_code:x}{address}"
