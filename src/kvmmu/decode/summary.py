# SPDX-License-Identifier: GPL-2.0-only
"""What a trace is about: its events, the addresses that fault, the instructions that do it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..trace.text import LineCounts, TraceLine, exit_name
from ..tracepoint import EVENTS

#: Rows of each table in text; JSON has all.
TOP = 20

#: The field of an event that is an address of the guest, and the field that is a rip.
_ADDRESS_FIELDS = {
    "kvm_page_fault": "fault_address", "kvm_mmio": "gpa", "kvm_mmu_pagetable_walk": "addr",
    "handle_mmio_page_fault": "addr", "vcpu_match_mmio": "gpa", "fast_page_fault": "cr2_or_gpa",
}  # fmt: skip
_RIP_FIELDS = {"kvm_exit": "guest_rip", "kvm_page_fault": "guest_rip", "kvm_emulate_insn": "rip"}


@dataclass(slots=True)
class Summary:
    """Counts over the lines of a trace."""

    #: By event.
    events: Counter[str] = field(default_factory=Counter)
    #: kvm_exit by reason.
    exits: Counter[str] = field(default_factory=Counter)
    #: By the page (address / 4096) of the guest that the event is about, and the event.
    pages: Counter[tuple[int, str]] = field(default_factory=Counter)
    #: By the guest's rip, and the event.
    rips: Counter[tuple[int, str]] = field(default_factory=Counter)

    def add(self, line: TraceLine) -> None:
        """Count ``line``."""
        self.events[line.name] += 1
        if line.event is None:
            return
        if line.name == "kvm_exit":
            self.exits[exit_name(line.event[3], line.event[1])] += 1
        for fields, counter, shift in ((_ADDRESS_FIELDS, self.pages, 12), (_RIP_FIELDS, self.rips, 0)):
            name = fields.get(line.name)
            if name is not None and name not in line.missing:
                value = line.event[1 + EVENTS[line.name][1].index(name)]
                counter[value >> shift << shift, line.name] += 1

    def lines(self, counts: LineCounts) -> list[str]:
        """The tables as text."""
        out = [f"lines {counts.lines}: {_count_text(counts)}", "", f"{'events':>8}  event"]
        out += [f"{count:>8}  {name}" for name, count in self.events.most_common()]
        if self.exits:
            out += ["", f"{'exits':>8}  reason"]
            out += [f"{count:>8}  {name}" for name, count in self.exits.most_common()]
        for title, counter in (("page of the guest", self.pages), ("rip", self.rips)):
            if counter:
                out += ["", f"{'events':>8}  {title}"]
                out += [f"{count:>8}  {value:#x} {name}" for (value, name), count in counter.most_common(TOP)]
                if len(counter) > TOP:
                    out.append(f"          and {len(counter) - TOP} more")
        return out

    def to_json(self, counts: LineCounts) -> dict[str, object]:
        """The tables as a JSON object."""
        return {
            "lines": counts.lines,
            "read": counts.events,
            "other_events": counts.others.total(),
            "unread": dict(counts.unread),
            "losses": counts.losses,
            "stack": counts.stack,
            "comments": counts.comments,
            "unknown": counts.unknown,
            "events": dict(self.events.most_common()),
            "exits": dict(self.exits.most_common()),
            "pages": [_row("page", value, name, count) for (value, name), count in self.pages.most_common()],
            "rips": [_row("rip", value, name, count) for (value, name), count in self.rips.most_common()],
        }


def _row(key: str, value: int, name: str, count: int) -> dict[str, object]:
    return {key: f"{value:#x}", "event": name, "count": count}


def _count_text(counts: LineCounts) -> str:
    parts = [f"{counts.events} read", f"{counts.others.total()} of events that the model does not know"]
    parts += [f"{count} {name} in an unknown form" for name, count in counts.unread.most_common()]
    named = (
        (counts.losses, "marks of lost events"), (counts.stack, "of stacks"), (counts.comments, "comments"),
        (counts.unknown, "unknown"),
    )  # fmt: skip
    return ", ".join([*parts, *(f"{count} {what}" for count, what in named if count)])
