# SPDX-License-Identifier: GPL-2.0-only
"""What the 64 bits of an spte mean: build one, ask it, change it, print it.

The bit budget of a present spte, shadow and NPT format:

======  =====================  ==================================================================================
bits    name                   why there
======  =====================  ==================================================================================
0-2     P, W, U                hardware
5, 6    A, D                   hardware; always in use, both formats have them
7       PS                     hardware, level 2 and 3 of a leaf
9, 10   host- / MMU-writable   ignored by every walker but EPT's
11      MMU-present            ignored by every walker; the only definition of "shadow-present"
51:12   address                hardware
53:52   A/D type               ignored above the address; must be 0 for PAE, so 0 means "A/D enabled"
54, 56  saved R and X          of an access-tracked spte
63      NX                     hardware
======  =====================  ==================================================================================

An MMIO spte is not shadow-present. It trades the ignored bits for the memslot generation: bits 10:3 and 62:52.
All words are unsigned 64-bit; nothing here takes a lock or touches memory. Reference: "SPTE formats".
"""

from __future__ import annotations

from ...addr import Address, Gfn, Hpa, Pfn, gfn_to_gpa, gpa_to_gfn, hpa_to_pfn
from ...errors import ConfigError, KvmBug
from ...hw.bits import PT_ACCESSED, PT_DIRTY, PT_NX, PT_PAGE_SIZE, PT_PRESENT, PT_USER, PT_WRITABLE
from ...page_types import ONE
from .bits import (
    ACC_ALL,
    ACC_NAMES,
    ACC_USER,
    ACC_WRITE,
    FROZEN_SPTE,
    MAX_HOST_MAXPHYADDR,
    MIN_HOST_MAXPHYADDR,
    MMIO_SPTE_GEN_HIGH_MASK,
    MMIO_SPTE_GEN_HIGH_SHIFT,
    MMIO_SPTE_GEN_LOW_MASK,
    MMIO_SPTE_GEN_LOW_SHIFT,
    SHADOW_ACC_TRACK_SAVED_BITS_MASK,
    SHADOW_ACC_TRACK_SAVED_BITS_SHIFT,
    SHADOW_NONPRESENT_OR_RSVD_MASK_LEN,
    SHADOW_NONPRESENT_VALUE,
    SPTE_BASE_ADDR_MASK,
    SPTE_HOST_WRITABLE,
    SPTE_MMIO_ALLOWED_MASK,
    SPTE_MMIO_MASK,
    SPTE_MMU_PRESENT,
    SPTE_MMU_WRITABLE,
    SPTE_TDP_AD_DISABLED,
    SPTE_TDP_AD_MASK,
    SPTE_TDP_AD_WRPROT_ONLY,
    WRITABLE_ROWS,
)

_SAVED_HIGH_MASK = SHADOW_ACC_TRACK_SAVED_BITS_MASK << SHADOW_ACC_TRACK_SAVED_BITS_SHIFT

_SIZE_NAMES = ("L0", "4K", "2M", "1G", "L4", "L5")


# Refuse to load with overlapping bits: every name of one budget owns its bits alone.
def _check_budget(*budget: int) -> None:
    taken = 0
    for mask in budget:
        if taken & mask:
            raise KvmBug(f"spte bits {taken & mask:#x} are given away twice")
        taken |= mask


_check_budget(
    PT_PRESENT | PT_WRITABLE | PT_USER | PT_ACCESSED | PT_DIRTY | PT_PAGE_SIZE | PT_NX,
    SPTE_BASE_ADDR_MASK,
    SPTE_MMU_PRESENT,
    SPTE_HOST_WRITABLE,
    SPTE_MMU_WRITABLE,
    SPTE_TDP_AD_MASK,
    _SAVED_HIGH_MASK,
)
_check_budget(SPTE_MMIO_ALLOWED_MASK, MMIO_SPTE_GEN_LOW_MASK, MMIO_SPTE_GEN_HIGH_MASK, SPTE_MMU_PRESENT)
_check_budget(SHADOW_NONPRESENT_VALUE, SPTE_MMU_PRESENT)
_check_budget(FROZEN_SPTE, SPTE_MMU_PRESENT)


