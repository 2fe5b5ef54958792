# SPDX-License-Identifier: GPL-2.0-only
"""The text of each tracepoint as the kernel prints it, and back: one form per event.

The text form is the kernel's own (its ``vsprintf``), so that ``%#llx`` of 0 prints ``0x0``; readers accept the ``0``
that a C library prints as well. Text says less than the event in three places, where the kernel's does: the page
events omit the role bits cr0_wp, smep_andnot_wp, smap_andnot_wp, guest_mode, passthrough and smm, fast_page_fault
prints ``ret`` as two flags, and of an exit reason without a name the isa is not told. Reading such text and printing
it again gives the same text. Source: reference "Tracepoints", and the format files of Linux 6.12.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import UserError
from ..tracepoint import EVENTS, Event
from .exits import EXIT_OF_NAME, ISA_SVM, ISA_VMX, SVM_EXITS, VMX_EXITS

_PFERR_FLAGS = {1: "P", 2: "W", 4: "U", 8: "RSVD", 16: "F"}
ACCESS_TRIPLES = ("---", "--x", "w--", "w-x", "-u-", "-ux", "wu-", "wux")
_VECTORS = {
    0: "#DE", 1: "#DB", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS", 11: "#NP", 12: "#SS",
    13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC",
}  # fmt: skip
_MMIO_KINDS = {0: "unsatisfied-read", 1: "read", 2: "write"}
_EMUL_MODES = {0: "real", 3: "vm16", 1: "prot16", 5: "prot32", 9: "prot64"}
_ENTRY_FLAGS = {0x80000000: "FAILED_VMENTRY"}

# Results of the fault path that fast_page_fault tells apart (numbers of 6.12).
_RET_PF_INVALID = 4
_RET_PF_FIXED = 5
_RET_PF_SPURIOUS = 6

_WRITABLE = 2


# ---- words with names


# A mask as the kernel prints flags: names, then what is left as one number; nothing for 0.
def _flags(value: int, names: Mapping[int, str], delimiter: str = "|") -> str:
    parts = [name for bit, name in names.items() if value & bit]
    rest = value & ~sum(names)
    if rest:
        parts.append(f"0x{rest:x}")
    return delimiter.join(parts)


def _parse_flags(text: str, names: Mapping[int, str], delimiter: str = "|") -> int:
    bits = {name: bit for bit, name in names.items()}
    value = 0
    for part in text.split(delimiter) if text else ():
        value |= bits[part] if part in bits else int(part, 16)
    return value


def _symbol(value: int, names: Mapping[int, str]) -> str:
    return names.get(value) or f"0x{value:x}"


def _parse_symbol(text: str, names: Mapping[int, str]) -> int:
    for value, name in names.items():
        if name == text:
            return value
    return int(text, 16)


def parse_vector(text: str) -> int:
    """The vector of an exception as events print it: ``#PF``, or a number in hex."""
    return _parse_symbol(text, _VECTORS)


def exit_name(isa: int, reason: int) -> str:
    """The exit ``reason`` as kvm_exit prints it, with the flags of VMX."""
    if isa != ISA_VMX:
        return _symbol(reason, SVM_EXITS)
    flags = _flags(reason & ~0xFFFF, _ENTRY_FLAGS, " ")
    return _symbol(reason & 0xFFFF, VMX_EXITS) + (f" {flags}" if flags else "")


def parse_exit_name(text: str) -> tuple[int, int]:
    """(isa, reason) of a printed exit reason; a number without a name is taken for SVM's."""
    if text in EXIT_OF_NAME:
        return EXIT_OF_NAME[text]
    name, _, flags = text.partition(" ")
    if name in EXIT_OF_NAME and flags:
        isa, reason = EXIT_OF_NAME[name]
        return isa, reason | _parse_flags(flags, _ENTRY_FLAGS, " ")
    if flags:
        return ISA_VMX, int(name, 16) | _parse_flags(flags, _ENTRY_FLAGS, " ")
    return ISA_SVM, int(name, 16)


# ---- shadow pages

