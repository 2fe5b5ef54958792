# SPDX-License-Identifier: GPL-2.0-only
"""What one guest entry says, by each layout; the geometry of its tables."""

from __future__ import annotations

import itertools

import pytest

from kvmmu.kvm.mmu.gpte import (
    GPTE_2_LEVEL,
    GPTE_64,
    GPTE_PAE,
    GpteFormat,
    gpte_access,
    gpte_to_gfn,
    is_present_gpte,
    protect_clean,
)

P, W, U, A, D, XD = 1, 2, 4, 0x20, 0x40, 1 << 63
EXEC, WRITE, USER = 1, 2, 4
FORMATS = [GPTE_2_LEVEL, GPTE_PAE, GPTE_64]


@pytest.mark.parametrize("gpte", [0x5007, 0x5003 | XD, 0x5001, 0x5005 | D, XD | 0x5007 | D])
def test_what_one_gpte_says(gpte: int) -> None:
    access = (gpte & 2) + (gpte & 4) + (0 if gpte & XD else 1)
    assert gpte_access(GPTE_64, gpte) == access
    assert protect_clean(GPTE_64, access, gpte) == (access if gpte & D else access & 5)
    assert gpte_to_gfn(gpte) == 5


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_rights_are_u_and_w_and_without_nx_always_x(fmt: GpteFormat) -> None:
    cases = 0
    for write, user, xd in itertools.product((0, W), (0, U), (0, XD if fmt.size == 8 else 0)):
        expected = (WRITE if write else 0) | (USER if user else 0) | (0 if xd else EXEC)
        assert gpte_access(fmt, 0x7000 | P | write | user | xd) == expected
        cases += 1
    assert cases == 8


def test_the_highest_bit_of_a_4_byte_entry_forbids_nothing() -> None:
    assert gpte_access(GPTE_2_LEVEL, 1 << 31 | P | W | U) == EXEC | WRITE | USER


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_only_bit_0_is_presence(fmt: GpteFormat) -> None:
    assert is_present_gpte(fmt, P)
    width = 8 * fmt.size
    assert [bit for bit in range(width) if is_present_gpte(fmt, 1 << bit)] == [0]
    assert not is_present_gpte(fmt, (1 << width) - 2)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_a_clean_entry_loses_w_and_nothing_else(fmt: GpteFormat) -> None:
    for access in range(8):
        assert protect_clean(fmt, access, P | W | U | A) == access & (EXEC | USER)
        assert protect_clean(fmt, access, P | W | U | D) == access


@pytest.mark.parametrize(
    ("gpte", "gfn"), [(0, 0), (0xFFF, 0), (0x1000, 1), (XD | 0x7FF << 52 | 0x3000, 3), ((1 << 52) - 1, (1 << 40) - 1)]
)
def test_a_gfn_is_bits_12_to_51(gpte: int, gfn: int) -> None:
    assert gpte_to_gfn(gpte) == gfn


@pytest.mark.parametrize(
    ("fmt", "size", "entries", "nx", "has_pdptrs"),
    [(GPTE_2_LEVEL, 4, 1024, 0, False), (GPTE_PAE, 8, 512, XD, True), (GPTE_64, 8, 512, XD, False)],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_geometry_of_a_layout(fmt: GpteFormat, size: int, entries: int, nx: int, has_pdptrs: bool) -> None:
    assert (fmt.size, 1 << fmt.size_shift, fmt.nx_mask, fmt.has_pdptrs) == (size, size, nx, has_pdptrs)
    assert (1 << fmt.index_bits, fmt.index_mask) == (entries, entries - 1)
    assert fmt.width_mask == (1 << 8 * size) - 1
    assert (fmt.present_mask, fmt.accessed_mask, fmt.dirty_mask) == (P, A, D)
    # A table is a page.
    assert entries * size == 4096
