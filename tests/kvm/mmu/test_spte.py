# SPDX-License-Identifier: GPL-2.0-only
"""What the 64 bits of an spte mean."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmmu.errors import ConfigError, KvmBug
from kvmmu.kvm.mmu import spte as s
from kvmmu.kvm.mmu.bits import ACC_USER, ACC_WRITE, FROZEN_SPTE, SHADOW_NONPRESENT_VALUE, WRITABLE_ROWS

SHADOW = s.make_shadow_format(46, True)
NPT = s.make_npt_format(46, True)
#: A CPU with L1TF whose cache uses as many address bits as memory has.
L1TF = s.make_shadow_format(44, True, 44)

words = st.integers(0, 2**64 - 1)
generations = st.integers(0, 2**64 - 1)
triples = st.integers(0, 7)


def leaf(*clear: int, pfn: int = 0x1A2B3) -> int:
    """The worked example of a 4K leaf, user, writable, accessed and dirty, with some bits clear."""
    word = 0xE67 | pfn << 12
    for bit in clear:
        assert word & bit
        word &= ~bit
    return word


# ------------------------------------------------------------------------------------------- worked examples


@pytest.mark.parametrize("fmt", [SHADOW, NPT], ids=["shadow", "npt"])
def test_the_worked_leaf_reads_as_it_was_made(fmt: s.SpteFormat) -> None:
    word = leaf()
    assert s.is_shadow_present(word)
    assert s.is_last(word, 1)
    assert not s.is_large(word)
    assert s.is_writable(word)
    assert s.is_host_writable(fmt, word)
    assert s.is_mmu_writable(fmt, word)
    assert s.is_accessed(fmt, word)
    assert s.is_dirty(fmt, word)
    assert s.is_executable(fmt, word)
    assert not s.is_volatile(fmt, word)
    assert not s.is_mmio(fmt, word)
    assert s.spte_to_pfn(word) == 0x1A2B3
    assert s.describe_spte(word, fmt, 1) == "4K W-host W-mmu W U X A D pfn 0x1a2b3"


@pytest.mark.parametrize("fmt", [SHADOW, NPT], ids=["shadow", "npt"])
def test_the_worked_nonleaf_is_made_and_read(fmt: s.SpteFormat) -> None:
    word = s.make_nonleaf(fmt, 0x7654_3000, False)
    assert word == 0x827 | 0x7654_3000
    assert not s.is_last(word, 2)
    assert s.spte_to_child(word) == 0x7654_3000
    assert s.describe_spte(word, fmt, 4) == "nonleaf level 4 W U X A table 0x76543000"


def test_a_nonleaf_without_ad_bits_says_so_instead_of_being_accessed() -> None:
    word = s.make_nonleaf(SHADOW, 0x1000, True)
    assert word == 0x807 | 0x1000 | 1 << 52
    assert not s.ad_enabled(word)
    assert s.describe_spte(word, SHADOW, 2) == "nonleaf level 2 W U X A- table 0x1000 ad-disabled"


def test_the_worked_mmio_spte_is_made_and_read() -> None:
    word = s.make_mmio(SHADOW, 0x8000, 7, 0x18)
    assert word == 0x0008_0000_0800_00C7
    assert s.is_mmio(SHADOW, word)
    assert not s.is_shadow_present(word)
    assert s.mmio_gfn(SHADOW, word) == 0x8000
    assert s.mmio_access(SHADOW, word) == ACC_WRITE | ACC_USER
    assert s.mmio_generation(word) == 0x18
    assert s.describe_spte(word, SHADOW, 1) == "mmio gfn 0x8000 gen 0x18 access wu-"


def test_special_words_have_their_values_and_names() -> None:
    assert SHADOW_NONPRESENT_VALUE == 1 << 63
    assert FROZEN_SPTE == 0x8000_0000_0000_05A0
    assert s.describe_spte(SHADOW_NONPRESENT_VALUE, SHADOW, 1) == "NP"
    assert s.describe_spte(FROZEN_SPTE, SHADOW, 1) == "FROZEN"
    assert s.is_frozen(FROZEN_SPTE)
    assert not s.is_frozen(SHADOW_NONPRESENT_VALUE)
    for fmt in (SHADOW, NPT, L1TF):
        for word in (0, SHADOW_NONPRESENT_VALUE, FROZEN_SPTE):
            assert not s.is_shadow_present(word)
            assert not s.is_mmio(fmt, word)


@pytest.mark.parametrize(
    ("word", "level", "text"),
    [
        (leaf(1 << 5, 1 << 6), 1, "4K W-host W-mmu W U X A- D- pfn 0x1a2b3"),
        (leaf(1 << 1, 1 << 10), 1, "4K W-host W-mmu- W- U X A D pfn 0x1a2b3"),
        (leaf(1 << 2) | 1 << 63, 1, "4K W-host W-mmu W U- X- A D pfn 0x1a2b3"),
        (0xEE7 | 0x200 << 12, 2, "2M W-host W-mmu W U X A D pfn 0x200"),
        (0xEE7 | 0x40000 << 12, 3, "1G W-host W-mmu W U X A D pfn 0x40000"),
        (leaf() | 2 << 52, 1, "4K W-host W-mmu W U X A D pfn 0x1a2b3 ad-wrprot-only"),
        (leaf() | 1 << 8 | 1 << 58, 1, "4K W-host W-mmu W U X A D pfn 0x1a2b3 bits 0x400000000000100"),
        (0x1234, 1, "not shadow-present 0x1234"),
        (0, 1, "not shadow-present 0x0"),
    ],
)
def test_every_kind_of_word_is_described_in_one_line(word: int, level: int, text: str) -> None:
    assert s.describe_spte(word, SHADOW, level) == text


@given(words, st.integers(1, 5), st.sampled_from([SHADOW, NPT, L1TF]))
def test_any_word_can_be_described(word: int, level: int, fmt: s.SpteFormat) -> None:
    text = s.describe_spte(word, fmt, level)
    assert text
    assert "\n" not in text


# ------------------------------------------------------------------------------------------- formats


def test_both_formats_have_the_documented_masks() -> None:
    for fmt in (SHADOW, NPT):
        assert (fmt.present_mask, fmt.user_mask, fmt.nx_mask, fmt.x_mask) == (1, 4, 1 << 63, 0)
        assert (fmt.accessed_mask, fmt.dirty_mask, fmt.acc_track_mask) == (1 << 5, 1 << 6, 0)
        assert (fmt.host_writable_mask, fmt.mmu_writable_mask) == (1 << 9, 1 << 10)
        assert (fmt.mmio_value, fmt.mmio_mask, fmt.mmio_access_mask) == (1 << 51 | 1, 1 << 51 | 1, 6)
        assert (fmt.l1tf_mask, fmt.lower_gfn_mask) == (0, (1 << 46) - (1 << 12))
    assert (SHADOW.name, NPT.name) == ("shadow", "npt")


@pytest.mark.parametrize("make", [s.make_shadow_format, s.make_npt_format])
def test_mmio_caching_needs_a_reserved_address_bit_and_the_wish(make: object) -> None:
    assert make(51, True).mmio_caching  # type: ignore[operator]
    for fmt in (make(52, True), make(51, False)):  # type: ignore[operator]
        assert not fmt.mmio_caching
        assert fmt.mmio_value == 0
        assert not s.is_mmio(fmt, 0)
        assert not s.is_mmio(fmt, 1 << 51 | 1)


def test_l1tf_mask_covers_the_top_five_bits_of_the_cache_address() -> None:
    assert L1TF.l1tf_mask == 0x1F << 39
    assert L1TF.lower_gfn_mask == (1 << 39) - (1 << 12)
    assert s.make_shadow_format(46, True, 46).l1tf_mask == 0x1F << 41
    # From 47 bits on the moved bits would not fit: such a CPU is taken to be without the bug.
    assert s.make_shadow_format(46, True, 47).l1tf_mask == 0
    assert s.make_shadow_format(46, True, 47).lower_gfn_mask == (1 << 46) - (1 << 12)


@pytest.mark.parametrize("bits", [0, 31, 53, -1])
def test_an_address_width_that_no_host_has_is_refused(bits: int) -> None:
    with pytest.raises(ConfigError, match=f"host_maxphyaddr={bits}:"):
        s.make_shadow_format(bits, True)
    with pytest.raises(ConfigError, match=f"l1tf_cache_bits={bits}:"):
        s.make_npt_format(46, True, bits)


@pytest.mark.parametrize(
    ("value", "mask", "l1tf"),
    [
        (1 << 11, 1 << 11, 0),  # MMU-present
        (1 << 3, 1 << 3, 0),  # a generation bit
        (1 << 52, 1 << 52, 0),  # another
        (1 << 51 | 1, 1 << 51, 0),  # outside the mask
        (1 << 46 | 1, 1 << 46 | 1, 0x1F << 41),  # where the gfn's bits go
        (1 << 63, 1 << 63 | 1, 0),  # a frozen spte would look like MMIO
        (0, 0, 0),
    ],
)
def test_an_mmio_value_that_could_be_mistaken_turns_caching_off(value: int, mask: int, l1tf: int) -> None:
    assert s.usable_mmio_value(value, mask, l1tf) == 0


def test_a_usable_mmio_value_stays() -> None:
    assert s.usable_mmio_value(1 << 51 | 1, 1 << 51 | 1, 0x1F << 41) == 1 << 51 | 1


# ------------------------------------------------------------------------------------------- writable triples


@pytest.mark.parametrize("bits", list(itertools.product((0, 1), repeat=3)))
def test_exactly_the_four_rows_are_legal(bits: tuple[int, int, int]) -> None:
    host, mmu, writable = bits
    word = 0x865 | host << 9 | mmu << 10 | writable << 1
    legal = bits in {(1, 1, 1), (1, 1, 0), (1, 0, 0), (0, 0, 0)}
    assert s.is_legal_triple(SHADOW, word) is legal
    assert (bits in {row[:3] for row in WRITABLE_ROWS}) is legal
    if legal:
        assert s.check_writable_triple(SHADOW, word) == 0
        return
    rule = "MMU-writable but not host-writable" if mmu else "writable but not MMU-writable"
    with pytest.raises(KvmBug, match=f"{word:#x} .*{rule}"):
        s.check_writable_triple(SHADOW, word)


# ------------------------------------------------------------------------------------------- predicates


def test_volatile_is_what_hardware_or_the_lockless_path_may_change() -> None:
    assert s.is_volatile(SHADOW, leaf(1 << 1))  # W may come back
    assert not s.is_volatile(SHADOW, leaf(1 << 1, 1 << 10))  # a shadowed table stays protected
    assert s.is_volatile(SHADOW, leaf(1 << 5))  # A may be set
    assert s.is_volatile(SHADOW, leaf(1 << 6))  # D may be set
    assert not s.is_volatile(SHADOW, leaf(1 << 6, 1 << 1, 1 << 10))  # without W it may not
    # Without A/D bits an spte of these formats counts as access-tracked.
    assert s.is_volatile(SHADOW, leaf() | 1 << 52)


def test_dirty_falls_back_to_writable_without_ad_bits() -> None:
    assert not s.is_dirty(SHADOW, leaf(1 << 6))
    assert s.is_dirty(SHADOW, leaf(1 << 6) | 1 << 52)
    assert not s.is_dirty(SHADOW, leaf(1 << 1) | 1 << 52)
    assert not s.is_accessed(SHADOW, leaf(1 << 5))
    assert not s.is_accessed(SHADOW, leaf() | 1 << 52)


@pytest.mark.parametrize(("kind", "enabled", "protects"), [(0, True, False), (1, False, True), (2, True, True)])
def test_ad_type_decides_about_ad_bits_and_write_protection(kind: int, enabled: bool, protects: bool) -> None:
    word = leaf() | kind << 52
    assert s.ad_enabled(word) is enabled
    assert s.ad_need_write_protect(word) is protects


@given(words)
def test_ageing_clears_the_accessed_bit_alone(word: int) -> None:
    word &= ~(1 << 52)
    aged = s.mark_for_access_track(SHADOW, word)
    assert aged == word & ~(1 << 5)
    assert not s.is_accessed(SHADOW, aged)


def test_restoring_moves_the_saved_rights_back() -> None:
    tracked = (leaf(1 << 0, 1 << 2) | 1 << 52) | 1 << 54 | 1 << 56
    restored = s.restore_access_track(SHADOW, tracked)
    assert restored == leaf() | 1 << 52


@given(words)
def test_predicates_agree_with_the_bits(word: int) -> None:
    bits = f"{word:064b}"[::-1]
    assert s.is_shadow_present(word) is (bits[11] == "1")
    assert s.is_large(word) is (bits[7] == "1")
    assert s.is_writable(word) is (bits[1] == "1")
    assert s.is_executable(SHADOW, word) is (bits[63] == "0")
    assert s.is_host_writable(SHADOW, word) is (bits[9] == "1")
    assert s.is_mmu_writable(SHADOW, word) is (bits[10] == "1")
    assert s.spte_to_pfn(word) == int(bits[12:52][::-1], 2)
    assert s.spte_to_child(word) == int(bits[12:52][::-1], 2) << 12
    assert s.is_mmio(SHADOW, word) is (bits[51] == "1" and bits[0] == "1")


# ------------------------------------------------------------------------------------------- MMIO


@given(st.integers(0, 2**34 - 1), triples, generations)
def test_mmio_round_trip(gfn: int, access: int, generation: int) -> None:
    for fmt in (SHADOW, NPT):
        word = s.make_mmio(fmt, gfn, access, generation)
        assert s.is_mmio(fmt, word)
        assert not s.is_shadow_present(word)
        assert s.mmio_gfn(fmt, word) == gfn
        assert s.mmio_access(fmt, word) == access & 6
        assert s.mmio_generation(word) == generation & 0x7FFFF
        assert word >> 63 == 0


@given(st.integers(0, 2**32 - 1), triples, generations)
def test_mmio_round_trip_with_l1tf_keeps_the_cache_bits_set(gfn: int, access: int, generation: int) -> None:
    word = s.make_mmio(L1TF, gfn, access, generation)
    assert word & L1TF.l1tf_mask == L1TF.l1tf_mask
    assert s.is_mmio(L1TF, word)
    assert s.mmio_gfn(L1TF, word) == gfn
    assert s.mmio_access(L1TF, word) == access & 6
    assert s.mmio_generation(word) == generation & 0x7FFFF


@given(st.integers(0, 18))
def test_each_generation_bit_has_its_own_place(bit: int) -> None:
    place = bit + 3 if bit < 8 else bit + 44
    assert s.make_mmio(SHADOW, 0, 0, 1 << bit) == SHADOW.mmio_value | 1 << place
