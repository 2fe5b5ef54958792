# SPDX-License-Identifier: GPL-2.0-only
"""Vm: the state of one virtual machine (``struct kvm`` and ``struct kvm_arch``).

State only: what is done with it lives in the rooms named after the deed (``regions`` for memslot ioctls, ``mmu/*``
for the MMU). Reference: "Data structures", per-VM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..addr import Gfn, Hpa
from ..host.frames import FrameAllocator, SmallArrays
from ..host.mm import Mm
from ..hw.memory import PhysicalMemory
from ..lockorder import RANK_LEAF, RANK_MMU, RANK_SLOTS, RANK_SLOTS_ARCH, RANK_UNDER_MMU
from ..page_types import NOTHING, ONE
from ..params import Params
from ..sync import Gate, Mutex, Rcu, RwLock, Srcu
from ..tracepoint import Trace
from .bits import (
    KVM_ADDRESS_SPACE_NUM,
    KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_NUM_MMU_PAGES_BUCKETS,
)
from .invalidation import Invalidation
from .memslots import Memslot, Memslots
from .mmu.bits import SPTE_MAXPHYADDR
from .mmu.page import ShadowPage
from .mmu.spte import make_npt_format, make_shadow_format
from .policy import Policy
from .stats import VmStat
from .vendor import Vendor

if TYPE_CHECKING:
    from .vcpu import Vcpu


class Vm:
    """One virtual machine on the host memory of one process.

    ``mm`` is the address space of the process that owns the VM; ``params`` the module parameters, fixed here for the
    life of the VM; ``vendor`` the hardware's kind. Made by ``run.create_vm()``.
    """

    __slots__ = (
        "active_mmu_pages",
        "desc_free",
        "fmt",
        "frames",
        "gate",
        "has_shadow_roots",
        "host_maxphyaddr",
        "indirect_shadow_pages",
        "invalidation",
        "manual_dirty_log_protect",
        "max_gfn",
        "memory",
        "memslots",
        "mm",
        "mmu_lock",
        "mmu_page_hash",
        "mmu_unsync_pages_lock",
        "mmu_valid_gen",
        "n_max_mmu_pages",
        "n_requested_mmu_pages",
        "n_used_mmu_pages",
        "nr_desc_frames",
        "nr_memslot_pages",
        "nr_memslots_dirty_logging",
        "params",
        "policy",
        "possible_nx_huge_pages",
        "rcu",
        "slots_arch_lock",
        "slots_lock",
        "small_arrays",
        "srcu",
        "stat",
        "tdp_enabled",
        "tdp_mmu_pages",
        "tdp_mmu_pages_lock",
        "tdp_mmu_roots",
        "tdp_root_level",
        "trace",
        "vcpus",
        "vendor",
    )

    def __init__(self, mm: Mm, params: Params, vendor: Vendor) -> None:
        memory: PhysicalMemory = mm.memory
        frames: FrameAllocator = mm.frames
        gate: Gate = memory.gate
        self.memory = memory
        self.frames = frames
        self.mm = mm
        self.gate = gate
        self.trace = Trace()
        self.params = params
        self.vendor = vendor
        self.tdp_enabled = params.npt
        self.tdp_root_level = params.host_levels
        self.host_maxphyaddr = params.host_maxphyaddr
        make_format = make_npt_format if params.npt else make_shadow_format
        self.fmt = make_format(params.host_maxphyaddr, params.mmio_caching)
        self.policy = Policy(params, mmio_caching=self.fmt.mmio_caching)
        bits = params.host_maxphyaddr if params.npt else SPTE_MAXPHYADDR
        self.max_gfn = Gfn((ONE << (bits - 12)) - 1)
        self.slots_lock = Mutex("slots_lock", gate, RANK_SLOTS)
        self.small_arrays = SmallArrays()
        self.slots_arch_lock = Mutex("slots_arch_lock", gate, RANK_SLOTS_ARCH)
        self.mmu_lock = RwLock("mmu_lock", gate, RANK_MMU)
        self.mmu_unsync_pages_lock = Mutex("mmu_unsync_pages_lock", gate, RANK_UNDER_MMU)
        self.tdp_mmu_pages_lock = Mutex("tdp_mmu_pages_lock", gate, RANK_UNDER_MMU)
        self.srcu = Srcu("srcu", gate)
        self.rcu = Rcu("rcu", gate)
        self.memslots = tuple([Memslots(as_id) for as_id in range(KVM_ADDRESS_SPACE_NUM)])
        self.nr_memslot_pages = 0
        self.nr_memslots_dirty_logging = 0
        self.manual_dirty_log_protect = 0
        self.has_shadow_roots = False
        self.invalidation = Invalidation(gate, self.mmu_lock, Mutex("mn_invalidate_lock", gate, RANK_LEAF))
        self.n_used_mmu_pages = 0
        self.n_requested_mmu_pages = params.nr_mmu_pages
        self.n_max_mmu_pages = params.nr_mmu_pages
        self.indirect_shadow_pages = 0
        self.mmu_valid_gen = 0
        self.mmu_page_hash: list[ShadowPage | None] = [None] * KVM_NUM_MMU_PAGES_BUCKETS
        self.active_mmu_pages = empty_list()
        self.tdp_mmu_roots = empty_list()
        self.tdp_mmu_pages = 0
        self.possible_nx_huge_pages = empty_list()
        self.possible_nx_huge_pages.nx_next = self.possible_nx_huge_pages
        self.possible_nx_huge_pages.nx_prev = self.possible_nx_huge_pages
        self.desc_free = Hpa(0)
        self.nr_desc_frames = 0
        self.vcpus: tuple[Vcpu, ...] = ()
        self.stat = VmStat()

    def __repr__(self) -> str:
        mmu = "shadow"
        if self.tdp_enabled:
            mmu = f"tdp, tables {self.tdp_mmu_pages}," if self.policy.tdp_mmu else "npt"
        nr_slots = sum(slots.nr_slots() for slots in self.memslots)
        return (
            f"<Vm {mmu} vcpus {len(self.vcpus)} slots {nr_slots}"
            f" shadow pages {self.n_used_mmu_pages} of {self.n_max_mmu_pages}>"
        )

    def add_vcpu(self, vcpu: Vcpu) -> None:
        """``vcpu``, which was made for this VM, is its last from now on."""
        self.vcpus = (*self.vcpus, vcpu)

    def remove_vcpu(self, vcpu: Vcpu) -> None:
        """``vcpu`` is no longer one of this VM's."""
        self.vcpus = tuple([one for one in self.vcpus if one is not vcpu])

    def hash_heads(self) -> list[ShadowPage | None]:
        """The newest shadow page of each hash bucket, for those who look; ``hash_next`` leads to the others."""
        return list(self.mmu_page_hash)

    def is_write_tracking_enabled(self) -> bool:
        """Whether memslots count the guest tables in each gfn: without nested paging, or with the first shadow root."""
        return not self.tdp_enabled or self.is_shadow_root_allocated()

    def is_log_manual(self) -> bool:
        """Whether reading a dirty log clears nothing: KVM_CLEAR_DIRTY_LOG does."""
        return self.manual_dirty_log_protect & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE != 0

    def is_log_initially_set(self) -> bool:
        """Whether a slot's log begins with every page written: nothing needs protection before it is cleared."""
        return self.manual_dirty_log_protect & KVM_DIRTY_LOG_INITIALLY_SET != 0

    def has_rmaps(self) -> bool:
        """Whether memslots have reverse maps: the TDP MMU needs none, so with it only once there was a shadow root."""
        return not self.policy.tdp_mmu or self.is_shadow_root_allocated()

    def is_shadow_root_allocated(self) -> bool:
        """Whether a shadow root was ever made, and so every slot has its arrays (``kvm_shadow_root_allocated``)."""
        if self.gate.armed:
            self.gate.announce("read", self, "has_shadow_roots")
        allocated = self.has_shadow_roots
        self.gate.smp_load_acquire()
        return allocated

    def set_shadow_root_allocated(self) -> int:
        """The slots have their arrays; ``slots_arch_lock`` held."""
        self.slots_arch_lock.assert_held()
        self.gate.smp_store_release()
        if self.gate.armed:
            self.gate.announce("write", self, "has_shadow_roots")
        self.has_shadow_roots = True
        return 0

    def slots_of(self, as_id: int) -> Memslots:
        """The published memslots of address space ``as_id`` (0 normal, 1 SMM), for a reader of ``srcu``."""
        if self.gate.armed:
            self.gate.announce("read", self, ("memslots", as_id))
        return self.memslots[as_id]

    def publish_slots(self, slots: Memslots) -> int:
        """Let ``slots`` be the memslots of their address space from now on; ``slots_arch_lock`` held."""
        self.slots_arch_lock.assert_held()
        self.gate.smp_store_release()
        if self.gate.armed:
            self.gate.announce("write", self, ("memslots", slots.as_id))
        sets = list(self.memslots)
        sets[slots.as_id] = slots
        self.memslots = tuple(sets)
        return 0

    def gfn_to_memslot(self, gfn: Gfn, as_id: int) -> Memslot | None:
        """The slot of ``gfn`` in address space ``as_id``, INVALID ones included; None: no slot."""
        slots: Memslots = self.slots_of(as_id)
        return slots.find(gfn)


def empty_list() -> ShadowPage:
    """A sentinel that links to itself: the head of an empty list of shadow pages."""
    head = ShadowPage(NOTHING, 0, NOTHING)
    head.link_next = head
    head.link_prev = head
    return head
