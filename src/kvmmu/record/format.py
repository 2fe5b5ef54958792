# SPDX-License-Identifier: GPL-2.0-only
"""What a recording is made of: kinds, words, blocks, the header and the trailer.

``docs/recording-format.md`` is the reference; ``reader.py`` and ``writer.py`` are its two ends. A recording is a
magic, then blocks. Every block carries its length, its number of records and two checksums, so that damage is
found where it is and a recorder that was killed leaves whole blocks behind.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..errors import RecordingError

# Why feed() came back.
FED_ALL = 0
FED_FULL = 1
FED_CONTROL = 2
#: Length of the head of a record in the plugin's stream.
RAW_HEAD = 32
#: Kinds from here on steer the recorder and are not stored.
RAW_CONTROL = 64

#: First bytes of a file. Like PNG's: a text-mode copy or a 7-bit channel damages it visibly.
MAGIC = b"\x89KMR\r\n\x1a\n"
MAJOR = 1
MINOR = 0

# Record kinds. END is no record: the end of the stream.
K_END = 0
K_ACCESS = 1
K_STORE = 2
K_PAGE = 3
K_REGS = 4
K_INVLPG = 5
K_INVPCID = 6
K_MMIO = 7
K_MAP = 8
KIND_NAMES = ("end", "access", "store", "page", "regs", "invlpg", "invpcid", "mmio", "map")

#: Why the recorder left an access out, as the trailer's ``left_out`` and the plugin number them: the tables no longer
#: back what the TLB held; a table lies in ROM, in a device's range, in memory that the recorder cannot look at; only
#: the tables could have told where the second page of an instruction is, and they do not.
LEFT_OUT = ("stale", "table-in-rom", "table-in-device", "table-in-unknown-memory", "unplaced")

# What an access was: the words of hw/cpu. Reads have no bit.
K_WRITE = 1 << 1
K_USER = 1 << 2
K_FETCH = 1 << 4
#: EFLAGS.AC was set.
K_AC = 1 << 8
#: A supervisor access that the CPU made by itself at CPL 3 (descriptor tables, TSS).
K_IMPLICIT = 1 << 9
ACCESS_BITS = K_WRITE | K_USER | K_FETCH | K_AC | K_IMPLICIT

# REGS: which instruction changed the registers. INIT: the state was seen, the cause is unknown (start of the
# recording, SMM, a task switch, a CPU's INIT).
W_CR0 = 1
W_CR3 = 2
W_CR4 = 3
W_EFER = 4
W_PKRU = 5
W_INIT = 6
CAUSE_NAMES = ("", "cr0", "cr3", "cr4", "efer", "pkru", "init")

# MAP: what a gpa range means from now on.
MAP_IO = 0
MAP_RAM = 1
MAP_ROM = 2
MAP_NAMES = ("io", "ram", "rom")
#: Bit of the token's state: the CPU is in system management mode.
STATE_SMM = 1 << 14
#: MAP: the backing memory is none of the header's ``memories`` (a device's own RAM).
MEMORY_UNKNOWN = 255

# Token byte of a record in a RECS block.
TOKEN_KIND = 7
TOKEN_HIT = 1 << 3
TOKEN_WRITE = 1 << 4
TOKEN_USER = 1 << 5
TOKEN_FETCH = 1 << 6
TOKEN_STATE = 1 << 7

#: Columns of a RECS block, in file order.
COLUMNS = ("token", "page", "offset", "frame", "number", "data", "content")
COLUMN_LENGTHS = struct.Struct("<7I")
#: Records in a full block.
BLOCK_RECORDS = 1 << 17
#: Slots of the translation cache that predicts a record's frame from its page.
CACHE_SLOTS = 1 << 14
CACHE_SHIFT = 50
CACHE_MIX = 0x9E37_79B9_7F4A_7C15

#: kind, flags, stored bytes, raw bytes, records, CRC-32 of the stored bytes, codec; then CRC-32 of these 28 bytes.
BLOCK = struct.Struct("<4sIIIIII")
BLOCK_CRC = struct.Struct("<I")
BLOCK_SIZE = BLOCK.size + BLOCK_CRC.size
PREFIX = struct.Struct("<8sHHI")

HEAD = b"HEAD"
RECS = b"RECS"
TAIL = b"TAIL"
#: Block flag: a reader that does not know this kind skips it.
MAY_SKIP = 1
CODEC_NONE = 0
CODEC_ZSTD = 1
#: No block is longer than this, raw or stored; a larger length is damage.
MAX_BLOCK = 1 << 26
#: Highest guest frame a memory map may hold (1 TiB).
MAX_FRAMES = 1 << 28


@dataclass(frozen=True, slots=True)
class Region:
    """A range of guest physical addresses that is memory; everything outside all regions is I/O.

    ``kind`` is ``ram`` or ``rom`` (the guest's writes are ignored: ROM, or write-protected shadow RAM); ``memory``
    names what backs it and ``offset`` says where in it, so that two regions may show the same bytes.
    """

    gpa: int
    size: int
    kind: str
    memory: str = "ram"
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Header:
    """Facts about the recorded machine, known before its first record.

    ``maxphyaddr`` is in bits; ``features`` are CPUID flags in QEMU's spelling (``la57 nx pdpe1gb pse36 pcid smep smap
    pku`` ...); ``start`` says what began the recording and ``entry`` where (the gpa of the first instruction, None
    for a piece); ``first`` is the number of the whole recording's record that a piece begins with; ``backends`` are
    memories that may be plugged in later, with their sizes, and ``memory_end`` is where their addresses end (0: there
    are none).
    """

    cpus: int
    memory: tuple[Region, ...]
    maxphyaddr: int
    features: tuple[str, ...] = ()
    qemu: str = ""
    machine: str = ""
    cpu_model: str = ""
    command: tuple[str, ...] = ()
    start: str = ""
    entry: int | None = None
    recorded_by: str = ""
    first: int = 0
    backends: dict[str, int] = field(default_factory=dict)
    memory_end: int = 0
    version: tuple[int, int] = (MAJOR, MINOR)
    extra: dict[str, Any] = field(default_factory=dict)

    def has(self, feature: str) -> bool:
        """Whether the recorded CPU has ``feature`` (QEMU's spelling)."""
        return feature in self.features

    @property
    def memories(self) -> tuple[str, ...]:
        """Names of the backing memories, in the order that MAP records number them."""
        return tuple(dict.fromkeys([*(region.memory for region in self.memory), *self.backends]))

    @property
    def frames(self) -> int:
        """One more than the highest guest frame of the memory map, now or later."""
        return max(self.memory_end, *(region.gpa + region.size for region in self.memory), 0) >> 12

    def to_json(self) -> bytes:
        """The HEAD block's content; keys that are not fields of this class (``extra``) stay beside the others."""
        fields = asdict(self)
        fields.pop("version")
        return json.dumps(fields.pop("extra") | fields, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, version: tuple[int, int], path: str) -> Header:
        """Parse a HEAD block. Unknown keys (a newer minor version's) are kept in ``extra``.

        Raises :class:`RecordingError` when a key is missing or is not what its name says.
        """
        try:
            fields = json.loads(data)
            known = {name: fields.pop(name) for name in _FIELDS if name in fields}
            regions = tuple(Region(**region) for region in known.pop("memory"))
            for name in ("features", "command"):
                known[name] = tuple(str(word) for word in known.get(name, ()))
            header = cls(memory=regions, version=version, extra=fields, **known)
            header.check()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RecordingError(f"{path}: its header cannot be used: {error}") from error
        return header

    def check(self) -> None:
        """Refuse facts that no machine has; ValueError names the first."""
        if not isinstance(self.cpus, int) or not 1 <= self.cpus <= 4096:
            raise ValueError(f"cpus is {self.cpus!r}, must be 1 to 4096")
        if not isinstance(self.maxphyaddr, int) or not 32 <= self.maxphyaddr <= 52:
            raise ValueError(f"maxphyaddr is {self.maxphyaddr!r}, must be 32 to 52")
        end = 0
        for region in sorted(self.memory, key=lambda region: region.gpa):
            if region.kind not in ("ram", "rom"):
                raise ValueError(f"memory region {region.gpa:#x} is {region.kind!r}, must be ram or rom")
            if region.gpa & 4095 or region.size & 4095 or region.size <= 0 or region.offset < 0:
                raise ValueError(f"memory region {region.gpa:#x}+{region.size:#x} is not made of 4K pages")
            if region.gpa < end:
                raise ValueError(f"memory region {region.gpa:#x} overlaps the one before it")
            end = region.gpa + region.size
        if not all(isinstance(size, int) and 0 < size <= MAX_FRAMES << 12 for size in self.backends.values()):
            raise ValueError(f"backends is {self.backends!r}, must be sizes in bytes by name")
        if not isinstance(self.memory_end, int) or self.memory_end < 0:
            raise ValueError(f"memory_end is {self.memory_end!r}, must be an address")
        end = max(end, self.memory_end)
        if end >> 12 > MAX_FRAMES:
            raise ValueError(f"its memory ends at {end:#x}, the format ends at {MAX_FRAMES << 12:#x}")
        if not self.memory:
            raise ValueError("it has no memory region")


_FIELDS = tuple(name for name in Header.__dataclass_fields__ if name not in ("version", "extra"))


@dataclass(frozen=True, slots=True)
class Trailer:
    """Totals, known when a recording ends.

    ``cut``: the recording stopped before the guest did; ``reason`` says in a few words what ended it.
    ``seen`` counts what the recorder watched (accesses before its filter), ``stale`` the accesses that it left out
    because the machine used a TLB entry that the tables no longer back, ``left_out`` all that it left out by reason
    (:data:`LEFT_OUT`; older recordings have ``stale`` only), ``smm`` those made in system management mode.
    """

    records: int
    counts: dict[str, int] = field(default_factory=dict)
    cut: bool = False
    reason: str = ""
    seen: int = 0
    stale: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    smm: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def reasons(self) -> dict[str, int]:
        """What was left out, by reason, also of recordings that counted ``stale`` alone."""
        return self.left_out or ({"stale": self.stale} if self.stale else {})

    def warning(self) -> str | None:
        """One sentence when more than one access in a thousand was left out, None otherwise."""
        total = sum(self.reasons.values())
        if total * 1000 <= self.seen:
            return None
        share = f"{100 * total / self.seen:.1f} %" if self.seen else "an unknown share"
        listed = ", ".join(f"{count:,} {name}" for name, count in self.reasons.items())
        return f"{share} of the accesses were left out: {listed} (docs/limits.md)"

    def to_json(self) -> bytes:
        """The TAIL block's content."""
        fields = asdict(self)
        return json.dumps(fields.pop("extra") | fields, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, path: str) -> Trailer:
        """Parse a TAIL block. Raises :class:`RecordingError`."""
        try:
            fields = json.loads(data)
            known = {name: fields.pop(name) for name in _TRAILER_FIELDS if name in fields}
            return replace(cls(**known), extra=fields)
        except (ValueError, TypeError, AttributeError) as error:
            raise RecordingError(f"{path}: its trailer cannot be used: {error}") from error


_TRAILER_FIELDS = tuple(name for name in Trailer.__dataclass_fields__ if name != "extra")


@dataclass(frozen=True, slots=True)
class BlockHead:
    """What stands in front of a block's bytes."""

    kind: bytes
    flags: int
    stored: int
    raw: int
    records: int
    crc: int
    codec: int

    @property
    def may_skip(self) -> bool:
        """Whether a reader that does not know ``kind`` may go on behind it."""
        return bool(self.flags & MAY_SKIP)


def pack_prefix() -> bytes:
    """The file's first 16 bytes."""
    return PREFIX.pack(MAGIC, MAJOR, MINOR, 0)


def pack_block(kind: bytes, stored: bytes, raw: int, records: int, codec: int) -> bytes:
    """A whole block: its head, the head's checksum, ``stored``."""
    head = BLOCK.pack(kind, 0, len(stored), raw, records, zlib.crc32(stored), codec)
    return head + BLOCK_CRC.pack(zlib.crc32(head)) + stored


def unpack_block_head(data: bytes) -> BlockHead | None:
    """The head in ``data`` (``BLOCK_SIZE`` bytes); None when its checksum or its lengths are wrong."""
    (crc,) = BLOCK_CRC.unpack_from(data, BLOCK.size)
    head = BlockHead(*BLOCK.unpack_from(data))
    if zlib.crc32(data[: BLOCK.size]) != crc or head.stored > MAX_BLOCK or head.raw > MAX_BLOCK:
        return None
    return head
