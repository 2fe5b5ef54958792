# SPDX-License-Identifier: GPL-2.0-only
"""Bits of the words that x86 defines, with their printable names.

Names are the kernel's without its ``_MASK`` and ``X86_`` decorations. Each table maps a bit to the name under which
:func:`describe_flags` prints it.
"""

from __future__ import annotations

from collections.abc import Mapping

# Page-table entries, every paging mode (Intel SDM, "Formats of Page-Table Entries").
PT_PRESENT = 1 << 0
PT_WRITABLE = 1 << 1
PT_USER = 1 << 2
PT_PWT = 1 << 3
PT_PCD = 1 << 4
PT_ACCESSED = 1 << 5
PT_DIRTY = 1 << 6
#: In a directory: this entry maps a large page.
PT_PAGE_SIZE = 1 << 7
#: The same bit in a 4K leaf: part of the memory type.
PT_PAT = 1 << 7
PT_GLOBAL = 1 << 8
#: The memory-type bit of a large leaf.
PT_PAT_LARGE = 1 << 12
PT_NX = 1 << 63
#: Frame bits of an 8-byte entry, before MAXPHYADDR narrows them.
PT_FRAME = 0x000F_FFFF_FFFF_F000
PT_PKEY_SHIFT = 59
#: Bits 20:13 of a 4M entry are address bits 39:32 (PSE-36 and its extension to 40 bits).
PT_PSE36_LOW = 0x001F_E000
PT_PSE36_SHIFT = 19

# EPT entries (Intel SDM, "Format of ... EPT PTEs"); bits 7 and 51:12 are those of page-table entries.
EPT_READ = 1 << 0
EPT_WRITE = 1 << 1
EPT_EXEC = 1 << 2
EPT_RWX = 7
EPT_ACCESSED = 1 << 8
EPT_DIRTY = 1 << 9
#: In an EPT pointer: A and D bits are in use; bits 5:3 are the number of levels less one.
EPTP_AD = 1 << 6
EPTP_LEVELS_SHIFT = 3

# Exit qualification of an EPT violation: the access, the rights of all levels together, what it was made for.
EPT_VIOLATION_ACC_READ = 1 << 0
EPT_VIOLATION_ACC_WRITE = 1 << 1
EPT_VIOLATION_ACC_INSTR = 1 << 2
EPT_VIOLATION_RWX_SHIFT = 3
EPT_VIOLATION_GVA_IS_VALID = 1 << 7
EPT_VIOLATION_GVA_TRANSLATED = 1 << 8

CR0_PE = 1 << 0
CR0_ET = 1 << 4
CR0_WP = 1 << 16
CR0_NW = 1 << 29
CR0_CD = 1 << 30
CR0_PG = 1 << 31

#: The bits of CR0 that mean something; MOV to CR0 ignores the others below bit 32.
CR0_DEFINED = 0xE005_003F

#: Bits of CR3 that name the process-context identifier while CR4.PCIDE is set.
CR3_PCID = 0xFFF
#: In the operand of MOV to CR3: keep the new PCID's translations.
CR3_NOFLUSH = 1 << 63

CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_PGE = 1 << 7
CR4_LA57 = 1 << 12
CR4_PCIDE = 1 << 17
CR4_SMEP = 1 << 20
CR4_SMAP = 1 << 21
CR4_PKE = 1 << 22

#: The bits of CR4 that KVM has for a guest on AMD: 12 to 0, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP, PKE.
CR4_DEFINED = 0x0077_1FFF

EFER_SCE = 1 << 0
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NX = 1 << 11
EFER_SVME = 1 << 12
#: The bits of EFER that KVM has for a guest on AMD: those above, LMSLE (13) and FFXSR (14).
EFER_DEFINED = 0x7D01

