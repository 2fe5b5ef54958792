# SPDX-License-Identifier: GPL-2.0-only
"""A small machine that random operations drive, and the architectural oracle that watches it.

A :class:`Rig` is a world with a few pages of guest tables, data and large pages, one or two vCPUs that share them,
and for each vCPU a model of what its CPU may have cached (``oracle.tlb_oracle``). Each operation is a method that does
one thing, checks what the guest saw of it, and ends in :meth:`settle`: the caches grow by what the tables say now, and
the MMU's structures are audited.

The guest's memory is the only thing that the oracle shares with the machine: it is read as the VMM reads it.

=========================  ===========================================================================
gpa                        what
=========================  ===========================================================================
0x0 - 0x40000              slot 0: tables from 0x10000 on (two roots first), the window's tables behind
0x100000 - 0x110000        slot 1: small data pages
0x200000 - 0x600000        slot 2: memory for large pages
0x700000, or 0x720000      slot 3, 8 pages: comes, goes, moves, may be read-only
=========================  ===========================================================================
"""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvmmu import KvmIoctlError, Params, UserMemoryRegion, World
from kvmmu.guest.tables import ControlRegisters
from kvmmu.hw.bits import UD_VECTOR
from kvmmu.kvm.cpuid import CpuFeatures
from kvmmu.kvm.mmu import dirty, gfnrange, recovery, zap
from kvmmu.kvm.mmu.audit import Auditor, find_violations
from kvmmu.kvm.vcpu import Vcpu
from oracle.access_oracle import Access, Machine, Ram, predict
from oracle.tlb_oracle import Caches, Translation

LONG = ("4", "5")
MODES = ("32", "32pse", "pae", "4", "5")
PG, WP, PE = 1 << 31, 1 << 16, 1
PSE, PAE, PGE, LA57, PCIDE, SMEP, SMAP, PKE = (1 << bit for bit in (4, 5, 7, 12, 17, 20, 21, 22))
LME, LMA, NXE = 1 << 8, 1 << 10, 1 << 11
NOFLUSH = 1 << 63
EFLAGS_AC = 1 << 18
LOG, READONLY = 1, 2
WIDTH = 46
PAGE = 0x1000
TABLES = 0x10000
NR_TABLES = 12
WINDOW_TABLES = 0x30000
DATA = 0x100000
NR_DATA = 16
LARGE, LARGE_SIZE = 0x200000, 0x400000
MOVING, MOVED, MOVING_SIZE = 0x700000, 0x720000, 0x8000
HOLE = 0x0800_0000
SLOT_PLACES = {0: (0, 0x40000), 1: (DATA, NR_DATA * PAGE), 2: (LARGE, LARGE_SIZE), 3: (MOVING, MOVING_SIZE)}

#: Where entries may point: tables, data, memory of large pages (also the start of everything), and holes.
TARGETS = [
    *(TABLES + i * PAGE for i in range(NR_TABLES)),
    *(DATA + i * PAGE for i in range(4)),
    MOVING,
    MOVED + PAGE,
    LARGE,
    LARGE + 0x200000,
    LARGE + 0x3000,
    0,
    HOLE,
    1 << 31,
]


@dataclass(frozen=True)
class Outcome:
    """What the machine says of one access, in the oracle's words."""

    kind: str
    where: int = 0
    code: int = 0
    data: bytes = b""


class GuestRam(Ram):
    """The guest's memory as its tables' walks find it; what walks store is kept aside until it is compared."""

    def __init__(self, rig: Rig) -> None:
        super().__init__(0)
        self.rig = rig
        self.aside: dict[int, int] = {}
        self.cache: dict[int, memoryview] = {}
        #: A walk used memory that nested paging gives it otherwise, or stored where the host lets nobody store.
        self.is_odd = False
        self.is_refused = False

    def forget(self) -> None:
        self.aside.clear()
        self.cache.clear()
        self.is_odd = False
        self.is_refused = False

    def page(self, gpa: int) -> memoryview | None:
        page = gpa & -PAGE
        if page not in self.cache:
            data = self.rig.read_page(page)
            if data is None:
                return None
            self.cache[page] = memoryview(data)
        return self.cache[page]

    def load(self, address: int, width: int) -> int:
        page = self.page(address)
        if page is None:
            self.is_odd = True
            return 0
        if self.rig.is_write_refused(address):
            # The CPU walks guest tables as a writer behind nested paging.
            self.is_odd = True
        at = address % PAGE
        word = int.from_bytes(page[at : at + width], "little")
        return self.aside.get(address, word)

    def store(self, address: int, width: int, value: int) -> None:
        if self.load(address, width) == value:
            return
        if self.rig.slot_at(address, True) is None:
            # A table in a read-only slot keeps its A and D bits.
            self.is_odd = True
            return
        if self.rig.is_write_refused(address):
            # KVM cannot set A and D where the host forbids it, and lets the guest have a #PF for that.
            self.is_refused = True
        self.aside[address] = value


