# SPDX-License-Identifier: GPL-2.0-only
"""The machine of a scenario, put together as the recorder's VMM does it, and what that VMM does to it later.

Slots get anonymous memory at 2M borders; low memory gets the guest's GDT, IDT, TSS and list of operations; the vCPU
gets the CPUID of the transcript's host (QEMU's TCG: 40 physical address bits, no PCID; no PKU without NPT) and the
registers of the scenario's mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..addr import Gpa, Hpa, Hva
from ..errors import RecordingError, UserError
from ..kvm import regions, sregs
from ..kvm.cpuid import FEATURES, CpuFeatures
from ..kvm.regions import UserMemoryRegion
from ..page_types import PAGE_SHIFT, PAGE_SIZE
from ..params import Params
from ..world import World
from .scenario import OPCODES, Scenario, SlotLine, number_of

#: Physical address bits of the transcripts' host.
HOST_MAXPHYADDR = 40
#: Where the guest's list of operations begins, and the size of an entry.
OPS = 0x4000
OP_SIZE = 32
#: Where the guest's code begins at CPL 0 and CPL 3, and where its stack ends.
CODE, USER_CODE, STACK = 0x1000, 0x8000, 0x3FF0

_GDT, _IDT, _TSS = 0x2000, 0x2400, 0x2800
_IDT_ENTRIES = 32
_USER_VECTOR = 30
#: Offsets of the exception stubs in the guest's code, by width.
_VECTORS = {"long": 0x160, "pae": 0x141, "pse32": 0x141, "prot": 0x141}
_HUGE = 2 << 20
# Null, code, data, user code, user data, TSS.
_LONG_GDT = [0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF]
_FLAT_GDT = [0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF]
_TSS_WORDS = [0x0000_8B00_2800_0067, 0]
#: Registers that KVM_SET_SREGS gets, by mode: cr0, cr4, efer.
_REGISTERS = {
    "long": (0x8001_0011, 0x20, 0xD00),
    "pae": (0x8001_0011, 0x20, 0),
    "pse32": (0x8001_0011, 0x10, 0),
    "prot": (0x11, 0, 0),
    "real": (0x10, 0, 0),
}
_CR3 = 0x10000


class Slot:
    """A memslot of the VMM: where its memory is, whether it is installed now."""

    __slots__ = ("flags", "gpa", "hva", "is_used", "size")

    def __init__(self, line: SlotLine, hva: Hva) -> None:
        self.gpa = line.gpa
        self.size = line.size
        self.flags = line.flags
        self.hva = hva
        self.is_used = True


class Vmm:
    """The world of ``scenario`` with kvm loaded as ``mode``: shadow (``npt=0``) or tdplegacy (``npt=1 tdp_mmu=0``).

    :raises RecordingError: a scenario that asks for what the model has not.
    """

    def __init__(self, scenario: Scenario, mode: str) -> None:
        if mode not in ("shadow", "tdplegacy"):
            raise RecordingError(f"mode {mode!r}: transcripts of shadow and tdplegacy can be played")
        for name, _ in scenario.caps:
            raise RecordingError(f"{scenario.name}: cap {name}: the model cannot do this")
        self.scenario = scenario
        self.is_nested = mode == "tdplegacy"
        params = Params(npt=self.is_nested, host_maxphyaddr=HOST_MAXPHYADDR)
        size = sum(slot.size for slot in scenario.slots)
        # Huge backing needs whole free blocks; kvm's tables and rmaps come from the same frames.
        self.world = World(params, (size >> PAGE_SHIFT) + (64 << 20 >> PAGE_SHIFT))
        self.slots: dict[int, Slot] = {}
        for line in scenario.slots:
            self._add_slot(line)
        for poke in scenario.memory:
            self.poke(poke.gpa, poke.value.to_bytes(8, "little")[: poke.size])
        self._write_low_memory()
        self.vcpu = self.world.create_vcpu(self._features())
        self._set_registers()

    # Building.

    def _add_slot(self, line: SlotLine) -> None:
        mm = self.world.mm
        hva = mm.mmap(line.size, "anonymous", 2 if line.is_huge else 1, line.is_populated, align=_HUGE)
        self.slots[line.id] = Slot(line, hva)
        self.install_slot(line.id)

    def _write_low_memory(self) -> None:
        # The code itself is not needed: the guest's operations are known. Its pages are written to, which backs them.
        mode = self.scenario.mode
        is_long = mode == "long"
        self.poke(CODE, bytes(16))
        if mode != "real":
            self.poke(USER_CODE, bytes(16))
        self._poke_words(_GDT, [*(_LONG_GDT if is_long else _FLAT_GDT), *_TSS_WORDS])
        if mode != "real":
            self._write_idt(CODE + _VECTORS[mode], is_long)
        if is_long:
            self._poke_words(_TSS + 4, [STACK])
        else:
            self._poke_words(_TSS + 4, [STACK | 0x10 << 32])
        for i, op in enumerate([*self.scenario.ops, None]):
            entry = [OPCODES[op.name], op.a, op.b] if op else [0, 0, 0]
            self._poke_words(OPS + OP_SIZE * i, entry)

    def _write_idt(self, vectors: int, is_long: bool) -> None:
        for i in range(_IDT_ENTRIES):
            handler = vectors + 16 * i
            kind = 0xEE00 if i == _USER_VECTOR else 0x8E00
            gate = (handler & 0xFFFF) | 8 << 16 | kind << 32 | (handler >> 16 & 0xFFFF) << 48
            if is_long:
                self._poke_words(_IDT + 16 * i, [gate, 0])
            else:
                self._poke_words(_IDT + 8 * i, [gate])

    def _poke_words(self, gpa: int, words: list[int]) -> None:
        self.poke(gpa, b"".join(word.to_bytes(8, "little") for word in words))

    def _features(self) -> CpuFeatures:
        absent = dict.fromkeys(self.scenario.without_cpuid & {row.name for row in FEATURES}, False)
        return replace(CpuFeatures(HOST_MAXPHYADDR, pcid=False, la57=False), **absent)

    def _set_registers(self) -> None:
        cr0, cr4, efer = _REGISTERS[self.scenario.mode]
        given = self.scenario.registers
        sregs.set_sregs(
            self.vcpu, given.get("cr0", cr0), given.get("cr3", _CR3), given.get("cr4", cr4), given.get("efer", efer)
        )
        self.vcpu.rip = CODE
        self.vcpu.fetches_insns = True

    # The VMM's own accesses.

    def hva_of(self, gpa: int) -> Hva | None:
        """Where the VMM has the byte ``gpa``; None: in no slot."""
        for slot in self.slots.values():
            if slot.is_used and slot.gpa <= gpa < slot.gpa + slot.size:
                return Hva(slot.hva + gpa - slot.gpa)
        return None

    def place_of(self, gpa: int, write: bool) -> Hpa:
        """The frame's byte behind ``gpa`` for an access of the VMM, which faults it in.

        :raises UserError: no slot, or nothing mapped there.
        """
        hva = self.hva_of(gpa)
        place = self.world.mm.user_access(hva, write) if hva is not None else None
        if place is None or place == (1 << 64) - 1:
            raise UserError(f"{self.scenario.name}: gpa {gpa:#x}: the VMM has no memory there")
        return place

    def poke(self, gpa: int, data: bytes) -> None:
        """Store ``data`` at ``gpa`` as the VMM does, in whatever slot that is."""
        while data:
            chunk = min(len(data), PAGE_SIZE - gpa % PAGE_SIZE)
            self.world.memory.write(self.place_of(gpa, True), data[:chunk])
            gpa, data = gpa + chunk, data[chunk:]

    def peek(self, gpa: int, size: int) -> bytes:
        """``size`` bytes at ``gpa``, within one page, as the VMM sees them."""
        return self.world.memory.read(self.place_of(gpa, False), size)

    # What the VMM does while the guest runs.

    def install_slot(self, slot_id: int) -> None:
        """KVM_SET_USER_MEMORY_REGION of slot ``slot_id`` as the VMM wants it to be now.

        :raises KvmIoctlError: what KVM refuses.
        """
        slot = self.slots[slot_id]
        size = slot.size if slot.is_used else 0
        self.world.set_region(UserMemoryRegion(slot_id, slot.flags, Gpa(slot.gpa), size, slot.hva))

    def act(self, words: tuple[str, ...]) -> None:
        """Do host action ``words``. One that changes a slot only says so: its own mark follows, then it is installed.

        :raises RecordingError: an action that the model has not.
        """
        action = _ACTIONS.get(words[0])
        if action is None:
            raise RecordingError(f"{self.scenario.name}: host {' '.join(words)}: the model cannot do this")
        action(self, words[1:])

    def _range(self, words: tuple[str, ...]) -> tuple[Hva, int]:
        gpa, size = number_of(words[0]), number_of(words[1])
        hva = self.hva_of(gpa)
        if hva is None:
            raise RecordingError(f"{self.scenario.name}: host action at gpa {gpa:#x}, which is in no slot")
        return hva, size


def _dontneed(vmm: Vmm, words: tuple[str, ...]) -> None:
    vmm.world.mm.dontneed(*vmm._range(words))


def _munmap(vmm: Vmm, words: tuple[str, ...]) -> None:
    vmm.world.mm.munmap(*vmm._range(words))


def _mprotect(vmm: Vmm, words: tuple[str, ...]) -> None:
    vmm.world.mm.mprotect(*vmm._range(words), number_of(words[2]) & 2 != 0)


def _poke8(vmm: Vmm, words: tuple[str, ...]) -> None:
    vmm.poke(number_of(words[0]), number_of(words[1]).to_bytes(8, "little"))


def _setflags(vmm: Vmm, words: tuple[str, ...]) -> None:
    vmm.slots[number_of(words[0])].flags = number_of(words[1])


def _move(vmm: Vmm, words: tuple[str, ...]) -> None:
    vmm.slots[number_of(words[0])].gpa = number_of(words[1])


def _delete(vmm: Vmm, words: tuple[str, ...]) -> None:
    vmm.slots[number_of(words[0])].is_used = False


def _restore(vmm: Vmm, words: tuple[str, ...]) -> None:
    vmm.slots[number_of(words[0])].is_used = True


def _nrmmu(vmm: Vmm, words: tuple[str, ...]) -> None:
    regions.set_nr_mmu_pages(vmm.world.vm, number_of(words[0]))


def _sreg(vmm: Vmm, words: tuple[str, ...]) -> None:
    vcpu = vmm.vcpu
    values = {"cr0": vcpu.cr0, "cr3": vcpu.cr3, "cr4": vcpu.cr4, "efer": vcpu.efer}
    if words[0] in values:
        values[words[0]] = number_of(words[1])
    sregs.set_sregs(vcpu, **values)


def _look(vmm: Vmm, words: tuple[str, ...]) -> None:
    """The VMM only looks: nothing changes."""


_ACTIONS: dict[str, Callable[[Vmm, tuple[str, ...]], None]] = {
    "delete": _delete,
    "dontneed": _dontneed,
    "dumpspt": _look,
    "getdirty": _look,
    "move": _move,
    "mprotect": _mprotect,
    "munmap": _munmap,
    "nrmmu": _nrmmu,
    "peek8": _look,
    "poke8": _poke8,
    "restore": _restore,
    "setflags": _setflags,
    "sreg": _sreg,
    "stats": _look,
}
