# SPDX-License-Identifier: GPL-2.0-only
"""Page roles and CPU roles."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmmu.kvm.mmu import role as r

PG, WP = 1 << 31, 1 << 16
PSE, PAE, LA57, SMEP, SMAP, PKE = 1 << 4, 1 << 5, 1 << 12, 1 << 20, 1 << 21, 1 << 22
LMA, NX = 1 << 10, 1 << 11

#: Where each field of a page role begins and how many bits it has, written down once more.
FIELDS = {
    "level": (0, 4),
    "has_4_byte_gpte": (4, 1),
    "quadrant": (5, 2),
    "direct": (7, 1),
    "access": (8, 3),
    "invalid": (11, 1),
    "efer_nx": (12, 1),
    "cr0_wp": (13, 1),
    "smep_andnot_wp": (14, 1),
    "smap_andnot_wp": (15, 1),
    "ad_disabled": (16, 1),
    "guest_mode": (17, 1),
    "passthrough": (18, 1),
    "smm": (24, 8),
}

MODES = {
    "2-level": (PG, 0, 0, 2),
    "PAE": (PG, PAE, 0, 3),
    "4-level": (PG, PAE, LMA, 4),
    "5-level": (PG, PAE | LA57, LMA, 5),
}


def pack(**fields: int) -> int:
    """The role word with these fields."""
    word = 0
    for name, value in fields.items():
        low, width = FIELDS[name]
        assert 0 <= value < 1 << width
        word |= value << low
    return word


def unpack(word: int) -> dict[str, int]:
    """Every field of a role word."""
    return {name: word >> low & (1 << width) - 1 for name, (low, width) in FIELDS.items()}


# ------------------------------------------------------------------------------------------- worked examples


def test_tdp_root_of_the_worked_example() -> None:
    cpu_role = r.calc_cpu_role(PG | WP, PAE, LMA | NX, False)
    assert r.calc_tdp_root_role(cpu_role, 4, False) == 0x3784
    # The guest's mode does not matter to it.
    assert r.calc_tdp_root_role(r.calc_cpu_role(0, 0, 0, False), 4, False) == 0x3784


def test_shadow_root_of_the_worked_example() -> None:
    cpu_role = r.calc_cpu_role(PG | WP, PAE, LMA | NX, False)
    assert r.calc_shadow_root_role(cpu_role) == 0x3704
    # NX of the guest is not in the page role.
    assert r.calc_shadow_root_role(r.calc_cpu_role(PG | WP, PAE, LMA, False)) == 0x3704


def test_nonpaging_page_of_the_worked_example() -> None:
    root_role = r.calc_shadow_root_role(r.calc_cpu_role(0, 0, 0, False))
    assert r.role_level(root_role) == 3
    assert r.child_role(root_role, 0, True, 7) == 0x1782


def test_every_field_is_described_by_name() -> None:
    assert r.describe_role(0x3704) == "level 4 quadrant 0 access wux smm 0 efer_nx cr0_wp"
    everything = pack(**{name: (1 << width) - 1 for name, (_, width) in FIELDS.items()})
    assert r.describe_role(everything) == (
        "level 15 quadrant 3 access wux smm 255 has_4_byte_gpte direct invalid efer_nx cr0_wp"
        " smep_andnot_wp smap_andnot_wp ad_disabled guest_mode passthrough"
    )
    assert r.describe_role(0x3704 | 1 << 19).endswith(" bits 0x80000")


def test_cpu_role_is_described_with_its_extended_half() -> None:
    word = r.calc_cpu_role(PG | WP, PAE | PSE | LA57 | SMEP | SMAP | PKE, LMA | NX, True)
    assert r.describe_cpu_role(word) == (
        "level 5 quadrant 0 access wux smm 1 efer_nx cr0_wp | valid cr4_pse cr4_pke cr4_smap cr4_smep cr4_la57 efer_lma"
    )


# ------------------------------------------------------------------------------------------- fields


@given(st.integers(0, 2**32 - 1))
def test_accessors_read_the_documented_bits(word: int) -> None:
    fields = unpack(word)
    assert r.role_level(word) == fields["level"]
    assert r.role_access(word) == fields["access"]
    assert r.role_quadrant(word) == fields["quadrant"]
    assert r.role_smm(word) == fields["smm"]
    assert r.role_direct(word) is bool(fields["direct"])
    assert r.role_invalid(word) is bool(fields["invalid"])
    assert r.role_has_4_byte_gpte(word) is bool(fields["has_4_byte_gpte"])
    assert r.role_ad_disabled(word) is bool(fields["ad_disabled"])
    assert r.role_guest_mode(word) is bool(fields["guest_mode"])
    assert r.role_passthrough(word) is bool(fields["passthrough"])


@given(st.integers(0, 2**32 - 1), st.integers(0, 15), st.integers(0, 3))
def test_changing_one_field_leaves_the_others(word: int, level: int, quadrant: int) -> None:
    assert unpack(r.role_with_level(word, level)) == unpack(word) | {"level": level}
    assert unpack(r.role_with_quadrant(word, quadrant)) == unpack(word) | {"quadrant": quadrant}


# ------------------------------------------------------------------------------------------- CPU roles


@pytest.mark.parametrize("smm", [False, True])
@pytest.mark.parametrize("mode", list(MODES))
def test_cpu_role_says_what_the_registers_say(mode: str, smm: bool) -> None:
    cr0, cr4, efer, level = MODES[mode]
    cases = 0
    for wp, nx, pse, smep, smap, pke in itertools.product((0, 1), repeat=6):
        word = r.calc_cpu_role(
            cr0 | wp * WP, cr4 | pse * PSE | smep * SMEP | smap * SMAP | pke * PKE, efer | nx * NX, smm
        )
        base = {
            "level": level, "access": 7, "smm": int(smm), "efer_nx": nx, "cr0_wp": wp,
            "smep_andnot_wp": smep & ~wp, "smap_andnot_wp": smap & ~wp, "has_4_byte_gpte": int(mode == "2-level"),
        }  # fmt: skip
        assert unpack(word & 0xFFFF_FFFF) == dict.fromkeys(FIELDS, 0) | base
        lma = int(level >= 4)
        la57 = int(level == 5)
        assert word >> 32 == 1 | pse << 2 | (pke & lma) << 3 | smap << 4 | smep << 5 | la57 << 6 | lma << 7
        assert r.cpu_role_level(word) == level
        assert r.cpu_role_paging(word)
        assert (r.cpu_role_efer_nx(word), r.cpu_role_cr0_wp(word)) == (bool(nx), bool(wp))
        assert (r.cpu_role_smep(word), r.cpu_role_smap(word)) == (bool(smep), bool(smap))
        assert (r.cpu_role_pse(word), r.cpu_role_pke(word)) == (bool(pse), bool(pke & lma))
        assert r.cpu_role_has_4_byte_gpte(word) is (mode == "2-level")
        cases += 1
    assert cases == 64


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.booleans())
def test_without_paging_only_the_address_space_counts(cr0: int, cr4: int, efer: int, smm: bool) -> None:
    word = r.calc_cpu_role(cr0 & ~PG, cr4, efer, smm)
    assert word == 1 << 32 | pack(direct=1, access=7, smm=int(smm))
    assert not r.cpu_role_paging(word)


def test_lma_counts_with_pae_only() -> None:
    assert r.calc_cpu_role(PG, 0, LMA, False) == r.calc_cpu_role(PG, 0, 0, False)


# ------------------------------------------------------------------------------------------- root roles


@pytest.mark.parametrize("mode", list(MODES))
def test_shadow_root_has_the_guests_levels_but_three_at_least(mode: str) -> None:
    cr0, cr4, efer, level = MODES[mode]
    cases = 0
    for wp, smep, smap, smm in itertools.product((0, 1), repeat=4):
        cpu_role = r.calc_cpu_role(cr0 | wp * WP, cr4 | smep * SMEP | smap * SMAP, efer, bool(smm))
        expected = unpack(cpu_role & 0xFFFF_FFFF) | {"level": max(level, 3), "efer_nx": 1}
        assert unpack(r.calc_shadow_root_role(cpu_role)) == expected
        cases += 1
    assert cases == 16


@pytest.mark.parametrize("ad_disabled", [False, True])
@pytest.mark.parametrize("level", [4, 5])
def test_tdp_root_keeps_the_address_space_alone(level: int, ad_disabled: bool) -> None:
    cpu_role = r.calc_cpu_role(PG, SMEP | SMAP | PSE, 0, True)
    expected = {
        "level": level, "direct": 1, "access": 7, "efer_nx": 1, "cr0_wp": 1, "smm": 1, "ad_disabled": int(ad_disabled)
    }  # fmt: skip
    assert unpack(r.calc_tdp_root_role(cpu_role, level, ad_disabled)) == dict.fromkeys(FIELDS, 0) | expected


# ------------------------------------------------------------------------------------------- child roles


def role_from_scratch(root_role: int, level: int, gva: int, direct: bool, access: int) -> int:
    """The role of the page at ``level`` on the way to ``gva``, from the root's alone, as before Linux 6.0."""
    fields = unpack(root_role) | {"level": level, "direct": int(direct), "access": access, "passthrough": 0}
    if fields["has_4_byte_gpte"]:
        # A page at level 2 covers 1G of 4G, one at level 1 covers 2M of 4M.
        fields["quadrant"] = gva >> 30 & 3 if level == 2 else gva >> 21 & 1
    return pack(**fields)


