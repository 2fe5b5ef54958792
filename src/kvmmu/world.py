# SPDX-License-Identifier: GPL-2.0-only
"""World: one machine put together: physical memory, the host's process, a VM in it, and CPUs to run its vCPUs.

The small API for people: build memory and slots, write guest tables with ``poke()`` (or ``kvmmu.guest.tables``), then
``read()``, ``write()`` and ``fetch()`` as the guest does, and look at ``vm``, vCPUs, counters and events.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from threading import get_ident

from . import arguments, guard, look
from .access import Access, emulate_access
from .addr import Gpa, Gva, Hpa, Hva
from .door import Door, looking, working
from .errors import ConfigError, GuestMisuse, KvmIoctlError, KvmmuError
from .guest.tables import ControlRegisters, GuestTables, TablePages
from .host.frames import FrameAllocator
from .host.mm import Mm
from .hw.bits import ACCESS_AC, ACCESS_FETCH, ACCESS_WRITE, INSN_DONE, X86_EFLAGS_AC
from .hw.cpu import Cpu
from .hw.cpumodel import CpuModel
from .hw.memory import PhysicalMemory
from .kvm import guestmem, insn, regions, run, sregs
from .kvm.mmu import audit as mmu_audit
from .kvm.mmu import dirty, zap
from .kvm.mmu.notify import MmuNotifier
from .kvm.mmu.page import ShadowPage
from .kvm.outcome import RUN_EMULATE, RUN_ERROR, RUN_FAULT, RUN_SHUTDOWN
from .kvm.regions import UserMemoryRegion
from .kvm.vcpu import Vcpu
from .look import SpteElement
from .page_types import PAGE_SHIFT, PAGE_SIZE, U64
from .params import Params
from .sync import Gate
from .tracepoint import Event

#: Frames that a world has unless told otherwise: 1 GiB of physical memory, of which only what is touched is real.
DEFAULT_FRAMES = 1 << 18
#: Room for tables, after the root, that ``World.tables()`` takes unless told otherwise.
DEFAULT_TABLE_BYTES = 2 << 20
# A type of INVPCID that does not exist.
_NO_KIND = 4
# Ranges of at most a page from here down do not pass the end of addresses.
_LAST_WORD = U64 - PAGE_SIZE
_OFFSET = PAGE_SIZE - 1


class World:
    """One machine.

    :param params: module parameters and facts of the host (:class:`~kvmmu.params.Params`).
    :param nr_frames: physical memory in 4K frames: guest memory plus what kvm's tables need.
    """

    def __init__(self, params: Params | None = None, nr_frames: int = DEFAULT_FRAMES) -> None:
        guard.host(params, nr_frames)
        self._door = Door()
        self.params = params or Params()
        self.memory = PhysicalMemory(nr_frames, Gate())
        self.frames = FrameAllocator(self.memory)
        self.mm = Mm(self.frames)
        self.vm = run.create_vm(self.mm, self.params)
        self.mm.chain.register(MmuNotifier(self.vm))
        self._auditor = mmu_audit.Auditor(self.vm)

    def __repr__(self) -> str:
        used = self.frames.nr_frames - self.frames.nr_free
        end = " closed" if self._door.is_closed() else ""
        return f"<World{end} {self.vm!r} frames {used:#x} of {self.frames.nr_frames:#x}>"

    # Building.

    @working
    def add_slot(
        self,
        slot: int,
        gpa: Gpa | int,
        size: int,
        *,
        flags: int = 0,
        backing: str = "anonymous",
        populate: bool = False,
    ) -> Hva:
        """Give the guest ``size`` bytes of fresh memory at ``gpa`` as memslot ``slot``; return where it lies (hva).

        ``flags``: KVM_MEM_*; ``backing``: "anonymous" or "shared"; ``populate`` faults every page in at once. Huge
        backing follows ``params.host_page``.

        :raises KvmIoctlError: what KVM_SET_USER_MEMORY_REGION refuses, with its errno.
        :raises UserError: a number that the ioctl's field cannot hold.
        :raises OutOfFrames: ``populate`` found no free frame. Nothing stays mapped after an error.
        """
        arguments.flag("populate", populate)
        region = UserMemoryRegion(slot, flags, Gpa(gpa), size, Hva(0))
        if size <= 0 or size % PAGE_SIZE:
            raise KvmIoctlError(22, f"memory_size {size:#x}: a slot has whole pages, at least one; round up to 4096")
        hva = self.mm.mmap(size, backing, self.params.host_page_level)
        try:
            if populate:
                self.mm.populate(hva, size)
            regions.set_user_memory_region(self.vm, replace(region, userspace_addr=hva))
        except KvmmuError:
            self.mm.munmap(hva, size)
            raise
        return hva

    @working
    def set_region(self, region: UserMemoryRegion) -> None:
        """KVM_SET_USER_MEMORY_REGION.

        :raises KvmIoctlError: with the kernel's errno.
        """
        arguments.instance("region", region, UserMemoryRegion, "add_slot() makes one with its memory")
        regions.set_user_memory_region(self.vm, region)

    def delete_slot(self, slot: int) -> None:
        """Delete memslot ``slot``; its memory stays mapped in the process.

        :raises KvmIoctlError: EINVAL, there is no such slot.
        """
        self.set_region(UserMemoryRegion(slot, 0, Gpa(0), 0, Hva(0)))

    @working
    def dirty_log(self, slot: int) -> bytes:
        """KVM_GET_DIRTY_LOG: one bit per page of ``slot``, cleared with this call."""
        arguments.number("slot", slot, (1 << 32) - 1)
        return dirty.get_dirty_log(self.vm, slot)

    @working
    def create_vcpu(self, maxphyaddr: int | None = None) -> Vcpu:
        """A new vCPU with paging off, on a CPU of its own; ``maxphyaddr`` (bits) defaults to the host's."""
        params = self.params
        if maxphyaddr is not None:
            arguments.number("maxphyaddr", maxphyaddr)
        if maxphyaddr is not None and not 32 <= maxphyaddr <= params.host_maxphyaddr:
            raise ConfigError(f"maxphyaddr={maxphyaddr}: a guest of this host has 32 to {params.host_maxphyaddr} bits")
        cpu_params = CpuModel(
            maxphyaddr=params.host_maxphyaddr,
            tlb_entries_4k=params.tlb_entries_4k,
            tlb_entries_2m=params.tlb_entries_2m,
            tlb_entries_1g=params.tlb_entries_1g,
            keep_all=params.tlb_keep_all,
        )
        vcpu = run.create_vcpu(self.vm, Cpu(len(self.vm.vcpus), self.memory, cpu_params))
        # What two vCPUs share a TLB for is nothing: each has an address-space tag of its own.
        vcpu.cpu.set_space(vcpu.vcpu_id + 1)
        if maxphyaddr is not None:
            vcpu.set_cpuid(maxphyaddr)
            sregs.after_set_cpuid(vcpu)
        return vcpu

    # The guest's memory, from outside.

    @working
    def poke(self, gpa: Gpa | int, data: bytes | int, size: int = 8) -> None:
        """Store ``data`` (an int is ``size`` bytes, little endian) at ``gpa`` as the VMM does: to the process's memory.

        That is past the memslot: a ROM takes it, no exit, no dirty log, no tracking; kvm hears of it only if the host
        must find another page. All of ``data`` is stored or, after an error, nothing.
        """
        raw = _bytes_at(gpa, data, size)
        if (gpa & _OFFSET) + len(raw) > PAGE_SIZE:
            guard.store(self.vm, gpa, len(raw))
        if guestmem.write_from_process(self.vm, 0, Gpa(gpa), raw):
            raise GuestMisuse(f"gpa {gpa:#x}: no memslot there, or the process has nothing to write; add_slot() first")

    @working
    def kvm_write_guest(self, gpa: Gpa | int, data: bytes | int, size: int = 8) -> None:
        """Store as kvm itself does (steal time, an MSR's page): not into a ROM, and the dirty log has it.

        What it cannot write ends it with :class:`GuestMisuse`; the pages before that have been written, as in KVM.
        """
        raw = _bytes_at(gpa, data, size)
        if guestmem.write_guest(self.vm, 0, Gpa(gpa), raw):
            raise GuestMisuse(f"gpa {gpa:#x}: no writable memslot there; add_slot() first")

    @working
    def peek(self, gpa: Gpa | int, size: int = 8) -> bytes:
        """``size`` bytes of guest memory at ``gpa``.

        :raises UserError: not all of it lies in memslots.
        """
        if type(gpa) is not int or type(size) is not int or not 0 <= gpa <= _LAST_WORD or not 0 <= size <= PAGE_SIZE:
            guard.span(gpa, size)
        data = guestmem.read_guest(self.vm, 0, Gpa(gpa), size)
        if data is None:
            raise GuestMisuse(f"gpa {gpa:#x}: no memslot there; add_slot() first")
        return data

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

    # The guest's instructions. Each returns whether it was executed; False: the guest gets #GP and nothing changed.

    @working
    def load_registers(self, vcpu: Vcpu, registers: ControlRegisters) -> None:
        """KVM_SET_SREGS as far as paging goes: all four registers at once (``GuestTables.registers()``).

        :raises KvmIoctlError: EINVAL, no CPU accepts them; nothing is changed.
        """
        guard.registers(self.vm, vcpu, registers)
        sregs.set_sregs(vcpu, registers.cr0, registers.cr3, registers.cr4, registers.efer)

    @working
    def mov_cr0(self, vcpu: Vcpu, value: int) -> bool:
        """MOV to CR0."""
        guard.operands(self.vm, vcpu, value=value)
        return insn.mov_cr0(vcpu, value) == INSN_DONE

    @working
    def mov_cr3(self, vcpu: Vcpu, value: int) -> bool:
        """MOV to CR3; with CR4.PCIDE, bit 63 keeps the translations of the new PCID."""
        guard.operands(self.vm, vcpu, value=value)
        return insn.mov_cr3(vcpu, value) == INSN_DONE

    @working
    def mov_cr4(self, vcpu: Vcpu, value: int) -> bool:
        """MOV to CR4."""
        guard.operands(self.vm, vcpu, value=value)
        return insn.mov_cr4(vcpu, value) == INSN_DONE

    @working
    def wrmsr_efer(self, vcpu: Vcpu, value: int) -> bool:
        """WRMSR to EFER."""
        guard.operands(self.vm, vcpu, value=value)
        return insn.wrmsr_efer(vcpu, value) == INSN_DONE

    @working
    def wrpkru(self, vcpu: Vcpu, value: int) -> bool:
        """WRPKRU."""
        guard.own_vcpu(self.vm, vcpu)
        arguments.number("value", value, (1 << 32) - 1)
        return insn.wrpkru(vcpu, value) == INSN_DONE

    @working
    def invlpg(self, vcpu: Vcpu, gva: Gva | int) -> bool:
        """INVLPG."""
        guard.operands(self.vm, vcpu, gva=gva)
        return insn.insn_invlpg(vcpu, Gva(gva)) == INSN_DONE

    @working
    def invpcid(self, vcpu: Vcpu, kind: int, pcid: int = 0, gva: Gva | int = 0) -> bool:
        """INVPCID of type ``kind``: 0 one address of one PCID, 1 one PCID, 2 all, 3 all but global pages."""
        guard.operands(self.vm, vcpu, kind=kind, pcid=pcid, gva=gva)
        return insn.insn_invpcid(vcpu, min(kind, _NO_KIND), pcid, Gva(gva)) == INSN_DONE

    # The guest's accesses. SMAP looks at EFLAGS.AC in ``vcpu.rflags``.

    def read(self, vcpu: Vcpu, gva: Gva | int, size: int = 8, *, user: bool = False) -> Access:
        """A load of ``size`` bytes at ``gva``."""
        return self._access(vcpu, gva, 0 if user is False else guard.user_bit(user), None, size)

    def fetch(self, vcpu: Vcpu, gva: Gva | int, size: int = 1, *, user: bool = False) -> Access:
        """An instruction fetch of ``size`` bytes at ``gva``."""
        return self._access(vcpu, gva, ACCESS_FETCH | (0 if user is False else guard.user_bit(user)), None, size)

    def write(self, vcpu: Vcpu, gva: Gva | int, data: bytes | int, size: int = 8, *, user: bool = False) -> Access:
        """A store of ``data`` (an int is ``size`` bytes, little endian) at ``gva``."""
        raw = data if type(data) is bytes else arguments.data_bytes(data, size)
        return self._access(vcpu, gva, ACCESS_WRITE | (0 if user is False else guard.user_bit(user)), raw, len(raw))

    def _access(self, vcpu: Vcpu, gva: Gva | int, kind: int, data: bytes | None, size: int) -> Access:
        if type(gva) is not int or type(size) is not int or type(vcpu) is not Vcpu or vcpu.vm is not self.vm:
            guard.access(self.vm, vcpu, gva, size)
        door = self._door
        if not door.acquire(False):
            raise door.refusal()
        door.owner = get_ident()
        try:
            return self._access_inside(vcpu, gva, kind, data, size)
        finally:
            door.release()
            if door.failure is not None:
                door.raise_failure()

    def _access_inside(self, vcpu: Vcpu, gva: int, kind: int, data: bytes | None, size: int) -> Access:
        if vcpu.rflags & X86_EFLAGS_AC:
            kind |= ACCESS_AC
        guard.linear(vcpu, gva, size)
        first = min(size, PAGE_SIZE - gva % PAGE_SIZE)
        # Every page must be reachable before anything is stored.
        places: list[tuple[Hpa, int, int]] = []
        for start, end in ((0, first), (first, size)):
            if start == end:
                continue
            status = self._run(vcpu, gva + start, kind)
            if status == RUN_FAULT:
                return Access("fault", error_code=vcpu.exception_error_code, address=vcpu.cr2)
            if status == RUN_SHUTDOWN:
                raise GuestMisuse(f"access at {gva:#x}: vCPU {vcpu.vcpu_id} shut down after a triple fault")
            if status == RUN_ERROR:
                raise guard.run_error(vcpu, gva)
            if status == RUN_EMULATE:
                ended = emulate_access(vcpu, Gva(gva), kind, data, size, places)
                return ended or self._access_inside(vcpu, gva, kind, data, size)
            places.append((vcpu.cpu.hpa, start, end))
        if data is None:
            return Access("done", b"".join(self.memory.read(hpa, end - start) for hpa, start, end in places))
        for hpa, start, end in places:
            self.memory.write(hpa, data[start:end])
        return Access("done")

    @staticmethod
    def _run(vcpu: Vcpu, gva: int, kind: int) -> int:
        # The #UD of an emulation failure is delivered when the vCPU runs on.
        if vcpu.exception_pending:
            status = run.enter(vcpu)
            vcpu.exception_pending = False
            if status:
                return status
        return run.access(vcpu, Gva(gva), kind)

    # Looking.

    @working
    def translate(self, vcpu: Vcpu, gva: Gva | int) -> Gpa | None:
        """KVM_TRANSLATE: where the guest's tables map ``gva`` for a supervisor's read; None: nowhere (``valid`` 0).

        Like every walk by kvm it sets A bits in the guest's tables. Nothing need be at the gpa.
        """
        guard.operands(self.vm, vcpu, gva=gva)
        return look.translate(vcpu, gva)

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
        self._door.close()


# What to store at gpa, if there is such a range of addresses.
def _bytes_at(gpa: int, data: bytes | int, size: int) -> bytes:
    raw = data if type(data) is bytes else arguments.data_bytes(data, size)
    if type(gpa) is not int or not 0 <= gpa <= _LAST_WORD or len(raw) > PAGE_SIZE:
        guard.span(gpa, len(raw))
    return raw


def nr_frames_for(nr_bytes: int) -> int:
    """Frames of a world whose guest has ``nr_bytes`` of memory: half as much again for kvm, at least 64 MiB."""
    arguments.number("nr_bytes", nr_bytes)
    return (nr_bytes + max(nr_bytes // 2, 64 << 20)) >> PAGE_SHIFT
