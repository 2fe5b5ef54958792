# SPDX-License-Identifier: GPL-2.0-only
"""Events as the normalised lines of the conformance recordings, and back.

The recordings of real KVM hold what does not depend on the host's memory: a host frame prints ``PFN``, an entry's
place is its index in its table, a host virtual range is the slot's gfn range. An event of the model and the recorded
line of the same event print the same text here. The form is that of the recorder's normaliser; times, tasks and
events of the host's timing are not in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ..errors import UserError
from ..tracepoint import EVENTS, Event
from .text import event_text, exit_name, parse_event, parse_exit_name, read_fast_page_fault, user_of_bits

_PFN_MASK = 0x000F_FFFF_FFFF_F000
_PRESENT = 1
_NOSLOT_SHIFT = 52
_PAGE_SIZE = 4096

#: Exits that happen by the host's timing or mark the recorder's own operations.
_UNSTABLE_EXITS = frozenset({"interrupt", "io", "EXTERNAL_INTERRUPT", "IO_INSTRUCTION"})
_INTERRUPTS = frozenset({"interrupt", "EXTERNAL_INTERRUPT"})

_SET_SPTE = re.compile(r"set_spte gfn=([0-9a-f]+) spte=(\S+) \(([r-][w-][x-][u-]?)\) level=(\d) at=\[(\d+)\]")
_SPTE_REQUESTED = re.compile(r"spte_requested gfn=([0-9a-f]+) pfn=(PFN|[0-9a-f]+) level=(\d)")
_MARK_MMIO = re.compile(r"mark_mmio_spte sptep=\[(\d+)\] gfn ([0-9a-f]+) access ([0-9a-f]+) gen ([0-9a-f]+)")
_FAST = re.compile(
    r"fast_page_fault vcpu (\d+) gva ([0-9a-f]+) error_code (\S*) sptep=\[(\d+)\] old (\S+) new (\S+)"
    r" spurious ([01]) fixed ([01])"
)
_SPTE_CHANGED = re.compile(r"tdp_spte_changed as=(\d+) gfn=([0-9a-f]+) level=(\d) old=(\S+) new=(\S+)")
_SPLIT = re.compile(r"kvm_mmu_split_huge_page gfn ([0-9a-f]+) spte (\S+) level (\d) errno (-?\d+)")
_EXIT = re.compile(r"exit (.+?) rip=(\S+) info1=(\S+) info2=(\S+) intr=(\S+) err=(\S+)")
_HVA_EVENTS = ("kvm_unmap_hva_range", "kvm_age_hva", "kvm_test_age_hva")
_HVA = re.compile(r"(kvm_(?:unmap_hva_range|age_hva|test_age_hva)) slot(\d+):gfn ([0-9a-f]+)-([0-9a-f]+)(?:\s+\[.*\])?")


def _spte(spte: int) -> str:
    rest = "PFN" if spte & _PRESENT else f"{spte & _PFN_MASK:x}"
    return f"{spte & ~_PFN_MASK:x}|{rest}"


def _parse_spte(text: str) -> int:
    bits, _, rest = text.partition("|")
    return int(bits, 16) | (0 if rest == "PFN" else int(rest, 16))


def _index(sptep: int) -> str:
    return f"[{(sptep & 0xFFF) >> 3}]"


def _set_spte(event: Event) -> str:
    _, gfn, spte, sptep, level, r, x, u = event
    user = "" if u == -1 else ("u" if u else "-")
    bits = f"{'r' if r else '-'}{'w' if spte & 2 else '-'}{'x' if x else '-'}{user}"
    return f"set_spte gfn={gfn:x} spte={_spte(spte)} ({bits}) level={level} at={_index(sptep)}"


def _spte_requested(event: Event) -> str:
    _, gfn, pfn, level = event
    return f"spte_requested gfn={gfn:x} pfn={f'{pfn:x}' if pfn >> _NOSLOT_SHIFT else 'PFN'} level={level}"


def _mark_mmio(event: Event) -> str:
    _, sptep, gfn, access, gen = event
    return f"mark_mmio_spte sptep={_index(sptep)} gfn {gfn:x} access {access:x} gen {gen:x}"


def _fast(event: Event) -> str:
    _, _, _, _, sptep, old_spte, new_spte, _ = event
    head, _, rest = event_text(event).partition(" sptep ")
    flags = rest[rest.index(" spurious ") :]
    return f"fast_page_fault {head} sptep={_index(sptep)} old {_spte(old_spte)} new {_spte(new_spte)}{flags}"


def _spte_changed(event: Event) -> str:
    _, gfn, old_spte, new_spte, level, as_id = event
    return f"tdp_spte_changed as={as_id} gfn={gfn:x} level={level} old={_spte(old_spte)} new={_spte(new_spte)}"


def _split(event: Event) -> str:
    _, gfn, spte, level, errno = event
    return f"kvm_mmu_split_huge_page gfn {gfn:x} spte {_spte(spte)} level {level} errno {errno}"


_SPECIAL: dict[str, Callable[[Event], str]] = {
    "kvm_tdp_mmu_spte_changed": _spte_changed,
    "kvm_mmu_split_huge_page": _split,
    "kvm_mmu_set_spte": _set_spte,
    "kvm_mmu_spte_requested": _spte_requested,
    "mark_mmio_spte": _mark_mmio,
    "fast_page_fault": _fast,
}


class Normaliser:
    """The state that normalising a stream of events needs: slots, and the event before.

    One per stream: KVM re-injects an exception that an interrupt's exit cut off, which depends on timing.
    """

    __slots__ = ("_is_interrupt", "_previous", "_slots")

    def __init__(self) -> None:
        self._slots: dict[int, tuple[int, int, int]] = {}
        self._is_interrupt = False
        self._previous = ""

    def set_slot(self, slot_id: int, gpa: int, size: int, hva: int) -> None:
        """Slot ``slot_id`` backs guest physical [gpa, gpa + size) from ``hva`` on; a size of 0 deletes it."""
        self._slots.pop(slot_id, None)
        if size:
            self._slots[slot_id] = (gpa, size, hva)

    def line(self, event: Event) -> str | None:
        """The event's line without indentation; None for an event that the recordings leave out."""
        name = event[0]
        previous = self._previous
        if name == "kvm_entry":
            return None
        self._previous = name
        if name == "kvm_exit":
            return self._exit(event)
        if name in _HVA_EVENTS:
            return self._hva(event)
        if name == "kvm_inj_exception" and event[4] and (self._is_interrupt or previous == name):
            return None
        special = _SPECIAL.get(name)
        return special(event) if special else f"{name} {event_text(event)}".rstrip()

    def _exit(self, event: Event) -> str | None:
        _, reason, rip, isa, info1, info2, intr_info, error_code, _ = event
        name = exit_name(isa, reason)
        self._is_interrupt = name in _INTERRUPTS
        if name in _UNSTABLE_EXITS:
            return None
        return f"exit {name} rip=0x{rip:x} info1={info1:x} info2={info2:x} intr={intr_info:x} err={error_code:x}"

    # A range outside every slot belongs to the VMM and has no line.
    def _hva(self, event: Event) -> str | None:
        name, start = event[:2]
        end = event[2] if len(event) > 2 else start + _PAGE_SIZE
        parts = []
        for slot_id, (gpa, size, hva) in sorted(self._slots.items()):
            low, high = max(start, hva), min(end, hva + size)
            if low < high:
                parts.append(f"slot{slot_id}:gfn {(gpa + low - hva) >> 12:x}-{(gpa + high - hva) >> 12:x}")
        return f"{name} {' '.join(parts)}" if parts else None

    def parse(self, line: str) -> Event | None:
        """An event whose line is ``line``; None for marks (``==``) and events that the model has not.

        What the line does not tell is 0 (host frames, table addresses, the vcpu of an exit); a notifier's range is
        put where :meth:`set_slot` says. Raises UserError for a line that is not of its event's form.
        """
        text = line.strip()
        name, _, rest = text.partition(" ")
        reader = _READERS.get(name)
        if reader is not None:
            return reader(text)
        if name in _HVA_EVENTS:
            return self._parse_hva(text)
        return parse_event(name, rest) if name in EVENTS else None

    def _parse_hva(self, text: str) -> Event:
        name, slot, low, high = _match(_HVA, text).groups()
        if int(slot) not in self._slots:
            raise UserError(f"{text!r} names slot {slot}, which is not known: call set_slot() first")
        gpa, _, hva = self._slots[int(slot)]
        start, end = hva + (int(low, 16) << 12) - gpa, hva + (int(high, 16) << 12) - gpa
        return (name, start) if len(EVENTS[name][1]) == 1 else (name, start, end)


