# SPDX-License-Identifier: GPL-2.0-only
"""Module parameters, and facts of the modelled host, as one frozen record.

A parameter is written ``name=value`` (``--set tlb_keep_all=on``). Those that Linux has also answer to the kernel's name
(``kvm.mmio_caching=N``). ``kvmmu params`` prints the table.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from .errors import ConfigError

Value = bool | int | str

_TRUE = ("y", "yes", "1", "on", "true")
_FALSE = ("n", "no", "0", "off", "false")
_PAGE_LEVELS = {"4k": 1, "2m": 2, "1g": 3}

#: Fewest shadow pages that KVM_SET_NR_MMU_PAGES accepts.
KVM_MIN_ALLOC_MMU_PAGES = 64


def _parameter(default: Value, meaning: str, kernel: str = "", allowed: Iterable[Value] = ()) -> Any:
    # A field of Params, with what `kvmmu params` prints about it. `allowed` is empty for a boolean.
    return dataclasses.field(default=default, metadata={"kernel": kernel, "meaning": meaning, "allowed": allowed})


@dataclass(frozen=True, slots=True)
class Params:
    """Every parameter of one world. Raises :class:`~kvmmu.errors.ConfigError` for a value that no machine has."""

    npt: bool = _parameter(True, "nested paging; off: shadow paging", "kvm_amd.npt")
    tdp_mmu: bool = _parameter(True, "nested paging by the TDP MMU; off: by the legacy direct MMU", "kvm.tdp_mmu")
    eager_page_split: bool = _parameter(
        True, "the TDP MMU splits huge pages when a slot begins to be logged", "kvm.eager_page_split"
    )
    nx_huge_pages: bool = _parameter(
        False, "no executable huge pages, against the iTLB multihit bug of a CPU", "kvm.nx_huge_pages"
    )
    nx_huge_pages_recovery_ratio: int = _parameter(
        60,
        "one in so many tables that nx_huge_pages forced is zapped at a recovery; 0: none",
        "kvm.nx_huge_pages_recovery_ratio",
        range(2**32),
    )
    mmio_caching: bool = _parameter(True, "remember MMIO addresses in reserved-bit sptes", "kvm.mmio_caching")
    flush_on_reuse: bool = _parameter(False, "sync and flush when a cached root is used again", "kvm.flush_on_reuse")
    nr_mmu_pages: int = _parameter(
        0,
        "most shadow pages of a VM; 0: 2 % of its memory slots' pages, at least 64",
        "KVM_SET_NR_MMU_PAGES",
        range(2**31),
    )
    exit_on_emulation_error: bool = _parameter(
        False,
        "an instruction that cannot be emulated ends KVM_RUN at CPL 3 too, instead of #UD",
        "KVM_CAP_EXIT_ON_EMULATION_FAILURE",
    )
    slot_zap_all: bool = _parameter(
        True,
        "a memslot that is deleted or moved takes all shadow pages along; off: its own only",
        "KVM_X86_QUIRK_SLOT_ZAP_ALL",
    )
    range_flush: bool = _parameter(
        False, "with nested paging, ranges of gfns are flushed alone, as a hypervisor below offers it", ""
    )
    host_maxphyaddr: int = _parameter(46, "physical address bits of the host", "", range(36, 53))
    host_levels: int = _parameter(4, "levels of the host's page tables", "", (4, 5))
    host_gbpages: bool = _parameter(True, "the CPU has 1G pages; without, shadow paging makes none")
    host_page: str = _parameter("4k", "largest page that backs guest memory", "", tuple(_PAGE_LEVELS))
    tlb_entries_4k: int = _parameter(2048, "TLB entries for 4K pages", "", range(1, 2**20 + 1))
    tlb_entries_2m: int = _parameter(1024, "TLB entries for 2M and 4M pages", "", range(1, 2**20 + 1))
    tlb_entries_1g: int = _parameter(64, "TLB entries for 1G pages", "", range(1, 2**20 + 1))
    tlb_keep_all: bool = _parameter(False, "the TLB keeps every entry until a flush is demanded")

    def __post_init__(self) -> None:
        for parameter in PARAMETERS:
            parameter.check(getattr(self, parameter.name))
        if 0 < self.nr_mmu_pages < KVM_MIN_ALLOC_MMU_PAGES:
            raise ConfigError(
                f"nr_mmu_pages={self.nr_mmu_pages}: KVM accepts {KVM_MIN_ALLOC_MMU_PAGES} or more, or 0 for its default"
            )

    @property
    def host_page_level(self) -> int:
        """Level of the largest page that backs guest memory: 1, 2 or 3."""
        return _PAGE_LEVELS[self.host_page]

    def with_settings(self, settings: Iterable[str]) -> Params:
        """These parameters with ``name=value`` strings applied, the last of equal names winning.

        Raises :class:`~kvmmu.errors.ConfigError` for what is no list of settings, a setting without ``=``, an unknown
        name (near names are listed) and a value that the parameter does not allow.
        """
        return dataclasses.replace(self, **parse_settings(settings, _BY_NAME, "parameter", "kvmmu params lists them"))


@dataclass(frozen=True, slots=True)
class Parameter:
    """One row of the table: what ``kvmmu params`` prints."""

    name: str
    default: Value
    #: The kernel's name of it: a module parameter as ``module.name``, or an ioctl; empty for facts of the host.
    kernel: str
    meaning: str
    #: The values allowed; empty: a boolean.
    allowed: range | tuple[Value, ...]

    def check(self, value: Value) -> None:
        """Raise :class:`~kvmmu.errors.ConfigError` unless ``value`` is of the default's type, and allowed."""
        if type(value) is not self._type or (self.allowed and value not in self.allowed):
            raise ConfigError(f"{self.name}={self.show(value)}: must be {self.describe_allowed()}")

    def parse(self, text: str) -> Value:
        """The value that ``text`` means; :class:`~kvmmu.errors.ConfigError` if it means none that is allowed."""
        word = text.strip().lower()
        if isinstance(self.default, bool) and word in _TRUE + _FALSE:
            return word in _TRUE
        if isinstance(self.default, str) and word in self.allowed:
            return word
        if self._type is int:
            try:
                value = int(word, 0)
            except ValueError:
                value = -1
            if value in self.allowed:
                return value
        raise ConfigError(f"{self.name}={text}: must be {self.describe_allowed()}")

    # Of values; a number may be left out, and has no default then.
    @property
    def _type(self) -> type[Value]:
        return int if isinstance(self.allowed, range) else type(self.default)

    def describe_allowed(self) -> str:
        """The rule for values, as text."""
        if isinstance(self.allowed, range):
            return f"a number from {self.allowed[0]} to {self.allowed[-1]}"
        if self.allowed:
            return " or ".join(str(value) for value in self.allowed)
        return "on or off"

    def show(self, value: Value) -> str:
        """``value`` as a user writes it."""
        if isinstance(value, bool):
            return "on" if value else "off"
        return str(value)


