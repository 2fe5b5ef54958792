# SPDX-License-Identifier: GPL-2.0-only
"""Host frames: who gets which 4K of physical memory, and how many users each has.

Single frames come from a stack of returned ones (last returned, first handed out), then from memory that was never
used, bottom up. Blocks of 2M and 1G are naturally aligned runs of frames, carved top down. A block is one page with
one reference count, kept in its first frame (a folio): a reference to any of its frames is a reference to all, and
the block is free when the last is gone. When nothing else is left, returned blocks are broken into smaller pieces.

Frame 0 and the shared zero page are reserved: they are never handed out and never become free.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any

from ..addr import Pfn, pages_per_level, pfn_to_hpa
from ..errors import KvmBug, OutOfFrames, UserError
from ..hw.memory import PhysicalMemory
from .bits import PG_ACCESSED, PG_BLOCK_1G, PG_BLOCK_2M, PG_DIRTY, PG_RESERVED, SMALL_ARRAY_WORDS

_MAX_FRAMES = 1 << 32
# Below this many bytes an array is not worth a mapping of its own.
_SMALL_ARRAY = 1 << 16
# Linux: do not account memory for pages that may never be written. Python names it only from 3.13 on.
_MAP_NORESERVE = 0x4000
# Owners are kept in lists of so many frames, made when the first of them gets one.
_OWNERS_SHIFT = 9
_OWNERS_MASK = 511
_PG_BLOCK_MASK = PG_BLOCK_2M | PG_BLOCK_1G


def zeroed_array(typecode: str, count: int) -> memoryview:
    """``count`` zero words of ``struct`` format ``typecode``; a large array takes memory only where it is written.

    :class:`MemoryError` when the process cannot have it.
    """
    nr_bytes = struct.calcsize(typecode) * count
    if nr_bytes < _SMALL_ARRAY:
        return memoryview(bytearray(max(nr_bytes, 8))).cast(typecode)[:count]  # type: ignore[call-overload, no-any-return]  # memoryview knows typecodes as literals
    try:
        area = mmap.mmap(-1, nr_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{nr_bytes} bytes: {error}") from None
    return memoryview(area).cast(typecode)  # type: ignore[call-overload, no-any-return]  # memoryview knows typecodes as literals


class SmallArrays:
    """Zeroed arrays of few words for many owners, cut from larger ones, which live as long as anything that is in use.

    An array of its own is several objects, which the garbage collector visits; a part of one is none when compiled.
    """

    __slots__ = ("counts", "longs", "nr_counts", "nr_longs")

    def __init__(self) -> None:
        self.longs: Any = zeroed_array("Q", 0)
        self.nr_longs = 0
        self.counts: Any = zeroed_array("i", 0)
        self.nr_counts = 0

    def take_words(self, count: int) -> Any:
        """``count`` zero words of 64 bits, at most SMALL_ARRAY_WORDS."""
        first = self.nr_longs
        if first + count > len(self.longs):
            self.longs = zeroed_array("Q", SMALL_ARRAY_WORDS)
            first = 0
        self.nr_longs = first + count
        return self.longs[first : first + count]

    def take_counts(self, count: int) -> Any:
        """``count`` zero words of 32 bits with a sign, at most SMALL_ARRAY_WORDS."""
        first = self.nr_counts
        if first + count > len(self.counts):
            self.counts = zeroed_array("i", SMALL_ARRAY_WORDS)
            first = 0
        self.nr_counts = first + count
        return self.counts[first : first + count]


def nonzero_words(array: memoryview) -> list[tuple[int, int]]:
    """Index and value of each word of ``array`` that is not zero; what was never written costs next to nothing."""
    words = _SMALL_ARRAY // array.itemsize
    zeros = bytes(_SMALL_ARRAY)
    found = []
    for start in range(0, len(array), words):
        part = array[start : start + words]
        if part.tobytes() != zeros[: part.nbytes]:
            found += [(start + i, word) for i, word in enumerate(part) if word]
    return found


class FrameAllocator:
    """Hands out the frames of ``memory`` and counts their users.

    :class:`UserError` for a memory of fewer than 3 frames (two are reserved) or more than 2**32.
    """

    __slots__ = (
        "flags",
        "free_blocks",
        "free_frames",
        "fresh_pfn",
        "memory",
        "nr_frames",
        "nr_free",
        "nr_stacked",
        "owners",
        "refcount",
        "top_pfn",
        "zero_pfn",
    )

    def __init__(self, memory: PhysicalMemory) -> None:
        nr = memory.nr_frames
        if nr < 3 or nr > _MAX_FRAMES:
            raise UserError(f"{nr} frames of memory: a host needs 3 to 2**32 (frame 0 and the zero page are reserved)")
        self.memory = memory
        self.nr_frames = nr
        self.refcount = zeroed_array("i", nr)
        self.flags = zeroed_array("B", nr)
        self.owners: list[Any] = [None] * ((nr >> _OWNERS_SHIFT) + 1)
        self.free_frames = zeroed_array("I", nr)
        self.nr_stacked = 0
        self.free_blocks: list[list[Pfn]] = [[], [], [], []]
        self.zero_pfn = Pfn(1)
        for pfn in (0, 1):
            self.refcount[pfn] = 1
            self.flags[pfn] = PG_RESERVED
        self.fresh_pfn = Pfn(2)
        self.top_pfn = Pfn(nr)
        self.nr_free = nr - 2

    def alloc(self) -> Pfn:
        """One frame with one reference, its contents unspecified; :class:`OutOfFrames` when none is left."""
        if self.nr_stacked == 0:
            return self._alloc_slow()
        self.nr_stacked -= 1
        pfn = self.free_frames[self.nr_stacked]
        self.refcount[pfn] = 1
        self.nr_free -= 1
        return pfn  # type: ignore[return-value]  # the stack holds pfns

    def alloc_zeroed(self) -> Pfn:
        """One frame of zeros with one reference; :class:`OutOfFrames` when none is left."""
        if self.nr_stacked == 0 and self.fresh_pfn < self.top_pfn:
            return self._alloc_slow()
        pfn = self.alloc()
        self.memory.fill_words(pfn_to_hpa(pfn), 0, 512)
        return pfn

    def alloc_block(self, level: int) -> Pfn:
        """First frame of an aligned block of 2M (``level`` 2) or 1G (3) with one reference, its contents unspecified.

        :class:`OutOfFrames` when no such run is free, :class:`UserError` for another level.
        """
        if level not in (2, 3):
            raise UserError(f"a block of level {level}: blocks are 2M (2) or 1G (3); alloc() gives 4K")
        pfn: Pfn = self.free_blocks[level].pop() if self.free_blocks[level] else self._carve(level)
        self._own_block(pfn, level)
        return pfn

    def alloc_block_zeroed(self, level: int) -> Pfn:
        """:meth:`alloc_block` with every byte zero."""
        fresh = level >= 2 and level <= 3 and not self.free_blocks[level] and (level == 3 or not self.free_blocks[3])
        pfn = self.alloc_block(level)
        # What was never handed out is still zero; leave it untouched, so that it takes no memory of the real host.
        if not fresh:
            self.memory.fill_words(pfn_to_hpa(pfn), 0, pages_per_level(level) * 512)
        return pfn

    def head(self, pfn: Pfn) -> Pfn:
        """First frame of the block that holds ``pfn``, or ``pfn`` itself: where its count and flags are kept."""
        if self.flags[pfn] & _PG_BLOCK_MASK == 0:
            return pfn
        return pfn & ~(pages_per_level(2 if self.flags[pfn] & PG_BLOCK_2M else 3) - 1)

    def get(self, pfn: Pfn) -> int:
        """Take a reference to a frame in use; :class:`KvmBug` if it is free or does not exist."""
        return self.get_many(pfn, 1)

    def get_many(self, pfn: Pfn, nr: int) -> int:
        """Take ``nr`` references at once; see :meth:`get`."""
        self._must_be_in_use(pfn)
        self.refcount[self.head(pfn)] += nr
        return 0

    def put(self, pfn: Pfn) -> int:
        """Drop a reference; the last one frees the frame or its whole block. :class:`KvmBug` if it is free."""
        self._must_be_in_use(pfn)
        pfn = self.head(pfn)
        count = self.refcount[pfn] - 1
        if count == 0:
            if self.flags[pfn] & PG_RESERVED:
                raise KvmBug(f"put of the last reference to reserved pfn {pfn:#x}")
            self._free(pfn)
        self.refcount[pfn] = count
        return 0

    def nr_refs(self, pfn: Pfn) -> int:
        """References to the frame or its block; 0 if it is free or does not exist."""
        if pfn >= self.nr_frames:
            return 0
        return self.refcount[self.head(pfn)]

    def flags_of(self, pfn: Pfn) -> int:
        """``PG_*`` bits of the frame or its block; :class:`KvmBug` if it is free."""
        self._must_be_in_use(pfn)
        return self.flags[self.head(pfn)]

    def owner(self, pfn: Pfn) -> Any:
        """What the frame's owner keeps with it (``page_private``: a ShadowPage); None: nothing, or no such frame."""
        if pfn >= self.nr_frames:
            return None
        owners = self.owners[pfn >> _OWNERS_SHIFT]
        if owners is None:
            return None
        return owners[pfn & _OWNERS_MASK]

    def set_owner(self, pfn: Pfn, owner: Any) -> int:
        """Keep ``owner`` (None: nobody) with a frame until it is freed; :class:`KvmBug` if the frame is free."""
        self._must_be_in_use(pfn)
        owners = self.owners[pfn >> _OWNERS_SHIFT]
        if owners is None:
            owners = [None] * (_OWNERS_MASK + 1)
            self.owners[pfn >> _OWNERS_SHIFT] = owners
        owners[pfn & _OWNERS_MASK] = owner
        return 0

    def all_owners(self) -> list[Any]:
        """Every owner that a frame has, by ascending pfn."""
        return [owner for owners in self.owners if owners is not None for owner in owners if owner is not None]

    def mark_dirty(self, pfn: Pfn) -> int:
        """Note that the frame or its block was written to; :class:`KvmBug` if it is free."""
        self._must_be_in_use(pfn)
        self.flags[self.head(pfn)] |= PG_DIRTY
        return 0

    def mark_accessed(self, pfn: Pfn) -> int:
        """Note that the frame or its block was used; :class:`KvmBug` if it is free."""
        self._must_be_in_use(pfn)
        self.flags[self.head(pfn)] |= PG_ACCESSED
        return 0

    # A frame when the stack is empty: fresh memory first, then the pieces of a returned block.
    def _alloc_slow(self) -> Pfn:
        if self.fresh_pfn < self.top_pfn:
            pfn = self.fresh_pfn
            self.fresh_pfn += 1
            self.refcount[pfn] = 1
            self.nr_free -= 1
            return pfn
        if not self.free_blocks[2] and self.free_blocks[3]:
            pfn = self.free_blocks[3].pop()
            self._break_down(pfn, pfn + pages_per_level(3))
        if not self.free_blocks[2]:
            size = self.nr_frames >> 8
            raise OutOfFrames(f"no free frame left of nr_frames={self.nr_frames} ({size} MB): give the host more")
        pfn = self.free_blocks[2].pop()
        # Descending, so that the stack hands them out in ascending order.
        for i in range(pages_per_level(2)):
            self.free_frames[i] = pfn + pages_per_level(2) - 1 - i
        self.nr_stacked = pages_per_level(2)
        return self.alloc()

    # A block from fresh memory, top down; what lies between it and the previous block becomes free in smaller pieces.
    def _carve(self, level: int) -> Pfn:
        nr = pages_per_level(level)
        if self.top_pfn >= nr and (self.top_pfn - nr) & ~(nr - 1) >= self.fresh_pfn:
            first = (self.top_pfn - nr) & ~(nr - 1)
            self._break_down(first + nr, self.top_pfn)
            self.top_pfn = first
            return first
        if level == 2 and self.free_blocks[3]:
            first = self.free_blocks[3].pop()
            self._break_down(first, first + pages_per_level(3))
            return self.free_blocks[2].pop()
        size = "2M" if level == 2 else "1G"
        raise OutOfFrames(f"no free aligned {size} block in nr_frames={self.nr_frames} ({self.nr_free} free)")

    # Make the free run [pfn, end) available as 2M blocks and, outside of those, as frames.
    def _break_down(self, pfn: Pfn, end: Pfn) -> int:
        while pfn < end:
            block = (pfn + 511) & ~511
            if block == pfn and pfn + 512 <= end:
                self.free_blocks[2].append(pfn)
                pfn += 512
            else:
                self.free_frames[self.nr_stacked] = pfn
                self.nr_stacked += 1
                pfn += 1
        return 0

    # Turn a free run into a block with one reference.
    def _own_block(self, pfn: Pfn, level: int) -> int:
        for i in range(pages_per_level(level)):
            self.flags[pfn + i] = PG_BLOCK_2M if level == 2 else PG_BLOCK_1G
        self.refcount[pfn] = 1
        self.nr_free -= pages_per_level(level)
        return 0

    # Return a frame or a whole block whose last reference goes.
    def _free(self, pfn: Pfn) -> int:
        if self.owners[pfn >> _OWNERS_SHIFT] is not None:
            self.set_owner(pfn, None)
        if self.flags[pfn] & _PG_BLOCK_MASK == 0:
            self.flags[pfn] = 0
            self.free_frames[self.nr_stacked] = pfn
            self.nr_stacked += 1
            self.nr_free += 1
            return 0
        level = 2 if self.flags[pfn] & PG_BLOCK_2M else 3
        for i in range(pages_per_level(level)):
            self.flags[pfn + i] = 0
        self.free_blocks[level].append(pfn)
        self.nr_free += pages_per_level(level)
        return 0

    # Whatever touches a frame must hold it; a compiled subscript beyond the end would corrupt memory.
    def _must_be_in_use(self, pfn: Pfn) -> int:
        if pfn >= self.nr_frames:
            raise KvmBug(f"pfn {pfn:#x} does not exist: memory has {self.nr_frames:#x} frames")
        if self.refcount[self.head(pfn)] <= 0:
            raise KvmBug(f"pfn {pfn:#x} is free")
        return 0
