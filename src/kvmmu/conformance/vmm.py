# SPDX-License-Identifier: GPL-2.0-only
"""The machine of a scenario, put together as the recorder's VMM does it, and what that VMM does to it later.

Slots get anonymous memory at 2M borders; low memory gets the guest's code, GDT, IDT, TSS and list of operations; the
vCPU gets the CPUID of the transcript's host (QEMU's TCG: 40 physical address bits, no PCID; no PKU without NPT) and
the registers of the scenario's mode.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace

from ..addr import Gpa, Hpa, Hva
from ..errors import KvmIoctlError, RecordingError, UserError
from ..kvm import regions, sregs
from ..kvm.cpuid import FEATURES, CpuFeatures
from ..kvm.mmu import dirty
from ..kvm.regions import UserMemoryRegion
from ..page_types import PAGE_SHIFT, PAGE_SIZE
from ..params import Params
from ..world import World
from .guestcode import BYTES, PLACES
from .scenario import OPCODES, Scenario, SlotLine, number_of

#: How kvm was loaded, by the mode in a file's name.
MODES = {
    "shadow": Params(npt=False),
    "tdp": Params(npt=True),
    "tdplegacy": Params(npt=True, tdp_mmu=False),
    "tdplazy": Params(npt=True, eager_page_split=False),
    "shadownx": Params(npt=False, nx_huge_pages=True),
    "tdpnx": Params(npt=True, nx_huge_pages=True),
    "tdplegacynx": Params(npt=True, tdp_mmu=False, nx_huge_pages=True),
}
#: Physical address bits of the transcripts' host.
HOST_MAXPHYADDR = 40
#: Where the guest's list of operations begins, and the size of an entry.
OPS = 0x4000
OP_SIZE = 32
#: Where the guest's code begins at CPL 0 and CPL 3, and where its stack ends.
CODE, USER_CODE, STACK = 0x1000, 0x8000, 0x3FF0

#: What the CPU itself touches to deliver an exception lies between these.
DESCRIPTORS, STACK_END = 0x2000, 0x4000
_GDT, _IDT, _TSS = DESCRIPTORS, 0x2400, 0x2800
_IDT_ENTRIES = 32
_USER_VECTOR = 30
#: Width of the guest's code by mode.
WIDTHS = {"long": 64, "pae": 32, "pse32": 32, "prot": 32, "real": 16}
_HUGE = 2 << 20
# More than any recorder's host had.
_MAX_MEMORY = 1 << 36
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


def _params_of(mode: str) -> Params:
    if mode not in MODES:
        raise RecordingError(f"mode {mode!r}; known are {', '.join(MODES)}")
    return replace(MODES[mode], host_maxphyaddr=HOST_MAXPHYADDR)


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
    """The world of ``scenario`` with kvm loaded as ``mode``, one of :data:`MODES`.

    :raises RecordingError: a scenario that asks for what the model has not.
    """

    def __init__(self, scenario: Scenario, mode: str) -> None:
        params = _params_of(mode)
        for name, _ in scenario.caps:
            if name != "manual_dirty":
                raise RecordingError(f"{scenario.name}: cap {name}: the model cannot do this")
        self.scenario = scenario
        self.is_nested = params.npt
        size = sum(slot.size for slot in scenario.slots)
        if size > _MAX_MEMORY:
            raise RecordingError(f"{scenario.name}: slots of {size:#x} bytes: a recording has at most {_MAX_MEMORY:#x}")
        # Huge backing needs whole free blocks; kvm's tables and rmaps come from the same frames.
        self.world = World(params, (size >> PAGE_SHIFT) + (64 << 20 >> PAGE_SHIFT))
        for _, flags in scenario.caps:
            dirty.set_manual_protect(self.world.vm, flags)
        self.slots: dict[int, Slot] = {}
        self.world.vm.mm.table.has_huge_zero = True
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
        mode = self.scenario.mode
        is_long = mode == "long"
        code, user_code = BYTES[WIDTHS[mode]]
        self.poke(CODE, code)
        self.poke(USER_CODE, user_code)
        self._poke_words(_GDT, [*(_LONG_GDT if is_long else _FLAT_GDT), *_TSS_WORDS])
        if mode != "real":
            self._write_idt(CODE + PLACES[WIDTHS[mode]]["vec"], is_long)
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

    def act(self, words: tuple[str, ...]) -> str:
        """Do host action ``words``. One that changes a slot only says so: its own mark follows, then it is installed.

        Return what the VMM notes about it: what an action that looks has found, the errno of one that failed ("": no
        note). A failed action ends nothing.

        :raises RecordingError: an action that the model has not.
        """
        action = _ACTIONS.get(words[0])
        if action is None:
            raise RecordingError(f"{self.scenario.name}: host {' '.join(words)}: the model cannot do this")
        return action(self, words[1:])

    def _range(self, words: tuple[str, ...]) -> tuple[Hva, Hva] | None:
        # Where the range is in the process, as far as it lies in its slot: behind that is memory of the VMM's own.
        gpa, size = number_of(words[0]), number_of(words[1])
        for slot in self.slots.values():
            if slot.is_used and slot.gpa <= gpa < slot.gpa + slot.size:
                start = slot.hva + gpa - slot.gpa
                return Hva(start), Hva(min(start + -(-size // PAGE_SIZE) * PAGE_SIZE, slot.hva + slot.size))
        return None

    # The parts of a range where something is mapped.
    def _mapped(self, start: Hva, end: Hva) -> list[tuple[Hva, Hva]]:
        parts: list[tuple[Hva, Hva]] = []
        for vma in self.world.mm.vmas:
            first, last = max(start, vma.start), min(end, vma.end)
            if first < last and parts and parts[-1][1] == first:
                parts[-1] = (parts[-1][0], last)
            elif first < last:
                parts.append((first, last))
        return parts


#: How the notes begin that :meth:`Vmm.act` returns.
NOTES = ("madvise ", "mprotect ", "remap ", "peek8 ", "nrmmu ", "set ", "cleardirty ", "translate ", "sh ")


# madvise() goes on behind a hole and then says that there was one. An address of no slot is a null pointer.
def _madvise(vmm: Vmm, words: tuple[str, ...], advise: Callable[[Hva, int], None]) -> str:
    size = number_of(words[1])
    place = vmm._range(words)
    if number_of(words[0]) % PAGE_SIZE:
        return f"madvise errno={errno.EINVAL}"
    if place is None:
        return f"madvise errno={errno.ENOMEM}" if size else ""
    parts = vmm._mapped(*place)
    for start, end in parts:
        advise(start, end - start)
    return "" if parts == [place] or not size else f"madvise errno={errno.ENOMEM}"


def _dontneed(vmm: Vmm, words: tuple[str, ...]) -> str:
    return _madvise(vmm, words, vmm.world.mm.dontneed)


def _thp(vmm: Vmm, words: tuple[str, ...]) -> str:
    return _madvise(vmm, words, lambda start, size: vmm.world.mm.allow_huge(start, size, 2))


def _nothp(vmm: Vmm, words: tuple[str, ...]) -> str:
    return _madvise(vmm, words, lambda start, size: vmm.world.mm.allow_huge(start, size, 1))


# New memory in the place of old. An address of no slot is page 0 of the VMM, which may have it.
def _remap(vmm: Vmm, words: tuple[str, ...]) -> str:
    if number_of(words[0]) % PAGE_SIZE or not number_of(words[1]):
        return f"remap errno={errno.EINVAL}"
    place = vmm._range(words)
    if place is not None:
        vmm.world.mm.mmap_fixed(place[0], place[1] - place[0])
    return ""


def _munmap(vmm: Vmm, words: tuple[str, ...]) -> str:
    place = vmm._range(words)
    if place is not None and vmm._mapped(*place):
        vmm.world.mm.munmap(place[0], place[1] - place[0])
    return ""


# mprotect() stops at a hole.
def _mprotect(vmm: Vmm, words: tuple[str, ...]) -> str:
    protection = number_of(words[2])
    if not protection & 1:
        raise RecordingError(f"{vmm.scenario.name}: host mprotect to {protection}: the model cannot do this")
    if number_of(words[0]) % PAGE_SIZE:
        return f"mprotect errno={errno.EINVAL}"
    place = vmm._range(words)
    parts = vmm._mapped(*place) if place is not None else []
    if place is None or not parts or parts[0][0] != place[0]:
        return f"mprotect errno={errno.ENOMEM}"
    start, end = parts[0]
    vmm.world.mm.mprotect(start, end - start, protection & 2 != 0)
    return "" if parts == [place] else f"mprotect errno={errno.ENOMEM}"


def _poke8(vmm: Vmm, words: tuple[str, ...]) -> str:
    vmm.poke(number_of(words[0]), number_of(words[1]).to_bytes(8, "little"))
    return ""


def _peek8(vmm: Vmm, words: tuple[str, ...]) -> str:
    gpa = number_of(words[0])
    return f"peek8 {gpa:x} = {int.from_bytes(vmm.peek(gpa, 8), 'little'):x}"


def _setflags(vmm: Vmm, words: tuple[str, ...]) -> str:
    vmm.slots[number_of(words[0])].flags = number_of(words[1])
    return ""


def _move(vmm: Vmm, words: tuple[str, ...]) -> str:
    vmm.slots[number_of(words[0])].gpa = number_of(words[1])
    return ""


def _delete(vmm: Vmm, words: tuple[str, ...]) -> str:
    vmm.slots[number_of(words[0])].is_used = False
    return ""


def _restore(vmm: Vmm, words: tuple[str, ...]) -> str:
    vmm.slots[number_of(words[0])].is_used = True
    return ""


def _nrmmu(vmm: Vmm, words: tuple[str, ...]) -> str:
    try:
        regions.set_nr_mmu_pages(vmm.world.vm, number_of(words[0]))
    except KvmIoctlError as error:
        return f"nrmmu errno={error.errno}"
    return ""


def _sreg(vmm: Vmm, words: tuple[str, ...]) -> str:
    vcpu = vmm.vcpu
    values = {"cr0": vcpu.cr0, "cr3": vcpu.cr3, "cr4": vcpu.cr4, "efer": vcpu.efer}
    if words[0] in values:
        values[words[0]] = number_of(words[1])
    try:
        sregs.set_sregs(vcpu, **values)
    except KvmIoctlError as error:
        return f"set {words[0]} errno={error.errno}"
    return ""


def _translate(vmm: Vmm, words: tuple[str, ...]) -> str:
    gva = number_of(words[0])
    gpa = vmm.world.translate(vmm.vcpu, gva)
    return f"translate {gva:x} -> valid={int(gpa is not None)} {(1 << 64) - 1 if gpa is None else gpa:x}"


def _look(vmm: Vmm, words: tuple[str, ...]) -> str:
    """The VMM prints what it is compared with elsewhere."""
    return ""


def _cleardirty(vmm: Vmm, words: tuple[str, ...]) -> str:
    slot_id, first, pages = map(number_of, words)
    try:
        dirty.clear_dirty_log(vmm.world.vm, slot_id, first, pages, b"\xff" * (-(-pages // 64) * 8))
    except KvmIoctlError as error:
        return f"cleardirty errno={error.errno}"
    return ""


_ACTIONS: dict[str, Callable[[Vmm, tuple[str, ...]], str]] = {
    "cleardirty": _cleardirty,
    "delete": _delete,
    "dontneed": _dontneed,
    "dumpspt": _look,
    "getdirty": _look,
    "move": _move,
    "mprotect": _mprotect,
    "munmap": _munmap,
    "nothp": _nothp,
    "nrmmu": _nrmmu,
    "peek8": _peek8,
    "poke8": _poke8,
    "remap": _remap,
    "restore": _restore,
    "setflags": _setflags,
    "sreg": _sreg,
    "stats": _look,
    "thp": _thp,
    "translate": _translate,
}
