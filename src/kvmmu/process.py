# SPDX-License-Identifier: GPL-2.0-only
"""The process that owns the VM, as its programmer sees it: system calls on its address space, and what is behind one.

``World.mm`` is a :class:`Process`. Its calls look at every argument and pass the door of their world, as those of
``World`` do; then they are those of ``host.mm``, which kvm asks for frames without a door.
"""

from __future__ import annotations

from . import arguments
from .addr import Hpa, Hva
from .calls import looking, working
from .door import Door
from .errors import GuestMisuse
from .host.bits import USER_END
from .host.mm import Mm
from .host.vma import Vma

_LEVELS = "use 1 (4K), 2 (2M) or 3 (1G)"


def _range(start: object, nr_bytes: object) -> None:
    arguments.numbers(start=start, nr_bytes=nr_bytes)


def _level(page_level: object, last: int, rule: str) -> None:
    arguments.whole("page_level", page_level)
    if page_level not in range(1, last + 1):
        raise GuestMisuse(f"page_level {arguments.describe(page_level)}: {rule}")


class Process:
    """One process's address space: ``door`` is that of its world, ``mm`` the address space itself.

    Every call raises :class:`~kvmmu.GuestMisuse` for a closed world or one at work, and for an argument of the wrong
    type or size; nothing has changed then.
    """

    __slots__ = ("_door", "_mm")

    def __init__(self, door: Door, mm: Mm) -> None:
        self._door = door
        self._mm = mm

    def __repr__(self) -> str:
        vmas = self._mm.vmas
        nr_bytes = sum(vma.end - vma.start for vma in vmas)
        return f"<Process ranges {len(vmas)} of {nr_bytes:#x} bytes>"

    # System calls.

    @working
    def mmap(
        self,
        nr_bytes: int,
        backing: str = "anonymous",
        page_level: int = 1,
        populate: bool = False,
        align: int = 0,
    ) -> Hva:
        """Reserve ``nr_bytes`` of writable address space and return its first address.

        ``backing`` is ``anonymous`` or ``shared``; ``page_level`` the largest page that a fault may install (1 = 4K,
        2 = 2M, 3 = 1G); ``populate`` backs everything at once; ``align`` is a power of two, by default the size of
        the largest page.

        :raises UserError: what no mmap() accepts.
        :raises OutOfFrames: while populating; nothing stays mapped.
        """
        arguments.numbers(nr_bytes=nr_bytes, align=align)
        if nr_bytes > USER_END:
            raise GuestMisuse(f"mmap of {nr_bytes:#x} bytes: user addresses end at {USER_END:#x}")
        if not isinstance(backing, str):
            raise GuestMisuse(f"backing {arguments.describe(backing)}: use 'anonymous' or 'shared'")
        _level(page_level, 3, _LEVELS)
        return self._mm.mmap(nr_bytes, backing, page_level, arguments.flag("populate", populate), align)

    @working
    def mmap_fixed(self, start: Hva | int, nr_bytes: int) -> None:
        """``mmap(MAP_FIXED)`` of fresh anonymous memory in small pages at ``start``, over what is there.

        :raises UserError: the range is not one of whole pages that a process may use.
        """
        _range(start, nr_bytes)
        self._mm.mmap_fixed(Hva(start), nr_bytes)

    @working
    def munmap(self, start: Hva | int, nr_bytes: int) -> None:
        """Take ``[start, start + nr_bytes)`` out of the address space; kvm hears of it first.

        :raises UserError: the range is not one of whole pages, or holds nothing.
        """
        _range(start, nr_bytes)
        self._mm.munmap(Hva(start), nr_bytes)

    @working
    def mprotect(self, start: Hva | int, nr_bytes: int, writable: bool) -> None:
        """Allow or forbid writes to ``[start, start + nr_bytes)``; kvm hears of what changes.

        :raises UserError: the range is not one of whole pages, all of them mapped.
        """
        _range(start, nr_bytes)
        self._mm.mprotect(Hva(start), nr_bytes, arguments.flag("writable", writable))

    @working
    def dontneed(self, start: Hva | int, nr_bytes: int) -> None:
        """Forget what ``[start, start + nr_bytes)`` holds (``MADV_DONTNEED``): the next access finds it fresh.

        :raises UserError: the range is not one of whole pages, all of them mapped.
        """
        _range(start, nr_bytes)
        self._mm.dontneed(Hva(start), nr_bytes)

    @working
    def allow_huge(self, start: Hva | int, nr_bytes: int, page_level: int) -> None:
        """``MADV_HUGEPAGE`` (``page_level`` 2) or ``MADV_NOHUGEPAGE`` (1): the largest page of later faults there.

        :raises UserError: the range is not one of whole pages, or ``page_level`` another.
        """
        _range(start, nr_bytes)
        _level(page_level, 2, "use 2 (MADV_HUGEPAGE) or 1 (MADV_NOHUGEPAGE)")
        self._mm.allow_huge(Hva(start), nr_bytes, page_level)

    @working
    def populate(self, start: Hva | int, nr_bytes: int) -> None:
        """Back ``[start, start + nr_bytes)`` as a write (in a read-only range: a read) of each page would.

        :raises UserError: the range is not one of whole pages, all of them mapped.
        :raises OutOfFrames: memory ended; what was backed until then stays.
        """
        _range(start, nr_bytes)
        self._mm.populate(Hva(start), nr_bytes)

    # What reclaim asks.

    @working
    def clear_flush_young(self, start: Hva | int, nr_bytes: int) -> bool:
        """Whether the guest used ``[start, start + nr_bytes)`` since this was last asked; it is forgotten, in TLBs too.

        What the process itself did is not known.

        :raises UserError: the range is not one of whole pages, all of them mapped.
        """
        _range(start, nr_bytes)
        return self._mm.clear_flush_young(Hva(start), nr_bytes)

    @working
    def clear_young(self, start: Hva | int, nr_bytes: int) -> bool:
        """:meth:`clear_flush_young` without a flush: what a TLB still translates may go unnoticed the next time."""
        _range(start, nr_bytes)
        return self._mm.clear_young(Hva(start), nr_bytes)

    @working
    def test_young(self, hva: Hva | int) -> bool:
        """Whether the guest used the page at ``hva``; nothing is forgotten. False where nothing is mapped."""
        arguments.numbers(hva=hva)
        return self._mm.test_young(Hva(hva))

    # The process's own accesses.

    @working
    def fault_in(self, hva: Hva | int, write: bool) -> int:
        """Do what a page fault of the process does: ``VM_FAULT_OK``, ``VM_FAULT_NO_VMA`` or ``VM_FAULT_READ_ONLY``.

        :raises OutOfFrames: memory ended.
        """
        arguments.numbers(hva=hva)
        return self._mm.fault_in(Hva(hva), arguments.flag("write", write))

    @working
    def user_access(self, hva: Hva | int, write: bool) -> Hpa:
        """Physical address of the byte at ``hva`` for an access of the process, which faults it in.

        ``NO_HPA`` (``host.bits``) when the process could not make that access.

        :raises OutOfFrames: memory ended.
        """
        arguments.numbers(hva=hva)
        return self._mm.user_access(Hva(hva), arguments.flag("write", write))

    # Looking.

    @property
    @looking
    def vmas(self) -> list[Vma]:
        """All ranges by ascending address."""
        return self._mm.vmas

    @looking
    def find_vma(self, hva: Hva | int) -> Vma | None:
        """The range that holds ``hva``, or None."""
        arguments.numbers(hva=hva)
        return self._mm.find_vma(Hva(hva))

    @looking
    def hpte(self, hva: Hva | int) -> int:
        """The process's page table word of ``hva``'s 4K page (``HPTE_*`` of ``host.bits``); 0: nothing is mapped."""
        arguments.numbers(hva=hva)
        return self._mm.hpte(Hva(hva))

    @looking
    def mapping_level(self, hva: Hva | int) -> int:
        """Size of the mapping that covers ``hva``: 1 = 4K, 2 = 2M, 3 = 1G; 1 also when there is none."""
        arguments.numbers(hva=hva)
        return self._mm.mapping_level(Hva(hva))
