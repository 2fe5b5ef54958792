# SPDX-License-Identifier: GPL-2.0-only
"""What a recording is made of: kinds, words, blocks, the header and the trailer.

``docs/recording-format.md`` is the reference; ``reader.py`` and ``writer.py`` are its two ends. A recording is a
magic, then blocks. Every block carries its length, its number of records and two checksums, so that damage is
found where it is and a recorder that was killed leaves whole blocks behind.
"""

from __future__ import annotations

import itertools
import json
import re
import struct
import zlib
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..errors import RecordingError
from ..page_types import U64

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

# Limits of the format ("Limits" in docs/recording-format.md): what lies beyond is refused before it costs anything.
#: Bytes of a block, raw or stored.
MAX_BLOCK = 1 << 24
#: Bytes of HEAD and of TAIL, raw.
MAX_JSON = 1 << 20
#: Arrays and objects of HEAD and TAIL inside one another.
MAX_DEPTH = 32
MAX_CPUS = 1024
#: Memory regions of HEAD, and ranges that a map has after all its changes.
MAX_REGIONS = 1024
MAX_RANGES = 4096
#: Physical address bits that a CPU can have.
MAX_PHYSICAL_BITS = 52
#: One more than the highest guest frame.
END_FRAME = 1 << (MAX_PHYSICAL_BITS - 12)
#: Bytes of all backing memories together: 768 GiB.
MAX_MEMORY = 3 << 38
#: The same in pages.
MAX_MEMORY_FRAMES = MAX_MEMORY >> 12


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

    def check(self, end: int) -> None:
        """Refuse what is no range of pages below the gpa ``end``; ValueError says why."""
        for name in ("gpa", "size", "offset"):
            _check_number(f"{name} of a memory region", getattr(self, name), 0, U64)
        place = f"memory region {self.gpa:#x}"
        if self.kind not in ("ram", "rom"):
            raise ValueError(f"{place} is {_show(self.kind)}, must be ram or rom")
        if not isinstance(self.memory, str):
            raise TypeError(f"{place} is backed by {_show(self.memory)}, must be a name")
        if self.gpa & 4095 or self.size & 4095 or self.offset & 4095 or self.size == 0:
            raise ValueError(f"{place}+{self.size:#x} at {self.offset:#x} is not made of 4K pages")
        if self.gpa + self.size > end:
            raise ValueError(f"{place} ends at {self.gpa + self.size:#x}, the CPU's addresses end at {end:#x}")


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
            fields = _load_json(data)
            known = {name: fields.pop(name) for name in _FIELDS if name in fields}
            memory = known.pop("memory")
            if not isinstance(memory, list) or len(memory) > MAX_REGIONS:
                raise ValueError(f"memory must be a list of at most {MAX_REGIONS} regions")
            regions = tuple(Region(**region) for region in memory)
            for name in ("features", "command"):
                known[name] = _check_words(name, known.get(name, []))
            header = cls(memory=regions, version=version, extra=fields, **known)
            header.check()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RecordingError(f"{path}: its header cannot be used: {error}") from error
        return header

    def check(self) -> None:
        """Refuse facts that no machine has and what is beyond the format's limits; ValueError names the first."""
        _check_number("cpus", self.cpus, 1, MAX_CPUS)
        _check_number("maxphyaddr", self.maxphyaddr, 32, MAX_PHYSICAL_BITS)
        _check_number("first", self.first, 0, U64)
        if self.entry is not None:
            _check_number("entry", self.entry, 0, U64)
        for name in ("qemu", "machine", "cpu_model", "start", "recorded_by"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} is {_show(getattr(self, name))}, must be text")
        if not self.memory:
            raise ValueError("it has no memory region")
        if len(self.memory) > MAX_REGIONS:
            raise ValueError(f"it has {len(self.memory)} memory regions, at most {MAX_REGIONS} can be")
        for region in self.memory:
            region.check(1 << self.maxphyaddr)
        in_order = sorted(self.memory, key=lambda region: region.gpa)
        for before, region in itertools.pairwise(in_order):
            if region.gpa < before.gpa + before.size:
                raise ValueError(f"memory region {region.gpa:#x} overlaps the one before it")
        if all(region.kind != "ram" for region in self.memory):
            raise ValueError("none of its memory regions is RAM")
        if not isinstance(self.backends, dict):
            raise TypeError(f"backends is {_show(self.backends)}, must be sizes by name")
        for name, size in self.backends.items():
            _check_number(f"the size of {_show(name)}", size, 1, MAX_MEMORY)
        _check_number("memory_end", self.memory_end, 0, 1 << self.maxphyaddr)
        if len(self.memories) > MEMORY_UNKNOWN:
            raise ValueError(f"it names {len(self.memories)} backing memories, at most {MEMORY_UNKNOWN} can be")
        if sum(self.memory_sizes().values()) > MAX_MEMORY:
            raise ValueError(f"its backing memories have more than {MAX_MEMORY:#x} bytes")

    def memory_sizes(self) -> dict[str, int]:
        """Bytes of each backing memory, as far as HEAD shows it, in the order of :attr:`memories`."""
        sizes: dict[str, int] = {}
        for region in self.memory:
            sizes[region.memory] = max(sizes.get(region.memory, 0), region.offset + region.size)
        for name, size in self.backends.items():
            sizes[name] = max(sizes.get(name, 0), size)
        return sizes


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
            fields = _load_json(data)
            known = {name: fields.pop(name) for name in _TRAILER_FIELDS if name in fields}
            trailer = replace(cls(**known), extra=fields)
            trailer.check()
        except (ValueError, TypeError, AttributeError) as error:
            raise RecordingError(f"{path}: its trailer cannot be used: {error}") from error
        return trailer

    def check(self) -> None:
        """Refuse what is no total; ValueError names the first."""
        for name in ("records", "seen", "stale"):
            _check_number(name, getattr(self, name), 0, U64)
        if not isinstance(self.counts, dict):
            raise TypeError(f"counts is {_show(self.counts)}, must be an object")
        for name, count in self.counts.items():
            _check_number(f"the count of {_show(name)}", count, 0, U64)
        if not isinstance(self.left_out, dict):
            raise TypeError(f"left_out is {_show(self.left_out)}, must be an object")
        for name, count in self.left_out.items():
            _check_number(f"the count of {_show(name)}", count, 0, U64)
        _check_number("smm", self.smm, 0, U64)
        if not isinstance(self.cut, bool) or not isinstance(self.reason, str):
            raise TypeError(f"cut is {_show(self.cut)} and reason {_show(self.reason)}, must be a truth and text")


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
    """The head in ``data`` (``BLOCK_SIZE`` bytes); None when its checksum is wrong."""
    (crc,) = BLOCK_CRC.unpack_from(data, BLOCK.size)
    head = BlockHead(*BLOCK.unpack_from(data))
    return head if zlib.crc32(data[: BLOCK.size]) == crc else None


# The object in a HEAD or TAIL block. Depth is counted before the parser recurses.
def _load_json(data: bytes) -> dict[str, Any]:
    depth = 0
    text = data.decode()
    for sign in _BRACKETS.findall(_STRINGS.sub("", text)):
        depth += 1 if sign in "[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"its JSON is more than {MAX_DEPTH} deep")
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise TypeError(f"it is {_show(fields)}, must be an object")
    return fields


def _check_number(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} is {_show(value)}, must be {low} to {high if high < U64 else '2**64 - 1'}")


def _check_words(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ValueError(f"{name} is {_show(value)}, must be a list of text")
    return tuple(value)


# A value from a file, short enough for a message.
def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


# A string of JSON, also one that never ends: then nothing is tried twice.
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_BRACKETS = re.compile(r"[\[\]{}]")
