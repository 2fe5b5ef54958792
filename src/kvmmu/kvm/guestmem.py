# SPDX-License-Identifier: GPL-2.0-only
"""Guest memory as KVM reaches it: gpa -> memslot -> hva -> whatever the process has there.

This is how the hypervisor reads and writes what belongs to the guest: its page tables, the operands of emulated
instructions. Such an access faults pages of the process in like any other of its accesses, sees no memory where there
is no slot or an INVALID one, cannot write to read-only slots, and a write marks its page dirty. The process that owns
the VM needs none of that: its stores go to its own memory.
"""

from __future__ import annotations

from errno import EFAULT

from ..addr import Gpa, Hpa, gpa_to_gfn, page_offset
from ..host.bits import NO_HPA
from ..host.mm import Mm
from ..page_types import PAGE_SIZE
from .bits import PAGE_OFFSET
from .dirtylog import mark_page_dirty_in_slot
from .memslots import Memslots
from .vm import Vm


def gpa_to_hpa(slots: Memslots, mm: Mm, gpa: Gpa, write: bool) -> Hpa:
    """Physical address of the guest's byte ``gpa``, for an access by the hypervisor; valid up to the page's end.

    ``NO_HPA`` when there is none: no slot, an INVALID one, a write to a read-only one, or nothing at the hva that
    permits the access. Faults the page in. A writer calls ``dirtylog.mark_page_dirty_in_slot()`` after the store.
    :class:`~kvmmu.errors.OutOfFrames` when the host's memory ends.
    """
    gfn = gpa_to_gfn(gpa)
    slot = slots.find(gfn)
    if slot is None:
        return NO_HPA
    hva = slot.gfn_to_hva_prot(gfn, write)
    if hva >= PAGE_OFFSET:
        return NO_HPA
    return mm.user_access(hva + page_offset(gpa), write)


def read_guest(vm: Vm, as_id: int, gpa: Gpa, length: int) -> bytes | None:
    """``length`` bytes from ``gpa`` on in address space ``as_id``, across pages and slots (``kvm_read_guest``).

    None (the kernel's -EFAULT) when any of them cannot be read.
    """
    slots: Memslots = vm.slots_of(as_id)
    if 0 < length <= PAGE_SIZE - page_offset(gpa):
        hpa = gpa_to_hpa(slots, vm.mm, gpa, False)
        return None if hpa == NO_HPA else vm.memory.read(hpa, length)
    parts: list[bytes] = []
    while length > 0:
        chunk = min(length, PAGE_SIZE - page_offset(gpa))
        hpa = gpa_to_hpa(slots, vm.mm, gpa, False)
        if hpa == NO_HPA:
            return None
        parts.append(vm.memory.read(hpa, chunk))
        gpa += chunk
        length -= chunk
    return b"".join(parts)


def write_guest(vm: Vm, as_id: int, gpa: Gpa, data: bytes) -> int:
    """Write ``data`` at ``gpa`` in address space ``as_id``, across pages and slots (``kvm_write_guest``).

    0, or -EFAULT when a page cannot be written; the pages before it have been. Marks what it wrote dirty.
    """
    slots: Memslots = vm.slots_of(as_id)
    done = 0
    while done < len(data):
        chunk = min(len(data) - done, PAGE_SIZE - page_offset(gpa))
        hpa = gpa_to_hpa(slots, vm.mm, gpa, True)
        if hpa == NO_HPA:
            return -EFAULT
        vm.memory.write(hpa, data[done : done + chunk])
        mark_page_dirty_in_slot(vm, None, slots.find(gpa_to_gfn(gpa)), gpa_to_gfn(gpa))
        gpa += chunk
        done += chunk
    return 0


def write_from_process(vm: Vm, as_id: int, gpa: Gpa, data: bytes) -> int:
    """Write ``data`` to the process's memory behind ``gpa``: what a VMM's own store does. Kvm does not see it.

    Neither the slot's READONLY nor its dirty log matter. 0, or -EFAULT with nothing written: a byte is in no slot, or
    the process could not write it. :class:`~kvmmu.errors.OutOfFrames` when memory ends, likewise with nothing written.
    """
    slots: Memslots = vm.slots_of(as_id)
    places: list[tuple[Hpa, int, int]] = []
    length = len(data)
    done = 0
    while done < length:
        chunk = min(length - done, PAGE_SIZE - page_offset(gpa))
        slot = slots.find(gpa_to_gfn(gpa))
        if slot is None:
            return -EFAULT
        hpa = vm.mm.user_access(slot.gfn_to_hva(gpa_to_gfn(gpa)) + page_offset(gpa), True)
        if hpa == NO_HPA:
            return -EFAULT
        if chunk == length:
            vm.memory.write(hpa, data)
            return 0
        places.append((hpa, done, done + chunk))
        gpa += chunk
        done += chunk
    for hpa, start, end in places:
        vm.memory.write(hpa, data[start:end])
    return 0