class SpteFormat:
    """Which bits mean what in the tables of one VM.

    ``name`` is "shadow" or "npt": both use the x86 format with A and D. ``host_maxphyaddr`` is the width of a host
    physical address in bits, 32 to 52. ``mmio_caching`` asks for MMIO sptes; the attribute tells whether they can be
    had: a host with 52 address bits has none reserved. ``l1tf_cache_bits`` is the address width of the L1 cache of a
    CPU with the L1TF bug, None for one without.

    Raises ``ConfigError`` for a width that no machine has. Source: reference "Per-format masks", "MMIO spte".
    """

    __slots__ = (
        "acc_track_mask",
        "accessed_mask",
        "dirty_mask",
        "host_writable_mask",
        "l1tf_mask",
        "lower_gfn_mask",
        "me_value",
        "mmio_access_mask",
        "mmio_caching",
        "mmio_mask",
        "mmio_value",
        "mmu_writable_mask",
        "name",
        "nx_mask",
        "present_mask",
        "user_mask",
        "x_mask",
    )

    def __init__(self, name: str, host_maxphyaddr: int, mmio_caching: bool, l1tf_cache_bits: int | None = None) -> None:
        if not MIN_HOST_MAXPHYADDR <= host_maxphyaddr <= MAX_HOST_MAXPHYADDR:
            raise ConfigError(
                f"host_maxphyaddr={host_maxphyaddr}: a host has {MIN_HOST_MAXPHYADDR} to {MAX_HOST_MAXPHYADDR}"
                " physical address bits"
            )
        self.name = name
        self.present_mask = PT_PRESENT
        self.user_mask = PT_USER
        self.nx_mask = PT_NX
        self.x_mask = 0
        self.accessed_mask = PT_ACCESSED
        self.dirty_mask = PT_DIRTY
        self.acc_track_mask = 0
        self.host_writable_mask = SPTE_HOST_WRITABLE
        self.mmu_writable_mask = SPTE_MMU_WRITABLE
        self.me_value = 0
        self.l1tf_mask, self.lower_gfn_mask = _l1tf_masks(host_maxphyaddr, l1tf_cache_bits)
        # A set reserved address bit makes every access of an MMIO spte a fault with RSVD.
        self.mmio_mask = SPTE_MMIO_MASK if host_maxphyaddr < MAX_HOST_MAXPHYADDR else 0
        self.mmio_access_mask = ACC_WRITE | ACC_USER
        wanted = self.mmio_mask if mmio_caching else 0
        self.mmio_value = usable_mmio_value(wanted, self.mmio_mask, self.l1tf_mask)
        self.mmio_caching = self.mmio_value != 0

    def __repr__(self) -> str:
        mmio = f"mmio value {self.mmio_value:#x}" if self.mmio_caching else "no mmio caching"
        return f"<SpteFormat {self.name} {mmio} l1tf {self.l1tf_mask:#x}>"


def make_shadow_format(host_maxphyaddr: int, mmio_caching: bool, l1tf_cache_bits: int | None = None) -> SpteFormat:
    """The format of shadow page tables; arguments and errors as of :class:`SpteFormat`."""
    return SpteFormat("shadow", host_maxphyaddr, mmio_caching, l1tf_cache_bits)


def make_npt_format(host_maxphyaddr: int, mmio_caching: bool, l1tf_cache_bits: int | None = None) -> SpteFormat:
    """The format of nested page tables of AMD-V: the masks of shadow paging under another name."""
    return SpteFormat("npt", host_maxphyaddr, mmio_caching, l1tf_cache_bits)


# The address bits that an MMIO spte must set against L1TF, and the gfn's bits below them.
def _l1tf_masks(host_maxphyaddr: int, l1tf_cache_bits: int | None) -> tuple[int, int]:
    low = host_maxphyaddr
    mask = 0
    length = SHADOW_NONPRESENT_OR_RSVD_MASK_LEN
    if l1tf_cache_bits is not None:
        if not MIN_HOST_MAXPHYADDR <= l1tf_cache_bits <= MAX_HOST_MAXPHYADDR:
            raise ConfigError(
                f"l1tf_cache_bits={l1tf_cache_bits}: an L1 cache sees {MIN_HOST_MAXPHYADDR} to"
                f" {MAX_HOST_MAXPHYADDR} address bits; None is a CPU without the bug"
            )
        if l1tf_cache_bits < MAX_HOST_MAXPHYADDR - length:
            low = l1tf_cache_bits - length
            mask = ((ONE << length) - 1) << low
    return mask, ((ONE << low) - 1) & SPTE_BASE_ADDR_MASK


