# SPDX-License-Identifier: GPL-2.0-only
"""The software walk of a guest hypervisor's EPT, against the manual's model: result, exit qualification, A and D."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmmu import CpuFeatures, Params, World
from kvmmu.kvm.mmu import gpte, setup
from kvmmu.kvm.mmu.role import cpu_role_level, role_ad_disabled, role_guest_mode
from kvmmu.kvm.mmu.walker import GuestWalk, walk_addr
from kvmmu.kvm.vcpu import Vcpu
from oracle import second_stage as model

ROOT, MEMORY = 0x10000, 0x40000
WRITE, READ, FETCH, RSVD = 2, 4, 16, 8
GUEST_PAGE = 1 << 33
BITS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 40, 51, 52, 63)
#: KVM asks with U for a read. A store of the CPU's is a write alone, one to a table a read as well.
ACCESSES = {
    "read": (model.Access(), READ),
    "write": (model.Access(read=False, write=True), WRITE),
    "fetch": (model.Access(read=False, fetch=True), FETCH),
    "table": (model.Access(write=True, table=True), READ | WRITE | GUEST_PAGE),
}
EXECONLY, R, RX, RWX = 4, 1, 5, 7


class Hypervisor:
    """A guest with an EPT in its memory and a context that walks it."""

    def __init__(self, stage: model.SecondStage, flags: int = 0) -> None:
        self.world = World(Params(npt=True), nr_frames=1024)
        self.world.add_slot(0, 0, MEMORY, flags=flags)
        self.vcpu: Vcpu = self.world.create_vcpu(CpuFeatures(maxphyaddr=40))
        self.gw = GuestWalk()
        self.use(stage)

    def use(self, stage: model.SecondStage) -> None:
        """Write the table and point the context at it."""
        self.stage = stage
        for place, word in stage.words.items():
            self.world.poke(place, word)
        eptp = stage.root | (stage.levels - 1) << 3 | stage.has_ad << 6 | 6
        setup.init_ept_mmu(self.vcpu, self.vcpu.guest_mmu, eptp, stage.has_execonly, stage.largest)

    def walk(self, gpa: int, access: int) -> bool:
        """As the fault path would: by the context that has the EPT."""
        return walk_addr(self.vcpu, self.vcpu.guest_mmu, self.gw, gpa, access)

    def words(self) -> dict[int, int]:
        return {place: int.from_bytes(self.world.peek(place), "little") for place in self.stage.words}


def place_of(gpa: int, levels: int, level: int) -> int:
    return ROOT + 0x1000 * (levels - level) + 8 * (gpa >> (12 + 9 * (level - 1)) & 511)


def path(
    levels: int, gpa: int, words: dict[int, int], has_ad: bool, has_execonly: bool = True, largest: int = 3
) -> model.SecondStage:
    """A table whose entries on the way to ``gpa`` are RWX, each with the bits of ``words`` by level turned."""
    entries = {
        place_of(gpa, levels, level): (ROOT + 0x1000 * (levels - level + 1) | RWX) ^ words.get(level, 0)
        for level in range(levels, 0, -1)
    }
    return model.SecondStage(
        "ept", ROOT, levels, entries, has_ad=has_ad, has_execonly=has_execonly, width=40, largest=largest
    )


def check(guest: Hypervisor, gpa: int, name: str) -> None:
    asked, access = ACCESSES[name]
    expected = model.walk(guest.stage, gpa, asked)
    gw = guest.gw
    if guest.walk(gpa, access):
        assert expected[0] == "ok", expected
        rights = {sign for sign, bit in (("r", 4), ("w", 2), ("x", 1)) if gw.pte_access & bit}
        told = set(str(expected[2]))
        # KVM lets a clean page be written only after a fault, so that it hears of the first write.
        clean = {"w"} if "d" not in told else set()
        assert (gw.gpa, gw.gfn) == (expected[1], gw.gpa >> 12)
        assert rights == told - {"d"} - clean
    elif gw.error_code & RSVD:
        assert (expected, gw.qualification) == (("misconfig",), 0)
    else:
        assert ("fault", gw.qualification) == expected, hex(gw.qualification)
        assert gw.fault_address == gpa
    assert guest.words() == guest.stage.words


@given(
    st.sampled_from((4, 5)),
    st.integers(0, (1 << 48) - 1),
    st.dictionaries(st.integers(1, 5), st.lists(st.sampled_from(BITS), max_size=2, unique=True), max_size=3),
    st.booleans(),
    st.booleans(),
    st.sampled_from((1, 2, 3)),
    st.lists(st.sampled_from(sorted(ACCESSES)), min_size=1, max_size=3),
)
def test_the_walk_is_the_manuals(
    levels: int,
    gpa: int,
    turned: dict[int, list[int]],
    has_ad: bool,
    has_execonly: bool,
    largest: int,
    names: list[str],
) -> None:
    words = {level: sum(1 << number for number in numbers) for level, numbers in turned.items()}
    guest = Hypervisor(path(levels, gpa, words, has_ad, has_execonly, largest))
    for name in names:
        check(guest, gpa, name)


@pytest.mark.parametrize("has_execonly", [False, True])
@pytest.mark.parametrize("has_ad", [False, True])
def test_every_mix_of_low_bits_at_every_level(has_ad: bool, has_execonly: bool) -> None:
    guest = Hypervisor(path(4, 0, {}, has_ad, has_execonly))
    cases = 0
    for level in (4, 3, 2, 1):
        for low in range(256):
            for name in ACCESSES:
                stage = path(4, 0, {}, has_ad, has_execonly)
                address = 0 if low & 0x80 and level in (2, 3) else stage.words[place_of(0, 4, level)] & ~0xFFF
                stage.words[place_of(0, 4, level)] = address | low
                guest.use(stage)
                check(guest, 0, name)
                cases += 1
    assert cases == 4 * 256 * 4


def test_the_context_follows_the_ept_pointer_and_no_register() -> None:
    guest = Hypervisor(path(4, 0x5000, {}, True))
    mmu = guest.vcpu.guest_mmu
    assert (cpu_role_level(mmu.cpu_role), role_guest_mode(mmu.root_role), role_ad_disabled(mmu.root_role)) == (
        4,
        True,
        False,
    )
    assert mmu.gpte is gpte.GPTE_EPT
    assert mmu.root_role >> 8 & 7 == 7
    # The same pointer again changes nothing; another number of levels, or none of A and D, does.
    assert not setup.init_ept_mmu(guest.vcpu, mmu, mmu.eptp, True, 3)
    assert setup.init_ept_mmu(guest.vcpu, mmu, ROOT | 4 << 3, True, 3)
    assert (cpu_role_level(mmu.cpu_role), role_ad_disabled(mmu.root_role)) == (5, True)
    assert mmu.gpte is gpte.GPTE_EPT_WITHOUT_AD
    assert setup.init_ept_mmu(guest.vcpu, mmu, ROOT | 4 << 3, False, 3)
    # Back to tables of the guest's own: nothing of EPT stays.
    guest.use(path(4, 0x5000, {1: 0}, True))
    root = guest.vcpu.root_mmu
    assert root.gpte is not mmu.gpte
    assert guest.walk(0x5000, READ)


def test_without_a_and_d_nothing_is_written_and_nothing_is_clean() -> None:
    guest = Hypervisor(path(4, 0x5000, {}, has_ad=False))
    before = guest.words()
    assert guest.walk(0x5000, READ)
    assert guest.gw.pte_access == 7
    assert guest.walk(0x5000, WRITE)
    assert guest.words() == before


def test_a_and_d_are_bits_8_and_9_and_those_of_x86_mean_nothing() -> None:
    guest = Hypervisor(path(4, 0x5000, {1: 0x40}, has_ad=True))
    assert guest.walk(0x5000, READ)
    assert guest.gw.pte_access == 5
    assert [word >> 8 & 3 for word in guest.words().values()] == [1, 1, 1, 1]
    assert guest.walk(0x5000, WRITE)
    assert [word >> 8 & 3 for word in guest.words().values()] == [1, 1, 1, 3]


def test_a_table_outside_memory_is_a_violation_with_the_rights_above() -> None:
    guest = Hypervisor(path(4, 0x5000, {3: 1 << 39 | 2}, has_ad=True))
    assert not guest.walk(0x5000, READ)
    assert guest.gw.error_code == READ
    # A read; R and X of the two entries that were read; a known gva, finally translated.
    assert guest.gw.qualification == 1 | RX << 3 | 1 << 7 | 1 << 8


def test_the_root_outside_memory_is_a_violation_with_all_rights() -> None:
    guest = Hypervisor(path(4, 0x5000, {}, has_ad=True))
    guest.vcpu.guest_mmu.eptp |= 1 << 39
    assert not guest.walk(0x5000, FETCH)
    assert guest.gw.qualification == 4 | RWX << 3 | 1 << 7 | 1 << 8


def test_a_page_that_is_executable_alone_can_be_fetched() -> None:
    guest = Hypervisor(path(4, 0x5000, {1: RWX ^ EXECONLY}, has_ad=True))
    assert guest.walk(0x5000, FETCH)
    assert guest.gw.pte_access == 1
    assert not guest.walk(0x5000, READ)
    guest.use(path(4, 0x5000, {1: RWX ^ EXECONLY}, has_ad=True, has_execonly=False))
    assert not guest.walk(0x5000, FETCH)
    assert guest.gw.error_code & RSVD


def test_registers_and_protection_keys_do_not_reach_into_ept() -> None:
    guest = Hypervisor(path(4, 0x5000, {1: 0xF << 59 | 2}, has_ad=True))
    vcpu = guest.vcpu
    vcpu.pkru = 0xFFFF_FFFF
    vcpu.rflags |= 1 << 18
    assert guest.walk(0x5000, READ)
    # CR0.WP is clear, and yet a write of nobody's in particular needs W.
    assert not guest.walk(0x5000, WRITE)


def test_one_entry_says_what_it_says() -> None:
    fmt = gpte.GPTE_EPT
    assert [gpte.gpte_access(fmt, word) for word in range(8)] == [0, 4, 2, 6, 1, 5, 3, 7]
    assert [gpte.is_present_gpte(fmt, word) for word in (0, 1, 2, 4, 8, 1 << 63)] == [
        False,
        True,
        True,
        True,
        False,
        False,
    ]
    assert gpte.protect_clean(fmt, 7, 0) == 5
    assert gpte.protect_clean(fmt, 7, 1 << 9) == 7
    assert gpte.protect_clean(gpte.GPTE_EPT_WITHOUT_AD, 7, 0) == 7
    assert (R, repr(fmt)) == (1, "<GpteFormat EPT 8 bytes>")
