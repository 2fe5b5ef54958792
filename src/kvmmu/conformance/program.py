# SPDX-License-Identifier: GPL-2.0-only
"""The recorder's guest program: which accesses each operation makes, in order.

The guest interprets a list of operations. For each it announces the entry by an OUT, reads it, makes the operation's
accesses (at CPL 3 for names that begin with ``u``), and stores the result; a fault stores vector, error code and CR2
instead. Operations beyond memory accesses (INVLPG, control registers) are instructions that exit to kvm, or not.
"""

from __future__ import annotations

from collections import deque

from ..hw.bits import ACCESS_FETCH, ACCESS_USER, ACCESS_WRITE
from ..page_types import PAGE_SIZE
from .guestcode import PLACES
from .scenario import OPCODES, Op
from .vmm import CODE, OP_SIZE, OPS, USER_CODE, WIDTHS

_U32 = 0xFFFF_FFFF
_RET = 0xC3

#: Operations that are an instruction beyond memory accesses.
INSTRUCTIONS = ("invlpg", "cr3", "cr0", "cr4", "wrmsr", "wrpkru", "rdcr3", "flags")
# The interpreter has read the operation's entry when it is here.
_ACCESSES = 0x18
_PLAIN = {"r1": 1, "r4": 4, "r8": 8, "w1": 1, "w4": 4, "w8": 8}
#: Vector and flag of a result that is a fault.
_FAULT_FLAG = 0xE000_0000
# Codes from here on are carried out at CPL 3.
_USER = 0x20
_NAMES = {code: name for name, code in OPCODES.items()}


class Access:
    """One access of an operation: a store of ``data``, or with None a load (or fetch) of ``size`` bytes.

    ``is_modify``: a load, then a store of what ``modified()`` makes of it.
    """

    __slots__ = ("data", "gva", "is_modify", "kind", "size")

    def __init__(self, gva: int, kind: int, size: int, data: bytes | None = None, is_modify: bool = False) -> None:
        self.gva = gva
        self.kind = kind
        self.size = size
        self.data = data
        self.is_modify = is_modify

    def covers(self, address: int) -> bool:
        """Whether the access touches ``address``."""
        return self.gva <= address < self.gva + self.size

    def __repr__(self) -> str:
        what = "fetch" if self.kind & ACCESS_FETCH else "store" if self.kind & ACCESS_WRITE else "load"
        return f"<Access {what} of {self.size} bytes at {self.gva:#x}>"


class Execution:
    """One operation while it runs: accesses still to be made, the result so far.

    ``result`` is the word that will be stored, None once it cannot be known; ``fault`` is (vector, error code) after
    an exception; ``has_read_entry``: the interpreter knows which operation it is; ``has_returned``: it is back in its
    loop, by an exception or an INT.
    """

    __slots__ = (
        "entry",
        "fault",
        "has_insn",
        "has_read_entry",
        "has_returned",
        "index",
        "mode",
        "op",
        "pending",
        "result",
    )

    def __init__(self, index: int, op: Op, mode: str) -> None:
        self.index = index
        self.op = op
        self.mode = mode
        self.entry = OPS + OP_SIZE * index
        self.pending = deque(accesses_of(op, mode))
        self.result: int | None = _initial_result(op, mode)
        self.fault: tuple[int, int] | None = None
        self.has_insn = op.name in INSTRUCTIONS
        self.has_read_entry = False
        self.has_returned = False

    @property
    def is_user(self) -> bool:
        """Whether the operation's accesses are made at CPL 3."""
        return self.op.name.startswith("u")

    def is_user_code(self, rip: int) -> bool:
        """Whether the guest is at CPL 3 when it is at ``rip``."""
        return self.is_user and not CODE <= rip < CODE + PAGE_SIZE

    def has_reached_accesses(self, rip: int) -> bool:
        """Whether the guest, now at ``rip``, makes the operation's accesses, or has made them."""
        if self.is_user:
            return not CODE <= rip < CODE + PAGE_SIZE and rip != USER_CODE
        return not CODE <= rip < CODE + _ACCESSES

    def is_past_accesses(self, rip: int) -> bool:
        """Whether the guest, now at ``rip``, has made the operation's accesses."""
        places = PLACES[WIDTHS[self.mode]]
        if CODE <= rip < CODE + PAGE_SIZE:
            return rip >= CODE + places["done"] and not self._is_user_entry(rip)
        return self.is_user and USER_CODE + places["user_end"] <= rip < USER_CODE + PAGE_SIZE

    # The way to CPL 3 lies behind the store of the result, in front of the exception stubs.
    def _is_user_entry(self, rip: int) -> bool:
        start = CODE + PLACES[WIDTHS[self.mode]]["user"]
        return self.is_user and bool(self.pending) and start <= rip < start + 0x1D

    def cancel(self, vector: int, error_code: int) -> None:
        """The guest got an exception: what was left to do is not done."""
        self.pending.clear()
        self.has_insn = False
        self.result = None
        self.fault = (vector, error_code)

    def note_read(self, access: Access, data: bytes) -> None:
        """``access`` found ``data``: it becomes the result, or (a call's target) the code that runs next."""
        if access.kind & ACCESS_FETCH:
            # A call's target, unless it is the stub.
            if not self.pending and self.op.name.lstrip("u") == "x" and data[0] != _RET:
                self.result = None
        elif self.op.name.lstrip("u") in ("r1", "r4", "r8"):
            self.result = int.from_bytes(data, "little")

    def result_bytes(self) -> bytes | None:
        """What the guest stores as the result, from offset 24 of the entry on; None: unknown."""
        if self.fault is not None:
            vector, error_code = self.fault
            return error_code.to_bytes(4, "little") + (vector | _FAULT_FLAG).to_bytes(4, "little")
        return None if self.result is None else self.result.to_bytes(8, "little")