def usable_mmio_value(value: int, mask: int, l1tf_mask: int) -> int:
    """``value`` if MMIO sptes can be told from all others by ``(spte & mask) == value``, else 0: no caching.

    The mask must keep to its bits, the value must lie within the mask, must not meet the gfn bits that the L1TF
    mitigation moves up, and must not match a frozen spte. Source: reference "MMIO spte", the setter's rules.
    """
    if mask & ~SPTE_MMIO_ALLOWED_MASK:
        return 0
    if value & (l1tf_mask << SHADOW_NONPRESENT_OR_RSVD_MASK_LEN):
        return 0
    if value & ~mask or (FROZEN_SPTE & mask) == value:
        return 0
    return value


def is_shadow_present(spte: int) -> bool:
    """Whether ``spte`` maps or links something."""
    return (spte & SPTE_MMU_PRESENT) != 0


def is_large(spte: int) -> bool:
    """Whether bit 7 is set; meaningful for shadow-present sptes only."""
    return (spte & PT_PAGE_SIZE) != 0


def is_last(spte: int, level: int) -> bool:
    """Whether the shadow-present ``spte`` at ``level`` is a leaf."""
    return level == 1 or (spte & PT_PAGE_SIZE) != 0


def is_writable(spte: int) -> bool:
    """Whether hardware lets writes through ``spte`` (bit 1)."""
    return (spte & PT_WRITABLE) != 0


def is_frozen(spte: int) -> bool:
    """Whether another actor is in the middle of changing the entry."""
    return spte == FROZEN_SPTE


def spte_to_child(spte: Address) -> Hpa:
    """Address of the table that the nonleaf ``spte`` links."""
    return spte & SPTE_BASE_ADDR_MASK  # type: ignore[no-any-return]  # the word names an hpa


def spte_to_pfn(spte: Address) -> Pfn:
    """Host frame that the leaf ``spte`` maps (the first one, of a large page)."""
    return hpa_to_pfn(spte & SPTE_BASE_ADDR_MASK)


def is_mmu_writable(fmt: SpteFormat, spte: int) -> bool:
    """Whether the MMU itself has no reason to protect the page."""
    return (spte & fmt.mmu_writable_mask) != 0


def is_host_writable(fmt: SpteFormat, spte: int) -> bool:
    """Whether the backing may be written; decided at install, constant on a live spte."""
    return (spte & fmt.host_writable_mask) != 0


def is_legal_triple(fmt: SpteFormat, spte: int) -> bool:
    """Whether host-writable, MMU-writable and W of the present leaf ``spte`` are one of the four legal rows."""
    if spte & fmt.mmu_writable_mask:
        return (spte & fmt.host_writable_mask) != 0
    return (spte & PT_WRITABLE) == 0


def ad_enabled(spte: int) -> bool:
    """Whether hardware's A and D bits are in use in the shadow-present ``spte``."""
    return (spte & SPTE_TDP_AD_MASK) != SPTE_TDP_AD_DISABLED


def ad_need_write_protect(spte: int) -> bool:
    """Whether dirty logging must write-protect ``spte``, because D cannot be relied upon."""
    return (spte & SPTE_TDP_AD_MASK) != 0


def is_access_tracked(fmt: SpteFormat, spte: int) -> bool:
    """Whether ``spte`` has been made inaccessible to learn of the next access."""
    return (spte & SPTE_TDP_AD_MASK) == SPTE_TDP_AD_DISABLED and (spte & fmt.acc_track_mask) == 0


def is_accessed(fmt: SpteFormat, spte: int) -> bool:
    """Whether the page of the shadow-present ``spte`` was accessed since it was last aged."""
    if ad_enabled(spte) and fmt.accessed_mask:
        return (spte & fmt.accessed_mask) != 0
    return not is_access_tracked(fmt, spte)


def is_dirty(fmt: SpteFormat, spte: int) -> bool:
    """Whether the page of the shadow-present leaf ``spte`` may have been written through it."""
    if ad_enabled(spte) and fmt.dirty_mask:
        return (spte & fmt.dirty_mask) != 0
    return (spte & PT_WRITABLE) != 0


