# SPDX-License-Identifier: GPL-2.0-only
"""The fast page fault: a present leaf that lost only its W bit gets it back by one cmpxchg, without ``mmu_lock``.

Direct MMUs only: the gfn behind an indirect entry may change meanwhile. Reference: "Fast page fault".
"""

from __future__ import annotations

from ...addr import Hpa
from ...hw.bits import PT_PRESENT, PT_WRITABLE
from ...page_types import NOTHING
from ..dirtylog import mark_page_dirty_in_slot
from ..vcpu import Vcpu
from ..vm import Vm
from .fault import PageFault
from .mmutrace import trace_fast_page_fault
from .pages import sptep_to_sp
from .role import role_level
from .shadowwalk import begin_lockless_walk, end_lockless_walk, find_last_sptep
from .spte import (
    SpteFormat,
    ad_enabled,
    is_access_tracked,
    is_executable,
    is_last,
    is_mmu_writable,
    is_shadow_present,
    is_writable,
    restore_access_track,
)
from .verdict import RET_PF_FIXED, RET_PF_INVALID, RET_PF_SPURIOUS

#: Lost races after which the slow path takes over.
_MOST_TRIES = 5


def may_be_fast(vm: Vm, fault: PageFault) -> bool:
    """Only a write to a present page can be, or any access where kvm tracks accesses for want of A bits."""
    if fault.rsvd:
        return False
    if not fault.present:
        return vm.fmt.accessed_mask == 0
    return fault.write


def is_access_allowed(fmt: SpteFormat, fault: PageFault, spte: int) -> bool:
    """Whether ``spte`` allows the access of ``fault`` already."""
    if fault.exec:
        return is_executable(fmt, spte)
    if fault.write:
        return is_writable(spte)
    return spte & PT_PRESENT != 0


def fixed_spte(vm: Vm, fault: PageFault, spte: int, level: int) -> int:
    """What spte could become without the lock; spte itself if nothing."""
    fmt = vm.fmt
    new = spte
    if not ad_enabled(spte) and is_access_tracked(fmt, spte):
        new = restore_access_track(fmt, spte)
    if fault.write and is_mmu_writable(fmt, spte):
        new |= PT_WRITABLE
        if level > 1 and fault.slot is not None and fault.slot.is_dirty_logged():
            return spte
    return new


def try_fix(vcpu: Vcpu, fault: PageFault, sptep: Hpa, spte: int) -> int:
    """One round: INVALID (the slow path must), SPURIOUS, FIXED, or -1: lost the race, look again."""
    vm = vcpu.vm
    level = role_level(sptep_to_sp(vm, sptep).role)
    if not is_shadow_present(spte) or not is_last(spte, level):
        return RET_PF_INVALID
    if is_access_allowed(vm.fmt, fault, spte):
        return RET_PF_SPURIOUS
    new = fixed_spte(vm, fault, spte, level)
    if new == spte or not is_access_allowed(vm.fmt, fault, new):
        return RET_PF_INVALID
    if not vm.memory.cmpxchg(sptep, spte, new):
        return -1
    if is_writable(new) and not is_writable(spte) and fault.slot is not None:
        mark_page_dirty_in_slot(vm, vcpu, fault.slot, fault.gfn)
    return RET_PF_FIXED


def fast_page_fault(vcpu: Vcpu, fault: PageFault) -> int:
    """INVALID: take the slow path. Takes no lock."""
    if not may_be_fast(vcpu.vm, fault):
        return RET_PF_INVALID
    begin_lockless_walk(vcpu)
    try:
        ret = fix_lockless(vcpu, fault)
    finally:
        end_lockless_walk(vcpu)
    if ret != RET_PF_INVALID:
        vcpu.stat.pf_fast += 1
    return ret


def fix_lockless(vcpu: Vcpu, fault: PageFault) -> int:
    """Find the leaf of fault and fix it, again while others change it, at most five times; inside a lockless walk."""
    vm = vcpu.vm
    ret = -1
    tries = 0
    sptep: Hpa = NOTHING
    spte = 0
    while ret < 0:
        sptep = find_last_sptep(vcpu, fault.addr)
        spte = vm.memory.read_once(sptep) if sptep else 0
        ret = try_fix(vcpu, fault, sptep, spte) if sptep else RET_PF_INVALID
        tries += 1
        if ret < 0 and tries == _MOST_TRIES:
            ret = RET_PF_INVALID
    if vm.trace.on:
        new = vm.memory.read_once(sptep) if sptep else 0
        trace_fast_page_fault(vm.trace, vcpu.vcpu_id, fault.addr, fault.error_code, sptep, spte, new, ret)
    return ret
