# SPDX-License-Identifier: GPL-2.0-only
"""Bits and limits of kvm's MMU: access triples, sptes, roles, and the sizes that the kernel fixes.

What the bits mean together is told in ``spte`` and ``role``, which build, ask and print such words.
"""

from __future__ import annotations

from typing import Any

from ...hw.bits import PT_NX, PT_PRESENT

#: Access triple, as in ``role.access`` and in the guest walker's result.
ACC_EXEC = 1
ACC_WRITE = 2
ACC_USER = 4
ACC_ALL = 7
#: Access triples as the kernel's tracepoints print them, by value.
ACC_NAMES = ("---", "--x", "w--", "w-x", "-u-", "-ux", "wu-", "wux")

#: Shadow-present: the spte maps or links something. MMIO and frozen sptes lack it whatever P says.
SPTE_MMU_PRESENT = 1 << 11
SPTE_BASE_ADDR_MASK = 0x000F_FFFF_FFFF_F000
#: What an empty entry holds; new tables are filled with it.
SHADOW_NONPRESENT_VALUE = 1 << 63
#: Transient value of an entry that another actor is changing; bit 7 is set, so ask "present" before "large".
FROZEN_SPTE = SHADOW_NONPRESENT_VALUE | 0x5A0

SPTE_HOST_WRITABLE = 1 << 9
SPTE_MMU_WRITABLE = 1 << 10

SPTE_TDP_AD_MASK = 3 << 52
SPTE_TDP_AD_ENABLED = 0
SPTE_TDP_AD_DISABLED = 1 << 52
SPTE_TDP_AD_WRPROT_ONLY = 2 << 52

#: R and X (bits 0 and 2) of an access-tracked spte are kept this many bits further up.
SHADOW_ACC_TRACK_SAVED_BITS_MASK = 5
SHADOW_ACC_TRACK_SAVED_BITS_SHIFT = 54

#: Bits of the memslot generation that an MMIO spte holds.
MMIO_SPTE_GEN_MASK = (1 << 19) - 1
MMIO_SPTE_GEN_LOW_MASK = 0xFF << 3
MMIO_SPTE_GEN_HIGH_MASK = 0x7FF << 52
MMIO_SPTE_GEN_LOW_SHIFT = 3
MMIO_SPTE_GEN_HIGH_SHIFT = 44
#: Where an MMIO mask may have bits: those that carry no generation and are not MMU-present.
SPTE_MMIO_ALLOWED_MASK = PT_NX | SPTE_BASE_ADDR_MASK | 7
#: Mask and value of MMIO sptes: present, with an address bit that is reserved on a host with fewer than 52.
SPTE_MMIO_MASK = 1 << 51 | PT_PRESENT
#: Address bits that the L1TF mitigation sets, and by how much it moves the gfn's bits that lay there.
SHADOW_NONPRESENT_OR_RSVD_MASK_LEN = 5

#: Host physical address widths that a machine may have.
MIN_HOST_MAXPHYADDR = 32
MAX_HOST_MAXPHYADDR = 52
#: Physical address bits that sptes can hold.
SPTE_MAXPHYADDR = 52

#: Legal (host-writable, MMU-writable, W) of a present leaf, with the state that each row means.
WRITABLE_ROWS: tuple[tuple[int, int, int, str], ...] = (
    (1, 1, 1, "writable"),
    (1, 1, 0, "write-protected for dirty logging or access tracking"),
    (1, 0, 0, "write-protected because the gfn is a shadowed guest table"),
    (0, 0, 0, "read-only backing"),
)

# A page role: one 32-bit word.
ROLE_LEVEL_MASK = 0xF
ROLE_HAS_4_BYTE_GPTE = 1 << 4
ROLE_QUADRANT_SHIFT = 5
ROLE_QUADRANT_MASK = 3 << 5
ROLE_DIRECT = 1 << 7
ROLE_ACCESS_SHIFT = 8
ROLE_ACCESS_MASK = 7 << 8
ROLE_INVALID = 1 << 11
ROLE_EFER_NX = 1 << 12
ROLE_CR0_WP = 1 << 13
ROLE_SMEP_ANDNOT_WP = 1 << 14
ROLE_SMAP_ANDNOT_WP = 1 << 15
ROLE_AD_DISABLED = 1 << 16
ROLE_GUEST_MODE = 1 << 17
ROLE_PASSTHROUGH = 1 << 18
ROLE_SMM_SHIFT = 24
ROLE_SMM_MASK = 0xFF << 24

