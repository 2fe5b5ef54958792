# SPDX-License-Identifier: GPL-2.0-only
"""Second stages by the manuals, as slow and as plain as they can be: NPT (AMD) and EPT (Intel).

Written from AMD's "Nested Paging" and Intel's "The Extended Page Table Mechanism", sharing nothing with the package.
One walk for the hardware's view of either format, and for what a hypervisor must make of its guest's EPT.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class SecondStage:
    """A table in memory, and what the CPU offers. ``words`` are changed by A and D; what is not there reads as 0."""

    kind: str
    root: int
    levels: int
    words: dict[int, int] = field(default_factory=dict)
    has_ad: bool = True
    has_execonly: bool = True
    #: Address bits, and the largest page's level.
    width: int = 46
    largest: int = 3


@dataclass(frozen=True)
class Access:
    """A guest's access. A table access is made for the guest's own page walk."""

    read: bool = True
    write: bool = False
    fetch: bool = False
    table: bool = False


class _Refused(Exception):
    def __init__(self, *outcome: object) -> None:
        self.outcome = outcome


def _bit(word: int, number: int) -> bool:
    return bool(word >> number & 1)


def _any(word: int, low: int, high: int) -> bool:
    return any(_bit(word, number) for number in range(low, high + 1))


def walk(stage: SecondStage, gpa: int, access: Access) -> tuple[object, ...]:
    """``("ok", hpa, rights)``, ``("fault", code)`` or ``("misconfig",)``; rights: of r, w, x, and d for dirty."""
    try:
        return _walk(stage, gpa, access)
    except _Refused as refused:
        return refused.outcome


def _walk(stage: SecondStage, gpa: int, access: Access) -> tuple[object, ...]:
    is_ept = stage.kind == "ept"
    rights = {"r", "w", "x"}
    if gpa >> (12 + 9 * stage.levels):
        raise _Refused("fault", _code(stage, access, set(), present=False))
    path = []
    table = stage.root
    for level in range(stage.levels, 0, -1):
        place = table + 8 * (gpa >> (12 + 9 * (level - 1)) & 0x1FF)
        entry = stage.words.get(place, 0)
        given = {name for name, number in zip("rwx", (0, 1, 2), strict=True) if _bit(entry, number)}
        if not is_ept:
            # Every access is a user's; W and NX are as ever.
            given = {"r"} if _bit(entry, 2) else set()
            given |= {"w"} if _bit(entry, 2) and _bit(entry, 1) else set()
            given |= {"x"} if _bit(entry, 2) and not _bit(entry, 63) else set()
        is_present = _any(entry, 0, 2) if is_ept else _bit(entry, 0)
        if not is_present:
            raise _Refused("fault", _code(stage, access, set(), present=False))
        rights &= given
        is_leaf = level == 1 or (level <= stage.largest and _bit(entry, 7))
        if (_is_bad_ept if is_ept else _is_bad_npt)(stage, entry, level, is_leaf):
            if is_ept:
                raise _Refused("misconfig")
            raise _Refused("fault", _code(stage, access, rights, present=True) | 8)
        path.append(place)
        if is_leaf:
            break
        table = entry & 0x000F_FFFF_FFFF_F000
    wanted = {"w"} if access.write else {"x"} if access.fetch else {"r"}
    if access.write and access.read and is_ept:
        wanted |= {"r"}
    if not wanted <= rights:
        raise _Refused("fault", _code(stage, access, rights, present=True))
    size = 1 << (12 + 9 * (level - 1))
    if stage.has_ad:
        a_bit, d_bit = (8, 9) if is_ept else (5, 6)
        for place in path:
            stage.words[place] |= 1 << a_bit
        if access.write:
            stage.words[path[-1]] |= 1 << d_bit
        if _bit(stage.words[path[-1]], d_bit):
            rights |= {"d"}
    else:
        rights |= {"d"}
    frame = (entry & 0x000F_FFFF_FFFF_F000) // size * size
    return "ok", frame + gpa % size, "".join(sorted(rights))


def _is_bad_npt(stage: SecondStage, entry: int, level: int, is_leaf: bool) -> bool:
    if _any(entry, stage.width, 51):
        return True
    if is_leaf:
        return level > 1 and _any(entry, 13, 11 + 9 * (level - 1))
    return _bit(entry, 7) or (level > 3 and _bit(entry, 8))


def _is_bad_ept(stage: SecondStage, entry: int, level: int, is_leaf: bool) -> bool:
    if _bit(entry, 1) and not _bit(entry, 0):
        return True
    if entry & 7 == 4 and not stage.has_execonly:
        return True
    if _any(entry, stage.width, 51):
        return True
    if is_leaf:
        return entry >> 3 & 7 in (2, 3, 7) or (level > 1 and _any(entry, 12, 11 + 9 * (level - 1)))
    return _any(entry, 3, 7)


# NPT: EXITINFO1. EPT: the exit qualification.
def _code(stage: SecondStage, access: Access, rights: set[str], *, present: bool) -> int:
    if stage.kind == "npt":
        code = 4 | 2 * access.write | 16 * access.fetch | present
        return code | 1 << (33 if access.table else 32)
    code = 1 << 7 | (0 if access.table else 1 << 8)
    code |= access.read | 2 * access.write | 4 * access.fetch
    return code | sum(8 << number for number, name in enumerate("rwx") if name in rights)