def is_executable(fmt: SpteFormat, spte: int) -> bool:
    """Whether hardware lets fetches through ``spte``."""
    return (spte & (fmt.x_mask | fmt.nx_mask)) == fmt.x_mask


def is_volatile(fmt: SpteFormat, spte: int) -> bool:
    """Whether the shadow-present leaf may change while mmu_lock is held, so that only xchg and cmpxchg are safe."""
    if (spte & PT_WRITABLE) == 0 and (spte & fmt.mmu_writable_mask) != 0:
        return True
    if is_access_tracked(fmt, spte):
        return True
    if not ad_enabled(spte):
        return False
    if (spte & fmt.accessed_mask) == 0:
        return True
    return (spte & PT_WRITABLE) != 0 and (spte & fmt.dirty_mask) == 0


def mark_for_access_track(fmt: SpteFormat, spte: int) -> int:
    """The shadow-present ``spte`` made ready to notice the next access: A clear, or R, W and X taken away."""
    if ad_enabled(spte):
        return spte & ~fmt.accessed_mask
    if is_access_tracked(fmt, spte):
        return spte
    check_writable_triple(fmt, spte)
    return (
        spte | ((spte & SHADOW_ACC_TRACK_SAVED_BITS_MASK) << SHADOW_ACC_TRACK_SAVED_BITS_SHIFT)
    ) & ~fmt.acc_track_mask


def restore_access_track(fmt: SpteFormat, spte: int) -> int:
    """The access-tracked ``spte`` with R and X back; W stays clear, to be restored by a write fault."""
    return (spte & ~(fmt.acc_track_mask | _SAVED_HIGH_MASK)) | (
        (spte >> SHADOW_ACC_TRACK_SAVED_BITS_SHIFT) & SHADOW_ACC_TRACK_SAVED_BITS_MASK
    )


def make_nonleaf(fmt: SpteFormat, child: Hpa, ad_disabled: bool) -> int:
    """The spte that links the table at ``child``: everything allowed, guest rights are narrowed in the leaf alone."""
    spte = SPTE_MMU_PRESENT | child | fmt.present_mask | PT_WRITABLE | fmt.user_mask | fmt.x_mask | fmt.me_value
    if ad_disabled:
        return spte | SPTE_TDP_AD_DISABLED
    return spte | fmt.accessed_mask


def is_mmio(fmt: SpteFormat, spte: int) -> bool:
    """Whether ``spte`` caches that its gfn has no memory."""
    return fmt.mmio_caching and (spte & fmt.mmio_mask) == fmt.mmio_value


def make_mmio(fmt: SpteFormat, gfn: Gfn, access: int, generation: int) -> int:
    """The MMIO spte of ``gfn``: guest ``access`` triple and the low 19 bits of the memslots' ``generation``."""
    gpa = gfn_to_gpa(gfn)
    spte = fmt.mmio_value | (access & fmt.mmio_access_mask)
    spte |= (generation << MMIO_SPTE_GEN_LOW_SHIFT) & MMIO_SPTE_GEN_LOW_MASK
    spte |= (generation << MMIO_SPTE_GEN_HIGH_SHIFT) & MMIO_SPTE_GEN_HIGH_MASK
    return spte | gpa | fmt.l1tf_mask | ((gpa & fmt.l1tf_mask) << SHADOW_NONPRESENT_OR_RSVD_MASK_LEN)


def mmio_gfn(fmt: SpteFormat, spte: Address) -> Gfn:
    """Guest frame of an MMIO spte."""
    return gpa_to_gfn((spte & fmt.lower_gfn_mask) | ((spte >> SHADOW_NONPRESENT_OR_RSVD_MASK_LEN) & fmt.l1tf_mask))


def mmio_access(fmt: SpteFormat, spte: int) -> int:
    """Access triple (W and U) of an MMIO spte."""
    return spte & fmt.mmio_access_mask


def mmio_generation(spte: int) -> int:
    """Low 19 bits of the memslots' generation that an MMIO spte was made in."""
    return ((spte & MMIO_SPTE_GEN_LOW_MASK) >> MMIO_SPTE_GEN_LOW_SHIFT) | (
        (spte & MMIO_SPTE_GEN_HIGH_MASK) >> MMIO_SPTE_GEN_HIGH_SHIFT
    )


