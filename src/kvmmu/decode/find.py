# SPDX-License-Identifier: GPL-2.0-only
"""Words in pasted text: which there are, and what the text says about each.

One line at a time, with what the lines before it told (:class:`Around`): the kernel's release, MAXPHYADDR, the kind of
tables, the level that comes next. Every pattern here is linear in the line, and lines are cut to a length that no
tool prints, so that any text is read in time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from ..errors import ConfigError, UserError
from ..hw.bits import PFERR_NAMES
from ..hw.modes import MODE_2LEVEL_PSE, MODE_PAE, MODES, PagingMode
from .layouts import NONPRESENT_LAYOUTS, Layout, layout_of, parse_version
from .mmio import l1tf_width
from .number import Number, parse_number
from .reading import Reading
from .spte import Format
from .words import Context, Kind

#: No line of these forms is longer.
MAX_LINE = 4096


@dataclass(frozen=True, slots=True)
class Found:
    """A word in a line, or a whole line that is its own kind of word."""

    #: Its name in the text: ``old_spte``, ``PTE``.
    label: str
    kind: Kind | None
    number: Number
    context: Context
    #: Set for what is no word of :class:`Kind`: a line of QEMU's monitor.
    readings: tuple[Reading, ...] = ()
    #: The line gives this word no kind: others are possible.
    is_guess: bool = False


@dataclass(slots=True)
class Around:
    """What the options and the text so far say."""

    options: Context
    #: Of the text.
    layout: Layout | None = None
    maxphyaddr: int | None = None
    format: Format | None = None
    #: The format that the exits of a trace tell.
    exit_format: Format | None = None
    #: Level of the next word of a dump without a level of its own; None: no dump is going on.
    next_level: int | None = None
    dump_kind: Kind = Kind.GPTE
    #: The text names entries of a top level above P4D.
    has_p4d: bool = False
    #: An MMIO spte beside its gfn showed the L1TF mitigation, with this width.
    cache_bits: int | None = None
    #: The line is one of a trace.
    is_trace: bool = False
    told: list[str] = field(default_factory=list)

    def context(self, table: Format | None = None, level: int | None = None, mode: PagingMode | None = None) -> Context:
        """The context of a word; options win over the text."""
        options = self.options
        machine = options.machine
        if machine.maxphyaddr is None and self.maxphyaddr is not None:
            machine = replace(machine, maxphyaddr=self.maxphyaddr)
        if self.cache_bits is not None and not machine.l1tf:
            machine = replace(machine, l1tf=True, cache_bits=self.cache_bits)
        return Context(
            options.layout or self.layout,
            machine,
            options.format or table or self.format,
            options.level or level,
            options.mode or mode,
            self.is_trace,
            format_is_hint=options.format is None and table in {None, self.exit_format},
        )


# ---- what a text says about itself

_RELEASE = re.compile(
    r"(?:Not tainted|Tainted: [A-Z ]{1,40}?|Linux(?: [\w.-]{1,64})?|[Kk]ernel(?: version)?[:=]?) v?(\d{1,2}\.\d{1,3})"
    r"(?=[.\-+~ ,;)]|$)"
)
#: A trace shows what an empty entry holds.
_EMPTY = re.compile(r"kvm_tdp_mmu_spte_changed: .{0,60}\bold_spte (0|5a0|8000000000000000|80000000000005a0)\b")
_MAXPHYADDR = re.compile(r"MAXPHYADDR\W{1,4}(?:is )?(\d{2})\b|address sizes\s*: (\d{2}) bits physical", re.IGNORECASE)
_FORMATS = (
    (re.compile(r"\bEPT\b|handle_ept_(?:violation|misconfig)"), Format.EPT),
    (re.compile(r"\bNPT\b|\bnested paging\b|\bnpf_interception\b"), Format.NPT),
    (re.compile(r"\bshadow paging\b|\bpf_interception\b|\bhandle_exception_nmi\b"), Format.SHADOW),
)


def look_around(line: str, around: Around) -> None:
    """Note what ``line`` says about the kernel, the machine and the tables; the first that says so counts."""
    line = line[:MAX_LINE]
    match = _RELEASE.search(line) if around.layout is None else None
    if match is not None:
        try:
            around.layout = layout_of(parse_version(match[1]))
        except ConfigError:
            around.told.append(f"kernel {match[1]} is older than the table of layouts: the oldest is tried with others")
        else:
            around.told.append(f"kernel {match[1]}: the layout of {around.layout.told}")
    match = _MAXPHYADDR.search(line) if around.maxphyaddr is None else None
    if match is not None and 32 <= int(match[1] or match[2]) <= 52:
        around.maxphyaddr = int(match[1] or match[2])
        around.told.append(f"MAXPHYADDR {around.maxphyaddr}")
    if around.format is None:
        around.format = next((table for pattern, table in _FORMATS if pattern.search(line)), None)
    match = _EMPTY.search(line) if around.layout is None and around.options.layout is None else None
    if match is not None:
        around.layout = NONPRESENT_LAYOUTS[int(match[1], 16)]
        around.told.append(f"old_spte {match[1]}: the layout of {around.layout.told}")
    if "P4D " in line or "P4D:" in line:
        around.has_p4d = True


# ---- numbers

_HEX = r"(?:0[xX])?[0-9a-fA-F]{1,20}\b"
_WORD = r"(?=(?:0[xX]|[a-fA-F]{0,20}[0-9]))" + _HEX


def _number(text: str) -> Number | None:
    try:
        return parse_number(text)
    except UserError:
        return None


def _found(label: str, kind: Kind, text: str, context: Context) -> Iterator[Found]:
    number = _number(text)
    if number is not None:
        yield Found(label, kind, number, context)


# ---- lines that are words of their own

_TLB = re.compile(r"\s*([0-9a-f]{8,16}): ([0-9a-f]{8,16}) ([X-][G-][P-][D-][A-][C-][T-][U-][W-])\s*")
_MEM = re.compile(r"\s*([0-9a-f]{8,16})-([0-9a-f]{8,16}) ([0-9a-f]{8,16}) ([u-]r[w-])\s*")
_TLB_NAMES = ("NX", "G", "PS", "D", "A", "PCD", "PWT", "U", "W")


def _monitor_line(line: str, around: Around) -> Iterator[Found]:
    match = _TLB.fullmatch(line)
    if match is not None:
        gva, gpa = int(match[1], 16), int(match[2], 16)
        flags = "|".join(name for name, mark in zip(_TLB_NAMES, match[3], strict=True) if mark != "-") or "0"
        size = "large page" if match[3][2] == "P" else "4K page"
        who = "user" if "U" in match[3] else "supervisor"
        what = f"{'read, write' if match[3][8] == 'W' else 'read'}{'' if match[3][0] == 'X' else ', fetch'}"
        text = f"gva {gva:#x} maps gpa {gpa:#x} (gfn {gpa >> 12:#x}): {size} {flags}: {who} {what}"
        notes = ("X stands for NX: the page cannot be executed",) if match[3][0] == "X" else ()
        reading = Reading("line of info tlb", text, notes=notes, problems=tuple(_tlb_problems(gpa, around)))
        yield Found("info tlb", None, Number(match[2], gpa, None), around.context(), (reading,))
    match = _MEM.fullmatch(line)
    if match is not None:
        start, end, size_bytes = (int(match[group], 16) for group in (1, 2, 3))
        who = "user and supervisor" if match[4][0] == "u" else "supervisor"
        rights = "read, write" if match[4][2] == "w" else "read"
        text = f"gvas {start:#x} to {end:#x}, {size_bytes >> 10} KiB: {who}, {rights}"
        problems = () if end - start == size_bytes else (f"the range has {end - start:#x} bytes, not {size_bytes:#x}",)
        notes = ("whether code may run there is not told",)
        reading = Reading("line of info mem", text, problems=problems, notes=notes)
        yield Found("info mem", None, Number(match[1], start, None), around.context(), (reading,))


def _tlb_problems(gpa: int, around: Around) -> Iterator[str]:
    width = around.context().machine.maxphyaddr
    if width is not None and gpa >> width:
        yield f"the gpa has {gpa.bit_length()} bits, above MAXPHYADDR {width}"


# ---- an oops, a dump of tables

_OOPS_LEVELS = {"PGD": 5, "P4D": 4, "PUD": 3, "PMD": 2, "PTE": 1}
_OOPS = re.compile(r"\b(PGD|P4D|PUD|PMD|PTE) (" + _HEX + ")")
_OOPS_32 = re.compile(r"\*(pdpt|pde|pte) = (" + _HEX + ")")
_DUMP_LEVELS = {
    "pml5": 5, "pml5e": 5, "p4d": 4, "pml4": 4, "pml4e": 4, "pml": 4, "pud": 3, "pdpt": 3, "pdpte": 3, "pdp": 3,
    "pdpe": 3, "pmd": 2, "pd": 2, "pde": 2, "pte": 1, "pt": 1,
}  # fmt: skip
_DUMP = re.compile(
    r"\b(?:(?:level|lvl)[ =:]{0,3}([1-5])|[lL]([1-5])(?=\s{0,2}[:=])"
    r"|(PML5E?|PML4E?|PML|PGD|P4D|PUD|PDPTE?|PDPE?|PMD|PDE?|PTE?"
    r"|(?:[Pp]ml[45]e?|pgd|p4d|pud|[Pp]dpt?e?|pmd|pde|pte)(?=\[|\s{0,2}[:=])))"
    r"(?:\[\w{1,8}\])?\s{0,3}[:=,]?\s{0,8}(?:(?:0x)?[0-9a-f]{1,20}\s{0,3}=>\s{0,3})?(" + _WORD + ")"
)
_ONLY_WORDS = re.compile(r"\s*(?:\[\s*\d+\]|\d+:)?\s*(" + _WORD + r"(?:[\s,]{1,8}" + _WORD + r"){0,7})[\s,.]*")
_WORDS_AFTER = re.compile(r"[\s,]{1,8}(" + _WORD + ")(?![\\s]*[:=])")


def _oops(line: str, around: Around) -> Iterator[Found]:
    entries = _OOPS.findall(line)
    if len(entries) >= 2 or (entries and line.strip(" []0123456789.").startswith("PGD")):
        words = dict(entries)
        # The kernel prints both where the P4D level is folded, as the same entry.
        folded = "P4D" not in words or words.get("P4D") == words.get("PGD")
        for name, text in entries:
            level = _OOPS_LEVELS[name] - (1 if folded and name == "PGD" else 0)
            if folded and name == "P4D":
                continue
            mode = MODES[MODE_PAE + (1 if folded else 2)]
            yield from _found(name, Kind.GPTE, text, around.context(level=level, mode=mode))
    for name, text in _OOPS_32.findall(line):
        number = _number(text)
        wide = "*pdpt" in line or len(text.removeprefix("0x")) > 8
        level = {"pdpt": 3, "pde": 2, "pte": 1}[name]
        mode = MODES[MODE_PAE if wide else MODE_2LEVEL_PSE]
        if number is not None:
            yield Found(name, Kind.GPTE, number, around.context(level=level, mode=mode))


def _dump(line: str, around: Around) -> Iterator[Found]:
    matches = list(_DUMP.finditer(line))
    if not matches:
        if around.next_level is not None:
            yield from _dump_rest(line, around)
        return
    if re.search(r"\b[se]pte\b|\bEPT\b", line):
        around.dump_kind = Kind.SPTE
    for match in matches:
        level = _level_of(match, around)
        label = (match[3] or f"level {level}").lower() if not match[3] else match[3]
        yield from _dump_word(label, match[4], level, around, is_named=bool(match[3]))
        around.next_level = level - 1
        # Words that follow without a level of their own lie below.
        position = match.end()
        while around.next_level and (follow := _WORDS_AFTER.match(line, position)):
            yield from _dump_word(f"level {around.next_level}", follow[1], around.next_level, around, is_named=False)
            around.next_level -= 1
            position = follow.end()
    if not around.next_level:
        around.next_level = None


def _level_of(match: re.Match[str], around: Around) -> int:
    if match[1] or match[2]:
        return int(match[1] or match[2])
    name = match[3].lower()
    if name == "pgd":
        return 5 if around.has_p4d else 4
    return _DUMP_LEVELS[name]


def _dump_word(label: str, text: str, level: int, around: Around, *, is_named: bool) -> Iterator[Found]:
    for found in _found(label, around.dump_kind, text, around.context(level=level)):
        yield replace(found, is_guess=around.dump_kind is Kind.GPTE and not is_named)


def _dump_rest(line: str, around: Around) -> Iterator[Found]:
    match = _ONLY_WORDS.fullmatch(line)
    if match is None:
        around.next_level = None
        return
    for text in re.findall(_WORD, match[1]):
        if not around.next_level:
            break
        yield from _dump_word(f"level {around.next_level}", text, around.next_level, around, is_named=False)
        around.next_level -= 1
    around.next_level = around.next_level or None


# ---- words with a name before them

_LEVEL = re.compile(r"\blevel\s{0,2}[=:]?\s{0,2}([1-5])\b")
_NAMED_SPTE = re.compile(r"\b(old_spte|new_spte|spte)\s{0,3}[:=]?\s{0,3}(" + _WORD + ")")
_FAST = re.compile(r"\bsptep \S+ old (" + _HEX + ") new (" + _HEX + ")")
_GFN = re.compile(r"\bgfn\s{0,2}[:=]?\s{0,2}(?:0x)?([0-9a-f]{1,13})\b")
_NAMED_GPTE = re.compile(r"\b(gpte|pte)\s{0,3}[:=]?\s{0,3}(" + _WORD + ")")
_ROLE = re.compile(r"\b((?:root_|cpu_|base_)?role(?:\.word)?)\s{0,3}[:=]?\s{0,3}(" + _WORD + ")")
_CODE = re.compile(
    r"\b(error[_ ]code|pferr|pfec|PFERR|err_code|error(?=\s{0,2}[:=(]?\s{0,2}0x))\s{0,2}[:=(]?\s{0,2}"
    r"((?:[A-Z]{1,5}\|){0,6}[A-Z]{1,5}(?:\|0x[0-9a-f]{1,16})?(?![a-z])|" + _HEX + ")"
)
_INJECTED = re.compile(r"#PF \((0x[0-9a-f]{1,8})\)")
_OOPS_CODE = re.compile(r"\b(Oops|Bad pagetable): ([0-9a-f]{4}) \[#\d")
_SEGFAULT_CODE = re.compile(r"\bsegfault at .{0,120}\b(error) ([0-9a-f]{1,8})\b")
_QUAL = re.compile(r"\b(exit[_ ]qual(?:ification)?|qualification)\s{0,2}[:=(]?\s{0,2}(" + _HEX + ")", re.IGNORECASE)
_EXIT = re.compile(
    r"\breason:? ([A-Z][A-Z_]{2,40}|[A-Za-z_]{2,12}(?: excp)?|[a-z]\w{1,30}(?: excp)?)(?: \S+)? (?:rip:? \S+ )?"
    r"(?:info1|ext_inf1:|info) (" + _HEX + ")"
)
#: A qualification stands beside the exit's reason in a dump of the VMCS; 48 is an EPT violation.
_REASON = re.compile(r"\breason=([0-9a-f]{1,8})\b")
_ENTRY = re.compile(
    r"\b(?P<name>EPT (?:entry|pte|PTE|word)|EPTE|epte|NPT entry|entry|MMIO(?: word| entry)?)\s{0,3}[:=]?\s{0,3}[`'\"]?"
    r"(?P<word>0[xX][0-9a-fA-F]{1,16})\b"
)
_AT_LEVEL = re.compile(r"\b(0[xX][0-9a-fA-F]{1,16})\b[`'\"]?,?\s{0,3}\(?(?:at |of )?level\s{0,2}[=:]?\s{0,2}([1-5])\b")
_LEAF = re.compile(r"\b(leaf|table)\s{0,3}[:=]?\s{0,3}[`'\"]?(0[xX][0-9a-fA-F]{3,16})\b")
_FAULT_FORMATS = {
    "EPT_VIOLATION": Format.EPT, "npf": Format.NPT, "EXIT_NPF": Format.NPT, "PF excp": Format.SHADOW,
    "EXIT_EXCP_PF": Format.SHADOW,
}  # fmt: skip
_FLAG_BITS = {name: bit for bit, name in PFERR_NAMES.items()}


def _flags_number(text: str) -> Number | None:
    value = 0
    for part in text.split("|"):
        if part.startswith("0x"):
            value |= int(part, 16)
        elif part in _FLAG_BITS:
            value |= _FLAG_BITS[part]
        else:
            return None
    return Number(text, value, None)


def _named(line: str, around: Around) -> Iterator[Found]:
    match = _LEVEL.search(line)
    level = int(match[1]) if match is not None else None
    is_fault = "kvm_page_fault" in line or "kvm_exit" in line
    for match in _EXIT.finditer(line):
        yield from _exit(match, around)
    gfn = _GFN.search(line) if around.cache_bits is None else None
    for match in _NAMED_SPTE.finditer(line):
        if gfn is not None:
            _note_l1tf(match[2], int(gfn[1], 16), around)
        yield from _found(match[1], Kind.SPTE, match[2], around.context(around.exit_format, level))
    for match in _FAST.finditer(line):
        for label, text in (("old", match[1]), ("new", match[2])):
            yield from _found(label, Kind.SPTE, text, around.context(around.exit_format, level))
    for match in _NAMED_GPTE.finditer(line):
        yield from _found(match[1], Kind.GPTE, match[2], around.context(level=level))
    for match in _ROLE.finditer(line):
        yield from _found(match[1], Kind.ROLE, match[2], around.context())
    for match in _CODE.finditer(line):
        number = _flags_number(match[2]) if re.match(r"[A-Z]{1,5}(?:\||$)", match[2]) else _number(match[2])
        if number is not None and not (match[1] == "error_code" and "intr_info" in line):
            table = around.exit_format if is_fault else None
            yield Found(match[1], Kind.PFERR, number, _code_context(line, around, table))
    for match in _INJECTED.finditer(line):
        yield from _found("#PF", Kind.PFERR, match[1], replace(around.context(), format=Format.SHADOW))
    for match in (*_OOPS_CODE.finditer(line), *_SEGFAULT_CODE.finditer(line)):
        yield from _found(match[1], Kind.PFERR, match[2], replace(around.context(), format=Format.SHADOW))
    reason = _REASON.search(line)
    for match in _QUAL.finditer(line) if reason is None or int(reason[1], 16) & 0xFFFF == 48 else ():
        yield from _found("exit qualification", Kind.QUAL, match[2], around.context())


# A trace prints the gfn beside the MMIO spte that hides its high bits.
def _note_l1tf(text: str, gfn: int, around: Around) -> None:
    number = _number(text)
    if number is not None and number.value & 1 << 11 == 0 and number.value & 6 == 6:
        around.cache_bits = l1tf_width(number.value, gfn)


# A walk of the guest's tables has a #PF error code whatever the host is.
def _code_context(line: str, around: Around, table: Format | None) -> Context:
    context = around.context(table)
    if context.format_is_hint and "kvm_page_fault" not in line:
        context = replace(context, format=None)
    if "pagetable_walk" in line or "walker_error" in line or "inj_exception" in line or "fast_page_fault" in line:
        return replace(context, format=Format.SHADOW)
    return context


def _exit(match: re.Match[str], around: Around) -> Iterator[Found]:
    table = _FAULT_FORMATS.get(match[1])
    if table is None:
        if match[1] == "EPT_MISCONFIG":
            around.exit_format = Format.EPT
        return
    around.exit_format = table
    kind = Kind.QUAL if table is Format.EPT else Kind.PFERR
    yield from _found("info1", kind, match[2], replace(around.context(), format=table))


# Entries in somebody's own words: "EPT entry 0x... at level 2".
def _told(line: str, around: Around) -> Iterator[Found]:
    at_level = {match[1]: int(match[2]) for match in _AT_LEVEL.finditer(line)}
    named = {match["word"]: match["name"] for match in _ENTRY.finditer(line)}
    named |= {match[2]: match[1] for match in _LEAF.finditer(line)}
    level = _LEVEL.search(line)
    for text in dict.fromkeys(sorted({**at_level, **named}, key=line.find)):
        name = named.get(text, "entry")
        number = _number(text)
        if number is None:
            continue
        table = Format.EPT if name.lower().startswith("ept") else Format.NPT if name.startswith("NPT") else None
        own = at_level.get(text) or (1 if name == "leaf" else None)
        if own is None and level is not None and len(named) == 1:
            own = int(level[1])
        is_spte = table is not None or around.format is not None or name.startswith("MMIO") or "spte" in line
        context = around.context(table, own)
        yield Found(name, Kind.SPTE if is_spte else Kind.GPTE, number, context, is_guess=not is_spte)


_FINDERS: tuple[Callable[[str, Around], Iterator[Found]], ...] = (_monitor_line, _oops, _named, _told, _dump)
_TRACE_FINDERS: tuple[Callable[[str, Around], Iterator[Found]], ...] = (_named,)


def find_words(line: str, around: Around) -> list[Found]:
    """The words in ``line``, in the order of the first finder that knows the line's form."""
    line = line[:MAX_LINE]
    for finder in _TRACE_FINDERS if around.is_trace else _FINDERS:
        found = list(finder(line, around))
        if found:
            if finder is not _dump:
                around.next_level = None
            return found
    return []
