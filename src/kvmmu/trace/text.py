# SPDX-License-Identifier: GPL-2.0-only
"""Events as text: as the kernel prints them, and as tools print what the kernel recorded.

Written is the kernel's own text (its ``vsprintf``), so that ``%#llx`` of 0 prints ``0x0``; readers accept the ``0``
that a C library prints as well. Text says less than the event in three places, where the kernel's does: the page
events omit the role bits cr0_wp, smep_andnot_wp, smap_andnot_wp, guest_mode, passthrough and smm, fast_page_fault
prints ``ret`` as two flags, and of an exit reason without a name the isa is not told. Reading such text and printing
it again gives the same text. Read are, beside that, the lines of ``trace-cmd report`` (with and without ``-l``,
``-t``, ``-N``, ``-R``), of ``perf script``, and of earlier kernels. Source: reference "Tracepoints", and the format
files of Linux 6.12.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..errors import UserError
from ..tracepoint import EVENTS, Event, VcpuEvent, vcpu_of
from .forms import event_text, exit_name, parse_event, parse_exit_name, read_fast_page_fault, user_of_bits
from .toolforms import read_tool_form

__all__ = [
    "FTRACE_HEADER", "LineCounts", "TraceLine", "event_text", "exit_name", "format_event", "format_line", "parse_event",
    "parse_exit_name", "parse_line", "read_event", "read_fast_page_fault", "read_line", "read_lines", "user_of_bits",
]  # fmt: skip


def format_event(event: Event, with_vcpu: bool = False) -> str:
    """The event as the kernel prints it: ``name: text``; ``with_vcpu``: with the task that worked before it.

    That of a vCPU is called as QEMU calls its threads (``CPU 0/KVM``), the process ``kvmmu``.
    """
    text = f"{event[0]}: {event_text(event)}"
    return f"{_task_of(event):>11}: {text}" if with_vcpu else text


def _task_of(event: Event) -> str:
    vcpu_id = vcpu_of(event)
    return "kvmmu" if vcpu_id is None else f"CPU {vcpu_id}/KVM"


#: Heading of a trace file in ftrace's own words; the model has no clock, so records count as microseconds.
FTRACE_HEADER = """\
# tracer: nop
#
# kvmmu: the timestamp is the number of the record that caused the event, in microseconds
#
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
"""


def format_line(event: Event, position: int, cpu: int = 0) -> str:
    """One line of an ftrace file, without its newline; ``position`` is printed as the timestamp, in microseconds.

    The task is the vCPU that worked, or the process.
    """
    seconds, microseconds = divmod(position, 1_000_000)
    vcpu_id = vcpu_of(event)
    pid = _PROCESS_PID if vcpu_id is None else _PROCESS_PID + 1 + vcpu_id
    time = f"{seconds:5}.{microseconds:06}"
    return f"{_task_of(event):>16}-{pid:<7} [{cpu:03}] ..... {time}: {format_event(event)}"


# ---- reading

# The process is task 1, and each vCPU a task of its own.
_PROCESS_PID = 1
_VCPU_TASK = re.compile(r"\s*CPU (\d{1,9})/KVM")

#: A longer line is of no trace; no pattern below sees it.
_MAX_LINE = 4096
_FLAGS = r"[^\s\d\[(:][^\s:]{3,6}"
# ftrace, trace-cmd report: TASK-PID [(TGID)] [CPU] [FLAGS] TIME: ; with -l the CPU and the flags are one word.
_FTRACE = re.compile(
    r"\s*(?P<task>\S.*?)-(?P<pid>\d+)\s+(?:\(\s*[\d-]+\)\s+)?"
    rf"(?:\[(?P<cpu>\d+)\](?:\s+{_FLAGS})?|(?P<cpu_l>\d+){_FLAGS})\s+(?P<time>\d+(?:\.\d+)?):\s+"
    r"(?:\(\s*[+-]?\d+(?:\.\d+)?\s*\)\s+)?(?P<event>\w+):(?P<text>.*)"
)
# perf script: COMM PID[/TID] [CPU] TIME: [PERIOD] SYSTEM:EVENT: ...
_PERF = re.compile(
    r"\s*(?P<task>\S.*?)\s+(?P<pid>\d+)(?:/\d+)?\s+(?:\[(?P<cpu>\d+)\]\s+)?(?P<time>\d+\.\d+):\s+"
    r"(?:\d+\s+)?\w+:(?P<event>\w+):(?P<text>.*)"
)
_LOST = re.compile(r"\s*CPU:?\s*\d+ \[.*(?:LOST|DROPPED).*\]|.*PERF_RECORD_LOST.*|.*\bLOST \d+ events.*", re.IGNORECASE)
_STACK = re.compile(r"\s*=> .*|\s*<stack trace ?>|\s+[0-9a-f]{8,16} .*")


@dataclass(slots=True)
class LineCounts:
    """How many lines of each kind a reader has seen; nothing is dropped without being counted here."""

    #: Read as an event of the model.
    events: int = 0
    #: An event that the model does not know, by name.
    others: Counter[str] = field(default_factory=Counter)
    #: An event that the model knows, in a form that it does not, by name.
    unread: Counter[str] = field(default_factory=Counter)
    #: A mark of events that the kernel or the tool lost.
    losses: int = 0
    #: Part of the stack that belongs to the event before.
    stack: int = 0
    #: Blank, or a comment, or a tool's heading.
    comments: int = 0
    #: Nothing of these.
    unknown: int = 0

    @property
    def lines(self) -> int:
        """All lines."""
        seen = self.events + self.losses + self.stack + self.comments + self.unknown
        return seen + self.others.total() + self.unread.total()


@dataclass(frozen=True, slots=True)
class TraceLine:
    """A line of a trace that names an event."""

    task: str
    pid: int
    cpu: int
    #: As printed: seconds, or the count of a clock that has none.
    time: str
    name: str
    text: str
    #: None for an event that the model does not know, or in a form that it does not.
    event: Event | None
    #: Fields of the event that the form does not tell; they are 0.
    missing: tuple[str, ...]

    @property
    def position(self) -> int:
        """The time as an int: microseconds, or what a counting clock says."""
        whole, _, fraction = self.time.partition(".")
        return int(whole) * 1_000_000 + int((fraction + "000000")[:6]) if fraction else int(whole)


def read_line(line: str, counts: LineCounts | None = None) -> TraceLine | None:
    """What ``line`` says, whichever tool printed it; None if it names no event. ``counts`` counts its kind."""
    counts = LineCounts() if counts is None else counts
    line = line.rstrip("\r\n")
    if len(line) > _MAX_LINE:
        counts.unknown += 1
        return None
    if not line.strip() or line.startswith(("#", "cpus=")):
        counts.comments += 1
        return None
    match = _FTRACE.fullmatch(line) or _PERF.fullmatch(line)
    if match is None:
        _count_other(line, counts)
        return None
    found = _make_line(match)
    if found.event is not None:
        counts.events += 1
    elif found.name in EVENTS:
        counts.unread[found.name] += 1
    else:
        counts.others[found.name] += 1
    return found


def _count_other(line: str, counts: LineCounts) -> None:
    if _LOST.fullmatch(line):
        counts.losses += 1
    elif _STACK.fullmatch(line):
        counts.stack += 1
    else:
        counts.unknown += 1


def _make_line(match: re.Match[str]) -> TraceLine:
    groups = match.groupdict()
    name, text = groups["event"], groups["text"].strip(" \0")
    event, missing = read_event(name, text) if name in EVENTS else (None, ())
    if event is not None:
        task = _VCPU_TASK.fullmatch(groups["task"])
        event = VcpuEvent(event, int(task[1]) if task else None)
    cpu = int(groups["cpu"] or groups.get("cpu_l") or 0)
    return TraceLine(groups["task"], int(groups["pid"]), cpu, groups["time"], name, text, event, missing)


def read_event(name: str, text: str) -> tuple[Event | None, tuple[str, ...]]:
    """The event ``name`` that the kernel or a tool prints as ``text``, and the fields that the form does not tell.

    The event is None for text of no known form.
    """
    try:
        return parse_event(name, text), ()
    except UserError:
        return read_tool_form(name, text) or (None, ())


def parse_line(line: str, counts: LineCounts | None = None) -> tuple[int, int, Event] | None:
    """(position, cpu, event) of one line of a trace, as any of the tools prints it.

    None for a line without an event of the model: a comment, a stack, a mark of lost events, an event that the model
    does not know, a line of no known form. No line is an error; ``counts`` tells how many there were of each kind.
    Fields that the tool does not print are 0 (:class:`TraceLine` names them). The event has the vCPU that the task's
    name tells, here and in traces of a QEMU that names its threads.
    """
    found = read_line(line, counts)
    if found is None or found.event is None:
        return None
    return found.position, found.cpu, found.event


def read_lines(lines: Iterable[str], counts: LineCounts) -> Iterator[TraceLine]:
    """Every line that names an event, in order; the rest is counted."""
    for line in lines:
        found = read_line(line, counts)
        if found is not None:
            yield found
