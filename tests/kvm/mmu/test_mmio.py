# SPDX-License-Identifier: GPL-2.0-only
"""What kvm remembers of MMIO: the record of a vCPU and when it dies, and the spte."""

from __future__ import annotations

import pytest

from kvm.mmu.machines import ACCESS_ALL, EMPTY, HOLE, Guest, U, W, held
from kvmmu import KvmBug
from kvmmu.kvm.mmu import mmio
from kvmmu.kvm.mmu.pages import alloc_page
from kvmmu.kvm.vcpu import Vcpu

GVA, GFN = 0x7000_1234_5678, HOLE >> 12
IN_PROGRESS = 1 << 63


def recorded(gva: int = GVA, gfn: int = GFN) -> tuple[Guest, Vcpu]:
    guest = Guest()
    mmio.cache_record(guest.vcpu, gva, gfn, U | W)
    return guest, guest.vcpu


def test_the_record_names_page_gfn_rights_and_generation() -> None:
    guest, vcpu = recorded()
    generation = guest.world.vm.slots_of(0).generation
    assert (vcpu.mmio_gva, vcpu.mmio_gfn, vcpu.mmio_access) == (GVA & ~0xFFF, GFN, U | W)
    assert vcpu.mmio_gen == generation


@pytest.mark.parametrize(
    ("gva", "matches"), [(GVA, True), (GVA & ~0xFFF, True), (GVA | 0xFFF, True), (GVA + 0x1000, False), (0, False)]
)
def test_a_gva_matches_in_its_page(gva: int, matches: bool) -> None:
    assert mmio.match_gva(recorded()[1], gva) == matches


@pytest.mark.parametrize(("gpa", "matches"), [(HOLE, True), (HOLE + 0xFFF, True), (HOLE + 0x1000, False), (0, False)])
def test_a_gpa_matches_in_its_page(gpa: int, matches: bool) -> None:
    assert mmio.match_gpa(recorded()[1], gpa) == matches


def test_an_empty_half_matches_nothing_not_even_itself() -> None:
    assert not mmio.match_gva(recorded(gva=0)[1], 0)
    assert not mmio.match_gpa(recorded(gfn=0)[1], 0)


def test_the_record_dies_with_a_memslot_update() -> None:
    guest, vcpu = recorded()
    guest.world.add_slot(9, 0x6000_0000, 0x1000)
    assert not mmio.match_gva(vcpu, GVA)
    assert not mmio.match_gpa(vcpu, HOLE)


def test_the_record_is_of_the_address_space_that_the_vcpu_was_in() -> None:
    _, vcpu = recorded()
    vcpu.smm = True
    assert not mmio.match_gva(vcpu, GVA)
    assert not mmio.match_gpa(vcpu, HOLE)
    vcpu.smm = False
    assert mmio.match_gva(vcpu, GVA)


def test_nothing_is_recorded_while_an_update_is_in_progress() -> None:
    guest, vcpu = recorded()
    slots = guest.world.vm.slots_of(0)
    slots.set_generation(vcpu.gate, slots.generation | IN_PROGRESS)
    mmio.cache_record(vcpu, 0x5000, GFN + 1, 0)
    assert (vcpu.mmio_gva, vcpu.mmio_gfn) == (GVA & ~0xFFF, GFN)
    # The old one is of another generation, with the flag.
    assert mmio.generation(vcpu) & IN_PROGRESS
    assert not mmio.match_gva(vcpu, GVA)


def test_forgetting_an_address_forgets_its_page_and_keeps_the_gfn() -> None:
    _, vcpu = recorded()
    mmio.clear_gva(vcpu, GVA + 0x1000)
    assert mmio.match_gva(vcpu, GVA)
    mmio.clear_gva(vcpu, GVA | 0xFFF)
    assert vcpu.mmio_gva == 0
    assert mmio.match_gpa(vcpu, HOLE)
    _, vcpu = recorded()
    mmio.clear_any_gva(vcpu)
    assert not mmio.match_gva(vcpu, GVA)
    assert mmio.match_gpa(vcpu, HOLE)


@pytest.mark.parametrize(
    "generation", [0, 2, 0x7F, 0xFF, 0x100, 0x7FFFE, 0x80000, 0xFFFFE, IN_PROGRESS | 6, (1 << 40) | 4]
)
def test_the_spte_carries_gfn_rights_and_19_bits_of_the_generation(generation: int) -> None:
    guest = Guest()
    vm = guest.world.vm
    with held(vm):
        sp = alloc_page(vm, 0, 1 | ACCESS_ALL)
    vm.slots_of(0).set_generation(vm.gate, generation)
    with held(vm):
        mmio.mark_mmio_spte(guest.vcpu, sp.spt, 0x12_3456_789, U)
    spte = vm.memory.read_once(sp.spt)
    assert spte >> 3 & 0xFF | (spte >> 52 & 0x7FF) << 8 == generation & 0x7FFFF
    assert spte & 7 == 1 | U
    assert spte & 1 << 51
    assert spte >> 12 & 0x7F_FFFF_FFFF & ~(1 << 39) == 0x12_3456_789
    assert spte & 1 << 11 == 0


def test_an_mmio_spte_replaces_another_but_no_mapping() -> None:
    guest = Guest()
    vm = guest.world.vm
    with held(vm):
        sp = alloc_page(vm, 0, 1 | ACCESS_ALL)
        mmio.mark_mmio_spte(guest.vcpu, sp.spt, 1, U)
        mmio.mark_mmio_spte(guest.vcpu, sp.spt, 2, U)
        assert vm.memory.read_once(sp.spt) not in (0, EMPTY)
        assert vm.memory.read_once(sp.spt) >> 12 & 0xFFFF == 2
        vm.memory.write_once(sp.spt, 1 << 11 | 1)
        with pytest.raises(KvmBug, match="set over a present spte"):
            mmio.mark_mmio_spte(guest.vcpu, sp.spt, 1, U)