@dataclass
class Slot:
    """What the rig knows of one memslot."""

    gpa: int
    size: int
    hva: int
    flags: int = 0
    #: Pages that the guest or a walk has written since the log was read.
    written: set[int] | None = None


class Mirror:
    """One vCPU, and what its CPU may have cached."""

    def __init__(self, vcpu: Vcpu, gvas: Sequence[int]) -> None:
        self.vcpu = vcpu
        self.caches = Caches(gvas)
        self.pdptes = (0, 0, 0, 0)
        self.shadow_nx = False


class Yielder:
    """A checker that lets everything pass, and lets each ``every``-th entry of a walk under ``mmu_lock`` yield."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.nr_asked = 0

    def point(self, kind: str, where: object, key: object) -> None:
        """Nobody else runs."""

    def barrier(self, kind: str) -> None:
        """As above."""

    def wait(self, kind: str, where: object, condition: object) -> None:
        """As above."""

    def must_yield(self, where: object) -> bool:
        self.nr_asked += 1
        return self.nr_asked % self.every == 0


class Rig:
    """See the module. ``mode``: one of MODES; ``params``: settings of the world beside those given.

    ``yields``: each so many entries that a walk under ``mmu_lock`` looks at, the lock is dropped; 0: never.
    """

    def __init__(
        self, mode: str, npt: bool, nr_vcpus: int = 2, host_page: str = "4k", yields: int = 0, **params: bool
    ) -> None:
        self.yields = yields
        self.mode = mode.removesuffix("pse")
        self.has_pse = mode != self.mode
        mode = self.mode
        self.npt = npt
        self.width = 4 if mode == "32" else 8
        self.index_bits = 10 if mode == "32" else 9
        self.levels = {"32": 2, "pae": 3, "4": 4, "5": 5}[mode]
        self.world = World(
            Params(npt=npt, tlb_keep_all=True, host_page=host_page, host_maxphyaddr=WIDTH, **params), nr_frames=8192
        )
        self.auditor = Auditor(self.world.vm)
        self.slots: dict[int, Slot] = {}
        self.backing: dict[int, int] = {}
        #: gpas [start, end) that were holes while shadow pages of today existed, and are memory now. KVM's sync of an
        #: unsync table gives its MMIO sptes the generation of today without asking whether that gfn has memory now.
        self.revivable: list[tuple[int, int]] = []
        #: hva page -> "ro" or "none", where the host does not give all.
        self.host: dict[int, str] = {}
        for number, (gpa, size) in SLOT_PLACES.items():
            hva = self.world.add_slot(number, gpa, size)
            self.backing[number] = hva
            self.slots[number] = Slot(gpa, size, hva)
        self.ram = GuestRam(self)
        self.count = 0
        self.was_nx_on = False
        self.gvas = list(self._gvas())
        self._fill()
        self.mirrors: list[Mirror] = []
        for _ in range(nr_vcpus):
            vcpu = self.world.create_vcpu()
            vcpu.set_cpuid(CpuFeatures(WIDTH, amd=False))
            self.mirrors.append(Mirror(vcpu, [*self.gvas, *self.window_pages()]))
            self._start(self.mirrors[-1])
        self.settle()

    # Layout.

    def _gvas(self) -> Iterator[int]:
        """Page addresses that operations use: two choices for each index, three for the last."""
        choices = {"32": [(0, 1, 512, 767)], "pae": [(0, 1), (0, 1)], "4": [(0,), (0, 1), (0, 1)]}
        choices["5"] = [(0,), (0, 1), (0, 1), (0, 1)]
        last = (0, 1, 2, 512) if self.mode == "32" else (0, 1, 2)
        for indices in itertools.product(*choices[self.mode], last):
            gva = 0
            for index in indices:
                gva = (gva << self.index_bits) | index
            yield gva << 12

    @property
    def window(self) -> int:
        """Where the guest sees its physical memory from 0 on."""
        if self.mode in LONG:
            return (-1 << (12 + 9 * self.levels - 1)) % 2**64
        return 0xC000_0000

    def window_pages(self) -> list[int]:
        tables = [TABLES + i * PAGE for i in range(NR_TABLES + 1)]
        return [self.window + gpa for gpa in (*tables, DATA, DATA + PAGE)]

    def _fill(self) -> None:
        """Tables: every root leads through one table of each level to the data; the window has its own tables."""
        for number in range(NR_DATA):
            for at in range(0, PAGE, 512):
                self.world.poke(DATA + number * PAGE + at, 0xDA7A_0000_0000_0000 | number << 16 | at)
        for at in range(0, LARGE_SIZE, 0x1000 * 61):
            self.world.poke(LARGE + at, 0x1A46_E000_0000_0000 | at)
        for at in range(0, MOVING_SIZE, 0x800):
            self.world.poke(MOVING + at, 0x3107_0000_0000_0000 | at)
        for root in range(2):
            self._link(root, 0, 2, self.levels)
        table = WINDOW_TABLES
        for level in range(self.levels, 1, -1):
            holders = [TABLES, TABLES + PAGE] if level == self.levels else [table]
            flags = 1 if self.mode == "pae" and level == 3 else 0x23
            for holder in holders:
                index = self._index(self.window, level)
                self.world.poke(holder + index * self.width, (table + PAGE) | flags, self.width)
            table += PAGE
        for page in range(0x40000 // PAGE):
            self.world.poke(table + page * self.width, page * PAGE | 0x63, self.width)
        for page in range(DATA // PAGE, DATA // PAGE + NR_DATA):
            self.world.poke(table + page * self.width, page * PAGE | 0x63, self.width)

    def _link(self, table: int, index: int, child: int, level: int) -> None:
        at = TABLES + table * PAGE
        if level == 1:
            for i in range(3):
                self.world.poke(at + i * self.width, DATA + i * PAGE | 0x67, self.width)
            return
        flags = 1 if self.mode == "pae" and level == 3 else 0x27
        for i in range(2):
            self.world.poke(at + (index + i) * self.width, TABLES + (child + i) * PAGE | flags, self.width)
        if table < 2 or level > 1:
            self._link(child, 0, child + 2 if level > 2 else child, level - 1)

    def _index(self, gva: int, level: int) -> int:
        index = (gva >> (12 + self.index_bits * (level - 1))) % 2**self.index_bits
        return index % 4 if self.mode == "pae" and level == 3 else index

    def _start(self, mirror: Mirror) -> None:
        cr4 = {"32": PSE if self.has_pse else 0, "pae": PAE, "4": PAE, "5": PAE | LA57}[self.mode]
        efer = (LME | LMA if self.mode in LONG else 0) | NXE
        self.was_nx_on = True
        self.world.load_registers(mirror.vcpu, ControlRegisters(PG | WP | PE | 0x10, TABLES, cr4, efer))
        self._load_pdptes(mirror, TABLES)

    # The guest's memory, as the VMM sees it.

    def slot_at(self, gpa: int, write: bool = False) -> Slot | None:
        for slot in self.slots.values():
            if slot.gpa <= gpa < slot.gpa + slot.size:
                return None if write and slot.flags & READONLY else slot
        return None

    def host_at(self, slot: Slot, gpa: int) -> str:
        return self.host.get((slot.hva + gpa - slot.gpa) & -PAGE, "rw")

    def is_write_refused(self, gpa: int) -> bool:
        """Whether slot or host let the guest read there, but not write."""
        slot = self.slot_at(gpa, True)
        return slot is None or self.host_at(slot, gpa) != "rw"

    def read_page(self, gpa: int) -> bytes | None:
        """The page around ``gpa``; None: no slot, or nothing from the host."""
        gpa &= -PAGE
        slot = self.slot_at(gpa)
        if slot is None or self.host_at(slot, gpa) == "none":
            return None
        hpa = self.world.mm.user_access(slot.hva + gpa - slot.gpa, False)
        return self.world.memory.read(hpa, PAGE)

    def snapshot(self) -> dict[int, bytes]:
        """Every page that an access may change: tables, and the data that entries point to."""
        pages = [TABLES + i * PAGE for i in range(NR_TABLES)]
        pages += [WINDOW_TABLES + i * PAGE for i in range(self.levels + 1)]
        pages += [target & -PAGE for target in TARGETS]
        found = {page: self.read_page(page) for page in pages}
        return {page: data for page, data in found.items() if data is not None}

    # The oracle.

    def machine(self, mirror: Mirror) -> Machine:
        """The vCPU's state for the oracle."""
        vcpu = mirror.vcpu
        paging = self.mode if vcpu.cr0 & PG else "off"
        nxe = bool(vcpu.efer & NXE)
        pdptes = mirror.pdptes
        if self.npt and paging == "pae":
            # There are no PDPTE registers behind nested paging.
            at = vcpu.cr3 & 0xFFFF_FFE0
            pdptes = tuple(self.ram.load(at + 8 * i, 8) for i in range(4))  # type: ignore[assignment]
        cr4 = vcpu.cr4
        return Machine(
            self.ram,
            paging,
            vcpu.cr3 & ~0xFFF if self.mode in LONG else vcpu.cr3,
            pdptes,
            bool(vcpu.cr0 & WP),
            bool(cr4 & PSE),
            bool(cr4 & SMEP),
            bool(cr4 & SMAP),
            bool(cr4 & PKE),
            nxe,
            vcpu.pkru,
            # A 4M page of KVM's guests has 36 address bits.
            36 if paging == "32" else WIDTH,
        )

    def is_beyond_oracle(self, machine: Machine) -> bool:
        """Nested paging, where the CPU's walk and KVM's software walk (of emulated accesses) differ by design: 4M pages
        above 2**36, and PDPTEs with reserved bits, which the CPU finds in memory and KVM keeps the old ones of."""
        if not self.npt:
            return False
        if machine.paging == "pae":
            return any(pdpte & 1 and pdpte & ~((1 << WIDTH) - 1 & ~0x1E6) for pdpte in machine.pdptes)
        if machine.paging == "32" and machine.pse:
            entries = [self.ram.load(machine.cr3 + 4 * i, 4) for i in (0, 1, 512, 767, 768)]
            return any(entry & 0x81 == 0x81 and entry & 0x1E_0000 for entry in entries)
        return False

    def is_pdpt_bad(self, cr3: int) -> bool:
        """Whether a PAE guest's load of CR3 gets #GP."""
        if self.mode != "pae":
            return False
        self.ram.forget()
        page = self.ram.page(cr3)
        if page is None:
            return True
        entries = [self.ram.load((cr3 & 0xFFFF_FFE0) + 8 * i, 8) for i in range(4)]
        return any(entry & 1 and entry & ~((1 << WIDTH) - 1 & ~0x1E6) for entry in entries)

    def _load_pdptes(self, mirror: Mirror, cr3: int) -> None:
        if self.mode == "pae" and mirror.vcpu.cr0 & PG:
            self.ram.forget()
            mirror.pdptes = tuple(self.ram.load((cr3 & 0xFFFF_FFE0) + 8 * i, 8) for i in range(4))  # type: ignore[assignment]

    def settle(self) -> None:
        """After each operation: caches may have grown, structures must be sound."""
        self.ram.forget()
        for mirror in self.mirrors:
            self._grow(mirror)
        self.audit()

    def audit(self) -> None:
        """No invariant is broken, but the one that KVM breaks: see ``revivable``."""
        found = find_violations(self.world.vm)
        # The audit of what changed since the last one must say the same.
        changed = self.auditor.find_violations()
        assert Counter(changed.problems) == Counter(found.problems)
        assert found.problems or changed == found
        problems = [
            text for text in found.problems if not (self.revivable and text.startswith("I10:") and "has memory" in text)
        ]
        assert not problems, problems

    def is_revivable(self, gpa: int) -> bool:
        return any(start <= gpa < end for start, end in self.revivable)

    def _grow(self, mirror: Mirror) -> None:
        machine = self.machine(mirror)
        if not self.npt and self.was_nx_on:
            # KVM shares shadow pages across EFER.NX: what was mirrored with NX on stays in use.
            machine.nxe = True
        # Without nested paging nothing is global: kvm's entries have no G bit.
        mirror.caches.grow(machine, self.npt and bool(mirror.vcpu.cr4 & PGE))

    # Accesses.

    def access(self, cpu: int, gva: int, size: int, how: str, user: bool) -> None:
        """One access of ``how`` ("read", "write", "fetch"), checked against everything that is allowed."""
        mirror = self.mirrors[cpu]
        vcpu = mirror.vcpu
        if not vcpu.cr0 & PG:
            gva %= HOLE
        elif (gva & -PAGE) + PAGE not in mirror.caches.current():
            # What may be cached for the page behind is not known.
            size = min(size, PAGE - gva % PAGE)
        if user:
            ac = False
        else:
            ac = bool(vcpu.rflags & EFLAGS_AC)
        access = Access(how == "write", user, how == "fetch", ac and how != "fetch", False)
        before = self.snapshot()
        self.count += 1
        data = (self.count * 0x0101_0101_0101_0101 & (1 << 64) - 1).to_bytes(8, "little") * 2
        got = self._make(vcpu, gva, data[:size], size, how, user)
        self._check(mirror, access, gva, size, data[:size], got, before)
        self.settle()

    def place(self, cpu: int, gva: int, level: int) -> int | None:
        """Where the entry of ``gva`` at ``level`` lies; None: the tables do not lead there."""
        vcpu = self.mirrors[cpu].vcpu
        self.ram.forget()
        table = vcpu.cr3 & ~0xFFF if self.mode != "pae" else vcpu.cr3 & ~0x1F
        for above in range(self.levels, 0, -1):
            at = table + self._index(gva, above) * self.width
            if above == level:
                return at
            entry = self.ram.load(at, self.width)
            if not entry & 1 or (entry & 0x80 and above <= 3 and not (self.mode == "pae" and above == 3)):
                return None
            table = entry & 0x000F_FFFF_FFFF_F000
        return None

    def store(self, cpu: int, gpa: int, data: bytes) -> None:
        """The guest stores ``data`` at ``gpa`` through its window: an edit of a table, if all is well."""
        mirror = self.mirrors[cpu]
        if mirror.vcpu.cr0 & PG == 0:
            return
        before = self.snapshot()
        got = self._make(mirror.vcpu, self.window + gpa, data, len(data), "write", False)
        access = Access(True, False, False, bool(mirror.vcpu.rflags & EFLAGS_AC))
        self._check(mirror, access, self.window + gpa, len(data), data, got, before)
        self.settle()

    def _make(self, vcpu: Vcpu, gva: int, data: bytes, size: int, how: str, user: bool) -> Outcome:
        world = self.world
        try:
            if how == "write":
                result = world.write(vcpu, gva, data, user=user)
            elif how == "read":
                result = world.read(vcpu, gva, size, user=user)
            else:
                result = world.fetch(vcpu, gva, size, user=user)
        except KvmIoctlError as error:
            assert error.errno == errno.EFAULT, error  # noqa: PT017 - any access may end so, none must
            return Outcome("efault")
        if result.kind == "emulation-failure" or result.vector == UD_VECTOR:
            assert how == "fetch", result
            assert (result.vector == UD_VECTOR) is user, result
            # The next entry delivers the #UD; here nobody runs on.
            vcpu.exception_pending = False
            return Outcome("unfetchable", result.address)
        return Outcome(result.kind, result.address, result.error_code, result.data)

    def _parts(self, gva: int, size: int) -> list[tuple[int, int, int]]:
        first = min(size, PAGE - gva % PAGE)
        parts = [(gva, 0, first)]
        if first < size:
            parts.append((gva + first, first, size))
        return parts

    def _check(
        self, mirror: Mirror, access: Access, gva: int, size: int, data: bytes, got: Outcome, before: dict[int, bytes]
    ) -> None:
        """Some explanation of each part must fit what the machine did."""
        after = self.snapshot()
        self.ram.forget()
        self.ram.cache = {page: memoryview(data) for page, data in before.items()}
        is_beyond = self.is_beyond_oracle(self.machine(mirror)) or (got.kind == "mmio" and self.is_revivable(got.where))
        self.ram.forget()
        if is_beyond or self.is_beyond_oracle(self.machine(mirror)):
            return
        tried: list[str] = []
        for stores_between in (False, True):
            for choice in itertools.product(("fresh", "cached"), repeat=len(self._parts(gva, size))):
                for why in self._explanations(mirror, access, (gva, size, data), (choice, stores_between), before):
                    if self._fits(why, got, before, after, access):
                        self._note_written(why)
                        self._grow_between(mirror, why, before)
                        return
                    tried.append(f"{why}")
        machine = self.machine(mirror)
        raise AssertionError(
            f"cpu {mirror.vcpu.vcpu_id} {self.mode} npt={self.npt} {access} gva {gva:#x} {size} bytes {data.hex()}: "
            f"got {got}; allowed {tried}; {machine.cr3:#x} wp={machine.wp} smep={machine.smep} smap={machine.smap} "
            f"changed {self._changes(before, after)}"
        )

    def _changes(self, before: dict[int, bytes], after: dict[int, bytes]) -> list[str]:
        found = []
        for page in sorted(before):
            for at in range(0, PAGE, 8):
                old, new = before[page][at : at + 8], after.get(page, b"")[at : at + 8]
                if old != new:
                    found.append(f"{page + at:#x}: {old.hex()} -> {new.hex()}")
        return found

    def _explanations(
        self,
        mirror: Mirror,
        access: Access,
        what: tuple[int, int, bytes],
        how: tuple[tuple[str, ...], bool],
        before: dict[int, bytes],
    ) -> Iterator[Explanation]:
        """What may happen if each part is translated as ``how`` says: by a walk, or by a cached translation."""
        gva, size, data = what
        choice, stores_between = how
        partial: list[Explanation] = [Explanation(self)]
        for (start, begin, end), source in zip(self._parts(gva, size), choice, strict=True):
            grown: list[Explanation] = []
            for why in partial:
                if why.is_final():
                    grown.append(why)
                    continue
                for gpa, code, writes, is_odd in self._targets(mirror, access, start, source, why, before):
                    grown.append(
                        why.extended(start, gpa, code, writes, is_odd, access, data[begin:end], stores_between)
                    )
            partial = grown
        yield from partial

    def _targets(
        self,
        mirror: Mirror,
        access: Access,
        gva: int,
        source: str,
        why: Explanation,
        before: dict[int, bytes],
    ) -> Iterator[tuple[int, int, dict[int, int], bool]]:
        """(gpa or -1, error code, A/D stores, is odd) of one part."""
        machine = self.machine(mirror)
        if source == "fresh":
            self.ram.forget()
            self.ram.cache = {page: memoryview(data) for page, data in why.pages(before).items()}
            self.ram.aside = {}
            machine = self.machine(mirror)
            outcome = predict(machine, gva, access)
            is_odd = (self.npt and self.ram.is_odd) or self.ram.is_refused
            if outcome[0] == "ok":
                yield outcome[1], 0, dict(self.ram.aside), is_odd
            else:
                yield -1, self._error_code(machine, access, outcome[1]), {}, is_odd
            self.ram.forget()
        elif machine.paging != "off":
            for entry in self._cached(mirror, gva):
                if entry.allows(machine, access) or self._is_record_of_mmio(machine, access, entry, gva):
                    yield entry.target(gva), 0, {}, False

    def _cached(self, mirror: Mirror, gva: int) -> set[Translation]:
        page = gva & -PAGE
        if page not in mirror.caches.current():
            return set()
        return mirror.caches.translations(page)

    def _is_record_of_mmio(self, machine: Machine, access: Access, entry: Translation, gva: int) -> bool:
        """A supervisor's write with CR0.WP clear to a device's page that was read before: KVM's record of the page
        answers for the walk, and nobody sets D."""
        if self.npt or not access.write or access.user or machine.wp or self.slot_at(entry.target(gva)) is not None:
            return False
        read = Access(False, False, False, access.ac)
        return entry.allows(machine, read)

    def _error_code(self, machine: Machine, access: Access, code: int) -> int:
        """KVM sets F with EFER.NX even where tables have no NX; with nested paging only what it emulates shows that."""
        return code | 16 if machine.paging == "32" and machine.nxe and access.fetch else code

    def _fits(
        self, why: Explanation, got: Outcome, before: dict[int, bytes], after: dict[int, bytes], access: Access
    ) -> bool:
        if why.is_odd:
            return True
        if got.kind != why.kind and not (why.kind == "efault" and got.kind == "mmio"):
            return False
        codes = (why.code, why.code & ~16) if self.npt and self.mode == "32" else (why.code,)
        if got.kind == "fault" and (got.where != why.fault_at or got.code not in codes):
            return False
        if got.kind == "mmio" and got.where not in why.mmio:
            return False
        if got.kind == "done" and not access.write and got.data != why.read(before, after):
            return False
        return why.memory_fits(before, after)

    def _grow_between(self, mirror: Mirror, why: Explanation, before: dict[int, bytes]) -> None:
        """What may have been cached when the walks were over and the store was not made."""
        if why.ad:
            self.ram.forget()
            self.ram.cache = {page: memoryview(data) for page, data in why.pages(before).items()}
            self._grow(mirror)

    def _note_written(self, why: Explanation) -> None:
        for gpa in (*why.stores, *why.ad):
            slot = self.slot_at(gpa)
            if slot is not None and slot.written is not None:
                slot.written.add((gpa - slot.gpa) // PAGE)

    # The guest's instructions.

    def invlpg(self, cpu: int, gva: int) -> None:
        mirror = self.mirrors[cpu]
        assert self.world.invlpg(mirror.vcpu, gva)
        mirror.caches.flush_page(gva, mirror.caches.pcid, True)
        self.settle()

    def invpcid(self, cpu: int, kind: int, pcid: int, gva: int) -> None:
        mirror = self.mirrors[cpu]
        if not mirror.vcpu.cr4 & PCIDE:
            pcid = 0
        assert self.world.invpcid(mirror.vcpu, kind, pcid, gva)
        if kind == 0:
            mirror.caches.flush_page(gva, pcid, False)
        elif kind == 1:
            mirror.caches.flush_pcid(pcid)
        elif kind == 2:
            mirror.caches.flush_all()
        else:
            mirror.caches.flush_non_global()
        self.settle()

    def mov_cr3(self, cpu: int, root: int, pcid: int, is_kept: bool) -> None:
        mirror = self.mirrors[cpu]
        vcpu = mirror.vcpu
        cr3 = TABLES + root * PAGE
        has_pcid = bool(vcpu.cr4 & PCIDE)
        if has_pcid:
            cr3 |= pcid
        is_loaded = self.world.mov_cr3(vcpu, cr3 | (NOFLUSH if has_pcid and is_kept else 0))
        if not is_loaded:
            assert self.is_pdpt_bad(cr3)
            self.settle()
            return
        self._load_pdptes(mirror, cr3)
        mirror.caches.pcid = pcid if has_pcid else 0
        if not (has_pcid and is_kept):
            mirror.caches.flush_pcid(mirror.caches.pcid)
        self.settle()

    def toggle_cr4(self, cpu: int, bit: int) -> None:
        """Flip one bit of CR4; CR4.PSE under nested paging only, as KVM shares shadow pages across it."""
        if bit == PSE and (self.mode != "32" or not self.npt):
            return
        mirror = self.mirrors[cpu]
        vcpu = mirror.vcpu
        old = vcpu.cr4
        new = old ^ bit
        is_done = self.world.mov_cr4(vcpu, new)
        if not is_done:
            assert vcpu.cr4 == old
            may_refuse = self.is_pdpt_bad(vcpu.cr3)
            may_refuse |= bit == PCIDE and (self.mode not in LONG or vcpu.cr3 & 0xFFF != 0 or not vcpu.efer & LMA)
            assert may_refuse or (bit == PKE and not self.npt), hex(bit)
            self.settle()
            return
        if bit in (PGE, PSE, PAE, SMEP):
            self._load_pdptes(mirror, vcpu.cr3)
        if bit == PGE or (bit == PCIDE and not new & PCIDE):
            mirror.caches.flush_all()
            mirror.caches.pcid = vcpu.cr3 & 0xFFF if new & PCIDE else 0
        elif bit == PSE or (bit == SMEP and new & SMEP):
            mirror.caches.flush_current()
        self.settle()

    def toggle_cr0(self, cpu: int, bit: int) -> None:
        """Flip CR0.WP or CR0.PG."""
        mirror = self.mirrors[cpu]
        vcpu = mirror.vcpu
        if not self.world.mov_cr0(vcpu, vcpu.cr0 ^ bit):
            assert bit == PG
            assert vcpu.cr4 & PCIDE or self.is_pdpt_bad(vcpu.cr3)
            self.settle()
            return
        if bit == PG:
            self._load_pdptes(mirror, vcpu.cr3)
            mirror.caches.flush_all()
        self.settle()

    def toggle_nx(self, cpu: int) -> None:
        vcpu = self.mirrors[cpu].vcpu
        assert self.world.wrmsr_efer(vcpu, vcpu.efer ^ NXE)
        self.settle()

    def toggle_ac(self, cpu: int) -> None:
        self.mirrors[cpu].vcpu.rflags ^= EFLAGS_AC

    def wrpkru(self, cpu: int, value: int) -> None:
        assert self.world.wrpkru(self.mirrors[cpu].vcpu, value)
        self.settle()

    # The VMM and the host.

    @contextlib.contextmanager
    def yielding(self) -> Iterator[None]:
        """What happens inside lets others have ``mmu_lock`` now and then."""
        gate = self.world.vm.gate
        if self.yields:
            gate.arm(Yielder(self.yields))
        try:
            yield
        finally:
            gate.disarm()

    def set_slot(self, number: int, gpa: int, flags: int) -> None:
        """Make slot ``number`` be at ``gpa`` with ``flags``, by whatever change that takes."""
        size = SLOT_PLACES[number][1]
        hva = self.backing[number]
        old = self.slots.get(number)
        if old is not None and (old.flags ^ flags) & READONLY:
            self.delete_slot(number)
            old = None
        with self.yielding():
            self.world.set_region(UserMemoryRegion(number, flags, gpa, size, hva))
        if old is not None and old.gpa != gpa:
            # A slot that moves takes every shadow page with it; what faults while it does is made anew.
            self.revivable.clear()
        if not self.npt and (old is None or old.gpa != gpa):
            self.revivable.append((gpa, gpa + size))
        written: set[int] | None = None
        if flags & LOG:
            written = old.written if old is not None and old.written is not None else set()
        self.slots[number] = Slot(gpa, size, hva, flags, written)
        self.settle()

    def delete_slot(self, number: int) -> None:
        if number in self.slots:
            with self.yielding():
                self.world.delete_slot(number)
            self.revivable.clear()
            del self.slots[number]
        self.settle()

    def dirty_log(self, number: int) -> None:
        slot = self.slots.get(number)
        if slot is None or slot.written is None:
            return
        vm = self.world.vm
        with self.yielding():
            log = self.world.dirty_log(number)
            if vm.is_log_manual():
                dirty.clear_dirty_log(vm, number, 0, slot.size // PAGE, log)
        bits = int.from_bytes(log, "little")
        missing = sorted(page for page in slot.written if not bits >> page & 1)
        assert not missing, f"slot {number}: pages {missing} were written and are not in the dirty log"
        slot.written.clear()
        self.settle()

    def protect(self, number: int, page: int, how: str) -> None:
        """What the host gives of one page of slot 1 to 3: "rw", "ro", or "zap" (MADV_DONTNEED)."""
        hva = self.backing[number] + page * PAGE % SLOT_PLACES[number][1]
        if how == "zap":
            with self.yielding():
                self.world.mm.dontneed(hva, PAGE)
        else:
            with self.yielding():
                self.world.mm.mprotect(hva, PAGE, how == "rw")
            self.host.pop(hva, None)
            if how == "ro":
                self.host[hva] = "ro"
        self.settle()

    def age(self, number: int, page: int, how: str) -> None:
        """The host asks whether a page of slot 1 to 3, or all of the slot, was used."""
        slot = self.slots.get(number)
        size = SLOT_PLACES[number][1]
        hva = self.backing[number] + page * PAGE % size
        if how == "test":
            self.world.mm.test_young(hva)
        elif how == "all":
            self.world.mm.clear_flush_young(self.backing[number], size)
            assert slot is None or not self.world.mm.clear_flush_young(self.backing[number], size)
        else:
            self.world.mm.clear_young(hva, PAGE)
            assert not self.world.mm.test_young(hva)
        self.settle()

    def log_manually(self, flags: int) -> None:
        """How dirty logs are cleared, and begin, from now on."""
        if not any(slot.flags & LOG for slot in self.slots.values()):
            dirty.set_manual_protect(self.world.vm, flags)

    def recover(self) -> None:
        """One pass of the recovery of huge pages."""
        with self.yielding():
            recovery.recover_nx_huge_pages(self.world.vm)
        self.settle()

    def zap_gfns(self, number: int) -> None:
        """Kvm zaps what maps a slot's place."""
        gpa, size = SLOT_PLACES[number]
        with self.yielding():
            gfnrange.zap_gfn_range(self.world.vm, gpa // PAGE, (gpa + size) // PAGE)
        self.settle()

    def limit_pages(self, nr_pages: int) -> None:
        """Allow so many shadow pages."""
        zap.change_mmu_pages(self.world.vm, nr_pages)
        self.settle()


class Explanation:
    """One way in which an access may go: where each part lands, and what it leaves in memory."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.kind = "done"
        self.code = 0
        self.fault_at = 0
        self.mmio: list[int] = []
        self.parts: list[tuple[int, bytes]] = []
        #: gpa of each byte stored, A/D words stored by walks (kept or not), and whether anything goes.
        self.stores: dict[int, int] = {}
        self.ad: dict[int, int] = {}
        self.may_keep_ad = False
        self.is_odd = False

    def __repr__(self) -> str:
        parts = " ".join(f"{gpa:#x}" for gpa, _ in self.parts)
        fault = f" {self.code:#x} at {self.fault_at:#x}" if self.kind == "fault" else ""
        ad = {hex(at): hex(value) for at, value in self.ad.items()}
        return f"<{self.kind}{fault} [{parts}] mmio {[hex(at) for at in self.mmio]} ad {ad} keep={self.may_keep_ad}>"

    def is_final(self) -> bool:
        return self.kind in ("fault", "efault", "unfetchable")

    def extended(
        self,
        gva: int,
        gpa: int,
        code: int,
        ad: dict[int, int],
        is_odd: bool,
        access: Access,
        data: bytes,
        stores_now: bool,
    ) -> Explanation:
        """This, with one part more."""
        rig = self.rig
        new = Explanation(rig)
        new.kind, new.mmio, new.parts = self.kind, list(self.mmio), list(self.parts)
        new.stores, new.ad, new.may_keep_ad = dict(self.stores), {**self.ad, **ad}, self.may_keep_ad
        new.is_odd = self.is_odd or is_odd
        if gpa < 0:
            new.kind, new.code, new.fault_at = "fault", code, gva
            if not stores_now:
                new.stores = {}
            return new
        if not ad:
            # By a cached translation, or nothing was left to set: a walk may have taken place all the same.
            new.may_keep_ad = True
        slot = rig.slot_at(gpa, access.write)
        new.parts.append((gpa, data))
        if slot is None:
            new.kind = "unfetchable" if access.fetch else "mmio"
            new.mmio.append(gpa)
        elif rig.host_at(slot, gpa) == "none" or (access.write and rig.host_at(slot, gpa) == "ro"):
            new.kind = "efault"
            new.mmio.append(gpa)
        elif access.write:
            new.stores.update({gpa + i: byte for i, byte in enumerate(data)})
        return new

    def pages(self, before: dict[int, bytes]) -> dict[int, bytes]:
        """Memory as the next part's walk finds it."""
        pages = dict(before)
        for at, value in self.ad.items():
            page = bytearray(pages[at & -PAGE])
            page[at % PAGE : at % PAGE + self.rig.width] = value.to_bytes(self.rig.width, "little")
            pages[at & -PAGE] = bytes(page)
        return pages

    def read(self, before: dict[int, bytes], after: dict[int, bytes]) -> bytes:
        """What a read finds: memory with the A and D bits that it set itself."""
        out = b""
        for gpa, data in self.parts:
            page = after.get(gpa & -PAGE)
            if page is None:
                page = self.rig.read_page(gpa) or bytes(PAGE)
            out += page[gpa % PAGE : gpa % PAGE + len(data)]
        return out

    def memory_fits(self, before: dict[int, bytes], after: dict[int, bytes]) -> bool:
        """Whether memory changed as this says: stores are there, walks' bits too, and nothing else."""
        stores = {} if self.kind in ("mmio", "efault") and not self._stored_partly(after) else self.stores
        for page, old in before.items():
            new = after.get(page)
            if new is None:
                return False
            if new != old and not self._page_fits(page, old, new, stores):
                return False
            if new == old and any(at & -PAGE == page and old[at % PAGE] != byte for at, byte in stores.items()):
                return False
            if (
                new == old
                and not self.may_keep_ad
                and any(at & -PAGE == page and not self._is_overwritten(at, stores) for at in self.ad)
            ):
                return False
        return all(at & -PAGE in before or self._is_stored(at, byte) for at, byte in stores.items())

    def _stored_partly(self, after: dict[int, bytes]) -> bool:
        # The part of an emulated store that RAM could take was made.
        return bool(self.stores) and all(self._is_stored(at, byte) for at, byte in self.stores.items())

    def _is_stored(self, gpa: int, byte: int) -> bool:
        page = self.rig.read_page(gpa)
        return page is not None and page[gpa % PAGE] == byte

    def _is_overwritten(self, at: int, stores: dict[int, int]) -> bool:
        return any(at <= byte < at + self.rig.width for byte in stores)

    def _page_fits(self, page: int, old: bytes, new: bytes, stores: dict[int, int]) -> bool:
        with_ad = bytearray(old)
        for at, value in self.ad.items():
            if at & -PAGE == page:
                with_ad[at % PAGE : at % PAGE + self.rig.width] = value.to_bytes(self.rig.width, "little")
        without = bytearray(old)
        for at, byte in stores.items():
            if at & -PAGE == page:
                with_ad[at % PAGE] = without[at % PAGE] = byte
        if bytes(with_ad) == new:
            return True
        if not self.may_keep_ad:
            return False
        return all(byte in (a, b) for a, b, byte in zip(with_ad, without, new, strict=True))
