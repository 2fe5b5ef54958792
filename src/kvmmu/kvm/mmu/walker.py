# SPDX-License-Identifier: GPL-2.0-only
"""The software walk of the guest's page tables: what the fault path and the emulator see of them.

One walk for 2-level, PAE, 4- and 5-level tables, and for the EPT of a hypervisor inside, driven by an MMU's CPU role
and the row of its entries' format: of the vCPU's own MMU, or of another context. Guest memory is reached as user
memory of the process that owns the VM, so a read may fault a page in and a store may break copy on write. A/D bits are
set by cmpxchg after the permission check, and a lost race restarts the walk.

The guest's mistakes are values: :func:`walk_addr` says False and the ``#PF`` is in the :class:`GuestWalk`. Reference:
"Guest page-table walker".
"""

from __future__ import annotations

from ...addr import Address, Gfn, Gpa, Gva, Hpa, Hva, gpa_to_gfn, page_offset
from ...errors import KvmBug
from ...host.bits import HPTE_PFN_MASK, HPTE_PRESENT, NO_HPA
from ...host.mm import Mm
from ...hw.bits import (
    CR4_PAE,
    EFER_LMA,
    EPT_RWX,
    EPT_VIOLATION_ACC_INSTR,
    EPT_VIOLATION_ACC_READ,
    EPT_VIOLATION_ACC_WRITE,
    EPT_VIOLATION_GVA_IS_VALID,
    EPT_VIOLATION_GVA_TRANSLATED,
    EPT_VIOLATION_RWX_SHIFT,
    PFERR_FETCH,
    PFERR_GUEST_PAGE,
    PFERR_PRESENT,
    PFERR_RSVD,
    PFERR_USER,
    PFERR_WRITE,
    PT_PAGE_SIZE,
    PT_PKEY_SHIFT,
    PT_PRESENT,
)
from ...hw.memory import PhysicalMemory
from ...page_types import NOTHING, ONE, PAGE_SHIFT, U32, U64
from ..bits import INVALID_GPA
from ..dirtylog import mark_page_dirty_in_slot
from ..guestmem import gpa_to_hpa
from ..memslots import Memslots, is_error_hva
from ..vcpu import Vcpu
from ..vm import Vm
from .bits import (
    PDPTRS_BAD,
    PDPTRS_CHANGED,
    PDPTRS_SAME,
    PTE_PREFETCH_NUM,
    SPTE_BASE_ADDR_MASK,
)
from .context import Mmu, is_rsvd_bits_set, permission_fault
from .gpte import GpteFormat, gpte_access, is_present_gpte, protect_clean
from .mmutrace import (
    trace_pagetable_walk,
    trace_paging_element,
    trace_set_accessed_bit,
    trace_set_dirty_bit,
    trace_walker_error,
)
from .role import (
    cpu_role_efer_nx,
    cpu_role_level,
    cpu_role_paging,
    cpu_role_pse,
    cpu_role_smep,
)

# How one attempt at a walk ends.
_FAILED = 0
_DONE = 1
_RESTART = 2

# Bits 16:13 of a 4M entry are address bits 35:32 (PSE-36); KVM knows no wider form.
_PSE36_MASK = 0xF << 13
_PSE36_SHIFT = 19
# Bits 2:1 and 8:5 of a PDPTE.
_PDPTE_RSVD = 0x1E6
# CR3 of a PAE guest is aligned to 32 bytes.
_PDPT_MASK = 0xFFFF_FFFF_FFFF_FFE0


