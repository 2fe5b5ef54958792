# SPDX-License-Identifier: GPL-2.0-only
"""Random operations on a small machine; after each, the architectural oracle agrees and the audit is clean.

The machine, the oracle and the checks are in ``stateful.rig``. Here Hypothesis chooses: edits of guest tables by the
guest's own stores (of 1 to 16 bytes, misaligned, across entries), accesses of every kind, INVLPG, INVPCID, changes of
CR0, CR3, CR4 and EFER, memslots that come, go, move and are logged, host memory that is protected or taken away, and a
limit of shadow pages so low that they are recycled. TLBs keep every entry until a flush is demanded.
"""

from __future__ import annotations

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from kvmmu.hw.bits import PT_NX
from stateful.rig import (
    DATA,
    LARGE,
    LONG,
    MODES,
    MOVED,
    NR_TABLES,
    PAGE,
    PCIDE,
    PG,
    PGE,
    PKE,
    PSE,
    SLOT_PLACES,
    SMAP,
    SMEP,
    TABLES,
    TARGETS,
    WP,
    Rig,
)

CPUS = st.integers(0, 1)
GVAS = st.integers(0, 63)
#: Offsets in a page: its entries of interest, and its end.
OFFSETS = st.sampled_from([0, 0, 8, 0x7F8, 0xFF8, 0xFF9, 0xFFC, 0xFFD])
SIZES = st.sampled_from([1, 2, 4, 8, 8, 8, 16])
KINDS = st.sampled_from(["read", "write", "write", "fetch"])
#: Flags of entries: complete ones, and any.
FLAGS = st.one_of(
    st.sampled_from([0x7, 0x27, 0x67, 0x5, 0x25, 0x3, 0x63, 0xE7, 0xA5, 0x167]),
    st.integers(0, 0x3FF),
)
#: Bits above the frame: NX, a protection key, a reserved one; mostly none.
HIGH = st.sampled_from([0, 0, 0, 0, 0, PT_NX, PT_NX, 1 << 59, 2 << 59, 1 << 48])
#: Entries of a table: the first few, and one in the second half of a 2-level table.
INDICES = st.sampled_from([0, 0, 1, 1, 2, 3, 512, 767])
SHAPES = st.sampled_from(["whole", "whole", "whole", "whole", "half", "byte", "odd", "cross"])
REGISTERS = st.sampled_from(
    [
        *(("cr4", bit) for bit in (PGE, SMEP, SMAP, PCIDE, PCIDE, PSE, PKE)),
        *[("cr0", WP)] * 4,
        ("cr0", PG),
        ("nx", 0),
        ("ac", 0),
        ("pkru", 0),
    ]
)
SLOT_CHANGES = st.sampled_from(["set", "set", "set", "move", "move", "delete"])
#: Few addresses, so that operations meet; levels, mostly the lowest; small data pages, and pairs of leaf flags.
NEAR = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 4, 6])
LEVELS = st.sampled_from([1, 1, 1, 1, 2, 2, 3, 4, 5])
PAGES = st.tuples(st.integers(0, 3), st.integers(0, 3))
LEAVES = st.sampled_from([0x7, 0x67, 0x27, 0x5, 0x65, 0x25, 0x63, 0x3, 0])
PAIRS = st.tuples(LEAVES, LEAVES)
FLUSHES = st.sampled_from(["invlpg", "cr3", "cr3 keep", "invpcid"])


