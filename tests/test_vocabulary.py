# SPDX-License-Identifier: GPL-2.0-only
"""Each paging mode has one name, in arguments, output, messages and pages."""

from __future__ import annotations

import re

import pytest

import house
from kvmmu.cli.decode import Mode
from kvmmu.decode.gpte import MODE_NAMES as DECODED
from kvmmu.errors import GuestMisuse
from kvmmu.guest.layout import MODE_NAMES
from kvmmu.hw.modes import MODES
from kvmmu.kvm.mmu.gpte import GPTE_2_LEVEL, GPTE_64, GPTE_PAE
from kvmmu.world import World

NAMES = ("2-level", "2-level-pse", "pae", "4-level", "5-level")
#: Ways to say it that no name is.
OTHERS = re.compile(
    r"32-bit[ -](PSE|pse)|32-bit (paging|page tables?|mode|guest tables?)|non-PAE|[\"'`](32-bit|PAE|32)[\"'`]"
)


def test_everything_that_names_a_mode_has_the_same_names() -> None:
    assert tuple(mode.name for mode in MODES) == ("none", *NAMES, "npt-4-level", "npt-5-level")
    assert tuple(MODE_NAMES) == tuple(DECODED) == tuple(Mode) == NAMES
    assert [GPTE_2_LEVEL.name, GPTE_PAE.name, GPTE_64.name] == ["2-level", "pae", "4-level, 5-level"]
    with pytest.raises(GuestMisuse, match=f"there are {', '.join(NAMES)}$"):
        World(nr_frames=64).tables("6-level")


@pytest.mark.parametrize("where", ["src/kvmmu", "docs", "README.md", "DESIGN.md"])
def test_no_text_calls_a_mode_otherwise(where: str) -> None:
    root = house.ROOT / where
    paths = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.suffix in (".py", ".md"))
    found = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            # PAE is also a bit of CR4, which has that name.
            if OTHERS.search(line.replace('CR4_PAE: "PAE"', "")):
                found.append(f"{path}:{number}: {line.strip()}")
    assert found == []


@pytest.mark.parametrize("text", ["32-bit PSE", 'mode "32-bit"', "a non-PAE guest", "32-bit page tables"])
def test_another_name_is_found(text: str) -> None:
    assert OTHERS.search(text)
