# SPDX-License-Identifier: GPL-2.0-only
"""Layouts by version: which kernel has which, and what the table says about its sources."""

from __future__ import annotations

import pytest

from kvmmu.decode.layouts import BASELINE_LAYOUT, LAYOUTS, layout_of, parse_version
from kvmmu.decode.reading import bits
from kvmmu.errors import ConfigError
from kvmmu.kvm.mmu import bits as mmu_bits


@pytest.mark.parametrize(("version", "writable", "ept_writable", "present", "gen"), [
    ((5, 1), (10, 11), (10, 11), None, ((3, 11), (52, 61))),
    ((5, 5), (10, 11), (10, 11), None, ((3, 11), (52, 61))),
    ((5, 10), (10, 11), (10, 11), None, ((3, 11), (54, 62))),
    ((5, 12), (10, 11), (10, 11), None, ((3, 11), (54, 62))),
    ((5, 13), (9, 10), (57, 58), 11, ((3, 10), (52, 62))),
    ((6, 1), (9, 10), (57, 58), 11, ((3, 10), (52, 62))),
    ((7, 0), (9, 10), (57, 58), 11, ((3, 10), (52, 62))),
])  # fmt: skip
def test_writable_bits_and_generations(
    version: tuple[int, int], writable: object, ept_writable: object, present: object, gen: object
) -> None:
    layout = layout_of(version)
    assert (layout.writable, layout.ept_writable, layout.mmu_present) == (writable, ept_writable, present)
    assert (layout.gen_low, layout.gen_high) == gen


@pytest.mark.parametrize(("version", "empty", "removed", "name"), [
    ((5, 11), 0, None, ""),
    ((5, 12), 0, 1 << 59, "REMOVED"),
    ((5, 13), 0, 0x5A0, "REMOVED"),
    ((6, 9), 0, 0x5A0, "REMOVED"),
    ((6, 10), 1 << 63, 1 << 63 | 0x5A0, "REMOVED"),
    ((6, 11), 1 << 63, 1 << 63 | 0x5A0, "FROZEN"),
    ((6, 14), 1 << 63, 1 << 63 | 0x5A0, "FROZEN"),
])  # fmt: skip
def test_empty_and_removed_entries(version: tuple[int, int], empty: int, removed: int | None, name: str) -> None:
    layout = layout_of(version)
    assert (layout.nonpresent, layout.removed, layout.removed_name) == (empty, removed, name)


def test_a_role_has_is_mirror_since_6_14_and_passthrough_since_6_0() -> None:
    assert layout_of((6, 14)).role_flags["is_mirror"] == 1 << 19
    assert "is_mirror" not in layout_of((6, 13)).role_flags
    assert layout_of((6, 0)).role_flags["passthrough"] == 1 << 18
    assert "passthrough" not in layout_of((5, 19)).role_flags


@pytest.mark.parametrize(("version", "source"), [
    ((5, 10), "5.10.262"), ((6, 1), "6.1.192"), ((6, 12), "6.12.117"), ((5, 4), ""), ((5, 15), ""), ((6, 14), ""),
])  # fmt: skip
def test_a_row_names_the_source_that_confirms_it_or_says_that_none_does(version: tuple[int, int], source: str) -> None:
    layout = layout_of(version)
    assert layout.confirmed == source
    assert ("not confirmed" in layout.told) == (source == "")


def test_the_baseline_is_the_models_own() -> None:
    layout = BASELINE_LAYOUT
    assert 1 << layout.writable[0] == mmu_bits.SPTE_HOST_WRITABLE
    assert 1 << layout.writable[1] == mmu_bits.SPTE_MMU_WRITABLE
    assert layout.nonpresent == mmu_bits.SHADOW_NONPRESENT_VALUE
    assert layout.removed == mmu_bits.FROZEN_SPTE
    assert bits(*layout.gen_low) == mmu_bits.MMIO_SPTE_GEN_LOW_MASK
    assert bits(*layout.gen_high) == mmu_bits.MMIO_SPTE_GEN_HIGH_MASK
    assert layout.ad_types[0] == mmu_bits.SPTE_TDP_AD_MASK


def test_rows_follow_one_another_without_a_gap() -> None:
    assert [layout.until for layout in LAYOUTS[:-1]] == [layout.since for layout in LAYOUTS[1:]]
    assert LAYOUTS[-1].until is None
    assert [layout.name for layout in LAYOUTS][:3] == ["5.1 to 5.3", "5.4 to 5.5", "5.6 to 5.11"]
    assert [layout.name for layout in LAYOUTS][-3:] == ["6.10", "6.11 to 6.13", "since 6.14"]


# A field of a layout owns its bits alone, but for the row whose overlap was a bug of the kernel.
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_fields_of_an_mmio_spte_do_not_overlap(layout: object) -> None:
    mark = layout.mmio_mark[0] if layout.mmio_mark else 0  # type: ignore[attr-defined]
    taken = bits(*layout.gen_low) | bits(*layout.gen_high)  # type: ignore[attr-defined]
    overlap = taken & mark
    is_known = layout.since == (5, 4)  # type: ignore[attr-defined]
    assert bool(overlap) == is_known
    assert not taken & (7 | bits(12, 51))


@pytest.mark.parametrize("text", ["5.10", "v5.10", "5.10.0-28-amd64", "5.10.262", "5.10-rc3", "5.10+", " 5.10 "])
def test_versions_as_people_write_them(text: str) -> None:
    assert parse_version(text) == (5, 10)


@pytest.mark.parametrize("text", ["", "5", "five.ten", "5.x", "-5.10", "5.10" + "0" * 4000, "latest"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a kernel version"):
        parse_version(text)


def test_a_kernel_older_than_the_table_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--kernel 4.19: layouts are known since 5.1"):
        layout_of((4, 19))
