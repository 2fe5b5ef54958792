# SPDX-License-Identifier: GPL-2.0-only
"""Whether a record that the model does not play as the machine did is a mismatch.

Where the guest edits entries that its TLB may hold and does not flush, two machines may translate differently and both
be right. Only then :mod:`kvmmu.replay.lawful` is asked: if both translations are lawful, the access is counted in
``tlb_differences``, and stores go where the machine's went; else it is a mismatch.
"""

from __future__ import annotations

from typing import Any

from ..addr import Address, gpa_to_gfn
from ..hw.bits import ACCESS_WRITE
from ..kvm.guestmem import gpa_to_hpa
from ..kvm.memslots import Memslots
from ..kvm.mmu.gptewrite import unprotect_gfn
from ..kvm.mmu.track import is_anything_shadowed
from ..kvm.outcome import RUN_FAULT
from ..kvm.vm import Vm
from ..record.format import K_STORE
from ..record.reader import Reader
from .lawful import Judge
from .result import MODEL_EMULATED, MODEL_FAULT


class Referee:
    """Counts what is wrong with the records of ``reader``, which are played into ``machine``."""

    __slots__ = (
        "bare",
        "judge",
        "machine",
        "memory",
        "mismatches",
        "problem",
        "reader",
        "slots",
        "tlb_differences",
        "vm",
    )

    def __init__(self, reader: Reader, machine: Any) -> None:
        self.reader = reader
        self.machine = machine
        self.bare = machine.vm is None
        self.memory = machine.memory
        self.vm: Vm | None = machine.vm
        self.mismatches = 0
        self.tlb_differences = 0
        self.problem = ""
        self.judge: Judge | None = None
        self.slots: Memslots | None = None
        self.note_slots()

    def close(self) -> None:
        """Close what :mod:`kvmmu.replay.lawful` reads, if it was asked; the reader is the caller's."""
        if self.judge is not None:
            self.judge.past.close()

    def note_slots(self) -> int:
        """Look up the memslots that recorded gpas are translated by; the player says when they changed. Return 0."""
        if self.vm is not None:
            self.slots = self.vm.slots_of(0)
        if self.judge is not None:
            self.judge.forget_homes()
        return 0

    def fail(self, problem: str) -> int:
        """Note a mismatch: what is wrong with the record in hand."""
        self.problem = problem
        self.mismatches += 1
        return 0

    def disagree(self, how: int, where: Address, problem: str) -> bool:
        """Model and machine translate the access in hand differently: are both right?

        The model ended at hpa ``where`` (MODEL_HIT), with an exception (MODEL_FAULT), or kvm made the access at gpa
        ``where`` (MODEL_EMULATED). If both are lawful, count that, let the machine's store happen, and return True;
        else note the mismatch ``problem``.
        """
        if not self.is_lawful(how, where):
            self.fail(problem)
            return False
        self.tlb_differences += 1
        if how == MODEL_EMULATED and self.reader.access & ACCESS_WRITE:
            # What kvm stored where the machine did not: tables get back what they held.
            held = self.judge.past.content(where, min(self.reader.size or 8, 4096 - (where & 0xFFF)))  # type: ignore[union-attr]  # is_lawful() made it
            if held is not None:
                self.store_unseen(where, held)
        if self.reader.kind == K_STORE:
            self.store_unseen(self.reader.gpa, self.recorded_bytes())
        return True

    def is_lawful(self, how: int, where: Address) -> bool:
        """Whether the machine and the model, which ended as :meth:`disagree` says, both did what the CPU may do."""
        if self.judge is None:
            self.judge = Judge(self.reader.path, self.reader.header)
        judge, reader = self.judge, self.reader
        if how == MODEL_FAULT and judge.permits_now(reader):
            return False
        if not judge.permits(reader, reader.gpa):
            return False
        if how == MODEL_FAULT:
            return True
        if how == MODEL_EMULATED:
            return where != reader.gpa and judge.permits(reader, where)
        return judge.permits_home(reader, where, self.read_home)

    def read_home(self, gpa: int) -> Address:
        """As :meth:`home_of`, for whoever is not compiled."""
        return self.home_of(gpa)

    def home_of(self, gpa: Address) -> Address:
        """Where ``gpa`` is in physical memory; NO_HPA: in no memory."""
        if self.bare:
            return gpa
        return gpa_to_hpa(self.slots, self.vm.mm, gpa, False)  # type: ignore[union-attr, arg-type]  # not on bare CPUs

    def recorded_bytes(self) -> memoryview:
        """What the record in hand (STORE, PAGE) holds, where it lies."""
        return self.reader.raw[self.reader.content : self.reader.content + self.reader.content_size]

    def store_unseen(self, gpa: Address, data: bytes | memoryview) -> int:
        """Store as a device would: not by an access of the guest's. kvm must not go on mirroring what changes."""
        hpa = gpa if self.bare else self.machine.hpa_of(gpa)
        if self.vm is not None and is_anything_shadowed(self.vm) and self.machine.differs(hpa, bytes(data)):
            unprotect_gfn(self.vm, gpa_to_gfn(gpa))
        return self.memory.write(hpa, data)  # type: ignore[no-any-return]  # memory is known when the machine is

    def fail_exception(self, status: int, what: str) -> int:
        """The access ended without a hit and without emulation (``status``, a RUN_* word)."""
        problem = f"the guest gets an exception for {what} that the machine made"
        if status == RUN_FAULT:
            self.disagree(MODEL_FAULT, 0, problem)
            return 0
        return self.fail(problem)
