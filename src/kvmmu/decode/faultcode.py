# SPDX-License-Identifier: GPL-2.0-only
"""What a fault was: #PF and nested-page-fault error codes, and the exit qualification of an EPT violation.

The tracepoint ``kvm_page_fault`` prints either one as ``error_code``: on an Intel host with EPT the raw exit
qualification, everywhere else the error code. A number alone does not always tell which. Source: Intel SDM volume 3,
"Exit Qualification for EPT Violations" and "Interaction with Page-Fault Exceptions"; AMD APM volume 2, "Nested Paging".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..hw.bits import (
    PFERR_FETCH,
    PFERR_GUEST_FINAL,
    PFERR_GUEST_PAGE,
    PFERR_NAMES,
    PFERR_PK,
    PFERR_PRESENT,
    PFERR_RSVD,
    PFERR_USER,
    PFERR_WRITE,
    describe_access,
    describe_flags,
)
from .reading import Reading, bit_names, bits

_NESTED = PFERR_GUEST_FINAL | PFERR_GUEST_PAGE
_KNOWN = sum(PFERR_NAMES)

QUAL_READ, QUAL_WRITE, QUAL_FETCH = 1, 2, 4
QUAL_RIGHTS_SHIFT = 3
QUAL_USER_FETCH = 1 << 6
QUAL_GVA_VALID = 1 << 7
QUAL_FINAL = 1 << 8
_QUAL_FLAGS = {
    1 << 9: "user-mode linear address",
    1 << 10: "writable in the guest's tables",
    1 << 11: "not executable in the guest's tables",
    1 << 12: "NMIs unblocked by IRET",
    1 << 13: "shadow-stack access",
    1 << 14: "supervisor shadow-stack page",
    1 << 15: "guest-paging verification",
    1 << 16: "asynchronous to the instruction",
}
_QUAL_KNOWN = bits(0, 16)


def read_error_code(value: int) -> Reading:
    """A #PF error code, or that of a nested page fault if it says where the walk was."""
    flags = describe_flags(value, PFERR_NAMES)
    cause = "the entry is present" if value & PFERR_PRESENT else "no entry is present"
    if value & PFERR_RSVD:
        cause = "a reserved bit is set in an entry"
    elif value & PFERR_PK:
        cause = "the protection key forbids it"
    access = describe_access(value & (PFERR_WRITE | PFERR_USER | PFERR_FETCH))
    problems = tuple(_code_problems(value))
    if not value & _NESTED:
        return Reading("#PF error code", flags, (f"{access}: {cause}",), problems)
    final = "a final guest address" if value & PFERR_GUEST_FINAL else "a table of the guest"
    more = (f"nested page fault: {access} of {final}: {cause}",)
    return Reading("nested-page-fault error code", flags, more, problems)


def _code_problems(value: int) -> Iterator[str]:
    if value & ~_KNOWN:
        yield f"{bit_names(value & ~_KNOWN)} set: no #PF error code has that"
    if value & PFERR_WRITE and value & PFERR_FETCH:
        yield "W and F: an access is not both"
    if value & _NESTED == _NESTED:
        yield "GUEST_FINAL and GUEST_PAGE: a walk is at one place"


def read_qualification(value: int) -> Reading:
    """The exit qualification of an EPT violation."""
    access = [name for bit, name in ((QUAL_READ, "read"), (QUAL_WRITE, "write"), (QUAL_FETCH, "fetch")) if value & bit]
    rights = value >> QUAL_RIGHTS_SHIFT & 7
    allowed = "".join(name if rights & bit else "-" for bit, name in ((1, "R"), (2, "W"), (4, "X")))
    parts = ["+".join(access) or "no access", f"entry present, allows {allowed}" if rights else "entry not present"]
    if value & QUAL_USER_FETCH:
        parts.append("entry allows user fetches")
    if value & QUAL_GVA_VALID:
        parts.append("linear address valid")
        parts.append("final guest address" if value & QUAL_FINAL else "walk of the guest's tables")
    else:
        parts.append("no linear address")
    parts += [name for bit, name in _QUAL_FLAGS.items() if value & bit]
    return Reading("EPT exit qualification", "EPT violation: " + ", ".join(parts), (), tuple(_qual_problems(value)))


def _qual_problems(value: int) -> Iterator[str]:
    if value & ~_QUAL_KNOWN:
        yield f"{bit_names(value & ~_QUAL_KNOWN)} set: no exit qualification of an EPT violation has that"
    if not value & 7:
        yield "no access (bits 2:0): an EPT violation has one"
    if value & QUAL_FETCH and value & QUAL_WRITE:
        yield "write and fetch: an access is not both"
    if value & QUAL_FINAL and not value & QUAL_GVA_VALID:
        yield "bit 8 without bit 7: it is undefined where no linear address is valid"
    if value & QUAL_GVA_VALID and value & QUAL_FETCH and value & QUAL_READ:
        yield "read and fetch: an access is not both"


#: Which number is meant where, for a reading that stands beside the other one.
WHERE_CODE = "so meant: under shadow paging, and on AMD (kvm_page_fault, info1 of PF excp and npf)"
WHERE_QUALIFICATION = "so meant: on Intel with EPT (kvm_page_fault, info1 of EPT_VIOLATION)"


def read_fault(value: int, table_format: str | None) -> list[Reading]:
    """The readings of an ``error_code``: one where ``table_format`` says whose it is, else each possible one."""
    if table_format == "ept":
        return [read_qualification(value)]
    code = read_error_code(value)
    if table_format is not None or not code.problems:
        return [code]
    qualification = read_qualification(value)
    if qualification.problems and not value & (QUAL_GVA_VALID | QUAL_FINAL):
        return [code]
    both = [
        replace(qualification, notes=(WHERE_QUALIFICATION,)),
        replace(code, notes=(WHERE_CODE,)),
    ]
    return both if len(qualification.problems) <= len(code.problems) else both[::-1]