#: Events whose text is that of a shadow page.
PAGE_EVENTS = frozenset({
    "kvm_mmu_get_page", "kvm_mmu_sync_page", "kvm_mmu_unsync_page", "kvm_mmu_prepare_zap_page",
})  # fmt: skip

_SP = re.compile(
    r"sp gen (\d+) gfn ([0-9a-f]+) l(\d+) ([48])-byte q(\d)( direct)? (...)( invalid)?"
    r" (!?)nxe (!?)ad root (\d+) (un)?sync"
)


def _format_sp(fields: tuple[int, ...]) -> str:
    gen, gfn, role, root_count, unsync = fields[:5]
    return (
        f"sp gen {gen} gfn {gfn:x} l{role & 0xF} {4 if role & 0x10 else 8}-byte q{(role >> 5) & 3}"
        f"{' direct' if role & 0x80 else ''} {ACCESS_TRIPLES[(role >> 8) & 7]}{' invalid' if role & 0x800 else ''}"
        f" {'' if role & 0x1000 else '!'}nxe {'!' if role & 0x10000 else ''}ad root {root_count}"
        f" {'unsync' if unsync else 'sync'}"
    )


def _sp_fields(match: re.Match[str]) -> tuple[int, int, int, int, bool]:
    gen, gfn, level, size, quadrant, direct, access, invalid, no_nx, no_ad, root_count, unsync = match.groups()
    role = int(level) | (0x10 if size == "4" else 0) | int(quadrant) << 5 | (0x80 if direct else 0)
    role |= ACCESS_TRIPLES.index(access) << 8 | (0x800 if invalid else 0)
    role |= (0 if no_nx else 0x1000) | (0x10000 if no_ad else 0)
    return int(gen), int(gfn, 16), role, int(root_count), bool(unsync)


# ---- one form per event


@dataclass(frozen=True)
class _Form:
    # How one event is printed (from its fields) and read (its whole text, to its fields).
    write: Callable[..., str]
    pattern: re.Pattern[str]
    read: Callable[..., tuple[object, ...]]


_H = r"((?:0x)?[0-9a-f]+)"
_D = r"(-?\d+)"
_FLAGS = r"(\S*)"


def _hex(text: str) -> int:
    return int(text, 16)


def _form(write: Callable[..., str], pattern: str, read: Callable[..., tuple[object, ...]]) -> _Form:
    return _Form(write, re.compile(pattern), read)


def _read_hex(*texts: str) -> tuple[int, ...]:
    return tuple(_hex(text) for text in texts)


def _write_set_spte(gfn: int, spte: int, sptep: int, level: int, r: bool, x: bool, u: int) -> str:
    user = "" if u == -1 else ("u" if u else "-")
    bits = f"{'r' if r else '-'}{'w' if spte & _WRITABLE else '-'}{'x' if x else '-'}{user}"
    return f"gfn {gfn:x} spte {spte:x} ({bits}) level {level} at {sptep:x}"


def _read_set_spte(gfn: str, spte: str, bits: str, level: str, sptep: str) -> tuple[object, ...]:
    return _hex(gfn), _hex(spte), _hex(sptep), int(level), bits[0] == "r", bits[2] == "x", user_of_bits(bits)


def user_of_bits(bits: str) -> int:
    """The u field of kvm_mmu_set_spte from its printed permissions: -1 when the letter is missing."""
    return -1 if len(bits) == 3 else int(bits[3] == "u")


def _write_fast_page_fault(*fields: int) -> str:
    vcpu_id, addr, error_code, sptep, old_spte, new_spte, ret = fields
    return (
        f"vcpu {vcpu_id} gva {addr:x} error_code {_flags(error_code, _PFERR_FLAGS)} sptep {sptep:016x}"
        f" old 0x{old_spte:x} new {new_spte:x}"
        f" spurious {int(ret == _RET_PF_SPURIOUS)} fixed {int(ret == _RET_PF_FIXED)}"
    )


