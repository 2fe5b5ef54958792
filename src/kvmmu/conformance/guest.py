# SPDX-License-Identifier: GPL-2.0-only
"""The recorder's guest at run time: its accesses that do not exit are made by the model's own CPU.

An access that the recorded guest made without an exit must need none here either: then it goes where the model's
tables say. Under nested paging a ``#PF`` is the guest's own affair and no exit.
"""

from __future__ import annotations

from ..addr import Gva
from ..hw.bits import (
    ACCESS_AC,
    ACCESS_FETCH,
    ACCESS_USER,
    ACCESS_WRITE,
    HW_HIT,
    HW_NESTED_FAULT,
    HW_PAGE_FAULT,
    PF_VECTOR,
    PFERR_FETCH,
    PFERR_PRESENT,
    PFERR_RSVD,
    PFERR_USER,
    PFERR_WRITE,
    PT_ACCESSED,
    PT_PRESENT,
    X86_EFLAGS_AC,
)
from ..kvm import insn, sregs
from ..page_types import PAGE_SIZE
from .program import Access, Execution, modified, op_of
from .vmm import CODE, DESCRIPTORS, OP_SIZE, OPS, STACK, STACK_END, USER_CODE, Vmm

_PDPT_MASK = 0xFFFF_FFE0
_U32 = 0xFFFF_FFFF


class Parted(Exception):
    """The model cannot follow the transcript any further: what was recorded, what the model does instead.

    Of events: ``before`` are the last that were equal, ``recorded`` and ``model`` how each side goes on.
    """

    def __init__(
        self,
        what: str,
        expected: str,
        got: str,
        before: tuple[str, ...] = (),
        recorded: tuple[str, ...] = (),
        model: tuple[str, ...] = (),
    ) -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.got = got
        self.before = before
        self.recorded = recorded
        self.model = model


class AgedPdptes:
    """A in the PDPTEs of a PAE guest under nested paging: QEMU's TCG, which made the transcripts, sets it.

    It is a reserved bit there, and a walk of the guest ignores it on that host only. Kvm cannot load the four from
    then on, and goes on with the last that it could. So kvm is shown the bits, and the model's CPU is not.
    """

    def __init__(self, vmm: Vmm) -> None:
        self.vmm = vmm
        # Where they are, and which of them the guest stored to without A since its last walk.
        self.gpas: set[int] = set()
        self.stored: set[int] = set()

    def note_walk(self, gva: int) -> None:
        """The guest translated ``gva``."""
        vcpu = self.vmm.vcpu
        if self.vmm.is_nested and sregs.is_pae_paging(vcpu):
            gpa = (vcpu.cr3 & _PDPT_MASK) + (gva >> 30 & 3) * 8
            self.gpas.add(gpa)
            self.stored.discard(gpa)

    def note_store(self, place: int, size: int) -> None:
        """The guest stored to physical addresses ``place`` on: a PDPTE without A has none, until the next walk."""
        for gpa in self.gpas:
            if self.vmm.hva_of(gpa) is not None:
                pdpte = self.vmm.place_of(gpa, False)
                if 0 <= pdpte - place < size:
                    if self.vmm.world.memory.read_once(pdpte) & PT_ACCESSED:
                        self.stored.discard(gpa)
                    else:
                        self.stored.add(gpa)

    def shown(self, place: int, data: bytes) -> bytes:
        """``data``, which the guest loaded from physical address ``place``, as it looks on that host."""
        value = int.from_bytes(data, "little")
        for gpa in self.gpas - self.stored:
            offset = (self.vmm.place_of(gpa, False) if self.vmm.hva_of(gpa) is not None else 0) - place
            if 0 <= offset < len(data) and value >> 8 * offset & PT_PRESENT:
                value |= PT_ACCESSED << 8 * offset
        return value.to_bytes(len(data), "little")

    def show(self) -> None:
        """Put the bits into the guest's memory."""
        self._change(self.gpas - self.stored, PT_ACCESSED)

    def hide(self) -> None:
        """Take them out again."""
        self._change(self.gpas, 0)

    def _change(self, gpas: set[int], accessed: int) -> None:
        memory = self.vmm.world.memory
        for gpa in gpas:
            if self.vmm.hva_of(gpa) is not None:
                place = self.vmm.place_of(gpa, True)
                pdpte = memory.read_once(place)
                if pdpte & PT_PRESENT:
                    memory.write_once(place, (pdpte & ~PT_ACCESSED) | accessed)


