# SPDX-License-Identifier: GPL-2.0-only
"""What a replay found, as data: the run command prints it, other programs read its JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

#: Version of the JSON form; a key that changes its meaning raises it, a new key does not.
JSON_VERSION = 1

#: Why ``play()`` returned.
STOP_END = 0
STOP_LIMIT = 1
STOP_MISMATCH = 2
STOP_BREAK = 3

#: How an access ended in the model, where it ended otherwise in the machine.
MODEL_HIT = 0
MODEL_FAULT = 1
MODEL_EMULATED = 2


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One record where model and machine disagree; walks are lines of text, top entry first.

    ``tlb``: what the CPU's TLB holds for the gva after the access, which is what the access used unless it faulted.
    ``lawful``: what the access may translate to by the tables as they were since the last flush, a line each; empty
    where nobody asked. All are empty where the record is no access: registers, an invalidation.
    """

    position: int
    cpu: int
    gva: int
    gpa: int
    access: str
    problem: str
    guest_walk: list[str]
    hardware_walk: list[str]
    tlb: str = ""
    lawful: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The mismatch for people."""
        if not self.hardware_walk:
            return [f"record {self.position}: cpu {self.cpu} {self.access}: {self.problem}"]
        head = f"record {self.position}: cpu {self.cpu} {self.access} gva {self.gva:#x}: {self.problem}"
        return [
            head,
            f"  the machine used gpa {self.gpa:#x}",
            "  the guest's tables:",
            *(f"    {line}" for line in self.guest_walk),
            "  the tables that the CPU walks:",
            *(f"    {line}" for line in self.hardware_walk),
            f"  the CPU's TLB: {self.tlb}",
            "  lawful since the last flush of the page:",
            *(f"    {line}" for line in self.lawful or ["nothing"]),
        ]


@dataclass(frozen=True, slots=True)
class Fault:
    """The fault that a replay stopped at; walks are lines of text, top entry first.

    ``position``: number of the record, which is of ``kind`` ("access", "store", "mmio"); ``gva``, ``gpa``: what it
    accesses; ``limit``: why it maps no larger page (docs/fault-path.md); ``address`` and ``error_code``: of the exit, a gva or, under nested paging, a gpa. ``guest_walk``: the
    guest's own entries on the way to ``gva``; ``kvm_walk``: kvm's on the way to ``address``, both as the CPU met them;
    ``kvm_walk_after``: the latter once the record had been played.
    """

    position: int
    kind: str
    cpu: int
    access: str
    gva: int
    gpa: int
    cause: str
    limit: str
    address: int
    error_code: int
    guest_walk: list[str]
    kvm_walk: list[str]
    kvm_walk_after: list[str]

    def lines(self) -> list[str]:
        """The fault for people."""
        return [
            f"record {self.position}: cpu {self.cpu} {self.access} gva {self.gva:#x} ({self.kind}): {self.cause} fault",
            f"  at address {self.address:#x}, error code {self.error_code:#x}; the machine used gpa {self.gpa:#x}",
            f"  why no larger page is mapped: {self.limit}",
            "  the guest's tables:",
            *(f"    {line}" for line in self.guest_walk),
            "  kvm's tables at the fault:",
            *(f"    {line}" for line in self.kvm_walk),
            "  kvm's tables after the record:",
            *(f"    {line}" for line in self.kvm_walk_after),
        ]


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened in the records ``[first, until)``: counts as in :class:`Result`, of these records alone.

    ``faults`` has the causes that had happened by its end, perhaps with 0; ``counters`` are the values at its end,
    as ``kvm_stat`` would have shown them.
    """

    first: int
    until: int
    accesses: int
    stores: int
    emulated_stores: int
    mismatches: int
    smm_records: int
    exits: int
    faults: dict[str, int]
    counters: dict[str, int]


@dataclass(frozen=True, slots=True)
class ShadowPages:
    """Shadow pages that are alike: how many there are of one level and role."""

    level: int
    role: int
    description: str
    count: int


@dataclass(slots=True)
class Result:
    """Totals of one replay; ``docs/replay.md`` has all fields.

    ``stopped``: why it ended ("end", "limit", "break", "interrupted"); ``left_out``: accesses that the recorder left
    out, by reason, and ``seen``, of how many; ``smm_records``: records that the replay left out because they were made
    in system management mode; ``tlb_differences``: accesses that machine and model translated differently, both
    lawfully, because the guest had changed its tables and not flushed; ``fault``: what it stopped at, if it did;
    ``intervals``: empty unless asked for.
    """

    recording: str
    mmu: str
    build: str
    first: int = 0
    position: int = 0
    stopped: str = "end"
    cut: bool = False
    accesses: int = 0
    stores: int = 0
    emulated_stores: int = 0
    mismatches: int = 0
    tlb_differences: int = 0
    seen: int = 0
    warning: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    smm_records: int = 0
    audits: int = 0
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    exits: int = 0
    records: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    shadow_pages: list[ShadowPages] = field(default_factory=list)
    details: list[Mismatch] = field(default_factory=list)
    fault: Fault | None = None
    intervals: list[Interval] = field(default_factory=list)

    def totals_frame(self) -> pl.DataFrame:
        """The totals as a polars frame of one row."""
        from .frames import totals_frame

        return totals_frame(self)

    def faults_frame(self) -> pl.DataFrame:
        """Faults by cause as a polars frame."""
        from .frames import faults_frame

        return faults_frame(self)

    def intervals_frame(self) -> pl.DataFrame:
        """The intervals as a polars frame, a row each, with a column of faults for each cause."""
        from .frames import intervals_frame

        return intervals_frame(self)

    def counters_frame(self) -> pl.DataFrame:
        """The counters over time as a polars frame: a row for the end of each interval, a column for each counter."""
        from .frames import counters_frame

        return counters_frame(self)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with ``version``."""
        return {"version": JSON_VERSION, **asdict(self)}
