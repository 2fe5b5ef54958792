# SPDX-License-Identifier: GPL-2.0-only
"""Which bits mean what in which kernel: one row for each release that changed something.

A row holds only what it changes; the fields that it leaves out are those of the row above. ``confirmed`` names the
source package of Debian that the layout, as it stands in that row, was compared with; where it is empty the row says
what the kernel's history tells (:data:`ROWS` has the commits), and every output says so. Distributions port commits
back: a version names its layout only for kernels that follow upstream's releases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ..errors import ConfigError
from ..kvm.mmu.bits import EXT_FLAGS, ROLE_FLAGS

Version = tuple[int, int]

_ROLE_5_1 = dict(ROLE_FLAGS[1:9])


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The layout of one kernel. Bits are numbers, masks and words are 64-bit."""

    #: First release with this layout, and the first one without; None: none yet.
    since: Version
    until: Version | None
    #: Debian's source that was compared with this row; empty: none was.
    confirmed: str
    #: What the row changed, in a few words.
    change: str
    #: Host- and MMU-writable in shadow and NPT format, and in EPT format.
    writable: tuple[int, int]
    ept_writable: tuple[int, int]
    #: The bit that makes an spte shadow-present; None: each word but 0, MMIO and removed sptes is.
    mmu_present: int | None
    #: (mask, value) that an MMIO spte carries beside its format's own; None: nothing.
    mmio_mark: tuple[int, int] | None
    #: (mask, A/D disabled, write-protect only): the kind of an spte; the last is 0 where it does not exist.
    ad_types: tuple[int, int, int]
    #: How far up the R and X of an access-tracked spte are saved.
    saved_shift: int
    #: First and last bit of the low and the high part of an MMIO spte's generation.
    gen_low: tuple[int, int]
    gen_high: tuple[int, int]
    #: What an empty entry holds.
    nonpresent: int
    #: What an entry holds while the TDP MMU changes it (None: no such word), and its name.
    removed: int | None
    removed_name: str
    #: Bit 63 of EPT entries suppresses #VE and is set in all but MMIO sptes.
    has_suppress_ve: bool
    #: Whether bit 4 of a role, if set, says "4-byte gptes"; before, it said "8-byte gptes".
    bit4_is_4_byte: bool
    #: Flags of a role but bit 4, and of the extended role: name -> mask.
    role_flags: Mapping[str, int] = field(repr=False)
    ext_flags: Mapping[str, int] = field(repr=False)

    @property
    def name(self) -> str:
        """The releases of the row: ``5.13 to 5.16``, ``since 6.14``."""
        if self.until is None:
            return f"since {version_text(self.since)}"
        last = _before(self.until)
        return version_text(self.since) + (f" to {version_text(last)}" if last != self.since else "")

    @property
    def told(self) -> str:
        """The row as an output names it: the releases, and whether a source here confirms them."""
        return self.name if self.confirmed else f"{self.name} (not confirmed by a source here)"


def version_text(version: Version) -> str:
    """``5.10``."""
    return f"{version[0]}.{version[1]}"


# The last minor of each major number, as far as they are complete.
_LAST_MINOR = {5: 19}


def _before(version: Version) -> Version:
    major, minor = version
    return (major, minor - 1) if minor else (major - 1, _LAST_MINOR[major - 1])


_EXT_5_1 = {
    name: 1 << (32 + bit)
    for bit, name in enumerate(
        ("valid", "execonly", "cr0_pg", "cr4_pae", "cr4_pse", "cr4_pke", "cr4_smap", "cr4_smep", "cr4_la57")
    )
}

_FIRST = Layout(
    since=(5, 1),
    until=None,
    confirmed="",
    change="generations of 19 bits in MMIO sptes (cae7ed3c2cb0)",
    writable=(10, 11),
    ept_writable=(10, 11),
    mmu_present=None,
    mmio_mark=(1 << 62, 1 << 62),
    ad_types=(1 << 62, 1 << 62, 0),
    saved_shift=52,
    gen_low=(3, 11),
    gen_high=(52, 61),
    nonpresent=0,
    removed=None,
    removed_name="",
    has_suppress_ve=False,
    bit4_is_4_byte=False,
    role_flags=_ROLE_5_1,
    ext_flags=_EXT_5_1,
)