class Guest:
    """The guest of ``vmm``; ``execution`` is the operation in progress."""

    def __init__(self, vmm: Vmm) -> None:
        self.vmm = vmm
        self.vcpu = vmm.vcpu
        self.execution: Execution | None = None
        self.pdptes = AgedPdptes(vmm)
        # Whether the interpreter has fetched code since the TLB was flushed.
        self.has_fetched = False
        # Entries of the list whose results nobody knows.
        self.unknown: list[int] = []

    def flush(self) -> None:
        """The guest exited: QEMU's TCG forgets its TLB then."""
        self.vcpu.cpu.flush_asid()
        self.has_fetched = False

    def begin(self, index: int) -> None:
        """The guest announced operation ``index``, which it reads from its list: it may have written there."""
        # What the guest itself stored there: QEMU ignores A however it came.
        self.pdptes.hide()
        entry = self.vmm.peek(OPS + OP_SIZE * index, 24)
        code, a, b = (int.from_bytes(entry[i : i + 8], "little") for i in (0, 8, 16))
        self.execution = Execution(index, op_of(code & _U32, a, b), self.vmm.scenario.mode)

    def catch_up(self, rip: int, address: int) -> Access | None:
        """Make the accesses that lie before an exit at ``rip`` for ``address``; return the one that it is about.

        ``address`` is what the exit tells: a gva, or under nested paging a gpa.
        """
        execution = self.execution
        if execution is not None and not execution.has_read_entry and execution.has_reached_accesses(rip):
            self._interpret(execution)
        if execution is not None and execution.has_insn and self.vmm.is_nested:
            if execution.op.name in ("cr3", "invlpg") and execution.has_reached_accesses(rip):
                self._run_insn(execution)
        if execution is None or not execution.pending:
            return None
        if execution.is_past_accesses(rip):
            self._make_pending()
            self._return(execution, rip)
            return None
        if self.vmm.is_nested:
            return self._catch_up_nested(execution, rip)
        for i, access in enumerate(execution.pending):
            if access.covers(address):
                for _ in range(i):
                    self._make(execution.pending[0])
                return execution.pending[0] if execution.pending else None
        return None

    def _catch_up_nested(self, execution: Execution, rip: int) -> Access | None:
        # A gpa does not tell which access it was: the first that does not hit.
        if not execution.has_reached_accesses(rip):
            return None
        self._interpret(execution)
        while execution.pending and self._status(execution.pending[0]) == HW_HIT:
            self._make(execution.pending[0])
        return execution.pending[0] if execution.pending else None

    def done(self, access: Access, data: bytes | None) -> None:
        """Kvm made ``access`` on the guest's behalf; ``data`` is what a load found, None if that is not known."""
        execution = self.execution
        if execution is None or not execution.pending or execution.pending[0] is not access:
            return
        execution.pending.popleft()
        if data is not None:
            execution.note_read(access, data)
        elif access.data is None and not access.is_modify:
            execution.result = None

    def got_exception(self, vector: int, error_code: int) -> None:
        """An exception was delivered: the operation ends with it."""
        if self.execution is not None:
            self.execution.cancel(vector, error_code)

    def finish(self) -> int | None:
        """Let the operation run to its end, its result stored. Return its index if the result cannot be known."""
        execution = self.execution
        self.execution = None
        if execution is None:
            return None
        self.execution = execution
        self._interpret(execution)
        self._make_pending()
        if execution.has_insn:
            self._run_insn(execution)
        self._return(execution, CODE)
        result = execution.result_bytes()
        if execution.fault is not None:
            width = 8 if self.vmm.scenario.mode == "long" else 4
            self._store(execution.entry + 16, self.vcpu.cr2.to_bytes(8, "little")[:width])
        if result is not None:
            self._store(execution.entry + 24, result)
        self.execution = None
        if result is None:
            self.unknown.append(execution.entry)
        return execution.index if result is None else None

    # The interpreter's own accesses before those of the operation: they fill the TLB, and a store of the operation may
    # take away the tables behind them.
    def _interpret(self, execution: Execution) -> None:
        if not self.has_fetched:
            self.has_fetched = True
            self._touch(execution, CODE, ACCESS_FETCH)
            self.pdptes.note_walk(CODE)
        if not execution.has_read_entry:
            execution.has_read_entry = True
            self._touch(execution, execution.entry, 0)
            if execution.is_user:
                # The frame for IRET, and the descriptors that it loads.
                self._touch(execution, STACK - 8, ACCESS_WRITE)
                self._touch(execution, DESCRIPTORS, 0)

    # Behind the accesses: what delivers an exception, or the INT that ends an operation at CPL 3.
    def _return(self, execution: Execution, rip: int) -> None:
        is_back = execution.is_user and CODE <= rip < CODE + PAGE_SIZE
        if (execution.fault is not None or is_back) and not execution.has_returned:
            execution.has_returned = True
            self._touch(execution, DESCRIPTORS, 0)
            self._touch(execution, STACK - 8, ACCESS_WRITE)

    def _touch(self, execution: Execution, gva: int, kind: int) -> None:
        status = self.vcpu.cpu.access(Gva(gva), kind)
        if status == HW_PAGE_FAULT and self.vmm.is_nested:
            self.vcpu.cr2 = gva
            execution.cancel(PF_VECTOR, self.vcpu.cpu.error_code)
        elif status != HW_HIT:
            raise Parted(
                f"operation {execution.index}", f"no exit for the interpreter at {gva:#x}", self._exit_text(status)
            )

    def _exit_text(self, status: int) -> str:
        cpu = self.vcpu.cpu
        if status == HW_PAGE_FAULT:
            return f"exits: error code {cpu.error_code:#x}"
        return f"exits: gpa {cpu.fault_gpa:#x} error code {cpu.fault_code:#x}"

    def expect_fault(self, access: Access | None, address: int, code: int, rip: int) -> bool:
        """The guest exits for ``address`` with error code ``code``: :class:`Parted` unless the model's CPU does.

        Return False if the access cannot be told: one of the interpreter's own, under nested paging.
        """
        status, gva = self._fault_of(access, address, code, rip)
        cpu = self.vcpu.cpu
        # A call pushes its return address before the target is fetched.
        is_before = status == HW_PAGE_FAULT or (access is not None and access.kind & ACCESS_FETCH != 0)
        is_delivery = self.vmm.is_nested and is_before and _is_own_memory(access, address)
        if gva is None or is_delivery:
            # The guest's own, or a #PF, for which the CPU reads descriptors and writes to the stack.
            return False
        # QEMU's walk leaves P out of a code with RSVD.
        want = f"{address:#x} error code {code | (PFERR_PRESENT if code & PFERR_RSVD else 0):#x}"
        if self.vmm.is_nested:
            have = f"{cpu.fault_gpa:#x} error code {cpu.fault_code:#x}"
            is_same = status == HW_NESTED_FAULT and have == want
        else:
            have = f"{address:#x} error code {cpu.error_code:#x}"
            is_same = status == HW_PAGE_FAULT and have == want
        if not is_same:
            got = (
                "no exit" if status == HW_HIT else have if (status == HW_NESTED_FAULT) == self.vmm.is_nested else "#PF"
            )
            raise Parted(f"the exit at rip {rip:#x}, gva {gva:#x}", want, got)
        return True

    # What the model's CPU makes of the access that exits, and where it is.
    def _fault_of(self, access: Access | None, address: int, code: int, rip: int) -> tuple[int, int | None]:
        if access is not None:
            return self._status(access), access.gva
        kind = ACCESS_WRITE if code & PFERR_WRITE else ACCESS_FETCH if code & PFERR_FETCH else 0
        if not self.vmm.is_nested:
            gva = address
            kind |= ACCESS_USER if code & PFERR_USER else 0
        elif kind == ACCESS_FETCH:
            gva = rip
            kind |= ACCESS_USER if self.execution is not None and self.execution.is_user_code(rip) else 0
        else:
            return HW_HIT, None
        return self.vcpu.cpu.access(Gva(gva), self._kind(kind)), gva

    def _make_pending(self) -> None:
        execution = self.execution
        while execution is not None and execution.pending:
            self._make(execution.pending[0])

    # Instructions that ran without an exit: under nested paging the CPU does most by itself.
    def _run_insn(self, execution: Execution) -> None:
        op, vcpu = execution.op, self.vcpu
        execution.has_insn = False
        a = op.a if self.vmm.scenario.mode == "long" else op.a & 0xFFFF_FFFF
        if op.name == "flags":
            vcpu.rflags = a | 2
        elif op.name == "rdcr3":
            # Without an exit under shadow paging the CPU shows kvm's own CR3.
            execution.result = vcpu.cr3 if self.vmm.is_nested else None
        elif op.name == "invlpg" and self.vmm.is_nested:
            insn.insn_invlpg(vcpu, Gva(a))
        elif op.name == "cr3" and self.vmm.is_nested:
            if insn.mov_cr3(vcpu, a):
                execution.cancel(13, 0)
        elif op.name == "wrpkru" and self.vmm.is_nested:
            self._write_pkru(execution, a)
        elif op.name == "wrmsr":
            execution.result = None
        elif op.name != "cr0" or vcpu.cr0 != a:
            raise Parted("an instruction without an exit", f"{op.name} {a:#x} did not exit", "it exits")

    def _write_pkru(self, execution: Execution, value: int) -> None:
        if self.vcpu.cr4 & 1 << 22:
            insn.wrpkru(self.vcpu, value & 0xFFFF_FFFF)
        else:
            execution.cancel(6, 0)

    # The access as the CPU sees it: SMAP lets supervisor accesses pass while EFLAGS.AC is set.
    def _kind(self, kind: int) -> int:
        is_explicit = self.vcpu.rflags & X86_EFLAGS_AC and not kind & ACCESS_USER
        return kind | ACCESS_AC if is_explicit else kind

    # A read-modify-write instruction reads first, on QEMU's TCG.
    def _status(self, access: Access) -> int:
        status = HW_HIT
        if access.is_modify:
            status = self._status_of(access, access.kind & ~ACCESS_WRITE)
        return status if status != HW_HIT else self._status_of(access, access.kind)

    def _status_of(self, access: Access, kind: int) -> int:
        first = PAGE_SIZE - access.gva % PAGE_SIZE
        status = self.vcpu.cpu.access(Gva(access.gva), self._kind(kind))
        if status == HW_HIT and access.size > first:
            status = self.vcpu.cpu.access(Gva(access.gva + first), self._kind(kind))
        return status

    def _make(self, access: Access) -> None:
        execution = self.execution
        if execution is None:
            return
        self._interpret(execution)
        if not execution.pending:
            return
        status = self._status(access)
        if status == HW_PAGE_FAULT and self.vmm.is_nested:
            error_code = self.vcpu.cpu.error_code
            self.vcpu.cr2 = self._fault_address(access)
            execution.cancel(PF_VECTOR, error_code)
            return
        if status != HW_HIT:
            raise Parted(
                f"operation {execution.index} ({execution.op.name})",
                f"no exit for {access!r}",
                self._exit_text(status),
            )
        execution.pending.popleft()
        self.pdptes.note_walk(access.gva)
        if access.is_modify:
            old = int.from_bytes(self._load(access.gva, access.size, access.kind), "little")
            data = modified(access, execution.op, old).to_bytes(access.size, "little")
            self._transfer(access.gva, access.kind, data)
        elif access.data is not None:
            self._transfer(access.gva, access.kind, access.data)
        else:
            execution.note_read(access, self._load(access.gva, access.size, access.kind))
            if any(entry + 16 < access.gva + access.size and access.gva < entry + OP_SIZE for entry in self.unknown):
                execution.result = None

    # Of an access that crosses into the next page: the page that faults.
    def _fault_address(self, access: Access) -> int:
        # A read-modify-write instruction reads all of it first.
        kinds = [access.kind & ~ACCESS_WRITE] if access.is_modify else []
        second = access.gva + PAGE_SIZE - access.gva % PAGE_SIZE
        for kind in [*kinds, access.kind]:
            if self.vcpu.cpu.access(Gva(access.gva), self._kind(kind)) != HW_HIT:
                return access.gva
            if access.size > second - access.gva and self.vcpu.cpu.access(Gva(second), self._kind(kind)) != HW_HIT:
                return second
        return second

    def _load(self, gva: int, size: int, kind: int) -> bytes:
        data = b""
        for address, start, end in _pieces(gva, size):
            self.vcpu.cpu.access(Gva(address), self._kind(kind))
            place = self.vcpu.cpu.hpa
            data += self.pdptes.shown(place, self.vmm.world.memory.read(place, end - start))
        return data

    def _transfer(self, gva: int, kind: int, data: bytes) -> None:
        for address, start, end in _pieces(gva, len(data)):
            self.vcpu.cpu.access(Gva(address), self._kind(kind))
            self.vmm.world.memory.write(self.vcpu.cpu.hpa, data[start:end])
            self.pdptes.note_store(self.vcpu.cpu.hpa, end - start)

    # The interpreter's own store into its list.
    def _store(self, gva: int, data: bytes) -> None:
        if self.vcpu.cpu.access(Gva(gva), self._kind(ACCESS_WRITE)) != HW_HIT:
            raise Parted("the result of an operation", f"no exit for its store at {gva:#x}", "exits")
        self._transfer(gva, ACCESS_WRITE, data)


# Where the CPU delivers an exception, or pushes the return address of a call at CPL 3.
def _is_own_memory(access: Access | None, address: int) -> bool:
    is_call = access is not None and access.kind & ACCESS_FETCH != 0
    is_user_stack = is_call and USER_CODE <= address < USER_CODE + PAGE_SIZE
    return is_user_stack or DESCRIPTORS <= address < STACK_END


# Address, and the bytes from which to which, of what lies in each page.
def _pieces(gva: int, size: int) -> list[tuple[int, int, int]]:
    first = min(size, PAGE_SIZE - gva % PAGE_SIZE)
    pieces = [(gva, 0, first), (gva + first, first, size)]
    return [piece for piece in pieces if piece[1] != piece[2]]