def _match(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    match = pattern.fullmatch(text)
    if match is None:
        raise UserError(f"not a normalised line of its event: {text!r}")
    return match


def _read_spte_changed(text: str) -> Event:
    as_id, gfn, level, old, new = _match(_SPTE_CHANGED, text).groups()
    return "kvm_tdp_mmu_spte_changed", int(gfn, 16), _parse_spte(old), _parse_spte(new), int(level), int(as_id)


def _read_split(text: str) -> Event:
    gfn, spte, level, errno = _match(_SPLIT, text).groups()
    return "kvm_mmu_split_huge_page", int(gfn, 16), _parse_spte(spte), int(level), int(errno)


def _read_set_spte(text: str) -> Event:
    gfn, spte, bits, level, index = _match(_SET_SPTE, text).groups()
    place = int(index) * 8
    flags = (bits[0] == "r", bits[2] == "x", user_of_bits(bits))
    return ("kvm_mmu_set_spte", int(gfn, 16), _parse_spte(spte), place, int(level), *flags)


def _read_spte_requested(text: str) -> Event:
    gfn, pfn, level = _match(_SPTE_REQUESTED, text).groups()
    return "kvm_mmu_spte_requested", int(gfn, 16), 0 if pfn == "PFN" else int(pfn, 16), int(level)


def _read_mark_mmio(text: str) -> Event:
    index, gfn, access, gen = _match(_MARK_MMIO, text).groups()
    return "mark_mmio_spte", int(index) * 8, int(gfn, 16), int(access, 16), int(gen, 16)


def _read_fast(text: str) -> Event:
    vcpu_id, gva, flags, index, old, new, spurious, fixed = _match(_FAST, text).groups()
    words = (f"{int(index) * 8:x}", f"{_parse_spte(old):x}", f"{_parse_spte(new):x}")
    return ("fast_page_fault", *read_fast_page_fault(vcpu_id, gva, flags, *words, spurious, fixed))


def _read_exit(text: str) -> Event:
    name, *words = _match(_EXIT, text).groups()
    rip, info1, info2, intr_info, error_code = (int(word, 16) for word in words)
    isa, reason = parse_exit_name(name)
    return "kvm_exit", reason, rip, isa, info1, info2, intr_info, error_code, 0


_READERS: dict[str, Callable[[str], Event]] = {
    "tdp_spte_changed": _read_spte_changed,
    "kvm_mmu_split_huge_page": _read_split,
    "set_spte": _read_set_spte,
    "spte_requested": _read_spte_requested,
    "mark_mmio_spte": _read_mark_mmio,
    "fast_page_fault": _read_fast,
    "exit": _read_exit,
}
