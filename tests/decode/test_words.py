# SPDX-License-Identifier: GPL-2.0-only
"""Roles, fault codes, guest entries and numbers: each with its readings and the rules it breaks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmmu.decode.faultcode import read_error_code, read_fault, read_qualification
from kvmmu.decode.layouts import BASELINE_LAYOUT, LAYOUTS, layout_of
from kvmmu.decode.number import parse_number
from kvmmu.decode.reading import Machine, Reading, bit_names
from kvmmu.decode.role import page_role_text, read_role, trace_text
from kvmmu.decode.words import Context, Kind, read_word
from kvmmu.errors import UserError
from kvmmu.hw.modes import MODE_PAE, MODES
from kvmmu.kvm.mmu.role import describe_cpu_role, describe_role


def read(kind: str, text: str, **known: object) -> list[Reading]:
    return list(read_word(Kind(kind), parse_number(text), Context(**known)))  # type: ignore[arg-type]


# ---- roles


@given(word=st.integers(0, 2**32 - 1))
def test_a_role_of_the_baseline_reads_as_the_model_says(word: int) -> None:
    assert page_role_text(word, BASELINE_LAYOUT) == describe_role(word)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (0x3784, "l4 8-byte q0 direct wux nxe ad"),
        (0x3704, "l4 8-byte q0 wux nxe ad"),
        (0x1782, "l2 8-byte q0 direct wux nxe ad"),
        (0x1782 | 1 << 16, "l2 8-byte q0 direct wux nxe !ad"),
        (0x3704 | 1 << 11, "l4 8-byte q0 wux invalid nxe ad"),
        (0x531, "l1 4-byte q1 -ux !nxe ad"),
        (0xB1, "l1 4-byte q1 direct --- !nxe ad"),
    ],
)
def test_text_of_the_kernels_tracepoints(word: int, text: str) -> None:
    assert trace_text(word, BASELINE_LAYOUT) == text


@given(word=st.integers(2**32, 2**64 - 1))
def test_a_cpu_role_of_the_baseline_reads_as_the_model_says(word: int) -> None:
    assert read_role(word, BASELINE_LAYOUT).text == f"cpu role: {describe_cpu_role(word)}"


def test_a_decimal_role_is_shown_in_both_bases_the_sensible_one_first() -> None:
    decimal, hexadecimal = read("role", "14084")
    assert "decimal, 0x3704" in decimal.kind
    assert decimal.text == "level 4 quadrant 0 access wux smm 0 efer_nx cr0_wp"
    assert decimal.problems == ()
    assert "hex 0x14084" in hexadecimal.kind
    assert hexadecimal.problems


@pytest.mark.parametrize(("text", "count"), [("3704", 1), ("0x14084", 1), ("3784", 1), ("5905", 2), ("16132", 2)])
def test_other_roles_have_as_many_readings_as_make_sense(text: str, count: int) -> None:
    assert len(read("role", text)) == count


def test_bit_4_of_a_role_was_inverted_in_5_17() -> None:
    old = read("role", "0x3714", layout=layout_of((5, 10)))[0]
    assert (old.text, old.problems) == ("level 4 quadrant 0 access wux smm 0 gpte_is_8_bytes efer_nx cr0_wp", ())
    assert old.more == ("in traces: l4 8-byte q0 wux nxe ad",)
    assert "kernels 5.1 to 5.16" in read("role", "0x3714")[0].kind


def test_is_mirror_is_told_with_the_kernel_that_has_it() -> None:
    first = read("role", "0x83784")[0]
    assert "is_mirror" in first.text
    assert "since 6.14" in first.kind
    assert any("not confirmed" in note for note in first.notes)


@pytest.mark.parametrize(("word", "rule"), [
    (0x3700, "level 0: a shadow page has 1 to 5"), (0x3706, "level 6: a shadow page has 1 to 5"),
    (0x3704 | 1 << 22, "bit 22 set: no field of a role"),
    (0x3724, "a quadrant, but the guest's entries have 8 bytes"),
    (0x7704, "cr0_wp and a bit that says that CR0.WP is clear"),
    (0x2704, "efer_nx is clear outside guest_mode"),
    (0x02003704, "address space 2: there are two"),
])  # fmt: skip
def test_a_role_that_kvm_does_not_make_is_told_with_the_rule(word: int, rule: str) -> None:
    assert rule in read_role(word, BASELINE_LAYOUT).problems


def test_a_cpu_role_of_5_10_has_other_flags() -> None:
    text = read("role", hex(1 << 32 | 1 << 34 | 1 << 35 | 39 << 41 | 0x3714), layout=layout_of((5, 10)))[0].text
    assert text.endswith("| valid cr0_pg cr4_pae maxphyaddr 39")


# ---- fault codes


@pytest.mark.parametrize(("word", "said"), [
    (0x181, "read, entry not present, linear address valid, final guest address"),
    (0x83, "read+write, entry not present, linear address valid, walk of the guest's tables"),
    (0x1AA, "write, entry present, allows R-X, linear address valid, final guest address"),
    (0x683, ("read+write, entry not present, linear address valid, walk of the guest's tables, user-mode linear "
             "address, writable in the guest's tables")),
    (0x184, "fetch, entry not present, linear address valid, final guest address"),
    (0x19A, "write, entry present, allows RW-, linear address valid, final guest address"),
    (0x1, "read, entry not present, no linear address"),
])  # fmt: skip
def test_an_exit_qualification_is_said_in_words(word: int, said: str) -> None:
    reading = read_qualification(word)
    assert reading.text == f"EPT violation: {said}"
    assert reading.problems == ()


@pytest.mark.parametrize("text", ["181", "0x181", "0x83", "1aa", "683"])
def test_a_number_that_no_pf_error_code_has_is_shown_as_both_with_where_each_is_meant(text: str) -> None:
    qualification, code = read("pferr", text)
    assert qualification.kind == "EPT exit qualification"
    assert "on Intel with EPT" in qualification.notes[0]
    assert code.problems
    assert "under shadow paging, and on AMD" in code.notes[0]


def test_the_host_decides_where_somebody_says_which_it_is() -> None:
    assert [reading.kind for reading in read_fault(0x181, "ept")] == ["EPT exit qualification"]
    assert [reading.kind for reading in read_fault(0x181, "npt")] == ["#PF error code"]
    assert [reading.kind for reading in read_fault(7, "ept")] == ["EPT exit qualification"]
    assert [reading.kind for reading in read_fault(7, None)] == ["#PF error code"]


@pytest.mark.parametrize(("word", "said"), [
    (0x100000014, "nested page fault: user fetch of a final guest address: no entry is present"),
    (0x200000006, "nested page fault: user write of a table of the guest: no entry is present"),
    (0x100000007, "nested page fault: user write of a final guest address: the entry is present"),
    (0x10000000F, "nested page fault: user write of a final guest address: a reserved bit is set in an entry"),
    (0x9, "read: a reserved bit is set in an entry"),
    (0x25, "user read: the protection key forbids it"),
])  # fmt: skip
def test_an_error_code_is_said_in_words(word: int, said: str) -> None:
    reading = read_error_code(word)
    assert reading.more == (said,)
    assert reading.problems == ()


@pytest.mark.parametrize("word", [0x12, 0x300000000, 0x40, 1 << 63])
def test_an_error_code_that_no_cpu_gives_is_told(word: int) -> None:
    assert read_error_code(word).problems


# ---- a guest's entries


@pytest.mark.parametrize(("word", "level", "rule"), [
    (0x800000FFFFFEE163, 1, "bit 39: at or above MAXPHYADDR 39"),
    (0x123450E7, 2, "bits 20, 18, 14: of a large page's address, which is aligned to its size"),
    (0x123450E7, 4, "bit 7: there are no large pages at level 4"),
])  # fmt: skip
def test_a_reserved_bit_of_a_guests_entry_is_told_with_the_rule(word: int, level: int, rule: str) -> None:
    reading = read("gpte", hex(word), level=level, machine=Machine(39))[0]
    assert rule in reading.problems
    assert reading.problems[0].startswith("reserved bits set: ")


def test_reserved_bits_of_pae_tables() -> None:
    mode = MODES[MODE_PAE]
    pdpte = read("gpte", "0x12345067", level=3, mode=mode)[0]
    assert "bits 6:5, 2:1: reserved in a PDPTE" in pdpte.problems
    assert "bit 55: reserved in PAE tables" in read("gpte", hex(0x12345067 | 1 << 55), level=1, mode=mode)[0].problems


def test_without_a_width_no_address_is_called_reserved_but_its_need_is_told() -> None:
    reading = read("gpte", "0x800000fffffee163")[0]
    assert reading.problems == ()
    assert reading.notes == ("legal only where MAXPHYADDR is at least 40: else a reserved address bit is set",)


# ---- numbers


@pytest.mark.parametrize(("text", "value", "decimal"), [
    ("0x10", 16, None), ("10", 16, 10), ("0XE67", 0xE67, None), ("8000_0000_0000_0e67", 0x8000000000000E67, None),
    ("f" * 16, 2**64 - 1, None), ("e67h", 0xE67, None), ("0x10ULL", 16, None), ("007", 7, None),
    ("9223372036854775815", 9223372036854775815, None),
])  # fmt: skip
def test_numbers_as_people_write_them(text: str, value: int, decimal: int | None) -> None:
    number = parse_number(text)
    assert (number.value, number.decimal) == (value, decimal)


@pytest.mark.parametrize("text", ["", "0x", "zz", "-1", "0x1g", "1.5", "\uff11", "9" * 5000, "0x" + "f" * 5000])
def test_what_is_no_word_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a hex number; write it like 0x8000000000000e67 or e67"):
        parse_number(text)


@given(kind=st.sampled_from(Kind), value=st.integers(0, 2**64 - 1))
def test_every_number_has_a_reading_of_every_kind_in_hex_and_decimal(kind: Kind, value: int) -> None:
    for text in (f"{value:#x}", str(value)):
        for layout in (None, LAYOUTS[0], LAYOUTS[-1]):
            assert read(kind, text, layout=layout)


@pytest.mark.parametrize(("word", "name"), [
    (1 << 39, "bit 39"), (0x30, "bits 5:4"), (0x831, "bits 11, 5:4, 0"), (2**64 - 1, "bits 63:0"),
])  # fmt: skip
def test_bits_are_named_as_the_manual_names_them(word: int, name: str) -> None:
    assert bit_names(word) == name
