# SPDX-License-Identifier: GPL-2.0-only
"""What kvm's own tables map, as ranges: every leaf and MMIO spte below a root, and neighbours that are alike joined.

For people who look: nothing here is part of a fault. Reference: "SPTE formats".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...addr import Gpa, Hpa
from ...adjacent import joined
from ...hw.bits import PT_PRESENT, PT_USER, PT_WRITABLE
from ...page_types import ENTRIES, INVALID_PAGE, PAGE_SIZE
from ..vm import Vm
from .bits import ACC_EXEC, ACC_NAMES, ACC_USER, ACC_WRITE, SPTE_BASE_ADDR_MASK
from .context import Mmu
from .page import ShadowPage
from .pages import root_to_sp, sp_gfn, sptep_index, sptep_to_sp
from .role import describe_role, role_direct, role_level
from .shadowwalk import is_dummy_root
from .spte import (
    ad_enabled,
    ad_need_write_protect,
    is_access_tracked,
    is_accessed,
    is_dirty,
    is_executable,
    is_host_writable,
    is_last,
    is_mmio,
    is_mmu_writable,
    is_shadow_present,
    mmio_access,
    mmio_generation,
    mmio_gfn,
    spte_to_child,
    spte_to_pfn,
)
from .unsync import is_unsync

_PAE_LEVEL = 3


@dataclass(frozen=True, slots=True)
class SpteRange:
    """Pages of ``page_size`` bytes that follow one another and whose sptes are alike.

    ``start`` is a gva under shadow paging, a gpa under nested paging and for an unpaged guest; ``hpa`` None for MMIO.
    ``rights`` are those of the sptes, as kvm writes access triples (``wux``); ``flags`` are ``accessed``, ``dirty``,
    ``host-writable``, ``mmu-writable``, ``mmio``, ``generation 0x...`` (of MMIO), ``ad-disabled``, ``ad-wrprot-only``,
    ``access-tracked`` and ``unsync`` (the table is); ``role`` is that of the shadow page that holds the sptes.
    """

    start: int
    gpa: Gpa
    hpa: Hpa | None
    nr_bytes: int
    page_size: int
    rights: str
    flags: tuple[str, ...]
    role: int

    def __repr__(self) -> str:
        where = "mmio" if self.hpa is None else f"hpa {self.hpa:#x}"
        return (
            f"<SpteRange {self.start:#x} + {self.nr_bytes:#x}: gpa {self.gpa:#x} {where} {self.page_size:#x}"
            f" {self.rights} {' '.join(self.flags)} ({describe_role(self.role)})>"
        )

    def is_followed_by(self, other: SpteRange) -> bool:
        """Whether ``other`` continues this range."""
        hpa = None if self.hpa is None else self.hpa + self.nr_bytes
        return (
            (other.start, other.gpa, other.hpa) == (self.start + self.nr_bytes, self.gpa + self.nr_bytes, hpa)
            and (other.page_size, other.rights, other.flags) == (self.page_size, self.rights, self.flags)
            and other.role == self.role
        )


def current_ranges(vm: Vm, mmu: Mmu) -> Iterator[SpteRange]:
    """:func:`root_ranges` of the root that ``mmu`` uses now; nothing without one, or for the dummy root."""
    root = mmu.root_hpa
    if root == INVALID_PAGE or is_dummy_root(vm, root):
        return
    yield from root_ranges(vm, root, role_level(mmu.root_role), not role_direct(mmu.root_role))


def root_ranges(vm: Vm, root: Hpa, level: int, is_shadow: bool) -> Iterator[SpteRange]:
    """All that the tables below ``root`` map, ascending; takes no lock: nobody may change them meanwhile.

    A root of ``level`` 3 is a PAE root. ``is_shadow``: addresses are gvas, of which four and five levels translate
    signed ones.
    """
    sign = (12 + 9 * level - 1) if is_shadow and level > _PAE_LEVEL else 64
    return joined(
        replace(one, start=one.start | ((1 << 64) - (1 << sign))) if one.start >> sign else one
        for one in _leaves(vm, root, level, 0, level == _PAE_LEVEL)
    )


def _leaves(vm: Vm, table: Hpa, level: int, address: int, is_pae_root: bool) -> Iterator[SpteRange]:
    count = 4 if is_pae_root else ENTRIES
    span = PAGE_SIZE << (9 * (level - 1))
    for index, spte in enumerate(memoryview(vm.memory.read(table, count * 8)).cast("Q")):
        start = address + index * span
        if is_pae_root:
            # Entries of a PAE root have P alone.
            if spte & PT_PRESENT:
                yield from _leaves(vm, Hpa(spte & SPTE_BASE_ADDR_MASK), level - 1, start, False)
        elif is_shadow_present(spte):
            if is_last(spte, level):
                yield _leaf(vm, Hpa(table + index * 8), spte, start, span)
            else:
                yield from _leaves(vm, spte_to_child(spte), level - 1, start, False)
        elif is_mmio(vm.fmt, spte):
            rights = ACC_NAMES[mmio_access(vm.fmt, spte)]
            flags = ("mmio", f"generation {mmio_generation(spte):#x}")
            gpa = Gpa(mmio_gfn(vm.fmt, spte) << 12)
            yield SpteRange(start, gpa, None, span, span, rights, flags, sptep_to_sp(vm, table).role)


def _leaf(vm: Vm, sptep: Hpa, spte: int, start: int, span: int) -> SpteRange:
    sp = sptep_to_sp(vm, sptep)
    gpa = Gpa(sp_gfn(vm, sp, sptep_index(sptep)) << 12)
    return SpteRange(
        start, gpa, Hpa(spte_to_pfn(spte) << 12), span, span, _rights(vm, spte), _flags(vm, sp, spte), sp.role
    )


def _rights(vm: Vm, spte: int) -> str:
    triple = ACC_EXEC if is_executable(vm.fmt, spte) else 0
    triple |= ACC_WRITE if spte & PT_WRITABLE else 0
    triple |= ACC_USER if spte & PT_USER else 0
    return ACC_NAMES[triple]


def _flags(vm: Vm, sp: ShadowPage, spte: int) -> tuple[str, ...]:
    fmt = vm.fmt
    flags = {
        "accessed": is_accessed(fmt, spte),
        "dirty": is_dirty(fmt, spte),
        "host-writable": is_host_writable(fmt, spte),
        "mmu-writable": is_mmu_writable(fmt, spte),
        "ad-disabled": not ad_enabled(spte),
        "ad-wrprot-only": ad_enabled(spte) and ad_need_write_protect(spte),
        "access-tracked": is_access_tracked(fmt, spte),
        "unsync": is_unsync(vm, sp),
    }
    return tuple(name for name, is_set in flags.items() if is_set)


def find_root(vm: Vm, mmus: list[Mmu], pgd: int, mask: int) -> tuple[Hpa, int] | None:
    """Root and level of kvm's tables for the guest's CR3 ``pgd``, among what ``mmus`` use now or used before.

    Only the bits of ``mask`` are compared. None: there is no such root.
    """
    for mmu in mmus:
        if mmu.root_hpa != INVALID_PAGE and not is_dummy_root(vm, mmu.root_hpa) and not (mmu.root_pgd ^ pgd) & mask:
            return mmu.root_hpa, role_level(mmu.root_role)
    for mmu in mmus:
        for index in range(3):
            root, before = mmu.prev_root(index)
            sp = root_to_sp(vm, root)
            if sp is not None and not (before ^ pgd) & mask:
                return root, role_level(sp.role)
    return None
