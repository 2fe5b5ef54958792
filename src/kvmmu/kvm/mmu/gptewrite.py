# SPDX-License-Identifier: GPL-2.0-only
"""What an emulated write to a mirrored guest table does to the pages that mirror it; and giving up on mirroring it.

An aligned write zaps the sptes of the entries that it changed. A misaligned one, and the third in a row to a table that
nobody walks meanwhile (a flood: the page is no table any more), zap the whole page.
Reference: "Write tracking and emulated writes to guest tables", "Emulator memory path, retry and unprotect".
"""

from __future__ import annotations

from ...addr import Address, Gfn, Gpa, Hpa, gpa_to_gfn, page_offset
from ...host.bits import NO_HPA
from ...hw.bits import CR4_PAE, PFERR_WRITE
from ...page_types import NOTHING
from ..bits import INVALID_GPA
from ..vcpu import Vcpu
from ..vm import Vm
from .page import ShadowPage
from .pages import count_flood, first_gfn_sp, next_gfn_sp
from .role import role_direct, role_has_4_byte_gpte, role_level, role_quadrant
from .spte import is_shadow_present
from .track import is_anything_shadowed
from .walker import gpte_place, gva_to_gpa, read_gpte
from .zap import commit_zap, flush_or_zap, prepare_zap, zap_pte

#: Emulated writes to one page since its last use in a walk that make a flood.
_FLOOD_LIMIT = 3


def is_misaligned(sp: ShadowPage, gpa: Gpa, nr_bytes: int) -> bool:
    """Whether the write does not fit the entries of sp; one byte at an entry's start is how clear_bit() writes."""
    offset = page_offset(gpa)
    mask = 3 if role_has_4_byte_gpte(sp.role) else 7
    if offset & mask == 0 and nr_bytes == 1:
        return False
    return (offset ^ (offset + nr_bytes - 1)) & ~mask != 0 or nr_bytes < 4


def is_flood(vm: Vm, sp: ShadowPage) -> bool:
    """Count a write to sp. Level-1 pages are exempt: they go out of sync instead of being written under protection."""
    if role_level(sp.role) == 1:
        return False
    return count_flood(vm, sp) >= _FLOOD_LIMIT


def written_sptep(sp: ShadowPage, gpa: Gpa) -> Hpa:
    """First spte of sp that mirrors the entry at gpa; 0 if another quadrant does."""
    offset = page_offset(gpa)
    if role_has_4_byte_gpte(sp.role):
        offset <<= 1
        if role_level(sp.role) == 2:
            # A 4M entry is two of 2M.
            offset = (offset & ~7) << 1
        if offset >> 12 != role_quadrant(sp.role):
            return NOTHING  # type: ignore[no-any-return]  # 0 is no address of any kind
        offset &= 4095
    return sp.spt + (offset & ~7)


def nr_written(sp: ShadowPage) -> int:
    """Sptes of sp that mirror one entry."""
    return 2 if role_has_4_byte_gpte(sp.role) and role_level(sp.role) == 2 else 1


def written_gpte(vcpu: Vcpu, gpa: Gpa, nr_bytes: int) -> int:
    """The entry as it is after the write; 0 if it is not a whole one or cannot be read."""
    if nr_bytes != 4 and nr_bytes != 8:
        return 0
    place = gpte_place(vcpu, gpa)
    if place == NO_HPA:
        return 0
    return read_gpte(vcpu, place, nr_bytes)


def zap_written(vcpu: Vcpu, sp: ShadowPage, gpa: Gpa, gpte: int) -> bool:
    """Zap the sptes of sp that mirror what was written at gpa; returns whether TLBs must be flushed."""
    vm = vcpu.vm
    sptep = written_sptep(sp, gpa)
    if sptep == 0:
        return False
    flush = False
    for i in range(nr_written(sp)):
        if is_shadow_present(vm.memory.read_once(sptep + (i << 3))):
            flush = True
        zap_pte(vm, sp, sptep + (i << 3))
        if gpte and role_level(sp.role) != 1:
            vm.stat.mmu_pde_zapped += 1
    return flush


def track_write(vcpu: Vcpu, gpa: Gpa, nr_bytes: int) -> int:
    """The guest's ``nr_bytes`` (within one page) at ``gpa`` were written by emulation: zap what mirrors them.

    Takes ``mmu_lock`` exclusively, if anything is mirrored at all.
    """
    vm = vcpu.vm
    # Either the count is seen here, or the store is seen by the fault that reads the table again after counting.
    vm.gate.smp_mb()
    if not is_anything_shadowed(vm):
        return 0
    vm.mmu_lock.write_lock()
    gfn = gpa_to_gfn(gpa)
    if vcpu.cr4 & CR4_PAE and nr_bytes == 4:
        # One half of a 64-bit entry.
        gpa &= ~7
        nr_bytes = 8
    gpte = written_gpte(vcpu, gpa, nr_bytes)
    vm.stat.mmu_pte_write += 1
    invalid_list: list[ShadowPage] = []
    flush = False
    sp = first_gfn_sp(vm, gfn)
    while sp is not None:
        if is_misaligned(sp, gpa, nr_bytes) or is_flood(vm, sp):
            prepare_zap(vm, sp, invalid_list)
            vm.stat.mmu_flooded += 1
        elif zap_written(vcpu, sp, gpa, gpte):
            flush = True
        sp = next_gfn_sp(vm, sp.hash_next, gfn)
    flush_or_zap(vm, invalid_list, flush)
    vm.mmu_lock.write_unlock()
    return 0


def unprotect_gfn(vm: Vm, gfn: Gfn) -> bool:
    """Zap every page that mirrors a table at ``gfn``; takes ``mmu_lock`` exclusively. Return whether any page went.

    A root in use does not go: it only becomes invalid, and what lies below it is what may go.
    """
    vm.mmu_lock.write_lock()
    invalid_list: list[ShadowPage] = []
    sp = first_gfn_sp(vm, gfn)
    while sp is not None:
        prepare_zap(vm, sp, invalid_list)
        sp = next_gfn_sp(vm, sp.hash_next, gfn)
    done = len(invalid_list) != 0
    commit_zap(vm, invalid_list)
    vm.mmu_lock.write_unlock()
    return done


def unprotect_and_retry(vcpu: Vcpu, addr: Address, always: bool) -> bool:
    """Stop mirroring the table at ``addr`` (gva; gpa for a direct MMU) and note that the guest may try again there.

    Return whether anything was zapped; with ``always`` the retry is noted even if not.
    """
    vm = vcpu.vm
    done = False
    if is_anything_shadowed(vm):
        gpa: Gpa = addr
        if not role_direct(vcpu.mmu.root_role):
            gpa = gva_to_gpa(vcpu, vcpu.walk_mmu, addr, PFERR_WRITE)
        if gpa != INVALID_GPA:
            done = unprotect_gfn(vm, gpa_to_gfn(gpa))
    if done or always:
        vcpu.last_retry_eip = vcpu.rip
        vcpu.last_retry_addr = addr
    return done
