# SPDX-License-Identifier: GPL-2.0-only
"""docs/kernel-map.md against the rooms: what it names exists, and nothing public of ``kvm/mmu`` is left out."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import dataclass, field

import house

_NAME = re.compile(r"`([^`]+)`")


@dataclass
class Section:
    """One room of the map: the kernel's names, ours beside them, and ours without a counterpart."""

    kernel: list[str] = field(default_factory=list)
    ours: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)


def read_map(text: str) -> dict[str, Section]:
    """The sections of a map by room. ValueError for a row that is not three cells."""
    sections: dict[str, Section] = {}
    for block in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        room, _, body = block.partition("\n")
        section = sections[room.strip()] = Section()
        for line in body.splitlines():
            if not line.startswith("| `"):
                continue
            cells = line.strip().strip("|").split("|")
            if len(cells) != 3:
                raise ValueError(f"{room}: not three cells: {line}")
            section.kernel += _NAME.findall(cells[0])
            section.ours += _NAME.findall(cells[1])
        without = re.search(r"^Without a counterpart: (.*?)\n\n", body + "\n\n", re.MULTILINE | re.DOTALL)
        if without:
            outside_parentheses = re.sub(r"\([^()]*(\(\)[^()]*)*\)", "", without[1])
            section.without += _NAME.findall(outside_parentheses)
    return sections


def names_of(room: str) -> dict[str, set[str]]:
    """Top-level functions and classes of a room, each class with its methods and slots."""
    place = house.PACKAGE / room
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    source = file.read_text(encoding="utf-8")
    names: dict[str, set[str]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            names[node.name] = set()
        elif isinstance(node, ast.ClassDef):
            members = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
            for part in node.body:
                if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "__slots__":
                    members |= set(ast.literal_eval(part.value))
            names[node.name] = members
    return names


def missing_names(sections: dict[str, Section]) -> list[str]:
    """What the map calls ours and no room has."""
    missing = []
    for room, section in sections.items():
        names = names_of(room)
        for name in section.ours + section.without:
            owner, _, member = name.partition(".")
            if owner not in names or (member and member not in names[owner]):
                missing.append(f"{room}: {name}")
    return missing


def unmapped_names(sections: dict[str, Section]) -> list[str]:
    """Public functions and classes of kvm/mmu that the map does not mention."""
    unmapped = []
    for module in house.modules():
        if not module.startswith("kvm.mmu."):
            continue
        room = module.replace(".", "/")
        section = sections.get(room, Section())
        known = {name.partition(".")[0] for name in section.ours + section.without}
        unmapped += [f"{room}: {name}" for name in names_of(room) if not name.startswith("_") and name not in known]
    return unmapped


TEXT = (house.ROOT / "docs" / "kernel-map.md").read_text(encoding="utf-8")
MAP = read_map(TEXT)


def test_every_name_of_ours_exists() -> None:
    assert missing_names(MAP) == []


def test_every_public_name_of_the_mmu_is_mapped() -> None:
    assert unmapped_names(MAP) == []


def test_a_name_of_the_kernel_stands_once() -> None:
    counts = Counter(name for section in MAP.values() for name in section.kernel)
    assert [name for name, count in counts.items() if count > 1] == []


def test_what_has_a_counterpart_is_not_listed_as_having_none() -> None:
    assert {room: both for room, s in MAP.items() if (both := set(s.ours) & set(s.without))} == {}


def test_a_name_that_does_not_exist_is_found() -> None:
    planted = read_map("## kvm/mmu/zap\n\n| `kvm_no_such()` | `no_such`, `prepare_zap` | |\n")
    assert missing_names(planted) == ["kvm/mmu/zap: no_such"]


def test_a_field_that_does_not_exist_is_found() -> None:
    planted = read_map("## kvm/vm\n\n| `struct kvm` | `Vm.no_such`, `Vm.mmu_lock` | |\n")
    assert missing_names(planted) == ["kvm/vm: Vm.no_such"]


def test_a_public_name_that_is_not_mapped_is_found() -> None:
    planted = read_map(TEXT.replace("`zap_all_fast`", "`zap_all`"))
    assert "kvm/mmu/zap: zap_all_fast" in unmapped_names(planted)
