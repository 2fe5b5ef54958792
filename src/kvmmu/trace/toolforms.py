# SPDX-License-Identifier: GPL-2.0-only
"""Events as tools print them where they do not print the kernel's own text.

Three kinds: the forms of the KVM plugin that ``trace-cmd report`` and ``perf script`` load (no fields that the plugin
does not know, and role bits by names of long ago); raw fields (``trace-cmd report -R``, and any event whose format a
tool failed to parse); and the kernel's own forms of earlier releases. A field that a form does not tell is 0, and
named in what :func:`read_tool_form` returns. Source: what trace-cmd 3.1.6 and 3.3.0 and perf 6.1 and 6.12 print of
recordings of real KVM, whose fields are known from the recording itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ..tracepoint import EVENTS, Event
from .exits import EXIT_OF_NAME, ISA_SVM, ISA_VMX, SVM_EXITS
from .forms import ACCESS_TRIPLES, PAGE_EVENTS, parse_exit_name, parse_vector

#: What a form tells: the event, and the names of the fields that it does not tell.
Told = tuple[Event, tuple[str, ...]]

# AMD's names of its exit codes, where they are not the kernel's in capitals.
_SVM_PLUGIN_NAMES = {
    0x060: "INTR", 0x066: "IDTR_READ", 0x067: "GDTR_READ", 0x068: "LDTR_READ", 0x069: "TR_READ", 0x06A: "IDTR_WRITE",
    0x06B: "GDTR_WRITE", 0x06C: "LDTR_WRITE", 0x06D: "TR_WRITE", 0x07B: "IOIO", 0x081: "VMMCALL", 0x08C: "MWAIT_COND",
}  # fmt: skip


def _plugin_name(code: int, name: str) -> str:
    if name.endswith(" excp"):
        return f"EXIT_EXCP_{name.removesuffix(' excp')}"
    return f"EXIT_{name.upper()}"


#: Exit codes of SVM by the plugin's names: ``EXIT_NPF``, ``EXIT_EXCP_PF``, ``EXIT_IOIO``.
SVM_PLUGIN_EXITS = {_plugin_name(code, name): code for code, name in SVM_EXITS.items()} | {
    f"EXIT_{name}": code for code, name in _SVM_PLUGIN_NAMES.items()
}

_PLUGIN_EXIT = re.compile(
    r"(?:vcpu (?P<vcpu>\d+) )?reason (?P<name>UNKNOWN \(\d+\)|[\w ]+?) rip (?P<rip>(?:0x)?[0-9a-f]+)"
    r"(?: info1? (?P<info1>(?:0x)?[0-9a-f]+)(?: info2)? (?P<info2>(?:0x)?[0-9a-f]+))?"
    r"(?: intr_info (?P<intr_info>(?:0x)?[0-9a-f]+))?(?: error_code (?P<error_code>(?:0x)?[0-9a-f]+))?(?: .*)?"
)
_PLUGIN_ENTRY = re.compile(r"vcpu (?P<vcpu>\d+)(?:,? rip (?P<rip>(?:0x)?[0-9a-f]+))?.*")
_PLUGIN_INSN = re.compile(
    r"(?P<csbase>[0-9a-f]+):(?P<rip>[0-9a-f]+): ?(?P<code>(?:[0-9a-f]{2} )*[0-9a-f]{2})(?P<failed> FAIL)?"
)
_OLD_FAULT = re.compile(r"address (?P<addr>(?:0x)?[0-9a-f]+) error_code (?P<code>(?:0x)?[0-9a-f]+)")
_OLD_EXCEPTION = re.compile(r"(?P<name>#\w\w|0x[0-9a-f]+) \((?P<code>0x[0-9a-f]+)\)")
_PAGE = re.compile(
    r"(?:(?P<before>new|existing) )?(?:sp )?(?:gen (?P<gen>[0-9a-f]+) )?(?:gfn (?P<gfn>[0-9a-f]+) )?l?(?P<level>\d+)"
    r"(?: (?P<size>[48])-byte)?(?P<pae> pae)? q(?P<quadrant>\d)(?P<direct> direct)? (?P<access>[w-][u-][x-])"
    r"(?P<invalid> invalid)?(?: (?P<no_pae>!?)pae)? (?P<no_nxe>!?)nxe(?: (?P<no_wp>!?)wp)?(?P<smep> smep)?"
    r"(?P<smap> smap)?(?P<smm> smm)?(?: (?P<no_ad>!?)ad)? root (?P<root>\d+) (?P<sync>unsync|sync)"
    r"(?: (?P<after>new|existing))?"
)


def _hex(text: str | None) -> int:
    return int(text, 16) if text else 0


def _untold(match: re.Match[str], **fields: str) -> tuple[str, ...]:
    return tuple(field for field, group in fields.items() if match[group] is None)


def exit_of_tool(name: str) -> tuple[int, int] | None:
    """(isa, reason) of an exit by the plugin's name or the kernel's; None for a name that neither has."""
    if name in SVM_PLUGIN_EXITS:
        return ISA_SVM, SVM_PLUGIN_EXITS[name]
    if name.startswith("UNKNOWN ("):
        return ISA_VMX if int(name[9:-1]) >> 31 else ISA_SVM, int(name[9:-1])
    if name in EXIT_OF_NAME or name.partition(" ")[0] in EXIT_OF_NAME:
        return parse_exit_name(name)
    return None


def _read_exit(_: str, match: re.Match[str]) -> Told | None:
    found = exit_of_tool(match["name"])
    if found is None:
        return None
    isa, reason = found
    words = [_hex(match[name]) for name in ("rip", "info1", "info2", "intr_info", "error_code")]
    event = ("kvm_exit", reason, words[0], isa, *words[1:], int(match["vcpu"] or 0))
    told = {name: name for name in ("info1", "info2", "intr_info", "error_code")}
    return event, _untold(match, **told, vcpu_id="vcpu")


def _read_entry(_: str, match: re.Match[str]) -> Told:
    # The kernel says so at the end of the line, the plugin never.
    is_immediate = match.string.endswith("[immediate exit]")
    missing = (*_untold(match, rip="rip"), *(() if is_immediate else ("immediate_exit",)))
    return ("kvm_entry", int(match["vcpu"]), _hex(match["rip"]), is_immediate), missing


def _read_insn(_: str, match: re.Match[str]) -> Told:
    code = bytes.fromhex(match["code"])
    event = ("kvm_emulate_insn", _hex(match["rip"]), _hex(match["csbase"]), len(code), code, 0, bool(match["failed"]))
    return event, ("flags",)


def _read_fault(_: str, match: re.Match[str]) -> Told:
    return ("kvm_page_fault", 0, 0, _hex(match["addr"]), _hex(match["code"])), ("vcpu_id", "guest_rip")


# Before 5.18 each exception printed an error code, one that has none too.
def _read_exception(_: str, match: re.Match[str]) -> Told:
    return ("kvm_inj_exception", parse_vector(match["name"]), True, _hex(match["code"]), False), ("has_error",)


def _read_page(name: str, match: re.Match[str]) -> Told:
    role = int(match["level"]) | int(match["quadrant"]) << 5 | ACCESS_TRIPLES.index(match["access"]) << 8
    # As printed: the plugin and old kernels print bit 4 as pae, whatever it means in the kernel that was traced.
    if match["size"] == "4" or match["pae"] or match["no_pae"] == "":
        role |= 0x10
    flags = (
        (match["direct"], 0x80), (match["invalid"], 0x800), (match["no_nxe"] == "", 0x1000),
        (match["no_wp"] == "", 0x2000), (match["smep"], 0x4000), (match["smap"], 0x8000), (match["no_ad"], 0x10000),
        (match["smm"], 1 << 24),
    )  # fmt: skip
    role |= sum(bit for is_set, bit in flags if is_set)
    event: Event = (name, _hex(match["gen"]), _hex(match["gfn"]), role, int(match["root"]), match["sync"] == "unsync")
    missing = _untold(match, mmu_valid_gen="gen", gfn="gfn")
    if name == "kvm_mmu_get_page":
        created = match["before"] or match["after"]
        return (*event, created == "new"), missing if created else (*missing, "created")
    return event, missing


_FORMS: dict[str, tuple[re.Pattern[str], Callable[[str, re.Match[str]], Told | None]]] = {
    "kvm_exit": (_PLUGIN_EXIT, _read_exit),
    "kvm_entry": (_PLUGIN_ENTRY, _read_entry),
    "kvm_emulate_insn": (_PLUGIN_INSN, _read_insn),
    "kvm_page_fault": (_OLD_FAULT, _read_fault),
    "kvm_inj_exception": (_OLD_EXCEPTION, _read_exception),
} | dict.fromkeys(PAGE_EVENTS, (_PAGE, _read_page))


# ---- raw fields

#: How each field of an event prints raw: x hex, d decimal, b 0 or 1, i instruction bytes, in the order of EVENTS. The
#: tool takes the base from the kernel's format where it can parse it, and prints decimal where it cannot.
_RAW = {
    "kvm_mmu_pagetable_walk": "xx", "kvm_mmu_paging_element": "xd", "kvm_mmu_set_accessed_bit": "x",
    "kvm_mmu_set_dirty_bit": "x", "kvm_mmu_walker_error": "x", "kvm_mmu_get_page": "ddddbb",
    "kvm_mmu_sync_page": "ddddb", "kvm_mmu_unsync_page": "ddddb", "kvm_mmu_prepare_zap_page": "ddddb",
    "mark_mmio_spte": "xxxx", "handle_mmio_page_fault": "xxx", "fast_page_fault": "dxdxxxd",
    "kvm_mmu_zap_all_fast": "dx", "check_mmio_spte": "xxx", "kvm_mmu_set_spte": "xxxdbbd",
    "kvm_mmu_spte_requested": "xxd", "kvm_tdp_mmu_spte_changed": "xxxdd", "kvm_mmu_split_huge_page": "xxdd",
    "kvm_entry": "dxb", "kvm_exit": "dxdxxxxd", "kvm_page_fault": "dxxx",
    "kvm_inj_exception": "dbdb", "kvm_cr": "dxx", "kvm_msr": "dxxd", "kvm_mmio": "ddxx", "vcpu_match_mmio": "xxbb",
    "kvm_emulate_insn": "xxdidb", "kvm_unmap_hva_range": "xx", "kvm_age_hva": "xx",
    "kvm_test_age_hva": "x",
}  # fmt: skip
_PAIR = re.compile(r"(\w+)=(ARRAY\[[^\]]*\]|\S*)")
FAILED = "[FAILED TO PARSE]"


def _raw_value(kind: str, text: str, is_decimal: bool) -> object:
    if kind == "i":
        return bytes(int(part, 16) for part in text.removeprefix("ARRAY[").rstrip("]").replace(",", " ").split())
    if text.startswith("0x"):
        return int(text, 16)
    # A digit of hex says more than the rule.
    is_hex = (kind == "x" and not is_decimal) or re.search("[a-f]", text) is not None
    value = int(text, 16 if is_hex else 10)
    return bool(value) if kind == "b" else value


def _read_raw(name: str, text: str) -> Told | None:
    is_decimal = text.startswith(FAILED)
    pairs = dict(_PAIR.findall(text))
    fields = EVENTS[name][1]
    if not any(field in pairs for field in fields):
        return None
    values = {
        field: _raw_value(kind, pairs[field], is_decimal)
        for field, kind in zip(fields, _RAW[name], strict=True)
        if field in pairs
    }
    if name == "kvm_emulate_insn" and "insn" in values:
        values["insn"] = values["insn"][: values.get("len", 15)]  # type: ignore[index]  # bytes by the field's kind
    missing = tuple(field for field in fields if field not in values)
    return (name, *(values.get(field, b"" if field == "insn" else 0) for field in fields)), missing


def read_tool_form(name: str, text: str) -> Told | None:
    """The event ``name`` that a tool prints as ``text``, and the fields that the form does not tell, which are 0.

    None for text of no known form, and for an event that the model does not know.
    """
    if name not in EVENTS:
        return None
    text = text.strip(" \0\n")
    try:
        if name in _FORMS:
            pattern, read = _FORMS[name]
            match = pattern.fullmatch(text)
            if match is not None:
                return read(name, match)
        return _read_raw(name, text)
    except ValueError:
        return None