def check_writable_triple(fmt: SpteFormat, spte: int) -> int:
    """Check the writable state of the present leaf ``spte`` against the four legal rows; return 0.

    Raises ``KvmBug`` with the word and the rule that it breaks. Source: reference "Legal writable triples".
    """
    if is_legal_triple(fmt, spte):
        return 0
    raise KvmBug(_describe_broken_triple(fmt, spte))


# What is wrong with the writable state of spte, and what would be right.
def _describe_broken_triple(fmt: SpteFormat, spte: int) -> str:
    host, mmu, writable = is_host_writable(fmt, spte), is_mmu_writable(fmt, spte), is_writable(spte)
    broken = "MMU-writable but not host-writable" if mmu else "writable but not MMU-writable"
    rows = ", ".join(f"({h},{m},{w}) {meaning}" for h, m, w, meaning in WRITABLE_ROWS)
    return f"spte {spte:#x} (host,mmu,W)=({host:d},{mmu:d},{writable:d}): {broken}; legal: {rows}"


def describe_spte(word: int, fmt: SpteFormat, level: int) -> str:
    """One line for the spte ``word`` at ``level`` (1 = 4K ...) of a table in format ``fmt``.

    A leaf reads ``4K W-host W-mmu W U X A- D- pfn 0x1a2b3``, a minus sign after a name says that the bit is clear;
    then nonleaf, MMIO, ``NP`` (empty), ``FROZEN``. Bits that the format does not explain follow as ``bits 0x...``.
    """
    if word == SHADOW_NONPRESENT_VALUE:
        return "NP"
    if word == FROZEN_SPTE:
        return "FROZEN"
    if is_shadow_present(word):
        return _describe_leaf(word, fmt, level) if is_last(word, level) else _describe_nonleaf(word, fmt, level)
    if is_mmio(fmt, word):
        gfn, access, generation = mmio_gfn(fmt, word), mmio_access(fmt, word), mmio_generation(word)
        return f"mmio gfn {gfn:#x} gen {generation:#x} access {ACC_NAMES[access & ACC_ALL]}"
    return f"not shadow-present {word:#x}"


# "X" or "X-".
def _flag(name: str, is_set: bool) -> str:
    return name if is_set else name + "-"


# A/D type and the bits that no field of the format explains, with a leading blank, or nothing.
def _describe_rest(word: int, fmt: SpteFormat, known: int) -> str:
    kind = word & SPTE_TDP_AD_MASK
    text = ""
    if kind == SPTE_TDP_AD_DISABLED:
        text = " ad-disabled"
    elif kind == SPTE_TDP_AD_WRPROT_ONLY:
        text = " ad-wrprot-only"
    known |= SPTE_MMU_PRESENT | SPTE_BASE_ADDR_MASK | SPTE_TDP_AD_MASK | fmt.present_mask | fmt.nx_mask | fmt.x_mask
    known |= PT_WRITABLE | fmt.user_mask | fmt.accessed_mask | fmt.me_value
    if word & ~known:
        text += f" bits {word & ~known:#x}"
    return text


# Line of a present leaf.
def _describe_leaf(word: int, fmt: SpteFormat, level: int) -> str:
    flags = " ".join(
        (
            _flag("W-host", is_host_writable(fmt, word)),
            _flag("W-mmu", is_mmu_writable(fmt, word)),
            _flag("W", is_writable(word)),
            _flag("U", bool(word & fmt.user_mask)),
            _flag("X", is_executable(fmt, word)),
            _flag("A", bool(word & fmt.accessed_mask)),
            _flag("D", bool(word & fmt.dirty_mask)),
        )
    )
    known = fmt.dirty_mask | fmt.host_writable_mask | fmt.mmu_writable_mask
    if level > 1:
        known |= PT_PAGE_SIZE
    return f"{_SIZE_NAMES[level]} {flags} pfn {spte_to_pfn(word):#x}{_describe_rest(word, fmt, known)}"


# Line of a present nonleaf entry.
def _describe_nonleaf(word: int, fmt: SpteFormat, level: int) -> str:
    flags = " ".join(
        (
            _flag("W", is_writable(word)),
            _flag("U", bool(word & fmt.user_mask)),
            _flag("X", is_executable(fmt, word)),
            _flag("A", bool(word & fmt.accessed_mask)),
        )
    )
    return f"nonleaf level {level} {flags} table {spte_to_child(word):#x}{_describe_rest(word, fmt, 0)}"