def read_fast_page_fault(*texts: str) -> tuple[object, ...]:
    """Fields of fast_page_fault from its printed words, the sptep in hex."""
    vcpu_id, addr, flags, sptep, old_spte, new_spte, spurious, fixed = texts
    ret = _RET_PF_SPURIOUS if spurious == "1" else _RET_PF_FIXED if fixed == "1" else _RET_PF_INVALID
    error_code = _parse_flags(flags, _PFERR_FLAGS)
    return int(vcpu_id), _hex(addr), error_code, _hex(sptep), _hex(old_spte), _hex(new_spte), ret


def _write_exit(*fields: int) -> str:
    reason, rip, isa, info1, info2, intr_info, error_code, vcpu_id = fields
    return (
        f"vcpu {vcpu_id} reason {exit_name(isa, reason)} rip 0x{rip:x} info1 0x{info1:016x} info2 0x{info2:016x}"
        f" intr_info 0x{intr_info:08x} error_code 0x{error_code:08x}"
    )


def _read_exit(vcpu_id: str, name: str, *rest: str) -> tuple[object, ...]:
    rip, info1, info2, intr_info, error_code = (_hex(text) for text in rest)
    isa, reason = parse_exit_name(name)
    return reason, rip, isa, info1, info2, intr_info, error_code, int(vcpu_id)


def _write_inj_exception(vector: int, has_error: bool, error_code: int, reinjected: bool) -> str:
    code = f" (0x{error_code:x})" if has_error else ""
    return f"{_symbol(vector, _VECTORS)}{code}{' [reinjected]' if reinjected else ''}"


def _read_inj_exception(name: str, code: str | None, reinjected: str | None) -> tuple[object, ...]:
    return _parse_symbol(name, _VECTORS), code is not None, _hex(code or "0"), reinjected is not None


def _write_emulate_insn(rip: int, csbase: int, length: int, insn: bytes, flags: int, failed: bool) -> str:
    return f"{csbase:x}:{rip:x}:{insn[:length].hex(' ')} ({_symbol(flags, _EMUL_MODES)}){' failed' if failed else ''}"


def _read_emulate_insn(csbase: str, rip: str, code: str, mode: str, failed: str | None) -> tuple[object, ...]:
    insn = bytes.fromhex(code)
    return _hex(rip), _hex(csbase), len(insn), insn, _parse_symbol(mode, _EMUL_MODES), failed is not None


def _write_pferr(pferr: int) -> str:
    return f"pferr {pferr:x} {_flags(pferr, _PFERR_FLAGS)}"


def _sp_form() -> _Form:
    return _Form(lambda *fields: _format_sp(fields), _SP, lambda *_: ())