class GuestWalk:
    """One software walk of the guest's tables and its result; reused by its owner.

    Arrays are indexed by level, 1 to 5. After a walk that succeeded, levels ``level`` to ``max_level`` are filled, and
    ``pte_access``, ``gfn`` and ``gpa`` are the translation; after one that failed, ``error_code`` and
    ``fault_address`` are those of the ``#PF`` and ``level`` is where it ended.
    """

    __slots__ = (
        "all_accessed",
        "error_code",
        "fault_address",
        "gfn",
        "gpa",
        "level",
        "max_level",
        "prefetch_ptes",
        "pt_access",
        "pte_access",
        "pte_gpa",
        "pte_hva",
        "pte_writable",
        "ptes",
        "qualification",
        "rights",
        "table_gfn",
    )

    def __init__(self) -> None:
        self.level = 0
        self.max_level = 0
        self.table_gfn: list[Gfn] = [NOTHING] * 6
        self.ptes = [0] * 6
        self.pte_gpa: list[Gpa] = [NOTHING] * 6
        self.pte_hva: list[Hva] = [NOTHING] * 6
        self.pte_writable = [0] * 6
        self.pt_access = [0] * 6
        self.all_accessed = False
        self.pte_access = 0
        self.gfn: Gfn = NOTHING
        self.gpa: Gpa = NOTHING
        self.prefetch_ptes = [0] * 8
        self.rights = 0
        self.error_code = 0
        self.qualification = 0
        self.fault_address: Address = 0

    def gpte(self, level: int) -> int:
        """The guest entry that was read at ``level`` (1 to 5), with the A/D bits that the walk set."""
        return self.ptes[level]

    def gpte_gpa(self, level: int) -> Gpa:
        """Where the entry at ``level`` lies."""
        return self.pte_gpa[level]

    def __repr__(self) -> str:
        entries = " ".join(f"{self.ptes[level]:#x}" for level in range(self.max_level, max(self.level, 1) - 1, -1))
        if self.error_code:
            return f"<GuestWalk {entries} #PF {self.error_code:#x} at {self.fault_address:#x}>"
        return f"<GuestWalk {entries} level {self.level} access {self.pte_access:#x} gpa {self.gpa:#x}>"


def walk_addr(vcpu: Vcpu, mmu: Mmu, gw: GuestWalk, addr: Gva, access: int) -> bool:
    """Translate ``addr`` by the guest's tables of ``mmu`` for ``access``; fill ``gw``, say whether it is allowed.

    ``access`` has the bits of a page-fault error code (W, U, F), plus bit 48 for an implicit supervisor access. In EPT
    U means a read, bit 33 the access to a table of the guest inside, and a fault has ``gw.qualification`` as well. The
    guest uses paging. Sets A and D as hardware would, and marks the pages of tables that it changed dirty. Takes no
    lock. Raises ``OutOfFrames`` when the host's memory ends, ``KvmBug`` for EFER.LMA without CR4.PAE.
    """
    if vcpu.vm.trace.on:
        trace_pagetable_walk(vcpu.vm.trace, addr, access & U32)
    if vcpu.efer & EFER_LMA and not vcpu.cr4 & CR4_PAE:
        raise KvmBug(f"vcpu {vcpu.vcpu_id}: EFER.LMA without CR4.PAE (cr4 {vcpu.cr4:#x}, efer {vcpu.efer:#x})")
    outcome = _try_walk(vcpu, mmu, gw, addr, access)
    while outcome == _RESTART:
        outcome = _try_walk(vcpu, mmu, gw, addr, access)
    if outcome == _DONE:
        return True
    _make_fault(vcpu, mmu, gw, addr, access)
    return False


# One attempt: down to the leaf, permissions, translation, A/D bits.
def _try_walk(vcpu: Vcpu, mmu: Mmu, gw: GuestWalk, addr: Gva, access: int) -> int:
    gw.error_code = 0
    if not _descend(vcpu, mmu, gw, addr):
        return _FAILED
    gpte = gw.ptes[gw.level]
    # A 4-byte entry has no bits up there, and so key 0; outside long mode, and in EPT, keys mean nothing.
    pkey = (gpte >> PT_PKEY_SHIFT) & 15
    gw.error_code = permission_fault(mmu, gw.pte_access, pkey, access, vcpu.rflags, vcpu.pkru)
    if gw.error_code:
        return _FAILED
    _translate(mmu, gw, addr)
    is_write = (access & PFERR_WRITE) != 0
    if not is_write:
        gw.pte_access = protect_clean(mmu.gpte, gw.pte_access, gpte)
        if gw.all_accessed:
            return _DONE
    elif gw.all_accessed and (gpte & mmu.gpte.dirty_mask) == mmu.gpte.dirty_mask:
        return _DONE
    return _update_accessed_dirty(vcpu, mmu, gw, is_write)