# Error codes: bits 0 to 15 are the #PF's, 31 to 36 are added by a nested page fault, 48 and 49 by KVM itself.
PFERR_PRESENT = 1 << 0
PFERR_WRITE = 1 << 1
PFERR_USER = 1 << 2
PFERR_RSVD = 1 << 3
PFERR_FETCH = 1 << 4
PFERR_PK = 1 << 5
PFERR_SGX = 1 << 15
PFERR_GUEST_RMP = 1 << 31
PFERR_GUEST_FINAL = 1 << 32
PFERR_GUEST_PAGE = 1 << 33
PFERR_GUEST_ENC = 1 << 34
PFERR_GUEST_SIZEM = 1 << 35
PFERR_GUEST_VMPL = 1 << 36
PFERR_IMPLICIT_ACCESS = 1 << 48
PFERR_PRIVATE_ACCESS = 1 << 49

# What kind of access the CPU makes: the low bits are those of the #PF error code. No bit: a supervisor read.
ACCESS_WRITE = 2
ACCESS_USER = 4
ACCESS_FETCH = 16
#: EFLAGS.AC is set: SMAP lets explicit supervisor accesses pass.
ACCESS_AC = 256
#: A supervisor access that the CPU makes by itself (GDT, TSS ...), at any CPL: SMAP ignores EFLAGS.AC. Excludes USER.
ACCESS_IMPLICIT = 512

# A translation as one word: what the walker found, and what the TLB keeps. Bits 51:12 are the host frame.
TR_WRITABLE = 2
TR_USER = 4
#: The second stage allows writes; set where there is no second stage.
TR_HOST_WRITABLE = 8
TR_EXECUTABLE = 16
#: D is set in the leaf, and in the nested leaf.
TR_DIRTY = 64
TR_GLOBAL = 256
TR_PKEY_SHIFT = 52
#: Level (1 = 4K, 2 = 2M, 3 = 1G) of the frame.
TR_LEVEL_SHIFT = 56
#: Size of the guest page if the frame is a piece of it: 0 whole, then 1 = 2M, 2 = 4M, 3 = 1G.
TR_PIECE_SHIFT = 58

# PKRU: two bits per protection key.
PKRU_AD = 1
PKRU_WD = 2

#: EFLAGS.AC: SMAP lets explicit supervisor accesses pass.
X86_EFLAGS_AC = 1 << 18

# Exception vectors.
UD_VECTOR = 6
DF_VECTOR = 8
TS_VECTOR = 10
GP_VECTOR = 13
PF_VECTOR = 14

# INVPCID's types.
INVPCID_ADDRESS = 0
INVPCID_CONTEXT = 1
INVPCID_ALL = 2
INVPCID_NON_GLOBAL = 3

#: Results of a walk and of an access.
HW_HIT = 0
HW_PAGE_FAULT = 1
HW_NESTED_FAULT = 2
#: An answer of INVLPG and its kin (INSN_GP) is 3.
HW_NESTED_MISCONFIG = 4

#: Answers of an instruction: it is done, or it raises #GP and changed nothing.
INSN_DONE = 0
INSN_GP = 3

