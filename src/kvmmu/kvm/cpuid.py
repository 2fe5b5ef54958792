# SPDX-License-Identifier: GPL-2.0-only
"""CpuFeatures: what the guest's CPUID says of paging, as one value; everything that asks for a feature asks it.

The VMM gives it to each vCPU by KVM_SET_CPUID2, before the vCPU runs. What kvm makes of it is not always what a CPU
with those features would do:

* ``maxphyaddr`` decides which address bits are reserved where *kvm* walks the guest's tables. Under nested paging the
  CPU walks them, with the host's width and without an exit (SVM has no ``allow_smaller_maxphyaddr`` with NPT): a guest
  with fewer bits gets no ``#PF`` for those between, one with more gets it for addresses that its CPUID allows.
* ``gbpages`` counts under shadow paging; under nested paging the guest has what the hardware has.
* ``pse36`` counts nowhere in kvm, which takes every CPU to have it.
* ``pku`` needs nested paging too.
* Without any CPUID (:meth:`CpuFeatures.none`) there are 36 address bits, no NX, no long mode, no 1G pages; but CR4 is
  held against what kvm itself supports and nothing else.

Source: Linux 6.12 ``kvm_vcpu_after_set_cpuid``, ``cpuid_query_maxphyaddr``, ``__cr4_reserved_bits``,
``__kvm_valid_efer``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from ..errors import ConfigError
from ..hw.bits import CR4_LA57, CR4_PCIDE, CR4_PKE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_LME, EFER_NX
from ..hw.modes import Limits
from ..params import Parameter, Value, parse_settings

#: Address bits of a guest whose CPUID does not tell.
DEFAULT_MAXPHYADDR = 36

#: What a feature lets the guest set in CR4, in EFER.
CR4_FEATURES = {"smep": CR4_SMEP, "smap": CR4_SMAP, "pku": CR4_PKE, "la57": CR4_LA57, "pcid": CR4_PCIDE}
EFER_FEATURES = {"nx": EFER_NX, "lm": EFER_LME | EFER_LMA}


def _feature(meaning: str) -> Any:
    # A field of CpuFeatures that the CPU has or has not.
    return dataclasses.field(default=True, metadata={"meaning": meaning})


@dataclass(frozen=True, slots=True)
class CpuFeatures:
    """The paging features of a guest's CPUID. Raises :class:`~kvmmu.errors.ConfigError` for what no CPUID can say.

    A new record is a CPU that has everything, made by AMD, with addresses as wide as the host's.
    """

    #: Physical address bits, 32 to 52; None: as many as the host has.
    maxphyaddr: int | None = dataclasses.field(
        default=None, metadata={"meaning": "physical address bits; not set: as many as the host has"}
    )
    gbpages: bool = _feature("1G pages in 4-level and 5-level tables")
    pse36: bool = _feature("address bits 39 to 32 in 4M entries")
    nx: bool = _feature("EFER.NX: bit 63 of an entry forbids fetches")
    smep: bool = _feature("CR4.SMEP: no supervisor fetch from user pages")
    smap: bool = _feature("CR4.SMAP: no supervisor data access to user pages")
    pku: bool = _feature("CR4.PKE: protection keys of user pages")
    la57: bool = _feature("CR4.LA57: 5-level tables")
    pcid: bool = _feature("CR4.PCIDE: process-context identifiers")
    lm: bool = _feature("EFER.LME: long mode")
    #: The vendor's rule for entries of level 4 and 5.
    amd: bool = _feature("made by AMD: bit 8 of entries of levels 4 and 5 is reserved")
    #: KVM_SET_CPUID2 was called at all; see :meth:`none`.
    has_cpuid: bool = True

    def __post_init__(self) -> None:
        for row in FEATURES:
            value = getattr(self, row.name)
            if row.name != "maxphyaddr" or value is not None:
                row.check(value)
        if type(self.has_cpuid) is not bool:
            raise ConfigError(f"has_cpuid={self.has_cpuid!r}: must be True or False")
        has_any = self.maxphyaddr != DEFAULT_MAXPHYADDR or any(getattr(self, name) for name in _FLAGS)
        if has_any and not self.has_cpuid:
            raise ConfigError("has_cpuid=False: a guest without CPUID has no features; take CpuFeatures.none()")

    @classmethod
    def none(cls) -> CpuFeatures:
        """The features of a vCPU that got no CPUID at all: 36 address bits, nothing else."""
        return cls(DEFAULT_MAXPHYADDR, has_cpuid=False, **dict.fromkeys(_FLAGS, False))

    def with_settings(self, settings: Iterable[str]) -> CpuFeatures:
        """These features with ``name=value`` strings applied, the last of equal names winning.

        :raises ConfigError: no setting, no feature of that name (near ones are listed), or a value that it cannot have.
        """
        changes = parse_settings(settings, _BY_NAME, "CPU feature", f"there are {', '.join(_BY_NAME)}")
        return dataclasses.replace(self, **changes)

    def limits(self, *, has_nx: bool, widest: int) -> Limits:
        """What decides the reserved bits of such a CPU's entries while EFER.NX is as ``has_nx`` says.

        ``widest`` stands for address bits that are not given. Bit 8 of upper entries is left out: not all that call
        themselves AMD reserve it.
        """
        return Limits(self.maxphyaddr or widest, has_nx and self.nx, self.gbpages, self.pse36)

    @property
    def cr4_guest_rsvd_bits(self) -> int:
        """Bits of CR4 that the guest may not set because its CPUID lacks them."""
        return self._missing(CR4_FEATURES) if self.has_cpuid else 0

    @property
    def efer_guest_rsvd_bits(self) -> int:
        """Bits of EFER that the guest may not set because its CPUID lacks them."""
        return self._missing(EFER_FEATURES)

    def _missing(self, bits: dict[str, int]) -> int:
        missing = 0
        for name, mask in bits.items():
            if not getattr(self, name):
                missing |= mask
        return missing

    def __repr__(self) -> str:
        if not self.has_cpuid:
            return "CpuFeatures.none()"
        values = ((row, getattr(self, row.name)) for row in FEATURES)
        told = [f"{row.name}={value}" for row, value in values if value is not row.default]
        return f"CpuFeatures({', '.join(told)})"


#: What ``name=value`` can set; the default of ``maxphyaddr`` is None, as many as the host has.
FEATURES = tuple(
    Parameter(
        name=field.name,
        default=cast(Value, field.default),
        kernel="",
        meaning=field.metadata["meaning"],
        allowed=range(32, 53) if field.name == "maxphyaddr" else (),
    )
    for field in dataclasses.fields(CpuFeatures)
    if field.name != "has_cpuid"
)
_BY_NAME = {row.name: row for row in FEATURES}
_FLAGS = tuple(row.name for row in FEATURES if row.name != "maxphyaddr")


def parse_cpu(text: str, start: CpuFeatures) -> CpuFeatures:
    """The features that ``--cpu`` takes: ``none``, or settings with commas between, which change ``start``.

    :raises ConfigError: as :meth:`CpuFeatures.with_settings`.
    """
    if text.strip() == "none":
        return CpuFeatures.none()
    return start.with_settings(text.split(","))