#: (first release, Debian's source that confirms the layout, what changed, the changed fields), oldest first.
ROWS: tuple[tuple[Version, str, str, dict[str, object]], ...] = (
    ((5, 4), "", "two bits for the kind of an spte, in the MMIO generation's place (6eeb4ef049e7)", {
        "mmio_mark": (3 << 52, 3 << 52), "ad_types": (3 << 52, 1 << 52, 2 << 52), "saved_shift": 54,
    }),
    ((5, 6), "5.10.262", "the generation out of the way of the kind (56871d444bc4; in later 5.4 stable releases too)", {
        "gen_high": (54, 62),
    }),
    ((5, 12), "", "removed sptes (08f07c800e9d)", {"removed": 1 << 59, "removed_name": "REMOVED"}),
    ((5, 13), "", "bit 11 for present, bits 9 and 10, EPT 57 and 58 (edea7c4fc215 and its series)", {
        "writable": (9, 10), "ept_writable": (57, 58), "mmu_present": 11, "mmio_mark": None, "gen_low": (3, 10),
        "gen_high": (52, 62), "removed": 0x5A0,
    }),
    ((5, 17), "", "bit 4 of a role inverted (bb3b394d35e8)", {"bit4_is_4_byte": True}),
    ((5, 19), "", "the extended role without CR0.PG and CR4.PAE, with EFER.LMA", {"ext_flags": dict(EXT_FLAGS)}),
    ((6, 0), "6.1.192", "passthrough in roles (84e5ffd045f3)", {"role_flags": dict(ROLE_FLAGS[1:])}),
    ((6, 10), "", "empty entries and EPT sptes with bit 63", {
        "nonpresent": 1 << 63, "removed": 1 << 63 | 0x5A0, "has_suppress_ve": True,
    }),
    ((6, 11), "6.12.117", "removed sptes are called frozen", {"removed_name": "FROZEN"}),
    ((6, 14), "", "is_mirror in roles", {"role_flags": {**dict(ROLE_FLAGS[1:]), "is_mirror": 1 << 19}}),
)  # fmt: skip


def _layouts() -> Iterator[Layout]:
    layout = _FIRST
    ends = [row[0] for row in ROWS]
    yield replace(layout, until=ends[0])
    for (since, confirmed, change, changes), until in zip(ROWS, [*ends[1:], None], strict=True):
        layout = replace(layout, since=since, confirmed=confirmed, change=change, **changes)  # type: ignore[arg-type]  # fields by their names
        yield replace(layout, until=until)


#: Every layout, oldest first.
LAYOUTS = tuple(_layouts())
#: The kernel that words are taken for when nobody says another.
BASELINE: Version = (6, 12)

_VERSION = re.compile(r"v?(\d{1,3})\.(\d{1,3})(?:[.\-_+~ ].*)?")


def parse_version(text: str) -> Version:
    """(major, minor) of a kernel version such as ``5.10``, ``6.1.0-28-amd64``; raises ConfigError for other text."""
    match = _VERSION.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"--kernel {text}: not a kernel version; write it like 5.10 or 6.12.3")
    return int(match[1]), int(match[2])


def layout_of(version: Version) -> Layout:
    """The layout of kernel ``version``. Raises ConfigError for one older than the table."""
    found = [layout for layout in LAYOUTS if layout.since <= version]
    if not found:
        raise ConfigError(f"--kernel {version_text(version)}: layouts are known since {version_text(LAYOUTS[0].since)}")
    return found[-1]


#: The layouts by what empty and removed entries hold, for a trace that shows one: the newest confirmed one of each.
NONPRESENT_LAYOUTS = {
    word: layout
    for layout in sorted(LAYOUTS, key=lambda layout: (bool(layout.confirmed), layout.since))
    for word in (layout.nonpresent, layout.removed)
    if word is not None
}

#: The layout of :data:`BASELINE`.
BASELINE_LAYOUT = layout_of(BASELINE)