class MmuMachine(RuleBasedStateMachine):
    """The machine under one kind of paging; the mode is drawn first."""

    npt = False
    tdp_mmu = False

    @initialize(
        mode=st.sampled_from(MODES),
        host_page=st.sampled_from(["4k", "2m"]),
        yields=st.sampled_from([0, 1, 2, 7]),
        flush_on_reuse=st.sampled_from([False, False, False, True]),
        nx_huge_pages=st.sampled_from([False, False, True]),
        eager_page_split=st.booleans(),
        slot_zap_all=st.sampled_from([True, True, False]),
    )
    def start(self, mode: str, host_page: str, yields: int, **params: bool) -> None:
        self.rig = Rig(mode, self.npt, 2, host_page, yields, tdp_mmu=self.tdp_mmu, **params)

    def gva(self, number: int) -> int:
        return self.rig.gvas[number % len(self.rig.gvas)]

    @rule(cpu=CPUS, gva=GVAS, offset=OFFSETS, size=SIZES, how=KINDS, user=st.booleans())
    def access(self, cpu: int, gva: int, offset: int, size: int, how: str, user: bool) -> None:
        self.rig.access(cpu, self.gva(gva) + offset, size, how, user)

    @rule(cpu=CPUS, gva=NEAR, user=st.booleans())
    def write(self, cpu: int, gva: int, user: bool) -> None:
        self.rig.access(cpu, self.gva(gva) + 0x18, 8, "write", user)

    @rule(cpu=CPUS, page=st.integers(0, NR_TABLES), offset=OFFSETS, size=SIZES, how=KINDS)
    def access_through_the_window(self, cpu: int, page: int, offset: int, size: int, how: str) -> None:
        self.rig.access(cpu, self.rig.window + TABLES + page * PAGE + offset, size, how, False)

    @rule(
        cpu=CPUS,
        table=st.integers(0, NR_TABLES - 1),
        index=INDICES,
        frame=st.sampled_from(TARGETS),
        flags=FLAGS,
        high=HIGH,
        shape=SHAPES,
    )
    def edit(self, cpu: int, table: int, index: int, frame: int, flags: int, high: int, shape: str) -> None:
        rig = self.rig
        word = frame | flags | high
        if rig.mode == "pae" and table < 2:
            # PDPTEs with reserved bits only make #GP; the machine would stand still.
            word, index, shape = (frame | (flags & 1)) % (1 << 46), index % 3, "whole"
        self._store(cpu, TABLES + table * PAGE + index * rig.width % PAGE, word, shape)

    def _remap(self, cpu: int, gva: int, level: int, frame: int, flags: int) -> None:
        """The guest stores the entry of an address at a level, where its tables lead to it."""
        rig = self.rig
        level = min(level, rig.levels)
        place = rig.place(cpu, self.gva(gva), level)
        if place is None or place >= 0x40000:
            return
        if rig.mode == "pae" and level == 3:
            flags &= 1
        self._store(cpu, place, frame | flags, "whole")

    @rule(cpu=CPUS, gva=NEAR, level=LEVELS, frame=st.sampled_from(TARGETS), flags=FLAGS)
    def remap(self, cpu: int, gva: int, level: int, frame: int, flags: int) -> None:
        """What an operating system does to its tables, without a flush."""
        self._remap(cpu, gva, level, frame, flags)

    @rule(
        cpu=CPUS,
        other=CPUS,
        gva=NEAR,
        pages=PAGES,
        flags=PAIRS,
        how=FLUSHES,
        pcid=st.integers(0, 2),
        user=st.booleans(),
    )
    def use_remap_flush_use(
        self,
        cpu: int,
        other: int,
        gva: int,
        pages: tuple[int, int],
        flags: tuple[int, int],
        how: str,
        pcid: int,
        user: bool,
    ) -> None:
        """Map a page and use it, map another in its place (perhaps by another vCPU), flush, use that."""
        rig = self.rig
        self._remap(cpu, gva, 1, DATA + pages[0] * PAGE, flags[0])
        rig.access(cpu, self.gva(gva) + 0x28, 8, "write" if flags[0] & 2 else "read", user)
        self._remap(other, gva, 1, DATA + pages[1] * PAGE, flags[1])
        self.flush(cpu, how, gva, pcid & 1, pcid, pcid)
        rig.access(cpu, self.gva(gva) + 0x30, 8, "read", user)
        rig.access(cpu, self.gva(gva) + 0x38, 8, "write", user)

    @rule(cpu=CPUS, other=CPUS, level=st.integers(1, 5), table=st.integers(2, NR_TABLES - 1), how=FLUSHES)
    def use_change_two_entries_flush_use(self, cpu: int, other: int, level: int, table: int, how: str) -> None:
        """One store changes two neighbouring entries, at any level; both must be seen after the flush."""
        rig = self.rig
        level = min(level, rig.levels)
        place = rig.place(cpu, 0, level)
        step = 1 << (12 + rig.index_bits * (level - 1))
        gvas = [0, step] if step in rig.gvas else [0]
        for gva in gvas:
            rig.access(cpu, gva + 0x50, 8, "read", False)
        if place is not None and place < 0x40000:
            frame = TABLES + table * PAGE if level > 1 else DATA
            flags = 1 if rig.mode == "pae" and level == 3 else 0x27
            self._store(other, place, frame | flags, "cross")
        self.flush(cpu, how, 0, 0, 0, 2)
        for gva in gvas:
            rig.access(cpu, gva + 0x50, 8, "read", False)

    @rule(cpu=CPUS, other=CPUS, gva=NEAR, page=st.integers(0, 3), how=st.sampled_from(["zap", "ro", "slot", "odd"]))
    def use_and_lose(self, cpu: int, other: int, gva: int, page: int, how: str) -> None:
        """Use a page through a table that kvm then gives up mirroring; the host or VMM takes the page; use it again."""
        rig = self.rig
        self._remap(other, gva, 1, DATA + page * PAGE, 0x67)
        rig.mov_cr3(cpu, 0, 0, False)
        rig.access(cpu, self.gva(gva) + 0x40, 8, "write", False)
        # The level-1 table goes out of sync; a misaligned store to the table above takes both mirrors away.
        for level, offset, size in ((1, 0, rig.width), (2, 1, 2)):
            place = rig.place(cpu, self.gva(gva), level)
            data = None if place is None else rig.read_page(place)
            if place is not None and data is not None and place < 0x40000:
                at = place % PAGE + offset
                rig.store(other, place + offset, data[at : at + size])
        if how == "slot":
            rig.set_slot(1, DATA, 1)
        elif how != "odd":
            rig.protect(1, page, how)
        rig.access(cpu, self.gva(gva) + 0x40, 8, "read", False)
        rig.access(cpu, self.gva(gva) + 0x48, 8, "write", False)
        rig.dirty_log(1)

    @rule(
        cpu=CPUS,
        other=CPUS,
        gva=NEAR,
        pages=PAGES,
        level=st.sampled_from([1, 1, 2]),
        how=st.sampled_from(["zap", "ro"]),
    )
    def use_replace_and_lose(
        self, cpu: int, other: int, gva: int, pages: tuple[int, int], level: int, how: str
    ) -> None:
        """Two vCPUs use a page; one maps another in its place and faults on it; the host takes the first page."""
        rig = self.rig
        self._remap(cpu, gva, 1, DATA + pages[0] * PAGE, 0x25)
        for each in (cpu, other):
            rig.mov_cr3(each, 0, 0, False)
            rig.access(each, self.gva(gva) + 0x40, 8, "read", False)
        frame = DATA + pages[1] * PAGE if level == 1 else TARGETS[pages[1]]
        self._remap(cpu, gva, level, frame, 0x67)
        rig.access(cpu, self.gva(gva) + 0x40, 8, "write", False)
        rig.protect(1, pages[0], how)
        rig.access(other, self.gva(gva) + 0x48, 8, "read", False)
        rig.access(other, self.gva(gva) + 0x48, 8, "write", False)

    @rule(cpu=CPUS, gva=NEAR, half=st.integers(0, 1), page=st.integers(0, 3), how=st.sampled_from(["zap", "ro", "log"]))
    def use_large_and_lose(self, cpu: int, gva: int, half: int, page: int, how: str) -> None:
        """Use a large page, of the guest and perhaps of the host; a piece of it goes, or its writes are logged."""
        rig = self.rig
        size = 0x40_0000 if rig.width == 4 else 0x20_0000
        frame = 0x40_0000 if rig.width == 4 else LARGE + half * size
        self._remap(cpu, gva, 2, frame, 0xE7)
        at = self.gva(gva) // size * size + page * PAGE + 0x58
        if at & -PAGE not in rig.mirrors[cpu].caches.current():
            at = self.gva(gva) + 0x58
        rig.access(cpu, at, 8, "write", False)
        if how == "log":
            rig.set_slot(2, LARGE, 1)
        else:
            rig.protect(2, (frame - LARGE) // PAGE + page, how)
        rig.access(cpu, at, 8, "read", False)
        rig.access(cpu, at, 8, "write", False)
        rig.dirty_log(2)

    @rule(cpu=CPUS, gva=NEAR, page=st.integers(0, 3), flags=LEAVES, user=st.booleans())
    def use_logged_tables(self, cpu: int, gva: int, page: int, flags: int, user: bool) -> None:
        """The walker's own stores, of A and D, are writes to the guest's memory too."""
        rig = self.rig
        self._remap(cpu, gva, 1, DATA + page * PAGE, flags & ~0x60)
        if 0 in rig.slots:
            rig.set_slot(0, 0, 1)
            rig.dirty_log(0)
        rig.access(cpu, self.gva(gva) + 0x60, 8, "write" if flags & 2 else "read", user)
        rig.dirty_log(0)

    def _store(self, cpu: int, gpa: int, word: int, shape: str) -> None:
        width = self.rig.width
        data = (word % (1 << 64)).to_bytes(8, "little")[:width]
        if shape == "half":
            data = data[: width // 2]
        elif shape == "byte":
            data = data[:1]
        elif shape == "odd":
            gpa, data = gpa + 1, data[:4]
        elif shape == "cross":
            data = data + data
        self.rig.store(cpu, gpa, data)

    @rule(cpu=CPUS, how=FLUSHES, gva=NEAR, root=st.integers(0, 1), pcid=st.integers(0, 2), kind=st.integers(0, 3))
    def flush(self, cpu: int, how: str, gva: int, root: int, pcid: int, kind: int) -> None:
        if how == "invlpg":
            self.rig.invlpg(cpu, self.gva(gva))
        elif how == "invpcid":
            self.rig.invpcid(cpu, kind, pcid, self.gva(gva))
        else:
            self.rig.mov_cr3(cpu, root, pcid, how == "cr3 keep")

    @rule(cpu=CPUS, what=REGISTERS, value=st.integers(0, 255))
    def change_registers(self, cpu: int, what: tuple[str, int], value: int) -> None:
        register, bit = what
        if register == "cr4" and (bit != PKE or self.rig.mode in LONG):
            self.rig.toggle_cr4(cpu, bit)
        elif register == "cr0":
            self.rig.toggle_cr0(cpu, bit)
        elif register == "nx":
            self.rig.toggle_nx(cpu)
        elif register == "ac":
            self.rig.toggle_ac(cpu)
        elif register == "pkru":
            self.rig.wrpkru(cpu, value)

    @rule(number=st.sampled_from([1, 2, 3, 3, 3, 0]), how=SLOT_CHANGES, flags=st.integers(0, 3))
    def change_slot(self, number: int, how: str, flags: int) -> None:
        if how == "delete":
            self.rig.delete_slot(number)
            return
        gpa = MOVED if number == 3 and how == "move" else SLOT_PLACES[number][0]
        self.rig.set_slot(number, gpa, flags if number == 3 else flags & 1)

    @rule(
        what=st.sampled_from(["log", "log", "ro", "rw", "zap", "limit"]),
        number=st.integers(0, 3),
        page=st.integers(0, 3),
        nr_pages=st.sampled_from([24, 64, 200]),
    )
    def change_outside(self, what: str, number: int, page: int, nr_pages: int) -> None:
        if what == "log":
            self.rig.dirty_log(number)
        elif what == "limit":
            self.rig.limit_pages(nr_pages)
        elif number:
            self.rig.protect(number, page, what)

    @rule(
        what=st.sampled_from(["age", "age", "log", "recover", "zap"]),
        number=st.integers(1, 3),
        page=st.integers(0, 3),
        how=st.sampled_from(["test", "all", "clear"]),
        flags=st.sampled_from([0, 1, 3]),
    )
    def change_inside(self, what: str, number: int, page: int, how: str, flags: int) -> None:
        if what == "age":
            self.rig.age(number, page, how)
        elif what == "log":
            self.rig.log_manually(flags)
        elif what == "recover":
            self.rig.recover()
        else:
            self.rig.zap_gfns(number)

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            world = self.rig.world
            world.close()
            assert world.vm.n_used_mmu_pages == world.vm.tdp_mmu_pages == 0
            assert world.vm.stat.pages_4k == world.vm.stat.pages_2m == 0


class NptMachine(MmuMachine):
    """The same under nested paging by the legacy MMU."""

    npt = True


class TdpMachine(MmuMachine):
    """The same under nested paging by the TDP MMU."""

    npt = True
    tdp_mmu = True


QUICK = settings(max_examples=70, stateful_step_count=40)
DEEP = settings(
    settings.get_profile("deep"),
    stateful_step_count=150,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)

TestShadow = MmuMachine.TestCase
TestShadow.settings = QUICK
TestNpt = NptMachine.TestCase
TestNpt.settings = QUICK
TestTdp = TdpMachine.TestCase
TestTdp.settings = QUICK


@pytest.mark.deep
class TestShadowDeep(MmuMachine.TestCase):  # type: ignore[name-defined,misc]
    """``make explore``: longer, and many more."""

    settings = DEEP


@pytest.mark.deep
class TestTdpDeep(TdpMachine.TestCase):  # type: ignore[name-defined,misc]
    """``make explore``: longer, and many more."""

    settings = DEEP


@pytest.mark.deep
class TestNptDeep(NptMachine.TestCase):  # type: ignore[name-defined,misc]
    """``make explore``: longer, and many more."""

    settings = DEEP
