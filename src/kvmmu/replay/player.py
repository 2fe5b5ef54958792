# SPDX-License-Identifier: GPL-2.0-only
"""Play a recording into a machine, record by record, and verify every translation.

Each access goes TLB, hardware walk of the tables that kvm built, fault path; the frame that it ends in must be the one
that backs the recorded gpa. Stores to guest tables are made where the guest's own store would go, emulated where kvm
protects the table. Bare machines (``--mmu none``) have no kvm: their CPUs walk the guest's tables.

Whether what differs is a mismatch is decided by :mod:`kvmmu.replay.referee`.
"""

from __future__ import annotations

from typing import Any

from ..addr import Hpa
from ..host.bits import NO_HPA
from ..hw.bits import ACCESS_AC, ACCESS_FETCH, ACCESS_WRITE, HW_HIT, UD_VECTOR, X86_EFLAGS_AC
from ..hw.cpu import Cpu
from ..kvm.emulate import complete_mmio_read, emulate
from ..kvm.guestmem import gpa_to_hpa
from ..kvm.insn import insn_invlpg, insn_invpcid
from ..kvm.outcome import (
    RUN_EMULATE,
    RUN_FAULT,
    RUN_HIT,
    X86EMUL_CONTINUE,
    X86EMUL_IO_NEEDED,
    X86EMUL_PROPAGATE_FAULT,
    X86EMUL_UNHANDLEABLE,
)
from ..kvm.run import access
from ..kvm.vcpu import Vcpu
from ..record.format import (
    K_ACCESS,
    K_INVLPG,
    K_INVPCID,
    K_MAP,
    K_MMIO,
    K_PAGE,
    K_REGS,
    K_STORE,
    W_INIT,
    W_PKRU,
)
from ..record.reader import Reader
from .referee import Referee
from .registers import (
    change_register,
    check_features,
    check_registers,
    clean_pdptes,
    clean_snapshot,
    has_registers,
    load_registers,
)
from .result import MODEL_EMULATED, MODEL_HIT, STOP_BREAK, STOP_END, STOP_LIMIT, STOP_MISMATCH