def op_of(code: int, a: int, b: int) -> Op:
    """The operation that the interpreter takes the entry (code, a, b) for; one without a name does nothing."""
    return Op(_NAMES.get(code, f"{'u' if code >= _USER else ''}{code}"), a, b)


def modified(access: Access, op: Op, old: int) -> int:
    """What a read-modify-write ``access`` of ``op`` stores over ``old``."""
    value = old ^ 0x20 if op.name == "ptloop" else old + op.b
    return value & ((1 << 8 * access.size) - 1)


def accesses_of(op: Op, mode: str) -> list[Access]:
    """The accesses of ``op``, and at CPL 3 the fetch that precedes them.

    The interpreter's others (code at CPL 0, list, stack, descriptors) are left out.
    """
    if op.name.startswith("u"):
        stub = Access(USER_CODE, ACCESS_USER | ACCESS_FETCH, 1)
        return [stub, *_accesses_by(op, op.name[1:], ACCESS_USER, mode)]
    return _accesses_by(op, op.name, 0, mode)


def _accesses_by(op: Op, name: str, user: int, mode: str) -> list[Access]:
    word = 8 if mode == "long" else 4
    a, b = (op.a, op.b) if mode == "long" else (op.a & _U32, op.b & _U32)
    if name in _PLAIN:
        size = min(_PLAIN[name], word)
        if name[0] == "r":
            return [Access(a, user, size)]
        return [Access(a, user | ACCESS_WRITE, size, (b & ((1 << 8 * size) - 1)).to_bytes(size, "little"))]
    if name == "x":
        return [Access(a, user | ACCESS_FETCH, 1)]
    if name == "wloop":
        return [Access(a + i * PAGE_SIZE, ACCESS_WRITE, 1, b"\1") for i in range(b)]
    if name == "rloop":
        return [Access(a + i * PAGE_SIZE, 0, 1) for i in range(b)]
    if name == "ptloop":
        return [Access(a, ACCESS_WRITE, 4, None, True) for _ in range(b)]
    if name == "add":
        return [Access(a, user | ACCESS_WRITE, 4, None, True)]
    return []


# The accumulator at the end: the opcode, unless the operation leaves something else there.
def _initial_result(op: Op, mode: str) -> int | None:
    if op.name in ("w1", "uw1"):
        return op.b & _U32
    if op.name == "wrmsr":
        return op.b & _U32
    if op.name == "wrpkru":
        return op.a & _U32
    if op.name in ("rdcr3", "vmrun"):
        return None
    if op.name not in OPCODES:
        return int(op.name.lstrip("u")) - _USER
    return OPCODES[op.name] & 0x1F
