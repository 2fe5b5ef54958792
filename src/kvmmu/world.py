# SPDX-License-Identifier: GPL-2.0-only
"""World: one machine put together: physical memory, the host's process, a VM in it, and CPUs to run its vCPUs.

The small API for people: build memory and slots, write guest tables with ``poke()`` (or ``kvmmu.guest.tables``), then
``read()``, ``write()`` and ``fetch()`` as the guest does, and look at ``vm``, vCPUs, counters and events. What the VMM
does is in ``ioctls``, what the guest does in ``instructions``; here is what looks, and the end.
"""

from __future__ import annotations

from collections.abc import Callable

from . import arguments, guard, look
from .access import Access
from .addr import Gpa, Gva
from .calls import looking, working
from .errors import GuestMisuse
from .guest.tables import GuestTables, TablePages
from .instructions import Instructions
from .ioctls import Ioctls
from .kvm import run
from .kvm.cpuid import CpuFeatures
from .kvm.mmu import audit as mmu_audit
from .kvm.mmu import tdproots, zap
from .kvm.mmu.mappings import SpteRange, current_ranges
from .kvm.mmu.page import ShadowPage
from .kvm.vcpu import Vcpu
from .look import SpteElement
from .page_types import PAGE_SHIFT, PAGE_SIZE
from .params import Params
from .tracepoint import Event

#: Frames that a world has unless told otherwise: 1 GiB of physical memory, of which only what is touched is real.
DEFAULT_FRAMES = 1 << 18
#: Room for tables, after the root, that ``World.tables()`` takes unless told otherwise.
DEFAULT_TABLE_BYTES = 2 << 20


class World(Ioctls, Instructions):
    """One machine.

    :param params: module parameters and facts of the host (:class:`~kvmmu.params.Params`).
    :param nr_frames: physical memory in 4K frames: guest memory plus what kvm's tables need.
    :param cpu: the CPUID of its vCPUs (:class:`~kvmmu.CpuFeatures`), unless :meth:`create_vcpu` is given another.
    """

    def __init__(
        self, params: Params | None = None, nr_frames: int = DEFAULT_FRAMES, *, cpu: CpuFeatures | None = None
    ) -> None:
        super().__init__(params, nr_frames, cpu)
        self._auditor = mmu_audit.Auditor(self.vm)

    @looking
    def tables(
        self,
        mode: str = "4-level",
        root: Gpa | int = 0x10000,
        *,
        nr_bytes: int = DEFAULT_TABLE_BYTES,
        vcpu: Vcpu | None = None,
        window: Gva | int = 0,
    ) -> GuestTables:
        """Guest page tables with their root at ``root``, as :class:`~kvmmu.guest.tables.GuestTables`.

        Further tables are taken from the ``nr_bytes`` that follow the root's page. They are edited from outside, as
        :meth:`poke` does; with ``vcpu``, by that vCPU's own loads and stores, to the gva ``window`` + gpa.

        :raises GuestMisuse: an unknown mode or a misplaced root; while editing, an access that faults.
        """
        arguments.numbers(root=root, nr_bytes=nr_bytes, window=window)
        if vcpu is not None:
            guard.own_vcpu(self.vm, vcpu)
        first = (root & ~(PAGE_SIZE - 1)) + PAGE_SIZE
        pages = TablePages(first, first + nr_bytes)
        if vcpu is None:
            return GuestTables(mode, self._peek_word, self.poke, root, pages.take, self.peek, self.poke)
        actor = vcpu

        def load(gpa: Gpa, size: int) -> int:
            return int.from_bytes(self._must_be_done(self.read(actor, window + gpa, size)).data, "little")

        def store(gpa: Gpa, value: int, size: int) -> None:
            self._must_be_done(self.write(actor, window + gpa, value, size))

        return GuestTables(mode, load, store, root, pages.take)

    def _peek_word(self, gpa: Gpa, size: int) -> int:
        return int.from_bytes(self.peek(gpa, size), "little")

    @staticmethod
    def _must_be_done(access: Access) -> Access:
        if access.kind != "done":
            raise GuestMisuse(f"the guest cannot reach its own table: {access!r}; map its tables at the window first")
        return access

    # Looking.

    @looking
    def on_event(self, sink: Callable[[Event], object]) -> Callable[[], None]:
        """Deliver every tracepoint event to ``sink`` from now on, beside the sinks that listen already.

        Return a function that takes it off again; the event's ``vcpu_id`` is the vCPU that worked, None: the process.
        """
        arguments.function("sink", sink)
        trace = self.vm.trace
        guarded = self._door.guarded(sink)
        trace.attach(guarded)
        return lambda: trace.detach(guarded)

    @looking
    def walk(self, vcpu: Vcpu, address: Gva | Gpa | int) -> list[SpteElement]:
        """Kvm's own entries on the way to ``address``, top first, down to a leaf or one that is not present.

        ``address`` is a gva under shadow paging, a gpa under nested paging. Empty while the vCPU has no root.
        """
        guard.operands(self.vm, vcpu, address=address)
        return look.walk(vcpu, address)

    @looking
    def mappings(self, vcpu: Vcpu) -> list[SpteRange]:
        """All that kvm's current tables of ``vcpu`` map, as ranges of sptes that are alike; empty without a root."""
        guard.own_vcpu(self.vm, vcpu)
        return list(current_ranges(self.vm, vcpu.mmu))

    @looking
    def shadow_pages(self) -> list[ShadowPage]:
        """Every active shadow page, newest first."""
        return look.shadow_pages(self.vm)

    @looking
    def counters(self) -> dict[str, int]:
        """Every ``kvm_stat`` counter by its name: the VM's, and the sum over its vCPUs."""
        return look.counters(self.vm)

    @working
    def audit(self, full: bool = False) -> mmu_audit.Audit:
        """Check the structural invariants of the MMU: of what is not as it was at the last audit; ``full``: of all.

        Either finds what is broken now, and returns the same counts of all that there is.

        :raises KvmBug: naming what is broken.
        """
        return self._auditor.audit(arguments.flag("full", full))

    @looking
    def digest(self) -> str:
        """A stable hash of all MMU state: pages, sptes, translations, slots, registers, counters."""
        return look.digest(self.vm)

    @working
    def close(self) -> None:
        """End the VM: zap everything, free every vCPU's roots. Nothing can be done with the world afterwards."""
        zap.zap_all(self.vm)
        for vcpu in list(self.vm.vcpus):
            run.destroy_vcpu(vcpu)
        tdproots.uninit(self.vm)
        self._door.close()


def nr_frames_for(nr_bytes: int) -> int:
    """Frames of a world whose guest has ``nr_bytes`` of memory: half as much again for kvm, at least 64 MiB."""
    arguments.number("nr_bytes", nr_bytes)
    return (nr_bytes + max(nr_bytes // 2, 64 << 20)) >> PAGE_SHIFT
