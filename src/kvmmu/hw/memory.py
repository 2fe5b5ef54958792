# SPDX-License-Identifier: GPL-2.0-only
"""Physical memory: one arena of 4 KiB frames, and the only raw accesses to it.

The arena is one shared anonymous mapping. It is sparse (a frame costs host memory when it is first written), and a
CPU emulator in the same process can map the very same pages from :meth:`PhysicalMemory.address`.

Every word that two actors can touch passes the gate of :mod:`kvmmu.sync` here and nowhere else. What lies behind the
last frame is no memory: as on silicon, reads of it give all ones and writes vanish.
"""

from __future__ import annotations

import ctypes
import mmap

from ..addr import Hpa
from ..errors import ConfigError
from ..page_types import PAGE_SIZE, U32, U64
from ..sync import Gate

#: Largest number of frames: 52 address bits, the most that x86 has.
MAX_FRAMES = 1 << 40

# Linux: do not account swap for pages that may never be written. Python's mmap names it only from 3.13 on.
_MAP_NORESERVE = 0x4000


class PhysicalMemory:
    """``nr_frames`` frames of 4096 bytes at host physical addresses 0 to ``size``, all zero at first.

    :param nr_frames: number of 4 KiB frames, 1 to ``MAX_FRAMES``.
    :param gate: the world's gate; a closed one of its own by default.
    :raises ConfigError: ``nr_frames`` is out of range, or the host cannot map so much.

    Addresses are in bytes and aligned to the size of the access; the caller sees to that. Nothing here takes a lock.
    """

    __slots__ = ("arena", "bytes_", "gate", "halves", "nr_frames", "size", "words")

    def __init__(self, nr_frames: int, gate: Gate | None = None) -> None:
        if not 1 <= nr_frames <= MAX_FRAMES:
            raise ConfigError(f"nr_frames={nr_frames}: a machine has 1 to {MAX_FRAMES} frames of 4096 bytes")
        self.nr_frames = nr_frames
        self.size = nr_frames * PAGE_SIZE
        try:
            self.arena = mmap.mmap(-1, nr_frames * PAGE_SIZE, flags=mmap.MAP_SHARED | _MAP_NORESERVE)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"nr_frames={nr_frames}: the host cannot map {nr_frames * PAGE_SIZE} bytes ({error}); "
                "ask for fewer frames"
            ) from None
        view = memoryview(self.arena)
        self.words = view.cast("Q")
        self.halves = view.cast("I")
        self.bytes_ = view
        self.gate = gate if gate is not None else Gate()

    def __repr__(self) -> str:
        return f"PhysicalMemory({self.nr_frames} frames, {self.size:#x} bytes)"

    def address(self) -> int:
        """Address of the first byte of the arena in this process, for a CPU emulator that maps the same pages."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self.arena))

    def read_once(self, hpa: Hpa) -> int:
        """Word at ``hpa`` (8-byte aligned), read in one piece; all ones where there is no memory."""
        if self.gate.armed:
            self.gate.checker.point("read", self, hpa)
        if hpa >= self.size:
            return U64
        return self.words[hpa >> 3]

    def write_once(self, hpa: Hpa, value: int) -> int:
        """Store the 64-bit ``value`` at ``hpa`` (8-byte aligned) in one piece; return 0."""
        if self.gate.armed:
            self.gate.checker.point("write", self, hpa)
        if hpa < self.size:
            self.words[hpa >> 3] = value
        return 0

    def xchg(self, hpa: Hpa, value: int) -> int:
        """Store ``value`` at ``hpa`` (8-byte aligned) and return the word that was there, atomically."""
        if self.gate.armed:
            self.gate.checker.point("xchg", self, hpa)
        if hpa >= self.size:
            return U64
        old = self.words[hpa >> 3]
        self.words[hpa >> 3] = value
        return old

    def cmpxchg(self, hpa: Hpa, old: int, new: int) -> bool:
        """Store ``new`` at ``hpa`` (8-byte aligned) if the word is ``old``; return whether it was, atomically."""
        if self.gate.armed:
            self.gate.checker.point("cmpxchg", self, hpa)
        if hpa >= self.size or self.words[hpa >> 3] != old:
            return False
        self.words[hpa >> 3] = new
        return True

    def fetch_and(self, hpa: Hpa, mask: int) -> int:
        """Keep only the bits of ``mask`` in the word at ``hpa`` (8-byte aligned) and return what it was, atomically."""
        if self.gate.armed:
            self.gate.checker.point("and", self, hpa)
        if hpa >= self.size:
            return U64
        old = self.words[hpa >> 3]
        self.words[hpa >> 3] = old & mask
        return old

    def read_once32(self, hpa: Hpa) -> int:
        """32-bit word at ``hpa`` (4-byte aligned), an entry of a 2-level table."""
        if self.gate.armed:
            self.gate.checker.point("read", self, hpa)
        if hpa >= self.size:
            return U32
        return self.halves[hpa >> 2]

    def write_once32(self, hpa: Hpa, value: int) -> int:
        """Store the 32-bit ``value`` at ``hpa`` (4-byte aligned) in one piece; return 0."""
        if self.gate.armed:
            self.gate.checker.point("write", self, hpa)
        if hpa < self.size:
            self.halves[hpa >> 2] = value
        return 0

    def cmpxchg32(self, hpa: Hpa, old: int, new: int) -> bool:
        """:meth:`cmpxchg` of a 32-bit word (4-byte aligned)."""
        if self.gate.armed:
            self.gate.checker.point("cmpxchg", self, hpa)
        if hpa >= self.size or self.halves[hpa >> 2] != old:
            return False
        self.halves[hpa >> 2] = new
        return True

    def fill_words(self, hpa: Hpa, value: int, count: int) -> int:
        """Store ``value`` into ``count`` words from ``hpa`` (8-byte aligned) on; return 0.

        One announcement at the gate for all of them: for pages that nobody else can see yet.
        """
        if self.gate.armed:
            self.gate.checker.point("write", self, hpa)
        if hpa >= self.size:
            return 0
        index = hpa >> 3
        end = min(index + count, self.size >> 3)
        while index < end:
            self.words[index] = value
            index += 1
        return 0

    def read(self, hpa: Hpa, length: int) -> bytes:
        """``length`` bytes from ``hpa`` on, at any alignment; 0xff where there is no memory."""
        if self.gate.armed:
            self.gate.checker.point("read", self, hpa)
        if hpa >= self.size:
            return b"\xff" * length
        data: bytes = self.arena[hpa : min(hpa + length, self.size)]
        return data if len(data) == length else data + b"\xff" * (length - len(data))

    def write(self, hpa: Hpa, data: bytes | bytearray | memoryview) -> int:
        """Store ``data`` from ``hpa`` on, at any alignment; what lies behind the memory vanishes. Return 0."""
        if self.gate.armed:
            self.gate.checker.point("write", self, hpa)
        if hpa >= self.size:
            return 0
        length = len(data)
        if length > self.size - hpa:
            length = self.size - hpa
        self.bytes_[hpa : hpa + length] = data[:length]
        return 0