# Read the entries from the root to the leaf. False: not present, reserved (error_code says so), or not readable.
def _descend(vcpu: Vcpu, mmu: Mmu, gw: GuestWalk, addr: Gva) -> bool:
    vm: Vm = vcpu.vm
    fmt: GpteFormat = mmu.gpte
    mm: Mm = vm.mm
    memory: PhysicalMemory = vm.memory
    slots: Memslots = vcpu.memslots()
    level = cpu_role_level(mmu.cpu_role)
    may_be_large = fmt.size == 8 or cpu_role_pse(mmu.cpu_role)
    pte = guest_pgd(vcpu, mmu) & fmt.width_mask
    # NX is inverted on the way, so that the rights of all levels can be ANDed.
    rights = fmt.width_mask
    gw.rights = rights
    if fmt.has_pdptrs:
        pte = read_pdptr(vcpu, mmu, (addr >> 30) & 3)
        if vm.trace.on:
            trace_paging_element(vm.trace, pte, level)
        if not pte & PT_PRESENT:
            gw.level = gw.max_level = level
            return False
        level -= 1
    gw.max_level = level
    while True:
        gw.level = level
        table = pte & SPTE_BASE_ADDR_MASK
        index = (addr >> (PAGE_SHIFT + (level - 1) * fmt.index_bits)) & fmt.index_mask
        gw.table_gfn[level] = gpa_to_gfn(table)
        gw.pte_gpa[level] = table + (index << fmt.size_shift)
        gpa = translate_table_gpa(vcpu, mmu, gw.pte_gpa[level])
        gfn = gpa_to_gfn(gpa)
        slot = slots.find(gfn)
        if slot is None or not slot.is_visible():
            return False
        hva = slot.gfn_to_hva(gfn) + page_offset(gpa)
        hpa = mm.user_access(hva, False)
        if hpa == NO_HPA:
            return False
        pte = memory.read_once32(hpa) if fmt.size == 4 else memory.read_once(hpa)
        gw.pte_hva[level] = hva
        gw.pte_writable[level] = not slot.is_readonly()
        if vm.trace.on:
            trace_paging_element(vm.trace, pte, level)
        gw.pt_access[level] = gpte_access(fmt, rights ^ fmt.nx_mask)
        rights &= pte ^ fmt.nx_mask
        gw.rights = rights
        if not is_present_gpte(fmt, pte):
            return False
        if is_rsvd_bits_set(mmu, pte, level):
            gw.error_code = PFERR_RSVD | PFERR_PRESENT
            return False
        gw.ptes[level] = pte
        if level == 1 or (may_be_large and pte & PT_PAGE_SIZE):
            break
        level -= 1
    gw.all_accessed = (rights & fmt.accessed_mask) == fmt.accessed_mask
    gw.pte_access = gpte_access(fmt, rights ^ fmt.nx_mask)
    return True


def guest_pgd(vcpu: Vcpu, mmu: Mmu) -> Address:
    """The root of the guest's tables that ``mmu`` walks: CR3, or its EPT pointer (``kvm_mmu_get_guest_pgd``)."""
    return mmu.eptp if mmu.gpte.is_ept else vcpu.cr3


def translate_table_gpa(vcpu: Vcpu, mmu: Mmu, gpa: Gpa) -> Gpa:
    """Where a table of the guest lies, whose entries name ``gpa``: there (``kvm_translate_gpa``).

    The one place through which table addresses go: those of a guest's guest are another guest's gpas.
    """
    return gpa


# PDPTE of a PAE guest. With nested paging the processor has no PDPTE registers: memory is what counts, and one that
# cannot be loaded leaves the last good ones (svm_cache_reg()).
def read_pdptr(vcpu: Vcpu, mmu: Mmu, index: int) -> int:
    """The guest's PDPTE ``index``: as cached when CR3 was loaded, or from memory under nested paging."""
    if vcpu.vm.tdp_enabled:
        load_pdptrs(vcpu, mmu, guest_pgd(vcpu, mmu))
    return mmu.pdptrs[index]


# Frame and address that the leaf gives to addr.
def _translate(mmu: Mmu, gw: GuestWalk, addr: Gva) -> int:
    gpte: Address = gw.ptes[gw.level]
    below = (ONE << (PAGE_SHIFT + (gw.level - 1) * mmu.gpte.index_bits)) - 1
    gpa = (gpte & SPTE_BASE_ADDR_MASK & ~below) | (addr & below)
    if mmu.gpte.size == 4 and gw.level > 1:
        gpa += (gpte & _PSE36_MASK) << _PSE36_SHIFT
    gw.gpa = gpa
    gw.gfn = gpa_to_gfn(gpa)
    return 0