_FORMS: dict[str, _Form] = {
    "kvm_mmu_pagetable_walk": _form(
        lambda addr, pferr: f"addr {addr:x} {_write_pferr(pferr)}",
        rf"addr {_H} pferr {_H} ?\S*",
        _read_hex,
    ),
    "kvm_mmu_paging_element": _form(
        lambda pte, level: f"pte {pte:x} level {level}",
        rf"pte {_H} level {_D}",
        lambda pte, level: (_hex(pte), int(level)),
    ),
    "kvm_mmu_set_accessed_bit": _form(lambda gpa: f"gpa {gpa:x}", rf"gpa {_H}", _read_hex),
    "kvm_mmu_set_dirty_bit": _form(lambda gpa: f"gpa {gpa:x}", rf"gpa {_H}", _read_hex),
    "kvm_mmu_walker_error": _form(_write_pferr, rf"pferr {_H} ?\S*", _read_hex),
    "kvm_mmu_get_page": _Form(
        lambda *fields: f"{_format_sp(fields)} {'new' if fields[5] else 'existing'}",
        re.compile(_SP.pattern + " (new|existing)"),
        lambda *_: (),
    ),
    "kvm_mmu_sync_page": _sp_form(),
    "kvm_mmu_unsync_page": _sp_form(),
    "kvm_mmu_prepare_zap_page": _sp_form(),
    "mark_mmio_spte": _form(
        lambda sptep, gfn, access, gen: f"sptep:{sptep:016x} gfn {gfn:x} access {access:x} gen {gen:x}",
        rf"sptep:{_H} gfn {_H} access {_H} gen {_H}",
        _read_hex,
    ),
    "handle_mmio_page_fault": _form(
        lambda addr, gfn, access: f"addr:{addr:x} gfn {gfn:x} access {access:x}",
        rf"addr:{_H} gfn {_H} access {_H}",
        _read_hex,
    ),
    "fast_page_fault": _form(
        _write_fast_page_fault,
        rf"vcpu {_D} gva {_H} error_code {_FLAGS} sptep {_H} old {_H} new {_H} spurious ([01]) fixed ([01])",
        read_fast_page_fault,
    ),
    "kvm_mmu_zap_all_fast": _form(
        lambda gen, used: f"kvm-mmu-valid-gen {gen} used_pages {used:x}",
        rf"kvm-mmu-valid-gen {_D} used_pages {_H}",
        lambda gen, used: (int(gen), _hex(used)),
    ),
    "check_mmio_spte": _form(
        lambda kvm_gen, spte_gen, spte: (
            f"spte {spte:x} kvm_gen {kvm_gen:x} spte-gen {spte_gen:x} valid {int(kvm_gen == spte_gen)}"
        ),
        rf"spte {_H} kvm_gen {_H} spte-gen {_H} valid [01]",
        lambda spte, kvm_gen, spte_gen: (_hex(kvm_gen), _hex(spte_gen), _hex(spte)),
    ),
    "kvm_mmu_set_spte": _form(
        _write_set_spte,
        rf"gfn {_H} spte {_H} \(([r-][w-][x-][u-]?)\) level {_D} at {_H}",
        _read_set_spte,
    ),
    "kvm_mmu_spte_requested": _form(
        lambda gfn, pfn, level: f"gfn {gfn:x} pfn {pfn:x} level {level}",
        rf"gfn {_H} pfn {_H} level {_D}",
        lambda gfn, pfn, level: (_hex(gfn), _hex(pfn), int(level)),
    ),
    "kvm_tdp_mmu_spte_changed": _form(
        lambda gfn, old_spte, new_spte, level, as_id: (
            f"as id {as_id} gfn {gfn:x} level {level} old_spte {old_spte:x} new_spte {new_spte:x}"
        ),
        rf"as id {_D} gfn {_H} level {_D} old_spte {_H} new_spte {_H}",
        lambda as_id, gfn, level, old, new: (_hex(gfn), _hex(old), _hex(new), int(level), int(as_id)),
    ),
    "kvm_mmu_split_huge_page": _form(
        lambda gfn, spte, level, errno: f"gfn {gfn:x} spte {spte:x} level {level} errno {errno}",
        rf"gfn {_H} spte {_H} level {_D} errno (-?\d+)",
        lambda gfn, spte, level, errno: (_hex(gfn), _hex(spte), int(level), int(errno)),
    ),
    "kvm_entry": _form(
        lambda vcpu_id, rip, immediate: f"vcpu {vcpu_id}, rip 0x{rip:x}{'[immediate exit]' if immediate else ''}",
        rf"vcpu {_D}, rip {_H}(\[immediate exit\])?",
        lambda vcpu_id, rip, immediate: (int(vcpu_id), _hex(rip), immediate is not None),
    ),
    "kvm_exit": _form(
        _write_exit,
        rf"vcpu {_D} reason (.*?) rip {_H} info1 {_H} info2 {_H} intr_info {_H} error_code {_H}",
        _read_exit,
    ),
    "kvm_page_fault": _form(
        lambda vcpu_id, rip, addr, error_code: (
            f"vcpu {vcpu_id} rip 0x{rip:x} address 0x{addr:016x} error_code 0x{error_code:x}"
        ),
        rf"vcpu {_D} rip {_H} address {_H} error_code {_H}",
        lambda vcpu_id, *rest: (int(vcpu_id), *_read_hex(*rest)),
    ),
    "kvm_inj_exception": _form(
        _write_inj_exception,
        rf"(#\w\w|0x[0-9a-f]+)(?: \({_H}\))?( \[reinjected\])?",
        _read_inj_exception,
    ),
    "kvm_cr": _form(
        lambda rw, cr, val: f"cr_{'write' if rw else 'read'} {cr:x} = 0x{val:x}",
        rf"cr_(read|write) {_H} = {_H}",
        lambda kind, cr, val: (int(kind == "write"), _hex(cr), _hex(val)),
    ),
    "kvm_msr": _form(
        lambda write, ecx, data, exception: (
            f"msr_{'write' if write else 'read'} {ecx:x} = 0x{data:x}{' (#GP)' if exception else ''}"
        ),
        rf"msr_(read|write) {_H} = {_H}( \(#GP\))?",
        lambda kind, ecx, data, gp: (int(kind == "write"), _hex(ecx), _hex(data), int(gp is not None)),
    ),
    "kvm_mmio": _form(
        lambda kind, length, gpa, val: f"mmio {_symbol(kind, _MMIO_KINDS)} len {length} gpa 0x{gpa:x} val 0x{val:x}",
        rf"mmio (\S+) len {_D} gpa {_H} val {_H}",
        lambda kind, length, gpa, val: (_parse_symbol(kind, _MMIO_KINDS), int(length), _hex(gpa), _hex(val)),
    ),
    "vcpu_match_mmio": _form(
        lambda gva, gpa, write, gpa_match: (
            f"gva 0x{gva:x} gpa 0x{gpa:x} {'Write' if write else 'Read'} {'GPA' if gpa_match else 'GVA'}"
        ),
        rf"gva {_H} gpa {_H} (Write|Read) (GPA|GVA)",
        lambda gva, gpa, kind, match: (_hex(gva), _hex(gpa), kind == "Write", match == "GPA"),
    ),
    "kvm_emulate_insn": _form(
        _write_emulate_insn,
        rf"{_H}:{_H}:((?:[0-9a-f][0-9a-f] ?)*) ?\((\w+)\)( failed)?",
        _read_emulate_insn,
    ),
    "kvm_unmap_hva_range": _form(
        lambda start, end: f"mmu notifier unmap range: {start:#016x} -- {end:#016x}",
        rf"mmu notifier unmap range: {_H} -- {_H}",
        _read_hex,
    ),
    "kvm_age_hva": _form(
        lambda start, end: f"mmu notifier age hva: {start:#016x} -- {end:#016x}",
        rf"mmu notifier age hva: {_H} -- {_H}",
        _read_hex,
    ),
    "kvm_test_age_hva": _form(
        lambda hva: f"mmu notifier test age hva: {hva:#016x}",
        rf"mmu notifier test age hva: {_H}",
        _read_hex,
    ),
}