PARAMETERS = tuple(
    Parameter(
        name=field.name,
        default=cast(Value, field.default),
        kernel=field.metadata["kernel"],
        meaning=field.metadata["meaning"],
        allowed=field.metadata["allowed"],
    )
    for field in dataclasses.fields(Params)
)

_BY_NAME = {parameter.name: parameter for parameter in PARAMETERS} | {
    parameter.kernel: parameter for parameter in PARAMETERS if "." in parameter.kernel
}


def parse_settings(settings: Iterable[str], table: Mapping[str, Parameter], what: str, where: str) -> dict[str, Any]:
    """The values of ``name=value`` strings by field, the last of equal names winning.

    ``table`` has the rows by each name that they answer to; ``what`` is such a name's kind and ``where`` says where
    all are listed, in errors.

    :raises ConfigError: see :meth:`Params.with_settings`.
    """
    if isinstance(settings, str) or not isinstance(settings, Iterable):
        raise ConfigError(f"settings {settings!r}: must be a list of texts, name=value")
    return dict(_parse_setting(setting, table, what, where) for setting in settings)


def _parse_setting(setting: str, table: Mapping[str, Parameter], what: str, where: str) -> tuple[str, Value]:
    if not isinstance(setting, str):
        raise ConfigError(f"{setting!r}: a {what} is set by a text, name=value")
    name, equals, text = setting.partition("=")
    name = name.strip()
    if not equals:
        raise ConfigError(f"{setting!r}: a {what} is set as name=value")
    row = table.get(name)
    if row is None:
        near = difflib.get_close_matches(name, table, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else where
        raise ConfigError(f"unknown {what} {name!r}: {hint}")
    return row.name, row.parse(text)