# Set A in every entry of the walk, and for a write D in the leaf. The traces fire before the store is known to
# happen; a table in a read-only slot is left alone.
def _update_accessed_dirty(vcpu: Vcpu, mmu: Mmu, gw: GuestWalk, is_write: bool) -> int:
    vm: Vm = vcpu.vm
    fmt: GpteFormat = mmu.gpte
    level = gw.max_level
    while level >= gw.level:
        old = gw.ptes[level]
        new = old
        if not old & fmt.accessed_mask:
            if vm.trace.on:
                trace_set_accessed_bit(vm.trace, gw.pte_gpa[level])
            new |= fmt.accessed_mask
        if is_write and level == gw.level and not old & fmt.dirty_mask:
            if vm.trace.on:
                trace_set_dirty_bit(vm.trace, gw.pte_gpa[level])
            new |= fmt.dirty_mask
        if new != old and gw.pte_writable[level]:
            outcome = _store_gpte(vcpu, mmu, gw, level, new)
            if outcome != _DONE:
                return outcome
        level -= 1
    return _DONE


# Replace the entry that the walk read at level by new, if it is still there.
def _store_gpte(vcpu: Vcpu, mmu: Mmu, gw: GuestWalk, level: int, new: int) -> int:
    vm: Vm = vcpu.vm
    gfn = gpa_to_gfn(translate_table_gpa(vcpu, mmu, gw.pte_gpa[level]))
    hpa = vm.mm.user_access(gw.pte_hva[level], True)
    if hpa == NO_HPA:
        return _FAILED
    if mmu.gpte.size == 4:
        is_stored = vm.memory.cmpxchg32(hpa, gw.ptes[level], new)
    else:
        is_stored = vm.memory.cmpxchg(hpa, gw.ptes[level], new)
    if not is_stored:
        return _RESTART
    mark_page_dirty_in_slot(vm, vcpu, vcpu.gfn_to_memslot(gfn), gfn)
    gw.ptes[level] = new
    return _DONE


# Complete the error code. A fetch is told apart with NX or SMEP only (KVM asks EFER.NX even of 2-level guests).
def _make_fault(vcpu: Vcpu, mmu: Mmu, gw: GuestWalk, addr: Gva, access: int) -> int:
    gw.error_code |= access & (PFERR_WRITE | PFERR_USER)
    if access & PFERR_FETCH and (cpu_role_efer_nx(mmu.cpu_role) or cpu_role_smep(mmu.cpu_role)):
        gw.error_code |= PFERR_FETCH
    gw.fault_address = addr
    if mmu.gpte.is_ept:
        gw.qualification = _ept_qualification(gw, access)
    if vcpu.vm.trace.on:
        trace_walker_error(vcpu.vm.trace, gw.error_code)
    return 0


# What the exit for an EPT violation says; nothing of a misconfiguration, which error_code tells by RSVD.
def _ept_qualification(gw: GuestWalk, access: int) -> int:
    if gw.error_code & PFERR_RSVD:
        return 0
    told = EPT_VIOLATION_GVA_IS_VALID | ((gw.rights & EPT_RWX) << EPT_VIOLATION_RWX_SHIFT)
    if access & PFERR_WRITE:
        told |= EPT_VIOLATION_ACC_WRITE
    if access & PFERR_USER:
        told |= EPT_VIOLATION_ACC_READ
    if access & PFERR_FETCH:
        told |= EPT_VIOLATION_ACC_INSTR
    if not access & PFERR_GUEST_PAGE:
        told |= EPT_VIOLATION_GVA_TRANSLATED
    return told


def gpte_place(vcpu: Vcpu, gpa: Gpa) -> Address:
    """Where the guest's word at ``gpa`` lies in host memory, for an access that cannot sleep.

    ``NO_HPA`` when it cannot be read: no slot, an INVALID one, or a page that the process has not mapped now.
    Any lock may be held; nothing is faulted in.
    """
    gfn = gpa_to_gfn(gpa)
    slot = vcpu.gfn_to_memslot(gfn)
    if slot is None:
        return NO_HPA
    hva = slot.gfn_to_hva_prot(gfn, False)
    if is_error_hva(hva):
        return NO_HPA
    hpte: Address = vcpu.vm.mm.hpte(hva)
    if not hpte & HPTE_PRESENT:
        return NO_HPA
    return (hpte & HPTE_PFN_MASK) | page_offset(gpa)