# ---- what other rooms call


def event_text(event: Event) -> str:
    """The event's text without its name, as the kernel's print format makes it."""
    return _form_of(event[0]).write(*event[1:])


def parse_event(name: str, text: str) -> Event:
    """The event that prints as ``text``; blanks at the end do not matter.

    Raises UserError for an event that the model does not know or text that is not of the event's form.
    """
    form = _form_of(name)
    match = form.pattern.fullmatch(text.rstrip(" \0\n"))
    try:
        if match is not None:
            return _read_page_event(name, match) if name in PAGE_EVENTS else (name, *form.read(*match.groups()))
    except ValueError:
        # A word where a number or a known name is due: text of another form.
        pass
    raise UserError(f"{name}: {text.strip()!r} is not this event's text; expected {_example_of(name)}")


# The pattern of a page event has the twelve groups of the page, and one more for get_page.
def _read_page_event(name: str, match: re.Match[str]) -> Event:
    if name != "kvm_mmu_get_page":
        return (name, *_sp_fields(match))
    page = _SP.match(match.string)
    assert page is not None
    return (name, *_sp_fields(page), match.group(13) == "new")


def _form_of(name: str) -> _Form:
    form = _FORMS.get(name)
    if form is None:
        raise UserError(f"unknown event {name!r}: known are {', '.join(EVENTS)}")
    return form


def _example_of(name: str) -> str:
    return f"the fields {', '.join(EVENTS[name][1])}"
