#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Make the normalised form of an ftrace text that labvmm marked.  usage: normalise.py TRACE > NAME.MODE.norm

Left out are times, tasks, and events of the host's timing. A host frame becomes ``PFN``, the place of an spte its
index, a host virtual range the gfns of each slot, which the VMM's marks tell. A timer's exit that cuts off the
delivery of an exception makes kvm deliver it again: both are left out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

DROPPED = frozenset(
    {
        "kvm_fpu", "kvm_update_master_clock", "kvm_track_tsc", "kvm_write_tsc_offset", "kvm_apicv_inhibit_changed",
        "kvm_userspace_exit", "kvm_pio", "kvm_halt_poll_ns", "kvm_vcpu_wakeup", "kvm_pvclock_update",
        "kvm_wait_lapic_expire", "kvm_entry",
    }
)  # fmt: skip
_PFN = 0x000F_FFFF_FFFF_F000
_TIMERS = ("interrupt", "EXTERNAL_INTERRUPT")
_MARKS = ("io", "IO_INSTRUCTION")
_LINE = re.compile(r"\s*(?P<task>.+)-\d+\s+\[\d+\] .....\s+[\d.]+: (?P<event>\w+): ?(?P<rest>.*)")
_SLOT = re.compile(r"slot (\d+) gpa=(\w+) size=(\w+) flags=\w+ hva=(\w+)")
_SET = re.compile(r"gfn (\w+) spte (\w+) \((.*?)\) level (\d) at (\w+)")
_REQUESTED = re.compile(r"gfn (\w+) pfn (\w+) level (\d)")
_CHANGED = re.compile(r"as id (\d) gfn (\w+) level (\d) old_spte (\w+) new_spte (\w+)")
_EXIT = re.compile(
    r"vcpu \d+ reason (?P<reason>.*?) rip (?P<rip>\S+) info1 (\S+) info2 (\S+) intr_info (\S+) error_code (\S+)"
)
_SPTEP = re.compile(r"sptep[: ]+(?:0x)?([0-9a-f]{8,16})")
_OLD_NEW = re.compile(r"old (?:0x)?([0-9a-f]+) new ([0-9a-f]+)")


def spte(word: str) -> str:
    """An spte without its frame."""
    value = int(word, 16)
    return f"{value & ~_PFN:x}|" + ("PFN" if value & 1 else f"{value & _PFN:x}")


def place(word: str) -> str:
    """The index of the spte at an address."""
    return f"[{(int(word, 16) & 0xFFF) >> 3}]"


class Normaliser:
    """One trace: its slots so far, and what the event before was."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, int, int]] = {}
        self.is_timer = False
        self.before = ""

    def mark(self, text: str) -> str:
        """A mark of the VMM, without addresses of its process."""
        match = _SLOT.match(text)
        if match is None:
            return text
        slot, (gpa, size, hva) = int(match[1]), (int(match[i], 16) for i in (2, 3, 4))
        self.slots.pop(slot, None)
        if size:
            self.slots[slot] = (gpa, size, hva)
        return text[: match.start(4) - len(" hva=")]

    def line(self, event: str, rest: str) -> str | None:
        """The line of an event; None: left out."""
        before, self.before = self.before, event if event != "kvm_entry" else self.before
        if event in DROPPED:
            if event != "kvm_entry":
                self.before = before
            return None
        if event == "kvm_exit":
            return self._exit(rest)
        if event == "kvm_inj_exception" and "reinjected" in rest and (self.is_timer or before == event):
            return None
        if "hva" in event:
            return self._range(event, rest)
        if event == "kvm_nested_vmexit" and re.search(r"reason (interrupt|io) ", rest):
            return None
        return _plain(event, rest)

    def _exit(self, rest: str) -> str | None:
        match = _EXIT.match(rest)
        if match is None:
            raise SystemExit(f"kvm_exit of another form: {rest}")
        reason = match["reason"]
        self.is_timer = reason in _TIMERS
        if reason in _TIMERS + _MARKS:
            return None
        info1, info2, intr, error = (int(match[i], 16) for i in (3, 4, 5, 6))
        return f"exit {reason} rip={match['rip']} info1={info1:x} info2={info2:x} intr={intr:x} err={error:x}"

    # What lies in no slot is the VMM's own memory.
    def _range(self, event: str, rest: str) -> str | None:
        ends = [int(word, 16) for word in re.findall(r"0x([0-9a-f]{8,16})", rest)]
        first, last = ends[0], ends[1] if len(ends) > 1 else ends[0] + 4096
        parts = []
        for slot, (gpa, size, hva) in sorted(self.slots.items()):
            start, end = max(first, hva), min(last, hva + size)
            if start < end:
                parts.append(f"slot{slot}:gfn {(gpa + start - hva) >> 12:x}-{(gpa + end - hva) >> 12:x}")
        return f"{event} {' '.join(parts)}" if parts else None


def _plain(event: str, rest: str) -> str:
    if event == "kvm_mmu_set_spte" and (match := _SET.match(rest)):
        return f"set_spte gfn={match[1]} spte={spte(match[2])} ({match[3]}) level={match[4]} at={place(match[5])}"
    if event == "kvm_mmu_spte_requested" and (match := _REQUESTED.match(rest)):
        pfn = match[2] if int(match[2], 16) >> 52 else "PFN"
        return f"spte_requested gfn={match[1]} pfn={pfn} level={match[3]}"
    if event == "kvm_tdp_mmu_spte_changed" and (match := _CHANGED.match(rest)):
        head = f"tdp_spte_changed as={match[1]} gfn={match[2]} level={match[3]}"
        return f"{head} old={spte(match[4])} new={spte(match[5])}"
    if event == "kvm_mmu_split_huge_page":
        rest = re.sub(r"spte (\w+)", lambda match: f"spte {spte(match[1])}", rest)
    elif event in ("mark_mmio_spte", "handle_mmio_page_fault", "fast_page_fault"):
        rest = _SPTEP.sub(lambda match: f"sptep={place(match[1])}", rest)
        rest = _OLD_NEW.sub(lambda match: f"old {spte(match[1])} new {spte(match[2])}", rest)
    return f"{event} {rest}"


def normalise(lines: Iterable[str]) -> Iterator[str]:
    """The lines of the normalised trace; ends the program if the kernel lost events."""
    state, has_begun = Normaliser(), False
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            if "LOST" in line:
                raise SystemExit(f"events were lost: {line.strip()}")
            continue
        event, rest = match["event"], match["rest"].strip()
        if event == "tracing_mark_write":
            has_begun = True
            yield f"== {state.mark(rest)}"
        elif has_begun and (text := state.line(event, rest)) is not None:
            task = match["task"].strip()
            yield f"   {text}" + ("" if task == "labvmm" else f"   [{task}]")


if __name__ == "__main__":
    for text_line in normalise(Path(sys.argv[1]).read_text(errors="replace").splitlines()):
        print(text_line)