def read_gpte(vcpu: Vcpu, place: Hpa, size: int) -> int:
    """The guest entry of ``size`` bytes (4 or 8) at ``place``, in one piece."""
    if size == 4:
        return vcpu.vm.memory.read_once32(place)
    return vcpu.vm.memory.read_once(place)


def is_gpte_changed(vcpu: Vcpu, mmu: Mmu, gw: GuestWalk, level: int) -> bool:
    """Whether the guest entry at ``level`` of the tables of ``mmu`` is no longer what ``gw`` read, or unreadable now.

    At level 1 the aligned group of 8 entries around it is read, and kept for prefetch (``prefetch_ptes``). Any lock
    may be held. Source: reference "fetch".
    """
    size = mmu.gpte.size
    gpa = gw.pte_gpa[level]
    if level > 1:
        place = gpte_place(vcpu, gpa)
        return place == NO_HPA or read_gpte(vcpu, place, size) != gw.ptes[level]
    base = gpa & ~(size * PTE_PREFETCH_NUM - 1) & U64
    place = gpte_place(vcpu, base)
    if place == NO_HPA:
        return True
    for i in range(PTE_PREFETCH_NUM):
        gw.prefetch_ptes[i] = read_gpte(vcpu, place + i * size, size)
    return gw.prefetch_ptes[(gpa - base) // size] != gw.ptes[1]


def gva_to_gpa_walk(vcpu: Vcpu, mmu: Mmu, gw: GuestWalk, gva: Gva, access: int) -> Gpa:
    """Guest physical address of ``gva`` for ``access`` (:func:`walk_addr`), or ``INVALID_GPA``: the fault is in gw.

    Without paging a gva is its gpa and nothing is read or traced.
    """
    if not cpu_role_paging(mmu.cpu_role):
        gw.error_code = 0
        gw.gpa = gva  # type: ignore[assignment]  # without paging a gva is its gpa
        gw.gfn = gpa_to_gfn(gva)  # type: ignore[arg-type]  # without paging a gva is its gpa
        return gw.gpa
    if walk_addr(vcpu, mmu, gw, gva, access):
        return gw.gpa
    return INVALID_GPA


def gva_to_gpa(vcpu: Vcpu, mmu: Mmu, gva: Gva, access: int) -> Gpa:
    """:func:`gva_to_gpa_walk` for a caller that does not ask for the fault."""
    return gva_to_gpa_walk(vcpu, mmu, GuestWalk(), gva, access)


def load_pdptrs(vcpu: Vcpu, mmu: Mmu, cr3: Address) -> int:
    """Read the four PDPTEs of a PAE guest whose CR3 is to be ``cr3`` into ``mmu.pdptrs``.

    ``PDPTRS_BAD`` (0): one is present with a reserved bit set, or the table cannot be read; the caller raises #GP and
    nothing has changed. Else ``PDPTRS_SAME`` or ``PDPTRS_CHANGED``: after a change the caller, without TDP, frees the
    current root, which was built from the old ones. The load of the new root is the caller's to request.
    Source: reference "Guest page-table walker", PDPTR load.
    """
    memory: PhysicalMemory = vcpu.vm.memory
    table = translate_table_gpa(vcpu, mmu, cr3 & _PDPT_MASK)
    place = gpa_to_hpa(vcpu.memslots(), vcpu.vm.mm, table, False)
    if place == NO_HPA:
        return PDPTRS_BAD
    reserved = vcpu.reserved_gpa_bits | _PDPTE_RSVD
    entries = [0] * 4
    for i in range(4):
        entries[i] = memory.read_once(place + i * 8)
    for entry in entries:
        if entry & PT_PRESENT and entry & reserved:
            return PDPTRS_BAD
    result = PDPTRS_SAME
    for i in range(4):
        entry = entries[i]
        if mmu.pdptrs[i] != entry:
            mmu.pdptrs[i] = entry
            result = PDPTRS_CHANGED
    return result
