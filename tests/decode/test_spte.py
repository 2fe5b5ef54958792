# SPDX-License-Identifier: GPL-2.0-only
"""Sptes: words built from a meaning are read as it, in each kernel's layout; broken words are told with the rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmmu.decode.layouts import BASELINE_LAYOUT, LAYOUTS, layout_of, parse_version
from kvmmu.decode.number import Number
from kvmmu.decode.reading import Machine, Reading
from kvmmu.decode.spte import Format, read_spte
from kvmmu.decode.words import Context, Kind, read_word
from kvmmu.kvm.mmu.spte import describe_spte, make_npt_format, make_shadow_format
from oracle import spte_model
from oracle.spte_model import Leaf

KERNELS = ["5.10", "6.1", "6.12"]
TRIPLES = [(1, 1, 1), (1, 1, 0), (1, 0, 0), (0, 0, 0)]
SIZES = {1: "4K", 2: "2M", 3: "1G"}


@st.composite
def leaves(draw: st.DrawFn) -> tuple[Leaf, int]:
    level = draw(st.integers(1, 3))
    pfn = draw(st.integers(0, 2 ** (40 - 9 * (level - 1)) - 1)) << 9 * (level - 1)
    triple = draw(st.sampled_from(TRIPLES))
    flags = draw(st.tuples(*[st.booleans()] * 4))
    return Leaf(pfn, triple, *flags), level


def flag(name: str, is_set: object) -> str:
    return name if is_set else name + "-"


def layout(kernel: str) -> object:
    return layout_of(parse_version(kernel))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("table", [Format.SHADOW, Format.NPT])
@given(made=leaves())
def test_a_leaf_of_shadow_or_npt_format_is_read_as_it_was_made(
    kernel: str, table: Format, made: tuple[Leaf, int]
) -> None:
    leaf, level = made
    reading = read_spte(spte_model.x86_leaf(kernel, leaf, level), table, level, layout(kernel), Machine(52))  # type: ignore[arg-type]
    host, mmu, writable = leaf.triple
    words = [
        flag("W-host", host), flag("W-mmu", mmu), flag("W", writable), flag("U", leaf.user), flag("X", leaf.executable),
        flag("A", leaf.accessed), flag("D", leaf.dirty),
    ]  # fmt: skip
    assert reading.text == f"{SIZES[level]} {' '.join(words)} pfn {leaf.pfn:#x}"
    assert reading.problems == ()


@pytest.mark.parametrize("kernel", KERNELS)
@given(made=leaves(), memtype=st.sampled_from([(0, "UC"), (6, "WB")]), ipat=st.booleans())
def test_a_leaf_of_ept_format_is_read_as_it_was_made(
    kernel: str, made: tuple[Leaf, int], memtype: tuple[int, str], ipat: bool
) -> None:
    leaf, level = made
    word = spte_model.ept_leaf(kernel, leaf, level, memtype[0], ipat)
    reading = read_spte(word, Format.EPT, level, layout(kernel), Machine(52))  # type: ignore[arg-type]
    host, mmu, writable = leaf.triple
    words = [
        flag("W-host", host), flag("W-mmu", mmu), "R", flag("W", writable), flag("X", leaf.executable),
        flag("A", leaf.accessed), flag("D", leaf.dirty), memtype[1],
    ]  # fmt: skip
    assert reading.text == f"{SIZES[level]} {' '.join(words)}{' IPAT' if ipat else ''} pfn {leaf.pfn:#x}"
    assert reading.problems == ()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("table", [Format.SHADOW, Format.EPT])
@given(gfn=st.integers(0, 2**24 - 1), generation=st.integers(0, 2**18 - 1), access=st.sampled_from([0, 2, 4, 6]))
def test_an_mmio_spte_is_read_as_it_was_made(
    kernel: str, table: Format, gfn: int, generation: int, access: int
) -> None:
    word = spte_model.mmio(kernel, gfn, generation, access, table)
    reading = read_spte(word, table, 1, layout(kernel), Machine(36))  # type: ignore[arg-type]
    triple = {0: "---", 2: "w--", 4: "-u-", 6: "wu-"}[access]
    text = f"mmio gfn {gfn:#x} gen {generation:#x}"
    assert reading.text == (text if table is Format.EPT else f"{text} access {triple}")
    assert reading.problems == ()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("table", [Format.SHADOW, Format.EPT])
@pytest.mark.parametrize("cache_bits", [36, 39, 44, 46])
@given(data=st.data())
def test_the_gfn_of_an_mmio_spte_comes_back_on_a_host_with_l1tf(
    kernel: str, table: Format, cache_bits: int, data: st.DataObject
) -> None:
    gfn = data.draw(st.integers(0, 2 ** (cache_bits - 12) - 1))
    word = spte_model.mmio(kernel, gfn, 0x155, 6, table, cache_bits)
    machine = Machine(min(cache_bits, 44), l1tf=True, cache_bits=cache_bits)
    reading = read_spte(word, table, 1, layout(kernel), machine)  # type: ignore[arg-type]
    assert f"mmio gfn {gfn:#x} gen" in reading.text
    assert reading.problems == ()
    # Nobody says so: the other gfn stands in a note.
    plain = read_spte(word, table, 1, layout(kernel), Machine(cache_bits))  # type: ignore[arg-type]
    assert any(f"L1TF mitigation ({cache_bits} bits): gfn {gfn:#x}" in note for note in plain.notes)


# The model writes such words itself, and has its own describe_spte().
@given(word=st.integers(0, 2**64 - 1), level=st.integers(1, 3))
def test_the_models_own_description_says_the_same_of_its_own_words(word: int, level: int) -> None:
    reading = read_spte(word, Format.SHADOW, level, BASELINE_LAYOUT, Machine(46))
    if not reading.problems and not (word & 1 << 11 and not reading.text.startswith(("4K", "2M", "1G", "nonleaf"))):
        assert reading.text == describe_spte(word, make_shadow_format(46, mmio_caching=True), level)


@given(pfn=st.integers(0, 2**34 - 1), bits=st.integers(0, 2**12 - 1), level=st.integers(1, 3))
def test_a_words_description_is_the_models_for_every_pattern_of_low_bits(pfn: int, bits: int, level: int) -> None:
    word = pfn << 12 | bits | 1 << 11
    reading = read_spte(word, Format.NPT, level, BASELINE_LAYOUT, Machine())
    assert reading.text == describe_spte(word, make_npt_format(46, mmio_caching=True), level)


# ---- rules


def ept(word: int, level: int, kernel: str = "6.12", maxphyaddr: int | None = None) -> Reading:
    return read_spte(word, Format.EPT, level, layout(kernel), Machine(maxphyaddr))  # type: ignore[arg-type]


GOOD_LEAF = 0x8600000012345B77
GOOD_TABLE = 0x8000000012345907


@pytest.mark.parametrize(("word", "level", "rule"), [
    (GOOD_LEAF & ~1, 1, "EPT misconfiguration: W without R (bits 2:0 are 110)"),
    (GOOD_LEAF & ~5, 1, "EPT misconfiguration: W without R (bits 2:0 are 010)"),
    (GOOD_TABLE & ~1, 3, "EPT misconfiguration: W without R (bits 2:0 are 110)"),
    *[((GOOD_LEAF & ~0x38) | memtype << 3, 1, f"EPT misconfiguration: memory type {memtype} (bits 5:3) is reserved")
      for memtype in (2, 3, 7)],
    *[(GOOD_TABLE | 1 << bit, 2, f"EPT misconfiguration: bit {bit} set, reserved in an entry that links a table")
      for bit in (3, 4, 5, 6)],
    (GOOD_TABLE | 1 << 39, 2, "EPT misconfiguration: reserved address bit 39: at or above MAXPHYADDR 39"),
    (GOOD_LEAF | 3 << 40, 1, "EPT misconfiguration: reserved address bits 41:40: at or above MAXPHYADDR 39"),
    (GOOD_LEAF | 1 << 7, 2,
     "EPT misconfiguration: reserved address bits 20, 18, 14, 12: a 2M page is aligned to its size"),
    (GOOD_TABLE | 1 << 7, 4, "EPT misconfiguration: bit 7 set, there are no large pages at level 4"),
])  # fmt: skip
def test_what_ept_forbids_is_told_with_the_rule(word: int, level: int, rule: str) -> None:
    assert rule in ept(word, level, maxphyaddr=39).problems


@pytest.mark.parametrize(("word", "level"), [(GOOD_LEAF, 1), (GOOD_TABLE, 2), (GOOD_TABLE, 5)])
def test_a_good_ept_entry_breaks_no_rule(word: int, level: int) -> None:
    assert ept(word, level, maxphyaddr=39).problems == ()


def test_x_without_r_is_a_note_for_it_depends_on_the_cpu() -> None:
    reading = ept(0x8600000012345B74 & ~(3 << 57), 1)
    assert reading.problems == ()
    assert reading.notes == ("X without R: a misconfiguration on a CPU without execute-only EPT entries",)


@pytest.mark.parametrize(("word", "level", "rule"), [
    (0x12345E67 | 1 << 39, 1, "reserved address bit 39: at or above MAXPHYADDR 39"),
    (0x12345E67 | 1 << 8, 1, "bit 8 (0x100) set: no field of kvm's in this format"),
    (0x12345827 | 1 << 8, 4, "bit 8 (0x100) set: no field of kvm's in this format"),
    (0x12345827 | 1 << 7, 4, "reserved bit 7: there are no large pages at level 4"),
    (0x12345E66, 1, "shadow-present, but P is clear: the CPU does not see it"),
    (0x12345C67, 1, "MMU-writable (bit 10) without host-writable (bit 9): kvm never sets that"),
    (0x12345A67, 1, "W without MMU-writable (bit 10): kvm never sets that in a leaf"),
    (0x12345EE7, 2, "reserved address bits 20, 18, 14, 12: a 2M page is aligned to its size"),
    (0x12345823, 3, "kvm sets W and U in every entry that links a table"),
    (0x12345E67 | 1 << 52, 1, "an A/D type (bit 52): only EPT tables have one"),
])  # fmt: skip
def test_what_shadow_and_npt_tables_cannot_have_is_told_with_the_rule(word: int, level: int, rule: str) -> None:
    for table in (Format.SHADOW, Format.NPT):
        reading = read_spte(word, table, level, BASELINE_LAYOUT, Machine(39))
        assert any(rule in problem for problem in reading.problems) or rule in reading.problems


@pytest.mark.parametrize(("word", "maxphyaddr", "rule"), [
    (0x80000FEE000C7 | 1 << 44, 40, "bit 44 set: at or above MAXPHYADDR 40, neither the gfn's nor the mark's"),
    (0x80000FEE000C7 | 1 << 63, 40, "bit 63 set: no field of an MMIO spte"),
])  # fmt: skip
def test_high_bits_that_an_mmio_word_cannot_have_are_told(word: int, maxphyaddr: int, rule: str) -> None:
    reading = read_spte(word, Format.SHADOW, 1, BASELINE_LAYOUT, Machine(maxphyaddr))
    assert reading.text.startswith("mmio gfn 0xfee00")
    assert rule in reading.problems


def test_an_amd_host_with_encryption_marks_with_all_high_bits() -> None:
    word = 0xFEE00000 | 0xC7 | ((1 << 52) - (1 << 43))
    reading = read_spte(word, Format.NPT, 1, BASELINE_LAYOUT, Machine(43))
    assert reading.text.startswith("mmio gfn 0xfee00 ")
    assert reading.problems == ()
    unknown = read_spte(word, Format.NPT, 1, BASELINE_LAYOUT, Machine())
    assert any("memory encryption and MAXPHYADDR 43" in note and "gfn 0xfee00" in note for note in unknown.notes)


def test_a_host_with_52_bits_has_mmio_sptes_before_5_13_alone() -> None:
    word = 3 << 52 | 0xFEE00000 | 6
    assert read_spte(word, Format.SHADOW, 1, layout_of((5, 10)), Machine(52)).text.startswith("mmio gfn 0xfee00")
    assert not read_spte(word, Format.SHADOW, 1, BASELINE_LAYOUT, Machine(52)).text.startswith("mmio")


@given(word=st.integers(0, 2**64 - 1), level=st.integers(1, 5), table=st.sampled_from(Format))
def test_any_word_is_read_in_any_layout(word: int, level: int, table: Format) -> None:
    for one in LAYOUTS:
        for machine in (Machine(), Machine(36, l1tf=True), Machine(52)):
            reading = read_spte(word, table, level, one, machine)
            assert reading.text
            assert "\n" not in "".join(reading.lines())


# ---- what nobody says


def readings(word: int, **known: object) -> list[Reading]:
    return list(read_word(Kind.SPTE, Number(f"{word:#x}", word, None), Context(**known)))  # type: ignore[arg-type]


@given(made=leaves(), kernel=st.sampled_from(KERNELS))
def test_a_words_own_kernel_is_among_the_readings_of_a_lone_word(made: tuple[Leaf, int], kernel: str) -> None:
    leaf, level = made
    if not leaf.triple[0]:
        # Without the writable bits nothing tells a leaf of one kernel from another.
        return
    word = spte_model.x86_leaf(kernel, leaf, level)
    expected = read_spte(word, Format.SHADOW, level, layout(kernel), Machine()).text  # type: ignore[arg-type]
    assert expected in {reading.text for reading in readings(word, level=level)}


def test_a_removed_entry_of_an_older_kernel_is_told_from_a_frozen_one() -> None:
    first = readings(0x5A0)[0]
    assert (first.text, "5.13 to 6.9" in first.kind) == ("REMOVED", True)
    assert "called FROZEN since 6.11, and 0x80000000000005a0 since 6.10" in first.notes
    assert readings(0x80000000000005A0)[0].text == "FROZEN"
    assert readings(1 << 59)[0].text == "REMOVED"


def test_both_formats_are_shown_where_both_make_sense() -> None:
    kinds = {reading.kind.split(",")[0] for reading in readings(0xC65, layout=layout_of((5, 10)))}
    assert kinds == {"shadow or npt spte"}
    # R, X, WT of a guest's MTRR, A: or P, U, A of shadow paging.
    kinds = {reading.kind for reading in readings(0x12345025, layout=layout_of((5, 10)))}
    assert kinds == {"shadow or npt spte", "ept spte"}


def test_an_unconfirmed_layout_says_so() -> None:
    for reading in readings(0x12345C67, layout=layout_of((5, 4))):
        assert any("not confirmed by a source here" in note for note in reading.notes)
    for reading in readings(0x12345C67, layout=layout_of((5, 10))):
        assert not any("not confirmed" in note for note in reading.notes)


def test_a_format_is_never_ignored() -> None:
    for word in (0x12345E67, 0x80000080000C7, 0x8600000012345B77):
        shown = {table: [one.lines() for one in readings(word, format=table, level=1)] for table in Format}
        assert shown[Format.EPT] != shown[Format.SHADOW]
        for table in Format:
            assert all(one.kind.startswith(f"{table} spte") for one in readings(word, format=table, level=1))
