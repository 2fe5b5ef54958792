# SPDX-License-Identifier: GPL-2.0-only
"""Encode records into the columns of a block.

The counterpart of :mod:`~kvmmu.record.reader`. An :class:`Encoder` fills one block's
:mod:`~kvmmu.record.columns`; whoever owns it takes the block when it is ``full`` and writes it
(:mod:`~kvmmu.record.writer`). :meth:`Encoder.feed` takes the plugin's own stream, which is fixed in ``plugin.c`` and
never stored.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple, NoReturn

from ..errors import RecordingError
from ..page_types import ONE, U64
from .columns import Columns
from .format import (
    ACCESS_BITS,
    BLOCK_RECORDS,
    FED_ALL,
    FED_CONTROL,
    FED_FULL,
    K_ACCESS,
    K_INVLPG,
    K_INVPCID,
    K_MAP,
    K_MMIO,
    K_PAGE,
    K_REGS,
    K_STORE,
    KIND_NAMES,
    RAW_CONTROL,
    RAW_HEAD,
    STATE_SMM,
    W_INIT,
)


class Registers(NamedTuple):
    """What a walk obeys, as a REGS record has it."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    pkru: int = 0


class Encoder:
    """One block being filled, for a machine of ``cpus`` CPUs.

    ``records`` is their number, ``full`` says that the block must be taken before the next record, ``counts`` counts
    by kind and over all blocks; ``smm`` (0 or 1) marks the records from here on as made in system management mode.
    Every method raises :class:`RecordingError` for a record that the format cannot hold.
    """

    __slots__ = ("columns", "counts", "cpus", "full", "records", "regs", "smm", "stopped", "words")

    def __init__(self, cpus: int) -> None:
        if not 1 <= cpus <= 4096:
            raise RecordingError(f"a recording of {cpus} CPUs: there must be 1 to 4096")
        self.cpus = cpus
        self.columns = Columns()
        self.regs = memoryview(array("Q", [0]) * (5 * cpus))
        self.counts = memoryview(array("Q", [0]) * 9)
        self.words = memoryview(array("Q", [0]) * 5)
        self.stopped = 0
        self.smm = 0
        self._reset()

    def access(self, cpu: int, access: int, gva: int, gpa: int) -> int:
        """An access of ``cpu`` that the machine translated to ``gpa``."""
        self._put_token(K_ACCESS, cpu, access, gva, gpa)
        return 0

    def store(self, cpu: int, access: int, gva: int, gpa: int, data: bytes) -> int:
        """An access that stored ``data`` (1 to 64 bytes, in one page) to a page of an earlier :meth:`snapshot`."""
        self._check_data(len(data), gpa)
        self._put_token(K_STORE, cpu, access, gva, gpa)
        self._put_data(K_STORE, data, 0, len(data))
        return 0

    def mmio(self, cpu: int, access: int, gva: int, gpa: int, data: bytes) -> int:
        """An access to a device: ``data`` is what was read or written (1 to 64 bytes, in one page)."""
        self._check_data(len(data), gpa)
        self._put_token(K_MMIO, cpu, access, gva, gpa)
        self._put_data(K_MMIO, data, 0, len(data))
        return 0

    def snapshot(self, cpu: int, gpa: int, data: bytes) -> int:
        """The 4096 bytes of the table page at ``gpa``, as ``cpu`` found them."""
        if gpa & 4095 or len(data) != 4096:
            self._refuse(f"a snapshot of {len(data)} bytes at gpa {gpa:#x}, must be one page")
        self._put_page(cpu, gpa, data, 0)
        return 0

    def set_regs(self, cpu: int, what: int, registers: Registers) -> int:
        """The registers of ``cpu`` after the change that ``what`` (``W_*``) made."""
        if what < 1 or what > W_INIT:
            self._refuse(f"registers changed by the unknown cause {what}")
        for index in range(5):
            self.words[index] = registers[index]
        self._put_regs(cpu, what)
        return 0

    def invlpg(self, cpu: int, gva: int) -> int:
        """INVLPG of the page of ``gva`` by ``cpu``."""
        self._put_token(K_INVLPG, cpu, 0, 0, 0)
        self.columns.put_gva(gva)
        self._close_record(K_INVLPG)
        return 0

    def invpcid(self, cpu: int, invpcid_type: int, pcid: int, gva: int) -> int:
        """INVPCID of ``invpcid_type`` (0 to 3) with its descriptor's ``pcid`` and ``gva``."""
        self._put_token(K_INVPCID, cpu, 0, 0, 0)
        self.columns.put_gva(gva)
        self.columns.put_number(invpcid_type)
        self.columns.put_number(pcid)
        self._close_record(K_INVPCID)
        return 0

    def remap(self, cpu: int, gpa: int, size: int, kind: int, backing: tuple[int, int]) -> int:
        """From here on ``size`` bytes at ``gpa`` are ``kind`` (``MAP_*``), backed by ``(memory, offset)``; seen by
        ``cpu``.
        """
        memory, offset = backing
        if gpa & 4095 or size & 4095 or size <= 0 or offset & 4095:
            self._refuse(f"a map change of {size:#x} bytes at gpa {gpa:#x}, must be whole pages")
        self._put_token(0, cpu, 0, 0, 0)
        self.columns.put_frame(gpa >> 12)
        self.columns.put_number(size >> 12)
        self.columns.put_byte(kind)
        self.columns.put_byte(memory)
        self.columns.put_number(offset >> 12)
        self._close_record(K_MAP)
        return 0

    def feed(self, stream: memoryview, start: int, end: int) -> int:
        """Encode records of the plugin's ``stream`` from byte ``start`` up to ``end``; return where it stopped.

        ``stopped`` says why: ``FED_ALL`` (the rest is not a whole record), ``FED_FULL`` (take the block, then go on),
        ``FED_CONTROL`` (a control record begins here). Raises :class:`RecordingError` for a stream that the plugin
        cannot have written.
        """
        at = start
        self.stopped = FED_ALL
        while end - at >= RAW_HEAD:
            if self.full:
                self.stopped = FED_FULL
                break
            kind = stream[at]
            if kind >= RAW_CONTROL:
                self.stopped = FED_CONTROL
                break
            length = stream[at + 6] | (stream[at + 7] << 8)
            if end - at < RAW_HEAD + length:
                break
            self._feed_one(stream, at, kind, length)
            at += RAW_HEAD + length
        return at

    def take(self) -> bytes:
        """The block's raw bytes (column lengths, then columns); the encoder begins the next block."""
        raw = self.columns.take()
        self._reset()
        return raw

    def count(self, kind: int) -> int:
        """Records of ``kind`` so far, over all blocks."""
        return self.counts[kind]

    def counted(self) -> dict[str, int]:
        """Records by the name of their kind, those that occurred."""
        return {KIND_NAMES[kind]: self.counts[kind] for kind in range(1, 9) if self.counts[kind]}

    # Begin a block: nothing is relative to an earlier one.
    def _reset(self) -> None:
        self.columns.reset()
        self.records = 0
        self.full = False
        for index in range(5 * self.cpus):
            self.regs[index] = 0

    # One record of the plugin's stream: its head is at `at`, `length` bytes follow the head.
    def _feed_one(self, raw: memoryview, at: int, kind: int, length: int) -> int:
        what = raw[at + 1] & 127
        self.smm = raw[at + 1] >> 7
        cpu = raw[at + 2] | (raw[at + 3] << 8)
        access = raw[at + 4] | (raw[at + 5] << 8)
        gva = _word(raw, at + 8)
        gpa = _word(raw, at + 16)
        value = _word(raw, at + 24)
        body = at + RAW_HEAD
        if kind == K_ACCESS:
            self._put_token(K_ACCESS, cpu, access, gva, gpa)
        elif kind == K_STORE or kind == K_MMIO:
            self._check_data(length, gpa)
            self._put_token(kind, cpu, access, gva, gpa)
            self._put_data(kind, raw, body, length)
        elif kind == K_REGS and length == 40:
            index = 0
            while index < 5:
                self.words[index] = _word(raw, body + 8 * index)
                index += 1
            self._put_regs(cpu, what)
        elif kind == K_PAGE and length == 4096:
            self._put_page(cpu, gpa, raw, body)
        elif kind == K_INVLPG:
            self.invlpg(cpu, gva)
        elif kind == K_INVPCID:
            self.invpcid(cpu, what, value, gva)
        elif kind == K_MAP:
            self.remap(cpu, gpa, value, what, (access, gva))
        else:
            self._refuse(f"the plugin wrote a record of kind {kind} with {length} bytes")
        return 0

    # Write the token, and with an ACCESS, STORE or MMIO its place. A record of data is closed by _put_data().
    def _put_token(self, kind: int, cpu: int, access: int, gva: int, gpa: int) -> int:
        if self.full:
            self._refuse("the block is full and was not taken")
        if cpu < 0 or cpu >= self.cpus or access & ~ACCESS_BITS != 0:
            self._refuse(f"access {access:#x} of CPU {cpu}, the recording has {self.cpus}")
        placed = kind == K_ACCESS or kind == K_STORE or kind == K_MMIO
        if placed and (gva ^ gpa) & 4095:
            self._refuse(f"gva {gva:#x} and gpa {gpa:#x} differ inside the page")
        token = (kind & 7) | ((access & 6) << 3) | ((access & 16) << 2)
        state = (cpu << 2) | ((access >> 8) & 3)
        if self.smm:
            state |= STATE_SMM
        if placed:
            self.columns.put_placed_token(token, state, gva, gpa)
        else:
            self.columns.put_token(token, state)
        if kind == K_ACCESS:
            self._close_record(K_ACCESS)
        return 0

    # Refuse a STORE or MMIO that no instruction makes.
    def _check_data(self, size: int, gpa: int) -> int:
        if size < 1 or size > 64 or (gpa & 4095) + size > 4096:
            self._refuse(f"{size} bytes at gpa {gpa:#x}, must be 1 to 64 in one page")
        return 0

    # Write size and bytes (at `start` of `data`) of a STORE or MMIO and close its record.
    def _put_data(self, kind: int, data: bytes | memoryview, start: int, size: int) -> int:
        self.columns.put_number(size)
        self.columns.put_data(data, start, size)
        self._close_record(kind)
        return 0

    # Write a whole PAGE record; its bytes are at `start` of `data`.
    def _put_page(self, cpu: int, gpa: int, data: bytes | memoryview, start: int) -> int:
        self._put_token(K_PAGE, cpu, 0, 0, 0)
        self.columns.put_frame(gpa >> 12)
        self.columns.put_page(data, start)
        self._close_record(K_PAGE)
        return 0

    # Write a whole REGS record: the cause, which of the five `words` differ from the CPU's last ones in this block,
    # those.
    def _put_regs(self, cpu: int, what: int) -> int:
        self._put_token(K_REGS, cpu, 0, 0, 0)
        changed = 0
        index = 0
        while index < 5:
            if self.words[index] != self.regs[cpu * 5 + index]:
                changed |= ONE << index
            index += 1
        self.columns.put_number(what)
        self.columns.put_number(changed)
        index = 0
        while index < 5:
            if changed & (ONE << index):
                self.regs[cpu * 5 + index] = self.words[index]
                self.columns.put_number(self.words[index])
            index += 1
        self._close_record(K_REGS)
        return 0

    # Count a record; the block is full when one more might not fit.
    def _close_record(self, kind: int) -> int:
        self.counts[kind] += 1
        self.records += 1
        self.full = self.records == BLOCK_RECORDS or self.columns.is_nearly_full()
        return 0

    def _refuse(self, what: str) -> NoReturn:
        raise RecordingError(f"cannot be recorded: {what}")


# Little-endian word at `at`.
def _word(raw: memoryview, at: int) -> int:
    value = 0
    index = 8
    while index > 0:
        index -= 1
        value = ((value << 8) & U64) | raw[at + index]
    return value