def roots(root_role: int, gva: int) -> int:
    """The page where the walk to ``gva`` begins: PAE roots have four level-2 pages, one per gigabyte."""
    if unpack(root_role)["level"] > 3:
        return root_role
    quadrant = gva >> 30 & 3 if unpack(root_role)["has_4_byte_gpte"] else 0
    return pack(**(unpack(root_role) | {"level": 2, "quadrant": quadrant}))


@pytest.mark.parametrize("mode", ["nonpaging", *MODES])
def test_child_role_is_what_the_root_gives_from_scratch(mode: str) -> None:
    cr0, cr4, efer, _ = MODES.get(mode, (0, 0, 0, 0))
    # One address for each value of the index bits that a role can depend on, at each level.
    addresses = [
        quarter << 30 | half << 21 | page << 12 for quarter in range(4) for half in range(4) for page in (0, 5)
    ]
    cases = 0
    for wp, smep, smap, smm in itertools.product((0, 1), repeat=4):
        cpu_role = r.calc_cpu_role(cr0 | wp * WP, cr4 | smep * SMEP | smap * SMAP, efer, bool(smm))
        root_role = r.calc_shadow_root_role(cpu_role)
        for gva in addresses:
            parent = roots(root_role, gva)
            while unpack(parent)["level"] > 1:
                level = unpack(parent)["level"]
                index = gva >> 12 + 9 * (level - 1) & 511
                for direct, access in itertools.product((False, True), range(8)):
                    child = r.child_role(parent, index, direct, access)
                    assert child == role_from_scratch(root_role, level - 1, gva, direct, access)
                    cases += 1
                parent = r.child_role(parent, index, bool(unpack(parent)["direct"]), unpack(parent)["access"])
    # PAE roots begin at level 2; there is a child below each level but the last.
    nr_levels = MODES[mode][3] if mode in MODES and MODES[mode][3] > 3 else 2
    assert cases == 16 * len(addresses) * (nr_levels - 1) * 16


@given(st.integers(0, 2**32 - 1), st.integers(0, 511), st.booleans(), st.integers(0, 7))
def test_child_role_clears_invalid_and_passthrough_and_keeps_the_rest(
    parent: int, index: int, direct: bool, access: int
) -> None:
    parent = r.role_with_level(parent, 2) & ~(1 << 19)
    child = unpack(r.child_role(parent, index, direct, access))
    kept = unpack(parent) | {"level": 1, "direct": int(direct), "access": access, "invalid": 0, "passthrough": 0}
    if kept["has_4_byte_gpte"]:
        kept["quadrant"] = index & 1
    assert child == kept
