# SPDX-License-Identifier: GPL-2.0-only
"""Parameters: what is accepted, and what a wrong one is told."""

from __future__ import annotations

import dataclasses

import pytest

from kvmmu.errors import ConfigError
from kvmmu.params import PARAMETERS, Params


@pytest.mark.parametrize("word", ["on", "Y", "yes", "1", "TRUE"])
def test_every_word_for_on_is_on(word: str) -> None:
    assert Params().with_settings([f"flush_on_reuse={word}"]).flush_on_reuse is True


@pytest.mark.parametrize("word", ["off", "N", "no", "0", "False"])
def test_every_word_for_off_is_off(word: str) -> None:
    assert Params().with_settings([f"npt={word}"]).npt is False


def test_the_kernels_name_means_the_same_parameter() -> None:
    assert Params().with_settings(["kvm_amd.npt=N"]) == Params(npt=False)


def test_the_last_setting_of_a_name_wins() -> None:
    assert Params().with_settings(["host_levels=5", "host_levels=4"]).host_levels == 4


def test_numbers_may_be_hexadecimal() -> None:
    assert Params().with_settings(["nr_mmu_pages=0x40"]).nr_mmu_pages == 64


def test_settings_leave_the_others_alone() -> None:
    base = Params(host_levels=5)
    assert base.with_settings(["npt=off"]) == dataclasses.replace(base, npt=False)
    assert base.npt


@pytest.mark.parametrize(("page", "level"), [("4k", 1), ("2M", 2), ("1g", 3)])
def test_the_backing_page_has_a_level(page: str, level: int) -> None:
    assert Params().with_settings([f"host_page={page}"]).host_page_level == level


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("npt", "'npt': a parameter is set as name=value"),
        ("tlb_keepall=1", "unknown parameter 'tlb_keepall': did you mean tlb_keep_all?"),
        ("zzz=1", "unknown parameter 'zzz': kvmmu params lists them"),
        ("npt=maybe", "npt=maybe: must be on or off"),
        ("host_levels=3", "host_levels=3: must be 4 or 5"),
        ("host_maxphyaddr=x", "host_maxphyaddr=x: must be a number from 36 to 52"),
        ("host_maxphyaddr=53", "host_maxphyaddr=53: must be a number from 36 to 52"),
        ("host_page=8k", "host_page=8k: must be 4k or 2m or 1g"),
        ("nr_mmu_pages=63", "nr_mmu_pages=63: KVM accepts 64 or more, or 0 for its default"),
        ("nr_mmu_pages=-1", "nr_mmu_pages=-1: must be a number from 0 to 2147483647"),
    ],
)
def test_a_wrong_setting_is_told_value_and_rule(setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Params().with_settings([setting])
    assert str(raised.value) == message


def test_a_value_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(ConfigError):
        Params(npt=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        Params(host_levels=True)


def test_every_default_is_allowed_and_parses_back() -> None:
    for parameter in PARAMETERS:
        assert parameter.parse(parameter.show(parameter.default)) == parameter.default


def test_params_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Params().npt = False  # type: ignore[misc]