# The extended role: the upper half of a CPU role.
#: The low half of a CPU role is a page role.
CPU_ROLE_BASE_MASK = 0xFFFF_FFFF
EXT_VALID = 1 << 32
EXT_EXECONLY = 1 << 33
EXT_CR4_PSE = 1 << 34
EXT_CR4_PKE = 1 << 35
EXT_CR4_SMAP = 1 << 36
EXT_CR4_SMEP = 1 << 37
EXT_CR4_LA57 = 1 << 38
EXT_EFER_LMA = 1 << 39

# Levels of tables by paging mode.
PT32_ROOT_LEVEL = 2
PT32E_ROOT_LEVEL = 3
PT64_ROOT_4LEVEL = 4
PT64_ROOT_5LEVEL = 5

#: One-bit fields of a page role, lowest first.
ROLE_FLAGS: tuple[tuple[str, int], ...] = (
    ("has_4_byte_gpte", ROLE_HAS_4_BYTE_GPTE),
    ("direct", ROLE_DIRECT),
    ("invalid", ROLE_INVALID),
    ("efer_nx", ROLE_EFER_NX),
    ("cr0_wp", ROLE_CR0_WP),
    ("smep_andnot_wp", ROLE_SMEP_ANDNOT_WP),
    ("smap_andnot_wp", ROLE_SMAP_ANDNOT_WP),
    ("ad_disabled", ROLE_AD_DISABLED),
    ("guest_mode", ROLE_GUEST_MODE),
    ("passthrough", ROLE_PASSTHROUGH),
)
#: One-bit fields of the extended role, lowest first.
EXT_FLAGS: tuple[tuple[str, int], ...] = (
    ("valid", EXT_VALID),
    ("execonly", EXT_EXECONLY),
    ("cr4_pse", EXT_CR4_PSE),
    ("cr4_pke", EXT_CR4_PKE),
    ("cr4_smap", EXT_CR4_SMAP),
    ("cr4_smep", EXT_CR4_SMEP),
    ("cr4_la57", EXT_CR4_LA57),
    ("efer_lma", EXT_EFER_LMA),
)

#: Which ``page_fault`` op an MMU has.
FAULT_OP_TDP = 0
FAULT_OP_NONPAGING = 1
FAULT_OP_PAGING = 2
#: Previous roots that an MMU remembers.
KVM_MMU_NUM_PREV_ROOTS = 3
#: Levels of a table of reserved bits; one row for entries with bit 7 clear, one for those with it set.
RSVD_LEVELS = 5

#: Which roots ``invalidate_addr()`` and ``roots.free_roots()`` mean: bit 0 the current one, bit 1 + i previous root i.
KVM_MMU_ROOT_CURRENT = 1
KVM_MMU_ROOTS_ALL = 15

#: Guest entries that one re-read of a level-1 entry brings along.
PTE_PREFETCH_NUM = 8
#: Results of :func:`load_pdptrs`.
PDPTRS_BAD = 0
PDPTRS_SAME = 1
PDPTRS_CHANGED = 2
KVM_MAX_HUGEPAGE_LEVEL = 3

#: Entries in one descriptor, its size in bytes.
PTE_LIST_EXT = 14
PTE_LIST_DESC_SIZE = 128
#: A gfn with more rmap entries than this before an add loses them all.
RMAP_RECYCLE_THRESHOLD = 1000

#: Stands in a link of a shadow page that is on no list; typed so that whoever follows a list need not ask.
NO_PAGE: Any = None

#: Pages that one walk collects before its caller works them off.
KVM_PAGE_ARRAY_NR = 16
#: Fewer free pages than this make a fault recycle old ones, until so many are free.
KVM_MIN_FREE_MMU_PAGES = 5
KVM_REFILL_PAGES = 25
#: A frame reserve below which a fault does not start: what the caches of one fault may take.
MIN_FREE_FRAMES = 64
