# SPDX-License-Identifier: GPL-2.0-only
"""Policy: what a parameter, or the design of an era of KVM, decides; fixed when a VM is made.

Rooms ask ``vm.policy`` where the kernel would ask a module parameter, so that each decision has one name and one place.
What a host *is* (address bits, table levels, the format of sptes) is not decided and stands in the VM itself.
Reference: "Parameters, statistics, debugfs, tracepoints", module parameters.
"""

from __future__ import annotations

from ..params import Params


class Policy:
    """The decisions of one VM. ``mmio_caching`` is the format's word: a host may have no reserved bit to spare.

    No field changes; all but ``nx_recovery_ratio`` and ``max_page_level`` are booleans.
    """

    __slots__ = (
        "eager_page_split",
        "exit_on_emulation_error",
        "flush_on_reuse",
        "max_page_level",
        "mmio_caching",
        "nx_huge_pages",
        "nx_recovery_ratio",
        "range_flush",
        "slot_zap_all",
        "tdp_mmu",
    )

    def __init__(self, params: Params, *, mmio_caching: bool) -> None:
        self.mmio_caching = mmio_caching
        self.flush_on_reuse = params.flush_on_reuse
        self.exit_on_emulation_error = params.exit_on_emulation_error
        self.slot_zap_all = params.slot_zap_all
        self.range_flush = params.range_flush
        self.tdp_mmu = params.npt and params.tdp_mmu
        self.eager_page_split = params.eager_page_split
        self.nx_huge_pages = params.nx_huge_pages
        # For nested paging svm asks for 1G pages whatever the CPU says.
        self.max_page_level = 3 if params.npt or params.host_gbpages else 2
        self.nx_recovery_ratio = params.nx_huge_pages_recovery_ratio

    def __repr__(self) -> str:
        return (
            f"<Policy mmio_caching {self.mmio_caching} flush_on_reuse {self.flush_on_reuse} exit_on_emulation_error"
            f" {self.exit_on_emulation_error} slot_zap_all {self.slot_zap_all} tdp_mmu {self.tdp_mmu}"
            f" eager_page_split {self.eager_page_split} nx_huge_pages {self.nx_huge_pages}"
            f" nx_recovery_ratio {self.nx_recovery_ratio} range_flush {self.range_flush}"
            f" max_page_level {self.max_page_level}>"
        )
