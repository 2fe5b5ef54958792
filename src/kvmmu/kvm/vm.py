# SPDX-License-Identifier: GPL-2.0-only
"""Vm: the state of one virtual machine (``struct kvm`` and ``struct kvm_arch``).

State only: what is done with it lives in the rooms named after the deed (``regions`` for memslot ioctls, ``mmu/*``
for the MMU). Reference: "Data structures", per-VM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..addr import Gfn, Hpa
from ..host.frames import FrameAllocator
from ..host.mm import Mm
from ..hw.memory import PhysicalMemory
from ..page_types import INVALID_PAGE, ONE
from ..params import Params
from ..sync import Gate, Mutex, RwLock
from ..tracepoint import Trace
from .bits import KVM_ADDRESS_SPACE_NUM, KVM_NUM_MMU_PAGES_BUCKETS
from .memslots import Memslot, Memslots
from .mmu.bits import SPTE_MAXPHYADDR
from .mmu.page import ShadowPage
from .mmu.spte import make_npt_format, make_shadow_format
from .stats import VmStat

if TYPE_CHECKING:
    from .vcpu import Vcpu


class Vm:
    """One virtual machine on the host memory of one process.

    ``mm`` is the address space of the process that owns the VM; ``params`` the module parameters, fixed here for the
    life of the VM.
    """

    __slots__ = (
        "active_mmu_pages",
        "desc_free",
        "flush_on_reuse",
        "fmt",
        "frames",
        "gate",
        "host_maxphyaddr",
        "indirect_shadow_pages",
        "max_gfn",
        "memory",
        "memslots",
        "mm",
        "mmio_caching",
        "mmu_invalidate_in_progress",
        "mmu_invalidate_range_end",
        "mmu_invalidate_range_start",
        "mmu_invalidate_seq",
        "mmu_lock",
        "mmu_page_hash",
        "mmu_unsync_pages_lock",
        "mmu_valid_gen",
        "mn_active_invalidate_count",
        "n_max_mmu_pages",
        "n_requested_mmu_pages",
        "n_used_mmu_pages",
        "nr_desc_frames",
        "nr_memslot_pages",
        "nr_memslots_dirty_logging",
        "params",
        "shadow_root_allocated",
        "slots_arch_lock",
        "slots_lock",
        "stat",
        "tdp_enabled",
        "tdp_root_level",
        "trace",
        "vcpus",
    )

    def __init__(self, mm: Mm, params: Params) -> None:
        memory: PhysicalMemory = mm.memory
        frames: FrameAllocator = mm.frames
        gate: Gate = memory.gate
        self.memory = memory
        self.frames = frames
        self.mm = mm
        self.gate = gate
        self.trace = Trace()
        self.params = params
        self.tdp_enabled = params.npt
        self.tdp_root_level = params.host_levels
        self.host_maxphyaddr = params.host_maxphyaddr
        self.flush_on_reuse = params.flush_on_reuse
        make_format = make_npt_format if params.npt else make_shadow_format
        self.fmt = make_format(params.host_maxphyaddr, params.mmio_caching)
        self.mmio_caching = self.fmt.mmio_caching
        bits = params.host_maxphyaddr if params.npt else SPTE_MAXPHYADDR
        self.max_gfn: Gfn = (ONE << (bits - 12)) - 1  # type: ignore[assignment]
        self.slots_lock = Mutex("slots_lock", gate)
        self.slots_arch_lock = Mutex("slots_arch_lock", gate)
        self.mmu_lock = RwLock("mmu_lock", gate)
        self.mmu_unsync_pages_lock = Mutex("mmu_unsync_pages_lock", gate)
        self.memslots = [Memslots(as_id) for as_id in range(KVM_ADDRESS_SPACE_NUM)]
        self.nr_memslot_pages = 0
        self.nr_memslots_dirty_logging = 0
        self.shadow_root_allocated = False
        self.mmu_invalidate_seq = 0
        self.mmu_invalidate_in_progress = 0
        self.mmu_invalidate_range_start: Gfn = INVALID_PAGE  # type: ignore[assignment]
        self.mmu_invalidate_range_end: Gfn = INVALID_PAGE  # type: ignore[assignment]
        self.mn_active_invalidate_count = 0
        self.n_used_mmu_pages = 0
        self.n_requested_mmu_pages = params.nr_mmu_pages
        self.n_max_mmu_pages = params.nr_mmu_pages
        self.indirect_shadow_pages = 0
        self.mmu_valid_gen = 0
        self.mmu_page_hash: list[ShadowPage | None] = [None] * KVM_NUM_MMU_PAGES_BUCKETS
        self.active_mmu_pages = empty_list()
        self.desc_free = Hpa(0)
        self.nr_desc_frames = 0
        self.vcpus: list[Vcpu] = []
        self.stat = VmStat()

    def is_write_tracking_enabled(self) -> bool:
        """Whether memslots count the guest tables in each gfn: without nested paging, or with the first shadow root."""
        return not self.tdp_enabled or self.shadow_root_allocated

    def slots_of(self, as_id: int) -> Memslots:
        """The published memslots of address space ``as_id`` (0 normal, 1 SMM)."""
        return self.memslots[as_id]

    def gfn_to_memslot(self, gfn: Gfn, as_id: int) -> Memslot | None:
        """The slot of ``gfn`` in address space ``as_id``, INVALID ones included; None: no slot."""
        slots: Memslots = self.memslots[as_id]
        return slots.find(gfn)


def empty_list() -> ShadowPage:
    """A sentinel that links to itself: the head of an empty list of shadow pages."""
    head = ShadowPage(0, 0, 0)  # type: ignore[arg-type]
    head.link_next = head
    head.link_prev = head
    return head
