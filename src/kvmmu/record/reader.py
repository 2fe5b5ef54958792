# SPDX-License-Identifier: GPL-2.0-only
"""Decode a recording, record by record, without one Python object per record.

:meth:`Reader.next` decodes one record into the reader's own fields, and moves the cursors
(:mod:`~kvmmu.record.cursors`) of the columns that it uses. ``docs/recording-format.md`` describes the records.
"""

from __future__ import annotations

import struct
from array import array
from typing import Self

from ..addr import Address
from ..page_types import U32, U64
from .blocks import BlockFile
from .cursors import Cursors
from .format import (
    CACHE_MIX,
    CACHE_SHIFT,
    CACHE_SLOTS,
    END_FRAME,
    K_ACCESS,
    K_INVLPG,
    K_INVPCID,
    K_MMIO,
    K_PAGE,
    K_REGS,
    K_STORE,
    KIND_NAMES,
    MAP_IO,
    MAX_MEMORY_FRAMES,
    MAX_RANGES,
    MEMORY_UNKNOWN,
    STATE_SMM,
    W_INIT,
    Header,
    Trailer,
)
from .known import KnownFrames

_NUMBERS = 5


class Reader(Cursors):
    """Reads the recording ``path`` from its first record to its last.

    ``header`` and ``trailer`` (None when the file has none) are known from the start, ``total`` (number of records)
    and ``cut`` too. Each :meth:`next` fills ``kind`` and the fields of that kind; the others keep old values.

    A file that ends inside a block is read up to there (:meth:`loss` says so), and is ``cut``. Raises
    :class:`RecordingError` on opening (no file, not a recording, newer format, no whole block of records in a truncated
    one, damaged header) and from :meth:`next` (corrupted block, content that contradicts itself).
    """

    __slots__ = (
        "access",
        "blocks",
        "content",
        "content_size",
        "cpu",
        "cpus",
        "cr0",
        "cr3",
        "cr4",
        "cut",
        "efer",
        "gpa",
        "gva",
        "header",
        "invpcid_type",
        "kind",
        "known",
        "left",
        "map_kind",
        "map_memory",
        "map_offset",
        "map_size",
        "memories",
        "pcid",
        "pkru",
        "predicted_frame",
        "predicted_page",
        "regs",
        "size",
        "smm",
        "state_access",
        "state_cpu",
        "total",
        "trailer",
        "value",
        "what",
    )

    def __init__(self, path: str) -> None:
        Cursors.__init__(self, str(path))
        self.blocks = BlockFile(self.path)
        header: Header = self.blocks.header
        trailer: Trailer | None = self.blocks.trailer
        self.header, self.trailer = header, trailer
        self.total = self.blocks.total
        self.cut = trailer is None or trailer.cut
        self.cpus, self.memories = header.cpus, len(header.memories)
        self.regs = memoryview(array("Q", [0]) * (_NUMBERS * header.cpus))
        self.predicted_page = memoryview(array("Q", [U64]) * CACHE_SLOTS)
        self.predicted_frame = memoryview(array("Q", [0]) * CACHE_SLOTS)
        self.known = KnownFrames(header)
        self.left = self.kind = 0
        self.smm = False
        self.cpu = self.state_cpu = self.access = self.state_access = 0
        self.gva: Address = 0
        self.gpa: Address = 0
        self.value = self.size = self.what = self.content = self.content_size = 0
        self.cr0 = self.cr3 = self.cr4 = self.efer = self.pkru = self.invpcid_type = self.pcid = 0
        self.map_size = self.map_kind = self.map_memory = self.map_offset = 0
        self.content = self.content_size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the current record stays readable."""
        self.blocks.close()

    def loss(self) -> str | None:
        """One sentence if the file ends inside a block, None otherwise."""
        return self.blocks.loss()

    def next(self) -> int:
        """Decode the next record into the fields and return its kind; 0 at the end of the recording.

        Raises :class:`RecordingError`: a corrupted block, a record that contradicts the ones before it.
        """
        if self.left == 0 and not self._load_block():
            self.kind = 0
            return 0
        token = self.raw[self.at_token]
        self.at_token += 1
        kind: int = token & 7
        if token & 128:
            self._read_state()
        self.cpu = self.state_cpu
        if kind == K_ACCESS:
            self._read_place(token)
            self._check_memory(self.gpa >> 12)
        elif kind == K_STORE or kind == K_MMIO:
            self._read_place(token)
            self._read_value(kind)
        elif kind == K_REGS:
            self._read_regs()
        elif kind == K_PAGE:
            self._read_page()
        elif kind == K_INVLPG:
            self.gva = self.read_gva()
        elif kind == K_INVPCID:
            self.gva = self.read_gva()
            self.invpcid_type = self.read_number()
            self.pcid = self.read_number()
            if self.at_number > self.end_number:
                self.overrun()
        else:
            kind = 8
            self._read_map()
        if self.at_token > self.end_token:
            self.overrun()
        self.kind = kind
        self.left -= 1
        self.position += 1
        return kind

    def skip(self, count: int) -> int:
        """Decode up to ``count`` records without looking at them; return how many there were."""
        done = 0
        while done < count and self.next() != 0:
            done += 1
        return done

    def payload(self) -> bytes:
        """Bytes of the current record: of a STORE or MMIO all ``size`` bytes, of a PAGE 4096, of a MAP ``size``
        (u64), kind, memory number (u8 each) and backing offset (u64), little endian; of any other kind none.
        """
        if self.kind == 8:
            return struct.pack("<QBBQ", self.map_size, self.map_kind, self.map_memory, self.map_offset)
        if self.kind not in (K_STORE, K_MMIO, K_PAGE):
            return b""
        return bytes(self.raw[self.content : self.content + self.content_size])

    # Load the next block of records and set the cursors; False at the end.
    def _load_block(self) -> bool:
        loaded = self.blocks.next_records()
        while loaded is not None and loaded[1] == 0:
            loaded = self.blocks.next_records()
        if loaded is None:
            return False
        self.left = loaded[1]
        self.load(loaded[0])
        self.state_cpu = self.state_access = 0
        self.smm = False
        for index in range(len(self.regs)):
            self.regs[index] = 0
        for index in range(CACHE_SLOTS):
            self.predicted_page[index] = U64
        return True

    # The token's state follows: the CPU from here on, and the rarer bits of its accesses.
    def _read_state(self) -> None:
        state = 0
        shift = 0
        while shift < 28:
            byte = self.raw[self.at_token]
            self.at_token += 1
            state |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
        self.smm = state & STATE_SMM != 0
        self.state_cpu = (state & ~STATE_SMM) >> 2
        self.state_access = (state & 3) << 8
        if self.state_cpu >= self.cpus:
            self.contradict(f"a record of CPU {self.state_cpu}, the header has {self.cpus}")

    # Read gva, gpa and access word of an ACCESS, STORE or MMIO.
    def _read_place(self, token: int) -> None:
        self.gva = self.read_gva()
        page = self.gva >> 12
        slot = ((page * CACHE_MIX) & U64) >> CACHE_SHIFT
        if token & 8:
            if self.predicted_page[slot] != page:
                self.contradict("a record uses a translation that none before it gave")
            frame = self.predicted_frame[slot]
        else:
            frame = self.read_frame()
            self.predicted_page[slot] = page
            self.predicted_frame[slot] = frame
        self.gpa = ((frame << 12) & U64) | (self.gva & 4095)
        self.access = ((token >> 3) & 6) | ((token >> 2) & 16) | self.state_access

    # Read size and bytes of a STORE or MMIO, and hold them against the map and the tables seen so far.
    def _read_value(self, kind: int) -> None:
        size = self.raw[self.at_number]
        self.at_number += 1
        if size < 1 or size > 64 or (self.gpa & 4095) + size > 4096:
            self.contradict(f"{size} bytes at gpa {self.gpa:#x}, must be 1 to 64 in one page")
        self.size = size
        self.content = self.at_data
        self.content_size = size
        self.at_data += size
        if self.at_number > self.end_number or self.at_data > self.end_data:
            self.overrun()
        value = 0
        index = 8 if size > 8 else size
        while index > 0:
            index -= 1
            value = ((value << 8) & U64) | self.raw[self.content + index]
        self.value = value
        frame = self.gpa >> 12
        if self.smm:
            pass  # another view of memory
        elif kind == K_MMIO:
            if self.known.is_ram(frame):
                self.contradict(f"MMIO at gpa {self.gpa:#x}, which the memory map says is RAM")
        elif not self.known.is_table(frame):
            self.contradict(f"a store to a table at gpa {self.gpa:#x}, whose page was never recorded")

    # Refuse an access to a frame that is not memory. KnownFrames.meaning(), written out.
    def _check_memory(self, frame: int) -> None:
        if frame < self.known.near_start or frame >= self.known.near_end:
            self.known.find_range(frame)
        if self.known.near_kind == MAP_IO and not self.smm:
            self.contradict(f"an access to gpa {self.gpa:#x}, which the memory map says is not memory")

    # Read the registers that changed; the others are the CPU's last ones in this block.
    def _read_regs(self) -> None:
        base = self.cpu * 5
        what = self.raw[self.at_number]
        changed = self.raw[self.at_number + 1]
        self.at_number += 2
        index = 0
        while index < 5:
            if changed >> index & 1:
                self.regs[base + index] = self.read_number()
            index += 1
        if self.at_number > self.end_number:
            self.overrun()
        if what < 1 or what > W_INIT:
            self.contradict(f"registers changed by the unknown cause {what}")
        self.what = what
        self.cr0 = self.regs[base]
        self.cr3 = self.regs[base + 1]
        self.cr4 = self.regs[base + 2]
        self.efer = self.regs[base + 3]
        self.pkru = self.regs[base + 4] & U32
        self.value = self.cr3

    # Read the snapshot of a table page.
    def _read_page(self) -> None:
        frame = self.read_frame()
        self.gpa = (frame << 12) & U64
        self.size = 4096
        self.content = self.at_content
        self.content_size = 4096
        self.at_content += 4096
        if self.at_content > self.end_content:
            self.overrun()
        if not self.smm:
            if self.known.meaning(frame) == MAP_IO:
                self.contradict(f"a table page at gpa {self.gpa:#x}, which the memory map says is not memory")
            self.known.add_table(frame)

    # Read a change of the memory map and make it.
    def _read_map(self) -> None:
        frame = self.read_frame()
        self.gpa = (frame << 12) & U64
        count = self.read_number()
        self.map_kind = self.raw[self.at_number]
        self.map_memory = self.raw[self.at_number + 1]
        self.at_number += 2
        page = self.read_number()
        self.map_offset = (page << 12) & U64
        if self.at_number > self.end_number:
            self.overrun()
        if (
            self.map_kind > 2
            or count == 0
            or count > END_FRAME
            or frame + count > END_FRAME
            or (self.map_memory >= self.memories and self.map_memory != MEMORY_UNKNOWN)
        ):
            self.contradict(
                f"{count} pages at gpa {self.gpa:#x} become kind {self.map_kind} of memory {self.map_memory}"
            )
        if self.map_memory != MEMORY_UNKNOWN and (page > MAX_MEMORY_FRAMES or page + count > MAX_MEMORY_FRAMES):
            self.contradict(f"{count} pages at gpa {self.gpa:#x} become page {page} of a memory, which ends before")
        self.map_size = (count << 12) & U64
        self.size = 0
        if not self.smm:
            if self.known.change(frame, frame + count, self.map_kind) > MAX_RANGES:
                self.contradict(f"its memory map has more than {MAX_RANGES} ranges")

    def __repr__(self) -> str:
        return f"<{KIND_NAMES[self.kind]} cpu {self.cpu} at {self.position}{' in SMM' if self.smm else ''}>"
