# SPDX-License-Identifier: GPL-2.0-only
"""Statistics: the kernel's names in the kernel's order, and debugfs's rules for clearing."""

from __future__ import annotations

import errno

import pytest

from kvmmu.errors import KvmIoctlError
from kvmmu.kvm.stats import INSTANT, PEAK, VcpuStat, VmStat

VM_ORDER = (
    "remote_tlb_flush remote_tlb_flush_requests mmu_shadow_zapped mmu_pte_write mmu_pde_zapped mmu_flooded mmu_recycled"
    " mmu_cache_miss mmu_unsync pages_4k pages_2m pages_1g nx_lpage_splits max_mmu_rmap_size"
    " max_mmu_page_hash_collisions"
)
VCPU_ORDER = (
    "pf_taken pf_fixed pf_emulate pf_spurious pf_fast pf_mmio_spte_created pf_guest tlb_flush invlpg exits mmio_exits"
    " insn_emulation insn_emulation_fail"
)


@pytest.mark.parametrize(("kind", "order"), [(VmStat, VM_ORDER), (VcpuStat, VCPU_ORDER)])
def test_names_are_those_of_the_stats_fd_in_its_order(kind: type[VmStat | VcpuStat], order: str) -> None:
    assert kind().names() == tuple(order.split())
    assert list(kind().as_dict()) == order.split()


@pytest.mark.parametrize("kind", [VmStat, VcpuStat])
def test_every_field_starts_at_zero_and_is_counted_by_name(kind: type[VmStat | VcpuStat]) -> None:
    stat = kind()
    assert set(stat.as_dict().values()) == {0}
    assert stat.as_dict(nonzero=True) == {}
    for number, name in enumerate(stat.names(), 1):
        setattr(stat, name, number)
    assert list(stat.as_dict(nonzero=True).values()) == list(range(1, len(stat.names()) + 1))


def test_instant_and_peak_values_are_values_of_the_vm() -> None:
    assert sorted(INSTANT) == ["mmu_unsync", "nx_lpage_splits", "pages_1g", "pages_2m", "pages_4k"]
    assert sorted(PEAK) == ["max_mmu_page_hash_collisions", "max_mmu_rmap_size"]
    assert set(VmStat().names()) >= INSTANT | PEAK


@pytest.mark.parametrize("name", ["mmu_recycled", "max_mmu_rmap_size"])
def test_writing_zero_clears_one_statistic(name: str) -> None:
    stat = VmStat()
    stat.mmu_recycled = 7
    stat.max_mmu_rmap_size = 9
    stat.debugfs_write(name, 0)
    assert getattr(stat, name) == 0
    assert len(stat.as_dict(nonzero=True)) == 1


@pytest.mark.parametrize(("name", "value", "error"), [
    ("mmu_recycled", 1, errno.EINVAL),
    ("pages_4k", 0, errno.EACCES),
    ("pages_4k", 1, errno.EACCES),
    ("pf_taken", 0, errno.ENOENT),
])  # fmt: skip
def test_debugfs_refuses_other_writes(name: str, value: int, error: int) -> None:
    stat = VmStat()
    stat.mmu_recycled = stat.pages_4k = 7
    with pytest.raises(KvmIoctlError) as caught:
        stat.debugfs_write(name, value)
    assert caught.value.errno == error
    assert (stat.mmu_recycled, stat.pages_4k) == (7, 7)


def test_a_vcpus_statistics_clear_too() -> None:
    stat = VcpuStat()
    stat.pf_taken = 3
    stat.debugfs_write("pf_taken", 0)
    assert stat.pf_taken == 0
    with pytest.raises(KvmIoctlError, match="no statistic 'mmu_recycled': known are pf_taken"):
        stat.debugfs_write("mmu_recycled", 0)


def test_a_counter_holds_64_bits() -> None:
    stat = VmStat()
    stat.mmu_recycled = 2**64 - 1
    assert stat.as_dict(nonzero=True) == {"mmu_recycled": 2**64 - 1}