PT_NAMES = {
    PT_PRESENT: "P",
    PT_WRITABLE: "W",
    PT_USER: "U",
    PT_PWT: "PWT",
    PT_PCD: "PCD",
    PT_ACCESSED: "A",
    PT_DIRTY: "D",
    PT_PAGE_SIZE: "PS",
    PT_GLOBAL: "G",
    PT_NX: "NX",
}
CR0_NAMES = {CR0_PE: "PE", CR0_ET: "ET", CR0_WP: "WP", CR0_NW: "NW", CR0_CD: "CD", CR0_PG: "PG"}
CR4_NAMES = {
    CR4_PSE: "PSE",
    CR4_PAE: "PAE",
    CR4_PGE: "PGE",
    CR4_LA57: "LA57",
    CR4_PCIDE: "PCIDE",
    CR4_SMEP: "SMEP",
    CR4_SMAP: "SMAP",
    CR4_PKE: "PKE",
}
EFER_NAMES = {EFER_SCE: "SCE", EFER_LME: "LME", EFER_LMA: "LMA", EFER_NX: "NX", EFER_SVME: "SVME"}
PFERR_NAMES = {
    PFERR_PRESENT: "P",
    PFERR_WRITE: "W",
    PFERR_USER: "U",
    PFERR_RSVD: "RSVD",
    PFERR_FETCH: "F",
    PFERR_PK: "PK",
    PFERR_SGX: "SGX",
    PFERR_GUEST_RMP: "GUEST_RMP",
    PFERR_GUEST_FINAL: "GUEST_FINAL",
    PFERR_GUEST_PAGE: "GUEST_PAGE",
    PFERR_GUEST_ENC: "GUEST_ENC",
    PFERR_GUEST_SIZEM: "GUEST_SIZEM",
    PFERR_GUEST_VMPL: "GUEST_VMPL",
    PFERR_IMPLICIT_ACCESS: "IMPLICIT_ACCESS",
    PFERR_PRIVATE_ACCESS: "PRIVATE_ACCESS",
}
ACCESS_NAMES = {
    ACCESS_WRITE: "write",
    ACCESS_USER: "user",
    ACCESS_FETCH: "fetch",
    ACCESS_AC: "ac",
    ACCESS_IMPLICIT: "implicit",
}


def describe_flags(word: int, names: Mapping[int, str]) -> str:
    """Names of the bits set in ``word``, low bit first, joined by ``|``; the nameless in hex; ``0`` if none is.

    >>> describe_flags(0x8000000000000063, PT_NAMES)
    'P|W|A|D|NX'
    """
    found = [names[bit] for bit in sorted(names) if word & bit]
    rest = word
    for bit in names:
        rest &= ~bit
    if rest:
        found.append(f"{rest:#x}")
    return "|".join(found) if found else "0"


_TR_NAMES = {
    TR_WRITABLE: "W",
    TR_USER: "U",
    TR_HOST_WRITABLE: "HW",
    TR_EXECUTABLE: "X",
    TR_DIRTY: "D",
    TR_GLOBAL: "G",
}
_TR_SIZES = ("?", "4K", "2M", "1G")
_TR_PIECES = ("", "2M", "4M", "1G")


def describe_translation(word: int) -> str:
    """A translation word (TR_* bits) in words: size, host frame, rights; the guest page that it is a piece of.

    >>> describe_translation(0x0100_0000_0002_005A)
    'holds 4K at hpa 0x20000, W|HW|X|D'
    """
    flags = 0
    for bit in _TR_NAMES:
        flags |= word & bit
    text = (
        f"holds {_TR_SIZES[word >> TR_LEVEL_SHIFT & 3]} at hpa {word & PT_FRAME:#x}, {describe_flags(flags, _TR_NAMES)}"
    )
    if word >> TR_PIECE_SHIFT & 3:
        text += f", a piece of {_TR_PIECES[word >> TR_PIECE_SHIFT & 3]}"
    if word >> TR_PKEY_SHIFT & 15:
        text += f", key {word >> TR_PKEY_SHIFT & 15}"
    return text


def describe_access(kind: int) -> str:
    """The access kind in words: ``user write``, ``read``, ``implicit fetch`` ...

    >>> describe_access(ACCESS_USER | ACCESS_WRITE)
    'user write'
    """
    who = [ACCESS_NAMES[bit] for bit in (ACCESS_USER, ACCESS_IMPLICIT, ACCESS_AC) if kind & bit]
    what = [ACCESS_NAMES[bit] for bit in (ACCESS_WRITE, ACCESS_FETCH) if kind & bit]
    known = ACCESS_WRITE | ACCESS_USER | ACCESS_FETCH | ACCESS_AC | ACCESS_IMPLICIT
    odd = [f"{kind & ~known:#x}"] if kind & ~known else []
    return " ".join(who + (what or ["read"]) + odd)