class Player(Referee):
    """Plays ``reader`` into ``machine`` (``machine.build_machine()``)."""

    __slots__ = (
        "accesses",
        "break_cause",
        "counts",
        "cpus",
        "cr4_mask",
        "emulated_stores",
        "has_la57",
        "map_waits",
        "on_record",
        "other_cpu",
        "smm_records",
        "stop_at_mismatch",
        "stores",
        "vcpus",
    )

    def __init__(self, reader: Reader, machine: Any) -> None:
        Referee.__init__(self, reader, machine)
        self.vcpus: list[Vcpu] = machine.vcpus
        self.cpus: list[Cpu] = machine.cpus
        self.cr4_mask = machine.cr4_mask
        self.other_cpu = machine.cpu is not None
        self.has_la57 = self.other_cpu or machine.features.la57
        self.counts = [0] * 16
        self.accesses = 0
        self.stores = 0
        self.emulated_stores = 0
        self.smm_records = 0
        self.map_waits = False
        self.break_cause = 0
        self.stop_at_mismatch = True
        self.on_record: Any = None

    def nr_records(self, kind: int) -> int:
        """Records of ``kind`` played so far."""
        return self.counts[kind]

    def play(self, limit: int) -> int:
        """Play records until the reader's position is ``limit``, the recording ends, or something stops it (STOP_*).

        After STOP_MISMATCH ``problem`` says what is wrong with the record that the reader holds.
        """
        reader = self.reader
        mismatches = self.mismatches
        self.problem = ""
        self.note_slots()
        while reader.position < limit:
            kind = reader.next()
            if kind == 0:
                return STOP_END
            if self.on_record is not None:
                self.on_record(reader.position - 1)
            self.counts[kind] += 1
            if reader.smm:
                self.smm_records += 1
                continue
            if self.map_waits and kind != K_MAP:
                self.settle()
            self.play_record(kind)
            if self.mismatches != mismatches:
                mismatches = self.mismatches
                if self.stop_at_mismatch:
                    return STOP_MISMATCH
            if self.break_cause and self.is_break():
                return STOP_BREAK
        return STOP_LIMIT

    def fast_forward(self, limit: int) -> int:
        """Take over only the state that records before ``limit`` leave behind: memory, map, registers."""
        while self.reader.position < limit:
            kind = self.reader.next()
            if kind == 0:
                return STOP_END
            if self.reader.smm:
                continue
            if kind == K_PAGE or kind == K_STORE:
                self.settle()
                self.store_record(self.machine.hpa_of(self.reader.gpa))
            elif kind == K_REGS:
                self.machine.note_regs(self.reader)
            elif kind == K_MAP:
                self.change_map()
        self.settle()
        self.machine.load_noted_regs()
        return STOP_LIMIT

    def change_map(self) -> int:
        """The map changes; kvm hears of it when something else happens (see :mod:`.machine`)."""
        self.machine.change_map(self.reader)
        self.map_waits = True
        return 0

    def settle(self) -> int:
        """Let kvm's slots follow the map; who looks at the machine after :meth:`play` calls it first."""
        if self.map_waits:
            self.map_waits = False
            self.machine.commit_map()
            self.note_slots()
        return 0

    def is_break(self) -> bool:
        """Whether the record in hand raised a fault of the cause that the user waits for."""
        for vcpu in self.vcpus:  # noqa: SIM110 - compiled methods hold no closures
            if vcpu.nr_faults(self.break_cause):
                return True
        return False

    def play_record(self, kind: int) -> int:
        """Play the record in hand, of ``kind``."""
        if kind == K_PAGE:
            return self.play_page()
        if kind == K_MAP:
            return self.change_map()
        if self.bare:
            return self.play_bare(kind)
        if kind == K_ACCESS:
            return self.play_access()
        if kind == K_STORE:
            return self.play_store()
        if kind == K_MMIO:
            return self.play_mmio()
        if kind == K_REGS:
            return self.play_regs()
        return self.play_invalidation(kind)

    def verify_hpa(self, vcpu: Vcpu) -> bool:
        """Verify where the access went; False: elsewhere, lawfully, and the machine's store, if it is one, was made."""
        expected = gpa_to_hpa(self.slots, self.vm.mm, self.reader.gpa, False)  # type: ignore[union-attr, arg-type]  # not on bare CPUs
        if vcpu.cpu.hpa == expected:
            return True
        problem = "the access goes to another frame than the machine's"
        if expected == NO_HPA:
            problem = "memory is mapped where the machine found a device"
        return not self.disagree(MODEL_HIT, vcpu.cpu.hpa, problem)

    def make_access(self, vcpu: Vcpu) -> int:
        """Let ``vcpu`` make the access of the record in hand; return how it ended (RUN_*)."""
        self.accesses += 1
        vcpu.rflags = X86_EFLAGS_AC | 2 if self.reader.access & ACCESS_AC else 2
        return access(vcpu, self.reader.gva, self.reader.access)

    def play_access(self) -> int:
        """Make the recorded access, and verify where it goes."""
        vcpu = self.vcpus[self.reader.cpu]
        status = self.make_access(vcpu)
        if status == RUN_HIT:
            self.verify_hpa(vcpu)
            return 0
        if status != RUN_EMULATE:
            return self.fail_exception(status, "an access")
        # What was stored is unknown (the recorder had stopped watching this page): store what is there.
        size = 1
        if self.reader.gva & 7 == 0:
            size = 8
        elif self.reader.gva & 3 == 0:
            size = 4
        data = None
        if self.reader.access & ACCESS_WRITE:
            data = self.machine.read_guest(self.reader.gpa, size)
        return self.emulate_until_done(vcpu, data, size)

    def store_data(self) -> bytes:
        """What the record in hand stores."""
        if self.reader.size > 8:
            return self.reader.payload()
        return self.reader.value.to_bytes(8, "little")[: self.reader.size]

    def store_record(self, hpa: Hpa) -> int:
        """Store what the record in hand (STORE, PAGE) stores, entries in one piece."""
        reader = self.reader
        if reader.size == 8 and hpa & 7 == 0:
            return self.memory.write_once(hpa, reader.value)  # type: ignore[no-any-return]  # memory is known when the machine is
        if reader.size == 4 and hpa & 3 == 0:
            return self.memory.write_once32(hpa, reader.value)  # type: ignore[no-any-return]  # memory is known when the machine is
        return self.memory.write(hpa, self.recorded_bytes())  # type: ignore[no-any-return]  # memory is known when the machine is

    def play_store(self) -> int:
        """Make the recorded store to a guest table, and verify where it goes."""
        vcpu = self.vcpus[self.reader.cpu]
        self.stores += 1
        status = self.make_access(vcpu)
        if status == RUN_HIT:
            return self.store_record(vcpu.cpu.hpa) if self.verify_hpa(vcpu) else 0
        if status != RUN_EMULATE:
            return self.fail_exception(status, "a store")
        self.emulated_stores += 1
        return self.emulate_until_done(vcpu, self.store_data(), self.reader.size)

    def emulate_until_done(self, vcpu: Vcpu, data: bytes | None, size: int) -> int:
        """Let kvm make the access in the guest's place."""
        outcome = emulate(vcpu, self.reader.gva, self.reader.access, data, size)
        if outcome == X86EMUL_CONTINUE or outcome == X86EMUL_IO_NEEDED:
            if vcpu.mmio_gpa != self.reader.gpa:
                self.disagree(MODEL_EMULATED, vcpu.mmio_gpa, f"kvm's own walk finds gpa {vcpu.mmio_gpa:#x}")
                return 0
            if outcome == X86EMUL_IO_NEEDED and not self.machine.is_read_only(self.reader.gpa):
                return self.fail("the access ends at a device, the machine found memory")
            return 0
        vcpu.exception_pending = False
        return self.fail_exception(RUN_FAULT if outcome == X86EMUL_PROPAGATE_FAULT else outcome, "an access")

    def play_mmio(self) -> int:
        """Make the recorded device access; it must end at the same device address."""
        vcpu = self.vcpus[self.reader.cpu]
        status = self.make_access(vcpu)
        if status == RUN_HIT:
            self.verify_hpa(vcpu)
            return 0
        if status != RUN_EMULATE:
            return self.fail_exception(status, "a device access")
        data = self.store_data() if self.reader.access & ACCESS_WRITE else None
        outcome = emulate(vcpu, self.reader.gva, self.reader.access, data, self.reader.size)
        if self.reader.access & ACCESS_FETCH:
            return self.verify_unfetchable(vcpu, outcome)
        if outcome == X86EMUL_PROPAGATE_FAULT:
            vcpu.exception_pending = False
            return self.fail_exception(RUN_FAULT, "a device access")
        if outcome != X86EMUL_IO_NEEDED:
            if outcome == X86EMUL_CONTINUE:
                self.disagree(MODEL_EMULATED, vcpu.mmio_gpa, "kvm finds no device where the machine did")
                return 0
            return self.fail("kvm finds no device where the machine did")
        if vcpu.mmio_gpa != self.reader.gpa:
            self.disagree(MODEL_EMULATED, vcpu.mmio_gpa, f"kvm sends the access to device address {vcpu.mmio_gpa:#x}")
        if data is None:
            complete_mmio_read(vcpu, self.reader.size, self.reader.value)
        return 0

    def verify_unfetchable(self, vcpu: Vcpu, outcome: int) -> int:
        """The machine fetched from a device. Kvm has nothing to fetch there: #UD, or an emulation failure."""
        is_undefined = outcome == X86EMUL_PROPAGATE_FAULT and vcpu.exception_vector == UD_VECTOR
        vcpu.exception_pending = False
        if outcome != X86EMUL_UNHANDLEABLE and not is_undefined:
            return self.fail("kvm can fetch where the machine found a device")
        if vcpu.mmio_gpa != self.reader.gpa:
            return self.fail(f"kvm's own walk finds gpa {vcpu.mmio_gpa:#x}")
        return 0

    def play_page(self) -> int:
        """The table at gpa holds these bytes: what differs was written unseen. PDPTEs in use have QEMU's A bits."""
        self.store_unseen(self.reader.gpa, self.recorded_bytes())
        return clean_snapshot(self.machine, self.cpus, self.vcpus, self.reader.gpa >> 12)

    def play_regs(self) -> int:
        """Execute the recorded register change; the registers must come out as the machine's."""
        reader = self.reader
        cpu = self.cpus[reader.cpu]
        vcpu = None if self.bare else self.vcpus[reader.cpu]
        cr4 = reader.cr4 & self.cr4_mask
        check_registers(self.has_la57, reader)
        if self.other_cpu:
            check_features(self.machine, reader)
        clean_pdptes(self.machine, reader.cr0, reader.cr3, reader.cr4, reader.efer)
        ret = change_register(cpu, vcpu, reader, cr4)
        if not has_registers(cpu, vcpu, reader, cr4):
            if ret == 0 and reader.what != W_INIT and reader.what != W_PKRU:
                return self.fail("the registers differ from the machine's after this instruction")
            load_registers(cpu, vcpu, reader, cr4)
        if ret:
            return self.fail(f"{'the CPU' if self.bare else 'kvm'} refuses a register value that the machine took")
        return 0

    def play_invalidation(self, kind: int) -> int:
        """Execute the recorded INVLPG or INVPCID."""
        vcpu = self.vcpus[self.reader.cpu]
        if kind == K_INVLPG:
            return insn_invlpg(vcpu, self.reader.gva)
        if insn_invpcid(vcpu, self.reader.invpcid_type, self.reader.pcid, self.reader.gva):
            return self.fail("kvm refuses an INVPCID that the machine executed")
        return 0

    def play_bare(self, kind: int) -> int:
        """The machine without a hypervisor: the CPU walks the guest's tables."""
        cpu = self.cpus[self.reader.cpu]
        if kind == K_REGS:
            return self.play_regs()
        if kind == K_INVLPG:
            return cpu.invlpg(self.reader.gva)
        if kind == K_INVPCID:
            return cpu.invpcid(self.reader.invpcid_type, self.reader.pcid, self.reader.gva)
        self.accesses += 1
        if kind == K_STORE:
            self.stores += 1
        if cpu.access(self.reader.gva, self.reader.access) != HW_HIT:
            return self.fail_exception(RUN_FAULT, "an access")
        if cpu.hpa != self.reader.gpa:
            self.disagree(MODEL_HIT, cpu.hpa, "the access goes to another address than the machine's")
            return 0
        if kind == K_STORE:
            return self.store_record(cpu.hpa)
        return 0
