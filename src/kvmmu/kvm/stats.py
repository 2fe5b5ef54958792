# SPDX-License-Identifier: GPL-2.0-only
"""Statistics of a VM and of a vCPU under their ``kvm_stat`` names.

Fields stand in the order of the statistics file descriptor. The ones that this MMU can change are kept; the
kernel's others (halt polling, interrupts, nesting) have no counterpart. Source: reference "VM statistics",
"vCPU statistics", "debugfs".
"""

from __future__ import annotations

import errno

from ..errors import KvmIoctlError

#: Statistics that say how much there is now: read only in debugfs.
INSTANT = frozenset({"mmu_unsync", "pages_4k", "pages_2m", "pages_1g", "nx_lpage_splits"})
#: Statistics that keep the largest value seen.
PEAK = frozenset({"max_mmu_rmap_size", "max_mmu_page_hash_collisions"})

_VM_NAMES = (
    "remote_tlb_flush",
    "remote_tlb_flush_requests",
    "mmu_shadow_zapped",
    "mmu_pte_write",
    "mmu_pde_zapped",
    "mmu_flooded",
    "mmu_recycled",
    "mmu_cache_miss",
    "mmu_unsync",
    "pages_4k",
    "pages_2m",
    "pages_1g",
    "nx_lpage_splits",
    "max_mmu_rmap_size",
    "max_mmu_page_hash_collisions",
)
_VCPU_NAMES = (
    "pf_taken",
    "pf_fixed",
    "pf_emulate",
    "pf_spurious",
    "pf_fast",
    "pf_mmio_spte_created",
    "pf_guest",
    "tlb_flush",
    "invlpg",
    "exits",
    "mmio_exits",
    "insn_emulation",
    "insn_emulation_fail",
)


class VmStat:
    """Counters of one VM; plain public fields, so that the MMU counts with one addition."""

    __slots__ = (
        "max_mmu_page_hash_collisions",
        "max_mmu_rmap_size",
        "mmu_cache_miss",
        "mmu_flooded",
        "mmu_pde_zapped",
        "mmu_pte_write",
        "mmu_recycled",
        "mmu_shadow_zapped",
        "mmu_unsync",
        "nx_lpage_splits",
        "pages_1g",
        "pages_2m",
        "pages_4k",
        "remote_tlb_flush",
        "remote_tlb_flush_requests",
    )

    def __init__(self) -> None:
        self.remote_tlb_flush = 0
        self.remote_tlb_flush_requests = 0
        self.mmu_shadow_zapped = 0
        self.mmu_pte_write = 0
        self.mmu_pde_zapped = 0
        self.mmu_flooded = 0
        self.mmu_recycled = 0
        self.mmu_cache_miss = 0
        self.mmu_unsync = 0
        self.pages_4k = 0
        self.pages_2m = 0
        self.pages_1g = 0
        self.nx_lpage_splits = 0
        self.max_mmu_rmap_size = 0
        self.max_mmu_page_hash_collisions = 0

    def __repr__(self) -> str:
        return _repr("VmStat", self.as_dict(nonzero=True))

    def names(self) -> tuple[str, ...]:
        """Names of the statistics in the order of the statistics file descriptor."""
        return _VM_NAMES

    def as_dict(self, nonzero: bool = False) -> dict[str, int]:
        """Name -> value in that order; with ``nonzero`` only those that are not 0."""
        return _as_dict(self, _VM_NAMES, nonzero)

    def debugfs_write(self, name: str, value: int) -> None:
        """Write ``value`` to the debugfs file ``name``: 0 clears the statistic.

        Raises KvmIoctlError: ENOENT no such file, EACCES an instant value is read only, EINVAL any value but 0.
        """
        _check_clear(_VM_NAMES, name, value)
        setattr(self, name, 0)


class VcpuStat:
    """Counters of one vCPU; plain public fields."""

    __slots__ = (
        "exits",
        "insn_emulation",
        "insn_emulation_fail",
        "invlpg",
        "mmio_exits",
        "pf_emulate",
        "pf_fast",
        "pf_fixed",
        "pf_guest",
        "pf_mmio_spte_created",
        "pf_spurious",
        "pf_taken",
        "tlb_flush",
    )

    def __init__(self) -> None:
        self.pf_taken = 0
        self.pf_fixed = 0
        self.pf_emulate = 0
        self.pf_spurious = 0
        self.pf_fast = 0
        self.pf_mmio_spte_created = 0
        self.pf_guest = 0
        self.tlb_flush = 0
        self.invlpg = 0
        self.exits = 0
        self.mmio_exits = 0
        self.insn_emulation = 0
        self.insn_emulation_fail = 0

    def __repr__(self) -> str:
        return _repr("VcpuStat", self.as_dict(nonzero=True))

    def names(self) -> tuple[str, ...]:
        """Names of the statistics in the order of the statistics file descriptor."""
        return _VCPU_NAMES

    def as_dict(self, nonzero: bool = False) -> dict[str, int]:
        """Name -> value in that order; with ``nonzero`` only those that are not 0."""
        return _as_dict(self, _VCPU_NAMES, nonzero)

    def debugfs_write(self, name: str, value: int) -> None:
        """Write ``value`` to the debugfs file ``name`` of the vCPU; as :meth:`VmStat.debugfs_write`."""
        _check_clear(_VCPU_NAMES, name, value)
        setattr(self, name, 0)


# Both classes share these: compiled classes have no common base with fields of their own.
def _repr(kind: str, values: dict[str, int]) -> str:
    return f"<{' '.join([kind, *(f'{name} {value}' for name, value in values.items())])}>"


def _as_dict(stat: VmStat | VcpuStat, names: tuple[str, ...], nonzero: bool) -> dict[str, int]:
    values = {name: int(getattr(stat, name)) for name in names}
    return {name: value for name, value in values.items() if value or not nonzero}


# The order of the kernel's answers: the open fails before the write is looked at.
def _check_clear(names: tuple[str, ...], name: str, value: int) -> None:
    if name not in names:
        raise KvmIoctlError(errno.ENOENT, f"no statistic {name!r}: known are {', '.join(names)}")
    if name in INSTANT:
        raise KvmIoctlError(errno.EACCES, f"{name} is an instant value and read only: cumulative and peak ones clear")
    if value != 0:
        raise KvmIoctlError(errno.EINVAL, f"{name}: only 0 may be written (it clears the statistic), not {value}")
